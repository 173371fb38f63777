//! See `engine::mooncake::fuzzing::fuzz_mooncake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::mooncake::fuzzing::fuzz_mooncake(data));
