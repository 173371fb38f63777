//! See `tcp_transport::fuzzing::fuzz_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcp_transport::fuzzing::fuzz_frames(data));
