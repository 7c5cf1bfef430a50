//! Congestion control: CUBIC (RFC 9438) with HyStart++ (RFC 9406).

use std::time::{Duration, Instant};

use super::sequence::Seq;

/// RFC 9438, 4.6: multiplicative decrease.
const BETA: f64 = 0.7;
/// RFC 9438, 5: aggressiveness in segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438, 4.3: additive increase that is as fair as Reno with that decrease.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// RFC 6928: initial window in segments.
const INITIAL_SEGMENTS: u32 = 10;
/// RFC 9406, 4.3: bounds of the delay that ends slow start, samples per round, rounds and growth
/// of conservative slow start.
const DELAY_MIN: Duration = Duration::from_millis(4);
const DELAY_MAX: Duration = Duration::from_millis(16);
const SAMPLES: u32 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u32 = 5;

/// The congestion window of one connection, in bytes.
#[derive(Debug)]
pub(crate) struct Congestion {
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    /// The largest window that is of use: more is never in flight.
    cwnd_max: u32,
    mss: u32,
    w_max: f64,
    w_est: f64,
    k: f64,
    epoch: Option<Instant>,
    hystart: HyStart,
}

#[derive(Debug, Default)]
struct HyStart {
    round_end: Option<Seq>,
    last_min: Option<Duration>,
    current_min: Option<Duration>,
    samples: u32,
    /// In conservative slow start: the minimum it began with, and rounds that it lasted.
    conservative: Option<(Duration, u32)>,
}

/// The window before a reduction, with the curve that led there (RFC 9438, 4.9.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    cwnd: u32,
    ssthresh: u32,
    w_max: f64,
    w_est: f64,
    k: f64,
    epoch: Option<Instant>,
}

/// What an acknowledgement brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) bytes: u32,
    pub(crate) rtt: Option<Duration>,
    pub(crate) smoothed_rtt: Duration,
    pub(crate) snd_una: Seq,
    pub(crate) snd_nxt: Seq,
}

impl Congestion {
    pub(crate) fn new(mss: u32, cwnd_max: u32) -> Self {
        Self {
            cwnd: INITIAL_SEGMENTS * mss,
            ssthresh: u32::MAX,
            cwnd_max,
            mss,
            w_max: 0.0,
            w_est: 0.0,
            k: 0.0,
            epoch: None,
            hystart: HyStart::default(),
        }
    }

    /// Follows a change of the segment size; the window in segments stays.
    pub(crate) fn set_mss(&mut self, mss: u32) {
        let scaled = u64::from(self.cwnd) * u64::from(mss) / u64::from(self.mss.max(1));
        self.cwnd = u32::try_from(scaled).unwrap_or(u32::MAX).max(mss);
        self.mss = mss;
    }

    /// Grows the window; called only while it is what limits the sender (RFC 7661, 4.3).
    pub(crate) fn handle_ack(&mut self, now: Instant, ack: Acknowledged) {
        if self.cwnd < self.ssthresh {
            self.slow_start(ack);
        } else {
            self.avoid_congestion(now, ack);
        }
        self.cwnd = self.cwnd.min(self.cwnd_max);
    }

    fn slow_start(&mut self, ack: Acknowledged) {
        let growth = match self.hystart.conservative {
            Some(_) => ack.bytes / CSS_GROWTH_DIVISOR,
            None => ack.bytes,
        };
        self.cwnd = self.cwnd.saturating_add(growth);
        if self.hystart.handle_ack(ack) {
            self.ssthresh = self.cwnd;
        }
    }

    fn avoid_congestion(&mut self, now: Instant, ack: Acknowledged) {
        let mss = f64::from(self.mss);
        let cwnd = f64::from(self.cwnd) / mss;
        let acked = f64::from(ack.bytes) / mss;
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.w_est = cwnd;
            self.w_max = self.w_max.max(cwnd);
            self.k = ((self.w_max - cwnd) / C).cbrt();
            now
        });
        let t = now.saturating_duration_since(epoch).as_secs_f64();
        let cubic = |t: f64| C * (t - self.k).powi(3) + self.w_max;
        self.w_est += if self.w_est < self.w_max { ALPHA } else { 1.0 } * acked / cwnd;
        let target = if cubic(t) < self.w_est {
            self.w_est
        } else {
            let target = cubic(t + ack.smoothed_rtt.as_secs_f64());
            cwnd + (target.clamp(cwnd, 1.5 * cwnd) - cwnd) * acked / cwnd
        };
        self.cwnd = to_bytes(target.max(cwnd) * mss);
    }

    /// Reduces the window once for a loss that recovery can repair; returns the new ssthresh.
    pub(crate) fn handle_loss(&mut self, flight: u32) -> u32 {
        let mss = f64::from(self.mss);
        let window = f64::from(self.cwnd.min(flight.max(self.mss))) / mss;
        // Fast convergence (RFC 9438, 4.7).
        self.w_max = if window < self.w_max {
            window * (1.0 + BETA) / 2.0
        } else {
            window
        };
        self.ssthresh = to_bytes(window * BETA * mss).max(2 * self.mss);
        self.epoch = None;
        self.hystart = HyStart::default();
        self.ssthresh
    }

    /// Begins again with one segment after a retransmission timeout; a repeated timeout reduces
    /// ssthresh no further (RFC 5681, 3.1).
    pub(crate) fn handle_timeout(&mut self, flight: u32, repeated: bool) {
        if !repeated {
            self.handle_loss(flight);
        }
        self.epoch = None;
        self.cwnd = self.mss;
    }

    /// Returns what a reduction is about to change.
    pub(crate) fn before_reduction(&self) -> Reduction {
        Reduction {
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            w_max: self.w_max,
            w_est: self.w_est,
            k: self.k,
            epoch: self.epoch,
        }
    }

    /// Takes back a reduction that proved needless (RFC 4015; RFC 9438, 4.9.2).
    pub(crate) fn undo(&mut self, before: Reduction) {
        self.cwnd = self.cwnd.max(before.cwnd);
        self.ssthresh = self.ssthresh.max(before.ssthresh);
        self.w_max = before.w_max;
        self.w_est = before.w_est;
        self.k = before.k;
        self.epoch = before.epoch;
    }

    /// Halves the window for each RTO of idleness, but not below the initial one: what it stood
    /// for is no longer known (RFC 5681, 4.1, in the gentler form of RFC 2861).
    pub(crate) fn handle_idle(&mut self, idle: Duration, timeout: Duration) {
        let floor = (INITIAL_SEGMENTS * self.mss).min(self.cwnd);
        let mut left = idle;
        while left > timeout && self.cwnd > floor {
            self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
            self.cwnd = (self.cwnd / 2).max(floor);
            left -= timeout;
        }
        self.epoch = None;
    }
}

impl HyStart {
    /// Returns whether slow start has found the capacity of the path.
    fn handle_ack(&mut self, ack: Acknowledged) -> bool {
        let round_over = self.round_end.is_none_or(|end| !ack.snd_una.before(end));
        if round_over {
            self.round_end = Some(ack.snd_nxt);
            self.last_min = self.current_min.take();
            self.samples = 0;
            if let Some((_, rounds)) = &mut self.conservative {
                *rounds += 1;
                if *rounds >= CSS_ROUNDS {
                    return true;
                }
            }
        }
        let Some(rtt) = ack.rtt else { return false };
        self.samples += 1;
        let current = self.current_min.map_or(rtt, |min| min.min(rtt));
        self.current_min = Some(current);
        if self.samples < SAMPLES {
            return false;
        }
        match (self.conservative, self.last_min) {
            (Some((baseline, _)), _) if current < baseline => self.conservative = None,
            (None, Some(last)) if current >= last + (last / 8).clamp(DELAY_MIN, DELAY_MAX) => {
                self.conservative = Some((current, 0));
            }
            (Some(_), _) | (None, _) => {}
        }
        false
    }
}

/// Rounds down; windows are far below 2^32 by `cwnd_max`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float casts to the nearest integer and saturates"
)]
fn to_bytes(bytes: f64) -> u32 {
    bytes as u32
}
