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
    smoothed: Option<Duration>,
    variation: Duration,
    min: Option<(Duration, Instant)>,
    /// How often the timer has expired since the last progress.
    pub(crate) backoff: u32,
}

impl Rtt {
    pub(crate) fn new() -> Self {
        Self {
            smoothed: None,
            variation: Duration::ZERO,
            min: None,
            backoff: 0,
        }
    }

    /// Takes a sample; the caller keeps Karn's rule.
    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration) {
        match self.min {
            Some((min, at)) if min < rtt && now < at + MIN_RTT_WINDOW => {}
            Some(_) | None => self.min = Some((rtt, now)),
        }
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = self.variation * 3 / 4 + smoothed.abs_diff(rtt) / 4;
                self.smoothed = Some(smoothed * 7 / 8 + rtt / 8);
            }
        }
    }

    /// Follows a round-trip time that the RTO was too short for (RFC 4015, 3.2).
    pub(crate) fn handle_needless_timeout(&mut self, rtt: Duration) {
        if let Some(smoothed) = &mut self.smoothed {
            *smoothed = rtt.min(MAX).max(*smoothed);
            self.variation = (rtt.min(MAX) / 2).max(self.variation);
        }
    }

    /// Returns the smoothed round-trip time; `None` before the first sample.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// Returns how much the round-trip time varies.
    pub(crate) fn variation(&self) -> Duration {
        self.variation
    }

    /// Returns the smallest round-trip time of late.
    pub(crate) fn min(&self) -> Option<Duration> {
        self.min.map(|(min, _)| min)
    }

    /// Returns the RTO with its backoff.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout_after(self.backoff)
    }

    /// Returns the RTO as it is after `backoff` expirations.
    pub(crate) fn timeout_after(&self, backoff: u32) -> Duration {
        let base = match self.smoothed {
            None => INITIAL,
            Some(smoothed) => (smoothed + self.variation * 4).clamp(MIN, MAX),
        };
        base.saturating_mul(1 << backoff.min(16)).min(MAX)
    }
}
