//! libfabric's words of bits as types, so that a capability cannot be passed as an access right.
//!
//! The plain constants (`FI_MSG`, …) are there as well, for code that follows the C manual. In every type, bits that have no
//! name here are kept: providers define some of their own, and libfabric adds new ones.

use core::ffi::c_int;

use bitflags::bitflags;

use crate::bindings::*;

bitflags! {
    /// What an endpoint, or a whole domain, can do: `fi_info.caps`, `fi_tx_attr.caps`, `fi_domain_attr.caps`.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Caps: u64 {
        /// Messages.
        const MSG = FI_MSG;
        /// Remote memory access.
        const RMA = FI_RMA;
        /// Tagged messages.
        const TAGGED = FI_TAGGED;
        /// Atomic operations on remote memory.
        const ATOMIC = FI_ATOMIC;
        /// Multicast groups.
        const MULTICAST = FI_MULTICAST;
        /// Collective operations.
        const COLLECTIVE = FI_COLLECTIVE;
        /// Initiates reads.
        const READ = FI_READ;
        /// Initiates writes.
        const WRITE = FI_WRITE;
        /// Receives messages.
        const RECV = FI_RECV;
        /// Sends messages.
        const SEND = FI_SEND;
        /// Is the target of reads.
        const REMOTE_READ = FI_REMOTE_READ;
        /// Is the target of writes.
        const REMOTE_WRITE = FI_REMOTE_WRITE;
        /// A posted receive can take several messages.
        const MULTI_RECV = FI_MULTI_RECV;
        /// Operations can be triggered by others.
        const TRIGGER = FI_TRIGGER;
        /// Operations can be made to wait for earlier ones.
        const FENCE = FI_FENCE;
        /// User-chosen source identifiers of the address vector.
        const AV_USER_ID = FI_AV_USER_ID;
        /// Works together with another provider.
        const PEER = FI_PEER;
        /// Tagged receives can be limited to one source.
        const TAGGED_DIRECTED_RECV = FI_TAGGED_DIRECTED_RECV;
        /// A posted tagged receive can take several messages.
        const TAGGED_MULTI_RECV = FI_TAGGED_MULTI_RECV;
        /// Device memory.
        const HMEM = FI_HMEM;
        /// Directed receives fail when the source leaves.
        const EXACT_DIRECTED_RECV = FI_EXACT_DIRECTED_RECV;
        /// Persistent memory as a target.
        const RMA_PMEM = FI_RMA_PMEM;
        /// Messages from unknown sources are reported as errors with the raw address.
        const SOURCE_ERR = FI_SOURCE_ERR;
        /// Reaches endpoints on the same host.
        const LOCAL_COMM = FI_LOCAL_COMM;
        /// Reaches endpoints on other hosts.
        const REMOTE_COMM = FI_REMOTE_COMM;
        /// The address vector can be shared between processes.
        const SHARED_AV = FI_SHARED_AV;
        /// Counters and events at the target of remote accesses.
        const RMA_EVENT = FI_RMA_EVENT;
        /// Receive completions say where the message came from.
        const SOURCE = FI_SOURCE;
        /// Receive contexts can be addressed one by one.
        const NAMED_RX_CTX = FI_NAMED_RX_CTX;
        /// Receives can be limited to one source.
        const DIRECTED_RECV = FI_DIRECTED_RECV;
        const _ = !0;
    }

    /// What the provider demands of the program: `fi_info.mode`.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Mode: u64 {
        /// The context of an operation is a [`fi_context`] (32 bytes) that the provider may use until the end.
        const CONTEXT = FI_CONTEXT;
        /// The context of an operation is a [`fi_context2`] (64 bytes) that the provider may use until the end.
        const CONTEXT2 = FI_CONTEXT2;
        /// Message buffers begin with room for the provider's header.
        const MSG_PREFIX = FI_MSG_PREFIX;
        /// Arrays of buffers stay valid until the operation ends.
        const ASYNC_IOV = FI_ASYNC_IOV;
        /// A remote write with data consumes a posted receive.
        const RX_CQ_DATA = FI_RX_CQ_DATA;
        const _ = !0;
    }

    /// How memory is registered and addressed: `fi_domain_attr.mr_mode`.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct MrMode: c_int {
        /// Local buffers are registered, and operations take their descriptors.
        const LOCAL = FI_MR_LOCAL;
        /// Keys are longer than 64 bits.
        const RAW = FI_MR_RAW;
        /// Peers address a region by virtual addresses (otherwise by offsets).
        const VIRT_ADDR = FI_MR_VIRT_ADDR;
        /// Memory must exist when it is registered.
        const ALLOCATED = FI_MR_ALLOCATED;
        /// The provider chooses the keys (otherwise the program requests them).
        const PROV_KEY = FI_MR_PROV_KEY;
        /// The program tells when pages behind a region change.
        const MMU_NOTIFY = FI_MR_MMU_NOTIFY;
        /// Regions that raise events at the target are marked so at registration.
        const RMA_EVENT = FI_MR_RMA_EVENT;
        /// Regions are bound to an endpoint and then enabled.
        const ENDPOINT = FI_MR_ENDPOINT;
        /// Device buffers are registered even for local use.
        const HMEM = FI_MR_HMEM;
        /// Buffers of collective operations are registered.
        const COLLECTIVE = FI_MR_COLLECTIVE;
        const _ = !0;
    }

    /// Flags of an operation (`fi_writemsg`, …) and of an endpoint's default (`fi_tx_attr.op_flags`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct OpFlags: u64 {
        /// The receive takes several messages.
        const MULTI_RECV = FI_MULTI_RECV;
        /// The `data` of the operation goes to the target's completion.
        const REMOTE_CQ_DATA = FI_REMOTE_CQ_DATA;
        /// Another operation follows at once: the doorbell may wait for it.
        const MORE = FI_MORE;
        /// Looks for a tagged message without receiving it.
        const PEEK = FI_PEEK;
        /// The operation is triggered by another.
        const TRIGGER = FI_TRIGGER;
        /// Waits for all earlier operations to the same peer.
        const FENCE = FI_FENCE;
        /// Reports a completion although the queue was bound with `FI_SELECTIVE_COMPLETION`.
        const COMPLETION = FI_COMPLETION;
        /// The buffers may be reused when the call returns.
        const INJECT = FI_INJECT;
        /// Complete as soon as the buffers may be reused.
        const INJECT_COMPLETE = FI_INJECT_COMPLETE;
        /// Complete when the operation has left this side for good.
        const TRANSMIT_COMPLETE = FI_TRANSMIT_COMPLETE;
        /// Complete when the data is visible at the target.
        const DELIVERY_COMPLETE = FI_DELIVERY_COMPLETE;
        /// Complete when the data is durable at the target.
        const COMMIT_COMPLETE = FI_COMMIT_COMPLETE;
        /// Complete when the message has met its receive.
        const MATCH_COMPLETE = FI_MATCH_COMPLETE;
        /// The target is a multicast group.
        const MULTICAST = FI_MULTICAST;
        /// Receives a message that was found by [`PEEK`](Self::PEEK).
        const CLAIM = FI_CLAIM;
        /// Throws away a message that was found by [`PEEK`](Self::PEEK).
        const DISCARD = FI_DISCARD;
        const _ = !0;
    }

    /// What a memory region may be used for: `access` of `fi_mr_reg`.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Access: u64 {
        /// Source of sent messages.
        const SEND = FI_SEND;
        /// Buffer of received messages.
        const RECV = FI_RECV;
        /// Where own reads put what they fetch.
        const READ = FI_READ;
        /// Source of own writes.
        const WRITE = FI_WRITE;
        /// Peers may read it.
        const REMOTE_READ = FI_REMOTE_READ;
        /// Peers may write it.
        const REMOTE_WRITE = FI_REMOTE_WRITE;
        /// Collective operations.
        const COLLECTIVE = FI_COLLECTIVE;
        const _ = !0;
    }

    /// What completed: `flags` of a completion entry.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct CqFlags: u64 {
        /// An own send.
        const SEND = FI_SEND;
        /// A received message.
        const RECV = FI_RECV;
        /// A message, sent or received.
        const MSG = FI_MSG;
        /// A tagged message.
        const TAGGED = FI_TAGGED;
        /// Remote memory access, own or of a peer.
        const RMA = FI_RMA;
        /// An atomic operation.
        const ATOMIC = FI_ATOMIC;
        /// A collective operation.
        const COLLECTIVE = FI_COLLECTIVE;
        /// An own read.
        const READ = FI_READ;
        /// An own write.
        const WRITE = FI_WRITE;
        /// A peer has read here.
        const REMOTE_READ = FI_REMOTE_READ;
        /// A peer has written here.
        const REMOTE_WRITE = FI_REMOTE_WRITE;
        /// `data` of the entry is valid.
        const REMOTE_CQ_DATA = FI_REMOTE_CQ_DATA;
        /// The buffer of a multi-receive is used up.
        const MULTI_RECV = FI_MULTI_RECV;
        /// More packets of the same message follow.
        const MORE = FI_MORE;
        /// A message found by peeking can be claimed.
        const CLAIM = FI_CLAIM;
        const _ = !0;
    }

    /// Flags of a registration (`fi_mr_regattr`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct RegFlags: u64 {
        /// The attributes describe a dmabuf (API 1.20 and later).
        const DMABUF = FI_MR_DMABUF;
        /// The region serves one remote operation.
        const SINGLE_USE = FI_MR_SINGLE_USE;
        /// The device memory can be addressed by the CPU.
        const HMEM_HOST_ALLOC = FI_HMEM_HOST_ALLOC;
        /// The device memory cannot be addressed by the CPU.
        const HMEM_DEVICE_ONLY = FI_HMEM_DEVICE_ONLY;
        /// Remote accesses raise events or count.
        const RMA_EVENT = FI_RMA_EVENT;
        /// Persistent memory.
        const RMA_PMEM = FI_RMA_PMEM;
        const _ = !0;
    }
}
