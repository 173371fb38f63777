//! What a completion queue tells, and the batch that it is read into.

use core::ffi::c_void;
use core::fmt;

use fabric_sys as sys;

use crate::error::OperationError;
use crate::operations::Ended;

/// What kind of operation a completion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
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
    fn from_raw(raw: u8) -> OperationKind {
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

/// How much a completion tells. Longer formats contain the shorter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CompletionFormat {
    /// Which operation has ended, and nothing else.
    Context,
    /// And of what kind it was, and how many bytes were received.
    Message,
    /// And immediate values.
    Data,
    /// And tags.
    Tagged,
}

impl CompletionFormat {
    pub(crate) fn raw(self) -> sys::fi_cq_format {
        match self {
            CompletionFormat::Context => sys::FI_CQ_FORMAT_CONTEXT,
            CompletionFormat::Message => sys::FI_CQ_FORMAT_MSG,
            CompletionFormat::Data => sys::FI_CQ_FORMAT_DATA,
            CompletionFormat::Tagged => sys::FI_CQ_FORMAT_TAGGED,
        }
    }

    #[inline(always)]
    fn entry_bytes(self) -> usize {
        match self {
            CompletionFormat::Context => size_of::<sys::fi_cq_entry>(),
            CompletionFormat::Message => size_of::<sys::fi_cq_msg_entry>(),
            CompletionFormat::Data => size_of::<sys::fi_cq_data_entry>(),
            CompletionFormat::Tagged => size_of::<sys::fi_cq_tagged_entry>(),
        }
    }
}

/// The end of an operation, or something that a peer did.
///
/// Details that the provider wrote are read when they are asked for, not before.
pub struct Completion {
    token: u64,
    source: u64,
    /// What the provider wrote, in the format below, or the [`Failure`]. Both are in buffers of the [`CompletionBatch`] that the
    /// completion is in, and stay as they are until the batch is emptied: completions are only ever lent out of it.
    details: *const c_void,
    /// The format of the provider's entry; `None` for a [`Failure`].
    format: Option<CompletionFormat>,
    /// The [`OperationKind`]'s number.
    kind: u8,
    /// Whether `token` means anything.
    ours: bool,
}

// SAFETY: the pointer is only read through, and nobody writes there as long as the completion can be reached.
unsafe impl Send for Completion {}
// SAFETY: as above.
unsafe impl Sync for Completion {}

/// What is known of an operation that has failed.
pub(crate) struct Failure {
    pub(crate) flags: u64,
    pub(crate) len_bytes: usize,
    pub(crate) tag: u64,
    pub(crate) error: OperationError,
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
        match OperationKind::from_raw(self.kind) {
            OperationKind::Receive if is_remote_write(self.flags()) => OperationKind::RemoteWrite,
            kind => kind,
        }
    }

    /// Whether it went well.
    ///
    /// # Errors
    ///
    /// What the provider told, or that the endpoint was closed.
    #[inline]
    pub fn result(&self) -> Result<(), &OperationError> {
        match self.failure() {
            None => Ok(()),
            Some(failure) => Err(&failure.error),
        }
    }

    /// Bytes received, where the queue's format carries it ([`CompletionFormat::Message`] and longer). For our own sends,
    /// reads and writes providers leave it at 0 or repeat what was asked for.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        match self.failure() {
            Some(failure) => failure.len_bytes,
            None => self.entry::<sys::fi_cq_msg_entry>().map_or(0, |entry| entry.len),
        }
    }

    /// The immediate value that came with a message or a peer's write.
    #[inline]
    pub fn immediate(&self) -> Option<u64> {
        let entry = self.entry::<sys::fi_cq_data_entry>()?;
        (entry.flags & sys::FI_REMOTE_CQ_DATA != 0).then_some(entry.data)
    }

    /// The tag of a tagged message received, where the queue's format carries it.
    #[inline]
    pub fn tag(&self) -> Option<u64> {
        let tag = match self.failure() {
            Some(failure) => failure.tag,
            None => self.entry::<sys::fi_cq_tagged_entry>()?.tag,
        };
        (self.flags() & sys::FI_TAGGED != 0 && self.kind() == OperationKind::Receive).then_some(tag)
    }

    /// Who sent, if the queue was opened with [`sources`](crate::CompletionQueueOptions::sources) and the sender is in the
    /// address vector.
    #[inline]
    pub fn source(&self) -> Option<SourceAddress> {
        (self.source != sys::FI_ADDR_NOTAVAIL).then_some(SourceAddress(self.source))
    }

    #[inline]
    fn flags(&self) -> u64 {
        match self.failure() {
            Some(failure) => failure.flags,
            None => self.entry::<sys::fi_cq_msg_entry>().map_or(0, |entry| entry.flags),
        }
    }

    #[inline]
    fn failure(&self) -> Option<&Failure> {
        // SAFETY: it is a failure, and the failure is there as long as the completion is (see the field).
        self.format.is_none().then(|| unsafe { &*self.details.cast::<Failure>() })
    }

    /// The provider's entry, if its format reaches that far.
    #[inline]
    fn entry<T: EntryPart>(&self) -> Option<&T> {
        // SAFETY: formats begin with the shorter ones, so an entry of at least T's format can be read as a T; it is there as
        // long as the completion is (see the field).
        self.format.is_some_and(|format| format >= T::FORMAT).then(|| unsafe { &*self.details.cast::<T>() })
    }
}

/// The beginning of an entry, as far as one of the formats goes.
trait EntryPart {
    const FORMAT: CompletionFormat;
}

impl EntryPart for sys::fi_cq_msg_entry {
    const FORMAT: CompletionFormat = CompletionFormat::Message;
}
impl EntryPart for sys::fi_cq_data_entry {
    const FORMAT: CompletionFormat = CompletionFormat::Data;
}
impl EntryPart for sys::fi_cq_tagged_entry {
    const FORMAT: CompletionFormat = CompletionFormat::Tagged;
}

/// Whether the flags of an entry are those of a peer's write with an immediate value.
fn is_remote_write(flags: u64) -> bool {
    flags & sys::FI_REMOTE_CQ_DATA != 0
        && (flags & sys::FI_REMOTE_WRITE != 0
            || flags & sys::FI_RMA != 0 && flags & (sys::FI_MSG | sys::FI_TAGGED) == 0)
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("token", &self.token())
            .field("kind", &self.kind())
            .field("result", &self.result())
            .field("len_bytes", &self.len_bytes())
            .field("immediate", &self.immediate())
            .field("tag", &self.tag())
            .field("source", &self.source())
            .finish()
    }
}

/// Room for one reading of a completion queue. Allocated once, used for ever.
pub struct CompletionBatch {
    items: Vec<Completion>,
    /// Entries as the provider writes them; words, so that they are aligned. A vector, which unlike a box may be moved while
    /// there are pointers into it; never longer or shorter than at first.
    raw: Vec<u64>,
    /// Who sent, entry by entry.
    sources: Box<[u64]>,
    /// Boxed, so that they stay where they are when there are more.
    #[allow(clippy::vec_box)]
    failures: Vec<Box<Failure>>,
    capacity: usize,
}

/// Words in the longest kind of entry.
const ENTRY_WORDS: usize = size_of::<sys::fi_cq_tagged_entry>() / size_of::<u64>();

impl CompletionBatch {
    /// Room for `capacity` completions, at least one.
    pub fn new(capacity: usize) -> CompletionBatch {
        let capacity = capacity.max(1);
        CompletionBatch {
            items: Vec::with_capacity(capacity),
            raw: vec![0; capacity * ENTRY_WORDS],
            sources: vec![sys::FI_ADDR_NOTAVAIL; capacity].into_boxed_slice(),
            failures: Vec::new(),
            capacity,
        }
    }

    /// Completions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What the latest reading brought.
    #[inline]
    pub fn completions(&self) -> &[Completion] {
        &self.items
    }

    /// Forgets what the latest reading brought.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.items.clear();
        if !self.failures.is_empty() {
            self.failures.clear();
        }
    }

    /// Completions that still fit.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.capacity - self.items.len()
    }

    /// Buffers for the provider to write to, with room for `capacity` entries and sources. Only while the batch is empty.
    #[inline]
    pub(crate) fn buffers(&mut self) -> (*mut c_void, *mut u64) {
        debug_assert!(self.items.is_empty(), "completions look into the buffer");
        (self.raw.as_mut_ptr().cast(), self.sources.as_mut_ptr())
    }

    /// Adds the entries that the provider has written, each as what `end` makes of its context. Returns how many were neither
    /// the end of anything nor something that a peer did; those are not added.
    ///
    /// # Safety
    ///
    /// The batch is empty, and the provider has written `count` entries of this format, at most `capacity`, into the buffer,
    /// and as many sources if `sources`.
    #[inline(always)]
    pub(crate) unsafe fn add_entries(
        &mut self,
        count: usize,
        format: CompletionFormat,
        sources: bool,
        mut end: impl FnMut(*mut c_void) -> Option<Ended>,
    ) -> usize {
        let entry_bytes = format.entry_bytes();
        let mut details = self.raw.as_ptr().cast::<u8>();
        let mut room = self.items.spare_capacity_mut().iter_mut();
        let mut added = 0;
        for _ in 0..count {
            // SAFETY: inside the entries written; all formats begin with the context.
            let context = unsafe { details.cast::<*mut c_void>().read() };
            let mut completion = Completion {
                token: 0,
                source: sys::FI_ADDR_NOTAVAIL,
                details: details.cast(),
                format: Some(format),
                kind: OperationKind::RemoteWrite as u8,
                ours: false,
            };
            details = details.wrapping_add(entry_bytes);
            match end(context) {
                Some(ended) => {
                    completion.token = ended.token;
                    completion.kind = ended.kind;
                    completion.ours = true;
                }
                None if is_remote_write(completion.flags()) => {}
                None => continue,
            }
            let Some(room) = room.next() else { break };
            room.write(completion);
            added += 1;
        }
        // SAFETY: so many elements have just been written, from the first on.
        unsafe { self.items.set_len(added) };
        if sources {
            let first = self.raw.as_ptr() as usize;
            for item in &mut self.items {
                item.source = self.sources[(item.details as usize - first) / entry_bytes];
            }
        }
        count - added
    }

    /// Adds an operation that has failed, or an error of none.
    pub(crate) fn push_failure(&mut self, ended: Option<Ended>, failure: Failure) {
        self.failures.push(Box::new(failure));
        let details = self.failures.last().map_or(core::ptr::null(), |failure| &raw const **failure);
        self.push(Completion {
            token: ended.as_ref().map_or(0, |ended| ended.token),
            source: sys::FI_ADDR_NOTAVAIL,
            details: details.cast(),
            format: None,
            kind: ended.as_ref().map_or(OperationKind::Unknown as u8, |ended| ended.kind),
            ours: ended.is_some(),
        });
    }

    /// There is room: never more are read than fit.
    fn push(&mut self, completion: Completion) {
        if self.items.len() < self.items.capacity() {
            self.items.push(completion);
        }
    }
}

impl fmt::Debug for CompletionBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.items).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [CompletionFormat; 4] = [
        CompletionFormat::Context,
        CompletionFormat::Message,
        CompletionFormat::Data,
        CompletionFormat::Tagged,
    ];

    fn entry(context: usize, flags: u64) -> sys::fi_cq_tagged_entry {
        sys::fi_cq_tagged_entry {
            op_context: context as *mut c_void,
            flags,
            len: context * 10,
            buf: core::ptr::null_mut(),
            data: context as u64 * 100,
            tag: context as u64 * 1000,
        }
    }

    /// Reads entries as a provider would have written them. Contexts below ten are operations, of the kind given.
    fn read(
        batch: &mut CompletionBatch,
        format: CompletionFormat,
        entries: &[sys::fi_cq_tagged_entry],
        sources: bool,
        kind: OperationKind,
    ) -> usize {
        batch.clear();
        let (raw, from) = batch.buffers();
        for (index, entry) in entries.iter().enumerate() {
            // SAFETY: room for as many entries of the longest format as the batch has; shorter formats are beginnings of it.
            unsafe {
                let to = raw.cast::<u8>().add(index * format.entry_bytes());
                core::ptr::copy_nonoverlapping((&raw const *entry).cast::<u8>(), to, format.entry_bytes());
                *from.add(index) = 70 + index as u64;
            }
        }
        let end = |context: *mut c_void| {
            let context = context as u64;
            (context < 10).then_some(Ended { token: context + 500, kind: kind as u8 })
        };
        // SAFETY: just written.
        unsafe { batch.add_entries(entries.len(), format, sources, end) }
    }

    #[test]
    fn each_format_tells_what_it_has_and_no_more() {
        let receive = sys::FI_RECV | sys::FI_TAGGED | sys::FI_REMOTE_CQ_DATA;
        let mut batch = CompletionBatch::new(4);
        for format in FORMATS {
            let entries = [entry(1, receive), entry(2, receive)];
            assert_eq!(read(&mut batch, format, &entries, false, OperationKind::Receive), 0);
            // Moved, as a user may.
            batch = std::hint::black_box(batch);
            for (completion, context) in batch.completions().iter().zip([1, 2]) {
                assert_eq!(completion.token(), Some(context + 500));
                assert!(completion.result().is_ok() && completion.source().is_none());
                assert_eq!(completion.kind(), OperationKind::Receive);
                let since = |first, value| if format >= first { value } else { 0 };
                assert_eq!(completion.len_bytes() as u64, since(CompletionFormat::Message, context * 10));
                assert_eq!(completion.immediate().unwrap_or(0), since(CompletionFormat::Data, context * 100));
                assert_eq!(completion.tag().unwrap_or(0), since(CompletionFormat::Tagged, context * 1000));
            }
        }
    }

    #[test]
    fn what_peers_do_comes_without_a_token_or_uses_up_a_receive() {
        let written = sys::FI_REMOTE_CQ_DATA | sys::FI_REMOTE_WRITE | sys::FI_RMA;
        let mut batch = CompletionBatch::new(4);
        let entries = [entry(99, written), entry(98, sys::FI_RECV), entry(3, written)];
        let strays = read(&mut batch, CompletionFormat::Data, &entries, true, OperationKind::Receive);
        let told: Vec<_> = batch
            .completions()
            .iter()
            .map(|c| (c.kind(), c.token(), c.immediate(), c.source().map(|source| source.0)))
            .collect();
        // The one in the middle is nobody's; the sources stay with their entries.
        let remote = OperationKind::RemoteWrite;
        assert_eq!(strays, 1);
        assert_eq!(told, [(remote, None, Some(9900), Some(70)), (remote, Some(503), Some(300), Some(72))]);
    }

    #[test]
    fn failures_tell_theirs_and_go_with_the_batch() {
        let mut batch = CompletionBatch::new(2);
        for token in 0..3 {
            batch.clear();
            let error = OperationError {
                kind: crate::ErrorKind::Truncated,
                errno: crate::Errno::ETRUNC,
                provider_errno: 4,
                text: "too long".into(),
                overflow_bytes: 5,
                quiesced: true,
            };
            let failure = Failure { flags: sys::FI_RECV | sys::FI_TAGGED, len_bytes: 6, tag: 7, error };
            batch.push_failure(Some(Ended { token, kind: OperationKind::Receive as u8 }), failure);
            let [completion] = batch.completions() else { panic!("one failure") };
            assert_eq!(
                (completion.token(), completion.len_bytes(), completion.tag()),
                (Some(token), 6, Some(7))
            );
            assert_eq!(completion.result().unwrap_err().overflow_bytes(), 5);
            assert_eq!((completion.immediate(), batch.room()), (None, 1));
        }
    }
}
