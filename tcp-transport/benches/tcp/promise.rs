//! What is promised, and of which rows. Every row that is promised something carries the figure; the summary at the end says for each
//! promise how its rows stand.

use benchkit::{Bench, Metric};
use tcp_transport::Path;

/// Text for the summary, the metric of the rows, and the ratio to the bare loop or, for counts, the most.
pub(crate) struct Promise {
    text: &'static str,
    pub(crate) figure: f64,
}

macro_rules! promises {
    ($($name:ident: $text:literal, $figure:literal;)*) => {
        $(pub(crate) const $name: Promise = Promise { text: $text, figure: $figure };)*
        const ALL: &[&Promise] = &[$(&$name),*];
    };
}

promises! {
    LATENCY: "median of one 4 KiB request at most 1.25 x a blocking ping-pong, on either path", 0.8;
    NET_64K: "net: batches of 64 KiB requests at least 0.90 of the bare socket loop", 0.90;
    NET_1M: "net: batches of requests from 1 MiB at least 0.95 of the bare socket loop", 0.95;
    HOST_1M: "host: requests from 1 MiB, alone or in batches, at least 0.90 of the bare process_vm loop", 0.90;
    ALLOCATIONS: "no heap allocation per request in steady state", 0.0;
    IDLE: "open and unused connections cost at most 0.5 % of a core", 0.5;
}

/// What one case of the matrix is promised, if anything.
pub(crate) fn of_throughput(path: Path, size: usize, batch: usize) -> Option<&'static Promise> {
    const MIB: usize = 1 << 20;
    match (path, size, batch) {
        (Path::Host, MIB.., _) => Some(&HOST_1M),
        (Path::Net, MIB.., 2..) => Some(&NET_1M),
        (Path::Net, 65_536.., 2..) => Some(&NET_64K),
        _ => None,
    }
}

/// Which promise each case belongs to, for the summary.
#[derive(Default)]
pub(crate) struct Kept(Vec<(String, Metric, &'static Promise)>);

impl Kept {
    pub(crate) fn add(&mut self, case: &str, metric: Metric, promise: &'static Promise) {
        self.0.push((case.to_owned(), metric, promise));
    }

    /// Says how each promise stands: its rows, and the worst of them.
    pub(crate) fn summarise(&self, bench: &Bench) {
        eprintln!("\nrows without a verdict are promised nothing; of the others:");
        for promise in ALL {
            let rows: Vec<_> = bench
                .rows()
                .filter(|row| {
                    self.0.iter().any(|(case, metric, p)| {
                        p.text == promise.text && *case == row.case && *metric == row.metric
                    })
                })
                .collect();
            // The worst one: the lowest ratio, or the largest count.
            let badness = |row: &&benchkit::Row| row.ratio.map_or(row.value, |ratio| -ratio);
            let Some(worst) = rows.iter().copied().max_by(|a, b| badness(a).total_cmp(&badness(b))) else {
                continue;
            };
            let open = rows.iter().filter(|row| row.inconclusive).count();
            let figure =
                worst.ratio.map_or(format!("{:.4} {}", worst.value, worst.unit), |r| format!("{r:.3}"));
            eprintln!(
                "  {}: {} rows, {open} inconclusive; worst {figure} ({})",
                promise.text,
                rows.len(),
                worst.case
            );
        }
    }
}
