//! What a transport tells its peers about itself: bytes that somebody else carries.
//!
//! Layout (little-endian): magic, version, then fields in the order of [`Descriptor`]. Numbers of things come before the things
//! and are checked against the bytes that are left before anything is allocated.

use crate::error::Error;

const MAGIC: [u8; 4] = *b"WfEd";
/// Raised when the layout changes in a way that older readers cannot skip.
const VERSION: u16 = 1;

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
    pub(crate) fabric: String,
    /// Whether operations name remote memory by its virtual address, or by the offset into the chunk.
    pub(crate) virtual_addressing: bool,
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
    /// A few bytes that anyone may read: address and key, as the provider wants them.
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
        let size = 256 + self.nics.len() * 96 + self.chunks.len() * 33 + self.keys.len() * 8;
        let mut out = Vec::with_capacity(size);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        put_text(&mut out, &self.name);
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        put_text(&mut out, &self.provider);
        put_text(&mut out, &self.fabric);
        out.push(u8::from(self.virtual_addressing));
        out.push(u8::from(self.every_rail));
        out.push(self.immediate_bytes);
        out.extend((self.nics.len() as u16).to_le_bytes());
        for nic in &self.nics {
            put_text(&mut out, &nic.name);
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
        out
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
        if version != VERSION {
            return Err(bad(format!(
                "its layout is version {version}; this program reads version {VERSION}"
            )));
        }
        let name = reader.text()?;
        let (epoch, generation) = (reader.u64()?, reader.u64()?);
        let (provider, fabric) = (reader.text()?, reader.text()?);
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
        if !reader.0.is_empty() {
            return Err(bad(format!("{} bytes too many", reader.0.len())));
        }
        Ok(Self {
            name,
            epoch,
            generation,
            provider,
            fabric,
            virtual_addressing,
            every_rail,
            immediate_bytes,
            nics,
            chunks,
            keys,
        })
    }
}

/// Decodes bytes, encodes the result and compares: the entrance for fuzzing and property tests.
///
/// # Errors
/// [`Error::Descriptor`] for whatever is not a descriptor.
#[doc(hidden)]
pub fn check_descriptor(bytes: &[u8]) -> Result<(), Error> {
    if Descriptor::decode(bytes)?.encode() == bytes {
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
    use super::*;

    fn sample() -> Descriptor {
        let nic = |name: &str| NicEntry {
            name: name.into(),
            address: [1, 2, 3].into(),
            link_mbps: 100_000,
            numa: u16::MAX,
            probe: (4, 5),
        };
        let chunk =
            |addr, nics, keys| ChunkEntry { addr, len: 4096, readable: true, writable: addr > 0, nics, keys };
        Descriptor {
            name: "decode-3".into(),
            epoch: 1,
            generation: 2,
            provider: "tcp;ofi_rxm".into(),
            fabric: String::new(),
            virtual_addressing: false,
            every_rail: false,
            immediate_bytes: 8,
            nics: vec![nic("a"), nic("b")],
            chunks: vec![chunk(0, 0b11, 0), chunk(4096, 0b10, 2)],
            keys: vec![7, 8, 9],
        }
    }

    #[test]
    fn it_survives_the_trip() {
        let bytes = sample().encode();
        assert_eq!(Descriptor::decode(&bytes).unwrap(), sample());
        assert!(check_descriptor(&bytes).is_ok());
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_an_answer_and_never_a_panic() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Descriptor::decode(&bytes[..len]).is_err(), "{len} bytes of {}", bytes.len());
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = Descriptor::decode(&changed);
            }
        }
    }

    #[test]
    fn counts_that_the_bytes_cannot_hold_are_refused_before_anything_is_allocated() {
        let mut bytes = Descriptor { chunks: vec![], keys: vec![], ..sample() }.encode();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Descriptor::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
    }
}
