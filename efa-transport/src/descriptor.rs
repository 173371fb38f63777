//! What a transport tells its peers about itself: bytes that somebody else carries.
//!
//! Layout (little-endian): magic, version, then fields in the order of [`Descriptor`] and of each [`OnFabric`]. Numbers of things
//! come before the things and are checked against the bytes that are left before anything is allocated.
//!
//! Version 1 knew one fabric: it has no list of them, no list of further ones, and does not say what the cards do. It is still
//! written where there is no more to say, so that older programs read it.

use crate::error::Error;
use crate::scheduler::fabric::{Device, Offer};

const MAGIC: [u8; 4] = *b"WfEd";
/// One fabric, of which nothing is said but its name.
const ONE_FABRIC: u16 = 1;
/// Raised when the layout changes in a way that older readers cannot skip.
const VERSION: u16 = 2;
/// Beside what the cards do by themselves: [`OnFabric::scratch`].
const SCRATCH: u8 = 1 << 4;
/// Fabrics that a descriptor may name, open and closed ones each: more than libfabric has for any card.
const MAX_FABRICS: usize = 4;

/// The longest descriptor that is read: 1 Mi chunks on 7 NICs.
pub const MAX_DESCRIPTOR_BYTES: usize = 96 << 20;
const MAX_NICS: usize = efa_mr::MAX_NICS;
const MAX_TEXT: usize = 255;
/// As fabric-safe hands to a provider.
const MAX_ADDRESS: usize = 512;
/// Address, length, rights, NICs, and one key.
const SHORTEST_CHUNK: usize = 8 + 8 + 1 + 16 + 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// What the peer calls itself.
    pub(crate) name: String,
    /// Random, new for each transport that is opened.
    pub(crate) epoch: u64,
    /// Counts changes within an epoch.
    pub(crate) generation: u64,
    pub(crate) provider: String,
    /// Fabrics that it opens when it has the descriptor of a peer that needs them.
    pub(crate) on_request: Vec<String>,
    /// The fabrics that are open, at least one.
    pub(crate) fabrics: Vec<OnFabric>,
}

/// What the peer has on one fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OnFabric {
    /// Its name, where names say how endpoints talk; elsewhere empty.
    pub(crate) fabric: String,
    /// What its cards do by themselves.
    pub(crate) device: Device,
    /// Whether operations name remote memory by its virtual address, or by the offset into the chunk.
    pub(crate) virtual_addressing: bool,
    /// Peers may write the few bytes that they probe, too: they are nobody's. Not so where the descriptor is made of
    /// [`Parts`](crate::Parts).
    pub(crate) scratch: bool,
    /// Its operations may come over rails other than those that both sides expect: cards want to know all of its.
    pub(crate) every_rail: bool,
    /// The bytes of an immediate that arrive.
    pub(crate) immediate_bytes: u8,
    pub(crate) nics: Vec<NicEntry>,
    /// In ascending order of address.
    pub(crate) chunks: Vec<ChunkEntry>,
    /// The keys of all chunks, one after the other, for each in ascending order of its NICs.
    pub(crate) keys: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicEntry {
    pub(crate) name: String,
    /// In the provider's own form.
    pub(crate) address: Box<[u8]>,
    pub(crate) link_mbps: u32,
    /// NUMA node, `u16::MAX` if unknown.
    pub(crate) numa: u16,
    /// A few bytes that anyone may read (and write, if [`OnFabric::scratch`]): address and key, as the provider wants them.
    pub(crate) probe: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkEntry {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The NICs that hold a key of it.
    pub(crate) nics: u128,
    /// Where its keys begin.
    pub(crate) keys: u32,
}

impl Descriptor {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let size: usize = self
            .fabrics
            .iter()
            .map(|on| 256 + on.nics.len() * 96 + on.chunks.len() * 33 + on.keys.len() * 8)
            .sum();
        let mut out = Vec::with_capacity(256 + size);
        let version = self.version();
        out.extend(MAGIC);
        out.extend(version.to_le_bytes());
        put_text(&mut out, &self.name);
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        put_text(&mut out, &self.provider);
        if version > ONE_FABRIC {
            out.push(self.on_request.len() as u8);
            self.on_request.iter().for_each(|fabric| put_text(&mut out, fabric));
            out.push(self.fabrics.len() as u8);
        }
        self.fabrics.iter().for_each(|on| on.encode(version, &mut out));
        out
    }

    /// The oldest that can say it.
    fn version(&self) -> u16 {
        match &self.fabrics[..] {
            [on] if self.on_request.is_empty() && on.device == Device::default() && !on.scratch => ONE_FABRIC,
            _ => VERSION,
        }
    }

    /// # Errors
    /// [`Error::Descriptor`], whatever the bytes are.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_DESCRIPTOR_BYTES {
            return Err(bad(format!("{} bytes are more than {MAX_DESCRIPTOR_BYTES}", bytes.len())));
        }
        let mut reader = Reader(bytes);
        if reader.take(4)? != MAGIC {
            return Err(bad("it does not begin like one"));
        }
        let version = reader.u16()?;
        if !(ONE_FABRIC..=VERSION).contains(&version) {
            return Err(bad(format!(
                "its layout is version {version}; this program reads versions {ONE_FABRIC} to {VERSION}"
            )));
        }
        let name = reader.text()?;
        let (epoch, generation) = (reader.u64()?, reader.u64()?);
        let provider = reader.text()?;
        let mut on_request = Vec::new();
        let mut count = 1;
        if version > ONE_FABRIC {
            for _ in 0..reader.count("further fabrics", 0..=MAX_FABRICS)? {
                on_request.push(reader.text()?);
            }
            count = reader.count("fabrics", 1..=MAX_FABRICS)?;
        }
        let mut fabrics = Vec::with_capacity(count);
        for _ in 0..count {
            fabrics.push(OnFabric::decode(version, &mut reader)?);
        }
        if !reader.0.is_empty() {
            return Err(bad(format!("{} bytes too many", reader.0.len())));
        }
        let mut names: Vec<&String> = on_request.iter().chain(fabrics.iter().map(|on| &on.fabric)).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad(format!("fabric {:?} twice", twice[0])));
        }
        Ok(Self { name, epoch, generation, provider, on_request, fabrics })
    }

    /// All fabrics that it has or opens on request, for [`choose`](crate::scheduler::fabric::choose).
    pub(crate) fn offers(&self) -> Vec<Offer<'_>> {
        let open = self.fabrics.iter().map(|on| Offer { fabric: &on.fabric, device: on.device });
        let closed = self.on_request.iter().map(|fabric| Offer { fabric, device: Device::default() });
        open.chain(closed).collect()
    }
}

impl OnFabric {
    /// What a peer has on a fabric that it has not opened.
    pub(crate) fn nothing(fabric: &str) -> Self {
        Self {
            fabric: fabric.into(),
            device: Device::default(),
            virtual_addressing: false,
            scratch: false,
            every_rail: false,
            immediate_bytes: 0,
            nics: Vec::new(),
            chunks: Vec::new(),
            keys: Vec::new(),
        }
    }

    fn encode(&self, version: u16, out: &mut Vec<u8>) {
        put_text(out, &self.fabric);
        if version > ONE_FABRIC {
            let scratch = if self.scratch { SCRATCH } else { 0 };
            out.push(answer(self.device.reads) | answer(self.device.writes) << 2 | scratch);
        }
        out.push(u8::from(self.virtual_addressing));
        out.push(u8::from(self.every_rail));
        out.push(self.immediate_bytes);
        out.extend((self.nics.len() as u16).to_le_bytes());
        for nic in &self.nics {
            put_text(out, &nic.name);
            out.extend((nic.address.len() as u16).to_le_bytes());
            out.extend(&nic.address);
            out.extend(nic.link_mbps.to_le_bytes());
            out.extend(nic.numa.to_le_bytes());
            out.extend(nic.probe.0.to_le_bytes());
            out.extend(nic.probe.1.to_le_bytes());
        }
        out.extend((self.chunks.len() as u32).to_le_bytes());
        for chunk in &self.chunks {
            out.extend(chunk.addr.to_le_bytes());
            out.extend(chunk.len.to_le_bytes());
            out.push(u8::from(chunk.readable) | (u8::from(chunk.writable) << 1));
            out.extend(chunk.nics.to_le_bytes());
            let keys = chunk.keys as usize..chunk.keys as usize + chunk.nics.count_ones() as usize;
            for key in &self.keys[keys] {
                out.extend(key.to_le_bytes());
            }
        }
    }

    fn decode(version: u16, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let fabric = reader.text()?;
        let (mut device, mut scratch) = (Device::default(), false);
        if version > ONE_FABRIC {
            let byte = reader.u8()?;
            let bits = byte & !SCRATCH;
            scratch = bits != byte;
            if bits >> 4 != 0 {
                return Err(bad(format!("{bits:#x} where the cards' abilities belong")));
            }
            device = Device { reads: asked(bits & 3)?, writes: asked(bits >> 2)? };
        }
        let virtual_addressing = reader.flag()?;
        let every_rail = reader.flag()?;
        let immediate_bytes = reader.u8()?;
        let nic_count = reader.u16()? as usize;
        if nic_count == 0 || nic_count > MAX_NICS {
            return Err(bad(format!("{nic_count} NICs")));
        }
        let mut nics = Vec::with_capacity(nic_count);
        for _ in 0..nic_count {
            let name = reader.text()?;
            let len = reader.u16()? as usize;
            if len == 0 || len > MAX_ADDRESS {
                return Err(bad(format!("an address of {len} bytes")));
            }
            let address = reader.take(len)?.into();
            let (link_mbps, numa) = (reader.u32()?, reader.u16()?);
            let probe = (reader.u64()?, reader.u64()?);
            nics.push(NicEntry { name, address, link_mbps, numa, probe });
        }
        let all = if nic_count >= 128 { u128::MAX } else { (1 << nic_count) - 1 };
        let chunk_count = reader.u32()? as usize;
        if chunk_count > reader.0.len() / SHORTEST_CHUNK {
            return Err(bad(format!("{chunk_count} chunks do not fit the {} bytes left", reader.0.len())));
        }
        let mut chunks: Vec<ChunkEntry> = Vec::with_capacity(chunk_count);
        let mut keys = Vec::with_capacity(chunk_count);
        for _ in 0..chunk_count {
            let (addr, len) = (reader.u64()?, reader.u64()?);
            let rights = reader.u8()?;
            let set = reader.u128()?;
            if len == 0 || addr.checked_add(len).is_none() || rights > 3 {
                return Err(bad(format!("a chunk of {len} bytes at {addr:#x} with rights {rights}")));
            }
            if set == 0 || set & !all != 0 {
                return Err(bad(format!("a chunk on NICs {set:#x} of {nic_count}")));
            }
            if chunks.last().is_some_and(|last| last.addr > addr) {
                return Err(bad("chunks that are not in order"));
            }
            chunks.push(ChunkEntry {
                addr,
                len,
                readable: rights & 1 != 0,
                writable: rights & 2 != 0,
                nics: set,
                keys: keys.len() as u32,
            });
            for _ in 0..set.count_ones() {
                keys.push(reader.u64()?);
            }
        }
        Ok(Self {
            fabric,
            device,
            virtual_addressing,
            scratch,
            every_rail,
            immediate_bytes,
            nics,
            chunks,
            keys,
        })
    }
}

/// Unknown, yes, no: in two bits.
fn answer(known: Option<bool>) -> u8 {
    match known {
        None => 0,
        Some(true) => 1,
        Some(false) => 2,
    }
}

fn asked(bits: u8) -> Result<Option<bool>, Error> {
    match bits {
        0 => Ok(None),
        1 => Ok(Some(true)),
        2 => Ok(Some(false)),
        other => Err(bad(format!("{other} where yes, no or nothing belongs"))),
    }
}

/// Decodes bytes, encodes the result, and decodes that: the entrance for fuzzing and property tests. (The bytes may differ: one
/// fabric can be written as either version.)
///
/// # Errors
/// [`Error::Descriptor`] for whatever is not a descriptor.
#[doc(hidden)]
pub fn check_descriptor(bytes: &[u8]) -> Result<(), Error> {
    let read = Descriptor::decode(bytes)?;
    if Descriptor::decode(&read.encode()).as_ref().ok() == Some(&read) {
        Ok(())
    } else {
        Err(bad("it reads differently from how it is written"))
    }
}

fn bad(why: impl Into<String>) -> Error {
    Error::Descriptor(why.into())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.push(len as u8);
    out.extend(&text.as_bytes()[..len]);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.0.split_at_checked(len).ok_or_else(|| bad("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| bad("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.array::<1>()?[0])
    }

    fn count(&mut self, of: &str, allowed: std::ops::RangeInclusive<usize>) -> Result<usize, Error> {
        let count = usize::from(self.u8()?);
        if allowed.contains(&count) { Ok(count) } else { Err(bad(format!("{count} {of}"))) }
    }

    fn flag(&mut self) -> Result<bool, Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(bad(format!("{other} where yes or no belongs"))),
        }
    }

    fn u16(&mut self) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> Result<u128, Error> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, Error> {
        let len = self.u8()? as usize;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| bad("a name that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on(fabric: &str) -> OnFabric {
        let nic = |name: &str| NicEntry {
            name: name.into(),
            address: [1, 2, 3].into(),
            link_mbps: 100_000,
            numa: u16::MAX,
            probe: (4, 5),
        };
        let chunk =
            |addr, nics, keys| ChunkEntry { addr, len: 4096, readable: true, writable: addr > 0, nics, keys };
        OnFabric {
            fabric: fabric.into(),
            device: Device::default(),
            virtual_addressing: false,
            scratch: false,
            every_rail: false,
            immediate_bytes: 8,
            nics: vec![nic("a"), nic("b")],
            chunks: vec![chunk(0, 0b11, 0), chunk(4096, 0b10, 2)],
            keys: vec![7, 8, 9],
        }
    }

    /// As programs that know one fabric write it.
    fn old() -> Descriptor {
        Descriptor {
            name: "decode-3".into(),
            epoch: 1,
            generation: 2,
            provider: "tcp;ofi_rxm".into(),
            on_request: vec![],
            fabrics: vec![on("")],
        }
    }

    fn new() -> Descriptor {
        let device = Device { reads: Some(true), writes: Some(false) };
        Descriptor {
            provider: "efa".into(),
            fabrics: vec![OnFabric { device, scratch: true, ..on("efa-direct") }, on("efa")],
            on_request: vec!["yet-another".into()],
            ..old()
        }
    }

    fn samples() -> [Descriptor; 3] {
        [old(), Descriptor { on_request: vec!["efa".into()], ..old() }, new()]
    }

    #[test]
    fn it_survives_the_trip() {
        for sample in samples() {
            let bytes = sample.encode();
            assert_eq!(Descriptor::decode(&bytes).unwrap(), sample);
            assert!(check_descriptor(&bytes).is_ok());
        }
    }

    /// Bytes that a program of the first version wrote: name "p", epoch 1, generation 2, provider and fabric "efa", one NIC, one chunk.
    const FIRST: &[u8] = b"WfEd\x01\0\x01p\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03efa\x03efa\x01\0\x04\x01\0\
        \x01c\x02\0\x08\x09\x10\x27\0\0\xff\xff\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\
        \x01\0\0\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\x03\
        \x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0";

    #[test]
    fn what_older_programs_write_is_understood_and_what_they_can_read_is_written_for_them() {
        let read = Descriptor::decode(FIRST).unwrap();
        assert_eq!((read.provider.as_str(), read.fabrics[0].fabric.as_str()), ("efa", "efa"));
        assert_eq!(read.fabrics[0].device, Device::default(), "they did not say");
        assert_eq!((read.fabrics[0].nics[0].link_mbps, read.fabrics[0].keys.as_slice()), (10_000, &[7][..]));
        assert_eq!(read.encode(), FIRST, "with one fabric there is nothing that needs the newer layout");
        assert_eq!(new().encode()[4], 2);
        // And those of programs yet to be written are refused by their version.
        let mut newer = FIRST.to_vec();
        newer[4] = 3;
        let error = Descriptor::decode(&newer).unwrap_err().to_string();
        assert!(error.contains("version 3") && error.contains("1 to 2"), "{error}");
    }

    #[test]
    fn lists_of_fabrics_are_bounded_and_name_each_once() {
        let refused = |descriptor: Descriptor, why: &str| {
            let error = Descriptor::decode(&descriptor.encode()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(Descriptor { fabrics: vec![on("efa"), on("efa")], ..old() }, "twice");
        refused(Descriptor { on_request: vec!["efa".into()], fabrics: vec![on("efa")], ..old() }, "twice");
        refused(Descriptor { fabrics: vec![], ..old() }, "0 fabrics");
        let many = |name: &str| -> Vec<String> { (0..5).map(|n| format!("{name}{n}")).collect() };
        refused(Descriptor { on_request: many("x"), ..old() }, "5 further fabrics");
        refused(
            Descriptor { fabrics: many("x").iter().map(|name| on(name)).collect(), ..old() },
            "5 fabrics",
        );
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_an_answer_and_never_a_panic() {
        for bytes in samples().map(|sample| sample.encode()) {
            for len in 0..bytes.len() {
                assert!(Descriptor::decode(&bytes[..len]).is_err(), "{len} bytes of {}", bytes.len());
            }
            for at in 0..bytes.len() {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    if Descriptor::decode(&changed).is_ok() {
                        assert!(check_descriptor(&changed).is_ok(), "byte {at} as {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn counts_that_the_bytes_cannot_hold_are_refused_before_anything_is_allocated() {
        for sample in samples() {
            let mut sample = sample;
            if let Some(last) = sample.fabrics.last_mut() {
                (last.chunks, last.keys) = (vec![], vec![]);
            }
            let mut bytes = sample.encode();
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = Descriptor::decode(&bytes).unwrap_err().to_string();
            assert!(error.contains("do not fit"), "{error}");
        }
    }

    fn text() -> impl Strategy<Value = String> {
        ".{0,20}".prop_map(String::from)
    }

    fn device() -> impl Strategy<Value = Device> {
        let known = || proptest::option::of(any::<bool>());
        (known(), known()).prop_map(|(reads, writes)| Device { reads, writes })
    }

    fn any_fabric() -> impl Strategy<Value = OnFabric> {
        let nic = (
            text(),
            prop::collection::vec(any::<u8>(), 1..40),
            any::<u32>(),
            any::<u16>(),
            any::<(u64, u64)>(),
        );
        let chunk = (0..u64::MAX / 2, 1..u64::MAX / 2, any::<[bool; 2]>(), 1..u128::MAX);
        let nics = prop::collection::vec(nic, 1..6);
        let chunks = prop::collection::vec(chunk, 0..6);
        (text(), device(), any::<[bool; 3]>(), any::<u8>(), nics, chunks, any::<u64>()).prop_map(
            |(
                fabric,
                device,
                [virtual_addressing, scratch, every_rail],
                immediate_bytes,
                nics,
                mut chunks,
                key,
            )| {
                let all = (1_u128 << nics.len()) - 1;
                chunks.sort_by_key(|chunk| chunk.0);
                let (mut entries, mut keys) = (Vec::new(), Vec::new());
                for (addr, len, [readable, writable], set) in chunks {
                    let nics = if set & all == 0 { 1 } else { set & all };
                    entries.push(ChunkEntry { addr, len, readable, writable, nics, keys: keys.len() as u32 });
                    keys.extend((0..nics.count_ones()).map(|n| key.wrapping_mul(u64::from(n) + 1)));
                }
                let nics = nics.into_iter().map(|(name, address, link_mbps, numa, probe)| NicEntry {
                    name,
                    address: address.into(),
                    link_mbps,
                    numa,
                    probe,
                });
                let (nics, chunks) = (nics.collect(), entries);
                OnFabric {
                    fabric,
                    device,
                    virtual_addressing,
                    scratch,
                    every_rail,
                    immediate_bytes,
                    nics,
                    chunks,
                    keys,
                }
            },
        )
    }

    fn any_descriptor() -> impl Strategy<Value = Descriptor> {
        let lists = (prop::collection::vec(text(), 0..=4), prop::collection::vec(any_fabric(), 1..=4));
        (text(), any::<(u64, u64)>(), text(), lists).prop_map(
            |(name, (epoch, generation), provider, (closed, open))| {
                let mut seen = std::collections::HashSet::new();
                let mut fabrics = open;
                fabrics.retain(|on| seen.insert(on.fabric.clone()));
                let on_request = closed.into_iter().filter(|fabric| seen.insert(fabric.clone())).collect();
                Descriptor { name, epoch, generation, provider, on_request, fabrics }
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_is_said_arrives(descriptor in any_descriptor()) {
            prop_assert_eq!(Descriptor::decode(&descriptor.encode()).unwrap(), descriptor);
        }

        #[test]
        fn damage_is_refused_or_read_as_something_that_can_be_said(
            descriptor in any_descriptor(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = descriptor.encode();
            prop_assert!(Descriptor::decode(&bytes[..cut.index(bytes.len())]).is_err());
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if Descriptor::decode(&bytes).is_ok() {
                prop_assert!(check_descriptor(&bytes).is_ok());
            }
        }

        #[test]
        fn bytes_that_nobody_wrote_are_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0_u16..4) {
            let _ = Descriptor::decode(&bytes);
            let headed = [&MAGIC[..], &version.to_le_bytes(), &bytes].concat();
            let _ = Descriptor::decode(&headed);
        }
    }
}
