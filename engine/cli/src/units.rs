//! Sizes, times and lists as people write and read them.

use std::time::Duration;

/// The longest time that can be asked for: a year. Beyond it clocks overflow.
const LONGEST: f64 = 366.0 * 86_400.0;
/// The longest list that a range may stand for.
const MANY: usize = 64;

/// `4096`, `64K`, `64KiB`, `1.5M`, `2G`, `1T`; units are binary. Never zero.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return Err(format!("unknown unit {unit:?}; write a size as 4096, 64K, 1M, 2G (binary units)")),
    };
    let bytes = if let Ok(whole) = number.parse::<u64>() {
        whole.checked_shl(shift).filter(|bytes| bytes >> shift == whole)
    } else {
        let number: f64 = number.parse().map_err(|_| "write a size as 4096, 64K, 1M, 2G".to_owned())?;
        let bytes = number * (1_u64 << shift) as f64;
        (bytes.is_finite() && bytes >= 1.0 && bytes < (1_u64 << 62) as f64).then_some(bytes as u64)
    };
    match bytes {
        Some(0) => Err("a size is at least one byte".into()),
        Some(bytes) if bytes < 1 << 62 => Ok(bytes),
        _ => Err("no machine has that much memory".into()),
    }
}

/// `10`, `10s`, `500ms`, `2m`, `1h`, `250us`; seconds unless said. Never zero.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let scale = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {unit:?}; write a time as 10s, 500ms, 2m")),
    };
    let seconds: f64 =
        number.parse::<f64>().map_err(|_| "write a time as 10s, 500ms, 2m".to_owned())? * scale;
    if !(seconds > 0.0 && seconds <= LONGEST) {
        return Err("a time is more than nothing and at most a year".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// Sizes to go through: `4K,64K,1M`, or `4K..16M` (doubling), or `4K..16M:4` (times four).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<u64>);

/// Counts to go through, in the same way: `1,4,16`, `1..128:4`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counts(pub(crate) Vec<u64>);

impl std::str::FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        list(text, parse_size).map(Self)
    }
}

impl std::str::FromStr for Counts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |text: &str| match text.trim().parse::<u64>() {
            Ok(count @ 1..=1_000_000) => Ok(count),
            _ => Err(format!("{text:?} is not a number from 1 to 1000000")),
        };
        list(text, count).map(Self)
    }
}

fn list(text: &str, parse: impl Fn(&str) -> Result<u64, String>) -> Result<Vec<u64>, String> {
    let mut all = Vec::new();
    for item in text.split(',') {
        match item.split_once("..") {
            None => all.push(parse(item)?),
            Some((first, rest)) => {
                let (last, factor) = match rest.split_once(':') {
                    None => (rest, 2),
                    Some((last, factor)) => (last, factor.trim().parse::<u64>().unwrap_or(0)),
                };
                let (first, last) = (parse(first)?, parse(last)?);
                if factor < 2 || first > last {
                    return Err(format!("{item:?} is no range; write FIRST..LAST or FIRST..LAST:FACTOR"));
                }
                let next = |value: &u64| value.checked_mul(factor);
                all.extend(std::iter::successors(Some(first), next).take_while(|value| *value <= last));
            }
        }
        if all.len() > MANY {
            return Err(format!("that is more than {MANY} values"));
        }
    }
    Ok(all)
}

/// `65536` → `64 KiB`; whole numbers without a fraction.
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

/// Three significant digits, as many as a measurement is worth.
pub(crate) fn figures(value: f64) -> String {
    let digits = if value >= 100.0 || value == 0.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_binary_and_never_zero() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65_536));
        assert_eq!(parse_size("64 KiB"), Ok(65_536));
        assert_eq!(parse_size("1.5m"), Ok(3 << 19));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        for bad in ["", "0", "0K", "-1", "K", "1Q", "1e3", "99999999999999999999", "9999999T", "1..2"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "0", "0s", "-1s", "ever", "1y", "1e99s", "999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_values_and_ranges() {
        let sizes = |text: &str| text.parse::<Sizes>().map(|list| list.0);
        assert_eq!(sizes("4K,1M"), Ok(vec![4096, 1 << 20]));
        assert_eq!(sizes("4K..16K"), Ok(vec![4096, 8192, 16_384]));
        assert_eq!(sizes("4K..1M:16"), Ok(vec![4096, 65_536, 1 << 20]));
        assert_eq!("1..128:4".parse::<Counts>().map(|list| list.0), Ok(vec![1, 4, 16, 64]));
        for bad in ["", "4K,", "1M..4K", "4K..1M:1", "4K..1M:x", "1..4000000000000:2,1..99999999999999:2"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
        assert!("0".parse::<Counts>().is_err());
    }

    #[test]
    fn figures_keep_three_digits() {
        let written: Vec<String> = [0.0, 0.1234, 1.234, 12.34, 123.4, 12_345.6].map(figures).into();
        assert_eq!(written, ["0", "0.123", "1.23", "12.3", "123", "12346"]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_makes_a_parser_panic(text in ".{0,24}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
            let _ = text.parse::<Sizes>();
            let _ = text.parse::<Counts>();
        }

        #[test]
        fn what_is_printed_can_be_typed(size in 1_u64..1 << 40) {
            let read = parse_size(&bytes(size)).unwrap();
            prop_assert!(read.abs_diff(size) as f64 <= size as f64 * 0.06);
            if size.is_power_of_two() {
                prop_assert_eq!(read, size);
            }
        }
    }
}
