//! How much CPU time handshakes may take while data flows, so that a flood of them takes little
//! from those who have a session.

use std::time::{Duration, Instant};

/// The CPU time of all threads that see to handshakes.
///
/// While data flows they may take a sixteenth of all cores, and after a pause 10 ms at once. What
/// they cannot handle then waits in the kernel's queue, and the rest of a flood is lost there,
/// which costs little. Without data they may take all they want, and also while a session waits for
/// its successor, which would end without one.
#[derive(Debug)]
pub struct Allowance {
    cores: u32,
    /// When what was used is paid for; ahead of now, the threads are in debt.
    paid: Option<Instant>,
    /// What is counted of the data, and when it last changed.
    data: u64,
    flowed: Option<Instant>,
}

impl Allowance {
    /// Begins with nothing saved, on a machine with so many cores; zero counts as one.
    #[must_use]
    pub fn new(cores: u32) -> Self {
        Self {
            cores: cores.max(1),
            paid: None,
            data: 0,
            flowed: None,
        }
    }

    /// Takes `used` at `now`, when `data` batches of data were counted so far, and a session is
    /// `overdue` or none; returns how long the thread that used it is to pause: 4 to 50 ms, or not
    /// at all.
    pub fn take(
        &mut self,
        now: Instant,
        used: Duration,
        data: u64,
        overdue: bool,
    ) -> Option<Duration> {
        if data != self.data {
            (self.data, self.flowed) = (data, Some(now));
        }
        let flows = !overdue && self.flowed.is_some_and(|at| now < at + DATA_HOLD);
        let earliest = now.checked_sub(SAVED_MAX * SHARE / self.cores);
        let paid = self.paid.unwrap_or(now);
        let paid = earliest.map_or(paid, |earliest| paid.max(earliest));
        if !flows {
            self.paid = Some(paid.min(now));
            return None;
        }
        let paid = paid + used * SHARE / self.cores;
        self.paid = Some(paid);
        let debt = paid.saturating_duration_since(now);
        (debt >= PAUSE_MIN).then(|| debt.min(PAUSE_MAX))
    }
}

/// One part in so many of the CPU time of all cores.
const SHARE: u32 = 16;
/// About a hundred handshakes.
const SAVED_MAX: Duration = Duration::from_millis(10);
/// Data flows until it has been silent for so long.
const DATA_HOLD: Duration = Duration::from_millis(100);
/// Shorter pauses cost more than they spare; the kernel's queue lasts for about as long when a
/// hundred thousand messages come in a second.
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// A single handshake, on a thread that was interrupted, does not delay others for longer.
const PAUSE_MAX: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::base;

    /// Lets one thread use what it can for a second, in steps of `step`, and returns the sum.
    fn used(cores: u32, step: Duration, flows: bool) -> Duration {
        let start = base();
        let mut allowance = Allowance::new(cores);
        let (mut now, mut sum, mut data) = (start, Duration::ZERO, 0);
        while now < start + Duration::from_secs(1) {
            now += step;
            sum += step;
            data += u64::from(flows);
            now += allowance.take(now, step, data, false).unwrap_or_default();
        }
        sum
    }

    #[test]
    fn while_data_flows_a_sixteenth_of_all_cores_is_used_and_a_burst() {
        for cores in [1, 2, 4] {
            for step in [10, 200, 1_000].map(Duration::from_micros) {
                let used = used(cores, step, true);
                let expected = Duration::from_micros(62_500) * cores;
                assert!(used >= expected, "{cores} {step:?} {used:?}");
                assert!(
                    used <= expected + SAVED_MAX * 3,
                    "{cores} {step:?} {used:?}"
                );
            }
        }
    }

    #[test]
    fn without_data_there_is_no_pause_and_no_debt_for_later() {
        let step = Duration::from_millis(1);
        assert_eq!(used(1, step, false), Duration::from_secs(1));
        let now = base();
        let mut allowance = Allowance::new(1);
        for _ in 0..1_000 {
            assert_eq!(allowance.take(now, step, 0, false), None);
        }
        assert_eq!(
            allowance.take(now, Duration::from_micros(100), 1, false),
            None
        );
        let later = now + DATA_HOLD;
        assert_eq!(
            allowance.take(later, Duration::from_secs(9), 1, false),
            None
        );
    }

    #[test]
    fn a_pause_has_a_bound_and_what_is_saved_too() {
        let now = base();
        let mut allowance = Allowance::new(2);
        let pause = allowance.take(now, Duration::from_secs(9), 1, false);
        assert_eq!(pause, Some(PAUSE_MAX));
        let later = now + Duration::from_secs(1_000);
        assert_eq!(allowance.take(later, SAVED_MAX, 2, false), None);
        assert!(allowance.take(later, SAVED_MAX, 3, false).is_some());
    }

    #[test]
    fn a_session_that_is_overdue_lifts_the_limit_and_leaves_no_debt() {
        let now = base();
        let mut allowance = Allowance::new(1);
        let second = Duration::from_secs(1);
        assert_eq!(allowance.take(now, second, 1, true), None);
        let step = Duration::from_micros(10);
        assert_eq!(allowance.take(now, step, 2, false), None);
        assert_eq!(allowance.take(now, second, 3, false), Some(PAUSE_MAX));
    }
}
