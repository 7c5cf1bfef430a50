//! The one place where time is read.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

/// Yields strictly increasing instants: two equal ones stem from the same reading.
#[derive(Debug)]
pub struct Clock {
    last: Instant,
    read: fn() -> Instant,
}

impl Clock {
    /// Starts a clock that stands still while the machine is suspended.
    #[must_use]
    pub fn start() -> Self {
        Self { last: read(), read }
    }

    /// Starts a clock that goes on while the machine is suspended, for what the other side's time
    /// decides. Its instants are ahead of those of [`Clock::start`] by all suspensions: compare
    /// them only with each other, and sleep for durations.
    #[must_use]
    pub fn start_through_suspend() -> Self {
        let read = read_through_suspend;
        Self { last: read(), read }
    }

    /// Reads the clock; call it once in each turn of the event loop.
    pub fn now(&mut self) -> Instant {
        self.last = (self.read)().max(self.last + Duration::from_nanos(1));
        self.last
    }
}

/// Tells whether inputs follow each other so closely that it pays to look for more at once.
///
/// Looking costs a system call, which a lone packet need not wait for.
#[derive(Debug)]
pub struct Pace {
    clock: Clock,
    last: Instant,
}

impl Pace {
    /// Starts with a lone input.
    #[must_use]
    pub fn start() -> Self {
        let clock = Clock::start();
        Self {
            last: clock.last,
            clock,
        }
    }

    /// Notes an input at this moment; true when the one before was noted less than `SOON` ago.
    pub fn is_busy(&mut self) -> bool {
        let now = self.clock.now();
        self.is_busy_at(now)
    }

    fn is_busy_at(&mut self, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.last, now);
        now.saturating_duration_since(before) < SOON
    }
}

/// Measures the CPU time of the thread that it is asked on.
#[derive(Debug, Default)]
pub struct Effort {
    last: Duration,
}

impl Effort {
    /// Begins now, for a thread that does other work too.
    #[must_use]
    pub fn start() -> Self {
        Self {
            last: thread_time(),
        }
    }

    /// Returns the CPU time that this thread used since the last call, or since it began.
    pub fn since_last(&mut self) -> Duration {
        let now = thread_time();
        now.saturating_sub(std::mem::replace(&mut self.last, now))
    }
}

/// More than one small packet takes from one socket to the other, and less than its answer takes
/// to come back through another tunnel: that wakes six threads.
const SOON: Duration = Duration::from_micros(20);

/// Reads the time of day, which may jump either way.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
#[must_use]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

fn read_through_suspend() -> Instant {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    let boot = since_boot();
    let start = || Origin {
        instant: read(),
        boot,
    };
    ORIGIN.get_or_init(start).instant_at(boot)
}

/// A moment on both clocks; one for the process, so that its threads agree.
#[derive(Clone, Copy, Debug)]
struct Origin {
    instant: Instant,
    boot: Duration,
}

impl Origin {
    fn instant_at(self, boot: Duration) -> Instant {
        self.instant + boot.saturating_sub(self.boot)
    }
}

/// Returns the time since the machine was started, suspensions included (CLOCK_BOOTTIME).
fn since_boot() -> Duration {
    time_of(libc::CLOCK_BOOTTIME)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn read() -> Instant {
    Instant::now()
}

/// Reads how much CPU time this thread has used (clock_gettime(2)); zero where that is unknown.
fn thread_time() -> Duration {
    time_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Reads one of the clocks that every Linux since 2.6.39 has.
fn time_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to `time`, which lives through the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reading_is_later_than_the_one_before() {
        let mut clock = Clock::start();
        let mut last = clock.now();
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now > last);
            last = now;
        }
    }

    #[test]
    fn suspension_counts_on_the_clock_that_goes_through_it() {
        let hours = |hours: u64| Duration::from_secs(3_600 * hours);
        let origin = Origin {
            instant: read(),
            boot: hours(50),
        };
        for (boot, passed) in [(50, 0), (51, 1), (58, 8), (49, 0)] {
            let instant = origin.instant_at(hours(boot));
            assert_eq!(instant.duration_since(origin.instant), hours(passed));
        }
        let mut clocks = [(); 2].map(|()| Clock::start_through_suspend());
        let mut last = clocks[0].now();
        for number in 0..1000 {
            let now = clocks[number % 2].now();
            // Both count from one origin; a tick of one nanosecond is all that they may differ.
            assert!(now + Duration::from_nanos(1) >= last);
            last = now;
        }
    }

    #[test]
    fn an_input_is_one_of_many_only_when_the_last_was_soon_before() {
        let mut pace = Pace::start();
        let mut start = pace.last;
        for (later, expected) in [
            (SOON, false),
            (SOON / 2, true),
            (Duration::ZERO, true),
            (SOON * 1_000, false),
        ] {
            start += later;
            assert_eq!(pace.is_busy_at(start), expected, "{later:?}");
        }
    }

    #[test]
    fn the_effort_of_a_thread_is_its_own() {
        let mut effort = Effort::default();
        effort.since_last();
        let mut sum = 0_u64;
        let mut used = Duration::ZERO;
        while used < Duration::from_millis(2) {
            sum = (0..10_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
            used += effort.since_last();
        }
        let idle = std::thread::spawn(|| Effort::default().since_last());
        assert!(idle.join().unwrap() < used);
    }
}
