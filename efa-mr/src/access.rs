//! What registered memory may be used for.

bitflags::bitflags! {
    /// Rights of a registration. Local rights are about our own operations, remote ones about those of peers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Source of messages.
        const SEND = 1;
        /// Target of receives.
        const RECV = 1 << 1;
        /// Target of our own reads.
        const READ = 1 << 2;
        /// Source of our own writes.
        const WRITE = 1 << 3;
        /// Peers may read.
        const REMOTE_READ = 1 << 4;
        /// Peers may write.
        const REMOTE_WRITE = 1 << 5;
        /// Everything on this side, nothing for peers.
        const LOCAL = Self::SEND.bits() | Self::RECV.bits() | Self::READ.bits() | Self::WRITE.bits();
    }
}
