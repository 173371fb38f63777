//! Which NICs to use, by name.

use std::str::FromStr;

/// A list of name patterns, as in `rdmap*,!rdmap16s27`: `*` and `?` stand for anything, `!` excludes. An empty list accepts all;
/// one with exclusions only accepts all others. Mooncake's `MC_TE_FILTERS` (names separated by commas) reads as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    include: Vec<String>,
    exclude: Vec<String>,
}

/// A filter that would never match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} in a NIC filter names nothing; write names or patterns separated by commas")]
pub struct BadFilter {
    pattern: String,
}

impl FromStr for Filter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        let mut filter = Self::default();
        for pattern in text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()) {
            match pattern.strip_prefix('!').map(str::trim) {
                Some("") => return Err(BadFilter { pattern: pattern.to_owned() }),
                Some(exclude) => filter.exclude.push(exclude.to_owned()),
                None => filter.include.push(pattern.to_owned()),
            }
        }
        Ok(filter)
    }
}

impl Filter {
    /// Whether a NIC of this name may be used.
    #[must_use]
    pub fn accepts(&self, name: &str) -> bool {
        let any =
            |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

/// Shell patterns with `*` and `?`, in time proportional to pattern × name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and how much of the name it had eaten then.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, eaten)) => {
                    star = Some((at, eaten + 1));
                    p = at + 1;
                    n = eaten + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_include_and_exclude() {
        let accepts = |filter: &str, name| filter.parse::<Filter>().unwrap().accepts(name);
        assert!(accepts("", "anything"));
        assert!(accepts("rdmap16s27,rdmap32s27", "rdmap32s27"));
        assert!(!accepts("rdmap16s27,rdmap32s27", "rdmap3"));
        assert!(accepts("rdmap*, !rdmap16*", "rdmap32s27"));
        assert!(!accepts("rdmap*,!rdmap16*", "rdmap16s27"));
        assert!(accepts("!eth0", "eth1"));
        assert!(accepts("*a*b", "xaxbxab"));
        assert!(!accepts("*a*b", "xaxbxa"));
        assert!(accepts("e?h*", "eth"));
        assert!("!".parse::<Filter>().is_err());
    }
}
