//! What goes wrong and when: a schedule that follows from the seed alone.

use std::time::Duration;

use fastrand::Rng;

/// Something that happens to the nodes, and how long it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Killed in the middle of whatever it does; a new one is started after this time.
    Kill(usize, Duration),
    /// Stopped, and let go on after this time.
    Stop(usize, Duration),
    /// Nobody reaches these nodes' addresses for this time.
    Cut(Vec<usize>, Duration),
    /// A card of every host is dead for this time.
    Card(usize, Duration),
    /// A rule for the cards holds for this time.
    Rule(String, Duration),
    /// Takes its memory back and registers it again.
    Reregister(usize),
}

/// What can happen.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) nodes: usize,
    /// Nodes that may be killed. The others live long enough to show a leak.
    pub(crate) mortal: Vec<usize>,
    pub(crate) can_cut: bool,
    pub(crate) cards: usize,
}

/// See the module. Endless.
pub(crate) struct Schedule {
    field: Field,
    rng: Rng,
}

impl Schedule {
    pub(crate) fn new(field: Field, seed: u64) -> Self {
        Self { field, rng: Rng::with_seed(seed) }
    }

    fn ms(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }
}

impl Iterator for Schedule {
    /// After this pause, this happens.
    type Item = (Duration, Event);

    fn next(&mut self) -> Option<Self::Item> {
        let pause = self.ms(200..2500);
        let any = self.rng.usize(0..self.field.nodes);
        let event = loop {
            match self.rng.u8(0..12) {
                0..=2 if !self.field.mortal.is_empty() => {
                    let node = self.field.mortal[self.rng.usize(0..self.field.mortal.len())];
                    break Event::Kill(node, self.ms(0..1500));
                }
                3 | 4 => break Event::Stop(any, self.ms(100..4000)),
                5 | 6 if self.field.can_cut => {
                    let mut nodes: Vec<usize> = (0..self.field.nodes).collect();
                    self.rng.shuffle(&mut nodes);
                    nodes.truncate(self.rng.usize(1..=self.field.nodes));
                    break Event::Cut(nodes, self.ms(100..7000));
                }
                7 | 8 if self.field.cards > 0 => {
                    break Event::Card(self.rng.usize(0..self.field.cards), self.ms(100..4000));
                }
                9 if self.field.cards > 0 => {
                    let rules = [
                        "fail status=13 op=write prob=0.02",
                        "fail status=13 op=read prob=0.02",
                        "delay us=2000 op=rdma prob=0.05",
                        "fail status=15 every=50",
                    ];
                    let rule = rules[self.rng.usize(0..rules.len())];
                    break Event::Rule(rule.into(), self.ms(200..3000));
                }
                10 | 11 => break Event::Reregister(any),
                _ => {}
            }
        };
        Some((pause, event))
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kill(node, for_) => write!(f, "node {node} is killed, back after {for_:?}"),
            Self::Stop(node, for_) => write!(f, "node {node} is stopped for {for_:?}"),
            Self::Cut(nodes, for_) => write!(f, "nodes {nodes:?} are cut off for {for_:?}"),
            Self::Card(card, for_) => write!(f, "card {card} is dead for {for_:?}"),
            Self::Rule(rule, for_) => write!(f, "cards: {rule:?} for {for_:?}"),
            Self::Reregister(node) => write!(f, "node {node} registers its memory anew"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field() -> Field {
        Field { nodes: 4, mortal: vec![1, 2], can_cut: true, cards: 2 }
    }

    #[test]
    fn the_same_seed_is_the_same_schedule_and_everything_happens() {
        let events = |seed| Schedule::new(field(), seed).take(300).collect::<Vec<_>>();
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
        let events = events(7);
        let kinds: std::collections::HashSet<_> =
            events.iter().map(|(_, e)| std::mem::discriminant(e)).collect();
        assert_eq!(kinds.len(), 6);
        assert!(events.iter().all(|(_, e)| !matches!(e, Event::Kill(0 | 3, _))));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let field = Field { can_cut: false, cards: 0, ..field() };
        let mut events = Schedule::new(field, 1).take(300);
        assert!(events.all(|(_, e)| !matches!(e, Event::Cut(..) | Event::Card(..) | Event::Rule(..))));
    }
}
