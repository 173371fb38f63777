//! The process that the user started: finds out which transports there are, runs a target and an initiator over each, and
//! prints what came of it. The two run in processes of their own, so that one that is killed or crashes inside a provider
//! cannot take the report with it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use indicatif::{ProgressBar, ProgressStyle};

use crate::message::{Report, Row};
use crate::spec::{Spec, Transport};

/// How long a child may take to come up: libfabric and the registration of the pool are in it.
const START: Duration = Duration::from_secs(60);

/// A transport that was run.
pub(crate) struct Outcome {
    pub(crate) transport: &'static str,
    pub(crate) path: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) error: Option<String>,
}

/// Asks, in a process of its own, which libfabric providers an engine can open here.
pub(crate) fn probe_providers() -> anyhow::Result<Vec<(String, Result<String, String>)>> {
    let mut child = Running::start("probe", &[])?;
    let mut found = Vec::new();
    loop {
        match child.next(START) {
            Next::Report(Report::Provider { name, found: provider }) => found.push((name, provider)),
            Next::Report(_) => {}
            Next::Ended(status) if status.success() => return Ok(found),
            Next::Ended(status) => {
                // What was found before the crash still counts.
                found.push(("libfabric".into(), Err(format!("probing it ended with {status}"))));
                return Ok(found);
            }
            Next::Silent => {
                child.kill();
                found.push(("libfabric".into(), Err(format!("probing it took more than {START:?}"))));
                return Ok(found);
            }
        }
    }
}

/// Runs one target and one initiator. Whatever goes wrong is in the outcome.
pub(crate) fn run(spec: &Spec, bar: &ProgressBar) -> Outcome {
    let mut outcome =
        Outcome { transport: spec.transport.name(), path: String::new(), rows: Vec::new(), error: None };
    if let Err(error) = play(spec, bar, &mut outcome) {
        outcome.error = Some(format!("{error:#}"));
    }
    outcome
}

fn play(spec: &Spec, bar: &ProgressBar, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut target = Running::start("target", &[serde_json::to_string(spec)?])?;
    let name = match target.next(START) {
        Next::Report(Report::Listening { name }) => name,
        Next::Ended(status) => bail!("the target ended with {status} before it listened"),
        _ => bail!("the target did not listen within {START:?}"),
    };
    let spec = Spec { target: name, ..spec.clone() };
    let mut initiator = Running::start("initiator", &[serde_json::to_string(&spec)?])?;
    // A request may take its deadline, its confirmation the same again; connecting has one of its own.
    let silence = START + 3 * spec.deadline;
    let status = loop {
        match initiator.next(silence) {
            Next::Report(Report::Connected { path }) => outcome.path = path,
            Next::Report(Report::Progress { requests, bytes, elapsed }) => {
                bar.set_position((elapsed.as_millis() as u64).min(spec.traffic.as_millis() as u64));
                bar.set_message(format!(
                    "{} {}: {requests} requests, {:.1} GiB verified",
                    outcome.transport,
                    outcome.path,
                    bytes as f64 / f64::from(1 << 30)
                ));
            }
            Next::Report(Report::Row(row)) => outcome.rows.push(row),
            Next::Report(_) => {}
            Next::Ended(status) => break status,
            Next::Silent => bail!("the initiator has said nothing for {silence:?}; it was ended"),
        }
    };
    if !status.success() {
        bail!("the initiator ended with {status}");
    }
    match target.next(2 * spec.deadline) {
        Next::Ended(status) if status.success() => Ok(()),
        Next::Ended(status) => bail!("the target ended with {status}"),
        _ => bail!("the target did not end after the initiator had finished; it was ended"),
    }
}

/// Draws progress on terminals and nothing elsewhere.
pub(crate) fn progress_bar(traffic: Duration) -> ProgressBar {
    let bar = ProgressBar::new(traffic.as_millis() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    bar
}

enum Next {
    Report(Report),
    Ended(std::process::ExitStatus),
    Silent,
}

/// A child process, ended when this is dropped.
struct Running {
    child: Child,
    lines: Receiver<Report>,
}

impl Running {
    fn start(role: &str, args: &[String]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let mut child = Command::new(program)
            .arg(role)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the {role} process"))?;
        let (sender, lines) = unbounded();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // A library that prints to the output is not a report.
                    if let Ok(report) = serde_json::from_str(&line)
                        && sender.send(report).is_err()
                    {
                        return;
                    }
                }
            });
        }
        Ok(Self { child, lines })
    }

    /// The next report; or how the child ended, once it has closed its output.
    fn next(&mut self, patience: Duration) -> Next {
        let deadline = Instant::now() + patience;
        match self.lines.recv_deadline(deadline) {
            Ok(report) => Next::Report(report),
            Err(RecvTimeoutError::Timeout) => Next::Silent,
            Err(RecvTimeoutError::Disconnected) => match self.child.wait() {
                Ok(status) => Next::Ended(status),
                Err(_) => Next::Silent,
            },
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The runs that this machine can make, and a line for each that it cannot.
pub(crate) fn plan(
    wanted: &[Wanted],
    provider: Option<&str>,
    providers: &[(String, Result<String, String>)],
) -> (Vec<Transport>, Vec<String>) {
    let mut runs = Vec::new();
    let mut notes = Vec::new();
    for wanted in wanted {
        match wanted {
            Wanted::Tcp => runs.extend([false, true].map(|same_host| Transport::Tcp { same_host })),
            Wanted::Libfabric => {
                let usable = |name: &str| provider.is_none_or(|only| only == name);
                let mut chosen = false;
                for (name, found) in providers.iter().filter(|(name, _)| usable(name)) {
                    match found {
                        Ok(what) if !chosen => {
                            let provider = (name != "efa").then(|| name.clone());
                            runs.push(Transport::Fabric { provider });
                            let what = what.lines().skip(1).map(str::trim).collect::<Vec<_>>().join("; ");
                            notes.push(format!("libfabric provider {name}: used; {what}"));
                            chosen = true;
                        }
                        Ok(_) => notes.push(format!("libfabric provider {name}: there, but a better one is")),
                        Err(reason) => notes.push(format!("libfabric provider {name}: not used: {reason}")),
                    }
                }
            }
        }
    }
    (runs, notes)
}

/// A kind of transport that the user wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wanted {
    /// TCP: through sockets, and the copy between processes of one host
    Tcp,
    /// The best libfabric provider found: efa, else tcp, else shm
    Libfabric,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_provider_that_opens_is_taken_and_every_other_is_explained() {
        let providers = [
            ("efa".to_owned(), Err("no card".to_owned())),
            ("tcp".to_owned(), Ok("tcp;ofi_rxm".to_owned())),
            ("shm".to_owned(), Ok("shm".to_owned())),
        ];
        let (runs, notes) = plan(&[Wanted::Tcp, Wanted::Libfabric], None, &providers);
        assert_eq!(runs.len(), 3);
        assert_eq!(runs[2], Transport::Fabric { provider: Some("tcp".into()) });
        assert_eq!(notes.len(), 3);
        assert!(notes[0].contains("no card"), "{notes:?}");

        let (runs, _) = plan(&[Wanted::Libfabric], Some("shm"), &providers);
        assert_eq!(runs, [Transport::Fabric { provider: Some("shm".into()) }]);
        let (runs, notes) = plan(&[Wanted::Libfabric], Some("efa"), &providers);
        assert!(runs.is_empty() && notes[0].contains("no card"));
    }
}
