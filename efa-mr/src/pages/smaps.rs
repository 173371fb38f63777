//! Page sizes from `/proc/self/smaps`, for kernels without the newer calls.

use super::{Mapping, PagesError, assemble};
use crate::buffer::{PageRun, PageSize};
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// What smaps says about one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    start: u64,
    end: u64,
    kernel_page: u64,
    /// Bytes in transparent huge pages: anonymous, shared memory, file.
    huge: u64,
}

pub(super) fn runs(addr: u64, end: u64) -> Result<Vec<PageRun>, PagesError> {
    let kernel = |source| PagesError::Kernel { what: "read /proc/self/smaps", source };
    let file = File::open("/proc/self/smaps").map_err(kernel)?;
    from_reader(BufReader::new(file), addr, end).map_err(kernel)?
}

/// Reads entries up to the end of the range. The outer error is the reader's.
fn from_reader(reader: impl BufRead, addr: u64, end: u64) -> io::Result<Result<Vec<PageRun>, PagesError>> {
    let (mut mappings, mut huge) = (Vec::new(), Vec::new());
    let huge_page = PageSize::M2;
    let mut take = |entry: Entry| {
        if entry.end <= addr || entry.start >= end {
            return;
        }
        let page = PageSize::new(entry.kernel_page).unwrap_or(PageSize::K4);
        mappings.push(Mapping { start: entry.start, end: entry.end, page });
        // All that can be huge is huge: only then is it known where.
        let first = entry.start.next_multiple_of(huge_page.bytes());
        let last = entry.end >> huge_page.shift() << huge_page.shift();
        if last > first && entry.huge >= last - first {
            huge.push((first, last));
        }
    };
    let mut entry: Option<Entry> = None;
    for line in reader.lines() {
        let line = line?;
        if let Some((start, stop)) = header(&line) {
            if let Some(done) = entry.take() {
                take(done);
            }
            if start >= end {
                break;
            }
            entry = Some(Entry { start, end: stop, kernel_page: 0, huge: 0 });
        } else if let (Some(entry), Some((name, bytes))) = (&mut entry, field(&line)) {
            match name {
                "KernelPageSize" => entry.kernel_page = bytes,
                "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => {
                    entry.huge = entry.huge.saturating_add(bytes)
                }
                _ => {}
            }
        }
    }
    if let Some(done) = entry {
        take(done);
    }
    Ok(assemble(addr, end, &mappings, &huge, huge_page))
}

/// `7f12a000-7f13b000 rw-p …`
fn header(line: &str) -> Option<(u64, u64)> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

/// `AnonHugePages:      2048 kB`
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((name, kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
Size:                328 kB
KernelPageSize:        4 kB
AnonHugePages:         0 kB
VmFlags: rd ex mr mw me dw
10000000-10800000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
AnonHugePages:      8192 kB
10800000-11000000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
AnonHugePages:      2048 kB
11000000-11400000 rw-s 00000000 00:0f 3           /anon_hugepage (deleted)
KernelPageSize:     2048 kB
AnonHugePages:         0 kB
";

    fn read(addr: u64, end: u64) -> Result<Vec<PageRun>, PagesError> {
        from_reader(SMAPS.as_bytes(), addr, end).unwrap()
    }

    #[test]
    fn whole_huge_mappings_count_as_huge_and_mixtures_as_small() {
        let run = |addr, len_bytes, page| PageRun { addr, len_bytes, page };
        assert_eq!(
            read(0x1010_0000, 0x1130_0000).unwrap(),
            [
                run(0x1010_0000, 0x70_0000, PageSize::M2),
                run(0x1080_0000, 0x80_0000, PageSize::K4),
                run(0x1100_0000, 0x30_0000, PageSize::M2),
            ]
        );
        assert_eq!(read(0x40_0000, 0x40_0001).unwrap(), [run(0x40_0000, 1, PageSize::K4)]);
    }

    #[test]
    fn gaps_and_nonsense_are_errors_not_panics() {
        assert!(matches!(read(0x40_0000, 0x1000_0001), Err(PagesError::NotMapped { addr: 0x45_2000 })));
        assert!(matches!(read(0x2000_0000, 0x2000_0001), Err(PagesError::NotMapped { .. })));
        let nonsense =
            "1-0 x\nffffffffffffffff-fffffffffffffffff \nAnonHugePages: 99999999999999999999 kB\n\0\n-\n:";
        assert!(from_reader(nonsense.as_bytes(), 0, 1).unwrap().is_err());
    }
}
