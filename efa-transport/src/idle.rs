//! What a thread that drives does when it finds nothing to do: look again, yield, or sleep.
//!
//! A provider may work for peers without telling: it takes a message off a socket, copies it where it belongs and answers, and
//! the completion queue stays empty. A thread that takes an empty queue for idleness and goes to sleep after each such message
//! turns a stream of them into a trickle. So activity is also read off the time that a reading took.

use std::time::{Duration, Instant};

/// The first sleep on the timer; doubled each time that nothing has happened.
const FIRST: Duration = Duration::from_micros(20);
/// The longest sleep on the timer: with what the kernel adds, first contact is still answered within 5 ms.
pub(crate) const LONGEST: Duration = Duration::from_millis(4);
/// The longest sleep on the timer while requests of ours are under way that nobody waits for.
const LONGEST_BUSY: Duration = Duration::from_micros(200);
/// How long after the latest activity a thread keeps looking before it sleeps, where something wakes it or where the activity
/// is a guess.
const ATTENTIVE: Duration = Duration::from_micros(50);
/// The same where only a timer does: a gap in the traffic then costs about its own length again.
const ATTENTIVE_ON_TIMER: Duration = Duration::from_micros(200);
/// The same after a wait object has told of something: the next message may be on its way, and to be woken for it takes longer
/// than to read it.
const ATTENTIVE_TO_FACTS: Duration = Duration::from_micros(200);
/// The same when facts have been further apart than [`FAR`]: to be attentive was of no use, and took most of the processor time that a
/// message now and then costs. What comes in parts comes sooner than that.
const ATTENTIVE_TO_FEW: Duration = Duration::from_micros(20);
/// A gap between facts that attention would not have bridged.
const FAR: Duration = Duration::from_micros(400);
/// A sleep on wait objects that was shorter was none: something was there, or the provider says so whenever it is asked.
pub(crate) const SHORTEST: Duration = Duration::from_micros(20);
/// So many of those in a row without any activity, and the wait objects are not believed until there is some. (The queues of `net`
/// of libfabric 1.17 say so for ever after the first completion.)
const STRIKES: u32 = 16;
/// A reading that took so much longer than is usual has done something.
pub(crate) const TIMES_USUAL: u32 = 2;
/// The same for a reading after a sleep, when caches are cold.
const TIMES_USUAL_COLD: u32 = 4;
/// Below that, differences are chance, while caches are warm and when they are cold. Copying a message takes longer.
pub(crate) const CHANCE: Duration = Duration::from_micros(2);
const CHANCE_COLD: Duration = Duration::from_micros(5);

/// So many exceptions in a row, without one reading that found nothing, and they are the usual: there are more peers now, say.
const NEW_USUAL: u32 = 200_000;

/// How long it usually takes to find nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usual {
    time: Option<Duration>,
    exceptions: u32,
}

impl Usual {
    pub(crate) fn is_exceeded(&mut self, took: Duration, times: u32, chance: Duration) -> bool {
        let usual = *self.time.get_or_insert(took);
        if took > usual * times + chance {
            self.exceptions += 1;
            if self.exceptions >= NEW_USUAL {
                *self = Self { time: Some(took), exceptions: 0 };
            }
            return true;
        }
        self.exceptions = 0;
        // Follows the least slowly upwards.
        self.time = Some(if took < usual { took } else { usual + usual / 128 });
        false
    }
}

/// What a look has found, by a thread that [watches](crate::watch) its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// Nothing, as the descriptors say.
    Silence,
    /// Nothing, although a descriptor says that something is there.
    Nothing,
    /// A reading took longer than it usually does.
    Guess,
    /// Something has happened.
    Fact,
}

/// How a sleep on wait objects went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slept {
    /// Something was there at once, or so the provider says.
    NotAtAll,
    /// Until something was there.
    UntilReady,
    /// Until somebody wanted the thread.
    UntilCalled,
    /// All the time that there was.
    ToTheEnd,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Look again, perhaps after letting others have the processor.
    Look,
    /// Sleep on the wait objects.
    Block,
    /// Sleep for that long.
    Pause(Duration),
}

/// The state of one thread that drives. Pure: time is handed in.
#[derive(Debug, Clone)]
pub(crate) struct Idler {
    /// Whether there are wait objects.
    wait_objects: bool,
    hot: Usual,
    cold: Usual,
    active_until: Instant,
    /// The latest fact, and how long it is worth looking for another one.
    fact: Option<Instant>,
    attentive: Duration,
    /// The next reading comes after a sleep.
    slept: bool,
    /// Readings since the latest sleep.
    readings: u32,
    strikes: u32,
    pause: Duration,
}

impl Idler {
    pub(crate) fn new(wait_objects: bool, now: Instant) -> Self {
        Self {
            wait_objects,
            hot: Usual::default(),
            cold: Usual::default(),
            active_until: now,
            fact: None,
            attentive: ATTENTIVE_TO_FACTS,
            slept: false,
            readings: 0,
            strikes: 0,
            pause: FIRST,
        }
    }

    fn believes(&self) -> bool {
        self.wait_objects && self.strikes < STRIKES
    }

    /// A reading has found `happened` and took from `began` to `now`.
    pub(crate) fn read(&mut self, happened: usize, began: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        let cold = std::mem::take(&mut self.slept);
        self.readings = self.readings.saturating_add(1);
        let long = if cold {
            // What wakes on time needs no guess at what the first reading did: there will be a second one.
            self.cold.is_exceeded(took, TIMES_USUAL_COLD, CHANCE_COLD) && !self.believes()
        } else {
            self.hot.is_exceeded(took, TIMES_USUAL, CHANCE)
        };
        if happened > 0 || long {
            // A guess is worth less than a fact.
            let attentive = if self.believes() || happened == 0 { ATTENTIVE } else { ATTENTIVE_ON_TIMER };
            self.active_until = now + attentive;
            self.pause = FIRST;
            if happened > 0 || !cold {
                self.strikes = 0;
            }
        }
    }

    /// As [`read`](Self::read), by a thread that [watches](crate::watch) its lanes.
    pub(crate) fn saw(&mut self, seen: Seen, now: Instant) {
        let cold = std::mem::take(&mut self.slept);
        self.readings = self.readings.saturating_add(1);
        self.active_until = match seen {
            // It does not report something whenever it is asked.
            Seen::Silence => {
                self.strikes = 0;
                return;
            }
            Seen::Nothing => return,
            Seen::Guess => self.active_until.max(now + ATTENTIVE),
            Seen::Fact => now + self.attentive_after(now),
        };
        self.pause = FIRST;
        if seen == Seen::Fact || !cold {
            self.strikes = 0;
        }
    }

    /// How long to look for the next fact after this one: as long as it is likely to come meanwhile, by how the latest have come.
    fn attentive_after(&mut self, fact: Instant) -> Duration {
        let gap = self.fact.replace(fact).map(|before| fact.saturating_duration_since(before));
        match gap {
            Some(gap) if gap > FAR => self.attentive = ATTENTIVE_TO_FEW,
            Some(gap) if gap > ATTENTIVE_TO_FEW => self.attentive = ATTENTIVE_TO_FACTS,
            // Parts of the same, which tell nothing about the next.
            _ => {}
        }
        self.attentive
    }

    /// Whether the next reading is the first one after a sleep.
    pub(crate) const fn has_slept(&self) -> bool {
        self.slept
    }

    /// Something has happened, to a thread that waits for it and does not take times.
    pub(crate) fn active(&mut self) {
        self.strikes = 0;
        self.pause = FIRST;
    }

    /// What to do after a reading. `busy`: requests of ours are under way, so that readings move them.
    pub(crate) fn next(&self, busy: bool, now: Instant) -> Next {
        // Twice after each sleep of the progress thread: the first reading may have done something that only the second one's time
        // shows.
        if now < self.active_until || self.readings < 2 && !busy { Next::Look } else { self.rest(busy) }
    }

    /// How to sleep, when it is time to.
    pub(crate) fn rest(&self, busy: bool) -> Next {
        if self.believes() {
            Next::Block
        } else {
            Next::Pause(self.pause.min(if busy { LONGEST_BUSY } else { LONGEST }))
        }
    }

    /// It has blocked.
    pub(crate) fn blocked(&mut self, how: Slept) {
        match how {
            Slept::NotAtAll => self.strikes = self.strikes.saturating_add(1),
            Slept::UntilReady | Slept::ToTheEnd => self.strikes = 0,
            Slept::UntilCalled => {}
        }
        self.woke();
    }

    /// A wait object has told a thread that waits that there is something: more of it is likely to come, and to sleep for each part
    /// of a long read would take longer than the read.
    pub(crate) fn told(&mut self, now: Instant) {
        self.active_until = now + ATTENTIVE;
    }

    /// It has slept on the timer.
    pub(crate) fn paused(&mut self) {
        self.pause = (self.pause * 2).min(LONGEST);
        self.woke();
    }

    /// Somebody wants something.
    pub(crate) fn called(&mut self) {
        self.pause = FIRST;
        self.woke();
    }

    fn woke(&mut self) {
        self.slept = true;
        self.readings = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Duration = Duration::from_nanos(700);
    const MESSAGE: Duration = Duration::from_micros(12);

    /// Drives an idler against a provider: `work` says how long a reading at a time takes, `ready` whether the wait objects
    /// report something then. Returns readings, blocks and time slept on the timer within `span`.
    fn drive(
        idler: &mut Idler,
        span: Duration,
        mut work: impl FnMut(Duration) -> Duration,
        mut ready: impl FnMut(Duration) -> Option<Duration>,
    ) -> (u32, u32, Duration) {
        let start = Instant::now();
        let (mut at, mut readings, mut blocks, mut paused) = (Duration::ZERO, 0, 0, Duration::ZERO);
        while at < span {
            let took = work(at);
            idler.read(0, start + at, start + at + took);
            at += took;
            readings += 1;
            match idler.next(false, start + at) {
                Next::Look => at += Duration::from_nanos(300),
                Next::Block => {
                    blocks += 1;
                    let how = match ready(at) {
                        Some(Duration::ZERO) => Slept::NotAtAll,
                        Some(later) => {
                            at += later;
                            Slept::UntilReady
                        }
                        None => {
                            at += Duration::from_millis(50);
                            Slept::ToTheEnd
                        }
                    };
                    at += Duration::from_micros(1);
                    idler.blocked(how);
                }
                Next::Pause(pause) => {
                    paused += pause;
                    at += pause;
                    idler.paused();
                }
            }
        }
        (readings, blocks, paused)
    }

    #[test]
    fn a_stream_of_messages_that_are_not_told_of_is_taken_without_a_pause() {
        let mut idler = Idler::new(true, Instant::now());
        drive(&mut idler, Duration::from_millis(200), |_| EMPTY, |_| None);
        // Every reading takes one message off a socket that always has another.
        let (readings, _, paused) =
            drive(&mut idler, Duration::from_millis(10), |_| MESSAGE, |_| Some(Duration::ZERO));
        assert!(readings > 700, "{readings} messages in 10 ms");
        assert!(paused < Duration::from_millis(1), "{paused:?}");
    }

    #[test]
    fn a_wait_object_that_lies_is_soon_not_believed() {
        let mut idler = Idler::new(true, Instant::now());
        let (readings, blocks, paused) =
            drive(&mut idler, Duration::from_secs(1), |_| EMPTY, |_| Some(Duration::ZERO));
        assert!(blocks <= STRIKES, "{blocks} blocks");
        assert!(readings < 1000, "{readings} readings in a second of nothing");
        assert!(paused > Duration::from_millis(950), "{paused:?}");
    }

    /// Catches: facts that are worth no more than guesses, so that each message of a conversation costs a wake-up.
    #[test]
    fn what_a_wait_object_tells_keeps_awake_for_longer_than_a_guess() {
        let now = Instant::now();
        let attentive = |seen: Seen| {
            let mut idler = Idler::new(true, now);
            idler.saw(seen, now);
            idler.saw(Seen::Silence, now);
            (0..1000).find(|&us| idler.next(false, now + Duration::from_micros(us)) == Next::Block)
        };
        assert_eq!(attentive(Seen::Silence), Some(0));
        assert_eq!(attentive(Seen::Nothing), Some(0));
        assert_eq!(attentive(Seen::Guess), Some(50));
        assert_eq!(attentive(Seen::Fact), Some(200));
        // A guess takes nothing away from a fact.
        let mut idler = Idler::new(true, now);
        idler.saw(Seen::Fact, now);
        idler.saw(Seen::Guess, now + Duration::from_micros(1));
        assert_eq!(idler.next(false, now + Duration::from_micros(190)), Next::Look);
    }

    /// Catches: a thread that stays awake after each of few messages, which costs more than the messages; one that sleeps between those
    /// of a conversation, or is taken in by the parts of one message.
    #[test]
    fn few_facts_do_not_keep_awake() {
        let start = Instant::now();
        let mut idler = Idler::new(true, start);
        let mut now = start;
        // How long it stays awake after a fact that comes so long after the one before.
        let mut awake_after = |gap: u64| {
            now += Duration::from_micros(gap);
            idler.saw(Seen::Fact, now);
            let mut later = idler.clone();
            later.saw(Seen::Silence, now);
            (0..1000).find(|&us| later.next(false, now + Duration::from_micros(us)) == Next::Block)
        };
        assert_eq!(awake_after(0), Some(200), "nothing is known yet");
        assert_eq!(awake_after(1000), Some(20));
        assert_eq!(awake_after(5), Some(20), "a part of the same");
        assert_eq!(awake_after(1_000_000), Some(20));
        assert_eq!(awake_after(60), Some(200), "a conversation begins");
        assert_eq!(awake_after(150), Some(200));
        assert_eq!(awake_after(3), Some(200), "a part of the same");
        assert_eq!(awake_after(401), Some(20), "and has ended");
    }

    /// Catches: wait objects that nobody believes any more although they have told the truth since, so that the thread wakes up on
    /// the timer for ever; and those that are believed although they go on lying.
    #[test]
    fn wait_objects_that_are_silent_are_believed_again() {
        let now = Instant::now();
        let mut idler = Idler::new(true, now);
        for _ in 0..STRIKES {
            idler.blocked(Slept::NotAtAll);
        }
        idler.saw(Seen::Nothing, now);
        idler.saw(Seen::Nothing, now);
        assert!(matches!(idler.next(false, now), Next::Pause(_)));
        idler.saw(Seen::Silence, now);
        assert_eq!(idler.next(false, now), Next::Block);
    }

    #[test]
    fn a_wait_object_that_tells_the_truth_is_slept_on() {
        let mut idler = Idler::new(true, Instant::now());
        let (readings, _, paused) = drive(
            &mut idler,
            Duration::from_secs(1),
            |_| EMPTY,
            |at| Some(Duration::from_millis(50).saturating_sub(at).max(Duration::from_millis(7))),
        );
        assert!(readings < 400, "{readings} readings");
        assert_eq!(paused, Duration::ZERO);
    }

    #[test]
    fn without_wait_objects_it_never_sleeps_past_first_contact_and_wakes_up_with_traffic() {
        let mut idler = Idler::new(false, Instant::now());
        let (readings, blocks, _) = drive(&mut idler, Duration::from_secs(1), |_| EMPTY, |_| None);
        assert_eq!(blocks, 0);
        assert!(readings < 600, "{readings} readings in a second of nothing");
        assert_eq!(idler.next(false, Instant::now() + Duration::from_secs(9)), Next::Look, "twice each");
        idler.read(0, Instant::now(), Instant::now());
        let (readings, _, paused) = drive(&mut idler, Duration::from_millis(10), |_| MESSAGE, |_| None);
        assert!(
            readings > 500 && paused < Duration::from_millis(5),
            "{readings} messages, {paused:?} asleep"
        );
    }
}
