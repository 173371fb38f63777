//! Faults, as the rules of the run ask for them: see [`rules`](crate::rules).

use super::device::Card;
use super::engine;
use super::pace;
use super::process::{Process, lock};
use super::request::{Ending, Request};
use crate::abi::{IBV_EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR};
use crate::rules::{Action, Rule, When, parse_file};
use crate::settings::Settings;
use crate::shared::Registry;
use crate::status::Status;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What the rules say about a request.
pub(crate) enum Verdict {
    Pass,
    Fail(Status),
    /// It is carried out so many nanoseconds later, and may be judged again then.
    Delay {
        by: u64,
        again: bool,
    },
    /// It is carried out when that rule is gone, and may be judged again then.
    Hold {
        rule: Arc<str>,
        again: bool,
    },
    /// The process dies when a part of the request has been done.
    Kill,
    /// It is carried out, and then something becomes of its completion.
    AtEnd(Ending),
}

/// A rule and how often it has been met and has fired here.
struct Live {
    line: Arc<str>,
    rule: Rule,
    met: AtomicU64,
    fired: AtomicU64,
}

/// The rules as this process knows them.
pub(crate) struct Faults {
    files: Vec<PathBuf>,
    seed: u64,
    any: AtomicBool,
    epoch: AtomicU64,
    reading: Mutex<()>,
    rules: Mutex<Arc<Vec<Live>>>,
}

impl Faults {
    /// Reads the rules of the environment and of the control socket.
    pub(crate) fn load(settings: &Settings, registry: &Registry) -> Faults {
        let files =
            settings.faults.iter().cloned().chain([settings.dir.join(crate::control::RULES_FILE)]).collect();
        let faults = Faults {
            files,
            seed: settings.seed,
            any: AtomicBool::new(false),
            epoch: AtomicU64::new(registry.fault_epoch.load(Ordering::SeqCst)),
            reading: Mutex::default(),
            rules: Mutex::default(),
        };
        faults.read();
        faults
    }

    fn read(&self) {
        let mut rules = Vec::new();
        for file in &self.files {
            let Ok(text) = std::fs::read_to_string(file) else { continue };
            match parse_file(&text) {
                Ok(parsed) => rules.extend(parsed),
                Err(error) => eprintln!("soft-efa: fault rules of {} are ignored: {error}", file.display()),
            }
        }
        let mut current = lock(&self.rules);
        // A rule that stays keeps its counts.
        let counts = |line: &str| {
            let old = current.iter().find(|live| *live.line == *line);
            old.map_or((0, 0), |live| (live.met.load(Ordering::Relaxed), live.fired.load(Ordering::Relaxed)))
        };
        let next: Vec<Live> = rules
            .into_iter()
            .map(|(line, rule)| {
                let (met, fired) = counts(&line);
                Live { line: line.into(), rule, met: AtomicU64::new(met), fired: AtomicU64::new(fired) }
            })
            .collect();
        self.any.store(!next.is_empty(), Ordering::SeqCst);
        *current = Arc::new(next);
    }

    /// Whether there are rules.
    pub(crate) fn active(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether the rules are those that the run has now.
    pub(crate) fn is_current(&self, process: &Process) -> bool {
        self.epoch.load(Ordering::SeqCst) == process.registry.fault_epoch.load(Ordering::SeqCst)
    }

    /// Takes in changed rules: what was held is judged anew, and ports that went up or down say so.
    pub(crate) fn refresh(&self, process: &Process) {
        if self.is_current(process) {
            return;
        }
        let epoch = process.registry.fault_epoch.load(Ordering::SeqCst);
        // Whoever waits here finds the rules read.
        let _turn = lock(&self.reading);
        if self.epoch.load(Ordering::SeqCst) == epoch {
            return;
        }
        let were_up: Vec<bool> = process.open_cards().map(|card| self.is_up(card)).collect();
        self.read();
        self.epoch.store(epoch, Ordering::SeqCst);
        for (card, was_up) in process.open_cards().zip(were_up) {
            if was_up != self.is_up(card) {
                card.announce(if was_up { IBV_EVENT_PORT_ERR } else { IBV_EVENT_PORT_ACTIVE });
            }
            let rules = self.rules();
            engine::release_held(card, |rule| rules.iter().any(|live| *live.line == *rule));
        }
    }

    fn is_up(&self, card: &Card) -> bool {
        !self.card_is_down(card.process.host, card.index as u16, pace::now(&card.process))
    }

    fn rules(&self) -> Arc<Vec<Live>> {
        lock(&self.rules).clone()
    }

    /// Whether that card is dead or without a link.
    pub(crate) fn card_is_down(&self, host: u32, card: u16, now: u64) -> bool {
        self.active()
            && self.rules().iter().any(|live| {
                let down = match live.rule.action {
                    Action::Down | Action::Link => true,
                    Action::Flap(us) => flap(us, now).is_some(),
                    _ => false,
                };
                down && live.rule.hits(card, host)
            })
    }

    /// Whether a queue pair that is made now on that card gets the number that one had before it.
    pub(crate) fn numbers_return(&self, card: &Card) -> bool {
        self.refresh(&card.process);
        let (host, index) = (card.process.host, card.index as u16);
        let rules = self.rules();
        let restart = rules.iter().find_map(|live| match live.rule.action {
            Action::Restart(same) if live.rule.hits(index, host) => Some(same),
            _ => None,
        });
        restart.unwrap_or(false)
    }

    /// The errno that a registration of that length shall fail with.
    pub(crate) fn registration(&self, card: &Card, length: u64) -> Option<i32> {
        self.refresh(&card.process);
        if !self.active() {
            return None;
        }
        let rules = self.rules();
        let (host, index) = (card.process.host, card.index as u16);
        rules.iter().find_map(|live| match live.rule.action {
            Action::Register(errno) => {
                let meets = live.rule.hits(index, host) && live.rule.has_length(length);
                (meets && live.fires(self.seed)).then_some(errno)
            }
            _ => None,
        })
    }

    /// What shall happen to a request.
    pub(crate) fn judge(&self, card: &Card, request: &Request) -> Verdict {
        if !self.active() {
            return Verdict::Pass;
        }
        let (host, index) = (card.process.host, card.index as u16);
        let target = request.remote.as_ref().and_then(|remote| remote.at);
        for live in self.rules().iter() {
            let rule = &live.rule;
            let hits_target = target.is_some_and(|(host, card)| rule.hits(card, host));
            match rule.action {
                Action::Down if rule.hits(index, host) => return Verdict::Fail(Status::QpInternalError),
                Action::Down | Action::Unreachable if hits_target => {
                    return Verdict::Fail(request.silence());
                }
                Action::Link if rule.hits(index, host) || hits_target => {
                    return Verdict::Hold { rule: live.line.clone(), again: true };
                }
                Action::Flap(us) if rule.hits(index, host) || hits_target => {
                    if let Some(by) = flap(us, pace::now(&card.process)) {
                        return Verdict::Delay { by, again: true };
                    }
                }
                _ => {}
            }
            let peer = target.map(|(host, _)| host);
            if !rule.is_about_requests()
                || !rule.meets(request.op.name(), index, host, peer, request.length.into())
                || !live.fires(self.seed)
            {
                continue;
            }
            let line = || live.line.clone();
            return match (rule.action, rule.at_end) {
                (Action::Fail(status), false) => Verdict::Fail(status),
                (Action::Fail(status), true) => Verdict::AtEnd(Ending::Fail(status)),
                (Action::Delay(us), false) => Verdict::Delay { by: us * 1000, again: false },
                (Action::Delay(us), true) => Verdict::AtEnd(Ending::Delay(us * 1000)),
                (Action::Kill, false) => Verdict::Kill,
                (Action::Kill, true) => Verdict::AtEnd(Ending::Kill),
                (_, false) => Verdict::Hold { rule: line(), again: false },
                (_, true) => Verdict::AtEnd(Ending::Hold(line())),
            };
        }
        Verdict::Pass
    }
}

impl Live {
    /// Counts a request that meets the rule, and says whether this is one that it fires for.
    fn fires(&self, seed: u64) -> bool {
        let count = self.met.fetch_add(1, Ordering::Relaxed) + 1;
        let now = match self.rule.when {
            When::Always => true,
            When::Nth(n) => count == n,
            When::Every(n) => count.is_multiple_of(n),
            When::Probability(probability) => chance(seed, count) < probability,
        };
        now && self.fired.fetch_add(1, Ordering::Relaxed) < self.rule.times
    }
}

/// How many nanoseconds a link that goes down and comes back every `us` microseconds is still down; `None` when it is up.
fn flap(us: u64, now: u64) -> Option<u64> {
    let (half, phase) = (us * 1000, now / (us * 1000));
    (phase % 2 == 1).then(|| half - now % half)
}

/// A number from 0 to 1 that depends on the seed and the count alone.
fn chance(seed: u64, count: u64) -> f64 {
    let mut word = seed.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ word >> 31) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(line: &str) -> Live {
        Live {
            line: line.into(),
            rule: line.parse().unwrap(),
            met: AtomicU64::new(0),
            fired: AtomicU64::new(0),
        }
    }

    #[test]
    fn rules_fire_when_they_say() {
        let fired = |line: &str| {
            let live = live(line);
            (1..=10).filter(|_| live.fires(1)).count()
        };
        assert_eq!(
            (fired("hold"), fired("hold nth=3"), fired("hold every=5"), fired("hold times=4")),
            (10, 1, 2, 4)
        );
        assert_eq!((fired("hold prob=0"), fired("hold prob=1")), (0, 10));
    }

    #[test]
    fn a_flapping_link_is_down_every_other_time() {
        assert_eq!(
            [0, 999, 1000, 1999, 2000, 3001].map(|now| flap(1, now)),
            [None, None, Some(1000), Some(1), None, Some(999)]
        );
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed_and_about_even() {
        let below = |seed| (0..1000).filter(|&count| chance(seed, count) < 0.5).count();
        assert_eq!(below(7), below(7));
        assert!((400..600).contains(&below(7)));
    }
}
