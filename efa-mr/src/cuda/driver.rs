//! The driver, its devices, and the context guard. This and its neighbours are the crate's seam to CUDA.

use cudarc::driver::sys;
use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;

/// Every function of the driver that this crate calls. cudarc panics when one is missing, so they are looked up first.
const SYMBOLS: [&str; 30] = [
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuInit",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetAddressRange_v2",
    "cuMemGetHandleForAddressRange",
    "cuMemHostAlloc",
    "cuMemRelease",
    "cuMemRetainAllocationHandle",
    "cuMemcpyAsync",
    "cuPointerGetAttribute",
    "cuPointerGetAttributes",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// A call to the driver that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver said no.
    #[error("{call} failed: {name} ({code})")]
    Call {
        /// The C function.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// Its number.
        code: u32,
    },
    /// There is no such device.
    #[error("there is no CUDA device {ordinal}; there are {count}")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: u16,
        /// How many there are.
        count: usize,
    },
    /// Something that is no device memory, or leaves it.
    #[error("{len_bytes} bytes at {addr:#x} are not device memory throughout; {what}")]
    NotDeviceMemory {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// What to look at.
        what: &'static str,
    },
    /// The device or its driver cannot export dmabufs.
    #[error(
        "CUDA device {ordinal} cannot export dmabufs; use a newer driver with the open kernel modules, or nvidia-peermem"
    )]
    NoDmabuf {
        /// The device.
        ordinal: u16,
    },
}

/// Why there is no CUDA here. Not an error: most machines have none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Absent(String);

/// The CUDA driver with at least one device.
pub struct Cuda {
    devices: Vec<Device>,
    version: i32,
}

/// A GPU.
pub struct Device {
    /// CUDA's number.
    pub ordinal: u16,
    /// PCI address in the form of sysfs, `0000:10:1c.0`.
    pub pci: String,
    /// Whether memory can be exported as dmabuf.
    pub dmabuf: bool,
    raw: sys::CUdevice,
    /// The primary context, retained when first needed and kept until the process ends: giving it back could destroy the
    /// context, and with it the memory, of libraries that rely on it being there.
    context: OnceLock<Result<Context, CudaError>>,
}

#[derive(Clone, Copy)]
struct Context(sys::CUcontext);

// SAFETY: a context handle may be made current on any thread; the driver synchronises.
unsafe impl Send for Context {}
// SAFETY: as above; it is never dereferenced.
unsafe impl Sync for Context {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("ordinal", &self.ordinal)
            .field("pci", &self.pci)
            .field("dmabuf", &self.dmabuf)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("version", &self.version).field("devices", &self.devices).finish()
    }
}

impl Cuda {
    /// The driver, opened at the first call; `None` where there is no driver, it is too old, or it has no device.
    ///
    /// Initialises CUDA in this process. After a `fork` the child must not use it (CUDA does not survive that).
    pub fn get() -> Option<&'static Self> {
        Self::opened().as_ref().ok()
    }

    /// Why there is no CUDA, for people; `None` if there is.
    pub fn absence() -> Option<&'static str> {
        Self::opened().as_ref().err().map(|absent| absent.0.as_str())
    }

    fn opened() -> &'static Result<Self, Absent> {
        static CUDA: OnceLock<Result<Cuda, Absent>> = OnceLock::new();
        CUDA.get_or_init(Self::open)
    }

    fn open() -> Result<Self, Absent> {
        // SAFETY: opens libcuda by name and closes it again; its constructors have no requirements.
        if !unsafe { sys::is_culib_present() } {
            return Err(Absent("there is no CUDA driver library (libcuda.so.1)".into()));
        }
        // SAFETY: the library was there a moment ago, so this does not panic; the symbols are only looked up, not called.
        let missing =
            SYMBOLS.iter().find(|name| unsafe { sys::culib().get::<*const ()>(name.as_bytes()).is_err() });
        if let Some(missing) = missing {
            return Err(Absent(format!(
                "the CUDA driver library has no {missing}: CUDA 11.7 or later is needed"
            )));
        }
        let absent = |error: CudaError| Absent(error.to_string());
        let (mut version, mut count) = (0, 0);
        // SAFETY: all symbols are there; the pointers are to live integers.
        unsafe {
            check("cuInit", sys::cuInit(0)).map_err(absent)?;
            check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version)).map_err(absent)?;
            check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count)).map_err(absent)?;
        }
        if count <= 0 {
            return Err(Absent("the CUDA driver has no device".into()));
        }
        let devices = (0..count).map(Device::open).collect::<Result<_, _>>().map_err(absent)?;
        Ok(Self { devices, version })
    }

    /// The devices, in CUDA's order.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The driver's version, 12040 for 12.4.
    #[must_use]
    pub const fn version(&self) -> i32 {
        self.version
    }

    /// PCI addresses in CUDA's order, for [`Topology::number_gpus`](crate::Topology::number_gpus).
    #[must_use]
    pub fn pci_order(&self) -> Vec<&str> {
        self.devices.iter().map(|device| device.pci.as_str()).collect()
    }

    /// A device by number.
    ///
    /// # Errors
    /// [`CudaError::NoSuchDevice`].
    pub fn device(&self, ordinal: u16) -> Result<&Device, CudaError> {
        let count = self.devices.len();
        self.devices.get(usize::from(ordinal)).ok_or(CudaError::NoSuchDevice { ordinal, count })
    }

    /// Makes the primary context of a device current on this thread until the guard is dropped; then the one before is current again.
    ///
    /// # Errors
    /// [`CudaError`] if the device has no context and cannot get one.
    pub fn enter(&self, ordinal: u16) -> Result<ContextGuard, CudaError> {
        let device = self.device(ordinal)?;
        let retain = || {
            let mut context = ptr::null_mut();
            // SAFETY: the pointer is to a live handle and the device exists.
            let status = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device.raw) };
            check("cuDevicePrimaryCtxRetain", status).map(|()| Context(context))
        };
        let context = device.context.get_or_init(retain).clone()?;
        // SAFETY: the context is retained for as long as the process lives.
        check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(context.0) })?;
        DEPTH.set(DEPTH.get() + 1);
        Ok(ContextGuard { depth: DEPTH.get(), thread_bound: PhantomData })
    }
}

thread_local! {
    /// Guards that are alive on this thread.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

impl Device {
    fn open(number: i32) -> Result<Self, CudaError> {
        let (mut raw, mut dmabuf) = (0, 0);
        let mut address: [c_char; 32] = [0; 32];
        // SAFETY: the pointers are to live integers and to a buffer of the length that is passed.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut raw, number))?;
            let len = address.len() as i32;
            check("cuDeviceGetPCIBusId", sys::cuDeviceGetPCIBusId(address.as_mut_ptr(), len, raw))?;
            let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED;
            // Unknown to old drivers: then it is not supported.
            let _ = sys::cuDeviceGetAttribute(&mut dmabuf, attribute, raw);
        }
        address[31] = 0;
        // SAFETY: ends with NUL at the latest in its last byte.
        let pci = unsafe { CStr::from_ptr(address.as_ptr()) }.to_string_lossy().to_ascii_lowercase();
        let ordinal = u16::try_from(number).unwrap_or(u16::MAX);
        Ok(Self { ordinal, pci, dmabuf: dmabuf != 0, raw, context: OnceLock::new() })
    }
}

/// A device's context is current on this thread. Guards are to be dropped in the reverse order of their making, as scopes do.
#[must_use = "the context is current only while the guard lives"]
pub struct ContextGuard {
    depth: usize,
    /// Contexts are current per thread: the guard stays on its own.
    thread_bound: PhantomData<*const ()>,
}

impl fmt::Debug for ContextGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextGuard").field("depth", &self.depth).finish()
    }
}

impl Drop for ContextGuard {
    fn drop(&mut self) {
        debug_assert_eq!(self.depth, DEPTH.get(), "context guards dropped out of order");
        DEPTH.set(DEPTH.get().saturating_sub(1));
        let mut popped = ptr::null_mut();
        // SAFETY: pops what `enter` pushed on this same thread. An error means that someone else popped too often: nothing is left
        // to restore then.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}

/// Turns a status into a result.
pub(super) fn check(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = ptr::null();
    // SAFETY: the pointer is to a live pointer; the text is static in the driver. Unknown numbers leave it null.
    let name = unsafe {
        let _ = sys::cuGetErrorName(status, &mut name);
        if name.is_null() {
            "unknown error".into()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    };
    Err(CudaError::Call { call, name, code: status as u32 })
}
