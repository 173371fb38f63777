//! An orderly end on SIGINT, SIGTERM and SIGHUP.

use std::sync::mpsc;
use std::time::Duration;

/// Hears of signals.
pub(crate) struct Stop {
    told: mpsc::Receiver<()>,
    /// Keeps the channel open where no handler does.
    _kept: mpsc::Sender<()>,
}

/// Installs the handler. To be called when libfabric has been opened: some of its providers install handlers that end the
/// process with status 1.
pub(crate) fn on_signal() -> Stop {
    let (tell, told) = mpsc::channel();
    let kept = tell.clone();
    let handler = move || {
        // Nobody listens any more: the program is ending already.
        let _ = tell.send(());
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        // A program that called us has a handler of its own and will end us in its own way.
        tracing::debug!(%error, "signals are somebody else's");
    }
    Stop { told, _kept: kept }
}

impl Stop {
    /// Blocks until a signal comes or the time is over.
    pub(crate) fn wait(&self, time: Option<Duration>) {
        // Either outcome means the same.
        let _ = match time {
            Some(time) => self.told.recv_timeout(time).is_ok(),
            None => self.told.recv().is_ok(),
        };
    }
}
