//! What goes out through the [`metrics`] facade: counters of each NIC, written from the progress thread a few times a second.
//!
//! Handles are made when the transport is opened, by the recorder that is installed then: the hot path neither looks names up nor
//! allocates for them.

use std::sync::atomic::Ordering;

use metrics::{Counter, Gauge, counter, gauge};

use crate::core::Core;
use crate::lane::Lane;

/// Of the transport as a whole.
pub(crate) struct TransportGauges {
    done: Counter,
    failed: Counter,
}

impl TransportGauges {
    pub(crate) fn new() -> Self {
        let of = |result: &'static str| counter!("weft_efa_requests_total", "result" => result);
        Self { done: of("done"), failed: of("failed") }
    }
}

impl Core {
    /// Writes all of them.
    pub(crate) fn publish(&self) {
        let (done, failed) = self.batches.lock().ended();
        self.gauges.done.absolute(done);
        self.gauges.failed.absolute(failed);
        let now = self.clock.now();
        self.lanes.iter().for_each(|lane| lane.gauges.publish(lane, now));
    }
}

pub(crate) struct NicGauges {
    written: Counter,
    read: Counter,
    slices: Counter,
    again: Counter,
    errors: Counter,
    arrivals: Counter,
    taken_over: Counter,
    reopened: Counter,
    load: Gauge,
    aside: Gauge,
}

impl NicGauges {
    pub(crate) fn new(nic: &str) -> Self {
        let of = |name: &'static str| counter!(name, "nic" => nic.to_owned());
        let bytes = |op: &'static str| counter!("weft_efa_bytes_total", "nic" => nic.to_owned(), "op" => op);
        Self {
            written: bytes("write"),
            read: bytes("read"),
            slices: of("weft_efa_slices_total"),
            again: of("weft_efa_again_total"),
            errors: of("weft_efa_errors_total"),
            arrivals: of("weft_efa_arrivals_total"),
            taken_over: of("weft_efa_taken_over_total"),
            reopened: of("weft_efa_reopened_total"),
            load: gauge!("weft_efa_load_bytes", "nic" => nic.to_owned()),
            aside: gauge!("weft_efa_nic_aside", "nic" => nic.to_owned()),
        }
    }

    fn publish(&self, lane: &Lane, now: u64) {
        let counters = &lane.counters;
        for (gauge, counter) in [
            (&self.written, &counters.bytes_written),
            (&self.read, &counters.bytes_read),
            (&self.slices, &counters.slices),
            (&self.again, &counters.again),
            (&self.errors, &counters.errors),
            (&self.arrivals, &counters.arrivals),
            (&self.taken_over, &counters.taken_over),
            (&self.reopened, &counters.reopened),
        ] {
            gauge.absolute(counter.load(Ordering::Relaxed));
        }
        self.load.set(lane.load.load(Ordering::Relaxed) as f64);
        self.aside.set(f64::from(u8::from(lane.aside_until.load(Ordering::Relaxed) > now)));
    }
}
