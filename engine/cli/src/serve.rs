//! `weft serve`: a target that registers memory, waits for peers, and checks what they wrote when they ask for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::{Access, Engine, HostMemory, Notification};
use serde::Serialize;

use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{bytes, parse_duration, parse_size};
use crate::verify::{Check, MAILBOX, MAILBOX_BYTES, Verdict};

/// The port of `weft serve` where none is given.
pub(crate) const DEFAULT_ADDR: &str = "127.0.0.1:7420";
/// How long requests of peers may still run when the program ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// Registers memory and waits for peers: the target of `weft bench` and `weft probe`
///
/// Runs until it is interrupted. Reaches and is reached by this machine only unless --listen says more.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where peers reach this process; `0.0.0.0:7420` for all interfaces, port 0 for a free one
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADDR)]
    listen: SocketAddr,
    /// The name that peers use: host:port, or anything with a metadata store. Default: the address, or this host's name and the
    /// port where that is a wildcard
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Memory to serve, over all buffers
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    size: u64,
    /// Number of buffers that the memory is registered as
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    buffers: u64,
    /// Use reserved huge pages, which cost a card far fewer page table entries
    #[arg(long)]
    hugepages: bool,
    /// End after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Answer Prometheus at http://ADDR/metrics
    #[cfg(feature = "prometheus")]
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Print what is served as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What is served, for programs.
#[derive(Debug, Serialize)]
struct Served {
    name: String,
    buffers: Vec<ServedBuffer>,
    /// The libfabric path in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    fabric: Option<String>,
    /// Why there is no libfabric path.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_fabric: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
}

#[derive(Debug, Serialize)]
struct ServedBuffer {
    label: String,
    addr: u64,
    len: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let engine = args.connection.engine(args.listen, name(args)?.as_deref())?;
    // After the engine has opened libfabric: some of its providers install handlers that end the process with status 1.
    let stop = crate::signals::on_signal();
    let (memory, mut served) = register(args, &engine)?;
    match engine.fabric() {
        Ok(description) => served.fabric = Some(description),
        Err(error) => served.no_fabric = Some(error.to_string()),
    }
    #[cfg(feature = "prometheus")]
    let _exporter = match args.metrics {
        Some(addr) => {
            let exporter = crate::metrics::Exporter::start(addr, &engine)?;
            served.metrics = Some(exporter.url());
            Some(exporter)
        }
        None => None,
    };
    tell(args, &served, output)?;

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| answer(&engine, &memory, &over));
        stop.wait(args.duration);
        over.store(true, Ordering::Relaxed);
        engine.shutdown(Instant::now() + GOODBYE);
    });
    if !args.json {
        output.remark("stopped");
    }
    Ok(())
}

/// The name to be served under; `None` leaves the address.
fn name(args: &Args) -> Result<Option<String>, Failure> {
    match &args.name {
        Some(name) => Ok(Some(name.clone())),
        None => name_for(args.listen),
    }
}

/// A wildcard stands for every address; peers need one that they can connect to.
fn name_for(listen: SocketAddr) -> Result<Option<String>, Failure> {
    if !listen.ip().is_unspecified() {
        return Ok(None);
    }
    if listen.port() == 0 {
        return Err(Failure::Usage(format!(
            "--listen {listen} takes any port of every address, so peers would not know a name; give a port, or --name host:port"
        )));
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(Some(format!("{host}:{}", listen.port())))
}

fn register(args: &Args, engine: &Engine) -> Result<(Vec<(String, HostMemory)>, Served), Failure> {
    let each = args.size / args.buffers;
    let len = usize::try_from(each).unwrap_or(usize::MAX);
    if len == 0 {
        return Err(Failure::Usage(format!(
            "--size {} is less than a byte for each of {} buffers",
            bytes(args.size),
            args.buffers
        )));
    }
    let mut memory = Vec::new();
    let mut served = Served {
        name: engine.name().to_owned(),
        buffers: Vec::new(),
        fabric: None,
        no_fabric: None,
        metrics: None,
    };
    let mut add = |label: String, len: usize, access: Access| {
        let host = if args.hugepages && label != MAILBOX {
            HostMemory::hugepages(len)
        } else {
            HostMemory::new(len)
        }
        .map_err(|error| {
            Failure::Unavailable(format!("{} of memory for buffer {label:?}: {error}", bytes(len as u64)))
        })?;
        let region =
            engine.register(&label, host.clone(), access).map_err(|error| Failure::opening(&error))?;
        served.buffers.push(ServedBuffer { label: label.clone(), addr: region.addr(), len: region.len() });
        memory.push((label, host));
        Ok(())
    };
    for index in 0..args.buffers {
        let label = if args.buffers == 1 { "pool".to_owned() } else { format!("pool-{index}") };
        add(label, len, Access::READ_WRITE)?;
    }
    add(MAILBOX.to_owned(), MAILBOX_BYTES, Access::READ)?;
    Ok((memory, served))
}

fn tell(args: &Args, served: &Served, output: &Output) -> Result<(), Failure> {
    if args.json {
        let line = serde_json::to_string(served).map_err(|error| Failure::Usage(error.to_string()))?;
        output.line(line);
        return Ok(());
    }
    let what = match args.buffers {
        1 => "buffer \"pool\"".to_owned(),
        count => format!("{count} buffers, \"pool-0\" to \"pool-{}\"", count - 1),
    };
    output.line(format!("serving {} as {} ({what})", bytes(args.size), served.name));
    match (&served.fabric, &served.no_fabric) {
        (Some(description), _) => output.line(format!("libfabric: {}", description.trim_end())),
        (None, Some(reason)) => output.line(format!("TCP only: {reason}")),
        (None, None) => {}
    }
    if let Some(url) = &served.metrics {
        output.line(format!("metrics: {url}"));
    }
    if args.listen.ip().is_loopback() {
        output.line("only this machine can connect; --listen 0.0.0.0:7420 lets others");
    }
    output.line(format!("try: weft bench --target {}", served.name));
    Ok(())
}

/// Carries out checks until the engine is shut down.
fn answer(engine: &Engine, memory: &[(String, HostMemory)], over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if let Some(notification) = engine.notification(Instant::now() + Duration::from_secs(1)) {
            carry_out(&notification, memory);
        }
    }
}

fn carry_out(notification: &Notification, memory: &[(String, HostMemory)]) {
    let find = |label: &str| memory.iter().find(|(known, _)| known == label).map(|(_, memory)| memory);
    let (Some(check), Some(mailbox)) = (Check::from_bytes(&notification.payload), find(MAILBOX)) else {
        tracing::info!(from = notification.from, bytes = notification.payload.len(), "notification");
        return;
    };
    let verdict = find(&check.buffer).map_or(Verdict::NoSuchRange, |memory| check.carry_out(memory));
    if verdict != Verdict::Right {
        tracing::warn!(from = notification.from, buffer = check.buffer, ?verdict, "a check failed");
    }
    // The slot lies inside the mailbox by construction.
    if let Err(error) = mailbox.write(check.slot() as usize, &check.outcome(verdict)) {
        tracing::error!(%error, "the mailbox");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_served_under_the_hosts_name() {
        assert_eq!(name_for("127.0.0.1:0".parse().unwrap()).unwrap(), None);
        assert_eq!(name_for("0.0.0.0:0".parse().unwrap()).unwrap_err().status(), 2);
        let name = name_for("[::]:7420".parse().unwrap()).unwrap().unwrap();
        assert!(name.ends_with(":7420") && name.len() > 5, "{name}");
    }

    #[test]
    fn only_checks_of_known_buffers_are_right() {
        let memory = [("pool", 4096), (MAILBOX, MAILBOX_BYTES)]
            .map(|(label, len)| (label.to_owned(), HostMemory::new(len).unwrap()));
        let ask = |buffer: &str| {
            let check = Check { ticket: 3, buffer: buffer.into(), offset: 0, len: 4096, seed: 1 };
            let payload = check.to_bytes().unwrap();
            carry_out(&Notification { from: "test".into(), payload }, &memory);
            let mut slot = [0; crate::verify::SLOT_BYTES];
            memory[1].1.read(check.slot() as usize, &mut slot).unwrap();
            check.read_outcome(&slot).unwrap()
        };
        assert_eq!(ask("pool"), Verdict::WrongAt(0), "zeros are not the pattern");
        assert_eq!(ask("nonesuch"), Verdict::NoSuchRange);
        let mut right = vec![0; 4096];
        crate::verify::fill(&mut right, 0, 1);
        memory[0].1.write(0, &right).unwrap();
        assert_eq!(ask("pool"), Verdict::Right);
        carry_out(&Notification { from: "test".into(), payload: b"hello".to_vec() }, &memory);
    }
}
