//! What a transport does besides moving bytes to another process: within this process, to itself, to more peers than fit, and
//! what it tells about all that.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::{checksum, config, memory, open, pattern, providers, soon};
use efa_transport::{Batch, Config, NicSelection, Op, Region, Request, Shape, Transport};
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, SharedString, Unit};

const LEN: usize = 1 << 20;

fn first(test: &str, change: impl Fn(Config) -> Config) -> Option<(Transport, &'static str)> {
    providers().into_iter().find_map(|provider| {
        let name = format!("{test} over {provider}");
        Some((open(&name, change(config(provider, 1, "initiator")))?, provider))
    })
}

fn bytes_of(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len() as usize];
    region.read(0, &mut bytes).expect("our memory");
    bytes
}

fn until(what: &str, happened: impl FnMut() -> bool) {
    common::eventually(what, happened);
}

/// Writes pages of `a` to `b`, in reverse, and reads them back to `c`.
fn round_trip(transport: &Transport, to: efa_transport::PeerId, regions: [&Region; 3], seed: u64) {
    let [a, b, c] = regions;
    let source = pattern(LEN, seed);
    a.write(0, &source).expect("our memory");
    let page = 4_096;
    let pages: Vec<u64> = (0..LEN as u64 / page).rev().map(|number| b.addr() + number * page).collect();
    let mut batch = Batch::new();
    for (op, local) in [(Op::Write, a), (Op::Read, c)] {
        let request = Request {
            op,
            peer: to,
            local,
            local_shape: Shape::contiguous(local.addr(), LEN as u64),
            remote_shape: Shape::Paged { page_len: page, addrs: &pages },
            immediate: None,
        };
        batch.push(request).expect("a request");
        transport.submit(&mut batch).expect("submitting").wait().expect("a transfer");
        let reversed: Vec<u8> = source.chunks(page as usize).rev().flatten().copied().collect();
        until("pages in reverse", || checksum(&bytes_of(b)) == checksum(&reversed));
    }
    until("read back", || bytes_of(c) == source);
}

/// Catches: a request within the process that goes out through a NIC, or whose pages are mixed up.
#[test]
fn within_the_process_bytes_are_copied_and_no_nic_is_asked() {
    let test = "within_the_process_bytes_are_copied_and_no_nic_is_asked";
    let Some((transport, _)) = first(test, |config| config.same_process_copy(true)) else { return };
    let regions = [(); 3].map(|()| memory(&transport, LEN));
    let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
    round_trip(&transport, own, [&regions[0], &regions[1], &regions[2]], 1);
    let warm = transport.warm_up(own, soon()).expect("nothing to warm");
    assert_eq!(warm.rails, 0);
    // An immediate arrives here as well.
    let counter = transport.arrivals().watch(9);
    let mut batch = Batch::new();
    let write = Request::write(own, &regions[0], regions[0].addr(), regions[1].addr(), 8).with_immediate(9);
    if batch.push(write).is_ok() && transport.describe().nics[0].immediate_bytes >= 4 {
        transport.submit(&mut batch).expect("submitting").wait().expect("a write");
        assert_eq!(counter.value(), 1);
    }
    let nic = &transport.statistics().nics[0];
    assert_eq!((nic.bytes_written, nic.bytes_read, nic.slices), (0, 0, 0));
    // What is not registered is refused by name here, too.
    batch.clear();
    batch.push(Request::write(own, &regions[0], regions[0].addr(), 64, 8)).expect("a request");
    let error = transport.submit(&mut batch).expect("submitting").wait().expect_err("not registered");
    assert!(error.to_string().contains("initiator"), "{error}");
    transport.shutdown(soon());
}

/// Catches: a transport that cannot reach itself through its NIC.
#[test]
fn a_nic_reaches_itself() {
    let test = "a_nic_reaches_itself";
    let Some((transport, _)) = first(test, |config| config) else { return };
    let regions = [(); 3].map(|()| memory(&transport, LEN));
    let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
    round_trip(&transport, own, [&regions[0], &regions[1], &regions[2]], 2);
    let nic = &transport.statistics().nics[0];
    assert_eq!((nic.bytes_written, nic.bytes_read), (LEN as u64, LEN as u64));
    transport.shutdown(soon());
}

/// Catches: an address vector that grows without bound; a peer that is lost when it had to make room.
#[test]
fn idle_peers_make_room_and_are_reached_again() {
    let test = "idle_peers_make_room_and_are_reached_again";
    let Some((transport, provider)) = first(test, |config| config.max_peers(2)) else { return };
    let region = memory(&transport, LEN);
    let targets: Vec<(Transport, Region)> = (0..5)
        .filter_map(|n| {
            let target = open(test, config(provider, 1, &format!("target-{n}")))?;
            let memory = memory(&target, LEN);
            Some((target, memory))
        })
        .collect();
    let peers: Vec<_> = targets
        .iter()
        .map(|(target, _)| {
            target.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
            transport.add_or_update_peer(&target.local_descriptor()).expect("its descriptor")
        })
        .collect();
    let mut batch = Batch::new();
    for round in 0..3 {
        for (n, ((_, memory), &peer)) in targets.iter().zip(&peers).enumerate() {
            let bytes = pattern(LEN, 10 * round + n as u64);
            region.write(0, &bytes).expect("our memory");
            batch
                .push(Request::write(peer, &region, region.addr(), memory.addr(), LEN as u64))
                .expect("a request");
            transport.submit(&mut batch).expect("submitting").wait().expect("a write");
            until("its bytes", || bytes_of(memory) == bytes);
            let entries = transport.statistics().nics[0].addresses;
            assert!(entries <= 2, "{entries} entries after {n} peers");
        }
    }
    assert_eq!(transport.peers().len(), 5);
    transport.shutdown(soon());
}

/// Catches: a trace that no viewer reads, that forgets slices, or that grows without bound.
#[test]
fn the_slice_trace_holds_the_latest_slices_as_json() {
    let test = "the_slice_trace_holds_the_latest_slices_as_json";
    let Some((transport, _)) = first(test, |config| config.trace_slices(16)) else { return };
    let regions = [(); 2].map(|()| memory(&transport, LEN));
    let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
    let mut batch = Batch::new();
    for size in 1..=40 {
        batch
            .push(Request::write(own, &regions[0], regions[0].addr(), regions[1].addr(), size))
            .expect("a request");
        transport.submit(&mut batch).expect("submitting").wait().expect("a write");
    }
    let json = transport.slice_trace().expect("it was asked for");
    let events: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let slices: Vec<_> =
        events.as_array().expect("a list").iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(slices.len(), 16, "{json}");
    for (slice, size) in slices.iter().zip(25..) {
        assert_eq!(slice["args"]["bytes"], size, "{json}");
        assert_eq!(slice["name"], "write");
        assert!(slice["dur"].as_f64().is_some_and(|microseconds| microseconds > 0.0));
    }
    assert!(json.contains(&transport.describe().nics[0].name), "a track for the NIC");
    transport.shutdown(soon());
}

/// Keeps what it is given.
#[derive(Default, Clone)]
struct Kept(Arc<Mutex<HashMap<String, f64>>>);

struct Handle(Kept, String);

impl Handle {
    fn set(&self, value: f64) {
        self.0.0.lock().expect("no panic").insert(self.1.clone(), value);
    }
}

impl CounterFn for Handle {
    fn increment(&self, value: u64) {
        *self.0.0.lock().expect("no panic").entry(self.1.clone()).or_default() += value as f64;
    }
    fn absolute(&self, value: u64) {
        self.set(value as f64);
    }
}

impl GaugeFn for Handle {
    fn increment(&self, value: f64) {
        *self.0.0.lock().expect("no panic").entry(self.1.clone()).or_default() += value;
    }
    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }
    fn set(&self, value: f64) {
        Handle::set(self, value);
    }
}

impl Kept {
    fn handle(&self, key: &Key) -> Arc<Handle> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Handle(self.clone(), format!("{} {}", key.name(), labels.join(" "))))
    }
}

impl metrics::Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Catches: metrics that nobody gets, or that say something else than the statistics.
#[test]
fn metrics_say_what_the_statistics_say() {
    let test = "metrics_say_what_the_statistics_say";
    let kept = Kept::default();
    let opened = metrics::with_local_recorder(&kept, || first(test, |config| config));
    let Some((transport, _)) = opened else { return };
    let regions = [(); 3].map(|()| memory(&transport, LEN));
    let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
    round_trip(&transport, own, [&regions[0], &regions[1], &regions[2]], 3);
    transport.shutdown(soon());
    let nic = &transport.statistics().nics[0];
    let kept = kept.0.lock().expect("no panic");
    let get = |name: &str| kept.get(name).copied().unwrap_or_else(|| panic!("no {name} in {kept:?}"));
    assert_eq!(get(&format!("weft_efa_bytes_total nic={} op=write", nic.name)), nic.bytes_written as f64);
    assert_eq!(get(&format!("weft_efa_bytes_total nic={} op=read", nic.name)), nic.bytes_read as f64);
    assert_eq!(get(&format!("weft_efa_slices_total nic={}", nic.name)), nic.slices as f64);
    assert_eq!(get(&format!("weft_efa_nic_aside nic={}", nic.name)), 0.0);
}

/// Catches: a slow path that nobody is told of; a NIC that is chosen by a GPU although there is none near it.
#[test]
fn the_description_warns_and_nics_near_a_gpu_can_be_asked_for() {
    let test = "the_description_warns_and_nics_near_a_gpu_can_be_asked_for";
    let near = |config: Config| config.nics(NicSelection::Near(efa_mr::Location::Gpu(0)));
    let Some((transport, provider)) = first(test, near) else { return };
    let described = transport.describe();
    if !described.delivery_complete && !provider.starts_with("efa") {
        assert!(described.warnings.iter().any(|warning| warning.contains("visible")), "{described}");
    }
    assert!(!described.nics.is_empty());
    if !std::path::Path::new("/dev/nvidia0").exists() {
        eprintln!("SKIP: {test}: device memory: this machine has no NVIDIA GPU");
    }
    transport.shutdown(soon());
}
