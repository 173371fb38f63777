//! The control socket of a run: faults and counters while it goes on.
//!
//! The launcher listens on `DIR/control`; each connection sends one line and gets an answer of one or more lines, the first of which
//! begins with `ok` or `error`. `soft-efa ctl` is a client; any program that can open a Unix socket is another.
//!
//! | command | answer |
//! |---|---|
//! | a fault [rule](crate::rules) | `ok ID` |
//! | `remove ID` | the rule is gone |
//! | `clear` | all rules are gone |
//! | `list` | the rules, with their IDs |
//! | `counters` | counts of each card of each process |
//! | `queue-pairs` | the queue pairs of each card, with their counts |
//! | `clock` | the time of the run's own [clock](crate::clock) in nanoseconds |
//! | `clock advance us=N` | moves it on and says the new time |

use crate::clock::Clock;
use crate::error::Error;
use crate::rules::Rule;
use crate::shared::{self, CardFile, Mapped, ProcessFile, Registry};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The file of the rules that came over the socket.
pub(crate) const RULES_FILE: &str = "rules";
const SOCKET: &str = "control";
/// Longest command in bytes.
const LONGEST: u64 = 4096;

/// What answers on the socket.
pub(crate) struct Control {
    dir: PathBuf,
    rules: Vec<(u64, String)>,
    next: u64,
}

/// Listens in a thread of its own, for as long as the program lives.
pub(crate) fn serve(dir: &Path) -> Result<(), Error> {
    let listener = UnixListener::bind(dir.join(SOCKET))
        .map_err(|error| Error::Io { what: format!("listen in {}", dir.display()), error })?;
    let mut control = Control::new(dir);
    std::thread::Builder::new()
        .name("soft-efa-control".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own affair.
                let _ = control.answer(stream);
            }
        })
        .map(drop)
        .map_err(|error| Error::Io { what: "start the control thread".into(), error })
}

/// Sends one command to the run in `dir` and gives its answer, without the leading `ok`.
///
/// # Errors
/// [`Error::NoRun`] when nobody listens there, [`Error::Control`] when the command was refused.
pub fn command(dir: &Path, line: &str) -> Result<String, Error> {
    let mut stream =
        UnixStream::connect(dir.join(SOCKET)).map_err(|_| Error::NoRun { dir: dir.to_path_buf() })?;
    let io = |error| Error::Io { what: format!("talk to the run in {}", dir.display()), error };
    stream.write_all(line.as_bytes()).and_then(|()| stream.write_all(b"\n")).map_err(io)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(io)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(io)?;
    match answer.split_once(|c: char| c.is_ascii_whitespace()) {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        _ => Err(Error::Control { said: answer.trim().to_owned() }),
    }
}

impl Control {
    pub(crate) fn new(dir: &Path) -> Control {
        Control { dir: dir.to_path_buf(), rules: Vec::new(), next: 1 }
    }

    /// Reads one command from a connection and answers it.
    pub(crate) fn answer(&mut self, mut stream: UnixStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut bytes = Vec::new();
        BufReader::new(&stream).take(LONGEST).read_until(b'\n', &mut bytes)?;
        let answer = match std::str::from_utf8(&bytes) {
            Ok(line) => self.execute(line.trim()),
            Err(_) => Err("a command is UTF-8".into()),
        };
        match answer {
            Ok(text) => stream.write_all(format!("ok {text}\n").as_bytes()),
            Err(text) => stream.write_all(format!("error {text}\n").as_bytes()),
        }
    }

    /// Carries one command out.
    fn execute(&mut self, line: &str) -> Result<String, String> {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("clear"), None) => {
                self.rules.clear();
                self.publish().map(|()| String::new())
            }
            (Some("remove"), Some(id)) => {
                let id: u64 = id.parse().map_err(|_| format!("{id:?} is no number of a rule"))?;
                let before = self.rules.len();
                self.rules.retain(|(known, _)| *known != id);
                if self.rules.len() == before {
                    return Err(format!("there is no rule {id}"));
                }
                self.publish().map(|()| String::new())
            }
            (Some("list"), None) => {
                Ok(self.rules.iter().fold(String::new(), |text, (id, rule)| format!("{text}\n{id} {rule}")))
            }
            (Some("counters"), None) => self.counters().map_err(|error| error.to_string()),
            (Some("clock"), None) => self.clock().map(|clock| clock.now().as_nanos().to_string()),
            (Some("clock"), Some("advance")) => {
                let (by, more) = (words.next(), words.next());
                let us = by.and_then(|word| word.strip_prefix("us=")).and_then(|us| us.parse::<u64>().ok());
                let (Some(us), None) = (us, more) else {
                    return Err("`clock advance` needs us=N and nothing else".into());
                };
                self.clock().map(|clock| clock.advance(Duration::from_micros(us)).as_nanos().to_string())
            }
            (Some("queue-pairs"), None) => self.queue_pairs().map_err(|error| error.to_string()),
            (None, _) => Err("an empty command".into()),
            _ => {
                line.parse::<Rule>().map_err(|error| error.to_string())?;
                let id = self.next;
                self.next += 1;
                self.rules.push((id, line.to_owned()));
                self.publish().map(|()| id.to_string())
            }
        }
    }

    /// Writes the rules where the cards read them, and tells everybody.
    fn publish(&self) -> Result<(), String> {
        let text: String = self.rules.iter().map(|(_, rule)| format!("{rule}\n")).collect();
        let publish = || -> std::io::Result<()> {
            let (fresh, file) = (self.dir.join("rules.new"), self.dir.join(RULES_FILE));
            std::fs::write(&fresh, text)?;
            std::fs::rename(fresh, file)?;
            let registry = Mapped::<Registry>::open(&self.dir.join(shared::REGISTRY_FILE), 0, true)?;
            registry.fault_epoch.fetch_add(1, Ordering::SeqCst);
            shared::ring_all_bells(&registry);
            Ok(())
        };
        publish().map_err(|error| format!("cannot publish the rules: {error}"))
    }

    fn clock(&self) -> Result<Clock, String> {
        Clock::open(&self.dir).map_err(|error| error.to_string())
    }

    fn counters(&self) -> std::io::Result<String> {
        let registry = Mapped::<Registry>::open(&self.dir.join(shared::REGISTRY_FILE), 0, true)?;
        let mut text = String::new();
        for (slot, entry) in registry.slots.iter().enumerate() {
            if entry.state.load(Ordering::Acquire) != shared::LIVE {
                continue;
            }
            let generation = entry.generation.load(Ordering::Acquire);
            let path = shared::process_path(&self.dir, slot, generation);
            let Ok(file) = Mapped::<ProcessFile>::open(&path, 0, false) else { continue };
            let (pid, host) = (entry.pid.load(Ordering::Acquire), entry.host.load(Ordering::Acquire));
            for (card, counts) in file.counts.iter().enumerate() {
                let counts: Vec<(&str, u64)> = counts.all();
                if counts.iter().any(|(_, count)| *count > 0) {
                    let _ = write!(text, "\npid={pid} host={host} card={card}");
                    for (name, count) in counts {
                        let _ = write!(text, " {name}={count}");
                    }
                }
            }
        }
        Ok(text)
    }

    fn queue_pairs(&self) -> std::io::Result<String> {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((host, card)) = name.strip_prefix("card-").and_then(|rest| rest.split_once('-')) else {
                continue;
            };
            let Ok(file) = Mapped::<CardFile>::open(&entry.path(), 0, false) else { continue };
            for (number, qp) in file.qps.iter().enumerate() {
                if qp.owner.load(Ordering::Acquire) != 0 {
                    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
                    let _ = write!(
                        text,
                        "\nhost={host} card={card} qp={number} ready={} posted={} completed={} failed={} received={}",
                        qp.ready.load(Ordering::Acquire),
                        count(&qp.posted),
                        count(&qp.completed),
                        count(&qp.failed),
                        count(&qp.received),
                    );
                }
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> (Control, crate::scratch::Scratch) {
        let scratch = crate::scratch::Scratch::new().unwrap();
        (Control::new(scratch.dir()), scratch)
    }

    #[test]
    fn rules_come_and_go() {
        let (mut control, scratch) = control();
        assert_eq!(control.execute("hold op=write"), Ok("1".into()));
        assert_eq!(control.execute("delay us=5"), Ok("2".into()));
        assert_eq!(control.execute("remove 1"), Ok(String::new()));
        assert!(control.execute("remove 1").is_err());
        assert_eq!(control.execute("list"), Ok("\n2 delay us=5".into()));
        assert_eq!(std::fs::read_to_string(scratch.dir().join(RULES_FILE)).unwrap(), "delay us=5\n");
        assert_eq!(control.execute("clear"), Ok(String::new()));
        assert_eq!(control.execute("counters"), Ok(String::new()));
    }

    #[test]
    fn the_clock_can_be_read_and_moved() {
        let (mut control, _scratch) = control();
        assert_eq!(control.execute("clock"), Ok("0".into()));
        assert_eq!(control.execute("clock advance us=5"), Ok("5000".into()));
        for line in ["clock advance", "clock advance us=-1", "clock advance us=1 us=1", "clock back us=1"] {
            assert!(control.execute(line).is_err(), "{line:?}");
        }
        assert_eq!(control.execute("clock"), Ok("5000".into()));
    }

    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let (mut control, _scratch) = control();
        for line in
            ["", "remove", "remove x", "remove 99999999999999999999", "fail status=99", "list all", "\u{0}"]
        {
            assert!(control.execute(line).is_err(), "{line:?}");
        }
        assert!(control.rules.is_empty());
    }
}
