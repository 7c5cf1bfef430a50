//! CUBIC (RFC 9438) with HyStart++ (RFC 9406).

use std::time::{Duration, Instant};

use super::{Acknowledged, INITIAL_SEGMENTS};
use crate::tcp::sequence::Seq;

/// RFC 9438, 4.6: multiplicative decrease.
const BETA: f64 = 0.7;
/// RFC 8511, 3.1: the same where a router has marked and not dropped.
const BETA_MARK: f64 = 0.85;
/// RFC 9438, 5: aggressiveness in segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438, 4.3: additive increase that is as fair as Reno with that decrease.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// RFC 9406, 4.3: bounds of the delay that ends slow start, samples per round, rounds and growth
/// of conservative slow start.
const DELAY_MIN: Duration = Duration::from_millis(4);
const DELAY_MAX: Duration = Duration::from_millis(16);
const SAMPLES: u32 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u32 = 5;

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

#[derive(Debug, Default)]
struct HyStart {
    round_end: Option<Seq>,
    last_min: Option<Duration>,
    current_min: Option<Duration>,
    samples: u32,
    /// In conservative slow start: the minimum it began with, and rounds that it lasted.
    conservative: Option<(Duration, u32)>,
}

impl Cubic {
    /// Grows the window; called only while it is what limits the sender (RFC 7661, 4.3).
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
        window.cwnd = window.ssthresh;
    }

    /// Reduces ssthresh once for a loss that recovery can repair.
    pub(super) fn handle_loss(&mut self, window: &mut Window, flight: u32) {
        self.reduce(window, flight, BETA);
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

    /// Halves the window for each RTO of idleness, but not below the initial one: what it stood
    /// for is no longer known (RFC 5681, 4.1, in the gentler form of RFC 2861).
    pub(super) fn handle_idle(&mut self, window: &mut Window, idle: Duration, timeout: Duration) {
        let floor = (INITIAL_SEGMENTS * window.mss).min(window.cwnd);
        let mut left = idle;
        while left > timeout && window.cwnd > floor {
            window.ssthresh = window.ssthresh.max(window.cwnd / 4 * 3);
            window.cwnd = (window.cwnd / 2).max(floor);
            left -= timeout;
        }
        self.curve.epoch = None;
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
