//! See `tcp_transport::fuzzing::fuzz_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcp_transport::fuzzing::fuzz_requests(data));
