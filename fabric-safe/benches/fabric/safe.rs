//! Our side: the loop over fabric-safe.

use benchkit::Result;
use fabric_safe::{
    Access, Address, AddressVector, Capabilities, CompletionBatch, CompletionQueue, CompletionQueueOptions,
    Direction, Domain, Endpoint, Fabric, Hints, Info, MemoryRegion, PostError, Remote,
};

use crate::target::Point;
use crate::{Writer, bare};

/// An endpoint and the memory that it writes from.
pub(crate) struct Safe {
    endpoint: Endpoint,
    queue: CompletionQueue,
    batch: CompletionBatch,
    to: Address,
    region: MemoryRegion<Vec<u8>>,
    target: Remote,
}

/// What this libfabric offers under the name of the provider.
pub(crate) fn info(provider: &str) -> Option<Info> {
    let mut hints = Hints::new().provider(provider).capabilities(Capabilities::MSG | Capabilities::RMA);
    if bare::by_address(provider) {
        hints = hints.source("127.0.0.1", None);
    }
    let found = hints.discover().ok()?;
    found.into_iter().find(|info| info.provider_name() == provider)
}

impl Safe {
    /// Opens everything.
    pub(crate) fn open(provider: &str, bytes: usize, target: &Point) -> Result<Self> {
        let info = info(provider).ok_or("no such provider")?;
        let domain = Domain::open(&Fabric::open(&info)?, &info)?;
        let vector = AddressVector::open(&domain, Default::default())?;
        let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(&info))?;
        let endpoint = Endpoint::open(&domain, &info)?
            .bind_address_vector(&vector)?
            .bind_completion_queue(&queue, Direction::Both)?
            .enable()?;
        let to = vector.insert(&target.name)?;
        let region = domain.register(vec![1; bytes], Access::ALL)?;
        let target = Remote { address: target.address, key: target.key };
        Ok(Self { endpoint, queue, batch: CompletionBatch::new(bare::BATCH), to, region, target })
    }
}

impl Writer for Safe {
    fn write(&mut self, size: usize, window: usize, operations: usize) -> Result<()> {
        let (mut posted, mut ended) = (0, 0);
        while ended < operations {
            while posted < operations && posted - ended < window {
                let at = posted % window * size;
                let target = Remote { address: self.target.address + at as u64, ..self.target };
                match self.endpoint.write(&self.to, self.region.slice(at..at + size)?, target, posted as u64)
                {
                    Ok(_) => posted += 1,
                    Err(PostError::Again) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            for completion in self.queue.poll(&mut self.batch)? {
                completion.result().map_err(ToString::to_string)?;
                ended += 1;
            }
        }
        Ok(())
    }
}
