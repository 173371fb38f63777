//! Where the engine's messages go: standard error, from warnings up, unless `WEFT_LOG` says otherwise.
//!
//! Not through Python's `logging`: the threads that move bytes would have to wait for the GIL to say something.

use std::sync::Once;

use tracing_subscriber::EnvFilter;

/// The variable that says what is logged, such as `info` or `engine=debug`.
const VARIABLE: &str = "WEFT_LOG";

/// Before the first engine; a program that embeds Python may have its own subscriber, which then stays. So does the command line's.
pub(crate) fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(install);
}

fn install() {
    let wanted = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or("warn")).unwrap_or_else(|error| {
        eprintln!("weft: {VARIABLE}: {error}; logging warnings");
        EnvFilter::new("warn")
    });
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
