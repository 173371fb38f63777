//! `weft doctor`: what this machine has, which way transfers take and why, what is slow and how to mend it.
//!
//! | chapter | what it is |
//! |---|---|
//! | `facts` | what the kernel tells: cards, memory, limits, network settings |
//! | `fabric` | what libfabric tells, and what our transport would make of it |
//! | `paths` | which way each kind of transfer takes |
//! | `advice` | what is good, what is slow, what to do |
//! | `report` | all of it in words |
//!
//! Facts are read from files below a root, which need not be this machine's; only libfabric is always asked here.

pub(crate) mod advice;
pub(crate) mod fabric;
pub(crate) mod facts;
pub(crate) mod paths;
pub(crate) mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::connection::{Protocol, ToPeer};
use crate::failure::Failure;
use crate::output::Output;
use crate::units::figures;
use advice::Advice;
use facts::Facts;
use paths::Way;

/// Says what this machine has, which way transfers take and why, what is slow and how to mend it
///
/// With names of peers it also opens each of them and says which way leads there. Changes nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Peers to try, host:port, as their `weft serve` prints it
    #[arg(value_name = "PEER")]
    peers: Vec<String>,
    /// Read sys/, proc/ and dev/ below this directory: another machine's, or a host's that is mounted into a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    to_peer: ToPeer,
}

/// Everything, for programs.
#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    paths: Vec<Way>,
    advice: Vec<Advice>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    peers: Vec<PeerReport>,
}

/// What came of trying a peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PeerReport {
    pub(crate) name: String,
    /// Which way, or why there is none.
    pub(crate) path: Result<String, String>,
    /// Why that way.
    pub(crate) reason: String,
    /// A question to its engine and the answer, in microseconds.
    pub(crate) round_trip_us: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    if !args.root.is_dir() {
        return Err(Failure::Usage(format!("--root {:?} is no directory", args.root)));
    }
    let connection = &args.to_peer.connection;
    let forced_tcp = connection.protocol == Some(Protocol::Tcp);
    let mut facts = Facts::gather(&args.root);
    facts.fabric = fabric::ask(connection.provider.as_deref(), forced_tcp);
    let paths = paths::ways(&facts);
    let advice = advice::advise(&facts);
    let peers: Vec<PeerReport> =
        args.peers.iter().map(|name| try_peer(args, name)).collect::<Result<_, _>>()?;
    let unreachable = peers.iter().filter(|peer| peer.path.is_err()).count();
    let report = Report { facts, paths, advice, peers };
    if args.json {
        output.json(&report)?;
    } else {
        if args.root != Path::new("/") {
            output.line(format!(
                "(files are read below {}; libfabric and the environment are those of this process)\n",
                args.root.display()
            ));
        }
        report::print(&report.facts, &report.paths, &report.advice, &report.peers, output);
    }
    match unreachable {
        0 => Ok(()),
        // With --json stdout has it; people have read it above.
        _ if args.json => Err(Failure::Quiet(3)),
        1 => Err(Failure::Unavailable("a peer cannot be reached, see above".into())),
        count => Err(Failure::Unavailable(format!("{count} peers cannot be reached, see above"))),
    }
}

fn try_peer(args: &Args, name: &str) -> Result<PeerReport, Failure> {
    let engine = args.to_peer.engine(name)?;
    let limit = args.to_peer.connect_timeout;
    let tried = args.to_peer.segment(&engine, name).and_then(|segment| {
        segment.warm_up(Instant::now() + limit).map_err(|error| Failure::opening(&error))?;
        let trip = segment.probe(Instant::now() + limit).map_err(|error| Failure::opening(&error))?;
        Ok((segment.path().to_string(), segment.path_reason(), trip))
    });
    engine.shutdown(Instant::now() + Duration::from_secs(1));
    match tried {
        Ok((path, reason, trip)) => Ok(PeerReport {
            name: name.to_owned(),
            path: Ok(path),
            reason,
            round_trip_us: Some((trip.as_secs_f64() * 1e7).round() / 10.0),
        }),
        Err(usage @ (Failure::Usage(_) | Failure::File { .. })) => Err(usage),
        Err(failure) => Ok(PeerReport {
            name: name.to_owned(),
            path: Err(failure.to_string()),
            reason: String::new(),
            round_trip_us: None,
        }),
    }
}

impl PeerReport {
    pub(crate) fn words(&self) -> String {
        match (&self.path, self.round_trip_us) {
            (Ok(path), Some(trip)) => {
                format!(
                    "{}: {path}, because {}; its engine answers in {} µs",
                    self.name,
                    self.reason,
                    figures(trip)
                )
            }
            (Ok(path), None) => format!("{}: {path}", self.name),
            (Err(reason), _) => format!("{}: not reachable: {reason}", self.name),
        }
    }
}
