//! CPU time.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// CPU time and wall time since it was started.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock {
    clock: ClockId,
    cpu: Duration,
    wall: Instant,
}

impl CpuClock {
    /// Starts to count the CPU time of all threads of this process, user and system.
    #[must_use]
    pub fn process() -> Self {
        Self::start(ClockId::ProcessCPUTime)
    }

    /// Starts to count the CPU time of the calling thread, user and system. Read it on the same thread.
    #[must_use]
    pub fn thread() -> Self {
        Self::start(ClockId::ThreadCPUTime)
    }

    fn start(clock: ClockId) -> Self {
        Self { clock, cpu: read(clock), wall: Instant::now() }
    }

    /// CPU time since the start.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        read(self.clock).saturating_sub(self.cpu)
    }

    /// Percent of one core since the start: 100 is one core kept busy all the time. 0 if no time has passed.
    #[must_use]
    pub fn percent(&self) -> f64 {
        let wall = self.wall.elapsed().as_secs_f64();
        if wall > 0.0 { 100.0 * self.cpu().as_secs_f64() / wall } else { 0.0 }
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Neither field is negative on a CPU clock, and tv_nsec is below 10⁹.
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_work_and_not_sleep() {
        let clock = CpuClock::thread();
        while clock.cpu() < Duration::from_millis(5) {}
        let worked = clock.cpu();
        std::thread::park_timeout(Duration::from_millis(50));
        assert!(clock.cpu() - worked < Duration::from_millis(40));
        assert!(clock.percent() < 100.0 + 1e-6, "{}", clock.percent());
    }
}
