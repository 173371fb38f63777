//! What lies in a metadata server, and what a program is given as its URL.
#![no_main]

use engine::metadata::{Location, Record};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(record) = Record::decode(data) {
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(location) = text.parse::<Location>()
    {
        let _ = location.to_string();
    }
});
