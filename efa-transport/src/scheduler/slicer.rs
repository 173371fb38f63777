//! Cutting a request into slices.

/// A stretch of bytes: first address and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// First address.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The registered chunk around an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its number, whatever that means to the caller.
    pub index: u32,
    /// Bytes from the start of the chunk to the address.
    pub before: u64,
    /// Bytes from the address to the end of the chunk, not zero.
    pub left: u64,
}

/// Bytes that one operation transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// First local address.
    pub local: u64,
    /// First remote address.
    pub remote: u64,
    /// Length in bytes.
    pub len: u64,
    /// The local chunk that it lies in.
    pub local_chunk: u32,
    /// The remote chunk that it lies in.
    pub remote_chunk: u32,
}

/// An address that lies in no chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// On this side.
    Local(Stretch),
    /// On the other.
    Remote(Stretch),
}

/// Cuts `local` and `remote` (the n-th byte of one belongs to the n-th byte of the other) at every range end, at every
/// seam of either side, and after at most `longest` bytes. Calls `each` for every cut in order; the cuts partition the
/// bytes that both sides have.
///
/// # Errors
/// The first [`Hole`]. Cuts before it have been delivered.
#[inline]
pub fn slice(
    local: impl IntoIterator<Item = Stretch>,
    remote: impl IntoIterator<Item = Stretch>,
    mut local_chunk: impl FnMut(u64) -> Option<Chunk>,
    mut remote_chunk: impl FnMut(u64) -> Option<Chunk>,
    longest: u64,
    mut each: impl FnMut(Cut),
) -> Result<(), Hole> {
    let longest = longest.max(1);
    let mut here = Side::new(local.into_iter());
    let mut there = Side::new(remote.into_iter());
    while here.has_bytes() && there.has_bytes() {
        let local_left = here.left_of_chunk(&mut local_chunk).ok_or(Hole::Local(here.now))?;
        let remote_left = there.left_of_chunk(&mut remote_chunk).ok_or(Hole::Remote(there.now))?;
        let mut left = here.now.len.min(there.now.len).min(local_left).min(remote_left);
        while left > 0 {
            let len = part(left, longest);
            each(Cut {
                local: here.now.at,
                remote: there.now.at,
                len,
                local_chunk: here.chunk,
                remote_chunk: there.chunk,
            });
            here.advance(len);
            there.advance(len);
            left -= len;
        }
    }
    Ok(())
}

/// How far one side has come.
struct Side<I> {
    stretches: I,
    /// What is left of the current stretch.
    now: Stretch,
    /// The chunk that was looked up last: neighbours are in the same one mostly.
    chunk: u32,
    chunk_at: u64,
    chunk_len: u64,
}

impl<I: Iterator<Item = Stretch>> Side<I> {
    const fn new(stretches: I) -> Self {
        Self { stretches, now: Stretch { at: 0, len: 0 }, chunk: 0, chunk_at: 0, chunk_len: 0 }
    }

    /// Goes on to the next stretch if the current one is used up; false if there is none.
    #[inline]
    fn has_bytes(&mut self) -> bool {
        while self.now.len == 0 {
            match self.stretches.next() {
                Some(stretch) => self.now = stretch,
                None => return false,
            }
        }
        true
    }

    /// Bytes from here to the end of the chunk; `None` in a hole.
    #[inline]
    fn left_of_chunk(&mut self, look_up: &mut impl FnMut(u64) -> Option<Chunk>) -> Option<u64> {
        let at = self.now.at;
        let into = at.wrapping_sub(self.chunk_at);
        if into < self.chunk_len {
            return Some(self.chunk_len - into);
        }
        let chunk = look_up(at).filter(|chunk| chunk.left > 0)?;
        self.chunk = chunk.index;
        self.chunk_at = at.wrapping_sub(chunk.before);
        self.chunk_len = chunk.before.saturating_add(chunk.left);
        Some(chunk.left)
    }

    #[inline]
    const fn advance(&mut self, len: u64) {
        self.now.at = self.now.at.wrapping_add(len);
        self.now.len -= len;
    }
}

/// Of `left` bytes, as many as the next slice takes: equal parts of whole 4 KiB pages rather than a stub at the end.
#[inline]
fn part(left: u64, longest: u64) -> u64 {
    if left <= longest { left } else { equal_part(left, longest) }
}

#[inline(never)] // divisions, for long requests only
fn equal_part(left: u64, longest: u64) -> u64 {
    const PAGE: u64 = 4096;
    let equal = left.div_ceil(left.div_ceil(longest));
    let rounded = equal.next_multiple_of(PAGE);
    if rounded <= longest { rounded } else { longest }
}

/// The longest slice for a request of `total` bytes that `rails` NICs can share: as few slices as give every NIC two of them
/// (so that a slow one can leave its second to others), within `shortest..=longest` bytes. With one rail there is nothing to
/// share, and only the provider's limit counts. NICs that share a link are through together whatever each of them got: with
/// `links` links between them they are cut for as so many NICs, because short slices cost more than they even out.
///
/// `ahead` is what the batch still has to be cut, this request included. As long as that is plenty the NICs share it by requests
/// and need no short slices; towards the end they become shorter, so that all NICs are done at the same time.
pub fn longest_slice(
    total: u64,
    ahead: u64,
    (rails, links): (usize, usize),
    stripe: u64,
    longest: u64,
    provider_limit: u64,
) -> u64 {
    const SHORTEST: u64 = 64 << 10;
    // Of what is left in the batch a slice is at most this part of one NIC's share.
    const PARTS: u64 = 4;
    let limit = provider_limit.max(1);
    if rails <= 1 || total <= stripe {
        return limit;
    }
    let links = links.clamp(1, rails) as u64;
    let share = (total / (2 * links)).max(ahead / (PARTS * links)).next_multiple_of(4096);
    share.clamp(SHORTEST.min(longest.max(1)), longest.max(1)).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rail_is_not_cut_and_many_share() {
        let alone = |total, rails| longest_slice(total, total, (rails, rails), 256 << 10, 1 << 20, 1 << 30);
        assert_eq!(alone(16 << 20, 1), 1 << 30);
        assert_eq!(alone(16 << 20, 16), 512 << 10);
        assert_eq!(alone(64 << 10, 16), 1 << 30, "below the stripe");
        assert_eq!(alone(1 << 30, 4), 1 << 20);
        assert_eq!(longest_slice(1 << 30, 1 << 30, (4, 4), 0, 0, 0), 1);
    }

    #[test]
    fn requests_of_a_long_batch_are_cut_at_its_end_only() {
        let of_batch = |ahead| longest_slice(1 << 20, ahead, (16, 16), 256 << 10, 1 << 20, 1 << 30);
        assert_eq!(of_batch(64 << 20), 1 << 20, "four requests for each NIC");
        assert_eq!(of_batch(32 << 20), 512 << 10);
        assert_eq!(of_batch(1 << 20), 64 << 10, "the last one is shared by all");
    }

    /// Catches: requests cut into ever shorter slices for NICs that are not through any sooner for it.
    #[test]
    fn nics_that_share_a_link_get_longer_slices() {
        let cut = |total, ahead, links| longest_slice(total, ahead, (16, links), 256 << 10, 1 << 20, 1 << 30);
        assert_eq!(cut(1 << 20, 4 << 20, 1), 1 << 20, "whole requests, nearly to the end");
        assert_eq!(cut(1 << 20, 1 << 20, 1), 512 << 10);
        assert_eq!(cut(16 << 20, 16 << 20, 1), 1 << 20, "not one alone: there are several connections");
        assert_eq!(cut(1 << 20, 1 << 20, 4), 128 << 10);
    }

    #[test]
    fn parts_are_equal_pages() {
        assert_eq!(part(100, 100), 100);
        assert_eq!(part((1 << 20) + 1, 1 << 20), (512 << 10) + 4096);
        assert_eq!(part(10_000, 3_000), 3_000, "longest wins over whole pages");
    }
}
