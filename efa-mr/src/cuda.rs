//! CUDA memory: what a pointer is, how it can be handed to a NIC, and copies for staging.
//!
//! The driver is opened at run time. Where it is missing, or has no device, [`Cuda::get`] says so and everything else treats the
//! machine as one without GPUs: no error, no panic. One binary serves all machines.
//!
//! * [`Cuda::describe`] and [`Cuda::segments`]: kind, device and allocation of device memory. Memory of the virtual memory
//!   management (PyTorch's expandable segments, for one) is a row of separate allocations that merely lie side by side; registering it in one
//!   piece or without a dmabuf fails with `EINVAL` in the provider. It is recognised and cut at those seams.
//! * [`Cuda::export_dmabuf`]: a file descriptor that a NIC can be given instead of a pointer.
//! * [`Cuda::enter`]: makes a device's context current on this thread and puts back what was there. Threads that never touched CUDA have
//!   none, and registering device memory on them fails without this.
//! * [`Stream`], [`Event`], [`Pinned`]: asynchronous copies for transports that stage device memory through the host.
//! * [`Kinds`]: device or host? A cached answer that cannot be wrong after memory has been freed and handed out again.

mod copies;
mod driver;
mod kinds;
mod pointer;

pub use copies::{Event, Pinned, Stream};
pub use driver::{ContextGuard, Cuda, CudaError, Device};
pub use kinds::Kinds;
pub use pointer::{DmabufExport, Kind, PointerInfo, Segment};
