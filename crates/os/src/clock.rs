//! The one place where time is read.

use std::time::{Duration, Instant, SystemTime};

/// Yields strictly increasing instants: two equal ones stem from the same reading.
#[derive(Debug)]
pub struct Clock {
    last: Instant,
}

impl Clock {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { last: read() }
    }

    /// Reads the clock; call it once in each turn of the event loop.
    pub fn now(&mut self) -> Instant {
        self.last = read().max(self.last + Duration::from_nanos(1));
        self.last
    }
}

/// Reads the time of day, which may jump either way.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
#[must_use]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn read() -> Instant {
    Instant::now()
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
}
