//! Requests that are on their way over libfabric, kept so that they can be sent over TCP if that fails.

use tcp_transport::{Op, Peer, RegionDescriptor, Shape};

use crate::error::Error;
use crate::memory::Region;

/// The kept requests of a batch. Lists of addresses lie together, so that a batch that is used again allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    requests: Vec<Request>,
    addrs: Vec<u64>,
    ranges: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Request {
    op: Op,
    local: Region,
    /// With the key of the registration that the request was made for.
    remote: RegionDescriptor,
    local_shape: Stored,
    remote_shape: Stored,
}

/// A [`Shape`] whose lists lie in [`Kept`].
#[derive(Debug, Clone, Copy)]
enum Stored {
    Contiguous { addr: u64, len: u64 },
    Paged { page_len: u64, first: u32, count: u32 },
    Strided { addr: u64, block_len: u64, stride: u64, count: u64 },
    Scatter { first: u32, count: u32 },
}

impl Kept {
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.addrs.clear();
        self.ranges.clear();
    }

    /// Keeps a request; its number.
    pub(crate) fn keep(
        &mut self,
        op: Op,
        local: &Region,
        remote: RegionDescriptor,
        (local_shape, remote_shape): (Shape<'_>, Shape<'_>),
    ) -> u32 {
        let (local_shape, remote_shape) = (self.store(local_shape), self.store(remote_shape));
        self.requests.push(Request { op, local: local.clone(), remote, local_shape, remote_shape });
        (self.requests.len() - 1) as u32
    }

    fn store(&mut self, shape: Shape<'_>) -> Stored {
        match shape {
            Shape::Contiguous { addr, len } => Stored::Contiguous { addr, len },
            Shape::Paged { page_len, addrs } => {
                let first = self.addrs.len() as u32;
                self.addrs.extend_from_slice(addrs);
                Stored::Paged { page_len, first, count: addrs.len() as u32 }
            }
            Shape::Strided { addr, block_len, stride, count } => {
                Stored::Strided { addr, block_len, stride, count }
            }
            Shape::Scatter(ranges) => {
                let first = self.ranges.len() as u32;
                self.ranges.extend_from_slice(ranges);
                Stored::Scatter { first, count: ranges.len() as u32 }
            }
        }
    }

    fn shape(&self, stored: Stored) -> Shape<'_> {
        let span = |first: u32, count: u32| first as usize..first as usize + count as usize;
        match stored {
            Stored::Contiguous { addr, len } => Shape::Contiguous { addr, len },
            Stored::Paged { page_len, first, count } => {
                Shape::Paged { page_len, addrs: &self.addrs[span(first, count)] }
            }
            Stored::Strided { addr, block_len, stride, count } => {
                Shape::Strided { addr, block_len, stride, count }
            }
            Stored::Scatter { first, count } => Shape::Scatter(&self.ranges[span(first, count)]),
        }
    }

    /// The registration that a request was made for.
    pub(crate) fn remote(&self, number: u32) -> RegionDescriptor {
        self.requests[number as usize].remote
    }

    /// Adds a kept request to a batch of TCP's; its index there.
    pub(crate) fn send(
        &self,
        number: u32,
        peer: &Peer,
        batch: &mut tcp_transport::Batch,
    ) -> Result<usize, Error> {
        let kept = &self.requests[number as usize];
        Ok(batch.push(tcp_transport::Request {
            op: kept.op,
            peer,
            local: kept.local.tcp(),
            local_shape: self.shape(kept.local_shape),
            remote: kept.remote,
            remote_shape: self.shape(kept.remote_shape),
            immediate: None,
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_come_back_as_they_were_stored() {
        let mut kept = Kept::default();
        let shapes = [
            Shape::Paged { page_len: 4, addrs: &[1, 2, 3] },
            Shape::Scatter(&[(5, 6), (7, 8)]),
            Shape::contiguous(9, 10),
            Shape::Paged { page_len: 11, addrs: &[12] },
            Shape::Strided { addr: 13, block_len: 14, stride: 15, count: 16 },
            Shape::Scatter(&[(17, 18)]),
        ];
        let stored: Vec<_> = shapes.iter().map(|&shape| kept.store(shape)).collect();
        let back: Vec<_> = stored.into_iter().map(|stored| kept.shape(stored)).collect();
        assert_eq!(back, shapes);
    }
}
