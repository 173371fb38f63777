//! Where the address behind a segment's name is found.
//!
//! By default there is no store: a name is an address, `host:port`, and peers find each other by it. With a store
//! ([`Builder::metadata`](crate::Builder::metadata)) an engine publishes its name with its address under a lease, which it renews
//! for as long as it lives, so that dead nodes vanish. Only the address is looked up there; what a peer has registered is always asked of
//! the peer itself, under the cluster's authentication.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A store of names. Calls block, each for a few seconds at most; they come from several threads.
pub trait Store: Send + Sync + fmt::Debug {
    /// Publishes `record` under `name`, or replaces it. It vanishes when this has not been repeated for the time of `lease`.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn publish(&self, name: &str, record: &[u8], lease: Duration) -> Result<(), Error>;

    /// The record of `name`; `None` if there is none (any more).
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn lookup(&self, name: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Removes the record of `name`; none is fine.
    ///
    /// # Errors
    /// [`Error::Metadata`].
    fn remove(&self, name: &str) -> Result<(), Error>;
}

/// The longest record that is looked at, in bytes: an address and a number fit many times.
pub(crate) const MAX_RECORD: usize = 4096;

/// What an engine publishes about itself, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where it can be connected to, `host:port`.
    pub(crate) address: String,
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Cannot fail: a string has no part that JSON lacks.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a record; the error says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_RECORD {
            return Err(format!("its record has {} bytes, more than {MAX_RECORD}", bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(|error| format!("its record is malformed: {error}"))
    }
}

/// Opens the store of a URL; `None` for `p2p` (and Mooncake's `P2PHANDSHAKE`), which is none.
///
/// # Errors
/// [`Error::Setting`] for a URL of no known kind, or of a kind that this program was built without.
pub(crate) fn open(url: &str) -> Result<Option<Box<dyn Store>>, Error> {
    match url {
        "p2p" | "P2PHANDSHAKE" => Ok(None),
        _ => Err(Error::Setting(format!(
            "metadata {url:?} is of no kind that this program knows; it is p2p, etcd://host:port, redis://host:port or \
             http(s)://…, each behind the feature of its name"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_store_is_the_default_and_unknown_kinds_are_named() {
        assert!(open("p2p").unwrap().is_none());
        assert!(open("P2PHANDSHAKE").unwrap().is_none());
        assert!(open("carrier://pigeon").unwrap_err().to_string().contains("carrier://pigeon"));
    }

    proptest! {
        #[test]
        fn records_survive_and_garbage_never_panics(address in ".{0,30}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let record = Record { address };
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
            let _ = Record::decode(&bytes);
        }
    }

    #[test]
    fn long_records_are_refused_unread() {
        let long = Record { address: "x".repeat(MAX_RECORD) }.encode();
        assert!(Record::decode(&long).unwrap_err().contains("more than"));
    }
}
