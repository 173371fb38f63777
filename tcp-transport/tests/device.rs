//! Memory that the CPU cannot address: a stand-in everywhere, and a GPU where there is one.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{Asker, Target, pattern, soon};
use tcp_transport::{
    Access, AheadCopy, Batch, DeviceCopy, Encryption, Error, Memory, Refusal, Request, Transport,
};

/// Bytes that can be reached by copying only; its addresses are mapped nowhere.
struct Stand {
    bytes: Mutex<Vec<u8>>,
    unflushed: AtomicBool,
    /// Copies that were begun ahead, and how many of them were wanted.
    begun: AtomicUsize,
    wanted: Arc<AtomicUsize>,
    broken: AtomicBool,
}

const BASE: u64 = 0x10; // in the page that is never mapped

// SAFETY: nothing lies at the address; `device` is some, so it is never used as a pointer.
unsafe impl Memory for Stand {
    fn address(&self) -> u64 {
        BASE
    }
    fn len(&self) -> usize {
        self.bytes.lock().unwrap().len()
    }
    fn device(&self) -> Option<&dyn DeviceCopy> {
        Some(self)
    }
}

impl DeviceCopy for Stand {
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), String> {
        if self.broken.load(Ordering::SeqCst) {
            return Err("the device has fallen off".into());
        }
        self.bytes.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.unflushed.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String> {
        bytes.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + bytes.len()]);
        Ok(())
    }
    fn copy_out_ahead(&self, offset: usize, len: usize) -> Option<Box<dyn AheadCopy>> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes.lock().unwrap()[offset..offset + len].to_vec();
        Some(Box::new(Begun { bytes, wanted: Arc::clone(&self.wanted) }))
    }
    fn flush(&self) -> Result<(), String> {
        self.unflushed.store(false, Ordering::SeqCst);
        Ok(())
    }
}

struct Begun {
    bytes: Vec<u8>,
    wanted: Arc<AtomicUsize>,
}

impl AheadCopy for Begun {
    fn finish(self: Box<Self>, bytes: &mut [u8]) -> Result<(), String> {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        bytes.copy_from_slice(&self.bytes);
        Ok(())
    }
}

impl Stand {
    fn new(len: usize) -> Arc<Self> {
        let (unflushed, broken, begun, wanted) = Default::default();
        Arc::new(Self { bytes: Mutex::new(vec![0; len]), unflushed, begun, wanted, broken })
    }
}

#[test]
fn device_memory_on_either_side_carries_the_same_bytes() {
    let len = 3 << 20;
    for (host, process, secret) in
        [(false, false, false), (true, false, false), (false, true, false), (false, false, true)]
    {
        let builder = || {
            let builder = Transport::builder().same_host(host).same_process(process);
            match secret {
                true => builder.secret("sixteen bytes or more").encryption(Encryption::Full),
                false => builder,
            }
        };
        let (target, asker) = (Target::new(builder(), 4096), Asker::new(builder(), len));
        let (here, there) = (Stand::new(len), Stand::new(len));
        let local = asker.transport.register(here.clone(), Access::LOCAL).unwrap();
        let remote = target.transport.register(there.clone(), Access::READ_WRITE).unwrap();
        let peer = asker.transport.peer(target.addr()).unwrap();
        peer.connect(soon()).unwrap();
        let bytes = pattern(len, 3);
        here.bytes.lock().unwrap().copy_from_slice(&bytes);
        let mut batch = Batch::new();
        for i in 0..3 {
            let at = i << 20;
            let d = remote.descriptor();
            batch.push(Request::write(&peer, &local, BASE + at, d, BASE + at, 1 << 20)).unwrap();
        }
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        assert!(!there.unflushed.load(Ordering::SeqCst), "complete means visible");
        assert!(*there.bytes.lock().unwrap() == bytes);
        here.bytes.lock().unwrap().fill(0);
        batch.push(Request::read(&peer, &local, BASE, remote.descriptor(), BASE, len as u64)).unwrap();
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        assert!(!here.unflushed.load(Ordering::SeqCst));
        assert!(*here.bytes.lock().unwrap() == bytes);
        if !process {
            // Each slice of 1 MiB is fetched in four pieces, all but the first of them while the one before is sent.
            for stand in [&here, &there] {
                assert_eq!(stand.begun.load(Ordering::SeqCst), 9);
                assert_eq!(stand.wanted.load(Ordering::SeqCst), 9);
            }
        }
        // Device to host memory and back, small.
        let (l, d) = (asker.region.addr(), remote.descriptor());
        batch.push(Request::read(&peer, &asker.region, l, d, BASE + 5, 100)).unwrap();
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        let mut back = [0; 100];
        asker.memory.read(0, &mut back).unwrap();
        assert_eq!(back, bytes[5..105]);

        there.broken.store(true, Ordering::SeqCst);
        batch.push(Request::write(&peer, &asker.region, l, d, BASE, 4096)).unwrap();
        let error = asker.transport.submit(&mut batch).unwrap().wait().unwrap_err();
        assert!(matches!(error, Error::Refused { reason: Refusal::DeviceCopy, .. }), "{error}");
        here.broken.store(true, Ordering::SeqCst);
        batch.push(Request::read(&peer, &local, BASE, d, BASE, 4096)).unwrap();
        let error = asker.transport.submit(&mut batch).unwrap().wait().unwrap_err();
        assert!(matches!(error, Error::Device(_)), "{error}");
        peer.ping(soon()).unwrap();
        assert_eq!(asker.transport.statistics().lanes_lost, 0);
    }
}

/// A peer's read stops in the middle; taking the region back waits for what the device was copying ahead.
#[test]
fn revoking_a_device_region_ends_its_copies() {
    let (target, asker) = (Target::new(common::builder(), 4096), Asker::new(common::builder(), 4096));
    let there = Stand::new(1 << 20);
    let remote = target.transport.register(there.clone(), Access::READ_WRITE).unwrap();
    let descriptor = remote.descriptor();
    there.unflushed.store(true, Ordering::SeqCst);
    remote.unregister(soon()).unwrap();
    assert!(!there.unflushed.load(Ordering::SeqCst));
    let peer = asker.transport.peer(target.addr()).unwrap();
    let mut batch = Batch::new();
    asker.read(&mut batch, &peer, descriptor, 0, 4096);
    let error = asker.transport.submit(&mut batch).unwrap().wait().unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::UnknownKey, .. }), "{error}");
}

#[cfg(feature = "cuda")]
mod gpu {
    use efa_mr::cuda::{Cuda, Stream};
    use tcp_transport::CudaMemory;

    use super::*;

    /// Device memory of the driver API.
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

    /// From one device allocation to another over the network and back to the host, in every size that takes a different way
    /// through the pinned buffers.
    #[test]
    fn gpu_memory_on_both_sides() {
        let Some(cuda) = Cuda::get() else {
            let reason = Cuda::absence().unwrap_or("there is no CUDA driver");
            return eprintln!("SKIP: gpu_memory_on_both_sides: {reason}");
        };
        const LEN: usize = 8 << 20;
        let (here, there) = (DeviceBytes::new(cuda, LEN), DeviceBytes::new(cuda, LEN));
        // SAFETY: both stay allocated until the end of the test, after the regions.
        let (source, sink) =
            unsafe { (CudaMemory::new(0, here.0, LEN).unwrap(), CudaMemory::new(0, there.0, LEN).unwrap()) };
        let (target, asker) = (Target::new(common::builder(), 4096), Asker::new(common::builder(), LEN));
        let local = asker.transport.register(source.clone(), Access::LOCAL).unwrap();
        let remote = target.transport.register(sink.clone(), Access::READ_WRITE).unwrap();
        let peer = asker.transport.peer(target.addr()).unwrap();
        for (seed, len) in [1, 4095, 256 << 10, (256 << 10) + 1, 1 << 20, LEN].into_iter().enumerate() {
            let bytes = pattern(len, seed as u64);
            source.copy_in(0, &bytes).unwrap();
            source.flush().unwrap();
            let (d, n) = (remote.descriptor(), len as u64);
            let mut batch = Batch::new();
            batch.push(Request::write(&peer, &local, local.addr(), d, d.addr, n)).unwrap();
            asker.transport.submit(&mut batch).unwrap().wait().unwrap();
            batch.push(Request::read(&peer, &asker.region, asker.region.addr(), d, d.addr, n)).unwrap();
            asker.transport.submit(&mut batch).unwrap().wait().unwrap();
            let mut back = vec![0; len];
            asker.memory.read(0, &mut back).unwrap();
            assert!(back == bytes, "{len} bytes");
        }
        local.unregister(soon()).unwrap();
        remote.unregister(soon()).unwrap();
        Stream::new(cuda, 0).unwrap().synchronize().unwrap();
    }
}
