//! Time: which deadline is next, and what happens at it.

use std::time::{Duration, Instant};

use super::{
    Ack, Blocked, Budget, CloseReason, Connection, Forward, Recovery, State, Undo, signal,
};

/// Questions without an answer after which a peer counts as dead.
const KEEPALIVE_PROBES_MAX: u32 = 3;
/// A probe waits that much longer when the peer may be delaying its only acknowledgement
/// (RFC 8985, 7.2: the worst case of delayed acknowledgements).
const PROBE_ACK_DELAY: Duration = Duration::from_millis(200);
/// Clocks may be coarse; what Linux uses.
const PROBE_MIN: Duration = Duration::from_millis(2);
/// PTO before the first round-trip sample (RFC 8985, 7.2).
const PROBE_INITIAL: Duration = Duration::from_secs(1);

/// What the retransmission timer stands for: one at a time (RFC 8985, 8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Timer {
    Retransmission,
    Reordering,
    Probe,
    Persist,
}

impl Connection {
    /// Returns the next deadline; `None` while nothing waits for time.
    ///
    /// Derived from the state and not stored, so that no timer can be forgotten.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let acknowledgement = match self.ack {
            Ack::Delayed(at) => Some(at),
            Ack::None | Ack::Now => None,
        };
        [
            self.retransmission().map(|(at, _)| at),
            acknowledgement,
            self.linger,
            self.keepalive_deadline(),
            self.end_of_patience(),
            self.pacer.release(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Performs what is due at `now`.
    pub(crate) fn handle_timeout(&mut self, now: Instant, budget: &mut Budget) {
        if matches!(self.ack, Ack::Delayed(at) if at <= now) {
            self.ack = Ack::Now;
            // The peer pauses; its next burst shall not wait again.
            self.quick_acks = self.quick_acks.max(2);
        }
        self.detect_limits(now);
        self.pacer.handle_timeout(now);
        if self.linger.is_some_and(|at| at <= now) {
            self.close(CloseReason::Finished, budget);
        }
        if self.end_of_patience().is_some_and(|at| at <= now) {
            self.give_up(budget);
        }
        if self.keepalive_deadline().is_some_and(|at| at <= now) {
            self.keepalive_probes += 1;
            if self.keepalive_probes > KEEPALIVE_PROBES_MAX {
                self.give_up(budget);
            } else {
                self.question_due = true;
            }
        }
        if let Some((at, timer)) = self.retransmission()
            && at <= now
        {
            match timer {
                Timer::Retransmission => self.handle_retransmission_timeout(now),
                Timer::Reordering => self.handle_reordering_timeout(now),
                Timer::Probe => {
                    self.probe_due = true;
                    self.rto_base = now;
                }
                Timer::Persist => {
                    let blocked = self.blocked.get_or_insert_with(|| Blocked::new(now));
                    blocked.asked_at = now;
                    blocked.probes += 1;
                    // A window that is open but silly is used after all (RFC 9293, 3.8.6.2.1).
                    self.question_due = self.snd_wnd == 0 || self.unsent() == 0;
                }
            }
        }
    }

    fn retransmission(&self) -> Option<(Instant, Timer)> {
        if self.scoreboard.is_empty() {
            if !self.owes_new() {
                return None;
            }
            let blocked = self.blocked.as_ref();
            let base = blocked.map_or(self.last_sent, |blocked| blocked.asked_at);
            // Three questions at least before patience ends.
            let wait = self
                .rtt
                .timeout_after(self.window_probes())
                .min(self.opening.user_timeout / 3);
            return Some((base + wait, Timer::Persist));
        }
        let timeout = self.rto_base + self.rtt.timeout();
        if let Some(at) = self
            .scoreboard
            .reordering_deadline()
            .filter(|&at| at < timeout)
        {
            return Some((at, Timer::Reordering));
        }
        if let Some(at) = self.probe_deadline().filter(|&at| at < timeout) {
            return Some((at, Timer::Probe));
        }
        Some((timeout, Timer::Retransmission))
    }

    /// RFC 8985, 7.2.
    fn probe_deadline(&self) -> Option<Instant> {
        let allowed = self.sack
            && self.recovery == Recovery::Open
            && self.scoreboard.sacked() == 0
            && self.scoreboard.in_flight() > 0
            && self.probe_end.is_none()
            && !self.probe_due
            && self.rtt.backoff == 0
            && self.state != State::SynReceived;
        if !allowed {
            return None;
        }
        let mut wait = self.rtt.smoothed().map_or(PROBE_INITIAL, |rtt| rtt * 2);
        wait = wait.max(PROBE_MIN);
        if self.scoreboard.in_flight() <= self.segment_size() {
            wait += PROBE_ACK_DELAY;
        }
        Some(self.last_sent.max(self.rto_base) + wait)
    }

    /// RFC 6298, 5.4 to 5.6.
    fn handle_retransmission_timeout(&mut self, now: Instant) {
        let flight = self.snd_nxt - self.snd_una;
        let opening = matches!(self.state, State::SynSent | State::SynReceived);
        let repeated = matches!(self.recovery, Recovery::Loss { .. });
        if !opening {
            match self.recovery {
                Recovery::Open => {
                    self.undo = Some(Undo::new(self.congestion.before_reduction()));
                }
                // The losses before this timeout were real enough.
                Recovery::Fast { .. } => self.undo = None,
                Recovery::Loss { .. } => {}
            }
            self.congestion.handle_timeout(flight, repeated);
            // Timestamps tell sooner, and after a second timeout RFC 5682, 3.1 tells nothing.
            let forward = if repeated || self.stamps.is_some() {
                Forward::Over
            } else {
                Forward::First
            };
            self.recovery = Recovery::Loss {
                point: self.snd_nxt,
                forward,
            };
        }
        self.scoreboard.mark_all_lost();
        self.report_losses(now, true);
        self.duplicate_acks = 0;
        self.probe_due = false;
        self.probe_end = None;
        self.force = true;
        self.rtt.backoff += 1;
        if !opening {
            self.suspect_length(now);
        }
        self.rto_base = now;
    }

    fn handle_reordering_timeout(&mut self, now: Instant) {
        let flight = self.snd_nxt - self.snd_una;
        let recovering = self.recovery != Recovery::Open;
        let lost = self
            .scoreboard
            .detect_losses(self.rack_time(now, recovering));
        self.report_losses(now, recovering);
        if lost && !recovering && !self.has_lost_only_probe() {
            self.enter_recovery(flight);
        }
    }

    fn keepalive_deadline(&self) -> Option<Instant> {
        let interval = self.keepalive?;
        let idle = match self.state {
            State::Established | State::FinWait2 | State::CloseWait => {
                self.scoreboard.is_empty() && !self.owes_new()
            }
            State::SynSent
            | State::SynReceived
            | State::FinWait1
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => false,
        };
        idle.then(|| self.last_heard.max(self.last_sent) + interval * (self.keepalive_probes + 1))
    }

    /// When a peer that owes an answer counts as dead (RFC 9293, 3.8.3).
    fn end_of_patience(&self) -> Option<Instant> {
        let patience = match self.state {
            State::Closed | State::TimeWait => return None,
            State::SynSent | State::SynReceived => self.opening.connect_timeout,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => self.opening.user_timeout,
        };
        if self.is_held() {
            return Some(self.una_since + patience);
        }
        if !self.scoreboard.is_empty() {
            // A peer that answers but keeps its window shut is alive (RFC 1122, 4.2.2.17).
            let since = if self.snd_wnd == 0 {
                self.last_heard
            } else {
                self.una_since
            };
            return Some(since.max(self.una_since) + patience);
        }
        let probing = self.window_probes() > 0 && self.owes_new();
        let blocked = self.blocked.as_ref().filter(|_| probing);
        blocked.map(|blocked| self.last_heard.max(blocked.since) + patience)
    }

    /// Questions since the peer's window is of no use.
    pub(super) fn window_probes(&self) -> u32 {
        self.blocked.as_ref().map_or(0, |blocked| blocked.probes)
    }

    fn give_up(&mut self, budget: &mut Budget) {
        let reason = self
            .soft_error
            .map_or(CloseReason::TimedOut, CloseReason::Unreachable);
        let synchronized = !matches!(self.state, State::SynSent | State::SynReceived);
        self.abort(budget);
        self.reset_due &= synchronized;
        self.reason = Some(reason);
        self.signals |= signal::CLOSED;
    }
}
