//! Machines, as far as their network cards go.

/// A network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Line speed in Mbit/s.
    pub link_mbps: u32,
    /// What it really does, in percent of that. The scheduler is not told.
    pub percent: u32,
    /// Operations that it takes at a time.
    pub depth: usize,
    /// NUMA node.
    pub numa: u16,
    /// What an operation costs it besides its bytes, in nanoseconds.
    pub operation_ns: u64,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The instance type.
    pub name: String,
    /// Its cards, in PCI order.
    pub cards: Vec<Card>,
    /// Time from the end of an operation's transmission to its completion at the sender, in nanoseconds.
    pub latency_ns: u64,
}

/// Published: about 2.1 million operations a second over two cards of 200 Gbit/s.
const OPERATION_NS: u64 = 950;

impl Machine {
    /// `count` equal cards on two NUMA nodes.
    pub fn equal(name: &str, count: usize, link_mbps: u32, depth: usize) -> Self {
        let card = |index| Card {
            link_mbps,
            percent: 100,
            depth,
            numa: u16::from(index >= count.div_ceil(2)),
            operation_ns: OPERATION_NS,
        };
        Self { name: name.to_owned(), cards: (0..count).map(card).collect(), latency_ns: 15_000 }
    }

    /// 32 cards of 100 Gbit/s, 4096 operations deep.
    pub fn p5() -> Self {
        Self::equal("p5", 32, 100_000, 4096)
    }

    /// 16 cards of 200 Gbit/s. Their depth is not published; that of p5 is assumed.
    pub fn p5en() -> Self {
        Self::equal("p5en", 16, 200_000, 4096)
    }

    /// 8 cards of 400 Gbit/s. Their depth is not published; that of p6-b300 is assumed.
    pub fn p6_b200() -> Self {
        Self::equal("p6-b200", 8, 400_000, 2048)
    }

    /// 16 cards of 400 Gbit/s, 2048 operations deep.
    pub fn p6_b300() -> Self {
        Self::equal("p6-b300", 16, 400_000, 2048)
    }

    /// All published machines.
    pub fn published() -> [Self; 4] {
        [Self::p5(), Self::p5en(), Self::p6_b200(), Self::p6_b300()]
    }

    /// The same, with one card at part speed.
    #[must_use]
    pub fn with_slow_card(mut self, card: usize, percent: u32) -> Self {
        if let Some(card) = self.cards.get_mut(card) {
            card.percent = percent.max(1);
        }
        self
    }

    /// What all cards together really do, in bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.cards.iter().map(Card::bytes_per_second).sum()
    }
}

impl Card {
    /// What it really does, in bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        f64::from(self.link_mbps) * f64::from(self.percent) / 100.0 * 1e6 / 8.0
    }

    /// How long an operation of `bytes` keeps it busy, in nanoseconds.
    pub(super) fn service_ns(&self, bytes: u64) -> u64 {
        let line = bytes as f64 / self.bytes_per_second() * 1e9;
        // A card works on an operation's overhead while it sends the one before: the greater of the two counts.
        (line as u64).max(self.operation_ns).max(1)
    }
}
