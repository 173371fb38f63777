//! Instructions of one request outside the kernel, both ends together: the figure that a noisy machine cannot blur.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use benchkit::callgrind::{Callgrind, Child};
use benchkit::{Bench, Metric, Result};
use tcp_transport::{Access, Batch, OwnedMemory, Request, Transport};

use crate::{Op, bare};

const SIZE: usize = 4096;

/// What this program does under callgrind: both ends live in it, and talk through a socket all the same.
pub(crate) fn run(child: &Child) -> Result<()> {
    let (which, op) = child.mode.split_once(' ').ok_or("the mode is `ours OP` or `bare OP`")?;
    let op = if op == Op::Read.name() { Op::Read } else { Op::Write };
    match which {
        "ours" => ours(op, child.operations),
        _ => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let addr = listener.local_addr()?;
            std::thread::spawn(move || bare::serve(listener));
            let mut lane = bare::Lane::connect(addr, SIZE)?;
            (0..child.operations).try_for_each(|_| lane.run(op, SIZE, 1, 0))
        }
    }
}

fn ours(op: Op, operations: u64) -> Result<()> {
    let builder = || Transport::builder().same_process(false).same_host(false).lanes(1).io_threads(1);
    let target = builder().listen("127.0.0.1:0".parse()?).build()?;
    let remote = target.register(OwnedMemory::new(SIZE)?, Access::READ_WRITE)?;
    let asker = builder().build()?;
    let local = asker.register(OwnedMemory::new(SIZE)?, Access::LOCAL)?;
    let peer = asker.peer(target.local_addrs()[0])?;
    peer.connect(Instant::now() + Duration::from_secs(30))?;
    let mut batch = Batch::new();
    for _ in 0..operations {
        let (l, d) = (local.addr(), remote.descriptor());
        batch.push(match op {
            Op::Write => Request::write(&peer, &local, l, d, d.addr, SIZE as u64),
            Op::Read => Request::read(&peer, &local, l, d, d.addr, SIZE as u64),
        })?;
        asker.submit(&mut batch)?.wait()?;
    }
    Ok(())
}

/// Both, where valgrind is installed.
pub(crate) fn compare(bench: &mut Bench) -> Result<()> {
    for op in Op::BOTH {
        let case = format!("op={} size={SIZE} batch=1 threads=1 path=net", op.name());
        if !bench.wants(&case) {
            continue;
        }
        let count = |which: &str| {
            Callgrind::this_program(&format!("{which} {}", op.name())).instructions_per_operation(2000)
        };
        if let (Some(ours), Some(bare)) = (count("ours")?, count("bare")?) {
            bench.case(case).count(Metric::Instructions, ours, Some(("bare blocking ping-pong", bare)))?;
        }
    }
    Ok(())
}
