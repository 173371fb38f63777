//! `--metrics`: counters for Prometheus.
//!
//! The engine's statistics are read once a second and handed to the exporter under the names of [`METRICS`]; what the transports count by
//! themselves through the `metrics` facade appears beside them. Names, labels and meaning are in docs/operations.md, and a
//! dashboard that uses them is docs/grafana/weft.json; tests hold the three together.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::{Engine, Statistics};
use metrics::{Label, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use crate::failure::Failure;

/// How often the statistics are read; Prometheus asks every 15 s or so.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether a metric only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// Every metric that is made from the engine's statistics: name, kind, unit, meaning.
pub(crate) const METRICS: &[(&str, Kind, Unit, &str)] = &[
    (
        "weft_up",
        Kind::Gauge,
        Unit::Count,
        "1 while the process runs; labels say its name and its libfabric path",
    ),
    ("weft_regions", Kind::Gauge, Unit::Count, "Registrations now"),
    ("weft_registered_bytes", Kind::Gauge, Unit::Bytes, "Bytes registered now"),
    (
        "weft_peer_bytes_total",
        Kind::Counter,
        Unit::Bytes,
        "Bytes moved for own requests, by peer, transport and op",
    ),
    (
        "weft_peer_requests_total",
        Kind::Counter,
        Unit::Count,
        "Own requests that have ended, by peer, transport and result",
    ),
    ("weft_peer_retries_total", Kind::Counter, Unit::Count, "Slices tried again over libfabric, by peer"),
    (
        "weft_peer_failovers_total",
        Kind::Counter,
        Unit::Count,
        "Times that a peer's traffic was moved from libfabric to TCP",
    ),
    ("weft_peer_returns_total", Kind::Counter, Unit::Count, "Times that it was moved back"),
    (
        "weft_peer_requests_moved_total",
        Kind::Counter,
        Unit::Count,
        "Requests that failed over libfabric and were done over TCP",
    ),
    (
        "weft_peer_restarts_total",
        Kind::Counter,
        Unit::Count,
        "Times that a peer was found to have been restarted",
    ),
    ("weft_nic_bytes_total", Kind::Counter, Unit::Bytes, "Bytes moved for own requests, by NIC and op"),
    ("weft_nic_operations_total", Kind::Counter, Unit::Count, "Operations posted, by NIC"),
    ("weft_nic_errors_total", Kind::Counter, Unit::Count, "Attempts that failed, by NIC"),
    ("weft_nic_again_total", Kind::Counter, Unit::Count, "Posts that the provider had no room for, by NIC"),
    (
        "weft_nic_reopened_total",
        Kind::Counter,
        Unit::Count,
        "Times that a NIC's endpoint was closed and opened again",
    ),
    ("weft_nic_arrivals_total", Kind::Counter, Unit::Count, "Immediates that arrived, by NIC"),
    ("weft_nic_credits", Kind::Gauge, Unit::Count, "Operations that a NIC takes at a time"),
    ("weft_nic_credits_in_use", Kind::Gauge, Unit::Count, "Operations in flight on a NIC now"),
    ("weft_nic_queued", Kind::Gauge, Unit::Count, "Slices that wait for a credit of a NIC now"),
    ("weft_nic_ledger_pages", Kind::Gauge, Unit::Count, "Page table entries of a NIC in use now"),
    (
        "weft_nic_ledger_budget_pages",
        Kind::Gauge,
        Unit::Count,
        "Page table entries of a NIC that may be used",
    ),
    ("weft_nic_addresses", Kind::Gauge, Unit::Count, "Address vector entries of a NIC in use now"),
    ("weft_nic_aside", Kind::Gauge, Unit::Count, "1 while a NIC is set aside after failures"),
    ("weft_nic_link_bits_per_second", Kind::Gauge, Unit::BitsPerSecond, "Link speed of a NIC, 0 if unknown"),
    (
        "weft_tcp_bytes_total",
        Kind::Counter,
        Unit::Bytes,
        "Bytes over TCP and within the host, by side (asked, served) and op",
    ),
    (
        "weft_tcp_retries_total",
        Kind::Counter,
        Unit::Count,
        "Slices sent again because their connection was lost",
    ),
    ("weft_tcp_refused_total", Kind::Counter, Unit::Count, "Peers' requests that were refused here"),
    ("weft_tcp_lanes_opened_total", Kind::Counter, Unit::Count, "Connections opened to peers"),
    ("weft_tcp_lanes_lost_total", Kind::Counter, Unit::Count, "Connections to peers that were lost"),
    ("weft_tcp_accepted_total", Kind::Counter, Unit::Count, "Connections accepted"),
    (
        "weft_tcp_turned_away_total",
        Kind::Counter,
        Unit::Count,
        "Connections turned away: bad handshake, too many, broken protocol",
    ),
    ("weft_tcp_connections", Kind::Gauge, Unit::Count, "Connections open now, both directions"),
];

/// Serves the metrics of an engine until it is dropped.
pub(crate) struct Exporter {
    addr: SocketAddr,
    stop: Arc<(Mutex<bool>, Condvar)>,
    sampler: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens at `addr`, which must name a port.
    pub(crate) fn start(addr: SocketAddr, engine: &Engine) -> Result<Self, Failure> {
        if addr.port() == 0 {
            return Err(Failure::Usage("--metrics needs a port, such as 127.0.0.1:9420".into()));
        }
        let recorder = Arc::new(listen(addr)?);
        // Another part of the process may have a recorder; then the transports' own counters go there, and ours to us.
        let _ = metrics::set_global_recorder(Arc::clone(&recorder));
        describe(&recorder);
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (engine, told) = (engine.clone(), Arc::clone(&stop));
        let sample = move || {
            let mut over = told.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !*over {
                publish(&recorder, &engine.statistics());
                over = told.1.wait_timeout(over, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        let sampler = std::thread::Builder::new()
            .name("weft-metrics".into())
            .spawn(sample)
            .map_err(|error| Failure::Unavailable(format!("cannot start the metrics thread: {error}")))?;
        Ok(Self { addr, stop, sampler: Some(sampler) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.addr)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
    }
}

/// Starts the exporter's HTTP server on a thread that lasts as long as the process.
fn listen(addr: SocketAddr) -> Result<PrometheusRecorder, Failure> {
    let failed = |error: String| {
        Failure::Unavailable(format!("--metrics {addr}: {error}; choose another address or port"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let (tell, told) = mpsc::channel();
    let serve = move || {
        runtime.block_on(async move {
            match PrometheusBuilder::new().with_http_listener(addr).build() {
                Err(error) => drop(tell.send(Err(error.to_string()))),
                Ok((recorder, exporter)) => {
                    let _ = tell.send(Ok(recorder));
                    let _ = exporter.await;
                }
            }
        });
    };
    std::thread::Builder::new()
        .name("weft-prometheus".into())
        .spawn(serve)
        .map_err(|error| failed(error.to_string()))?;
    told.recv().map_err(|error| failed(error.to_string()))?.map_err(failed)
}

fn describe(recorder: &Arc<PrometheusRecorder>) {
    metrics::with_local_recorder(recorder, || {
        for (name, kind, unit, meaning) in METRICS {
            match kind {
                Kind::Counter => metrics::describe_counter!(*name, *unit, *meaning),
                Kind::Gauge => metrics::describe_gauge!(*name, *unit, *meaning),
            }
        }
    });
}

/// Hands the statistics over.
fn publish(recorder: &Arc<PrometheusRecorder>, statistics: &Statistics) {
    metrics::with_local_recorder(recorder, || {
        each(statistics, |name, labels, value| {
            let kind = METRICS.iter().find(|metric| metric.0 == name).map(|metric| metric.1);
            match kind {
                Some(Kind::Counter) => metrics::counter!(name, labels).absolute(value),
                Some(Kind::Gauge) => metrics::gauge!(name, labels).set(value as f64),
                // A test publishes everything and finds none such.
                None => tracing::error!(name, "a metric without a description"),
            }
        });
    });
}

/// Every metric with its labels and value.
fn each(statistics: &Statistics, mut tell: impl FnMut(&'static str, Vec<Label>, u64)) {
    let label = |name: &'static str, value: &str| Label::new(name, value.to_owned());
    let fabric = statistics.fabric.as_ref().map_or("none", |path| path.lines().next().unwrap_or("none"));
    tell("weft_up", vec![label("name", &statistics.name), label("fabric", fabric)], 1);
    tell("weft_regions", Vec::new(), statistics.regions as u64);
    tell("weft_registered_bytes", Vec::new(), statistics.registered_bytes);
    for peer in &statistics.peers {
        let of = || vec![label("peer", &peer.name)];
        for (transport, traffic) in [("libfabric", peer.fabric), ("tcp", peer.tcp)] {
            let with = |name, value: &str| {
                vec![label("peer", &peer.name), label("transport", transport), label(name, value)]
            };
            tell("weft_peer_bytes_total", with("op", "read"), traffic.bytes_read);
            tell("weft_peer_bytes_total", with("op", "write"), traffic.bytes_written);
            tell("weft_peer_requests_total", with("result", "done"), traffic.requests_done);
            tell("weft_peer_requests_total", with("result", "failed"), traffic.requests_failed);
        }
        tell("weft_peer_retries_total", of(), peer.retries);
        tell("weft_peer_failovers_total", of(), peer.failovers);
        tell("weft_peer_returns_total", of(), peer.returns);
        tell("weft_peer_requests_moved_total", of(), peer.requests_moved);
        tell("weft_peer_restarts_total", of(), peer.restarts);
    }
    for nic in &statistics.nics {
        let of = || vec![label("nic", &nic.name)];
        let with = |value: &str| vec![label("nic", &nic.name), label("op", value)];
        tell("weft_nic_bytes_total", with("read"), nic.bytes_read);
        tell("weft_nic_bytes_total", with("write"), nic.bytes_written);
        tell("weft_nic_operations_total", of(), nic.operations);
        tell("weft_nic_errors_total", of(), nic.errors);
        tell("weft_nic_again_total", of(), nic.again);
        tell("weft_nic_reopened_total", of(), nic.reopened);
        tell("weft_nic_arrivals_total", of(), nic.arrivals);
        tell("weft_nic_credits", of(), nic.depth as u64);
        tell("weft_nic_credits_in_use", of(), nic.in_flight as u64);
        tell("weft_nic_queued", of(), nic.queued as u64);
        tell("weft_nic_ledger_pages", of(), nic.pages);
        tell("weft_nic_ledger_budget_pages", of(), nic.page_budget);
        tell("weft_nic_addresses", of(), nic.addresses as u64);
        tell("weft_nic_aside", of(), nic.aside.into());
        tell("weft_nic_link_bits_per_second", of(), nic.link_mbps * 1_000_000);
    }
    let tcp = &statistics.tcp;
    for (side, op, value) in [
        ("asked", "read", tcp.bytes_read),
        ("asked", "write", tcp.bytes_written),
        ("served", "read", tcp.bytes_served_read),
        ("served", "write", tcp.bytes_served_written),
    ] {
        tell("weft_tcp_bytes_total", vec![label("side", side), label("op", op)], value);
    }
    tell("weft_tcp_retries_total", Vec::new(), tcp.retries);
    tell("weft_tcp_refused_total", Vec::new(), tcp.refused);
    tell("weft_tcp_lanes_opened_total", Vec::new(), tcp.lanes_opened);
    tell("weft_tcp_lanes_lost_total", Vec::new(), tcp.lanes_lost);
    tell("weft_tcp_accepted_total", Vec::new(), tcp.accepted);
    tell("weft_tcp_turned_away_total", Vec::new(), tcp.turned_away);
    tell("weft_tcp_connections", Vec::new(), tcp.connections);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Names that the transports count by themselves.
    const FACADE: [&str; 7] = [
        "weft_failovers_total",
        "weft_returns_total",
        "weft_efa_retries_total",
        "weft_efa_nic_down_total",
        "weft_efa_peer_down_total",
        "weft_efa_requests_total",
        "weft_efa",
    ];

    fn words(text: &str) -> BTreeSet<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with("weft_"));
        words.map(str::to_owned).collect()
    }

    #[test]
    fn every_metric_is_described_once_and_published() {
        let engine = Engine::builder().protocol(engine::Protocol::Tcp).build().unwrap();
        let peer = Engine::builder().protocol(engine::Protocol::Tcp).build().unwrap();
        let _segment = engine.open(peer.name(), std::time::Instant::now() + Duration::from_secs(20)).unwrap();
        let mut statistics = engine.statistics();
        statistics.nics.push(Default::default());
        let mut published = BTreeSet::new();
        each(&statistics, |name, _, _| {
            published.insert(name);
        });
        let described: BTreeSet<&str> = METRICS.iter().map(|metric| metric.0).collect();
        assert_eq!(published, described);
        assert_eq!(described.len(), METRICS.len());
        for (name, kind, ..) in METRICS {
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn the_manual_and_the_dashboard_know_the_same_names() {
        let manual = words(include_str!("../../../docs/operations.md"));
        let dashboard = words(include_str!("../../../docs/grafana/weft.json"));
        let known: BTreeSet<String> =
            METRICS.iter().map(|metric| metric.0).chain(FACADE).map(str::to_owned).collect();
        for (name, ..) in METRICS {
            assert!(manual.contains(*name), "docs/operations.md does not explain {name}");
        }
        let unknown: Vec<_> = dashboard.difference(&known).collect();
        assert!(unknown.is_empty(), "docs/grafana/weft.json asks for {unknown:?}");
        assert!(dashboard.len() > 12, "{dashboard:?}");
    }
}
