//! See `tcp_transport::fuzzing::fuzz_mooncake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcp_transport::fuzzing::fuzz_mooncake(data));
