//! What can be told to the provider, and what it counts.

/// The calls whose answers can be scripted. Each has a queue of answers of its own; without one it does the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Call {
    /// Sends, reads, writes and atomic operations. Usually completes at the next read of the queue; `-FI_EAGAIN` when
    /// [`DEPTH`](crate::DEPTH) are outstanding.
    Post,
    /// Receives. Usually wait for ever, because nobody sends.
    Receive,
    /// Injected sends and writes. Usually accepted; they have no completion.
    Inject,
    /// Reads of the completion queue. Usually as many entries as there are.
    Read,
    /// Reads of an error entry.
    ReadError,
    /// Reads of an event queue. Usually what has been written to it.
    Event,
    /// Registrations.
    Register,
    /// Insertions into an address vector.
    Insert,
    /// Removals from an address vector.
    Remove,
    /// Opening anything.
    Open,
    /// Binding anything.
    Bind,
    /// Enabling an endpoint or a region.
    Enable,
    /// Cancelling. Usually the operation ends with `FI_ECANCELED`.
    Cancel,
    /// Closing an endpoint. Usually what is outstanding is forgotten without a completion.
    CloseEndpoint,
    /// Closing a region.
    CloseRegion,
    /// Closing anything else.
    Close,
}

impl Call {
    pub(crate) const COUNT: usize = Call::Close as usize + 1;
}

/// How a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, u32)]
pub enum Answer {
    /// As usual.
    Usual,
    /// The call returns minus this, whether it is an errno or not.
    Fail(i32),
    /// A posted operation completes well, after this many more reads of the queue.
    Complete {
        /// Reads that find nothing before.
        after: u32,
    },
    /// A posted operation completes with an error.
    Error {
        /// `err` of the entry.
        errno: i32,
        /// `prov_errno` of the entry.
        provider_errno: i32,
        /// Reads that find nothing before.
        after: u32,
    },
    /// A posted operation never completes.
    Never,
    /// A posted operation completes well, twice.
    Twice,
    /// A read returns at most this many entries; an insertion inserts at most this many addresses.
    Limit(u32),
    /// A read returns, before anything else, an entry with this context, which was never posted.
    Stray(u64),
    /// A call that opens or closes something does not return until the answers are forgotten; then it does the usual.
    Hang,
}

/// What has happened and what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// Posts and receives that were accepted, injected ones left out.
    pub accepted: u64,
    /// Posts, receives and injections that were refused.
    pub refused: u64,
    /// Injections that were accepted.
    pub injected: u64,
    /// Entries handed out for accepted operations, errors included, second ones left out.
    pub completed: u64,
    /// Writes and reads that were accepted with `FI_MORE`.
    pub promised: u64,
    /// Reads of a queue while the latest operation of an endpoint was one of those: a card has not been told of it yet.
    pub untold: u64,
    /// Operations forgotten because their endpoint was closed.
    pub forgotten: u64,
    /// Accepted operations that have neither completed nor been forgotten.
    pub outstanding: u64,
    /// Fabrics, domains, queues, vectors, endpoints that are open.
    pub objects: u64,
    /// Regions that are open.
    pub regions: u64,
}

/// A read or write that was accepted: which way it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Placed {
    /// The endpoint: they are numbered from 0 in the order in which they were opened.
    pub endpoint: u64,
    /// The entry of the address vector.
    pub peer: u64,
    /// First remote address.
    pub address: u64,
    /// The remote key.
    pub key: u64,
    /// Whether it carries an immediate.
    pub immediate: bool,
}

/// What the caller did wrong. All zero with a correct caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Faults {
    /// Operation contexts that were changed before the operation had ended.
    pub contexts_changed: u64,
    /// Contexts that were used for a second operation before the first one had ended.
    pub contexts_reused: u64,
    /// Local ranges that were not inside an open region.
    pub unregistered: u64,
    /// Regions that were closed while an operation used them.
    pub regions_closed_in_use: u64,
    /// Completions that did not fit into their queue.
    pub overruns: u64,
    /// Calls on an object in the wrong state: posts before enabling, queues closed before their endpoints.
    pub wrong_state: u64,
}

impl Faults {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.contexts_changed
            + self.contexts_reused
            + self.unregistered
            + self.regions_closed_in_use
            + self.overruns
            + self.wrong_state
    }
}
