//! Mooncake's priority matrix: `{"cpu:0": [["near NICs"], ["other NICs"]], "cuda:0": [[…], […]]}`.

use super::Topology;
use crate::buffer::{Location, ParseLocationError};
use crate::nic::{Distance, Nic};
use std::collections::BTreeMap;

/// The longest text that is read: a machine of 128 NICs and 32 locations has a matrix of some 100 kB.
const MAX_BYTES: usize = 4 << 20;

/// For each location the NICs that are preferred, and those that are available besides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PriorityMatrix {
    /// Preferred and available NICs.
    pub places: BTreeMap<Location, [Vec<String>; 2]>,
}

/// A text that is no priority matrix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// Not the JSON that it should be.
    #[error(
        "not a priority matrix: {0}; it is an object of \"cpu:N\" or \"cuda:N\" to [[preferred NICs], [available NICs]]"
    )]
    Json(#[from] serde_json::Error),
    /// An unknown location.
    #[error(transparent)]
    Location(#[from] ParseLocationError),
    /// Too long to be one.
    #[error("a priority matrix of {bytes} bytes is longer than any machine needs; check the file")]
    TooLong {
        /// Length in bytes.
        bytes: usize,
    },
}

impl PriorityMatrix {
    /// Reads JSON.
    ///
    /// # Errors
    /// [`MatrixError`].
    pub fn from_json(text: &str) -> Result<Self, MatrixError> {
        if text.len() > MAX_BYTES {
            return Err(MatrixError::TooLong { bytes: text.len() });
        }
        let raw: BTreeMap<String, [Vec<String>; 2]> = serde_json::from_str(text)?;
        let place = |(key, nics): (String, _)| Ok((key.parse::<Location>()?, nics));
        Ok(Self { places: raw.into_iter().map(place).collect::<Result<_, MatrixError>>()? })
    }

    /// Writes JSON, keys in order.
    #[must_use]
    pub fn to_json(&self) -> String {
        let raw: BTreeMap<String, &[Vec<String>; 2]> =
            self.places.iter().map(|(location, nics)| (location.to_string(), nics)).collect();
        serde_json::json!(raw).to_string()
    }

    /// Overrides the NICs' distances: for the locations of the matrix a preferred NIC is as near as can be, an available one far,
    /// and one that is not listed cannot be used.
    pub fn apply(&self, nics: &mut [Nic]) {
        for nic in nics {
            for (location, [preferred, available]) in &self.places {
                let distance = if preferred.contains(&nic.name) {
                    Distance::SameSwitch
                } else if available.contains(&nic.name) {
                    Distance::OtherNode
                } else {
                    Distance::Unreachable
                };
                nic.distances.retain(|(known, _)| known != location);
                nic.distances.push((*location, distance));
            }
        }
    }
}

impl Topology {
    /// The priority matrix of this machine: for each location the nearest usable NICs, and the others.
    #[must_use]
    pub fn matrix(&self) -> PriorityMatrix {
        let nics = self.nics();
        let place = |location: Location| {
            let nearest = nics.iter().map(|nic| nic.distance(location)).min();
            let (near, far): (Vec<&Nic>, Vec<&Nic>) =
                nics.iter().partition(|nic| Some(nic.distance(location)) == nearest);
            let names = |nics: Vec<&Nic>| nics.into_iter().map(|nic| nic.name.clone()).collect();
            (location, [names(near), names(far)])
        };
        PriorityMatrix { places: self.locations().into_iter().map(place).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_mooncakes_users_is_read_and_written() {
        let text = r#"{"cpu:0":[["a"],["b"]],"cuda:1":[["b"],[]]}"#;
        let matrix = PriorityMatrix::from_json(text).unwrap();
        assert_eq!(matrix.to_json(), text);
        let mut nics = vec![Nic::new("a"), Nic::new("b"), Nic::new("c")];
        nics[0].distances =
            vec![(Location::Gpu(1), Distance::SameRoot), (Location::Gpu(2), Distance::SameRoot)];
        matrix.apply(&mut nics);
        assert_eq!(nics[0].distance(Location::Numa(0)), Distance::SameSwitch);
        assert_eq!(nics[1].distance(Location::Numa(0)), Distance::OtherNode);
        assert_eq!(nics[0].distance(Location::Gpu(1)), Distance::Unreachable);
        assert_eq!(nics[0].distance(Location::Gpu(2)), Distance::SameRoot, "not in the matrix: as before");
        assert_eq!(nics[2].distance(Location::Numa(0)), Distance::Unreachable);
    }

    #[test]
    fn nonsense_is_an_error() {
        let deep = "[".repeat(100_000);
        for bad in [
            "",
            "[]",
            "{\"cpu:0\":[[]]}",
            "{\"cpu:0\":[[],[],[]]}",
            "{\"gpu\":[[],[]]}",
            "{\"cpu:0\":[[1],[]]}",
            &deep,
        ] {
            assert!(PriorityMatrix::from_json(bad).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
        assert!(matches!(PriorityMatrix::from_json(&" ".repeat(5 << 20)), Err(MatrixError::TooLong { .. })));
    }
}
