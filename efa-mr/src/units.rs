//! Numbers as people read them.

/// `1536` → `1.5 KiB`; whole numbers without a fraction, so page sizes read as `4 KiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = if bytes == 0 { 0 } else { (bytes.ilog2() / 10) as usize };
    let scale = 1_u64 << (10 * unit);
    if bytes.is_multiple_of(scale) {
        format!("{} {}", bytes / scale, UNITS[unit])
    } else {
        format!("{:.1} {}", bytes as f64 / scale as f64, UNITS[unit])
    }
}

/// A count with the suffix Ki, Mi, Gi …, as page table entries are usually quoted (`22 Mi`).
pub(crate) fn count(count: u64) -> String {
    const UNITS: [&str; 7] = ["", " Ki", " Mi", " Gi", " Ti", " Pi", " Ei"];
    if count < 10_000 {
        return count.to_string();
    }
    let unit = (count.ilog2() / 10) as usize;
    let scale = 1_u64 << (10 * unit);
    if count.is_multiple_of(scale) {
        format!("{}{}", count / scale, UNITS[unit])
    } else {
        format!("{:.1}{}", count as f64 / scale as f64, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn units_are_binary() {
        assert_eq!(super::bytes(0), "0 B");
        assert_eq!(super::bytes(1), "1 B");
        assert_eq!(super::bytes(4096), "4 KiB");
        assert_eq!(super::bytes(1536), "1.5 KiB");
        assert_eq!(super::bytes(u64::MAX), "16.0 EiB");
        assert_eq!(super::count(22 << 20), "22 Mi");
        assert_eq!(super::count(9999), "9999");
    }
}
