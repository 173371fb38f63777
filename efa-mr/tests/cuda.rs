//! CUDA where there is a GPU; its absence where there is none.

#![allow(clippy::unwrap_used)]

use efa_mr::Location;
use efa_mr::cuda::{Cuda, CudaError, Kind, Kinds, Pinned, Stream};

/// The driver, or a line that says why this test did not run.
fn cuda(test: &str) -> Option<&'static Cuda> {
    if let Some(reason) = Cuda::absence() {
        eprintln!("SKIP: {test}: {reason}");
    }
    Cuda::get()
}

/// Device memory of the driver API, freed at the end of the test.
struct DeviceBytes(u64);

impl DeviceBytes {
    fn new(cuda: &Cuda, len: usize) -> Self {
        let _context = cuda.enter(0).unwrap();
        let mut addr = 0;
        // SAFETY: the pointer is to a live integer, and the driver is loaded (there is a `Cuda`).
        let status = unsafe { cudarc::driver::sys::cuMemAlloc_v2(&mut addr, len) };
        assert_eq!(status as u32, 0);
        Self(addr)
    }
}

impl Drop for DeviceBytes {
    fn drop(&mut self) {
        let _context = Cuda::get().unwrap().enter(0).unwrap();
        // SAFETY: from `cuMemAlloc`, freed once.
        let _ = unsafe { cudarc::driver::sys::cuMemFree_v2(self.0) };
    }
}

#[test]
fn without_a_driver_there_is_simply_no_gpu() {
    match Cuda::get() {
        Some(cuda) => assert!(!cuda.devices().is_empty() && Cuda::absence().is_none()),
        None => {
            assert!(!Cuda::absence().unwrap().is_empty());
            let kinds = Kinds::new();
            assert!(!kinds.is_device(0x7f00_0000_0000).unwrap());
            assert_eq!(kinds.describe(0).unwrap().kind, Kind::Host);
        }
    }
}

#[test]
fn device_memory_is_told_from_host_memory() {
    let Some(cuda) = cuda("device_memory_is_told_from_host_memory") else { return };
    let device = DeviceBytes::new(cuda, 4 << 20);
    let info = cuda.describe(device.0 + 100).unwrap();
    assert_eq!((info.kind, info.device), (Kind::Device, Some(0)));
    let allocation = info.allocation.unwrap();
    assert!(allocation.addr <= device.0 && allocation.len_bytes >= 4 << 20 && allocation.generation != 0);
    assert!(!info.virtual_memory);
    let host = Box::new([0_u8; 64]);
    assert_eq!(cuda.describe(host.as_ptr() as u64).unwrap().kind, Kind::Host);
    let pinned = Pinned::new(cuda, 0, 4096).unwrap();
    assert_eq!(cuda.describe(pinned.address() as u64).unwrap().kind, Kind::PinnedHost);
    let segments = cuda.segments(device.0 + 1, 1 << 20).unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0].buffer().location, Location::Gpu(0));
    assert!(matches!(cuda.segments(host.as_ptr() as u64, 1), Err(CudaError::NotDeviceMemory { .. })));
}

#[test]
fn remembered_kinds_do_not_outlive_their_memory() {
    let Some(cuda) = cuda("remembered_kinds_do_not_outlive_their_memory") else { return };
    let kinds = Kinds::new();
    let first = DeviceBytes::new(cuda, 1 << 20);
    let before = kinds.describe(first.0).unwrap();
    assert_eq!(kinds.describe(first.0).unwrap(), before);
    let addr = first.0;
    drop(first);
    let second = DeviceBytes::new(cuda, 1 << 20);
    if second.0 == addr {
        let after = kinds.describe(addr).unwrap();
        assert_ne!(after.allocation.unwrap().generation, before.allocation.unwrap().generation);
    } else {
        assert_eq!(kinds.describe(addr).unwrap(), cuda.describe(addr).unwrap());
    }
}

#[test]
fn copies_go_to_the_device_and_back() {
    let Some(cuda) = cuda("copies_go_to_the_device_and_back") else { return };
    let len = 1 << 20;
    let (device, up, down) =
        (DeviceBytes::new(cuda, len), Pinned::new(cuda, 0, len).unwrap(), Pinned::new(cuda, 0, len).unwrap());
    let pattern: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
    let stream = Stream::new(cuda, 0).unwrap();
    let mut back = vec![0; len];
    // SAFETY: all three are of `len` bytes and outlive the copies, which are waited for before the bytes are looked at.
    unsafe {
        up.address().copy_from_nonoverlapping(pattern.as_ptr(), len);
        stream.copy(device.0, up.address() as u64, len).unwrap();
        stream.copy(down.address() as u64, device.0, len).unwrap();
        let event = stream.record().unwrap();
        event.wait().unwrap();
        assert!(event.is_done().unwrap());
        back.as_mut_ptr().copy_from_nonoverlapping(down.address(), len);
    }
    assert!(back == pattern);
}

#[test]
fn the_callers_context_is_put_back() {
    let Some(cuda) = cuda("the_callers_context_is_put_back") else { return };
    // A thread that never touched CUDA has no context, and has none again afterwards.
    std::thread::spawn(|| {
        let current = || {
            let mut context = std::ptr::null_mut();
            // SAFETY: the pointer is to a live handle.
            let _ = unsafe { cudarc::driver::sys::cuCtxGetCurrent(&mut context) };
            context as usize
        };
        assert_eq!(current(), 0);
        let outer = cuda.enter(0).unwrap();
        let inside = current();
        assert_ne!(inside, 0);
        drop(cuda.enter(0).unwrap());
        assert_eq!(current(), inside);
        drop(outer);
        assert_eq!(current(), 0);
    })
    .join()
    .unwrap();
    assert!(matches!(cuda.enter(999), Err(CudaError::NoSuchDevice { ordinal: 999, .. })));
}

#[test]
fn dmabufs_are_exported_where_the_driver_can() {
    let Some(cuda) = cuda("dmabufs_are_exported_where_the_driver_can") else { return };
    let device = DeviceBytes::new(cuda, 4 << 20);
    match cuda.export_dmabuf(device.0 + 5000, 100_000) {
        Ok(export) => assert_eq!(export.offset_bytes, (device.0 + 5000) % 4096),
        Err(error) => eprintln!("SKIP: dmabufs_are_exported_where_the_driver_can: {error}"),
    }
}

#[test]
fn topology_takes_cudas_numbers() {
    let Some(cuda) = cuda("topology_takes_cudas_numbers") else { return };
    let Ok(mut topology) = efa_mr::Topology::of_this_machine() else { return };
    topology.number_gpus(&cuda.pci_order());
    assert!(topology.gpus.iter().enumerate().all(|(index, gpu)| usize::from(gpu.ordinal) >= index));
}
