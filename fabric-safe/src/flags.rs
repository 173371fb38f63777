//! The words of bits that choose and describe what endpoints do.

use bitflags::bitflags;
use fabric_sys as sys;

bitflags! {
    /// What an endpoint can be asked to do (`fi_info.caps`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Capabilities: u64 {
        /// Messages: send and receive.
        const MSG = sys::FI_MSG;
        /// Remote memory access: read and write.
        const RMA = sys::FI_RMA;
        /// Messages that are matched by a tag.
        const TAGGED = sys::FI_TAGGED;
        /// Atomic operations on remote memory.
        const ATOMIC = sys::FI_ATOMIC;
        /// Reads what peers offer. With neither this nor its three siblings given, RMA and ATOMIC mean all four.
        const READ = sys::FI_READ;
        /// Writes to what peers offer.
        const WRITE = sys::FI_WRITE;
        /// Receives messages.
        const RECV = sys::FI_RECV;
        /// Sends messages.
        const SEND = sys::FI_SEND;
        /// Lets peers read.
        const REMOTE_READ = sys::FI_REMOTE_READ;
        /// Lets peers write.
        const REMOTE_WRITE = sys::FI_REMOTE_WRITE;
        /// One receive can take several messages. (Not used by this crate: each operation ends once.)
        const MULTI_RECV = sys::FI_MULTI_RECV;
        /// Operations on device memory.
        const HMEM = sys::FI_HMEM;
        /// Peers on the same host can be reached.
        const LOCAL_COMM = sys::FI_LOCAL_COMM;
        /// Peers on other hosts can be reached.
        const REMOTE_COMM = sys::FI_REMOTE_COMM;
        /// Completions of receives say who sent.
        const SOURCE = sys::FI_SOURCE;
        /// Receives can be limited to one sender.
        const DIRECTED_RECV = sys::FI_DIRECTED_RECV;
        /// Counters at the target count remote reads and writes.
        const RMA_EVENT = sys::FI_RMA_EVENT;
        const _ = !0;
    }
}

bitflags! {
    /// What the provider asks of its users (`fi_info.mode`). This crate takes care of all that it accepts.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Mode: u64 {
        /// Operations carry scratch space for the provider.
        const CONTEXT = sys::FI_CONTEXT;
        /// Operations carry twice as much scratch space.
        const CONTEXT2 = sys::FI_CONTEXT2;
        /// Immediate values use up a posted receive.
        const RX_CQ_DATA = sys::FI_RX_CQ_DATA;
        /// Buffers begin with a prefix. Not accepted.
        const MSG_PREFIX = sys::FI_MSG_PREFIX;
        /// Segment lists stay until the operation ends. Not accepted.
        const ASYNC_IOV = sys::FI_ASYNC_IOV;
        const _ = !0;
    }
}

bitflags! {
    /// How memory is registered and addressed (`fi_domain_attr.mr_mode`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MemoryMode: i32 {
        /// Local buffers must be registered.
        const LOCAL = sys::FI_MR_LOCAL;
        /// Keys are longer than 64 bits.
        const RAW = sys::FI_MR_RAW;
        /// Peers use virtual addresses; otherwise offsets from the start of the region.
        const VIRT_ADDR = sys::FI_MR_VIRT_ADDR;
        /// Memory must be there (allocated) when it is registered.
        const ALLOCATED = sys::FI_MR_ALLOCATED;
        /// The provider chooses keys; otherwise we do.
        const PROV_KEY = sys::FI_MR_PROV_KEY;
        /// Regions belong to an endpoint.
        const ENDPOINT = sys::FI_MR_ENDPOINT;
        /// Device memory must be registered.
        const HMEM = sys::FI_MR_HMEM;
        const _ = !0;
    }
}

bitflags! {
    /// What a region may be used for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u64 {
        /// Source of messages.
        const SEND = sys::FI_SEND;
        /// Target of receives.
        const RECV = sys::FI_RECV;
        /// Target of our own reads, and of results of our own atomic operations.
        const READ = sys::FI_READ;
        /// Source of our own writes and of operands of our own atomic operations.
        const WRITE = sys::FI_WRITE;
        /// Peers may read.
        const REMOTE_READ = sys::FI_REMOTE_READ;
        /// Peers may write.
        const REMOTE_WRITE = sys::FI_REMOTE_WRITE;

        /// Everything on this side, nothing for peers.
        const LOCAL = Self::SEND.bits() | Self::RECV.bits() | Self::READ.bits() | Self::WRITE.bits();
        /// Everything that does not change the memory: what read-only memory can be registered for.
        const SOURCE = Self::SEND.bits() | Self::WRITE.bits() | Self::REMOTE_READ.bits();
        /// Everything.
        const ALL = Self::LOCAL.bits() | Self::REMOTE_READ.bits() | Self::REMOTE_WRITE.bits();
    }
}

impl Access {
    /// Whether any of the uses changes the memory.
    pub fn writes(self) -> bool {
        self.intersects(Access::RECV | Access::READ | Access::REMOTE_WRITE)
    }
}

bitflags! {
    /// Wishes about one operation.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct PostFlags: u64 {
        /// Another operation follows at once: the provider may wait for it before it rings the card's doorbell. The last one of
        /// a batch must not carry it.
        const MORE = sys::FI_MORE;
        /// Complete when the bytes are visible at the target. Writes do so by themselves where the provider offers it.
        const DELIVERY_COMPLETE = sys::FI_DELIVERY_COMPLETE;
        /// Complete when the operation is past anything that can go wrong on this side and in the network.
        const TRANSMIT_COMPLETE = sys::FI_TRANSMIT_COMPLETE;
        /// Complete when the local memory can be reused.
        const INJECT_COMPLETE = sys::FI_INJECT_COMPLETE;
        /// Start after all earlier operations to the same peer have completed. Few providers offer it.
        const FENCE = sys::FI_FENCE;
    }
}

impl PostFlags {
    /// The flags that choose when an operation counts as complete.
    pub(crate) const COMPLETION_LEVEL: PostFlags =
        PostFlags::DELIVERY_COMPLETE.union(PostFlags::TRANSMIT_COMPLETE).union(PostFlags::INJECT_COMPLETE);
}
