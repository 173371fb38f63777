//! Memory that somebody else owns: frameworks hand over pointers.
//!
//! The only place of the crate where a caller's word about memory is taken.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use crate::engine::{Buffer, Engine};
use crate::error::Error;
use crate::memory::{Access, Memory, Region};

/// A range of host memory that somebody else owns, to be registered: [`Engine::register_raw_many`].
#[derive(Debug, Clone)]
pub struct RawBuffer {
    /// What peers look it up by.
    pub label: String,
    /// First byte.
    pub start: NonNull<u8>,
    /// Length in bytes.
    pub len: usize,
    /// What peers may do with it.
    pub access: Access,
}

impl Engine {
    /// Registers memory by pointer. Otherwise as [`register`](Self::register).
    ///
    /// ```
    /// use std::ptr::NonNull;
    /// use engine::{Access, Engine};
    ///
    /// let engine = Engine::builder().build()?;
    /// let mut tensor = vec![0_u8; 4096];
    /// let start = NonNull::new(tensor.as_mut_ptr()).expect("a vector's memory has an address");
    /// // SAFETY: `tensor` lives, and is not looked at, until it has been unregistered below.
    /// let region = unsafe { engine.register_raw("tensor", start, tensor.len(), Access::READ_WRITE)? };
    /// assert_eq!(engine.region_at(region.addr() + 100, 8).map(|(_, offset)| offset), Some(100));
    /// engine.unregister(region)?;
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Safety
    /// `start..start + len` is host memory that stays mapped, readable and writable, and no Rust reference to its bytes is used,
    /// until [`unregister`](Self::unregister) of the region has returned well, or the engine and all handles of batches that
    /// used the region are gone.
    ///
    /// # Errors
    /// As [`register`](Self::register); [`Error::Tcp`] for no bytes, or a range that wraps around.
    pub unsafe fn register_raw(
        &self,
        label: &str,
        start: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Region, Error> {
        // SAFETY: what this function asks for is what that one does: the engine's clones of the memory go with the region.
        let memory = unsafe { foreign(start, len)? };
        self.register(label, memory, access)
    }

    /// Registers all of these, or none: [`register_many`](Self::register_many) by pointer.
    ///
    /// # Safety
    /// As [`register_raw`](Self::register_raw), for each of them.
    ///
    /// # Errors
    /// As [`register_raw`](Self::register_raw); nothing is registered then.
    pub unsafe fn register_raw_many(&self, buffers: &[RawBuffer]) -> Result<Vec<Region>, Error> {
        let buffers = buffers.iter().map(|buffer| {
            // SAFETY: the caller promises it for each of them.
            let memory = unsafe { foreign(buffer.start, buffer.len)? };
            Ok(Buffer { label: buffer.label.clone(), memory, access: buffer.access })
        });
        self.register_many(buffers.collect::<Result<Vec<_>, Error>>()?)
    }
}

/// # Safety
/// As [`Engine::register_raw`].
unsafe fn foreign(start: NonNull<u8>, len: usize) -> Result<Arc<dyn Memory>, Error> {
    // SAFETY: promised by the caller, word for word.
    Ok(unsafe { tcp_transport::foreign_memory(start.as_ptr(), len)? })
}
