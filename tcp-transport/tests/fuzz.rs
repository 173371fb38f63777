//! Every fuzz entry point with a few thousand inputs on each test run; `cargo xtask fuzz` looks for longer.
#![cfg(feature = "fuzzing")]
#![allow(clippy::unwrap_used)] // tests

use proptest::prelude::*;
use tcp_transport::fuzzing;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_break_a_parser(data in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..16, meta_len in 0_u8..120) {
        let mut frame = vec![128, kind, 0, 0, 0, meta_len, 0, 0, 0];
        frame.extend([0; 16]);
        frame.extend(&data);
        for data in [&data, &frame] {
            fuzzing::fuzz_frames(data);
            fuzzing::fuzz_ranges(data);
            fuzzing::fuzz_requests(data);
            fuzzing::fuzz_answers(data);
            fuzzing::fuzz_descriptor(data);
            #[cfg(feature = "mooncake")]
            fuzzing::fuzz_mooncake(data);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_break_the_handshake(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzzing::fuzz_handshake(&data);
        fuzzing::fuzz_records(&data);
    }
}
