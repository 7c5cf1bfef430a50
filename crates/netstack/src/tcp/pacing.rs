//! Pacing: new data is spread over the round-trip time instead of leaving in bursts.

use std::time::{Duration, Instant};

/// A burst is what the rate sends in this time, or one segment: the bound that Linux has.
const BURST: Duration = Duration::from_millis(1);

/// How much faster than one window in a round-trip time, in quarters. Slow start doubles the
/// window in that time; later a margin keeps the window and not the pacing in command.
const SLOW_START_QUARTERS: u32 = 8;
const AVOIDANCE_QUARTERS: u32 = 5;

/// Segments at the start of a connection that are not paced, as in Linux: most answers fit into
/// the initial window.
const UNPACED_SEGMENTS: u8 = 10;

/// The rate at which data may leave: so many octets in so long a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    window: u32,
    round: Duration,
}

impl Pace {
    /// A window in each smoothed round-trip time, and a little more.
    pub(crate) fn of_window(window: u32, smoothed_rtt: Duration, slow_start: bool) -> Self {
        let quarters = if slow_start {
            SLOW_START_QUARTERS
        } else {
            AVOIDANCE_QUARTERS
        };
        Self {
            window,
            round: smoothed_rtt * 4 / quarters,
        }
    }

    /// So many octets in a second.
    pub(crate) fn of_rate(octets: u64) -> Self {
        Self {
            window: u32::try_from(octets).unwrap_or(u32::MAX),
            round: Duration::from_secs(1),
        }
    }

    /// Octets in a second.
    pub(crate) fn rate(self) -> u64 {
        let round = self.round.as_nanos().max(1);
        let rate = u128::from(self.window) * 1_000_000_000 / round;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// How long `octets` take.
    fn time(self, octets: u32) -> Duration {
        let round = u64::try_from(self.round.as_nanos()).unwrap_or(u64::MAX);
        let nanos = round.saturating_mul(u64::from(octets)) / u64::from(self.window.max(1));
        Duration::from_nanos(nanos)
    }
}

/// When one connection may send new data again.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// When everything that was sent will have taken its time.
    next: Option<Instant>,
    wait: Wait,
    /// Segments that may still leave unpaced, at most [`UNPACED_SEGMENTS`].
    unpaced: u8,
}

#[derive(Clone, Copy, Debug)]
enum Wait {
    No,
    /// Data waits until so many microseconds, at most [`BURST`], after `next`.
    Until(u16),
    /// The wait is over but the data has not left. What is late now is the clock and not the
    /// sender, so nothing is forfeited.
    Over,
}

impl Pacer {
    pub(crate) fn new() -> Self {
        Self {
            next: None,
            wait: Wait::No,
            unpaced: UNPACED_SEGMENTS,
        }
    }

    /// Returns when data that waits may leave; a deadline of the connection.
    pub(crate) fn release(&self) -> Option<Instant> {
        match self.wait {
            Wait::Until(micros) => Some(self.next? + Duration::from_micros(micros.into())),
            Wait::No | Wait::Over => None,
        }
    }

    /// Tells whether what was sent has not taken its time yet.
    pub(crate) fn is_ahead(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next > now)
    }

    /// Forgets a release that is due; who is still held back asks again.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.release().is_some_and(|at| at <= now) {
            self.wait = Wait::Over;
        }
    }

    /// Ends a wait: there is nothing to send, or something else than the pace holds it back.
    pub(crate) fn rest(&mut self) {
        self.wait = Wait::No;
    }

    /// Tells whether `octets` have to wait, and arranges the release if so.
    pub(crate) fn holds(&mut self, now: Instant, pace: Pace, octets: u32) -> bool {
        // A window that is one burst is not worth a timer.
        let held = self.is_ahead(now) && pace.round > BURST;
        if held {
            // One timer for each burst, not for each segment.
            let slack = BURST.saturating_sub(pace.time(octets));
            self.wait = Wait::Until(u16::try_from(slack.as_micros()).unwrap_or(u16::MAX));
        }
        held
    }

    /// Counts a segment of `octets` that leaves now.
    pub(crate) fn count(&mut self, now: Instant, pace: Pace, octets: u32) {
        if self.unpaced > 0 {
            self.unpaced -= 1;
            return;
        }
        let next = self.next.unwrap_or(now);
        let next = match self.wait {
            // Who was idle has earned one burst and no more.
            Wait::No => next.max(now.checked_sub(BURST).unwrap_or(now)),
            Wait::Until(_) | Wait::Over => next,
        };
        self.next = Some(next + pace.time(octets));
        if !matches!(self.wait, Wait::No) {
            self.wait = Wait::Over;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::pair::base;

    const RTT: Duration = Duration::from_millis(100);

    fn pace(window: u32) -> Pace {
        Pace::of_window(window, RTT, false)
    }

    /// A pacer after the initial window.
    fn paced() -> Pacer {
        Pacer {
            unpaced: 0,
            ..Pacer::new()
        }
    }

    /// Sends segments of 1,000 octets as early as the pacer lets them go, waking up `late`;
    /// returns how many left in a second and how many at most at one instant.
    fn run(window: u32, late: Duration) -> (u32, u32) {
        let began = base();
        let (mut now, mut pacer) = (began, paced());
        let (mut sent, mut burst, mut burst_max) = (0, 0, 0);
        while now < began + Duration::from_secs(1) {
            if pacer.holds(now, pace(window), 1_000) {
                now = pacer.release().unwrap() + late;
                pacer.handle_timeout(now);
                burst = 0;
            } else {
                pacer.count(now, pace(window), 1_000);
                sent += 1;
                burst += 1;
                burst_max = burst_max.max(burst);
            }
        }
        (sent, burst_max)
    }

    #[test]
    fn a_window_leaves_in_less_than_a_round_trip_time_and_not_at_once() {
        // 100 segments in 80 ms: one and a quarter in a millisecond.
        let (sent, burst) = run(100_000, Duration::ZERO);
        assert!((1_240..=1_260).contains(&sent), "{sent}");
        assert!(burst <= 3, "{burst}");
    }

    #[test]
    fn a_late_clock_costs_no_rate() {
        let (sent, _) = run(100_000, Duration::from_millis(16));
        assert!((1_220..=1_280).contains(&sent), "{sent}");
    }

    #[test]
    fn who_was_idle_has_earned_one_burst() {
        let began = base();
        let mut pacer = paced();
        pacer.count(began, pace(100_000), 1_000);
        let now = began + Duration::from_secs(10);
        let mut sent = 0;
        while !pacer.holds(now, pace(100_000), 1_000) {
            pacer.count(now, pace(100_000), 1_000);
            sent += 1;
        }
        assert!(sent <= 3, "{sent}");
    }

    #[test]
    fn a_window_of_one_segment_waits_less_than_a_round_trip_time() {
        let now = base();
        let mut pacer = paced();
        pacer.count(now, pace(1_000), 1_000);
        assert!(pacer.holds(now, pace(1_000), 1_000));
        assert!(pacer.release().unwrap() < now + RTT);
    }

    #[test]
    fn a_path_of_a_millisecond_is_not_paced() {
        let now = base();
        let near = Pace::of_window(100_000, Duration::from_millis(1), false);
        let mut pacer = paced();
        pacer.count(now, near, 100_000);
        assert!(!pacer.holds(now, near, 1_000));
    }
}
