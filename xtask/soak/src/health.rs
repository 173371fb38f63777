//! What a process holds: memory, threads, file descriptors; and whether that stays the same.

use crate::report::Alive;

/// What may come and go without being a leak: buffers of requests in flight, connections that are being made.
const MEMORY_KIB: u64 = 48 << 10;
const THREADS: u64 = 4;
const DESCRIPTORS: u64 = 40;
/// Samples, one a second, that a process is given to come to rest; and how many make one figure.
const WARM: usize = 8;
const WINDOW: usize = 6;

/// See the module.
pub(crate) struct Process {
    pub(crate) memory_kib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
}

/// Of the process that asks. What cannot be read is zero.
pub(crate) fn this_process() -> Process {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count() as u64);
    Process { memory_kib: field("VmRSS:").unwrap_or(0), threads: field("Threads:").unwrap_or(0), descriptors }
}

/// One figure of a sample.
type Figure = fn(&Alive) -> u64;

/// Whether the samples of one life show growth; the words say of what.
pub(crate) fn growth(life: &[Alive]) -> Option<String> {
    if life.len() < WARM + 2 * WINDOW {
        return None;
    }
    let (first, last) = (&life[WARM..][..WINDOW], &life[life.len() - WINDOW..]);
    // The least of each window: what is held all the time.
    let least = |window: &[Alive], of: Figure| window.iter().map(of).min().unwrap_or(0);
    let figures: [(&str, Figure, u64); 3] = [
        ("KiB of memory", |a| a.memory_kib, MEMORY_KIB),
        ("threads", |a| a.threads, THREADS),
        ("file descriptors", |a| a.descriptors, DESCRIPTORS),
    ];
    figures.into_iter().find_map(|(what, of, allowed)| {
        let (before, after) = (least(first, of), least(last, of));
        (after > before + allowed).then(|| format!("{before} {what} became {after} in {} s", life.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(of: impl Fn(u64) -> Alive) -> Vec<Alive> {
        (0..60).map(of).collect()
    }

    #[test]
    fn growth_is_seen_and_noise_is_not() {
        let steady = |i: u64| Alive {
            memory_kib: 100_000 + i % 7 * 5000,
            threads: 9,
            descriptors: 40 + i % 30,
            ..Alive::default()
        };
        assert_eq!(growth(&life(steady)), None);
        assert!(growth(&life(|i| Alive { memory_kib: 100_000 + i * 2000, ..steady(i) })).is_some());
        assert!(growth(&life(|i| Alive { threads: 9 + i / 6, ..steady(i) })).is_some());
        assert!(growth(&life(|i| Alive { descriptors: 40 + 2 * i, ..steady(i) })).is_some());
        let first_seconds =
            |i: u64| Alive { memory_kib: if i < 8 { 10_000 * i } else { 100_000 }, ..steady(i) };
        assert_eq!(growth(&life(first_seconds)), None, "a process may grow while it starts");
    }

    #[test]
    fn a_process_knows_itself() {
        let here = this_process();
        assert!(here.memory_kib > 100 && here.threads >= 1 && here.descriptors >= 3);
    }
}
