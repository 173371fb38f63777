//! The names of cases: space-separated `key=value`.

use std::collections::{BTreeMap, BTreeSet};

/// A case's keys and values, in order. A word without `=` is a key without a value.
pub(crate) fn parse(case: &str) -> Vec<(&str, &str)> {
    case.split_whitespace().map(|word| word.split_once('=').unwrap_or((word, ""))).collect()
}

/// The value of one key, if the case has it.
pub(crate) fn value<'a>(case: &'a str, key: &str) -> Option<&'a str> {
    parse(case).into_iter().find_map(|(name, value)| (name == key).then_some(value))
}

/// The case's block size in bytes, by whichever of its keys gives one.
pub(crate) fn size(case: &str) -> Option<u64> {
    ["size", "block", "bytes"].iter().find_map(|key| value(case, key)?.parse().ok())
}

/// The words that all cases have in common, which a title can say once.
pub(crate) fn common<'a>(cases: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let Some((first, rest)) = cases.split_first() else { return Vec::new() };
    let everywhere = |word: &(&str, &str)| rest.iter().all(|case| parse(case).contains(word));
    parse(first).into_iter().filter(everywhere).collect()
}

/// The size's keys, and those whose value follows from the size: a window that is smaller for large blocks, say.
pub(crate) fn sized<'a>(cases: &[&'a str]) -> Vec<&'a str> {
    let mut values: BTreeMap<&str, BTreeMap<Option<u64>, BTreeSet<&str>>> = BTreeMap::new();
    for case in cases {
        for (key, value) in parse(case) {
            values.entry(key).or_default().entry(size(case)).or_default().insert(value);
        }
    }
    let follows = |sizes: &BTreeMap<Option<u64>, BTreeSet<&str>>| {
        sizes.len() > 1 && sizes.values().all(|values| values.len() == 1)
    };
    values.into_iter().filter(|(_, sizes)| follows(sizes)).map(|(key, _)| key).collect()
}

/// What is left of a case without some words and some keys.
pub(crate) fn rest(case: &str, without: &[(&str, &str)], keys: &[&str]) -> String {
    words(parse(case).into_iter().filter(|word| !without.contains(word) && !keys.contains(&word.0)))
}

/// As a case is written.
pub(crate) fn words<'a>(words: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let write = |(key, value): (&str, &str)| match value {
        "" => key.to_owned(),
        _ => format!("{key}={value}"),
    };
    words.into_iter().map(write).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_follows_from_the_size_is_no_case_of_its_own() {
        let cases = ["size=64 window=64 path=a", "size=64 window=64 path=b", "size=4096 window=16 path=a"];
        assert_eq!(sized(&cases), ["size", "window"]);
        assert_eq!(sized(&cases[..2]), Vec::<&str>::new());
    }

    #[test]
    fn what_is_common_and_what_is_left() {
        let cases =
            ["op=write size=64 path=net", "op=write size=4096 path=net", "op=write size=64 path=host"];
        assert_eq!(common(&cases), [("op", "write")]);
        assert_eq!(rest(cases[1], &common(&cases), &["size"]), "path=net");
        assert_eq!(rest(cases[1], &[], &[]), cases[1]);
        assert_eq!(size(cases[1]), Some(4096));
        assert_eq!((size("op=x"), size("size=lots"), common(&[])), (None, None, vec![]));
    }
}
