//! See `tcp_transport::fuzzing::fuzz_ranges`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcp_transport::fuzzing::fuzz_ranges(data));
