//! Numbers that go up, of which some are finished: the sender's side of "exactly once" knows which numbers still lack an
//! answer, the receiver's side which ones it has delivered. Pure; allocates only while the window grows.

use std::collections::VecDeque;

/// Largest distance between the lowest unfinished number and the highest in use.
pub(crate) const MAX_WINDOW: u64 = 65_536;

/// The one number that nobody can use: there is no floor above it. No honest sender ever gets there.
const LAST: u64 = u64::MAX;

/// Which numbers at and above `floor` are finished; all below are.
#[derive(Debug, Default)]
pub(crate) struct Window {
    floor: u64,
    finished: VecDeque<bool>,
}

/// What a receiver learns about a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not delivered yet.
    New,
    /// Delivered before.
    Before,
    /// Too far above the floor to be remembered.
    TooFar,
}

impl Window {
    /// Lowest number that is not finished.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// Sender: takes the next number, unless the window is full.
    pub(crate) fn take(&mut self) -> Option<u64> {
        if self.finished.len() as u64 >= MAX_WINDOW {
            return None;
        }
        self.finished.push_back(false);
        Some(self.floor + self.finished.len() as u64 - 1)
    }

    /// Sender: a number has been answered for good. Receiver: it has been delivered.
    pub(crate) fn finish(&mut self, number: u64) {
        let Some(at) = number.checked_sub(self.floor).filter(|&d| d < MAX_WINDOW && number < LAST) else {
            return;
        };
        let at = at as usize;
        if self.finished.len() <= at {
            self.finished.resize(at + 1, false);
        }
        self.finished[at] = true;
        self.compact();
    }

    /// Receiver: the sender has an answer for everything below `floor`.
    pub(crate) fn raise(&mut self, floor: u64) {
        while self.floor < floor && self.finished.pop_front().is_some() {
            self.floor += 1;
        }
        self.floor = self.floor.max(floor);
        self.compact();
    }

    /// Receiver: whether a number has been delivered.
    pub(crate) fn seen(&self, number: u64) -> Seen {
        match number.checked_sub(self.floor) {
            None => Seen::Before,
            Some(d) if d >= MAX_WINDOW || number == LAST => Seen::TooFar,
            Some(d) if self.finished.get(d as usize) == Some(&true) => Seen::Before,
            Some(_) => Seen::New,
        }
    }

    fn compact(&mut self) {
        while self.finished.front() == Some(&true) {
            self.finished.pop_front();
            self.floor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer may claim any floor and any number.
    #[test]
    fn the_end_of_all_numbers_is_not_passed() {
        let mut window = Window::default();
        window.raise(u64::MAX - 1);
        assert_eq!(window.seen(u64::MAX - 1), Seen::New);
        window.finish(u64::MAX - 1);
        assert_eq!((window.floor(), window.seen(u64::MAX - 1)), (u64::MAX, Seen::Before));
        assert_eq!(window.seen(u64::MAX), Seen::TooFar);
        window.finish(u64::MAX);
        window.raise(u64::MAX);
        assert_eq!(window.floor(), u64::MAX);
    }
}
