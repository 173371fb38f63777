//! A ring that another process has filled with anything: nothing outside of it is read, and reading comes to an end.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file =
        FILE.get_or_init(|| std::env::temp_dir().join(format!("soft-efa-fuzz-ring-{}", std::process::id())));
    soft_efa::fuzzing::ring(file, data).expect("the temporary directory can be written");
    // Not at the end of the process, which libFuzzer does not announce.
    let _ = std::fs::remove_file(file);
});
