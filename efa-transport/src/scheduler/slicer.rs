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
pub fn slice(
    local: impl IntoIterator<Item = Stretch>,
    remote: impl IntoIterator<Item = Stretch>,
    mut local_chunk: impl FnMut(u64) -> Option<Chunk>,
    mut remote_chunk: impl FnMut(u64) -> Option<Chunk>,
    longest: u64,
    mut each: impl FnMut(Cut),
) -> Result<(), Hole> {
    let longest = longest.max(1);
    let (mut locals, mut remotes) = (local.into_iter(), remote.into_iter());
    let (mut here, mut there) = (next(&mut locals), next(&mut remotes));
    // The chunks that the current addresses lie in; `left` is used up as we go.
    let (mut local_at, mut remote_at): (Option<Chunk>, Option<Chunk>) = (None, None);
    while let (Some(l), Some(r)) = (&mut here, &mut there) {
        let lc = match local_at {
            Some(chunk) => chunk,
            None => local_chunk(l.at).filter(|c| c.left > 0).ok_or(Hole::Local(*l))?,
        };
        let rc = match remote_at {
            Some(chunk) => chunk,
            None => remote_chunk(r.at).filter(|c| c.left > 0).ok_or(Hole::Remote(*r))?,
        };
        let whole = l.len.min(r.len).min(lc.left).min(rc.left);
        let mut left = whole;
        while left > 0 {
            let len = part(left, longest);
            each(Cut { local: l.at, remote: r.at, len, local_chunk: lc.index, remote_chunk: rc.index });
            (l.at, l.len) = (l.at.wrapping_add(len), l.len - len);
            (r.at, r.len) = (r.at.wrapping_add(len), r.len - len);
            left -= len;
        }
        local_at = (lc.left > whole).then_some(Chunk { left: lc.left - whole, ..lc });
        remote_at = (rc.left > whole).then_some(Chunk { left: rc.left - whole, ..rc });
        if l.len == 0 {
            (here, local_at) = (next(&mut locals), None);
        }
        if r.len == 0 {
            (there, remote_at) = (next(&mut remotes), None);
        }
    }
    Ok(())
}

/// The next stretch that has bytes.
fn next(stretches: &mut impl Iterator<Item = Stretch>) -> Option<Stretch> {
    stretches.find(|stretch| stretch.len > 0)
}

/// Of `left` bytes, as many as the next slice takes: equal parts of whole 4 KiB pages rather than a stub at the end.
fn part(left: u64, longest: u64) -> u64 {
    const PAGE: u64 = 4096;
    if left <= longest {
        return left;
    }
    let equal = left.div_ceil(left.div_ceil(longest));
    let rounded = equal.next_multiple_of(PAGE);
    if rounded <= longest { rounded } else { longest }
}

/// The longest slice for a request of `total` bytes that `rails` NICs can share: as few slices as give every NIC two of them
/// (so that a slow one can leave its second to others), within `shortest..=longest` bytes. With one rail there is nothing to
/// share, and only the provider's limit counts.
pub fn longest_slice(total: u64, rails: usize, stripe: u64, longest: u64, provider_limit: u64) -> u64 {
    const SHORTEST: u64 = 64 << 10;
    let limit = provider_limit.max(1);
    if rails <= 1 || total <= stripe {
        return limit;
    }
    let share = (total / (2 * rails as u64)).next_multiple_of(4096);
    share.clamp(SHORTEST.min(longest.max(1)), longest.max(1)).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rail_is_not_cut_and_many_share() {
        assert_eq!(longest_slice(16 << 20, 1, 256 << 10, 1 << 20, 1 << 30), 1 << 30);
        assert_eq!(longest_slice(16 << 20, 16, 256 << 10, 1 << 20, 1 << 30), 512 << 10);
        assert_eq!(longest_slice(64 << 10, 16, 256 << 10, 1 << 20, 1 << 30), 1 << 30, "below the stripe");
        assert_eq!(longest_slice(1 << 30, 4, 256 << 10, 1 << 20, 1 << 30), 1 << 20);
        assert_eq!(longest_slice(1 << 30, 4, 0, 0, 0), 1);
    }

    #[test]
    fn parts_are_equal_pages() {
        assert_eq!(part(100, 100), 100);
        assert_eq!(part((1 << 20) + 1, 1 << 20), (512 << 10) + 4096);
        assert_eq!(part(10_000, 3_000), 3_000, "longest wins over whole pages");
    }
}
