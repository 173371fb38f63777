//! The Python module `weft`: the engine for Python programs, and a drop-in for Mooncake's module.
//!
//! This crate is the native half, imported as `weft._weft`; the other half is `python/weft`, which re-exports it and adds what is
//! easier said in Python (exceptions, how an array tells where its bytes lie, how asyncio waits). Nothing of Python, libfabric or
//! CUDA is needed to build it: it speaks the stable ABI of Python 3.9, and the engine looks for the other two at run time. So one
//! wheel serves every machine.
//!
//! It decides nothing: each method translates its arguments, calls the engine, and translates what comes back. What it adds is what
//! Python needs: the GIL is free while anything blocks, Ctrl-C works meanwhile, and a registered object lives as long as the network
//! may touch it.
//!
//! | module | Python |
//! |---|---|
//! | `engine` | `Engine`, `Notification` |
//! | `region` | `Region`: registered memory |
//! | `segment` | `Segment`, `RemoteBuffer`: a peer's memory |
//! | `ranges` | `LocalRange`, `RemoteRange`: contiguous, paged, strided, scattered parts of both |
//! | `batch` | `Batch`, `Transfer` |
//! | `mooncake` | `TransferEngine` of `weft.mooncake` |
//! | `topology` | Mooncake's priority matrix |
//! | `memory` | the one promise about foreign memory, and copying from and to addresses |
//! | `wait` | waiting without the GIL; waking an event loop |
//! | `error` | exceptions |

mod batch;
mod engine;
mod error;
mod log;
mod memory;
mod mooncake;
mod ranges;
mod region;
mod segment;
mod topology;
mod wait;

use pyo3::prelude::*;

/// The native half of the package `weft`; import `weft` instead.
#[pymodule]
mod _weft {
    #[pymodule_export]
    use crate::batch::{Batch, Transfer};
    #[pymodule_export]
    use crate::engine::{Engine, Notification};
    #[pymodule_export]
    use crate::mooncake::TransferEngine;
    #[pymodule_export]
    use crate::ranges::{LocalRange, RemoteRange};
    #[pymodule_export]
    use crate::region::Region;
    #[pymodule_export]
    use crate::segment::{RemoteBuffer, Segment};
    #[pymodule_export]
    use crate::wait::Wake;

    use pyo3::prelude::*;

    /// Runs the command line program with these arguments, its name first; returns its exit status.
    #[pyfunction]
    fn run_program(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
        py.detach(|| weft_cli::status_from(arguments))
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
