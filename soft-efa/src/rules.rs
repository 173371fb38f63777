//! Fault rules: what shall go wrong, when, and where.
//!
//! A rule is one line of words, the first of which says what happens and the others when. The control socket and the variable
//! `SOFT_EFA_FAULTS` (a file of such lines) take the same ones.
//!
//! | line | what happens |
//! |---|---|
//! | `fail status=N` | a request ends with that [`Status`] instead of being carried out |
//! | `delay us=N` | it is carried out that much later |
//! | `hold` | it is carried out when the rule is gone |
//! | `kill` | its process dies by SIGKILL instead (for a long copy: after the first piece) |
//! | `register errno=N` | a memory registration fails |
//! | `down card=N` | the card is dead: its own requests end with status 2, those to it are not answered |
//! | `link card=N` | its link is down: requests from and to it wait until the rule is gone |
//! | `flap card=N us=N` | its link is up for so long, then down for so long, and so on, from the clock's zero |
//! | `unreachable host=N` | requests to that host are not answered |
//! | `restart qpn=same` | a process that takes the place of another on its host (`SOFT_EFA_HOST`) gets the queue pair numbers that the other had; `qpn=other`, as without a rule: numbers that nobody has had for long |
//!
//! | condition | holds for |
//! |---|---|
//! | `at=end` | `fail`, `delay`, `hold`, `kill`: what is said happens to the request's completion, when its bytes have moved |
//! | `op=write` | that kind: `send`, `send_imm`, `read`, `write`, `write_imm`, or `rdma` for the last three |
//! | `card=N`, `host=N` | that card, that host (of the initiator; for `down`, `link`, `unreachable` the one that is hit) |
//! | `peer=N` | requests to that host |
//! | `min=N`, `max=N` | lengths in bytes, of requests and registrations |
//! | `nth=N` | the n-th request that meets the other conditions, counted per process |
//! | `every=N` | each n-th |
//! | `prob=P` | a request with that probability, by the run's seed |
//! | `times=N` | at most so many |

use crate::status::Status;
use std::fmt;
use std::str::FromStr;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Ends a request with a status.
    Fail(Status),
    /// Puts a request off by so many microseconds.
    Delay(u64),
    /// Keeps a request while the rule is there.
    Hold,
    /// Kills the process that makes the request.
    Kill,
    /// Makes a registration fail with an errno.
    Register(i32),
    /// A dead card.
    Down,
    /// A card without a link.
    Link,
    /// A card whose link goes down and comes back every so many microseconds.
    Flap(u64),
    /// A host that does not answer.
    Unreachable,
    /// A process that restarts gets the queue pair numbers that it had (or, as always, others).
    Restart(bool),
}

/// When a rule that otherwise fits fires.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// Always.
    Always,
    /// At the n-th time, counted from 1.
    Nth(u64),
    /// At each n-th time.
    Every(u64),
    /// With a probability.
    Probability(f64),
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Kind of request, or all.
    pub op: Option<String>,
    /// Card, or all.
    pub card: Option<u16>,
    /// Host, or all.
    pub host: Option<u32>,
    /// Host of the target, or all.
    pub peer: Option<u32>,
    /// Shortest request in bytes.
    pub min: u64,
    /// Longest request in bytes.
    pub max: u64,
    /// Whether it is about the completion of a request that has been carried out.
    pub at_end: bool,
    /// When it fires.
    pub when: When,
    /// How often it fires at most.
    pub times: u64,
}

/// Why a line is not a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRule(String);

impl fmt::Display for BadRule {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for BadRule {}

/// Kinds of requests that `op=` takes.
const OPS: [&str; 6] = ["send", "send_imm", "read", "write", "write_imm", "rdma"];

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(line: &str) -> Result<Rule, BadRule> {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().ok_or_else(|| BadRule("an empty rule".into()))?;
        let (mut status, mut us, mut errno, mut same) = (None, None, None, None);
        let mut rule = Rule {
            action: Action::Hold,
            op: None,
            card: None,
            host: None,
            peer: None,
            min: 0,
            max: u64::MAX,
            at_end: false,
            when: When::Always,
            times: u64::MAX,
        };
        for word in words {
            let bad = || {
                BadRule(format!("{word:?} is no condition that a rule can have; see the table in README.md"))
            };
            let (name, value) = word.split_once('=').ok_or_else(bad)?;
            let number = || value.parse::<u64>().map_err(|_| BadRule(format!("{word:?} needs a number")));
            match name {
                "status" => {
                    let number = u32::try_from(number()?).ok();
                    let known = number.and_then(Status::from_vendor).filter(|status| *status != Status::Ok);
                    status =
                        Some(known.ok_or_else(|| BadRule(format!("{word:?} is no error status of EFA")))?);
                }
                "us" => us = Some(number()?.min(3_600_000_000)),
                "errno" => {
                    let number = i32::try_from(number()?).ok().filter(|errno| (1..4096).contains(errno));
                    errno = Some(number.ok_or_else(|| BadRule(format!("{word:?} is no errno")))?);
                }
                "at" if value == "end" => rule.at_end = true,
                "qpn" if matches!(value, "same" | "other") => same = Some(value == "same"),
                "op" if OPS.contains(&value) => rule.op = Some(value.into()),
                "card" => rule.card = Some(u16::try_from(number()?).map_err(|_| bad())?),
                "host" => rule.host = Some(u32::try_from(number()?).map_err(|_| bad())?),
                "peer" => rule.peer = Some(u32::try_from(number()?).map_err(|_| bad())?),
                "min" => rule.min = number()?,
                "max" => rule.max = number()?,
                "nth" => rule.when = When::Nth(number()?.max(1)),
                "every" => rule.when = When::Every(number()?.max(1)),
                "prob" => {
                    let probability = value.parse::<f64>().ok().filter(|p| (0.0..=1.0).contains(p));
                    rule.when = When::Probability(
                        probability.ok_or_else(|| BadRule(format!("{word:?} is not within 0 to 1")))?,
                    );
                }
                "times" => rule.times = number()?,
                _ => return Err(bad()),
            }
        }
        let missing = |what: &str| BadRule(format!("`{verb}` needs {what}"));
        rule.action = match verb {
            "fail" => Action::Fail(status.ok_or_else(|| missing("status=N"))?),
            "delay" => Action::Delay(us.ok_or_else(|| missing("us=N"))?),
            "hold" => Action::Hold,
            "kill" => Action::Kill,
            "register" => Action::Register(errno.ok_or_else(|| missing("errno=N"))?),
            "down" if rule.card.is_some() => Action::Down,
            "link" if rule.card.is_some() => Action::Link,
            "flap" if rule.card.is_some() => {
                Action::Flap(us.filter(|us| *us > 0).ok_or_else(|| missing("us=N, at least 1"))?)
            }
            "down" | "link" | "flap" => return Err(missing("card=N")),
            "unreachable" if rule.host.is_some() => Action::Unreachable,
            "unreachable" => return Err(missing("host=N")),
            "restart" => Action::Restart(same.ok_or_else(|| missing("qpn=same or qpn=other"))?),
            _ => {
                return Err(BadRule(format!(
                    "{verb:?} is nothing that can happen; see the table in README.md"
                )));
            }
        };
        if rule.at_end && !rule.is_about_requests() {
            return Err(BadRule(format!("at=end is for requests, and `{verb}` is not about requests")));
        }
        Ok(rule)
    }
}

impl Rule {
    /// Whether the rule is about requests as such (and not about registrations, cards or hosts).
    pub fn is_about_requests(&self) -> bool {
        matches!(self.action, Action::Fail(_) | Action::Delay(_) | Action::Hold | Action::Kill)
    }

    /// Whether a request of this kind and length, from and to there, meets the conditions.
    pub fn meets(&self, op: &str, card: u16, host: u32, peer: Option<u32>, length: u64) -> bool {
        let kind = match self.op.as_deref() {
            None => true,
            Some("rdma") => matches!(op, "read" | "write" | "write_imm"),
            Some(wanted) => wanted == op,
        };
        kind && self.card.is_none_or(|wanted| wanted == card)
            && self.host.is_none_or(|wanted| wanted == host)
            && self.peer.is_none_or(|wanted| peer == Some(wanted))
            && self.has_length(length)
    }

    /// Whether it holds for that length.
    pub fn has_length(&self, length: u64) -> bool {
        (self.min..=self.max).contains(&length)
    }

    /// Whether it hits that card of that host.
    pub fn hits(&self, card: u16, host: u32) -> bool {
        self.card.is_none_or(|wanted| wanted == card) && self.host.is_none_or(|wanted| wanted == host)
    }
}

/// The rules of a file: its lines, without blank ones and those that begin with `#`.
///
/// # Errors
/// The first line that is no rule, with its number.
pub fn parse_file(text: &str) -> Result<Vec<(String, Rule)>, BadRule> {
    let mut rules = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let rule = line.parse().map_err(|error: BadRule| BadRule(format!("line {}: {error}", number + 1)))?;
        rules.push((line.to_owned(), rule));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_are_documented() {
        let rule: Rule = "fail status=13 op=rdma card=2 peer=7 min=4096 nth=3".parse().unwrap();
        assert_eq!((rule.action, rule.when), (Action::Fail(Status::UnresponsiveRemote), When::Nth(3)));
        assert!(rule.meets("write", 2, 1, Some(7), 4096));
        assert!(!rule.meets("send", 2, 1, Some(7), 4096));
        assert!(!rule.meets("write", 2, 1, Some(8), 4096));
        assert!(!rule.meets("write", 2, 1, Some(7), 4095));
    }

    #[test]
    fn what_is_no_rule_is_said_to_be_none() {
        for line in [
            "",
            "fail",
            "fail status=0",
            "fail status=16",
            "down",
            "hold op=x",
            "delay us=-1",
            "link",
            "x",
            "hold =",
            "hold prob=2",
            "flap card=1",
            "flap card=1 us=0",
            "restart",
            "restart qpn=1",
            "down card=1 at=end",
            "hold at=start",
        ] {
            assert!(line.parse::<Rule>().is_err(), "{line:?}");
        }
        assert!(parse_file("# nothing\n\nhold\nx\n").unwrap_err().to_string().contains("line 4"));
    }
}
