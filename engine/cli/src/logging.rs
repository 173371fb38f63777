//! Logs: to stderr, filtered, and never a flood.
//!
//! [`RateLimit`] is a filter for any `tracing` subscriber: of each place in the code that logs, it lets a burst of events through and
//! then leaves repeats out until the window is over. The next event of that place says how many were left out. What was asked
//! for in detail (`debug`, `trace`) is not limited.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as log_format, FmtContext};
use tracing_subscriber::layer::{Context, Filter, Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::failure::Failure;
use crate::output::Output;

/// Events of one place that are logged in one window: enough to see a burst from all 16 or so NICs of a machine.
const BURST: u32 = 20;
/// How long repeats are left out then: six lines of one kind a minute are read, six thousand are not.
const WINDOW: Duration = Duration::from_secs(10);

/// Limits how often each place in the code logs at `info` and above. Clones share their counts.
#[derive(Clone)]
pub struct RateLimit {
    shared: Arc<Shared>,
}

struct Shared {
    burst: u32,
    window: Duration,
    sites: Mutex<HashMap<Identifier, Site>>,
}

/// One place in the code.
struct Site {
    began: Instant,
    logged: u32,
    left_out: u64,
    /// Left out in earlier windows, and not told yet.
    untold: u64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new(BURST, WINDOW)
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimit({} in {:?})", self.shared.burst, self.shared.window)
    }
}

impl RateLimit {
    /// Lets `burst` events of one place through in each `window`.
    ///
    /// # Example
    /// ```
    /// use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
    /// let limit = weft_cli::logging::RateLimit::new(5, std::time::Duration::from_secs(60));
    /// let subscriber = tracing_subscriber::registry()
    ///     .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(limit.clone()));
    /// tracing::subscriber::with_default(subscriber, || {
    ///     for attempt in 0..1000 {
    ///         tracing::warn!(attempt, "peer does not answer");
    ///     }
    /// });
    /// assert_eq!(limit.left_out(), 995);
    /// ```
    #[must_use]
    pub fn new(burst: u32, window: Duration) -> Self {
        Self { shared: Arc::new(Shared { burst, window, sites: Mutex::default() }) }
    }

    /// Events that have been left out and not been told of by a later event.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.sites().values().map(|site| site.left_out + site.untold).sum()
    }

    fn sites(&self) -> MutexGuard<'_, HashMap<Identifier, Site>> {
        self.shared.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lets_through(&self, site: Identifier, now: Instant) -> bool {
        let mut sites = self.sites();
        let site = sites.entry(site).or_insert(Site { began: now, logged: 0, left_out: 0, untold: 0 });
        if now.saturating_duration_since(site.began) >= self.shared.window {
            *site = Site { began: now, logged: 0, left_out: 0, untold: site.untold + site.left_out };
        }
        if site.logged < self.shared.burst {
            site.logged += 1;
            return true;
        }
        site.left_out += 1;
        false
    }

    /// How many events of a place were left out before the one that is logged now.
    fn take_untold(&self, site: Identifier) -> u64 {
        self.sites().get_mut(&site).map_or(0, |site| std::mem::take(&mut site.untold))
    }
}

impl<S> Filter<S> for RateLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        *event.metadata().level() > Level::INFO
            || self.lets_through(event.metadata().callsite(), Instant::now())
    }
}

/// Adds to a line how many like it were left out before.
struct Counted<F> {
    inner: F,
    limit: RateLimit,
}

impl<S, N, F> FormatEvent<S, N> for Counted<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        self.inner.format_event(context, writer.by_ref(), event)?;
        match self.limit.take_untold(event.metadata().callsite()) {
            0 => Ok(()),
            count => writeln!(writer, "  ({count} more of these were left out since)"),
        }
    }
}

/// What a command's logger leaves to be said.
#[derive(Debug)]
pub(crate) struct Log {
    limit: RateLimit,
    warn: bool,
}

impl Log {
    /// Says how many events nobody has been told of.
    pub(crate) fn finish(self) {
        let count = self.limit.left_out();
        if self.warn && count > 0 {
            eprintln!("({count} log messages were left out as repeats)");
        }
    }
}

/// Installs the logger of the process, unless it has one.
pub(crate) fn init(filter: Option<&str>, output: &Output) -> Result<Log, Failure> {
    let wanted = filter.map(str::trim).filter(|text| !text.is_empty()).unwrap_or("warn");
    let filter = EnvFilter::builder().parse(wanted).map_err(|error| {
        Failure::Usage(format!("--log {wanted:?}: {error}; write a level such as info, or warn,engine=debug"))
    })?;
    let limit = RateLimit::default();
    let format = Counted { inner: log_format::format().with_target(true), limit: limit.clone() };
    let lines = log_format::layer()
        .with_ansi(output.stderr_color())
        .with_writer(std::io::stderr)
        .event_format(format)
        .with_filter(filter.and(limit.clone()));
    // A program that calls us may have a logger of its own; then that one it is.
    let warn = tracing_subscriber::registry().with(lines).try_init().is_ok();
    Ok(Log { limit, warn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A writer that keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged by `run`.
    fn logged(limit: &RateLimit, run: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = log_format::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Counted { inner: log_format::format().without_time(), limit: limit.clone() })
            .with_filter(EnvFilter::new("debug").and(limit.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), run);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_flood_becomes_a_burst_and_other_places_are_heard() {
        let limit = RateLimit::new(3, Duration::from_secs(3600));
        let lines = logged(&limit, || {
            for attempt in 0..10_000 {
                tracing::warn!(attempt, "peer does not answer");
            }
            tracing::error!("something else");
        });
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[3].contains("something else"));
        assert_eq!(limit.left_out(), 9_997);
    }

    #[test]
    fn after_the_window_the_next_event_tells_how_many_were_left_out() {
        let limit = RateLimit::new(1, Duration::from_millis(1));
        let lines = logged(&limit, || {
            // The same place in the code, until one was too many in its window; and once more when that has passed.
            let again = || tracing::info!("again");
            while limit.left_out() == 0 {
                again();
            }
            let start = Instant::now();
            while start.elapsed() <= Duration::from_millis(1) {}
            again();
        });
        assert!(lines.len() < 60, "{} lines", lines.len());
        assert!(lines.iter().any(|line| line.ends_with("more of these were left out since)")), "{lines:#?}");
    }

    #[test]
    fn what_was_asked_for_in_detail_is_not_limited() {
        let limit = RateLimit::new(1, Duration::from_secs(3600));
        let lines = logged(&limit, || (0..50).for_each(|slice| tracing::debug!(slice, "posted")));
        assert_eq!(lines.len(), 50);
    }

    #[test]
    fn a_filter_that_is_none_is_a_usage_error() {
        let output = Output::new(crate::output::Color::Never);
        let error = init(Some("engine=loud"), &output).unwrap_err();
        assert!(error.status() == 2 && error.to_string().contains("engine=loud"), "{error}");
    }
}
