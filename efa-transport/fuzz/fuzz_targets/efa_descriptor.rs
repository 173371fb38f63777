//! What a peer says of itself: any bytes are read or refused, and what is read can be written and read again.
#![no_main]

use efa_transport::{Parts, check_descriptor};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(parts) = Parts::read(data) {
        check_descriptor(data).expect("what can be read can be written");
        if let Ok(again) = parts.descriptor() {
            assert_eq!(Parts::read(&again).ok().as_ref(), Some(&parts));
        }
    }
});
