//! See `tcp_transport::fuzzing::fuzz_answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tcp_transport::fuzzing::fuzz_answers(data));
