//! What is published about an engine.

use serde::{Deserialize, Serialize};

/// Longest record that is parsed; an honest one has some 100 bytes.
const MAX_BYTES: usize = 4096;

/// Where an engine is, and which life of it this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its listening address, `host:port`.
    pub address: String,
    /// Random, new in each life of the engine: another one means that everything known of it is stale. Lower-case
    /// hexadecimal.
    pub epoch: String,
}

impl Record {
    /// A record of an engine at `address` (`host:port`) in the life `epoch`.
    pub fn new(address: impl Into<String>, epoch: u128) -> Self {
        Self { address: address.into(), epoch: format!("{epoch:032x}") }
    }

    /// As it lies in the store: JSON.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::json!({ "address": self.address, "epoch": self.epoch }).to_string().into_bytes()
    }

    /// Reads what lies in a store; the error says what is wrong with it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("a record of {} bytes, more than {MAX_BYTES}", bytes.len()));
        }
        let record: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("not a record of an engine ({error})"))?;
        let port = record.address.rsplit_once(':').and_then(|(host, port)| {
            (!host.is_empty()).then_some(port)?.parse::<u16>().ok().filter(|port| *port != 0)
        });
        if port.is_none() || record.address.chars().any(char::is_control) {
            return Err(format!("its address {:?} is not host:port", record.address));
        }
        if record.epoch.is_empty() || !record.epoch.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("its epoch {:?} is not hexadecimal", record.epoch));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_published_is_read(host in "[a-z0-9.-]{1,40}", port in 1u16.., epoch: u128) {
            let record = Record::new(format!("{host}:{port}"), epoch);
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn anything_else_is_refused_or_well_formed(bytes in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
            let _ = Record::decode(&bytes);
            let mut damaged = Record::new("host:1", 7).encode();
            let at = at.index(damaged.len());
            damaged[at] = bytes.first().copied().unwrap_or(0);
            if let Ok(record) = Record::decode(&damaged) {
                prop_assert!(record.address.contains(':') && !record.epoch.is_empty());
            }
        }
    }

    #[test]
    fn records_that_lead_nowhere_say_why() {
        for (bytes, word) in [
            (r#"{"address":"host","epoch":"1"}"#, "host:port"),
            (r#"{"address":":1","epoch":"1"}"#, "host:port"),
            (r#"{"address":"host:0","epoch":"1"}"#, "host:port"),
            (r#"{"address":"host:1","epoch":"x"}"#, "epoch"),
            (r#"{"address":"host:1"}"#, "epoch"),
            ("[]", "record"),
        ] {
            let error = Record::decode(bytes.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert!(Record::decode(&vec![b' '; 1 << 20]).unwrap_err().contains("4096"));
    }
}
