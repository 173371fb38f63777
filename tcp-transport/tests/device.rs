//! Memory that the CPU cannot address: a stand-in everywhere, and a GPU where there is one.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Asker, Target, pattern, soon};
use tcp_transport::{Access, Batch, DeviceCopy, Encryption, Error, Memory, Refusal, Request, Transport};

/// Bytes that can be reached by copying only; its addresses are mapped nowhere.
struct Stand {
    bytes: Mutex<Vec<u8>>,
    unflushed: AtomicBool,
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
    fn flush(&self) -> Result<(), String> {
        self.unflushed.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl Stand {
    fn new(len: usize) -> Arc<Self> {
        let (unflushed, broken) = Default::default();
        Arc::new(Self { bytes: Mutex::new(vec![0; len]), unflushed, broken })
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
