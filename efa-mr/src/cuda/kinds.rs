//! Device or host? A cache of answers.

use super::driver::{Cuda, CudaError};
use super::pointer::{Kind, PointerInfo, buffer_id};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Allocations that are remembered; more than any process has at a time, and when it is full it starts again.
const MAX_ENTRIES: usize = 65_536;

/// Remembers what [`Cuda::describe`] said about allocations.
///
/// An answer may not outlive its memory: after a free the same address can be something else. So each look-up asks the driver for one thing,
/// the id of the allocation around the address, which is never used twice, and remembers the rest by that id. That is one cheap call instead
/// of a dozen answers, and no hook in anyone's allocator.
#[derive(Debug, Default)]
pub struct Kinds {
    by_id: Mutex<HashMap<u64, PointerInfo>>,
}

impl Kinds {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What an address is. Without CUDA everything is host memory.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn describe(&self, addr: u64) -> Result<PointerInfo, CudaError> {
        let host = PointerInfo {
            kind: Kind::Host,
            device: None,
            allocation: None,
            virtual_memory: false,
            gpudirect: false,
        };
        let Some(cuda) = Cuda::get() else { return Ok(host) };
        let Some(id) = buffer_id(addr) else {
            // Unknown to CUDA, or without an id: the whole question.
            return cuda.describe(addr);
        };
        if let Some(info) = self.by_id.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(*info);
        }
        let info = cuda.describe(addr)?;
        // The memory may have been freed between the two questions: keep only what belongs together.
        if info.allocation.is_some_and(|allocation| allocation.generation == id) {
            let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
            if by_id.len() >= MAX_ENTRIES {
                by_id.clear();
            }
            by_id.insert(id, info);
        }
        Ok(info)
    }

    /// Whether an address is device memory.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn is_device(&self, addr: u64) -> Result<bool, CudaError> {
        Ok(self.describe(addr)?.kind == Kind::Device)
    }
}
