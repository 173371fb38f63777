//! Verification: batches of fresh contents, of which every byte is compared.
//!
//! Each round gives every place a seed of its own. A write is checked at the target by the target's program where that is `weft
//! serve`, and read back where it is not. For a read, the round's contents are written to the target first, and what comes back
//! is compared here. All threads' batches are in flight together, as when measuring.

use std::time::{Duration, Instant};

use engine::{Access, Batch, HostMemory, Region, Shape};

use super::worker::{Line, Traffic, failed, fill};
use super::{Op, Setting};
use crate::failure::Failure;
use crate::units::bytes;
use crate::verify::{self, Check, MAILBOX, PIECE, SLOT_BYTES, Verdict};

/// First pause before looking into the mailbox again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Runs rounds for about `time`, at least one; returns how many bytes were compared.
pub(crate) fn run(setting: &Setting, traffic: &Traffic, time: Duration) -> Result<u64, Failure> {
    let end = Instant::now() + time;
    let mut verified = 0;
    let checker = Checker::new(setting)?;
    loop {
        verified += checker.round(traffic)?;
        if Instant::now() >= end {
            break;
        }
    }
    checker.close()?;
    Ok(verified)
}

struct Checker<'a> {
    setting: &'a Setting,
    /// Where the target's outcomes are, and our memory for them; `None` where the target is not `weft serve`.
    mailbox: Option<(u64, HostMemory, Region)>,
}

impl<'a> Checker<'a> {
    fn new(setting: &'a Setting) -> Result<Self, Failure> {
        let mailbox = match setting.segment.buffer(MAILBOX) {
            Err(_) => None,
            Ok(buffer) => {
                let memory = HostMemory::new(SLOT_BYTES).map_err(|error| Failure::opening(&error))?;
                let region = setting
                    .engine
                    .register("verdict", memory.clone(), Access::LOCAL)
                    .map_err(|error| Failure::opening(&error))?;
                Some((buffer.addr(), memory, region))
            }
        };
        Ok(Self { setting, mailbox })
    }

    fn close(self) -> Result<(), Failure> {
        match self.mailbox {
            Some((_, _, region)) => {
                self.setting.engine.unregister(region).map_err(|error| Failure::transferring(&error))
            }
            None => Ok(()),
        }
    }

    fn round(&self, traffic: &Traffic) -> Result<u64, Failure> {
        let seed = fastrand::u64(..);
        let case = traffic.case;
        for line in &traffic.lines {
            for (slot, &place) in line.places.iter().enumerate() {
                write_pattern(
                    &line.memory,
                    slot as u64 * case.batch_bytes(),
                    case.batch_bytes(),
                    place,
                    seed,
                )?;
            }
        }
        self.move_all(traffic, Op::Write)?;
        if self.setting.op == Op::Read || self.mailbox.is_none() {
            // What was sent must not be mistaken for what came back.
            for line in &traffic.lines {
                wipe(&line.memory)?;
            }
            self.move_all(traffic, Op::Read)?;
        }
        let mut verified = 0;
        for line in &traffic.lines {
            for (slot, &place) in line.places.iter().enumerate() {
                match &self.mailbox {
                    Some(mailbox) if self.setting.op == Op::Write => {
                        self.ask_target(mailbox, place, case.batch_bytes(), seed)?;
                    }
                    _ => self.compare_here(
                        line,
                        slot as u64 * case.batch_bytes(),
                        case.batch_bytes(),
                        place,
                        seed,
                    )?,
                }
                verified += case.batch_bytes();
            }
        }
        Ok(verified)
    }

    /// Every batch of every thread, all in flight together.
    fn move_all(&self, traffic: &Traffic, op: Op) -> Result<(), Failure> {
        let mut handles = Vec::new();
        let failed = |error: &engine::Error| failed(self.setting, traffic.case, op, error);
        for line in &traffic.lines {
            for slot in 0..line.places.len() {
                let mut batch = Batch::new();
                fill(&mut batch, self.setting, traffic.case, line, slot, op)?;
                handles.push(self.setting.engine.submit(&mut batch).map_err(|error| failed(&error))?);
            }
        }
        handles.iter().try_for_each(|handle| handle.wait().map_err(|error| failed(&error)))
    }

    /// Has the target compare a range of its own memory.
    fn ask_target(
        &self,
        (mailbox, memory, region): &(u64, HostMemory, Region),
        offset: u64,
        len: u64,
        seed: u64,
    ) -> Result<(), Failure> {
        let Setting { engine, segment, buffer, deadline, .. } = self.setting;
        let check =
            Check { ticket: fastrand::u64(1..), buffer: buffer.label().to_owned(), offset, len, seed };
        let deadline = Instant::now() + *deadline;
        let lost =
            |error: engine::Error| Failure::Transfer(format!("asking {} to check: {error}", segment.name()));
        segment.notify(&check.to_bytes()?, deadline).map_err(lost)?;
        let mut batch = Batch::new();
        let mut pause = FIRST_PAUSE;
        loop {
            let slot = Shape::contiguous(mailbox + check.slot(), SLOT_BYTES as u64);
            batch.read(region, region.range(0, SLOT_BYTES as u64), segment, slot).map_err(lost)?;
            engine.submit(&mut batch).and_then(|handle| handle.wait()).map_err(lost)?;
            let mut bytes = [0; SLOT_BYTES];
            memory.read(0, &mut bytes).map_err(lost)?;
            match check.read_outcome(&bytes) {
                Some(Verdict::Right) => return Ok(()),
                Some(Verdict::WrongAt(at)) => return Err(wrong(buffer.label(), at, "at the target")),
                Some(Verdict::NoSuchRange) => {
                    return Err(Failure::Transfer(format!(
                        "{} does not serve the memory that was written (buffer {:?}); has it been restarted?",
                        segment.name(),
                        buffer.label()
                    )));
                }
                None if Instant::now() > deadline => {
                    return Err(Failure::Transfer(format!(
                        "{} did not check {} in time; is it stopped, or very busy? --deadline allows more",
                        segment.name(),
                        crate::units::bytes(len)
                    )));
                }
                None => {
                    // A pause between two looks, not a wait for a known time: the target compares at memory speed.
                    std::thread::park_timeout(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn compare_here(&self, line: &Line, at: u64, len: u64, place: u64, seed: u64) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < len {
            let now = (PIECE as u64).min(len - done) as usize;
            line.memory
                .read((at + done) as usize, &mut piece[..now])
                .map_err(|error| Failure::transferring(&error))?;
            if let Some(difference) = verify::first_difference(&piece[..now], place + done, seed) {
                return Err(wrong(self.setting.buffer.label(), difference, "in what was read"));
            }
            done += now as u64;
        }
        Ok(())
    }
}

fn wrong(buffer: &str, at: u64, place: &str) -> Failure {
    Failure::Transfer(format!(
        "verification failed: byte {at} of buffer {buffer:?} is wrong {place}, although the transfer was reported complete"
    ))
}

fn write_pattern(memory: &HostMemory, at: u64, len: u64, place: u64, seed: u64) -> Result<(), Failure> {
    let mut piece = vec![0; PIECE.min(len as usize)];
    let mut done = 0;
    while done < len {
        let now = (piece.len() as u64).min(len - done) as usize;
        verify::fill(&mut piece[..now], place + done, seed);
        memory.write((at + done) as usize, &piece[..now]).map_err(|error| Failure::transferring(&error))?;
        done += now as u64;
    }
    Ok(())
}

fn wipe(memory: &HostMemory) -> Result<(), Failure> {
    let zeros = vec![0; PIECE.min(memory.len())];
    let mut at = 0;
    while at < memory.len() {
        let now = zeros.len().min(memory.len() - at);
        memory.write(at, &zeros[..now]).map_err(|error| Failure::transferring(&error))?;
        at += now;
    }
    Ok(())
}

/// As the table shows it.
pub(crate) fn words(verified: Option<u64>) -> String {
    verified.map_or_else(|| "–".to_owned(), bytes)
}
