//! The target: this program as a child, which drives its provider until it is told to go.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use benchkit::{OtherEnd, Result};

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
    _process: OtherEnd,
    point: Point,
}

impl Target {
    /// Starts it and waits until it can be written to.
    pub(crate) fn start(provider: &str) -> Result<Self> {
        let mut process = OtherEnd::start(PROVIDER, provider)?;
        let [name, address, key] = process.words()?;
        let point = Point { name: hex::decode(name)?, address: address.parse()?, key: key.parse()? };
        Ok(Self { _process: process, point })
    }

    /// Where to write.
    pub(crate) fn point(&self) -> &Point {
        &self.point
    }
}

/// What the child does.
pub(crate) fn serve(provider: &str) -> Result<()> {
    let mut bare = Bare::open(provider, REGION_BYTES)?;
    let point = bare.point()?;
    OtherEnd::say(&format!("{} {} {}", hex::encode(&point.name), point.address, point.key))?;
    static DONE: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        OtherEnd::stay().ok();
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
