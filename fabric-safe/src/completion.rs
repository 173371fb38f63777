//! What a completion queue tells, and the batch that it is read into.

use core::fmt;

use fabric_sys as sys;

use crate::error::OperationError;

/// What kind of operation a completion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum OperationKind {
    /// Something that we did not start and cannot name.
    Unknown = 0,
    /// A message sent.
    Send = 1,
    /// A message received.
    Receive = 2,
    /// A write to a peer's memory.
    Write = 3,
    /// A read of a peer's memory.
    Read = 4,
    /// An atomic operation on a peer's memory.
    Atomic = 5,
    /// A peer wrote to our memory, with an immediate value.
    RemoteWrite = 6,
}

impl OperationKind {
    #[inline]
    pub(crate) fn from_raw(raw: u32) -> OperationKind {
        match raw {
            1 => OperationKind::Send,
            2 => OperationKind::Receive,
            3 => OperationKind::Write,
            4 => OperationKind::Read,
            5 => OperationKind::Atomic,
            6 => OperationKind::RemoteWrite,
            _ => OperationKind::Unknown,
        }
    }
}

/// Who sent a message. Compares with [`Address::source`](crate::Address::source).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceAddress(pub(crate) u64);

/// The end of an operation, or something that a peer did.
pub struct Completion {
    pub(crate) token: u64,
    pub(crate) kind: OperationKind,
    /// Whether `token` means anything.
    pub(crate) ours: bool,
    pub(crate) flags: u64,
    pub(crate) len_bytes: usize,
    pub(crate) data: u64,
    pub(crate) tag: u64,
    pub(crate) source: u64,
    pub(crate) error: Option<Box<OperationError>>,
}

impl Completion {
    /// The token of the operation that has ended. `None` if it is not one of ours: a write of a peer with an immediate value
    /// that used up no receive, or an error that the provider could not attribute.
    #[inline]
    pub fn token(&self) -> Option<u64> {
        self.ours.then_some(self.token)
    }

    /// What has ended. [`OperationKind::RemoteWrite`] with a [`token`](Completion::token) means that the immediate value of a
    /// peer's write has used up a receive, which thereby has ended without a message.
    #[inline]
    pub fn kind(&self) -> OperationKind {
        self.kind
    }

    /// Whether it went well.
    ///
    /// # Errors
    ///
    /// What the provider told, or that the endpoint was closed.
    #[inline]
    pub fn result(&self) -> Result<(), &OperationError> {
        match &self.error {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Bytes received, where the queue's format carries it ([`CompletionFormat::Message`](crate::CompletionFormat::Message)
    /// and longer). For our own sends, reads and writes providers leave it at 0 or repeat what was asked for.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The immediate value that came with a message or a peer's write.
    #[inline]
    pub fn immediate(&self) -> Option<u64> {
        (self.flags & sys::FI_REMOTE_CQ_DATA != 0).then_some(self.data)
    }

    /// The tag of a tagged message received, where the queue's format carries it.
    #[inline]
    pub fn tag(&self) -> Option<u64> {
        (self.flags & sys::FI_TAGGED != 0 && self.kind == OperationKind::Receive).then_some(self.tag)
    }

    /// Who sent, if the queue was opened with [`sources`](crate::CompletionQueueOptions::sources) and the sender is in the
    /// address vector.
    #[inline]
    pub fn source(&self) -> Option<SourceAddress> {
        (self.source != sys::FI_ADDR_NOTAVAIL).then_some(SourceAddress(self.source))
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("token", &self.token())
            .field("kind", &self.kind)
            .field("result", &self.result())
            .field("len_bytes", &self.len_bytes)
            .field("immediate", &self.immediate())
            .field("tag", &self.tag())
            .field("source", &self.source())
            .finish()
    }
}

/// Room for one reading of a completion queue. Allocated once, used for ever.
pub struct CompletionBatch {
    /// Entries as the provider writes them; words, so that they are aligned.
    pub(crate) raw: Box<[u64]>,
    pub(crate) sources: Box<[u64]>,
    pub(crate) items: Vec<Completion>,
    /// Whether any of the items has something to drop.
    pub(crate) errors: bool,
    capacity: usize,
}

/// Words in the longest kind of entry.
const ENTRY_WORDS: usize = size_of::<sys::fi_cq_tagged_entry>() / size_of::<u64>();

impl CompletionBatch {
    /// Room for `capacity` completions, at least one.
    pub fn new(capacity: usize) -> CompletionBatch {
        let capacity = capacity.max(1);
        CompletionBatch {
            raw: vec![0; capacity * ENTRY_WORDS].into_boxed_slice(),
            sources: vec![sys::FI_ADDR_NOTAVAIL; capacity].into_boxed_slice(),
            items: Vec::with_capacity(capacity),
            errors: false,
            capacity,
        }
    }

    /// Completions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets what the latest reading brought.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.errors {
            self.items.clear();
            self.errors = false;
        } else {
            // SAFETY: no element has anything to drop, so shortening the vector is all that clearing does.
            unsafe { self.items.set_len(0) };
        }
    }

    /// Adds one, if there is room; there is, for as many as are read at a time.
    #[inline(always)]
    pub(crate) fn push(&mut self, completion: Completion) {
        let len = self.items.len();
        if let Some(room) = self.items.spare_capacity_mut().first_mut() {
            room.write(completion);
            // SAFETY: the element behind the last one has just been written.
            unsafe { self.items.set_len(len + 1) };
        }
    }

    /// What the latest reading brought.
    pub fn completions(&self) -> &[Completion] {
        &self.items
    }
}

impl fmt::Debug for CompletionBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.items).finish()
    }
}
