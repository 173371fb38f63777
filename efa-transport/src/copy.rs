//! Transfers within this process: copies by the processor.

use std::sync::Arc;

use crate::batch::{BatchState, Part};
use crate::core::Core;
use crate::error::Error;
use crate::region::{Access, RegionInner};
use crate::request::{Batch, Op, Range, Stored};
use crate::scheduler::slicer::{Chunk, Hole, Stretch, slice};

impl Core {
    /// Copies where both sides are this process: no NIC could do it faster.
    pub(crate) fn copy_within(&self, state: &BatchState, index: u32, stored: &Stored, batch: &Batch) {
        let regions: Vec<Arc<RegionInner>> =
            self.regions.lock().iter().filter_map(|(_, region)| region.upgrade()).collect();
        let right = match stored.op {
            Op::Read => Access::REMOTE_READ,
            Op::Write => Access::REMOTE_WRITE,
        };
        let find = |addr: u64| {
            regions
                .iter()
                .position(|r| r.access.contains(right) && r.range().contains(&Range { at: addr, len: 1 }))
        };
        let stretch = |range: &Range| Stretch { at: range.at, len: range.len };
        let mut buffer = vec![0; 128 << 10];
        let mut problem = None;
        let region = &stored.region;
        let sliced = slice(
            batch.local[stored.local.clone()].iter().map(stretch),
            batch.remote[stored.remote.clone()].iter().map(stretch),
            |addr| region.chunk_at(addr),
            |addr| {
                let index = find(addr)?;
                let before = addr - regions[index].addr;
                Some(Chunk { index: index as u32, before, left: regions[index].len - before })
            },
            buffer.len() as u64,
            |cut| {
                if problem.is_some() {
                    return;
                }
                let there = &regions[cut.remote_chunk as usize];
                let bytes = &mut buffer[..cut.len as usize];
                let (local, remote) = (cut.local - region.addr, cut.remote - there.addr);
                problem = match stored.op {
                    Op::Write => region.copy_out(local, bytes).and_then(|()| there.copy_in(remote, bytes)),
                    Op::Read => there.copy_out(remote, bytes).and_then(|()| region.copy_in(local, bytes)),
                }
                .err();
            },
        );
        if let Err(hole) = sliced {
            let (Hole::Local(stretch) | Hole::Remote(stretch)) = hole;
            let wanted = stored.op.wanted();
            problem.get_or_insert_with(|| Error::NotRegistered {
                peer: state.party_of(index).peer.name.clone(),
                addr: stretch.at,
                len: stretch.len,
                wanted,
            });
        }
        match problem {
            Some(error) => {
                state.fail(index, |_| error);
            }
            None => {
                if let Some(immediate) = stored.immediate {
                    self.arrivals.arrived(immediate);
                }
                if matches!(state.slices_done(index, 1), Part::Ended) {
                    state.requests_ended(1);
                }
            }
        }
    }
}
