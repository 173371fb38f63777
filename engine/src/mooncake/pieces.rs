//! Cuts a request into what the data protocol can say: one range here, one range there.

use tcp_transport::Shape;

/// One range on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) local: u64,
    pub(super) remote: u64,
    pub(super) len: u64,
}

/// Longest piece: longer ranges are moved over several connections at once.
pub(super) const MAX_PIECE: u64 = 16 << 20;

/// Most pieces of one request: what a program asks for in one go, not what it can be made to allocate.
const MAX_PIECES: u64 = 1 << 22;

/// Cuts both shapes where either has a seam; neighbours on both sides become one again. The error is in words.
pub(super) fn cut(local: &Shape<'_>, remote: &Shape<'_>) -> Result<Vec<Piece>, String> {
    let total = match (local.len(), remote.len()) {
        (Some(l), Some(r)) if l == r && l > 0 => l,
        (l, r) => {
            return Err(format!(
                "the two sides have {} and {} bytes; they must have the same, at least one",
                l.map_or("too many".into(), |l| l.to_string()),
                r.map_or("too many".into(), |r| r.to_string())
            ));
        }
    };
    let most = (total / MAX_PIECE).saturating_add(count(local)).saturating_add(count(remote));
    if most > MAX_PIECES {
        return Err(format!(
            "{total} bytes in more than {MAX_PIECES} pieces in one request; make several of it"
        ));
    }
    let (mut here, mut there) = (Ranges::new(local), Ranges::new(remote));
    let mut pieces: Vec<Piece> = Vec::new();
    let wraps = || "a range wraps around the address space".to_owned();
    while let (Some((l, l_len)), Some((r, r_len))) = (here.current(), there.current()) {
        let joined = pieces.last_mut().filter(|last| {
            last.local.checked_add(last.len) == Some(l)
                && last.remote.checked_add(last.len) == Some(r)
                && last.len < MAX_PIECE
        });
        let room = joined.as_ref().map_or(MAX_PIECE, |last| MAX_PIECE - last.len);
        let len = l_len.min(r_len).min(room);
        if l.checked_add(len).is_none() || r.checked_add(len).is_none() {
            return Err(wraps());
        }
        match joined {
            Some(last) => last.len += len,
            None => pieces.push(Piece { local: l, remote: r, len }),
        }
        here.advance(len);
        there.advance(len);
    }
    // Both have the same length, so one that ends early has a range that wraps.
    if here.failed || there.failed { Err(wraps()) } else { Ok(pieces) }
}

fn count(shape: &Shape<'_>) -> u64 {
    match *shape {
        Shape::Contiguous { .. } => 1,
        Shape::Paged { addrs, .. } => addrs.len() as u64,
        Shape::Strided { count, .. } => count,
        Shape::Scatter(ranges) => ranges.len() as u64,
    }
}

/// Walks over the ranges of a shape.
struct Ranges<'a> {
    shape: &'a Shape<'a>,
    index: u64,
    done: u64,
    failed: bool,
}

impl<'a> Ranges<'a> {
    fn new(shape: &'a Shape<'a>) -> Self {
        Self { shape, index: 0, done: 0, failed: false }
    }

    fn range(&mut self) -> Option<(u64, u64)> {
        if self.index >= count(self.shape) {
            return None;
        }
        let at = usize::try_from(self.index).ok()?;
        match *self.shape {
            Shape::Contiguous { addr, len } => Some((addr, len)),
            Shape::Paged { page_len, addrs } => addrs.get(at).map(|&addr| (addr, page_len)),
            Shape::Strided { addr, block_len, stride, .. } => {
                let start = self.index.checked_mul(stride).and_then(|far| addr.checked_add(far));
                self.failed |= start.is_none();
                start.map(|start| (start, block_len))
            }
            Shape::Scatter(ranges) => ranges.get(at).copied(),
        }
    }

    /// What is left of the range that it stands in; empty ones are passed over.
    fn current(&mut self) -> Option<(u64, u64)> {
        loop {
            let (addr, len) = self.range()?;
            if self.done < len {
                let start = addr.checked_add(self.done);
                self.failed |= start.is_none();
                return Some((start?, len - self.done));
            }
            self.index += 1;
            self.done = 0;
        }
    }

    fn advance(&mut self, len: u64) {
        self.done += len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Byte by byte.
    fn flat(shape: &Shape<'_>) -> Vec<u64> {
        let all = |ranges: &[(u64, u64)]| ranges.iter().flat_map(|&(a, l)| a..a + l).collect();
        match *shape {
            Shape::Contiguous { addr, len } => all(&[(addr, len)]),
            Shape::Paged { page_len, addrs } => {
                all(&addrs.iter().map(|&a| (a, page_len)).collect::<Vec<_>>())
            }
            Shape::Strided { addr, block_len, stride, count } => {
                all(&(0..count).map(|i| (addr + i * stride, block_len)).collect::<Vec<_>>())
            }
            Shape::Scatter(ranges) => all(ranges),
        }
    }

    proptest! {
        /// The pieces say the same as the shapes, byte for byte and in order, and no two of them could be one.
        #[test]
        fn pieces_are_the_request(
            ranges in prop::collection::vec((0u64..1000, 0u64..40), 1..8), page in 1u64..20, start in 0u64..1000, gap in 0u64..9,
        ) {
            let total: u64 = ranges.iter().map(|r| r.1).sum();
            let scatter = Shape::Scatter(&ranges);
            let addrs: Vec<u64> = (0..total / page).map(|i| start + i * (page + gap)).collect();
            let paged = Shape::Paged { page_len: page, addrs: &addrs };
            let strided = Shape::Strided { addr: start, block_len: page, stride: page + gap, count: total / page };
            let whole = Shape::contiguous(start, total);
            for (local, remote) in [(&scatter, &whole), (&whole, &scatter), (&scatter, &paged), (&strided, &scatter), (&paged, &strided)] {
                let same = local.len() == remote.len() && local.len() != Some(0);
                match cut(local, remote) {
                    Err(_) => prop_assert!(!same),
                    Ok(pieces) => {
                        prop_assert!(same);
                        let l: Vec<u64> = pieces.iter().flat_map(|p| p.local..p.local + p.len).collect();
                        let r: Vec<u64> = pieces.iter().flat_map(|p| p.remote..p.remote + p.len).collect();
                        prop_assert_eq!(l, flat(local));
                        prop_assert_eq!(r, flat(remote));
                        for pair in pieces.windows(2) {
                            prop_assert!(pair[0].local + pair[0].len != pair[1].local || pair[0].remote + pair[0].len != pair[1].remote);
                        }
                    }
                }
            }
        }

        #[test]
        fn nothing_overflows(addr: u64, len: u64, stride: u64, count in 0u64..100, other: u64) {
            let _ = cut(&Shape::Strided { addr, block_len: len, stride, count }, &Shape::contiguous(other, len.wrapping_mul(count)));
            let _ = cut(&Shape::Scatter(&[(addr, len)]), &Shape::contiguous(other, len.min(1 << 40)));
        }
    }

    #[test]
    fn long_ranges_are_cut() {
        let pieces =
            cut(&Shape::contiguous(0, 3 * MAX_PIECE + 1), &Shape::contiguous(9, 3 * MAX_PIECE + 1)).unwrap();
        assert_eq!(pieces.iter().map(|p| p.len).collect::<Vec<_>>(), [MAX_PIECE, MAX_PIECE, MAX_PIECE, 1]);
        assert!(cut(&Shape::contiguous(u64::MAX - 3, 10), &Shape::contiguous(0, 10)).is_err());
        // Refused, not cut into billions of pieces.
        let huge = Shape::contiguous(0, 1 << 60);
        assert!(cut(&huge, &huge).unwrap_err().contains("pieces"));
    }
}
