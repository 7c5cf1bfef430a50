//! BBR, version 3 (draft-ietf-ccwg-bbr-06, section 5): a model of the path decides. It differs in
//! what a loss means (`loss`).
//!
//! ```text
//!   Startup ─▶ Drain ─▶ Down ─▶ Cruise ─▶ Refill ─▶ Up ─▶ Down ..     ProbeRtt from anywhere
//!      2.77      0.5     0.9       1         1     1.25                 1    × max_bw is the rate
//! ```

mod loss;

use std::time::{Duration, Instant};

use self::loss::PathLoss;
use super::{Delivered, INITIAL_SEGMENTS};
use crate::tcp::delivery::{Loss, Sample};

/// Gains in percent (5.6.1).
const STARTUP_PACING_GAIN: u64 = 277;
const CWND_GAIN: u64 = 200;
const UP_CWND_GAIN: u64 = 225;
const PROBE_RTT_CWND_GAIN: u64 = 50;
/// The rate stays that far below what was measured, in percent (5.6.2).
const PACED: u64 = 99;
/// What is left of a bound after loss, in percent (2.7).
const BETA: u64 = 70;
/// What is used of the long-term volume while cruising, in percent (2.7).
const USED: u64 = 85;
/// The least window in segments, for a peer that acknowledges every second one (2.7).
const SEGMENTS_MIN: u32 = 4;
/// A rate that grows by less than this in percent, for so many rounds, has met its bound (5.3.1.2).
const GROWTH: u64 = 125;
const FULL_ROUNDS: u8 = 3;
/// Acknowledgements with losses in a round that end Startup (5.3.1.3).
const STARTUP_LOSSES: u8 = 6;
/// Rounds that Drain takes at most (5.3.2).
const DRAIN_ROUNDS: u64 = 3;
/// How long the smallest round-trip time counts, how long until it is looked for, and how long the
/// path is kept empty for that (2.7).
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_RTT_DURATION: Duration = Duration::from_millis(200);
/// Between probes for a higher rate lie two seconds and up to one more, or so many rounds
/// (5.3.3.8).
const PROBE_WAIT: Duration = Duration::from_secs(2);
const PROBE_WAIT_ADDED_MILLIS: u64 = 1_000;
const PROBE_ROUNDS_MAX: u64 = 63;
/// Growth of the long-term volume doubles each round, up to this power of two (5.3.3.9).
const PROBE_UP_ROUNDS_MAX: u32 = 30;
/// Rounds in each half of the window of what acknowledgements bring at once (5.5.9).
const AGGREGATION_ROUNDS: u64 = 5;
/// A burst is what leaves in this time, within bounds (5.6.3).
const QUANTUM: Duration = Duration::from_millis(1);
const QUANTUM_MAX: u32 = 64 << 10;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Startup,
    Drain,
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}

impl State {
    fn probes_bandwidth(self) -> bool {
        match self {
            Self::Startup | Self::Refill | Self::Up => true,
            Self::Drain | Self::Down | Self::Cruise | Self::ProbeRtt => false,
        }
    }

    /// Tells whether this is a state of the cycle (ProbeBW).
    fn cycles(self) -> bool {
        match self {
            Self::Down | Self::Cruise | Self::Refill | Self::Up => true,
            Self::Startup | Self::Drain | Self::ProbeRtt => false,
        }
    }

    fn pacing_gain(self) -> u64 {
        match self {
            Self::Startup => STARTUP_PACING_GAIN,
            Self::Drain => 50,
            Self::Down => 90,
            Self::Cruise | Self::Refill | Self::ProbeRtt => 100,
            Self::Up => 125,
        }
    }

    fn cwnd_gain(self) -> u64 {
        match self {
            Self::Startup | Self::Drain | Self::Down | Self::Cruise | Self::Refill => CWND_GAIN,
            Self::Up => UP_CWND_GAIN,
            Self::ProbeRtt => PROBE_RTT_CWND_GAIN,
        }
    }
}

/// What acknowledgements tell about the latest probe (5.3.3.9).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Feedback {
    None,
    Refilling,
    Starting,
    Arriving,
    Stopping,
}

/// When and in which state of the window something happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) now: Instant,
    pub(super) cwnd: u32,
    pub(super) mss: u32,
    pub(super) in_flight: u32,
    /// Octets that have been delivered since the connection began.
    pub(super) delivered: u64,
}

/// What a recovery that proves needless brings back (5.5.11).
#[derive(Clone, Copy, Debug)]
struct Before {
    /// The probing state that losses have ended.
    state: Option<State>,
    bw_shortterm: u64,
    inflight_shortterm: u32,
    inflight_longterm: u32,
}

/// The model of one path. Rates are octets per second, volumes octets; what is unbounded is the
/// largest number.
#[derive(Debug)]
pub(super) struct Bbr {
    state: State,
    cwnd: u32,
    mss: u32,
    delivered: u64,
    pacing_rate: u64,

    round_count: u64,
    /// The round ends when something is acknowledged that was sent after so much was delivered.
    round_end: u64,
    round_start: bool,

    /// The highest rate of the cycle before and of this one.
    max_bw: [u64; 2],
    bw_shortterm: u64,
    bw_latest: u64,
    /// The smallest round-trip time and when it was seen, and the same since the last look for it.
    min_rtt: Option<(Duration, Instant)>,
    probe_rtt_min: Option<(Duration, Instant)>,
    probe_rtt_expired: bool,
    probe_rtt_done: Option<Instant>,
    probe_rtt_round_done: bool,
    idle_restart: bool,

    full_bw: u64,
    full_bw_count: u8,
    full_bw_now: bool,
    full_bw_reached: bool,
    drain_start_round: u64,

    inflight_longterm: u32,
    inflight_shortterm: u32,
    inflight_latest: u64,
    loss_round_end: u64,
    loss_round_start: bool,
    loss_in_round: bool,
    losses_in_round: u8,
    path_loss: PathLoss,
    /// What was sent after so much was delivered was not sent by a probe.
    calm_since: u64,

    feedback: Feedback,
    /// What is being acknowledged was sent by a probe that no loss was answered of.
    probe_samples: bool,
    cycle_at: Instant,
    probe_wait: Duration,
    rounds_since_probe: u64,
    probe_up_rounds: u32,
    probe_up_acknowledged: u64,
    /// So much is acknowledged for each segment that the long-term volume grows by.
    probe_up_step: u64,
    probed_too_high: bool,
    probed_with_caution: bool,

    extra_acknowledged: [u64; 2],
    extra_rounds: u64,
    extra_since: Instant,
    extra_delivered: u64,

    /// The window before recovery or ProbeRtt.
    prior_cwnd: u32,
    before: Before,
    /// SplitMix64 (Steele, Lea, Flood, 2014).
    random: u64,
}

impl Bbr {
    pub(super) fn new(now: Instant, seed: u64) -> Self {
        Self {
            state: State::Startup,
            cwnd: 0,
            mss: 1,
            delivered: 0,
            pacing_rate: 0,
            round_count: 0,
            round_end: 0,
            round_start: false,
            max_bw: [0; 2],
            bw_shortterm: u64::MAX,
            bw_latest: 0,
            min_rtt: None,
            probe_rtt_min: None,
            probe_rtt_expired: false,
            probe_rtt_done: None,
            probe_rtt_round_done: false,
            idle_restart: false,
            full_bw: 0,
            full_bw_count: 0,
            full_bw_now: false,
            full_bw_reached: false,
            drain_start_round: 0,
            inflight_longterm: u32::MAX,
            inflight_shortterm: u32::MAX,
            inflight_latest: 0,
            loss_round_end: 0,
            loss_round_start: false,
            loss_in_round: false,
            losses_in_round: 0,
            path_loss: PathLoss::default(),
            calm_since: 0,
            feedback: Feedback::None,
            probe_samples: false,
            cycle_at: now,
            probe_wait: PROBE_WAIT,
            rounds_since_probe: 0,
            probe_up_rounds: 0,
            probe_up_acknowledged: 0,
            probe_up_step: u64::MAX,
            probed_too_high: false,
            probed_with_caution: false,
            extra_acknowledged: [0; 2],
            extra_rounds: 0,
            extra_since: now,
            extra_delivered: 0,
            prior_cwnd: 0,
            before: Before {
                state: None,
                bw_shortterm: u64::MAX,
                inflight_shortterm: u32::MAX,
                inflight_longterm: u32::MAX,
            },
            random: seed,
        }
    }

    /// Returns the rate at which data may leave; before the first measurement it follows from the
    /// initial window (5.6.2).
    pub(super) fn pacing_rate(&self, mss: u32, smoothed_rtt: Duration) -> u64 {
        if self.pacing_rate > 0 {
            return self.pacing_rate;
        }
        let nanos = smoothed_rtt.as_nanos().max(1);
        let nominal = u128::from(INITIAL_SEGMENTS * mss) * 1_000_000_000 / nanos;
        percent(
            u64::try_from(nominal).unwrap_or(u64::MAX),
            STARTUP_PACING_GAIN,
        )
    }

    pub(super) fn begins_round(&self) -> bool {
        self.round_start
    }

    pub(super) fn probes_rtt(&self) -> bool {
        self.state == State::ProbeRtt
    }

    /// Takes an acknowledgement and returns the window (5.2.3).
    pub(super) fn handle_ack(&mut self, turn: Turn, delivered: Delivered) -> u32 {
        self.enter(turn);
        self.round_start = false;
        self.loss_round_start = false;
        if self.pacing_rate == 0
            && let Some(smoothed_rtt) = delivered.smoothed_rtt
        {
            self.pacing_rate = self.pacing_rate(turn.mss, smoothed_rtt);
        }
        if let Some(sample) = delivered.sample {
            self.path_loss
                .handle_ack(sample.acknowledged, delivered.rtt);
            self.update_latest(&sample);
            self.update_max_bw(&sample);
            self.adapt_lower_bounds();
            self.update_aggregation(turn.now, &sample);
            self.detect_full_pipe(&sample);
            self.end_startup(&delivered, &sample);
            self.end_drain(turn);
            self.update_cycle(turn, &delivered, &sample);
        }
        self.update_min_rtt(turn.now, delivered.rtt);
        self.probe_rtt(turn, delivered.recovering);
        if let Some(sample) = delivered.sample {
            if self.loss_round_start {
                self.bw_latest = sample.rate;
                self.inflight_latest = sample.delivered;
            }
            self.idle_restart = false;
            self.set_pacing_rate(self.state.pacing_gain());
            self.set_cwnd(&sample);
        }
        self.cwnd
    }

    fn enter(&mut self, turn: Turn) {
        self.cwnd = turn.cwnd;
        self.mss = turn.mss;
        self.delivered = turn.delivered;
    }

    // The model.

    fn max_bw(&self) -> u64 {
        self.max_bw[0].max(self.max_bw[1])
    }

    /// The rate that everything known allows.
    fn bw(&self) -> u64 {
        self.max_bw().min(self.bw_shortterm)
    }

    /// So many percent of what the path holds without a queue at `rate` (5.6.4.2).
    fn volume_at(&self, rate: u64, gain: u64) -> u32 {
        let Some((min_rtt, _)) = self.min_rtt.filter(|_| rate > 0) else {
            return INITIAL_SEGMENTS * self.mss;
        };
        let volume = percent(volume(rate, min_rtt), gain);
        u32::try_from(volume).unwrap_or(u32::MAX)
    }

    /// The same with room for bursts on both sides.
    fn inflight(&self, rate: u64, gain: u64) -> u32 {
        self.budgeted(self.volume_at(rate, gain))
    }

    fn budgeted(&self, volume: u32) -> u32 {
        let quantum = self::volume(self.pacing_rate, QUANTUM).min(QUANTUM_MAX.into());
        let quantum = u32::try_from(quantum).unwrap_or(QUANTUM_MAX);
        let budget = 3 * quantum.max(2 * self.mss);
        let volume = volume.max(budget).max(self.cwnd_min());
        match self.state {
            State::Up => volume.saturating_add(2 * self.mss),
            State::Startup
            | State::Drain
            | State::Down
            | State::Cruise
            | State::Refill
            | State::ProbeRtt => volume,
        }
    }

    fn cwnd_min(&self) -> u32 {
        SEGMENTS_MIN * self.mss
    }

    fn target_inflight(&self) -> u32 {
        self.volume_at(self.bw(), 100).min(self.cwnd)
    }

    fn inflight_with_headroom(&self) -> u32 {
        if self.inflight_longterm == u32::MAX {
            return u32::MAX;
        }
        let used = percent_of(self.inflight_longterm, USED);
        used.min(self.inflight_longterm.saturating_sub(self.mss))
            .max(self.cwnd_min())
    }

    fn start_round(&mut self) {
        self.round_end = self.delivered;
    }

    fn update_latest(&mut self, sample: &Sample) {
        self.bw_latest = self.bw_latest.max(sample.rate);
        self.inflight_latest = self.inflight_latest.max(sample.delivered);
        if sample.prior_delivered >= self.loss_round_end {
            self.loss_round_end = self.delivered;
            self.loss_round_start = true;
        }
        if sample.prior_delivered >= self.round_end {
            self.start_round();
            self.round_count += 1;
            self.rounds_since_probe += 1;
            self.round_start = true;
        }
    }

    /// What was measured while the sender had no data counts only where it is more (5.5.5).
    fn update_max_bw(&mut self, sample: &Sample) {
        if sample.rate > 0 && (sample.rate >= self.max_bw() || !sample.application_limited) {
            self.max_bw[1] = self.max_bw[1].max(sample.rate);
        }
    }

    fn advance_max_bw(&mut self) {
        if self.max_bw[1] > 0 {
            self.max_bw = [self.max_bw[1], 0];
        }
    }

    /// Follows losses once in a round, while no probe provokes them (5.5.10.3).
    fn adapt_lower_bounds(&mut self) {
        if !self.loss_round_start {
            return;
        }
        let learns = match self.state {
            State::Startup => self.full_bw_count == 0 && !self.full_bw_reached,
            State::Cruise | State::Refill => true,
            State::Drain | State::Down | State::Up | State::ProbeRtt => false,
        };
        let min_rtt = self.min_rtt.map(|(min_rtt, _)| min_rtt);
        let congested = self.path_loss.end_round(self.mss, min_rtt, learns);
        let lost = std::mem::take(&mut self.loss_in_round);
        if lost && congested && !self.state.probes_bandwidth() {
            if self.bw_shortterm == u64::MAX {
                self.bw_shortterm = self.max_bw();
            }
            if self.inflight_shortterm == u32::MAX {
                self.inflight_shortterm = self.cwnd;
            }
            self.bw_shortterm = percent(self.bw_shortterm, BETA).max(self.bw_latest);
            let latest = u32::try_from(self.inflight_latest).unwrap_or(u32::MAX);
            self.inflight_shortterm = percent_of(self.inflight_shortterm, BETA).max(latest);
        }
    }

    fn forget_lower_bounds(&mut self) {
        self.bw_shortterm = u64::MAX;
        self.inflight_shortterm = u32::MAX;
    }

    /// How much more acknowledgements bring at once than the rate explains (5.5.9).
    fn update_aggregation(&mut self, now: Instant, sample: &Sample) {
        let since = now.saturating_duration_since(self.extra_since);
        let mut expected = volume(self.bw(), since);
        if self.extra_delivered <= expected {
            self.extra_delivered = 0;
            self.extra_since = now;
            expected = 0;
        }
        self.extra_delivered += sample.acknowledged;
        let extra = self.extra_delivered.saturating_sub(expected);
        let extra = extra.min(self.cwnd.into());
        if self.round_start {
            self.extra_rounds += 1;
            let length = if self.full_bw_reached {
                AGGREGATION_ROUNDS
            } else {
                1
            };
            if self.extra_rounds >= length {
                self.extra_rounds = 0;
                self.extra_acknowledged = [self.extra_acknowledged[1], 0];
            }
        }
        self.extra_acknowledged[1] = self.extra_acknowledged[1].max(extra);
    }

    fn extra_acknowledged(&self) -> u32 {
        let [before, now] = self.extra_acknowledged;
        u32::try_from(before.max(now)).unwrap_or(u32::MAX)
    }

    // Startup and Drain.

    fn reset_full_pipe(&mut self, rate: u64) {
        self.full_bw = rate;
        self.full_bw_count = 0;
        self.full_bw_now = false;
    }

    /// Three rounds without much growth have filled the pipe (5.3.1.2).
    fn detect_full_pipe(&mut self, sample: &Sample) {
        if self.full_bw_now || !self.round_start || sample.application_limited {
            return;
        }
        if sample.rate >= percent(self.full_bw, GROWTH) {
            self.reset_full_pipe(sample.rate);
            return;
        }
        self.full_bw_count += 1;
        self.full_bw_now = self.full_bw_count >= FULL_ROUNDS;
        self.full_bw_reached |= self.full_bw_now;
    }

    fn end_startup(&mut self, delivered: &Delivered, sample: &Sample) {
        if !self.full_bw_reached {
            self.end_startup_by_loss(delivered, sample);
        }
        if self.state == State::Startup && self.full_bw_reached {
            self.state = State::Drain;
            self.calm_since = self.delivered;
            self.drain_start_round = self.round_count;
        }
    }

    /// A whole round of recovery with much loss has filled it too (5.3.1.3).
    fn end_startup_by_loss(&mut self, delivered: &Delivered, sample: &Sample) {
        let lossy = self.losses_in_round >= STARTUP_LOSSES || !delivered.sack;
        let too_high = self.is_too_high(sample.lost_since, sample.in_flight, delivered.sack);
        if self.loss_round_start && delivered.recovering && lossy && too_high {
            self.before.state = Some(State::Startup);
            self.full_bw_reached = true;
            self.full_bw_now = true;
            let latest = u32::try_from(self.inflight_latest).unwrap_or(u32::MAX);
            self.inflight_longterm = self.volume_at(self.bw(), 100).max(latest);
        }
        if self.loss_round_start {
            self.losses_in_round = 0;
        }
    }

    fn end_drain(&mut self, turn: Turn) {
        let drained = turn.in_flight <= self.inflight(self.bw(), 100);
        let overdue = self.round_count > self.drain_start_round + DRAIN_ROUNDS;
        if self.state == State::Drain && (drained || overdue) {
            self.start_down(turn.now);
        }
    }

    // The cycle.

    fn start_down(&mut self, now: Instant) {
        self.loss_in_round = false;
        self.bw_latest = 0;
        self.inflight_latest = 0;
        self.probe_up_step = u64::MAX;
        self.rounds_since_probe = self.draw() % 2;
        let added = self.draw() % PROBE_WAIT_ADDED_MILLIS;
        self.probe_wait = PROBE_WAIT + Duration::from_millis(added);
        self.cycle_at = now;
        self.calm_since = self.calm_since.max(match self.state {
            State::Up => self.delivered,
            State::Startup
            | State::Drain
            | State::Down
            | State::Cruise
            | State::Refill
            | State::ProbeRtt => 0,
        });
        self.feedback = Feedback::Stopping;
        self.start_round();
        self.state = State::Down;
    }

    fn start_refill(&mut self) {
        self.forget_lower_bounds();
        self.probe_up_rounds = 0;
        self.probe_up_acknowledged = 0;
        self.probed_with_caution = false;
        self.feedback = Feedback::Refilling;
        self.start_round();
        self.state = State::Refill;
    }

    fn start_up(&mut self, sample: &Sample) {
        self.feedback = Feedback::Starting;
        self.start_round();
        self.reset_full_pipe(sample.rate);
        self.state = State::Up;
        self.raise_slope();
    }

    /// 5.3.3.9.
    fn update_cycle(&mut self, turn: Turn, delivered: &Delivered, sample: &Sample) {
        if !self.full_bw_reached || self.adapt_upper_bounds(delivered, sample) {
            return;
        }
        match self.state {
            State::Down => {
                if self.is_time_to_probe(turn.now) {
                    self.start_refill();
                } else if self.is_time_to_cruise(turn.in_flight) {
                    self.state = State::Cruise;
                }
            }
            State::Cruise => {
                if self.is_time_to_probe(turn.now) {
                    self.start_refill();
                }
            }
            State::Refill => {
                if self.round_start {
                    self.probe_samples = true;
                    self.start_up(sample);
                }
            }
            State::Up => {
                if self.is_time_to_go_down(turn.in_flight, delivered.cwnd_limited, sample) {
                    self.probed_too_high = false;
                    self.start_down(turn.now);
                }
            }
            State::Startup | State::Drain | State::ProbeRtt => {}
        }
    }

    fn is_time_to_probe(&self, now: Instant) -> bool {
        let segments = u64::from(self.target_inflight() / self.mss.max(1));
        now > self.cycle_at + self.probe_wait
            || self.rounds_since_probe >= segments.min(PROBE_ROUNDS_MAX)
    }

    fn is_time_to_cruise(&self, in_flight: u32) -> bool {
        in_flight <= self.inflight_with_headroom() && in_flight <= self.inflight(self.max_bw(), 100)
    }

    fn is_time_to_go_down(&mut self, in_flight: u32, cwnd_limited: bool, sample: &Sample) -> bool {
        if self.probed_too_high && in_flight >= self.inflight_longterm {
            self.probed_with_caution = true;
            return true;
        }
        if cwnd_limited && self.cwnd >= self.inflight_longterm {
            // The volume bounds the rate, so the rate tells nothing about the path.
            self.reset_full_pipe(sample.rate);
            return false;
        }
        self.full_bw_now
    }

    fn raise_slope(&mut self) {
        let growth = 1_u64 << self.probe_up_rounds;
        self.probe_up_rounds = (self.probe_up_rounds + 1).min(PROBE_UP_ROUNDS_MAX);
        self.probe_up_step = (u64::from(self.cwnd) / growth).max(self.mss.into());
    }

    fn raise_longterm(&mut self, cwnd_limited: bool, sample: &Sample) {
        if !cwnd_limited || self.cwnd < self.inflight_longterm {
            return;
        }
        self.probe_up_acknowledged += sample.acknowledged;
        let steps = self.probe_up_acknowledged / self.probe_up_step.max(1);
        self.probe_up_acknowledged -= steps * self.probe_up_step;
        let added = steps.saturating_mul(self.mss.into());
        let added = u32::try_from(added).unwrap_or(u32::MAX);
        self.inflight_longterm = self.inflight_longterm.saturating_add(added);
        if self.round_start {
            self.raise_slope();
        }
    }

    /// Follows what a probe has found; returns whether that has changed the state.
    fn adapt_upper_bounds(&mut self, delivered: &Delivered, sample: &Sample) -> bool {
        if self.feedback == Feedback::Starting && self.round_start {
            self.feedback = Feedback::Arriving;
        }
        if self.feedback == Feedback::Stopping && self.round_start {
            self.probe_samples = false;
            self.feedback = Feedback::None;
            if self.state.cycles() && !sample.application_limited {
                self.advance_max_bw();
            }
            if self.state.cycles() && self.probed_with_caution && !self.probed_too_high {
                self.start_refill();
                return true;
            }
        }
        let too_high = self.is_too_high(sample.lost_since, sample.in_flight, delivered.sack);
        if !too_high && self.inflight_longterm < u32::MAX {
            self.inflight_longterm = self.inflight_longterm.max(sample.in_flight);
            if self.state == State::Up {
                self.raise_longterm(delivered.cwnd_limited, sample);
            }
        }
        false
    }

    // The smallest round-trip time.

    /// 5.3.4.3.
    fn update_min_rtt(&mut self, now: Instant, rtt: Option<Duration>) {
        let expired =
            |seen: Option<(Duration, Instant)>, after| seen.is_some_and(|(_, at)| now > at + after);
        self.probe_rtt_expired = expired(self.probe_rtt_min, PROBE_RTT_INTERVAL);
        if let Some(rtt) = rtt
            && (self.probe_rtt_expired || self.probe_rtt_min.is_none_or(|(min, _)| rtt < min))
        {
            self.probe_rtt_min = Some((rtt, now));
        }
        let Some((recent, at)) = self.probe_rtt_min else {
            return;
        };
        let old = expired(self.min_rtt, MIN_RTT_WINDOW);
        if old || self.min_rtt.is_none_or(|(min, _)| recent < min) {
            self.min_rtt = Some((recent, at));
        }
    }

    fn probe_rtt(&mut self, turn: Turn, recovering: bool) {
        if self.state != State::ProbeRtt && self.probe_rtt_expired && !self.idle_restart {
            self.save_cwnd(turn.cwnd, recovering);
            self.state = State::ProbeRtt;
            self.probe_rtt_done = None;
            self.feedback = Feedback::Stopping;
            self.start_round();
        }
        if self.state != State::ProbeRtt {
            return;
        }
        match self.probe_rtt_done {
            None if turn.in_flight <= self.probe_rtt_cwnd() => {
                self.probe_rtt_done = Some(turn.now + PROBE_RTT_DURATION);
                self.probe_rtt_round_done = false;
                self.start_round();
            }
            None => {}
            Some(_) => {
                self.probe_rtt_round_done |= self.round_start;
                if self.probe_rtt_round_done {
                    self.end_probe_rtt(turn.now);
                }
            }
        }
    }

    fn probe_rtt_cwnd(&self) -> u32 {
        self.volume_at(self.bw(), PROBE_RTT_CWND_GAIN)
            .max(self.cwnd_min())
    }

    fn end_probe_rtt(&mut self, now: Instant) {
        if self.probe_rtt_done.is_none_or(|at| now <= at) {
            return;
        }
        if let Some((_, at)) = &mut self.probe_rtt_min {
            *at = now;
        }
        self.cwnd = self.restored_cwnd(self.cwnd);
        self.forget_lower_bounds();
        if self.full_bw_reached {
            self.start_down(now);
            self.state = State::Cruise;
        } else {
            self.state = State::Startup;
        }
    }

    /// Begins again when nothing is in flight because there was nothing to send (5.4.1).
    pub(super) fn handle_restart(&mut self, turn: Turn) -> u32 {
        self.enter(turn);
        self.idle_restart = true;
        self.extra_since = turn.now;
        self.extra_delivered = 0;
        if self.state.cycles() {
            self.set_pacing_rate(100);
        } else if self.state == State::ProbeRtt {
            self.end_probe_rtt(turn.now);
        }
        self.cwnd
    }

    // Losses.

    /// 5.5.10.2.
    fn is_too_high(&self, lost: u64, in_flight: u32, sack: bool) -> bool {
        let allowed = self.path_loss.allowed(in_flight.into(), self.mss);
        lost > allowed || (lost > 0 && !sack)
    }

    /// Takes what was found lost.
    pub(super) fn handle_losses(&mut self, turn: Turn, recovering: bool, losses: &[Loss]) {
        if losses.is_empty() {
            return;
        }
        self.enter(turn);
        // What a probe has lost is answered below, and once.
        let probing = self.state.probes_bandwidth();
        let calm_since = self.calm_since;
        let calm = |loss: &&Loss| probing || loss.prior_delivered >= calm_since;
        if losses.iter().any(|loss| calm(&loss)) {
            self.note_loss(turn, recovering);
            self.losses_in_round = self.losses_in_round.saturating_add(1);
        }
        for loss in losses.iter().filter(calm) {
            self.path_loss.handle_loss(loss.octets);
        }
        for loss in losses {
            if !self.probe_samples {
                break;
            }
            if self.is_too_high(loss.lost_since, loss.in_flight, true) {
                self.handle_too_high(turn, loss);
            }
        }
    }

    /// Remembers the window and the bounds at the first loss of a round (5.5.10.2, 5.5.11.1).
    pub(super) fn note_loss(&mut self, turn: Turn, recovering: bool) {
        self.enter(turn);
        if !self.loss_in_round {
            self.loss_round_end = turn.delivered;
            self.save_cwnd(turn.cwnd, recovering);
            self.before = Before {
                state: None,
                bw_shortterm: self.bw_shortterm,
                inflight_shortterm: self.inflight_shortterm,
                inflight_longterm: self.inflight_longterm,
            };
        }
        self.loss_in_round = true;
    }

    fn handle_too_high(&mut self, turn: Turn, loss: &Loss) {
        self.probed_too_high = true;
        self.probe_samples = false;
        if !loss.application_limited {
            let floor = percent_of(self.target_inflight(), BETA);
            self.inflight_longterm = self.inflight_at_loss(loss).max(floor);
        }
        if self.state == State::Up {
            self.before.state = Some(State::Up);
            self.start_down(turn.now);
        }
    }

    /// How much was in flight when the share of losses crossed the threshold, which may have been
    /// within the lost run (5.5.10.2).
    fn inflight_at_loss(&self, loss: &Loss) -> u32 {
        let octets = loss.octets.into();
        let before = u64::from(loss.in_flight).saturating_sub(octets);
        let lost_before = loss.lost_since.saturating_sub(octets);
        let allowed = self.path_loss.allowed(before, self.mss);
        let prefix = allowed.saturating_sub(lost_before).min(octets);
        u32::try_from(before + prefix).unwrap_or(u32::MAX)
    }

    /// 5.5.11.2.
    pub(super) fn handle_needless_recovery(&mut self, turn: Turn) {
        self.enter(turn);
        self.loss_in_round = false;
        self.reset_full_pipe(0);
        let before = self.before;
        self.bw_shortterm = self.bw_shortterm.max(before.bw_shortterm);
        self.inflight_shortterm = self.inflight_shortterm.max(before.inflight_shortterm);
        self.inflight_longterm = self.inflight_longterm.max(before.inflight_longterm);
        match self.before.state.take() {
            Some(State::Startup) if self.state != State::Startup => {
                self.full_bw_reached = false;
                if self.state != State::ProbeRtt {
                    self.state = State::Startup;
                }
            }
            Some(State::Up) if self.state.cycles() && self.state != State::Up => {
                self.start_refill();
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn save_cwnd(&mut self, cwnd: u32, recovering: bool) {
        self.prior_cwnd = if recovering || self.state == State::ProbeRtt {
            self.prior_cwnd.max(cwnd)
        } else {
            cwnd
        };
    }

    pub(super) fn restored_cwnd(&self, cwnd: u32) -> u32 {
        cwnd.max(self.prior_cwnd)
    }

    // What follows from the model.

    fn set_pacing_rate(&mut self, gain: u64) {
        let rate = percent(percent(self.bw(), gain), PACED);
        if rate > 0 && (self.full_bw_reached || rate > self.pacing_rate) {
            self.pacing_rate = rate;
        }
    }

    /// 5.6.4.6.
    fn set_cwnd(&mut self, sample: &Sample) {
        let volume = self.volume_at(self.bw(), self.state.cwnd_gain());
        let inflight_max = self.budgeted(volume.saturating_add(self.extra_acknowledged()));
        let acknowledged = u32::try_from(sample.acknowledged).unwrap_or(u32::MAX);
        let grown = self.cwnd.saturating_add(acknowledged);
        let initial = u64::from(INITIAL_SEGMENTS * self.mss);
        if self.full_bw_reached {
            self.cwnd = grown.min(inflight_max);
        } else if self.cwnd < inflight_max || self.delivered < initial {
            self.cwnd = grown;
        }
        self.cwnd = self.cwnd.max(self.cwnd_min());
        if self.state == State::ProbeRtt {
            self.cwnd = self.cwnd.min(self.probe_rtt_cwnd());
        }
        let bound = match self.state {
            State::Down | State::Refill | State::Up => self.inflight_longterm,
            State::Cruise | State::ProbeRtt => self.inflight_with_headroom(),
            State::Startup | State::Drain => u32::MAX,
        };
        let bound = bound.min(self.inflight_shortterm).max(self.cwnd_min());
        self.cwnd = self.cwnd.min(bound);
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What flows in a time at a rate.
fn volume(rate: u64, time: Duration) -> u64 {
    let octets = u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000;
    u64::try_from(octets).unwrap_or(u64::MAX)
}

fn percent(value: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

fn percent_of(value: u32, share: u64) -> u32 {
    u32::try_from(percent(value.into(), share)).unwrap_or(u32::MAX)
}
