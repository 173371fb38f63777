//! The slices of one NIC: queued in order, posted against credits, taken back when they end.

use std::collections::VecDeque;

/// The first pause of a flow whose peer's queue was full, in nanoseconds; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: u64 = 20_000;
const LONGEST_PAUSE: u64 = 2_000_000;

/// Names a slice that has been taken out of the queue to be posted, until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u32);

impl Token {
    /// The token as a number, less than the depth of its queue.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The inverse of [`raw`](Self::raw). A number that was never a token names no slice.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
}

/// Queue and credits of one NIC.
///
/// Slices of one *flow* (one peer, to this NIC) are posted in the order in which they were pushed; flows take turns, so
/// that a peer that cannot take more does not hold up the others. Posted slices hold a credit each until they end.
#[derive(Debug)]
pub struct Queue<T> {
    depth: usize,
    window_bytes: u64,
    slots: Vec<Option<Entry<T>>>,
    free: Vec<u32>,
    in_flight_bytes: u64,
    queued: usize,
    queued_bytes: u64,
    flows: Vec<Flow<T>>,
    /// Flows that have slices and are not paused, in turn.
    ready: VecDeque<u32>,
    /// Flows whose provider's queue was full.
    paused: Vec<u32>,
    closed: bool,
}

#[derive(Debug)]
struct Entry<T> {
    flow: u32,
    bytes: u64,
    item: T,
}

#[derive(Debug)]
struct Flow<T> {
    waiting: VecDeque<(u64, T)>,
    state: FlowState,
    /// The pause that comes next.
    pause: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowState {
    /// Nothing to post.
    Idle,
    /// In `ready`.
    Ready,
    /// In `paused`, until then or until something completes.
    Paused { until: u64 },
}

impl<T> Flow<T> {
    const fn new() -> Self {
        Self { waiting: VecDeque::new(), state: FlowState::Idle, pause: FIRST_PAUSE }
    }
}

impl<T> Queue<T> {
    /// For a NIC that takes `depth` operations at a time; at most `window_bytes` are outstanding unless it is one slice.
    #[must_use]
    pub fn new(depth: usize, window_bytes: u64) -> Self {
        let depth = depth.clamp(1, 1 << 16);
        Self {
            depth,
            window_bytes: window_bytes.max(1),
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth as u32).rev().collect(),
            in_flight_bytes: 0,
            queued: 0,
            queued_bytes: 0,
            flows: Vec::new(),
            ready: VecDeque::new(),
            paused: Vec::new(),
            closed: false,
        }
    }

    /// Operations that the NIC takes at a time.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// Slices posted and not ended. Never more than [`depth`](Self::depth).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.depth - self.free.len()
    }

    /// Bytes of the slices posted and not ended.
    #[must_use]
    pub const fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Slices waiting.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.queued
    }

    /// Bytes of the slices waiting.
    #[must_use]
    pub const fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// While closed, nothing is handed out to be posted; slices in flight end as usual.
    pub const fn set_closed(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// Queues a slice of a flow.
    pub fn push(&mut self, flow: u32, bytes: u64, item: T) {
        let index = flow as usize;
        while self.flows.len() <= index {
            self.flows.push(Flow::new());
        }
        self.flows[index].waiting.push_back((bytes, item));
        self.queued += 1;
        self.queued_bytes += bytes;
        self.wake(flow);
    }

    fn wake(&mut self, flow: u32) {
        let state = &mut self.flows[flow as usize].state;
        if *state == FlowState::Idle {
            *state = FlowState::Ready;
            self.ready.push_back(flow);
        }
    }

    /// Takes the next slice that may be posted now, with a credit. It must be answered with [`posted`](Self::posted),
    /// [`again`](Self::again) or [`end`](Self::end) before the next one is taken.
    pub fn next(&mut self, now: u64) -> Option<Token> {
        if self.closed || self.free.is_empty() {
            return None;
        }
        if !self.paused.is_empty() {
            self.unpause(|until| until <= now);
        }
        let flow = *self.ready.front()?;
        let (bytes, _) = *self.flows[flow as usize].waiting.front().map(|(b, _)| (*b, ())).as_ref()?;
        if self.in_flight_bytes > 0 && self.in_flight_bytes.saturating_add(bytes) > self.window_bytes {
            return None;
        }
        let slot = self.free.pop()?;
        let (bytes, item) = self.flows[flow as usize].waiting.pop_front()?;
        self.queued -= 1;
        self.queued_bytes -= bytes;
        self.in_flight_bytes += bytes;
        self.slots[slot as usize] = Some(Entry { flow, bytes, item });
        Some(Token(slot))
    }

    /// The slice was accepted.
    pub fn posted(&mut self, token: Token) {
        let Some(flow) = self.flow_of(token) else { return };
        self.flows[flow as usize].pause = FIRST_PAUSE;
        self.rotate(flow);
    }

    /// There was no room for it: it goes back to the head of its flow, which waits until something completes, or a little.
    pub fn again(&mut self, token: Token, now: u64) {
        let Some(entry) = self.take(token) else { return };
        let flow = &mut self.flows[entry.flow as usize];
        flow.waiting.push_front((entry.bytes, entry.item));
        self.queued += 1;
        self.queued_bytes += entry.bytes;
        let until = now.saturating_add(flow.pause);
        flow.pause = (flow.pause * 2).min(LONGEST_PAUSE);
        flow.state = FlowState::Paused { until };
        self.drop_front(entry.flow);
        self.paused.push(entry.flow);
    }

    /// The slice has ended, one way or another (or will not be posted at all); its credit is free again. `None` if there
    /// is no such slice.
    pub fn end(&mut self, token: Token) -> Option<T> {
        let entry = self.take(token)?;
        // It was at the head of the line if it has not been posted; then the others of its flow have their turn now.
        if self.ready.front() == Some(&entry.flow) && self.flows[entry.flow as usize].waiting.is_empty() {
            self.rotate(entry.flow);
        }
        self.unpause(|_| true);
        Some(entry.item)
    }

    /// A slice that has been taken and not ended.
    #[must_use]
    pub fn get(&self, token: Token) -> Option<&T> {
        self.slots.get(token.0 as usize)?.as_ref().map(|entry| &entry.item)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        self.slots.get_mut(token.0 as usize)?.as_mut().map(|entry| &mut entry.item)
    }

    /// The slices in flight, with their tokens.
    pub fn flying(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| Some((Token(i as u32), &slot.as_ref()?.item)))
    }

    /// When the first paused flow may go on, if anything only waits for that.
    #[must_use]
    pub fn wake_at(&self) -> Option<u64> {
        self.paused
            .iter()
            .filter_map(|&flow| match self.flows[flow as usize].state {
                FlowState::Paused { until } => Some(until),
                _ => None,
            })
            .min()
    }

    /// Takes waiting slices away for which `which` holds, up to `bytes` in total, the last of each flow first: what is taken
    /// from the end changes nothing for the slices that stay. For another NIC that has nothing to do, and for what has been
    /// cancelled.
    pub fn take_waiting(
        &mut self,
        bytes: u64,
        mut which: impl FnMut(&T) -> bool,
        mut taken: impl FnMut(u32, u64, T),
    ) {
        let mut budget = bytes;
        for flow in 0..self.flows.len() {
            let waiting = &mut self.flows[flow].waiting;
            let mut at = waiting.len();
            while at > 0 && budget > 0 {
                at -= 1;
                if waiting.get(at).is_some_and(|(_, item)| which(item))
                    && let Some((bytes, item)) = waiting.remove(at)
                {
                    self.queued -= 1;
                    self.queued_bytes -= bytes;
                    budget = budget.saturating_sub(bytes.max(1));
                    taken(flow as u32, bytes, item);
                }
            }
            if self.flows[flow].waiting.is_empty() {
                self.settle(flow as u32);
            }
            if budget == 0 {
                break;
            }
        }
    }

    fn take(&mut self, token: Token) -> Option<Entry<T>> {
        let entry = self.slots.get_mut(token.0 as usize)?.take()?;
        self.free.push(token.0);
        self.in_flight_bytes -= entry.bytes;
        Some(entry)
    }

    fn flow_of(&self, token: Token) -> Option<u32> {
        Some(self.slots.get(token.0 as usize)?.as_ref()?.flow)
    }

    /// The flow at the head of the line goes to its end, or out of it if it has nothing more.
    fn rotate(&mut self, flow: u32) {
        if self.ready.front() != Some(&flow) {
            return;
        }
        self.ready.pop_front();
        let entry = &mut self.flows[flow as usize];
        if entry.waiting.is_empty() {
            entry.state = FlowState::Idle;
        } else {
            self.ready.push_back(flow);
        }
    }

    fn drop_front(&mut self, flow: u32) {
        if self.ready.front() == Some(&flow) {
            self.ready.pop_front();
        }
    }

    /// A flow that has nothing waiting leaves every list.
    fn settle(&mut self, flow: u32) {
        let state = std::mem::replace(&mut self.flows[flow as usize].state, FlowState::Idle);
        match state {
            FlowState::Idle => {}
            FlowState::Ready => self.ready.retain(|&f| f != flow),
            FlowState::Paused { .. } => self.paused.retain(|&f| f != flow),
        }
    }

    fn unpause(&mut self, which: impl Fn(u64) -> bool) {
        let mut at = 0;
        while at < self.paused.len() {
            let flow = self.paused[at];
            match self.flows[flow as usize].state {
                FlowState::Paused { until } if !which(until) => at += 1,
                _ => {
                    self.paused.swap_remove(at);
                    self.flows[flow as usize].state = FlowState::Ready;
                    self.ready.push_back(flow);
                }
            }
        }
    }
}
