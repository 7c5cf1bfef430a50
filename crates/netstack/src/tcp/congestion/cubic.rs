//! CUBIC (RFC 9438) with HyStart++ (RFC 9406).

use std::time::{Duration, Instant};

use super::Acknowledged;
use crate::tcp::sequence::Seq;

/// RFC 9438, 4.6: multiplicative decrease.
const BETA: f64 = 0.7;
/// RFC 8511, 3.1: the same where a router has marked and not dropped.
const BETA_MARK: f64 = 0.85;
/// RFC 7661, 4.4.1: the same where the window was not in use.
const BETA_UNVALIDATED: f64 = 0.5;
/// RFC 9438, 5: aggressiveness in segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438, 4.3: additive increase that is as fair as Reno with that decrease.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// RFC 9406, 4.3: bounds, in nanoseconds, of the delay that ends slow start, samples per round,
/// growth and rounds of conservative slow start.
const DELAY_MIN: u32 = 4_000_000;
const DELAY_MAX: u32 = 16_000_000;
const SAMPLES: u32 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;

/// The window in octets, and what bounds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) cwnd: u32,
    pub(super) ssthresh: u32,
    pub(super) mss: u32,
}

/// Where the curve of one connection stands.
#[derive(Debug, Default)]
pub(super) struct Cubic {
    pub(super) curve: Curve,
    hystart: HyStart,
}

/// The curve in segments (RFC 9438, 4.1.2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Curve {
    w_max: f64,
    w_est: f64,
    k: f64,
    epoch: Option<Instant>,
}

/// Round-trip times are in nanoseconds; what takes four seconds is as far as anything.
#[derive(Debug)]
struct HyStart {
    round_end: Option<Seq>,
    /// The smallest of the round before and of this one; [`u32::MAX`] without a sample.
    last_min: u32,
    current_min: u32,
    samples: u32,
    conservative: Option<Conservative>,
}

/// Conservative slow start: the round-trip time it began with, and rounds that it has lasted.
#[derive(Clone, Copy, Debug)]
struct Conservative {
    baseline: u32,
    rounds: u8,
}

impl Default for HyStart {
    fn default() -> Self {
        Self {
            round_end: None,
            last_min: u32::MAX,
            current_min: u32::MAX,
            samples: 0,
            conservative: None,
        }
    }
}

impl Cubic {
    /// Grows the window; called only while it is what limits the sender, and validated.
    pub(super) fn handle_ack(&mut self, now: Instant, window: &mut Window, ack: Acknowledged) {
        if window.cwnd < window.ssthresh {
            self.slow_start(window, ack);
        } else {
            self.avoid_congestion(now, window, ack);
        }
    }

    fn slow_start(&mut self, window: &mut Window, ack: Acknowledged) {
        let growth = match self.hystart.conservative {
            Some(_) => ack.bytes / CSS_GROWTH_DIVISOR,
            None => ack.bytes,
        };
        window.cwnd = window.cwnd.saturating_add(growth);
        if self.hystart.handle_ack(ack) {
            window.ssthresh = window.cwnd;
        }
    }

    fn avoid_congestion(&mut self, now: Instant, window: &mut Window, ack: Acknowledged) {
        let mss = f64::from(window.mss);
        let cwnd = f64::from(window.cwnd) / mss;
        let acked = f64::from(ack.bytes) / mss;
        let curve = &mut self.curve;
        let epoch = *curve.epoch.get_or_insert_with(|| {
            curve.w_est = cwnd;
            curve.w_max = curve.w_max.max(cwnd);
            curve.k = ((curve.w_max - cwnd) / C).cbrt();
            now
        });
        let t = now.saturating_duration_since(epoch).as_secs_f64();
        let (w_max, k) = (curve.w_max, curve.k);
        let cubic = |t: f64| C * (t - k).powi(3) + w_max;
        curve.w_est += if curve.w_est < w_max { ALPHA } else { 1.0 } * acked / cwnd;
        let target = if cubic(t) < curve.w_est {
            curve.w_est
        } else {
            let target = cubic(t + ack.smoothed_rtt.as_secs_f64());
            cwnd + (target.clamp(cwnd, 1.5 * cwnd) - cwnd) * acked / cwnd
        };
        window.cwnd = to_bytes(target.max(cwnd) * mss);
    }

    /// Reduces the window for a mark of congestion, less than for a loss: a router that marks has a
    /// short queue (RFC 8511, 3.1).
    pub(super) fn handle_mark(&mut self, window: &mut Window) {
        self.reduce(window, window.cwnd, BETA_MARK);
    }

    /// Reduces ssthresh once for a loss that recovery can repair.
    pub(super) fn handle_loss(&mut self, window: &mut Window, flight: u32) {
        self.reduce(window, flight, BETA);
    }

    /// Reduces ssthresh once for congestion while only `used` octets of the window were in use.
    pub(super) fn handle_congestion_unvalidated(&mut self, window: &mut Window, used: u32) {
        self.reduce(window, used, BETA_UNVALIDATED);
    }

    fn reduce(&mut self, window: &mut Window, flight: u32, beta: f64) {
        let mss = f64::from(window.mss);
        let segments = f64::from(window.cwnd.min(flight.max(window.mss))) / mss;
        // Fast convergence (RFC 9438, 4.7).
        self.curve.w_max = if segments < self.curve.w_max {
            segments * (1.0 + beta) / 2.0
        } else {
            segments
        };
        window.ssthresh = to_bytes(segments * beta * mss).max(2 * window.mss);
        self.curve.epoch = None;
        self.hystart = HyStart::default();
    }

    /// Begins a new epoch from the window as it is.
    pub(super) fn restart(&mut self) {
        self.curve.epoch = None;
    }

    /// Takes a time out of the epoch in which the sender did not use the window (RFC 9438, 5.8).
    pub(super) fn skip(&mut self, now: Instant, time: Duration) {
        let later = |epoch: Instant| (epoch + time).min(now);
        self.curve.epoch = self.curve.epoch.map(later);
    }
}

impl HyStart {
    /// Returns whether slow start has found the capacity of the path.
    fn handle_ack(&mut self, ack: Acknowledged) -> bool {
        let round_over = self.round_end.is_none_or(|end| !ack.snd_una.before(end));
        if round_over {
            self.round_end = Some(ack.snd_nxt);
            self.last_min = std::mem::replace(&mut self.current_min, u32::MAX);
            self.samples = 0;
            if let Some(conservative) = &mut self.conservative {
                conservative.rounds += 1;
                if conservative.rounds >= CSS_ROUNDS {
                    return true;
                }
            }
        }
        let Some(rtt) = ack.rtt else { return false };
        self.samples += 1;
        let rtt = u32::try_from(rtt.as_nanos()).unwrap_or(u32::MAX);
        self.current_min = self.current_min.min(rtt);
        if self.samples < SAMPLES {
            return false;
        }
        let (current, last) = (self.current_min, self.last_min);
        let delay = (last / 8).clamp(DELAY_MIN, DELAY_MAX);
        match self.conservative {
            Some(Conservative { baseline, .. }) if current < baseline => self.conservative = None,
            None if last < u32::MAX && current >= last.saturating_add(delay) => {
                self.conservative = Some(Conservative {
                    baseline: current,
                    rounds: 0,
                });
            }
            Some(_) | None => {}
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
