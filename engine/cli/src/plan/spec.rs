//! Buffers, NICs and policies as people write them.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use efa_mr::{Buffer, Distance, Location, Nic, PageSize, Policy};
use serde::{Deserialize, Deserializer, de};

use crate::failure::Failure;
use crate::units::{parse_duration, parse_size};

/// The longest file that is read: room for 100 000 buffers.
const MAX_FILE: u64 = 32 << 20;
/// The most buffers that are planned for.
const MAX_BUFFERS: u64 = 1_000_000;
/// Where the first buffer is taken to be, and how they are apart: in a process of its own each has a mapping of its own.
const FIRST_ADDR: u64 = 0x7000_0000_0000;

/// Buffers that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BufferSpec {
    #[serde(default = "one")]
    count: u64,
    #[serde(deserialize_with = "size")]
    size: u64,
    #[serde(default = "anywhere", deserialize_with = "parsed")]
    location: Location,
    #[serde(default = "small", deserialize_with = "page")]
    page: PageSize,
}

fn one() -> u64 {
    1
}

fn anywhere() -> Location {
    Location::Host
}

fn small() -> PageSize {
    PageSize::K4
}

impl FromStr for BufferSpec {
    type Err = String;

    /// `[COUNTx]SIZE[@LOCATION][/PAGE]`
    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, page) = match text.split_once('/') {
            Some((rest, page)) => (rest, parse_page(page)?),
            None => (text, small()),
        };
        let (rest, location) = match rest.split_once('@') {
            Some((rest, location)) => {
                (rest, location.parse::<Location>().map_err(|error| error.to_string())?)
            }
            None => (rest, anywhere()),
        };
        let (count, size) = match rest.split_once('x') {
            Some((count, size)) => {
                (count.trim().parse().map_err(|_| format!("{count:?} is not a count"))?, size)
            }
            None => (1, rest),
        };
        Ok(Self { count, size: parse_size(size)?, location, page })
    }
}

fn parse_page(text: &str) -> Result<PageSize, String> {
    PageSize::new(parse_size(text)?).ok_or_else(|| format!("{text:?} is no page size; write 4K, 64K, 2M, 1G"))
}

/// The buffers that the specs stand for, each at an address of its own.
pub(crate) fn buffers(specs: &[&BufferSpec]) -> Result<Vec<Buffer>, Failure> {
    let count = specs.iter().try_fold(0_u64, |sum, spec| sum.checked_add(spec.count)).unwrap_or(u64::MAX);
    if count == 0 || count > MAX_BUFFERS {
        return Err(Failure::Usage(format!("{count} buffers; from 1 to {MAX_BUFFERS} can be planned for")));
    }
    let mut buffers = Vec::new();
    let mut addr = FIRST_ADDR;
    for spec in specs {
        for _ in 0..spec.count {
            buffers.push(Buffer::new(addr, spec.size, spec.page, spec.location));
            // The next one begins on a page of its own, of any size.
            let room = spec.size.checked_next_multiple_of(PageSize::G1.bytes());
            addr = room
                .and_then(|room| addr.checked_add(room))
                .filter(|next| *next < u64::MAX / 2)
                .ok_or_else(|| {
                    Failure::Usage(
                        "the buffers do not fit into an address space; ask for fewer or smaller ones".into(),
                    )
                })?;
        }
    }
    Ok(buffers)
}

/// How many NICs a byte is wanted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum WantedSpec {
    #[default]
    All,
    Near,
    Nics(usize),
    Within(Duration),
}

impl WantedSpec {
    pub(crate) fn policy(self) -> Policy {
        match self {
            Self::All => Policy::all(),
            Self::Near => Policy::near(),
            Self::Nics(count) => Policy::nics(count),
            Self::Within(time) => Policy::within(time),
        }
    }
}

impl FromStr for WantedSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "all" => Ok(Self::All),
            "near" => Ok(Self::Near),
            other => match (other.strip_prefix("within "), other.parse::<usize>()) {
                (Some(time), _) => parse_duration(time).map(Self::Within),
                (None, Ok(count @ 1..)) => Ok(Self::Nics(count)),
                _ => Err(format!(
                    "{text:?} is no policy; write all, near, a number of NICs, or \"within 10s\""
                )),
            },
        }
    }
}

/// A card.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NicSpec {
    name: String,
    numa: Option<u16>,
    #[serde(default = "hundred")]
    gbps: f64,
    pte_budget: Option<u64>,
    max_mrs: Option<u64>,
    #[serde(default, deserialize_with = "some_size")]
    max_mr: Option<u64>,
    /// By location.
    #[serde(default)]
    distances: BTreeMap<String, String>,
}

fn hundred() -> f64 {
    100.0
}

impl NicSpec {
    pub(crate) fn nic(&self) -> Result<Nic, Failure> {
        let wrong = |what: String| Failure::Usage(format!("NIC {:?}: {what}", self.name));
        let distance = |(place, distance): (&String, &String)| {
            let location: Location = place.parse().map_err(|error| wrong(format!("{error}")))?;
            Ok((location, parse_distance(distance).map_err(wrong)?))
        };
        let mbps = self.gbps * 1000.0;
        if !(1.0..=4e9).contains(&mbps) {
            return Err(wrong(format!("a link of {} Gbit/s", self.gbps)));
        }
        let default = Nic::new(self.name.clone());
        Ok(Nic {
            numa: self.numa,
            link_mbps: mbps as u32,
            pte_left: self.pte_budget.unwrap_or(default.pte_left),
            mrs_left: self.max_mrs.unwrap_or(default.mrs_left),
            max_mr_bytes: self.max_mr.unwrap_or(default.max_mr_bytes),
            distances: self.distances.iter().map(distance).collect::<Result<_, Failure>>()?,
            ..default
        })
    }
}

fn parse_distance(text: &str) -> Result<Distance, String> {
    let all = [
        Distance::SameSwitch,
        Distance::SameRoot,
        Distance::SameNode,
        Distance::OtherNode,
        Distance::Unreachable,
    ];
    all.into_iter().find(|distance| distance.to_string() == text).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        format!("{text:?} is no distance; there are: {}", names.join(", "))
    })
}

/// What a file says.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) nics: Vec<NicSpec>,
    #[serde(default)]
    pub(crate) buffers: Vec<BufferSpec>,
    #[serde(default, deserialize_with = "some_policy")]
    pub(crate) policy: Option<WantedSpec>,
    #[serde(default)]
    pub(crate) at_least: Option<usize>,
}

impl File {
    /// Reads TOML, or JSON where the name ends so.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let len = std::fs::metadata(path).map_err(Failure::reading(path))?.len();
        if len > MAX_FILE {
            return Err(Failure::Usage(format!(
                "{path:?} has {len} bytes, more than any list of buffers needs"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(Failure::reading(path))?;
        let json = path.extension().is_some_and(|extension| extension == "json");
        Self::parse(&text, json).map_err(|reason| Failure::Usage(format!("{path:?}: {reason}")))
    }

    fn parse(text: &str, json: bool) -> Result<Self, String> {
        if json {
            serde_json::from_str(text).map_err(|error| error.to_string())
        } else {
            toml::from_str(text).map_err(|error| error.to_string())
        }
    }
}

/// A size as a number or in words.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Words(String),
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match Size::deserialize(from)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Words(text) => parse_size(&text).map_err(de::Error::custom),
    }
}

fn some_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    size(from).map(Some)
}

fn page<'de, D: Deserializer<'de>>(from: D) -> Result<PageSize, D::Error> {
    let bytes = size(from)?;
    PageSize::new(bytes).ok_or_else(|| de::Error::custom(format!("{bytes} bytes is no page size")))
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

fn some_policy<'de, D: Deserializer<'de>>(from: D) -> Result<Option<WantedSpec>, D::Error> {
    parsed(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_buffer_is_count_size_location_page() {
        let spec: BufferSpec = "8x16G@cuda:1/2M".parse().unwrap();
        let wanted = BufferSpec { count: 8, size: 16 << 30, location: Location::Gpu(1), page: PageSize::M2 };
        assert_eq!(spec, wanted);
        let plain: BufferSpec = "64K".parse().unwrap();
        assert_eq!((plain.count, plain.size, plain.page), (1, 65_536, PageSize::K4));
        for bad in ["", "x1G", "1x", "1G@moon", "1G/3K", "1G@cuda:x", "-1x1G"] {
            assert!(bad.parse::<BufferSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "policy = \"within 10s\"\n[[nics]]\nname = \"a\"\nnuma = 1\nmax_mr = \"1G\"\n\
                    distances = { \"cuda:0\" = \"same switch\" }\n[[buffers]]\ncount = 2\nsize = \"1G\"\nlocation = \"cuda:0\"\npage = 2097152\n";
        let json = r#"{"policy": "within 10s", "nics": [{"name": "a", "numa": 1, "max_mr": 1073741824,
            "distances": {"cuda:0": "same switch"}}], "buffers": [{"count": 2, "size": "1G", "location": "cuda:0", "page": "2M"}]}"#;
        let file = File::parse(toml, false).unwrap();
        assert_eq!(file, File::parse(json, true).unwrap());
        assert_eq!(file.policy, Some(WantedSpec::Within(Duration::from_secs(10))));
        let nic = file.nics[0].nic().unwrap();
        assert_eq!(nic.distance(Location::Gpu(0)), Distance::SameSwitch);
        assert_eq!(nic.max_mr_bytes, 1 << 30);
    }

    #[test]
    fn nonsense_in_a_file_is_named() {
        for (text, part) in [
            ("nic = 1", "nic"),
            ("policy = \"some\"", "policy"),
            ("[[buffers]]\nsize = \"1Q\"", "1Q"),
            ("[[buffers]]\nsize = 1\npage = 3", "page size"),
            ("[[buffers]]\nsize = 1\nlocation = \"moon\"", "moon"),
        ] {
            let error = File::parse(text, false).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let nic = |text: &str| File::parse(text, false).unwrap().nics[0].nic().unwrap_err().to_string();
        assert!(nic("[[nics]]\nname = \"a\"\ngbps = 0").contains("0 Gbit/s"));
        assert!(
            nic("[[nics]]\nname = \"a\"\ndistances = { \"cuda:0\" = \"close\" }").contains("same switch")
        );
    }

    #[test]
    fn buffers_do_not_overlap_and_are_bounded() {
        let specs: Vec<BufferSpec> = ["3x1M", "2x5G/1G"].iter().map(|text| text.parse().unwrap()).collect();
        let made = buffers(&specs.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(made.len(), 5);
        assert!(made.is_sorted_by(|a, b| a.addr + a.len_bytes <= b.addr));
        for bad in ["0x1M", "99999999x1M", "1000000x1000T"] {
            let spec: BufferSpec = bad.parse().unwrap();
            assert_eq!(buffers(&[&spec]).unwrap_err().status(), 2, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = text.parse::<BufferSpec>();
            let _ = text.parse::<WantedSpec>();
            let _ = File::parse(&text, false);
            let _ = File::parse(&text, true);
        }
    }
}
