//! The lanes of a transport: those of one fabric and, when a peer has needed it, those of a second on the same cards.
//!
//! Lanes are numbered through, the second fabric's after the first's, so that a set of lanes names the fabric too: memory of a
//! peer on one fabric is registered with that one's lanes, and nothing moves to another's.

use std::iter::Chain;
use std::ops::Index;
use std::slice::Iter;
use std::sync::OnceLock;

use crate::fabric::OpenFabric;
use crate::lane::Lane;
use crate::scheduler::rail::Set;

/// All of them.
pub(crate) struct Lanes {
    first: OpenFabric,
    second: OnceLock<OpenFabric>,
}

impl Lanes {
    pub(crate) fn new(first: OpenFabric) -> Self {
        Self { first, second: OnceLock::new() }
    }

    pub(crate) fn first(&self) -> &OpenFabric {
        &self.first
    }

    pub(crate) fn second(&self) -> Option<&OpenFabric> {
        self.second.get()
    }

    /// Once; a third is dropped.
    pub(crate) fn add(&self, second: OpenFabric) {
        let _ = self.second.set(second);
    }

    /// The fabrics that are open, in order.
    pub(crate) fn fabrics(&self) -> impl Iterator<Item = &OpenFabric> {
        std::iter::once(&self.first).chain(self.second.get())
    }

    /// The fabric of this number, 0 or 1. The second must have been opened: whoever knows its number has seen it.
    #[inline]
    pub(crate) fn fabric(&self, number: usize) -> &OpenFabric {
        match number {
            0 => &self.first,
            _ => self.second.get().unwrap_or(&self.first),
        }
    }

    /// The lanes that have the fabric of this one, which alone can take its work over.
    pub(crate) fn mates(&self, lane: usize) -> Set {
        let range = if lane < self.first.range.end { &self.first.range } else { &self.fabric(1).range };
        range.clone().fold(0, |set, lane| set | 1 << lane)
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.first.lanes.len() + self.second.get().map_or(0, |second| second.lanes.len())
    }

    #[inline]
    pub(crate) fn get(&self, lane: usize) -> Option<&Lane> {
        match lane.checked_sub(self.first.lanes.len()) {
            None => self.first.lanes.get(lane),
            Some(lane) => self.second.get()?.lanes.get(lane),
        }
    }

    #[inline]
    pub(crate) fn iter(&self) -> Chain<Iter<'_, Lane>, Iter<'_, Lane>> {
        let second = self.second.get().map_or(&[][..], |second| &second.lanes);
        self.first.lanes.iter().chain(second)
    }
}

impl<'a> IntoIterator for &'a Lanes {
    type Item = &'a Lane;
    type IntoIter = Chain<Iter<'a, Lane>, Iter<'a, Lane>>;

    #[inline]
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Index<usize> for Lanes {
    type Output = Lane;

    #[inline]
    fn index(&self, lane: usize) -> &Lane {
        match self.first.lanes.get(lane) {
            Some(lane) => lane,
            None => &self.fabric(1).lanes[lane - self.first.lanes.len()],
        }
    }
}
