//! One of the two processes: its endpoint, and the line to the other.

use fabric_safe::{Access, Address, Capabilities, MemoryRegion, RemoteRegion};

use crate::support::line::Line;
use crate::support::node::Node;

/// Set to test transfers of up to 1 GiB.
pub(crate) const LARGE: &str = "FABRIC_TEST_LARGE";

/// Bytes around every range that a test writes, which must not change.
pub(crate) const MARGIN: usize = 64;

/// One of the two processes.
pub(crate) struct Side {
    pub(crate) node: Node,
    pub(crate) line: Line,
    pub(crate) peer: Address,
    pub(crate) capabilities: Capabilities,
    pub(crate) target: bool,
    /// Longest transfer that is reasonable with this provider.
    pub(crate) longest: usize,
    pub(crate) token: u64,
}

impl Side {
    pub(crate) fn meet(
        node: Node,
        mut line: Line,
        capabilities: Capabilities,
        target: bool,
        provider: &str,
    ) -> Side {
        line.tell(&node.endpoint.name().unwrap());
        let peer = node.insert(&line.hear(|| {}));
        let longest = match provider {
            // Datagrams of a few KiB with acknowledgements in software.
            "udp;ofi_rxd" => 1 << 20,
            // A gigabyte takes seconds with each provider on a small machine, so it is for those who ask.
            _ if std::env::var_os(LARGE).is_some() => 1 << 30,
            _ => 16 << 20,
        };
        Side { node, line, peer, capabilities, target, longest, token: 0 }
    }

    pub(crate) fn token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }

    pub(crate) fn tell(&mut self, message: &[u8]) {
        self.line.tell(message);
    }

    pub(crate) fn hear(&mut self) -> Vec<u8> {
        let Side { line, node, .. } = self;
        line.hear(|| {
            node.poll();
        })
    }

    /// Waits for each other, making progress.
    pub(crate) fn together(&mut self) {
        self.tell(b"here");
        assert_eq!(self.hear(), b"here");
    }

    pub(crate) fn register(&self, bytes: Vec<u8>) -> MemoryRegion<Vec<u8>> {
        self.node.domain.register(bytes, Access::ALL).unwrap()
    }

    /// The target's region, as it told.
    pub(crate) fn remote(&mut self) -> RemoteRegion {
        RemoteRegion::from_bytes(self.hear().try_into().unwrap())
    }

    pub(crate) fn sizes(&self, longest: usize) -> Vec<usize> {
        let longest = longest.min(self.longest);
        [1, 64, 4096, 65_536 + 3, 1 << 20, 16 << 20, 1 << 30]
            .into_iter()
            .filter(|size| *size <= longest)
            .collect()
    }
}
