//! Memory of a peer, as operations name it.

/// A place in a peer's registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Remote {
    /// Address as the peer's provider wants it: virtual, or an offset into the region. [`RemoteRegion::at`] gets it right.
    pub address: u64,
    /// Key of the region.
    pub key: u64,
}

/// A peer's region: what [`Region::remote`](crate::Region::remote) says about it there and operations need to know here.
///
/// It carries nothing that is only valid on one side, so it can be sent as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteRegion {
    /// Address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Key.
    pub key: u64,
}

impl RemoteRegion {
    /// The place `offset` bytes into the region. Not checked here: the target refuses what is outside.
    #[inline]
    pub fn at(self, offset: u64) -> Remote {
        Remote { address: self.address.wrapping_add(offset), key: self.key }
    }

    /// Address, length and key, little-endian.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&self.key.to_le_bytes());
        bytes
    }

    /// The inverse of [`to_bytes`](RemoteRegion::to_bytes). Whatever the bytes are, it is for the target to refuse what they
    /// should not reach.
    pub fn from_bytes(bytes: [u8; 24]) -> RemoteRegion {
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]));
        RemoteRegion { address: word(0), len_bytes: word(8), key: word(16) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_trip() {
        let region = RemoteRegion { address: u64::MAX - 1, len_bytes: 0x0102_0304_0506_0708, key: 42 };
        assert_eq!(RemoteRegion::from_bytes(region.to_bytes()), region);
        assert_eq!(region.to_bytes()[8], 8);
        assert_eq!(region.at(3).address, 1);
    }
}
