//! Who runs the engine: the card's thread, and programs that poll.
//!
//! One thread serves all cards of a process. It sleeps on a futex while there is nothing to do. When a program polls a completion
//! queue in a loop, that program's thread runs the engine each time it finds the queue empty (it could do nothing better), and the
//! card's thread only dozes and looks whether the polling goes on: with two cores and two polling processes there would be no core
//! left for it. As soon as the program stops polling or goes to sleep on a completion channel, the thread takes over, so what was
//! posted always gets done.
//!
//! On a run with a clock of its own the card works in step with the program instead: see [`pace`].

use super::completion::CompletionQueue;
use super::device::Card;
use super::engine;
use super::pace;
use super::process::Process;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the thread dozes while a program polls.
const DOZE: Duration = Duration::from_micros(200);
/// Polls within one doze that make a program a polling one.
const POLLING: u64 = 8;
/// Pause when another thread holds the engine, or a ring is full.
const BREATH: Duration = Duration::from_micros(50);
/// Longest sleep while a request waits for an answer: how late the death of its target may be noticed.
const WATCH: Duration = Duration::from_millis(5);
/// Requests or pieces that one turn of the card's thread works on, and one poll of a program.
const TURN: usize = 64;
const POLL_TURN: usize = 8;

/// Starts the card's thread, once a process.
pub(crate) fn start(process: &Arc<Process>) {
    if process.thread_started.swap(true, Ordering::AcqRel) {
        return;
    }
    let theirs = process.clone();
    // The program's signals are the program's: the thread starts with all of them blocked.
    // SAFETY: sigfillset initialises the set; pthread_sigmask reads one set and fills the other.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let spawned = std::thread::Builder::new().name("soft-efa-card".into()).spawn(move || serve(&theirs));
    // SAFETY: restores the mask that was read above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    if let Err(error) = spawned {
        eprintln!(
            "soft-efa: no thread for the card ({error}); requests make progress only while the program polls"
        );
    }
}

fn serve(process: &Arc<Process>) {
    // SAFETY: prctl with integers. Short sleeps shall be short.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000, 0, 0, 0) };
    if process.pace.is_stepped() {
        return serve_in_step(process);
    }
    let mut seen = vec![0u64; process.settings.nics];
    loop {
        let (mut worked, mut polled) = (false, false);
        process.faults.refresh(process);
        for card in process.open_cards() {
            let polls = card.polls.load(Ordering::Relaxed);
            let since = polls.wrapping_sub(std::mem::replace(&mut seen[card.index], polls));
            if process.settings.assist && since >= POLLING {
                polled = true;
            } else {
                worked |= work_on(card, TURN);
            }
        }
        if !polled {
            worked |= process.receive();
        }
        if worked {
            continue;
        }
        let me = process.me();
        let bell = me.doorbell.load(Ordering::SeqCst);
        if polled {
            me.sleeping.store(2, Ordering::SeqCst);
            sleep(process, bell, Some(DOZE));
        } else {
            me.sleeping.store(1, Ordering::SeqCst);
            let pause = match process.open_cards().any(|card| card.ready.load(Ordering::SeqCst) > 0)
                || process.has_mail()
            {
                true => Some(BREATH),
                false => until_due(process),
            };
            sleep(process, bell, pause);
        }
        me.sleeping.store(0, Ordering::SeqCst);
    }
}

/// The thread's part on a run with a clock of its own: it takes in what comes from others, and works for a program that sleeps.
fn serve_in_step(process: &Arc<Process>) {
    loop {
        process.faults.refresh(process);
        let me = process.me();
        let bell = me.doorbell.load(Ordering::SeqCst);
        let mut worked = pace::receive_for_others(process);
        let alone = pace::is_left_to_the_card(process);
        if alone {
            worked |= pace::work(process) || pace::wait(process);
        }
        if worked {
            continue;
        }
        let outstanding = process
            .open_cards()
            .any(|card| card.ready.load(Ordering::SeqCst) + card.waiting.load(Ordering::SeqCst) > 0);
        me.sleeping.store(1, Ordering::SeqCst);
        let pause = match (process.has_mail(), outstanding) {
            (true, _) => Some(BREATH),
            (false, true) => Some(WATCH),
            (false, false) => None,
        };
        sleep(process, bell, pause);
        me.sleeping.store(0, Ordering::SeqCst);
    }
}

fn until_due(process: &Process) -> Option<Duration> {
    process
        .open_cards()
        .filter(|card| card.waiting.load(Ordering::SeqCst) > 0)
        .map(|card| {
            let due = engine::next_due(card);
            if due == pace::NEVER { WATCH } else { pace::until(due).min(WATCH) }
        })
        .min()
}

fn sleep(process: &Process, bell: u32, longest: Option<Duration>) {
    let limit = longest.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: limit.subsec_nanos().max(1000).into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: FUTEX_WAIT on a mapped word, with a timeout that lives until the call returns.
    unsafe {
        libc::syscall(libc::SYS_futex, process.me().doorbell.as_ptr(), libc::FUTEX_WAIT, bell, limit, 0, 0)
    };
}

fn work_on(card: &Arc<Card>, turn: usize) -> bool {
    if card.ready.load(Ordering::SeqCst) == 0 && card.waiting.load(Ordering::SeqCst) == 0 {
        return false;
    }
    engine::run(card, turn)
}

/// A program has polled a queue of this card and found it empty: let it work.
pub(crate) fn lend(card: &Arc<Card>, queue: &CompletionQueue) {
    if card.process.pace.is_stepped() {
        return pace::polled_in_vain(&card.process, queue);
    }
    card.polls.fetch_add(1, Ordering::Relaxed);
    if !card.process.settings.assist {
        return;
    }
    card.process.receive();
    work_on(card, POLL_TURN);
}
