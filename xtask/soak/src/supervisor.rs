//! Starts the nodes, lets things happen to them, and judges.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use soft_efa::{Network, Profile};

use crate::chaos::{Event, Field, Schedule};
use crate::health;
use crate::isolation::Isolation;
use crate::report::{Alive, Order, Report, Spec};

const NODES: usize = 4;
/// Nodes with cards; the others have TCP alone.
const WITH_CARDS: [usize; 2] = [0, 1];
const CARDS: usize = 2;
/// Nodes that may be killed: one with cards, one without. The other two live long enough to show a leak.
const MORTAL: [usize; 2] = [1, 2];
/// A node that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(40);
/// Longest quiet end, in which everything has to heal; a short run has a quarter of its time.
const CALM: Duration = Duration::from_secs(30);
/// When all is well, every pair has to have got something done within this.
const HEALED: Duration = Duration::from_secs(6);

/// What is asked for.
pub(crate) struct Wanted {
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    pub(crate) cards: bool,
    /// A bug that the nodes are built with.
    pub(crate) planted: Option<String>,
}

/// How it ended.
pub(crate) struct Outcome {
    /// What was broken, if anything.
    pub(crate) violation: Option<String>,
    pub(crate) after: Duration,
    pub(crate) nodes: Vec<Summary>,
    pub(crate) events: usize,
}

/// One node over all its lives.
#[derive(Default)]
pub(crate) struct Summary {
    pub(crate) lives: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) verified: u64,
    pub(crate) last: Alive,
}

struct Node {
    child: Child,
    orders: Option<ChildStdin>,
    life: u64,
    /// Killed by us, or not yet started again.
    expected_to_end: bool,
    stopped: bool,
    heard: Instant,
}

/// What is to be undone, and when.
enum Undo {
    Start(usize),
    Go(usize),
    Heal,
    Rule(String),
}

type Heard = (usize, u64, Option<Report>);

struct Soak {
    wanted: Wanted,
    names: Vec<String>,
    network: Option<Network>,
    library: Option<PathBuf>,
    isolation: Option<Isolation>,
    nodes: Vec<Node>,
    say: Sender<Heard>,
    heard: Receiver<Heard>,
    lives: Vec<BTreeMap<u64, Vec<Alive>>>,
    started: Instant,
}

/// Runs it.
pub(crate) fn run(wanted: Wanted) -> Result<Outcome> {
    let library = libfabric();
    let network = match (&library, wanted.cards) {
        (Some(_), true) => match Network::new(CARDS, Profile::p5()) {
            Ok(mut network) => {
                network.set(soft_efa::settings::SEED, wanted.seed.to_string());
                Some(network)
            }
            Err(error) => {
                println!("without cards: {error}");
                None
            }
        },
        (None, true) => {
            println!("without cards: no libfabric 2.x; `cargo xtask libfabric` puts one under target/");
            None
        }
        (_, false) => None,
    };
    let isolation = match Isolation::enter() {
        Ok(isolation) => Some(isolation),
        Err(error) => {
            println!("without partitions: {error}");
            None
        }
    };
    // Addresses of the loopback, one for each node, so that one of them can be cut off.
    let names = (0..NODES)
        .map(|n| {
            let listener = std::net::TcpListener::bind(format!("127.0.1.{}:0", n + 1))?;
            Ok(listener.local_addr()?.to_string())
        })
        .collect::<Result<Vec<_>>>()?;
    let (say, heard) = crossbeam_channel::unbounded();
    let lives = vec![BTreeMap::new(); NODES];
    let started = Instant::now();
    let mut soak =
        Soak { wanted, names, network, library, isolation, nodes: Vec::new(), say, heard, lives, started };
    for node in 0..NODES {
        let started = soak.start(node, 1)?;
        soak.nodes.push(started);
    }
    let mut events = 0;
    let violation = soak.play(&mut events)?;
    let after = soak.started.elapsed();
    let nodes = soak.summaries();
    Ok(Outcome { violation, after, nodes, events })
}

impl Soak {
    fn start(&self, node: usize, life: u64) -> Result<Node> {
        let cards = WITH_CARDS.contains(&node) && self.network.is_some();
        let spec = Spec {
            node,
            life,
            names: self.names.clone(),
            cards,
            same_host: !WITH_CARDS.contains(&node),
            seed: self.wanted.seed,
        };
        let program = std::env::current_exe().context("finding this program's own file")?;
        let mut command = Command::new(program);
        command.args(["node", &serde_json::to_string(&spec)?]);
        for name in ["WEFT_PROTOCOL", "MOONCAKE_PROTOCOL", "MC_FORCE_TCP", "WEFT_CONFIG"] {
            command.env_remove(name);
        }
        if let (true, Some(network), Some(library)) = (cards, &self.network, &self.library) {
            command.env("FABRIC_LIBRARY", library).env_remove("LD_LIBRARY_PATH");
            let providers = library.parent().unwrap_or(Path::new(".")).join("libfabric");
            if providers.is_dir() {
                command.env("FI_PROVIDER_PATH", providers);
            }
            network.prepare(&mut command);
        }
        if let Some(bug) = &self.wanted.planted {
            command.env("WEFT_PLANTED", bug);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (orders, output) = (child.stdin.take(), child.stdout.take());
        let say = self.say.clone();
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|o| BufReader::new(o).lines()).map_while(Result::ok) {
                if let Ok(report) = serde_json::from_str(&line) {
                    let _ = say.send((node, life, Some(report)));
                }
            }
            let _ = say.send((node, life, None));
        });
        let heard = Instant::now();
        Ok(Node { child, orders, life, expected_to_end: false, stopped: false, heard })
    }

    fn log(&self, what: &str) {
        println!("{:7.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Until the time is over or something is wrong.
    fn play(&mut self, events: &mut usize) -> Result<Option<String>> {
        let field = Field {
            nodes: NODES,
            mortal: MORTAL.to_vec(),
            can_cut: self.isolation.is_some(),
            cards: if self.network.is_some() { CARDS } else { 0 },
        };
        let mut schedule = Schedule::new(field, self.wanted.seed);
        let end = self.started + self.wanted.time;
        let calm = end - CALM.min(self.wanted.time / 4);
        let mut undo: Vec<(Instant, Undo)> = Vec::new();
        // A bug that was planted has to be found by what the writers see: nothing else goes wrong.
        let quiet = self.wanted.planted.is_some();
        let mut next =
            (!quiet).then(|| schedule.next()).flatten().map(|(pause, event)| (self.started + pause, event));
        let mut told = Instant::now();
        loop {
            let now = Instant::now();
            let in_calm = now >= calm;
            while let Some(at) = undo.iter().position(|(when, _)| *when <= now || in_calm) {
                let (_, what) = undo.swap_remove(at);
                self.undo(what)?;
            }
            if now >= end {
                return Ok(self.judge());
            }
            match next.take() {
                Some((at, event)) if at <= now && !in_calm => {
                    self.log(&event.to_string());
                    *events += 1;
                    if let Some((lasts, what)) = self.happen(event)? {
                        undo.push((now + lasts, what));
                    }
                    next = schedule.next().map(|(pause, event)| (now + pause, event));
                }
                Some(_) if in_calm => self.log("everything is well from now on"),
                later => next = later,
            }
            if told.elapsed() >= Duration::from_secs(10) {
                told = Instant::now();
                let all = self.summaries();
                let sum = |of: fn(&Summary) -> u64| all.iter().map(of).sum::<u64>();
                let (done, failed, verified) =
                    (sum(|s| s.done), sum(|s| s.failed), sum(|s| s.verified) >> 20);
                self.log(&format!("{done} requests done, {failed} failed, {verified} MiB compared"));
            }
            match self.heard.recv_timeout(Duration::from_millis(20)) {
                Ok(heard) => {
                    if let Some(violation) = self.hear(heard)? {
                        return Ok(Some(violation));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("every reader has ended"),
            }
            let silent = |n: &Node| !n.stopped && !n.expected_to_end && n.heard.elapsed() > SILENCE;
            if let Some(node) = self.nodes.iter().position(silent) {
                return Ok(Some(format!("node {node} has said nothing for {SILENCE:?}: it hangs")));
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<Option<(Duration, Undo)>> {
        Ok(match event {
            Event::Kill(node, lasts) => {
                if self.nodes[node].expected_to_end {
                    return Ok(None); // not back yet
                }
                self.nodes[node].expected_to_end = true;
                self.nodes[node].stopped = false;
                self.nodes[node].child.kill()?;
                self.nodes[node].child.wait()?;
                Some((lasts, Undo::Start(node)))
            }
            Event::Stop(node, lasts) => {
                if self.nodes[node].expected_to_end {
                    return Ok(None);
                }
                self.signal(node, Signal::SIGSTOP)?;
                self.nodes[node].stopped = true;
                Some((lasts, Undo::Go(node)))
            }
            Event::Cut(nodes, lasts) => {
                if let Some(isolation) = &self.isolation {
                    nodes.iter().try_for_each(|n| isolation.cut(&format!("127.0.1.{}", n + 1)))?;
                }
                Some((lasts, Undo::Heal))
            }
            Event::Card(card, lasts) => {
                self.rule(&format!("down card={card}"))?.map(|id| (lasts, Undo::Rule(id)))
            }
            Event::Rule(rule, lasts) => self.rule(&rule)?.map(|id| (lasts, Undo::Rule(id))),
            Event::Reregister(node) => {
                let order = serde_json::to_string(&Order::Reregister)?;
                if let Some(orders) = &mut self.nodes[node].orders {
                    // A node that has just been killed does not read any more.
                    let _ = writeln!(orders, "{order}");
                }
                None
            }
        })
    }

    fn undo(&mut self, what: Undo) -> Result<()> {
        match what {
            Undo::Start(node) => {
                let life = self.nodes[node].life + 1;
                self.nodes[node] = self.start(node, life)?;
            }
            Undo::Go(node) => {
                if self.nodes[node].stopped {
                    self.signal(node, Signal::SIGCONT)?;
                    self.nodes[node].stopped = false;
                    self.nodes[node].heard = Instant::now();
                }
            }
            // Cuts overlap: the end of one ends all, and the next one comes soon.
            Undo::Heal => {
                if let Some(isolation) = &self.isolation {
                    isolation.heal()?;
                }
            }
            Undo::Rule(id) => {
                if let Some(network) = &self.network {
                    network.control(&format!("remove {id}"))?;
                }
            }
        }
        Ok(())
    }

    /// A rule for the cards; its number.
    fn rule(&self, rule: &str) -> Result<Option<String>> {
        let Some(network) = &self.network else { return Ok(None) };
        Ok(Some(network.control(rule)?.trim().to_owned()))
    }

    fn signal(&self, node: usize, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.nodes[node].child.id())?);
        kill(pid, signal).with_context(|| format!("{signal} to node {node}"))
    }

    fn hear(&mut self, (node, life, report): Heard) -> Result<Option<String>> {
        let current = &mut self.nodes[node];
        if current.life != life {
            return Ok(None); // the last words of an earlier life
        }
        current.heard = Instant::now();
        match report {
            Some(Report::Ready) => {}
            Some(Report::Alive(alive)) => self.lives[node].entry(life).or_default().push(alive),
            Some(Report::Violation(violation)) => return Ok(Some(violation)),
            None if current.expected_to_end => {}
            None => {
                let status = current.child.wait()?;
                return Ok(Some(format!("node {node} ended by itself with {status}")));
            }
        }
        Ok(None)
    }

    /// At the end, when all has been well for a while.
    fn judge(&self) -> Option<String> {
        for (node, lives) in self.lives.iter().enumerate() {
            let Some((_, last)) = lives.last_key_value() else {
                return Some(format!("node {node} has never said how it is"));
            };
            let Some(now) = last.last() else { continue };
            for peer in (0..NODES).filter(|&p| p != node) {
                let quiet = Duration::from_millis(now.quiet_ms[peer]);
                if quiet > HEALED {
                    return Some(format!(
                        "node {node} has got nothing done with node {peer} for {quiet:?} although all is well; last error: {}",
                        now.errors[peer]
                    ));
                }
            }
            // One whose traffic went over TCP all the time has shown nothing about the cards.
            let on_cards = |a: &Alive| a.paths.iter().any(|p| p.starts_with("efa"));
            let has_cards = self.network.is_some() && WITH_CARDS.contains(&node);
            if has_cards && !lives.values().flatten().any(on_cards) {
                return Some(format!("node {node} has cards and never used them: {:?}", now.paths));
            }
            if let Some(growth) = lives.values().find_map(|life| health::growth(life)) {
                return Some(format!("node {node} leaks: {growth}"));
            }
        }
        None
    }

    fn summaries(&self) -> Vec<Summary> {
        self.lives
            .iter()
            .map(|lives| {
                let mut summary = Summary { lives: lives.len() as u64, ..Summary::default() };
                for last in lives.values().filter_map(|life| life.last()) {
                    summary.done += last.done;
                    summary.failed += last.failed;
                    summary.verified += last.verified;
                    summary.last = last.clone();
                }
                summary
            })
            .collect()
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// The libfabric of `cargo xtask libfabric`, or the one that the environment names.
fn libfabric() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FABRIC_LIBRARY") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let executable = std::env::current_exe().ok()?;
    let mut places = executable.ancestors().map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1"));
    places.find(|path| path.is_file())
}

/// Whether a run is worth its time.
pub(crate) fn check(wanted: &Wanted) -> Result<()> {
    ensure!(wanted.time >= Duration::from_secs(5), "a soak of less than five seconds shows nothing");
    ensure!(
        wanted.planted.is_none() || cfg!(feature = "planted"),
        "this build has no bugs in it: build with --features planted"
    );
    Ok(())
}
