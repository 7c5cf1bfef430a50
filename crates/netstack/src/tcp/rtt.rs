//! Round-trip time and the retransmission timeout (RFC 6298).

use std::time::{Duration, Instant};

/// RTO before the first sample (RFC 6298, 2.1).
const INITIAL: Duration = Duration::from_secs(1);
/// Lower bound of the RTO: what Linux uses; RFC 6298, 2.4 would have a second.
const MIN: Duration = Duration::from_millis(200);
/// Upper bound of the RTO with its backoff (RFC 6298, 2.5).
const MAX: Duration = Duration::from_secs(60);
/// How long a minimum counts before the path may have changed, as in Linux.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(300);

/// The estimator of one connection.
#[derive(Debug)]
pub(crate) struct Rtt {
    measured: Option<Measured>,
    /// How often the timer has expired since the last progress.
    pub(crate) backoff: u32,
}

/// What the samples have told, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Measured {
    smoothed: u64,
    variation: u64,
    min: u64,
    min_at: Instant,
}

impl Rtt {
    pub(crate) fn new() -> Self {
        Self {
            measured: None,
            backoff: 0,
        }
    }

    /// Takes a sample; the caller keeps Karn's rule.
    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration) {
        let rtt = nanos(rtt);
        let Some(measured) = &mut self.measured else {
            self.measured = Some(Measured {
                smoothed: rtt,
                variation: rtt / 2,
                min: rtt,
                min_at: now,
            });
            return;
        };
        if measured.min >= rtt || now >= measured.min_at + MIN_RTT_WINDOW {
            (measured.min, measured.min_at) = (rtt, now);
        }
        measured.variation = measured.variation * 3 / 4 + measured.smoothed.abs_diff(rtt) / 4;
        measured.smoothed = measured.smoothed * 7 / 8 + rtt / 8;
    }

    /// Follows a round-trip time that the RTO was too short for (RFC 4015, 3.2).
    pub(crate) fn handle_needless_timeout(&mut self, rtt: Duration) {
        if let Some(measured) = &mut self.measured {
            let rtt = nanos(rtt.min(MAX));
            measured.smoothed = measured.smoothed.max(rtt);
            measured.variation = measured.variation.max(rtt / 2);
        }
    }

    /// Returns the smoothed round-trip time; `None` before the first sample.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        let measured = self.measured.as_ref()?;
        Some(Duration::from_nanos(measured.smoothed))
    }

    /// Returns how much the round-trip time varies.
    pub(crate) fn variation(&self) -> Duration {
        let measured = self.measured.as_ref();
        Duration::from_nanos(measured.map_or(0, |measured| measured.variation))
    }

    /// Returns the smallest round-trip time of late.
    pub(crate) fn min(&self) -> Option<Duration> {
        let measured = self.measured.as_ref()?;
        Some(Duration::from_nanos(measured.min))
    }

    /// Returns the RTO with its backoff.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout_after(self.backoff)
    }

    /// Returns the RTO as it is after `backoff` expirations.
    pub(crate) fn timeout_after(&self, backoff: u32) -> Duration {
        let base = match self.smoothed() {
            None => INITIAL,
            Some(smoothed) => (smoothed + self.variation() * 4).clamp(MIN, MAX),
        };
        base.saturating_mul(1 << backoff.min(16)).min(MAX)
    }
}

/// No sample is longer than the clock of timestamps can tell, 50 days, so sums stay below 2^64.
fn nanos(rtt: Duration) -> u64 {
    let max = Duration::from_millis(u32::MAX.into());
    u64::try_from(rtt.min(max).as_nanos()).expect("bounded")
}
