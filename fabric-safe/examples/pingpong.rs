//! Messages to and fro between two processes, and how long one takes.
//!
//!     cargo run --release -p fabric-safe --example pingpong -- PROVIDER [MESSAGES] [BYTES]
//! Starts itself a second time; the two tell each other their addresses through pipes.

use std::error::Error;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use fabric_safe::{
    Access, AddressVector, CompletionBatch, CompletionQueue, CompletionQueueOptions, Direction, Domain,
    Endpoint, Fabric, Hints, OperationKind, PostError,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--pong") {
        words.remove(0);
        return play(&words, false, &mut std::io::stdin(), &mut std::io::stdout());
    }
    let mut pong = Command::new(std::env::current_exe()?)
        .arg("--pong")
        .args(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut to = pong.stdin.take().ok_or("no pipe")?;
    let mut from = pong.stdout.take().ok_or("no pipe")?;
    let played = play(&words, true, &mut from, &mut to);
    drop(to); // the other side may end
    let status = pong.wait()?;
    if status.success() { played } else { Err(format!("the other side: {status}").into()) }
}

fn play(
    words: &[String],
    first: bool,
    from: &mut impl Read,
    to: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let provider = words.first().map_or("tcp;ofi_rxm", String::as_str);
    let count: u64 = words.get(1).map_or(Ok(10_000), |word| word.parse())?;
    let size: usize = words.get(2).map_or(Ok(64), |word| word.parse())?;

    let infos = Hints::new().provider(provider).discover()?;
    let info = infos.first().ok_or("no such provider here")?;
    let domain = Domain::open(&Fabric::open(info)?, info)?;
    let vector = AddressVector::open(&domain, Default::default())?;
    let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(info))?;
    let endpoint = Endpoint::open(&domain, info)?
        .bind_address_vector(&vector)?
        .bind_completion_queue(&queue, Direction::Both)?
        .enable()?;

    let name = endpoint.name()?;
    to.write_all(&[u8::try_from(name.len())?])?;
    to.write_all(&name)?;
    to.flush()?;
    let mut len = [0];
    from.read_exact(&mut len)?;
    let mut theirs = vec![0; usize::from(len[0])];
    from.read_exact(&mut theirs)?;
    let peer = vector.insert(&theirs)?;

    let memory = domain.register(vec![0; 2 * size], Access::SEND | Access::RECV)?;
    let (ball, glove) = (memory.slice(0..size)?, memory.slice(size..2 * size)?);
    let mut batch = CompletionBatch::new(16);
    let (mut to_send, mut caught) = (u64::from(first), 0);
    endpoint.receive(None, glove, 0)?;
    let start = Instant::now();
    while caught < count || to_send > 0 || endpoint.transmit_in_flight() > 0 {
        while to_send > 0 {
            match endpoint.send(&peer, ball, 0) {
                Ok(_) => to_send -= 1,
                Err(PostError::Again) => break, // poll first
                Err(error) => return Err(error.into()),
            }
        }
        for completion in queue.poll(&mut batch)? {
            completion.result().map_err(Clone::clone)?;
            if completion.kind() != OperationKind::Receive {
                continue;
            }
            caught += 1;
            to_send += u64::from(caught < count || !first); // the first to play catches last
            if caught < count {
                endpoint.receive(None, glove, 0)?;
            }
        }
    }
    if first {
        let one_way = start.elapsed().as_secs_f64() * 1e6 / (2 * count) as f64;
        println!("{provider}: {count} times {size} bytes to and fro, {one_way:.2} µs each way");
    } else {
        from.read_to_end(&mut Vec::new())?; // until the other side has caught the last one
    }
    Ok(())
}
