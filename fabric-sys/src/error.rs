//! Why there is no libfabric.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::library::OLDEST;
use crate::loader::LIBRARY_VARIABLE;
use crate::version::Version;

/// Why there is no libfabric.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Nowhere is one.
    #[error(
        "no libfabric on this machine: {attempts}; install it (Debian: libfabric1, AWS: the EFA installer) or set {LIBRARY_VARIABLE}"
    )]
    NotFound {
        /// What was tried, and what the loader said to it.
        attempts: Attempts,
    },
    /// The file named by `FABRIC_LIBRARY` cannot be opened.
    #[error("{LIBRARY_VARIABLE} is {}, which cannot be opened: {reason}; correct or unset it", path.display())]
    Override {
        /// The value of the variable.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The library lacks a function that every libfabric has.
    #[error("{} is not a libfabric: it has no function {symbol}", path.display())]
    NotLibfabric {
        /// The library that was opened.
        path: PathBuf,
        /// What it lacks.
        symbol: &'static str,
    },
    /// The library is older than [`OLDEST`].
    #[error("libfabric {version} in {} is too old; {OLDEST} or later is needed", path.display())]
    TooOld {
        /// The library that was opened.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
}

/// The places that were tried in vain.
#[derive(Debug, Clone, Default)]
pub struct Attempts(Vec<(String, String)>);

impl Attempts {
    #[cfg_attr(feature = "linked", allow(dead_code))] // nothing is searched for then
    pub(crate) fn push(&mut self, place: &Path, reason: String) {
        self.0.push((place.display().to_string(), reason));
    }

    /// Each place and what the loader said to it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(place, reason)| (place.as_str(), reason.as_str()))
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (_, reason)) in self.0.iter().enumerate() {
            // The loader's text names the place.
            write!(f, "{}{reason}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_every_place() {
        let attempts =
            Attempts(vec![("a".into(), "a: no such file".into()), ("b".into(), "b: bad ELF".into())]);
        let text = LoadError::NotFound { attempts }.to_string();
        assert!(text.contains("a: no such file; b: bad ELF") && text.contains(LIBRARY_VARIABLE), "{text}");
    }
}
