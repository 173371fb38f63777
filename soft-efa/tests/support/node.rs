//! One endpoint of fabric-safe on a software card, and the line to the other process.

use super::PATIENCE;
use fabric_safe::{
    Access, Address, AddressVector, Capabilities, Completion, CompletionBatch, CompletionQueue,
    CompletionQueueOptions, Direction, Domain, Endpoint, Fabric, Hints, Info, MemoryRegion, Opened,
    OperationError, OperationKind, PostError, RegisterOptions, RemoteRegion,
};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

/// The end of an operation.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) kind: OperationKind,
    pub(crate) len_bytes: usize,
    pub(crate) immediate: Option<u64>,
    pub(crate) result: Result<(), OperationError>,
}

impl From<&Completion> for End {
    fn from(completion: &Completion) -> End {
        End {
            kind: completion.kind(),
            len_bytes: completion.len_bytes(),
            immediate: completion.immediate(),
            result: completion.result().map_err(Clone::clone),
        }
    }
}

impl End {
    /// errno and provider errno of a failure; zeros for success.
    pub(crate) fn numbers(&self) -> (i32, i32) {
        self.result.as_ref().map_or_else(|error| (error.errno().raw(), error.provider_errno()), |()| (0, 0))
    }
}

/// Everything that an endpoint needs.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) queue: CompletionQueue,
    pub(crate) vector: AddressVector,
    pub(crate) domain: Domain,
    batch: CompletionBatch,
    ended: HashMap<u64, End>,
    pub(crate) immediates: Vec<(u64, usize)>,
    tokens: u64,
}

/// The cards of a fabric (`efa` or `efa-direct`), in order.
pub(crate) fn cards(fabric: &str) -> Vec<Info> {
    let infos = Hints::new()
        .provider("efa")
        .fabric(fabric)
        .capabilities(Capabilities::MSG | Capabilities::RMA)
        .discover()
        .unwrap();
    infos.into_iter().filter(|info| info.provider_name() == "efa").collect()
}

impl Node {
    pub(crate) fn open(info: &Info, wait: bool) -> Node {
        Node::open_with(info, wait, |_| {})
    }

    /// Opens one whose endpoint is prepared before it is enabled.
    pub(crate) fn open_with(info: &Info, wait: bool, prepare: impl FnOnce(&Endpoint<Opened>)) -> Node {
        let fabric = Fabric::open(info).unwrap();
        let domain = Domain::open(&fabric, info).unwrap();
        let vector = AddressVector::open(&domain, Default::default()).unwrap();
        let mut options = CompletionQueueOptions::new(info);
        options.wait = wait;
        let queue = CompletionQueue::open(&domain, options).unwrap();
        let endpoint = Endpoint::open(&domain, info).unwrap();
        prepare(&endpoint);
        let endpoint = endpoint
            .bind_address_vector(&vector)
            .unwrap()
            .bind_completion_queue(&queue, Direction::Both)
            .unwrap()
            .enable()
            .unwrap();
        Node {
            endpoint,
            queue,
            vector,
            domain,
            batch: CompletionBatch::new(64),
            ended: HashMap::new(),
            immediates: Vec::new(),
            tokens: 0,
        }
    }

    /// A number for an operation.
    pub(crate) fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    pub(crate) fn register(&self, bytes: Vec<u8>, access: Access) -> MemoryRegion<Vec<u8>> {
        self.domain
            .register(bytes, RegisterOptions::new(access))
            .map_err(|error| format!("{error:?}"))
            .unwrap()
    }

    /// Reads what has completed; remembers it.
    pub(crate) fn poll(&mut self) -> usize {
        let mut count = 0;
        for completion in self.queue.poll(&mut self.batch).unwrap() {
            count += 1;
            if let (OperationKind::RemoteWrite, Some(value)) = (completion.kind(), completion.immediate()) {
                self.immediates.push((value, completion.len_bytes()));
            }
            if let Some(token) = completion.token() {
                let twice = self.ended.insert(token, completion.into());
                assert!(twice.is_none(), "operation {token} ended twice");
            }
        }
        count
    }

    /// Posts, polling as long as there is no room.
    pub(crate) fn post<T>(&mut self, mut post: impl FnMut(&Endpoint) -> Result<T, PostError>) -> T {
        let start = Instant::now();
        loop {
            match post(&self.endpoint) {
                Ok(posted) => return posted,
                Err(PostError::Again) => {
                    self.poll();
                }
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENCE, "no room for a long time");
            std::thread::yield_now();
        }
    }

    /// Polls until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Node) -> bool) {
        let start = Instant::now();
        while !done(self) {
            if self.poll() == 0 {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < PATIENCE, "{what} has not come about");
        }
    }

    /// Waits for the end of an operation.
    pub(crate) fn end(&mut self, token: u64) -> End {
        self.until("the end of an operation", |node| node.ended.contains_key(&token));
        self.ended.remove(&token).unwrap()
    }

    /// Whether an operation has ended; polls once.
    pub(crate) fn has_ended(&mut self, token: u64) -> bool {
        self.poll();
        self.ended.contains_key(&token)
    }

    /// Waits for the good end of an operation.
    pub(crate) fn good_end(&mut self, token: u64) -> End {
        let end = self.end(token);
        if let Err(error) = &end.result {
            panic!("operation {token} failed: {error}");
        }
        end
    }

    pub(crate) fn insert(&self, name: &[u8]) -> Address {
        self.vector.insert(name).unwrap()
    }
}

/// A line between two test processes.
pub(crate) struct Line(UnixStream);

impl Line {
    /// Opens it: the first process listens, the second calls.
    pub(crate) fn open(path: &Path, first: bool) -> Line {
        let start = Instant::now();
        let listener = first.then(|| UnixListener::bind(path).unwrap());
        if let Some(listener) = listener {
            listener.set_nonblocking(true).unwrap();
            loop {
                match listener.accept() {
                    Ok((stream, _)) => return Line::new(stream),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => panic!("{error}"),
                }
                assert!(start.elapsed() < PATIENCE, "the other process has not called");
                std::thread::yield_now();
            }
        }
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Line::new(stream),
                Err(_) if start.elapsed() < PATIENCE => std::thread::yield_now(),
                Err(error) => panic!("the other process does not answer: {error}"),
            }
        }
    }

    fn new(stream: UnixStream) -> Line {
        stream.set_nonblocking(true).unwrap();
        Line(stream)
    }

    pub(crate) fn tell(&mut self, message: &[u8]) {
        let mut frame = (message.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(message);
        // Messages are far shorter than the socket's buffer. The other side may have died, which is its own test.
        let _ = self.0.write_all(&frame);
    }

    /// The other side's next message; meanwhile calls `progress`. `None` when it has hung up.
    pub(crate) fn hear(&mut self, mut progress: impl FnMut()) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.fill(&mut length, &mut progress)?;
        let mut message = vec![0; u32::from_le_bytes(length) as usize];
        self.fill(&mut message, &mut progress)?;
        Some(message)
    }

    fn fill(&mut self, buffer: &mut [u8], progress: &mut impl FnMut()) -> Option<()> {
        let start = Instant::now();
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => return None,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    progress();
                    std::thread::yield_now();
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENCE, "the other process says nothing");
        }
        Some(())
    }
}

/// A node, the line, and the other side's address.
pub(crate) struct Side {
    pub(crate) node: Node,
    pub(crate) line: Line,
    pub(crate) peer: Address,
    pub(crate) first: bool,
}

impl Side {
    /// Opens card `card` and exchanges addresses.
    pub(crate) fn meet(part: &super::Part, card: usize) -> Side {
        let infos = cards(&part.fabric);
        Side::meet_on(part, &infos[card], false)
    }

    pub(crate) fn meet_on(part: &super::Part, info: &Info, wait: bool) -> Side {
        Side::introduce(part, Node::open(info, wait))
    }

    /// As `meet`, with an endpoint that is prepared before it is enabled.
    pub(crate) fn meet_with(part: &super::Part, prepare: impl FnOnce(&Endpoint<Opened>)) -> Side {
        Side::introduce(part, Node::open_with(&cards(&part.fabric)[0], false, prepare))
    }

    fn introduce(part: &super::Part, node: Node) -> Side {
        let mut line = Line::open(&part.line, part.first);
        line.tell(&node.endpoint.name().unwrap());
        let name = line.hear(|| {}).unwrap();
        let peer = node.insert(&name);
        let mut side = Side { node, line, peer, first: part.first };
        side.together();
        side
    }

    pub(crate) fn tell(&mut self, message: &[u8]) {
        self.line.tell(message);
    }

    /// What the other side says; the node makes progress meanwhile.
    pub(crate) fn hear(&mut self) -> Vec<u8> {
        let node = &mut self.node;
        self.line.hear(|| _ = node.poll()).expect("the other process has hung up")
    }

    /// Waits for the other side.
    pub(crate) fn together(&mut self) {
        self.tell(b"here");
        assert_eq!(self.hear(), b"here");
    }

    /// The region that the other side tells of.
    pub(crate) fn remote(&mut self) -> RemoteRegion {
        RemoteRegion::from_bytes(self.hear().try_into().unwrap())
    }
}
