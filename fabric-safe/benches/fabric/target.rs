//! The target: this program as a child, which drives its provider until it is told to go.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use benchkit::Result;

use crate::REGION_BYTES;
use crate::bare::Bare;

const PROVIDER: &str = "FABRIC_BENCH_TARGET";

/// What is needed to write to an endpoint's memory.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) name: Vec<u8>,
    pub(crate) address: u64,
    pub(crate) key: u64,
}

/// The provider, if this process is to be the target.
pub(crate) fn asked_for() -> Option<String> {
    std::env::var(PROVIDER).ok()
}

/// A running target; ends when it is dropped.
pub(crate) struct Target {
    child: Child,
    point: Point,
}

impl Target {
    /// Starts it and waits until it can be written to.
    pub(crate) fn start(provider: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(PROVIDER, provider)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, address, key] = words[..] else {
            return Err(format!("the target did not start; it said {line:?}").into());
        };
        let name = (0..name.len() / 2).map(|i| u8::from_str_radix(&name[2 * i..2 * i + 2], 16));
        let name = name.collect::<std::result::Result<_, _>>()?;
        Ok(Self { child, point: Point { name, address: address.parse()?, key: key.parse()? } })
    }

    /// Where to write.
    pub(crate) fn point(&self) -> &Point {
        &self.point
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has been told to end; nothing is left to do about an error.
        self.child.wait().ok();
    }
}

/// What the child does.
pub(crate) fn serve(provider: &str) -> Result<()> {
    let mut bare = Bare::open(provider, REGION_BYTES)?;
    let point = bare.point()?;
    let name: String = point.name.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{name} {} {}", point.address, point.key);
    std::io::stdout().flush()?;
    static DONE: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        // Until the parent closes its end, or dies.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        DONE.store(true, Ordering::Relaxed);
    });
    while !DONE.load(Ordering::Relaxed) {
        if bare.poll()? == 0 {
            // On two cores the initiator needs the other one, and libfabric's own threads this one.
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// A file that cargo has built beside this program.
pub(crate) fn beside_this_program(file: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program.ancestors().map(|dir| dir.join(file)).find(|path| path.is_file());
    Ok(found.ok_or_else(|| format!("{file} is not beside {}", program.display()))?)
}
