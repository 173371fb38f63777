//! A descriptor taken apart, and put together: for programs that deal with endpoints of other systems on the same cards, which
//! describe themselves in other words.

use crate::descriptor::{ChunkEntry, Descriptor, NicEntry, OnFabric};
use crate::error::Error;
use crate::scheduler::fabric::Device;

/// What a descriptor says. Two transports of this crate never need it: they exchange descriptors as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// What the endpoint's owner calls itself.
    pub name: String,
    /// Another one in each of its lives.
    pub epoch: u64,
    /// Grows with each change within a life.
    pub generation: u64,
    /// libfabric's name of the provider.
    pub provider: String,
    /// EFA's fabric, `efa` or `efa-direct`; empty elsewhere.
    pub fabric: String,
    /// Whether memory is named by its virtual address, or by the offset into its chunk.
    pub virtual_addressing: bool,
    /// The NICs; chunks name them by their place here.
    pub nics: Vec<PartsNic>,
    /// Registered memory.
    pub chunks: Vec<PartsChunk>,
}

/// A NIC's endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartsNic {
    /// Its name, for messages.
    pub name: String,
    /// What `fi_getname` says.
    pub address: Vec<u8>,
    /// Address and key of 8 bytes that may be read to see whether a rail works.
    pub probe: (u64, u64),
}

/// Memory that is registered in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartsChunk {
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether peers may read it.
    pub readable: bool,
    /// Whether peers may write it.
    pub writable: bool,
    /// Index of a NIC, and the chunk's key there; in ascending order.
    pub keys: Vec<(usize, u64)>,
}

impl Parts {
    /// Takes a descriptor apart: of several fabrics the first, which its owner prefers.
    ///
    /// # Errors
    /// [`Error::Descriptor`], whatever the bytes are.
    pub fn read(descriptor: &[u8]) -> Result<Self, Error> {
        let Descriptor { name, epoch, generation, provider, fabrics, .. } = Descriptor::decode(descriptor)?;
        let first = fabrics.into_iter().next();
        let OnFabric { fabric, virtual_addressing, nics, chunks, keys, .. } =
            first.ok_or_else(|| Error::Descriptor("it has no fabric".into()))?;
        let nics = nics.into_iter().map(|nic| PartsNic {
            name: nic.name,
            address: nic.address.into_vec(),
            probe: nic.probe,
        });
        let chunks = chunks.into_iter().map(|chunk| PartsChunk {
            addr: chunk.addr,
            len: chunk.len,
            readable: chunk.readable,
            writable: chunk.writable,
            keys: (0..128)
                .filter(|nic| chunk.nics >> nic & 1 == 1)
                .zip(keys.iter().skip(chunk.keys as usize).copied())
                .collect(),
        });
        Ok(Self {
            name,
            epoch,
            generation,
            provider,
            fabric,
            virtual_addressing,
            nics: nics.collect(),
            chunks: chunks.collect(),
        })
    }

    /// Puts a descriptor together, for [`Transport::add_or_update_peer`](crate::Transport::add_or_update_peer).
    ///
    /// # Errors
    /// [`Error::Descriptor`]: these parts describe no endpoint.
    pub fn descriptor(&self) -> Result<Vec<u8>, Error> {
        let mut ordered: Vec<&PartsChunk> = self.chunks.iter().collect();
        ordered.sort_by_key(|chunk| chunk.addr);
        let (mut chunks, mut keys) = (Vec::with_capacity(ordered.len()), Vec::new());
        for chunk in ordered {
            let mut nics = 0_u128;
            let first = keys.len() as u32;
            for &(nic, key) in &chunk.keys {
                let bit = u32::try_from(nic).ok().and_then(|nic| 1_u128.checked_shl(nic)).unwrap_or(0);
                if bit == 0 || nics >= bit {
                    return Err(Error::Descriptor(format!("keys of NIC {nic} out of order")));
                }
                nics |= bit;
                keys.push(key);
            }
            chunks.push(ChunkEntry {
                addr: chunk.addr,
                len: chunk.len,
                readable: chunk.readable,
                writable: chunk.writable,
                nics,
                keys: first,
            });
        }
        let nics = self.nics.iter().map(|nic| NicEntry {
            name: nic.name.clone(),
            address: nic.address.clone().into(),
            link_mbps: 0,
            numa: u16::MAX,
            probe: nic.probe,
        });
        let on = OnFabric {
            fabric: self.fabric.clone(),
            device: Device::default(),
            virtual_addressing: self.virtual_addressing,
            scratch: false,
            every_rail: false,
            immediate_bytes: 0,
            nics: nics.collect(),
            chunks,
            keys,
        };
        let bytes = Descriptor {
            name: self.name.clone(),
            epoch: self.epoch,
            generation: self.generation,
            provider: self.provider.clone(),
            on_request: Vec::new(),
            fabrics: vec![on],
        }
        .encode();
        // What is wrong with it is found by reading it, as its receiver does.
        Descriptor::decode(&bytes).map(|_| bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts() -> impl Strategy<Value = Parts> {
        let chunk = (1u64..1 << 40, 1u64..1 << 30, any::<bool>(), any::<bool>(), 1u8..8, any::<u64>());
        (1usize..4, prop::collection::vec(chunk, 0..6), any::<u64>()).prop_map(|(nics, chunks, epoch)| {
            let chunks = chunks.into_iter().map(|(addr, len, readable, writable, set, key)| PartsChunk {
                addr,
                len,
                readable,
                writable,
                // The first NIC always, so that the set is never empty.
                keys: (0..nics)
                    .filter(|nic| *nic == 0 || set >> nic & 1 == 1)
                    .map(|n| (n, key ^ n as u64))
                    .collect(),
            });
            let mut chunks: Vec<_> = chunks.collect();
            chunks.sort_by_key(|chunk| chunk.addr);
            Parts {
                name: "host:1@x".into(),
                epoch,
                generation: 3,
                provider: "efa".into(),
                fabric: "efa".into(),
                virtual_addressing: true,
                nics: (0..nics)
                    .map(|n| PartsNic { name: format!("efa_{n}"), address: vec![n as u8; 32], probe: (1, 2) })
                    .collect(),
                chunks,
            }
        })
    }

    proptest! {
        #[test]
        fn what_was_put_together_comes_apart_as_it_was(parts in parts()) {
            prop_assert_eq!(Parts::read(&parts.descriptor().unwrap()).unwrap(), parts);
        }

        #[test]
        fn keys_of_nics_that_are_not_there_are_refused(mut parts in parts(), nic in 0usize..300) {
            if let Some(chunk) = parts.chunks.first_mut() {
                chunk.keys.push((nic, 9));
                let ordered = chunk.keys.is_sorted_by(|a, b| a.0 < b.0);
                let there = nic < parts.nics.len();
                prop_assert_eq!(parts.descriptor().is_ok(), ordered && there);
            }
        }
    }
}
