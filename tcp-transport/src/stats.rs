//! Counters: a snapshot for whoever asks, and the same figures through the `metrics` facade for whoever has installed a
//! recorder.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident: $type:ident($metric:literal $(, $label:literal = $value:literal)?),)*) => {
        /// What a transport has done since it was built. All counts; bytes are payload.
        ///
        /// The same figures go to the [`metrics`] facade, all transports of the process together, under the names that stand with
        /// each field. A recorder has to be installed before the first traffic; without one they cost a branch.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Statistics {
            $(
                $(#[doc = $doc])*
                #[doc = concat!(" Metric: `", $metric, $("{", $label, "=\"", $value, "\"}",)? "`.")]
                pub $name: u64,
            )*
        }

        #[derive(Debug)]
        pub(crate) struct Counters {
            $(pub(crate) $name: $type,)*
        }

        impl Default for Counters {
            fn default() -> Self {
                Self { $($name: $type::new($metric, &[$(($label, $value))?], concat!($($doc),*)),)* }
            }
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Statistics {
                Statistics { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Own requests that ended well.
    requests_done: Count("weft_tcp_requests_total", "result" = "done"),
    /// Own requests that failed.
    requests_failed: Count("weft_tcp_requests_total", "result" = "failed"),
    /// Bytes read from peers.
    bytes_read: Count("weft_tcp_bytes_total", "direction" = "read"),
    /// Bytes written to peers.
    bytes_written: Count("weft_tcp_bytes_total", "direction" = "written"),
    /// Bytes that peers read here.
    bytes_served_read: Count("weft_tcp_served_bytes_total", "direction" = "read"),
    /// Bytes that peers wrote here.
    bytes_served_written: Count("weft_tcp_served_bytes_total", "direction" = "written"),
    /// Peers' requests that were refused here.
    refused: Count("weft_tcp_refused_total"),
    /// Lanes opened to peers.
    lanes_opened: Count("weft_tcp_lanes_opened_total"),
    /// Lanes to peers that were lost.
    lanes_lost: Count("weft_tcp_lanes_lost_total"),
    /// Slices that were sent again because their lane was lost.
    retries: Count("weft_tcp_retries_total"),
    /// Connections accepted.
    accepted: Count("weft_tcp_accepted_total"),
    /// Connections turned away: bad handshake, too many, too slow, a broken protocol.
    turned_away: Count("weft_tcp_turned_away_total"),
    /// Connections that are open now, both directions, in the handshake or after it.
    connections: Level("weft_tcp_connections"),
}

type Labels = &'static [(&'static str, &'static str)];

/// Something that is counted.
#[derive(Debug)]
pub(crate) struct Count {
    value: AtomicU64,
    name: &'static str,
    labels: Labels,
    what: &'static str,
    /// Made at the first count, when a recorder should be there; looking it up by name each time would cost 100 ns.
    metric: OnceLock<Counter>,
}

impl Count {
    const fn new(name: &'static str, labels: Labels, what: &'static str) -> Self {
        Self { value: AtomicU64::new(0), name, labels, what, metric: OnceLock::new() }
    }

    /// Counts `n` more and returns how many there were before.
    pub(crate) fn add(&self, n: u64) -> u64 {
        let metric = self.metric.get_or_init(|| {
            describe_counter!(self.name, self.what.trim());
            counter!(self.name, self.labels)
        });
        metric.increment(n);
        self.value.fetch_add(n, Ordering::Relaxed)
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Something that rises and falls.
#[derive(Debug)]
pub(crate) struct Level {
    value: AtomicU64,
    name: &'static str,
    labels: Labels,
    what: &'static str,
    metric: OnceLock<Gauge>,
}

impl Level {
    const fn new(name: &'static str, labels: Labels, what: &'static str) -> Self {
        Self { value: AtomicU64::new(0), name, labels, what, metric: OnceLock::new() }
    }

    fn metric(&self) -> &Gauge {
        self.metric.get_or_init(|| {
            describe_gauge!(self.name, self.what.trim());
            gauge!(self.name, self.labels)
        })
    }

    pub(crate) fn up(&self) {
        self.metric().increment(1.0);
        self.value.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.metric().decrement(1.0);
        self.value.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use metrics::{CounterFn, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;
    use crate::sync::lock;

    #[derive(Default)]
    struct Kept(Mutex<f64>);

    impl CounterFn for Kept {
        fn increment(&self, n: u64) {
            *lock(&self.0) += n as f64;
        }
        fn absolute(&self, n: u64) {
            *lock(&self.0) = n as f64;
        }
    }

    impl GaugeFn for Kept {
        fn increment(&self, by: f64) {
            *lock(&self.0) += by;
        }
        fn decrement(&self, by: f64) {
            *lock(&self.0) -= by;
        }
        fn set(&self, to: f64) {
            *lock(&self.0) = to;
        }
    }

    #[derive(Default)]
    struct Keeper {
        metrics: Mutex<HashMap<String, Arc<Kept>>>,
        described: Mutex<HashMap<String, String>>,
    }

    impl Keeper {
        fn of(&self, key: &Key) -> Arc<Kept> {
            Arc::clone(lock(&self.metrics).entry(key.to_string()).or_default())
        }
    }

    impl Recorder for Keeper {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, what: SharedString) {
            lock(&self.described).insert(key.as_str().to_owned(), what.into_owned());
        }
        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, what: SharedString) {
            lock(&self.described).insert(key.as_str().to_owned(), what.into_owned());
        }
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.of(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.of(key))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn a_snapshot_and_the_facade_agree() {
        let keeper = Keeper::default();
        let (a, b) = (Counters::default(), Counters::default());
        metrics::with_local_recorder(&keeper, || {
            assert_eq!(a.bytes_read.add(5), 0);
            assert_eq!(a.bytes_read.add(7), 5);
            b.bytes_read.add(100);
            a.requests_failed.add(1);
            a.connections.up();
            a.connections.up();
            b.connections.up();
            a.connections.down();
        });
        let Statistics { bytes_read, requests_failed, requests_done, connections, .. } = a.snapshot();
        assert_eq!((bytes_read, requests_failed, requests_done, connections), (12, 1, 0, 1));
        assert_eq!(b.snapshot().bytes_read, 100, "each transport has its own");

        let kept: HashMap<_, _> =
            lock(&keeper.metrics).iter().map(|(k, v)| (k.clone(), *lock(&v.0))).collect();
        let value = |name: &str, labels: &[(&'static str, &'static str)]| {
            let key = Key::from_parts(name.to_owned(), labels);
            kept.get(&key.to_string()).copied()
        };
        assert_eq!(value("weft_tcp_bytes_total", &[("direction", "read")]), Some(112.0), "{kept:?}");
        assert_eq!(value("weft_tcp_requests_total", &[("result", "failed")]), Some(1.0));
        assert_eq!(value("weft_tcp_connections", &[]), Some(2.0));
        assert_eq!(kept.len(), 3, "nothing that was not counted");
        assert_eq!(lock(&keeper.described)["weft_tcp_connections"].lines().count(), 1);
    }
}
