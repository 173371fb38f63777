//! The slices of one NIC: queued in order, posted against credits, taken back when they end.

/// The first pause of a flow whose peer's queue was full, in nanoseconds; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: u64 = 20_000;
const LONGEST_PAUSE: u64 = 2_000_000;

/// Names a slice that has been taken out of the queue to be posted, until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u32);

impl Token {
    /// The token as a number.
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

/// No slot.
const NONE: u32 = u32::MAX;

/// Queue and credits of one NIC.
///
/// Slices of one *flow* (one peer, to this NIC) are posted in the order in which they were pushed; flows take turns, so
/// that a peer that cannot take more does not hold up the others. Posted slices hold a credit each until they end.
///
/// A slice stays in its slot from the time that it is pushed until it ends: the lines of flows, and the list of free slots, are
/// links between slots. The memory for the most that there ever were is kept.
#[derive(Debug)]
pub struct Queue<T> {
    depth: usize,
    window_bytes: u64,
    slots: Vec<Slot<T>>,
    /// The first free slot.
    free: u32,
    /// The slot that has been taken and not answered yet.
    taken: u32,
    in_flight: usize,
    in_flight_bytes: u64,
    queued: usize,
    queued_bytes: u64,
    flows: Vec<Flow>,
    /// Flows that have slices and are not paused stand in line: the first of them, or no flow's number; and the last, if there is
    /// one.
    head: u32,
    tail: u32,
    /// Flows whose provider's queue was full.
    paused: Vec<u32>,
    /// Slices in flight that are enough: `depth`, or none while closed.
    limit: usize,
    /// The slots of one flow, while some are taken away.
    line: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    /// `None`: the slot is free.
    item: Option<T>,
    bytes: u64,
    flow: u32,
    /// The next one in the flow's line, or in the list of free ones.
    next: u32,
    /// It has a credit.
    flying: bool,
}

#[derive(Debug)]
struct Flow {
    /// The slots that wait, in order.
    first: u32,
    last: u32,
    /// Posted and not ended.
    flying: u32,
    state: FlowState,
    /// The pause that comes next.
    pause: u64,
    /// The next flow in line, while this one stands there.
    next: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowState {
    /// Nothing to post.
    Idle,
    /// In line.
    Ready,
    /// In `paused`, until then or until something completes.
    Paused { until: u64 },
}

impl Flow {
    const fn new() -> Self {
        Self { first: NONE, last: NONE, flying: 0, state: FlowState::Idle, pause: FIRST_PAUSE, next: NONE }
    }

    #[inline]
    const fn is_empty(&self) -> bool {
        self.first == NONE
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
            slots: Vec::with_capacity(depth),
            free: NONE,
            taken: NONE,
            in_flight: 0,
            in_flight_bytes: 0,
            queued: 0,
            queued_bytes: 0,
            flows: Vec::new(),
            head: NONE,
            tail: NONE,
            paused: Vec::new(),
            limit: depth,
            line: Vec::new(),
        }
    }

    /// Operations that the NIC takes at a time.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// Slices posted and not ended. Never more than [`depth`](Self::depth).
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Slices of one flow posted and not ended.
    #[must_use]
    pub fn in_flight_of(&self, flow: u32) -> usize {
        self.flows.get(flow as usize).map_or(0, |flow| flow.flying as usize)
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
        self.limit = if closed { 0 } else { self.depth };
    }

    /// Whether nothing can be posted, however much waits.
    #[inline]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.in_flight >= self.limit
    }

    /// Queues a slice of a flow.
    pub fn push(&mut self, flow: u32, bytes: u64, item: T) {
        self.push_all(flow, std::iter::once((bytes, item)));
    }

    /// Queues slices of a flow, in this order.
    #[inline]
    pub fn push_all(&mut self, flow: u32, items: impl Iterator<Item = (u64, T)>) {
        if self.flows.len() <= flow as usize {
            self.flows.resize_with(flow as usize + 1, Flow::new);
        }
        let has_free = (self.free as usize) < self.slots.len();
        let first = if has_free { self.free } else { self.slots.len() as u32 };
        let mut last = NONE;
        let (mut count, mut all_bytes) = (0, 0);
        for (bytes, item) in items {
            let index = self.free;
            let mut slot = Slot { item: Some(item), bytes, flow, next: NONE, flying: false };
            last = match self.slots.get_mut(index as usize) {
                Some(free) => {
                    // Free slots are linked: those taken in a row stay so.
                    slot.next = free.next;
                    self.free = free.next;
                    *free = slot;
                    index
                }
                None => {
                    let index = self.slots.len() as u32;
                    self.slots.push(slot);
                    if let Some(last) = self.slots.get_mut(last as usize) {
                        last.next = index;
                    }
                    index
                }
            };
            count += 1;
            all_bytes += bytes;
        }
        if count == 0 {
            return;
        }
        self.slots[last as usize].next = NONE;
        match self.slots.get_mut(self.flows[flow as usize].last as usize) {
            Some(before) => before.next = first,
            None => self.flows[flow as usize].first = first,
        }
        self.queued += count;
        self.queued_bytes += all_bytes;
        let line = &mut self.flows[flow as usize];
        line.last = last;
        if line.state == FlowState::Idle {
            self.make_ready(flow);
        }
    }

    /// What a slice of so many bytes would be called that is posted without having waited: nothing else waits, and there is a credit
    /// and room in the window for it. [`push_posted`](Self::push_posted) it then, before anything else.
    #[inline]
    #[must_use]
    pub fn next_alone(&self, bytes: u64) -> Option<Token> {
        let room =
            self.in_flight_bytes == 0 || self.in_flight_bytes.saturating_add(bytes) <= self.window_bytes;
        let free = self.queued == 0 && !self.is_full() && room;
        // Without a free slot there will be one more.
        free.then(|| Token(self.free.min(self.slots.len() as u32)))
    }

    /// Takes a slice in that has been posted as [`next_alone`](Self::next_alone) has called it: it has a credit from now on.
    #[inline]
    pub fn push_posted(&mut self, flow: u32, bytes: u64, item: T) {
        if self.flows.len() <= flow as usize {
            self.flows.resize_with(flow as usize + 1, Flow::new);
        }
        let slot = Slot { item: Some(item), bytes, flow, next: NONE, flying: true };
        match self.slots.get_mut(self.free as usize) {
            Some(free) => {
                self.free = free.next;
                *free = slot;
            }
            None => self.slots.push(slot),
        }
        self.flows[flow as usize].flying += 1;
        self.flows[flow as usize].pause = FIRST_PAUSE;
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
    }

    /// Takes the next slice that may be posted now, with a credit. It must be answered with [`posted`](Self::posted),
    /// [`again`](Self::again) or [`end`](Self::end) before the next one is taken.
    pub fn next(&mut self, now: u64) -> Option<Token> {
        self.take_next(now).map(|(token, _)| token)
    }

    /// The same, with the slice.
    #[inline(always)] // in the one loop that posts; called, it costs a third more
    pub fn take_next(&mut self, now: u64) -> Option<(Token, &mut T)> {
        if self.is_full() {
            return None;
        }
        if !self.paused.is_empty() {
            self.unpause(|until| until <= now);
        }
        let flow = self.flows.get_mut(self.head as usize)?;
        let index = flow.first;
        let slot = self.slots.get_mut(index as usize)?;
        if self.in_flight_bytes > 0 && self.in_flight_bytes.saturating_add(slot.bytes) > self.window_bytes {
            return None;
        }
        flow.first = slot.next;
        if flow.is_empty() {
            flow.last = NONE;
        }
        flow.flying += 1;
        slot.flying = true;
        self.taken = index;
        self.queued -= 1;
        self.queued_bytes -= slot.bytes;
        self.in_flight += 1;
        self.in_flight_bytes += slot.bytes;
        Some((Token(index), slot.item.as_mut()?))
    }

    /// Whether another slice can be posted after the one that has been taken and not answered yet: there is one, and a credit and
    /// room in the window for it.
    #[must_use]
    pub fn has_another(&self) -> bool {
        let head = self.flows.get(self.head as usize);
        let flow = head.and_then(|head| self.flows.get(head.next as usize)).or(head);
        let next = flow.map(|flow| flow.first);
        let bytes = next.and_then(|index| self.slots.get(index as usize)).map(|slot| slot.bytes);
        !self.is_full()
            && bytes.is_some_and(|bytes| self.in_flight_bytes.saturating_add(bytes) <= self.window_bytes)
    }

    /// The slice was accepted.
    #[inline]
    pub fn posted(&mut self, token: Token) {
        if self.taken != token.0 {
            return;
        }
        self.taken = NONE;
        // It was taken from the flow at the head of the line.
        let index = self.head;
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        flow.pause = FIRST_PAUSE;
        // Alone in the line and with more to come, it stays where it is.
        if flow.next != NONE || flow.is_empty() {
            self.rotate(index);
        }
    }

    /// There was no room for it: it goes back to the head of its flow, which waits until something completes, or a little.
    pub fn again(&mut self, token: Token, now: u64) {
        let Some((flow_index, bytes)) = self.land(token) else { return };
        self.queued += 1;
        self.queued_bytes += bytes;
        let flow = &mut self.flows[flow_index as usize];
        self.slots[token.0 as usize].next = flow.first;
        if flow.is_empty() {
            flow.last = token.0;
        }
        flow.first = token.0;
        let until = now.saturating_add(flow.pause);
        flow.pause = (flow.pause * 2).min(LONGEST_PAUSE);
        flow.state = FlowState::Paused { until };
        self.drop_front(flow_index);
        self.paused.push(flow_index);
    }

    /// The slice has ended, one way or another (or will not be posted at all); its credit is free again. `None` if there
    /// is no such slice.
    #[inline(always)] // in the one loop that reads completions
    pub fn end(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.0 as usize).filter(|slot| slot.flying)?;
        slot.flying = false;
        slot.next = self.free;
        self.free = token.0;
        self.in_flight -= 1;
        self.in_flight_bytes -= slot.bytes;
        let (flow, item) = (slot.flow, slot.item.take());
        let line = &mut self.flows[flow as usize];
        line.flying -= 1;
        if self.taken == token.0 {
            // It was at the head of the line and has not been posted: then the others of its flow have their turn now.
            self.taken = NONE;
            if line.is_empty() {
                self.rotate(flow);
            }
        }
        if !self.paused.is_empty() {
            self.unpause(|_| true);
        }
        item
    }

    /// Gives the credit of a slice back that has been taken: its flow and length.
    fn land(&mut self, token: Token) -> Option<(u32, u64)> {
        let slot = self.slots.get_mut(token.0 as usize).filter(|slot| slot.flying)?;
        slot.flying = false;
        self.taken = NONE;
        self.in_flight -= 1;
        self.in_flight_bytes -= slot.bytes;
        self.flows[slot.flow as usize].flying -= 1;
        Some((slot.flow, slot.bytes))
    }

    /// Empties a slot that is in no line.
    fn release(&mut self, index: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        slot.next = self.free;
        self.free = index;
        slot.item.take()
    }

    /// A slice that has been taken and not ended.
    #[must_use]
    #[inline]
    pub fn get(&self, token: Token) -> Option<&T> {
        self.slots.get(token.0 as usize).filter(|slot| slot.flying)?.item.as_ref()
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        self.slots.get_mut(token.0 as usize).filter(|slot| slot.flying)?.item.as_mut()
    }

    /// The slices in flight, with their tokens.
    pub fn flying(&self) -> impl Iterator<Item = (Token, &T)> {
        let flying = self.slots.iter().enumerate().filter(|(_, slot)| slot.flying);
        flying.filter_map(|(index, slot)| Some((Token(index as u32), slot.item.as_ref()?)))
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
        let mut line = std::mem::take(&mut self.line);
        for flow in 0..self.flows.len() {
            if budget == 0 {
                break;
            }
            line.clear();
            let mut at = self.flows[flow].first;
            while let Some(slot) = self.slots.get(at as usize) {
                line.push(at);
                at = slot.next;
            }
            for &index in line.iter().rev() {
                let slot = &self.slots[index as usize];
                let bytes = slot.bytes;
                if budget > 0
                    && slot.item.as_ref().is_some_and(&mut which)
                    && let Some(item) = self.release(index)
                {
                    self.queued -= 1;
                    self.queued_bytes -= bytes;
                    budget = budget.saturating_sub(bytes.max(1));
                    taken(flow as u32, bytes, item);
                }
            }
            // Who is left stands in line as before.
            line.retain(|&index| self.slots[index as usize].item.is_some());
            for pair in line.windows(2) {
                self.slots[pair[0] as usize].next = pair[1];
            }
            if let Some(&last) = line.last() {
                self.slots[last as usize].next = NONE;
            }
            let entry = &mut self.flows[flow];
            entry.first = line.first().copied().unwrap_or(NONE);
            entry.last = line.last().copied().unwrap_or(NONE);
            if line.is_empty() {
                self.settle(flow as u32);
            }
        }
        self.line = line;
    }

    /// A flow gets in line.
    #[inline]
    fn make_ready(&mut self, flow: u32) {
        let entry = &mut self.flows[flow as usize];
        (entry.state, entry.next) = (FlowState::Ready, NONE);
        if self.head == NONE {
            self.head = flow;
        } else if let Some(last) = self.flows.get_mut(self.tail as usize) {
            last.next = flow;
        }
        self.tail = flow;
    }

    /// The flow at the head of the line goes to its end, or out of it if it has nothing more.
    #[inline]
    fn rotate(&mut self, flow: u32) {
        if self.head != flow {
            return;
        }
        self.drop_front(flow);
        let entry = &mut self.flows[flow as usize];
        if entry.is_empty() {
            entry.state = FlowState::Idle;
        } else {
            self.make_ready(flow);
        }
    }

    #[inline]
    fn drop_front(&mut self, flow: u32) {
        if self.head == flow {
            self.head = self.flows[flow as usize].next;
        }
    }

    /// Takes a flow out of the line, wherever it stands.
    fn leave_line(&mut self, flow: u32) {
        if self.head == flow {
            return self.drop_front(flow);
        }
        let after = self.flows[flow as usize].next;
        let mut at = self.head;
        while let Some(entry) = self.flows.get_mut(at as usize) {
            if entry.next == flow {
                entry.next = after;
                if self.tail == flow {
                    self.tail = at;
                }
                return;
            }
            at = entry.next;
        }
    }

    /// A flow that has nothing waiting leaves every list.
    fn settle(&mut self, flow: u32) {
        let state = std::mem::replace(&mut self.flows[flow as usize].state, FlowState::Idle);
        match state {
            FlowState::Idle => {}
            FlowState::Ready => self.leave_line(flow),
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
                    self.make_ready(flow);
                }
            }
        }
    }
}
