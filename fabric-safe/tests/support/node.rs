//! An endpoint with everything that it needs.

use std::collections::HashMap;
use std::time::Instant;

use fabric_safe::{
    Address, AddressVector, Capabilities, Completion, CompletionBatch, CompletionQueue,
    CompletionQueueOptions, Direction, Domain, Endpoint, Fabric, Hints, Info, OperationError, OperationKind,
    PostError,
};

use super::line::PATIENCE;

/// The end of an operation, without borrowing.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) kind: OperationKind,
    pub(crate) len_bytes: usize,
    pub(crate) immediate: Option<u64>,
    pub(crate) tag: Option<u64>,
    pub(crate) result: Result<(), OperationError>,
}

impl From<&Completion> for End {
    fn from(completion: &Completion) -> End {
        End {
            kind: completion.kind(),
            len_bytes: completion.len_bytes(),
            immediate: completion.immediate(),
            tag: completion.tag(),
            result: completion.result().map_err(Clone::clone),
        }
    }
}

pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) queue: CompletionQueue,
    pub(crate) vector: AddressVector,
    pub(crate) domain: Domain,
    pub(crate) batch: CompletionBatch,
    /// Operations that have ended and not been asked about.
    pub(crate) ended: HashMap<u64, End>,
    /// Immediate values that peers wrote.
    pub(crate) immediates: Vec<u64>,
    /// Errors of no operation of ours: the provider's own messages to a peer that is gone, say.
    pub(crate) troubles: Vec<String>,
}

/// The best way that `provider` (`name` or `name/fabric`) has on this machine; on loopback where it is about interfaces.
pub(crate) fn discover(provider: &str) -> Option<Info> {
    let (name, fabric) = match provider.split_once('/') {
        Some((name, fabric)) => (name, Some(fabric)),
        None => (provider, None),
    };
    let basic = Capabilities::MSG | Capabilities::RMA;
    let more = [Capabilities::TAGGED | Capabilities::ATOMIC, Capabilities::TAGGED, Capabilities::empty()];
    more.into_iter().find_map(|more| {
        let mut hints = Hints::new().provider(name).capabilities(basic | more);
        if let Some(fabric) = fabric {
            hints = hints.fabric(fabric);
        }
        let infos = hints.discover().unwrap();
        // Exactly this provider: `tcp` also finds what is layered over it. IPv4, so that source addresses are unambiguous.
        let mut infos: Vec<_> = infos.into_iter().filter(|info| info.provider_name() == name).collect();
        // libfabric 1.17 gives its one EFA fabric whichever is asked for.
        infos.retain(|info| fabric.is_none_or(|fabric| info.fabric_name() == fabric));
        let loopback = infos.iter().position(|info| {
            info.domain_name() == "lo" && info.source_address().is_none_or(|address| address.len() == 16)
        });
        (!infos.is_empty()).then(|| infos.swap_remove(loopback.unwrap_or(0)))
    })
}

impl Node {
    pub(crate) fn open(info: &Info) -> Node {
        Node::open_with(info, CompletionQueueOptions::new(info))
    }

    pub(crate) fn open_with(info: &Info, options: CompletionQueueOptions) -> Node {
        let fabric = Fabric::open(info).unwrap();
        let domain = Domain::open(&fabric, info).unwrap();
        let vector = AddressVector::open(&domain, Default::default()).unwrap();
        let queue = CompletionQueue::open(&domain, options).unwrap();
        let endpoint = Endpoint::open(&domain, info)
            .unwrap()
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
            troubles: Vec::new(),
        }
    }

    /// Polls once; remembers what has ended.
    pub(crate) fn poll(&mut self) -> usize {
        let mut count = 0;
        for completion in self.queue.poll(&mut self.batch).unwrap() {
            count += 1;
            if completion.kind() == OperationKind::RemoteWrite {
                assert_eq!(completion.result().map_err(Clone::clone).err().map(|e| e.to_string()), None);
                self.immediates.push(completion.immediate().unwrap());
            }
            if let Some(token) = completion.token() {
                let twice = self.ended.insert(token, completion.into());
                assert!(twice.is_none(), "operation {token} ended twice");
            } else if completion.kind() != OperationKind::RemoteWrite {
                assert!(completion.result().is_err(), "an end of nothing: {completion:?}");
                self.troubles.push(format!("{completion:?}"));
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
            assert!(start.elapsed() < PATIENCE, "no room for a minute");
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
