//! Two endpoints of one process: one writes into the memory of the other, and reads it back.
//!
//!     cargo run -p fabric-safe --example rma -- [PROVIDER]

use std::error::Error;

use fabric_safe::{
    Access, AddressVector, CompletionBatch, CompletionQueue, CompletionQueueOptions, Direction, Domain,
    Endpoint, Fabric, Hints, Info, PostError,
};

/// An endpoint and the queue that its operations end in.
struct Node {
    endpoint: Endpoint,
    queue: CompletionQueue,
    vector: AddressVector,
    domain: Domain,
}

impl Node {
    fn open(info: &Info) -> Result<Node, fabric_safe::Error> {
        let fabric = Fabric::open(info)?;
        let domain = Domain::open(&fabric, info)?;
        let vector = AddressVector::open(&domain, Default::default())?;
        let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(info))?;
        let endpoint = Endpoint::open(&domain, info)?
            .bind_address_vector(&vector)?
            .bind_completion_queue(&queue, Direction::Both)?
            .enable()?;
        Ok(Node { endpoint, queue, vector, domain })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let provider = std::env::args().nth(1).unwrap_or_else(|| "tcp;ofi_rxm".to_owned());
    let infos = Hints::new().provider(provider).discover()?;
    let Some(info) = infos.first() else { return Err("no such provider here".into()) };
    println!("{info}\n");
    let (near, far) = (Node::open(info)?, Node::open(info)?);

    // What the two have to tell each other beforehand: an address, and where the memory is.
    let peer = near.vector.insert(&far.endpoint.name()?)?;
    let target = far.domain.register(vec![0; 4096], Access::REMOTE_READ | Access::REMOTE_WRITE)?;
    let remote = target.remote();

    let source = near.domain.register(b"a thread through the fabric".to_vec(), Access::WRITE)?;
    let copy = near.domain.register(vec![0; source.len_bytes()], Access::READ)?;
    run(&near, &far, || near.endpoint.write(&peer, source.as_slice(), remote.at(100), 1))?;
    run(&near, &far, || near.endpoint.read(&peer, copy.as_slice(), remote.at(100), 2))?;

    let (sent, back) = (source.into_memory()?, copy.into_memory()?);
    println!("{:?} came back", String::from_utf8_lossy(&back));
    assert_eq!(sent, back);
    Ok(())
}

/// Posts one operation and waits for its end. Both sides make progress, because this is one thread.
fn run<T>(
    near: &Node,
    far: &Node,
    mut post: impl FnMut() -> Result<T, PostError>,
) -> Result<(), Box<dyn Error>> {
    let mut batch = CompletionBatch::new(16);
    let mut posted = false;
    loop {
        if !posted {
            match post() {
                Ok(_) => posted = true,
                Err(PostError::Again) => {} // not connected yet, or full: poll and try again
                Err(error) => return Err(error.into()),
            }
        }
        far.queue.poll(&mut CompletionBatch::new(1))?;
        if let Some(completion) = near.queue.poll(&mut batch)?.first() {
            println!("{completion:?}");
            return completion.result().map_err(|error| error.clone().into());
        }
    }
}
