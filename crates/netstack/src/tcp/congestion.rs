//! Congestion control: how much may be in flight, and how fast it may leave.

mod bbr;
mod cubic;
mod validation;

use std::time::{Duration, Instant};

pub(crate) use self::validation::Clock;
use self::{
    bbr::{Bbr, Turn},
    cubic::{Cubic, Curve, Window},
    validation::Validation,
};
use super::{
    delivery::{Loss, Sample},
    pacing::Pace,
    sequence::Seq,
};

/// RFC 6928: initial window in segments.
const INITIAL_SEGMENTS: u32 = 10;

/// How a connection finds out what it may send.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CongestionControl {
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406): a loss is a sign of congestion.
    #[default]
    Cubic,
    /// BBR, version 3 (draft-ietf-ccwg-bbr-06): the rate is the one at which the path delivers.
    /// Many times faster where packets are lost for other reasons than congestion.
    Bbr,
}

/// The congestion window of one connection, in octets, and what decides on it.
#[derive(Debug)]
pub(crate) struct Congestion {
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    /// The largest window that is of use: more is never in flight.
    cwnd_max: u32,
    mss: u32,
    /// Whether CUBIC's window is in use; BBR has its own mind about that.
    validation: Validation,
    control: Control,
}

#[derive(Debug)]
enum Control {
    Cubic(Cubic),
    Bbr(Box<Bbr>),
}

/// The window before a reduction, with the curve that led there (RFC 9438, 4.9.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    cwnd: u32,
    ssthresh: u32,
    validation: Validation,
    curve: Option<Curve>,
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

/// What is on its way at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) now: Instant,
    /// Octets in flight.
    pub(crate) in_flight: u32,
    /// Octets that have been delivered since delivery is measured.
    pub(crate) delivered: u64,
}

/// What an acknowledgement told about the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    pub(crate) sample: Option<Sample>,
    pub(crate) rtt: Option<Duration>,
    pub(crate) smoothed_rtt: Option<Duration>,
    /// The window has held data back.
    pub(crate) cwnd_limited: bool,
    /// Losses are being repaired.
    pub(crate) recovering: bool,
    /// Every loss is found, not only the first in a round.
    pub(crate) sack: bool,
}

/// A time in which nothing was in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pause {
    pub(crate) clock: Clock,
    /// Since the latest transmission, and since the latest acknowledgement.
    pub(crate) idle: Duration,
    pub(crate) quiet: Duration,
    /// The sender had run out of data.
    pub(crate) application_limited: bool,
}

impl Congestion {
    pub(crate) fn new(mss: u32, cwnd_max: u32) -> Self {
        Self {
            cwnd: INITIAL_SEGMENTS * mss,
            ssthresh: u32::MAX,
            cwnd_max,
            mss,
            validation: Validation::Undefined,
            control: Control::Cubic(Cubic::default()),
        }
    }

    /// Changes what decides; `seed` is the chance that BBR takes.
    pub(crate) fn set_control(&mut self, now: Instant, control: CongestionControl, seed: u64) {
        self.validation = Validation::Undefined;
        self.control = match (control, &self.control) {
            (CongestionControl::Cubic, Control::Cubic(_))
            | (CongestionControl::Bbr, Control::Bbr(_)) => return,
            (CongestionControl::Bbr, Control::Cubic(_)) => {
                self.ssthresh = u32::MAX;
                Control::Bbr(Box::new(Bbr::new(now, seed)))
            }
            (CongestionControl::Cubic, Control::Bbr(_)) => {
                // What is in flight by now is no beginning.
                self.ssthresh = self.cwnd;
                Control::Cubic(Cubic::default())
            }
        };
    }

    /// Follows a change of the segment size; the window in segments stays.
    pub(crate) fn set_mss(&mut self, mss: u32) {
        let scaled = u64::from(self.cwnd) * u64::from(mss) / u64::from(self.mss.max(1));
        self.cwnd = u32::try_from(scaled).unwrap_or(u32::MAX).max(mss);
        self.mss = mss;
    }

    /// Tells whether the window follows a model of the path: then losses are repaired without
    /// rate reduction, and retransmissions are paced as well.
    pub(crate) fn has_model(&self) -> bool {
        matches!(self.control, Control::Bbr(_))
    }

    /// Tells whether the window still doubles in a round-trip time.
    pub(crate) fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// Returns how fast data may leave while `in_flight` octets are on their way.
    pub(crate) fn pace(&self, in_flight: u32, smoothed_rtt: Duration) -> Pace {
        match &self.control {
            Control::Cubic(_) => {
                let window = self.cwnd.max(in_flight);
                Pace::of_window(window, smoothed_rtt, self.in_slow_start())
            }
            Control::Bbr(bbr) => Pace::of_rate(bbr.pacing_rate(self.mss, smoothed_rtt)),
        }
    }

    /// Takes a sample of how much of CUBIC's window is used, and returns whether the window may
    /// grow: one that is not validated is kept, and after five minutes reduced (RFC 7661, 4.4).
    pub(crate) fn validate(&mut self, clock: Clock, cwnd_limited: bool, flight: u32) -> bool {
        self.validation
            .sample(clock, self.cwnd, cwnd_limited, flight);
        self.end_periods(clock);
        self.validation.holds()
    }

    /// RFC 7661, 4.4.3. Each period halves the window, so they are few.
    fn end_periods(&mut self, clock: Clock) {
        let Control::Cubic(cubic) = &mut self.control else {
            return;
        };
        let initial = INITIAL_SEGMENTS * self.mss;
        while self.cwnd > initial && self.validation.end_period(clock) {
            self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
            self.cwnd = (self.cwnd / 2).max(initial);
            cubic.restart();
        }
    }

    /// Takes a time out of the growth of CUBIC in which the sender did not use the window.
    pub(crate) fn skip(&mut self, now: Instant, time: Duration) {
        if let Control::Cubic(cubic) = &mut self.control {
            cubic.skip(now, time);
        }
    }

    /// Counts what recovery transmits again.
    pub(crate) fn count_repair(&mut self, octets: u32) {
        self.validation.count_repair(octets);
    }

    /// Tells whether the window is in the validated phase (RFC 7661, 4.3).
    pub(crate) fn is_validated(&self) -> bool {
        self.validation.holds()
    }

    /// Grows the window of CUBIC; called only while it is what limits the sender, and validated.
    pub(crate) fn handle_ack(&mut self, now: Instant, ack: Acknowledged) {
        let mut window = self.window();
        if let Control::Cubic(cubic) = &mut self.control {
            cubic.handle_ack(now, &mut window, ack);
            self.set_window(window);
        }
    }

    /// Tells BBR what an acknowledgement has told about the path; returns whether samples say
    /// nothing about it for a round-trip time.
    pub(crate) fn handle_delivery(&mut self, flight: Flight, delivered: Delivered) -> bool {
        let turn = self.turn(flight);
        let Control::Bbr(bbr) = &mut self.control else {
            return false;
        };
        self.cwnd = bbr.handle_ack(turn, delivered).min(self.cwnd_max);
        bbr.probes_rtt()
    }

    /// Tells BBR what was found lost.
    pub(crate) fn handle_losses(&mut self, flight: Flight, recovering: bool, losses: &[Loss]) {
        let turn = self.turn(flight);
        if let Control::Bbr(bbr) = &mut self.control {
            bbr.handle_losses(turn, recovering, losses);
        }
    }

    /// Tells whether a round-trip time of BBR has ended with the latest acknowledgement.
    pub(crate) fn begins_round(&self) -> bool {
        match &self.control {
            Control::Cubic(_) => false,
            Control::Bbr(bbr) => bbr.begins_round(),
        }
    }

    /// Begins fast recovery: CUBIC reduces ssthresh once for all losses in `flight`.
    pub(crate) fn begin_recovery(&mut self, flight: u32) {
        let mut window = self.window();
        match &mut self.control {
            Control::Cubic(cubic) => {
                let used = self.validation.handle_congestion(self.cwnd, flight);
                match used {
                    Some(used) => {
                        cubic.handle_congestion_unvalidated(&mut window, used);
                        let repaired = 0;
                        self.validation = Validation::Recovering { used, repaired };
                    }
                    None => cubic.handle_loss(&mut window, flight),
                }
                self.set_window(window);
            }
            Control::Bbr(bbr) => bbr.save_cwnd(self.cwnd, false),
        }
    }

    /// Answers a loss that is repaired already, or a mark of congestion, once.
    pub(crate) fn reduce(&mut self, flight: Flight) {
        let mut window = self.window();
        let turn = self.turn(flight);
        match &mut self.control {
            Control::Cubic(cubic) => {
                match self
                    .validation
                    .handle_congestion(self.cwnd, flight.in_flight)
                {
                    Some(used) => cubic.handle_congestion_unvalidated(&mut window, used),
                    None => cubic.handle_loss(&mut window, flight.in_flight),
                }
                window.cwnd = window.ssthresh;
                self.set_window(window);
            }
            Control::Bbr(bbr) => bbr.note_loss(turn, false),
        }
    }

    /// Answers a mark of congestion, once for all marks in a window (RFC 3168, 6.1.2).
    pub(crate) fn handle_mark(&mut self, flight: Flight) {
        let mut window = self.window();
        let turn = self.turn(flight);
        match &mut self.control {
            Control::Cubic(cubic) => {
                match self
                    .validation
                    .handle_congestion(self.cwnd, flight.in_flight)
                {
                    Some(used) => cubic.handle_congestion_unvalidated(&mut window, used),
                    None => cubic.handle_mark(&mut window),
                }
                window.cwnd = window.ssthresh;
                self.set_window(window);
            }
            // Congestion it is, as a loss would be (draft-ietf-ccwg-bbr-06, 3.7).
            Control::Bbr(bbr) => bbr.note_loss(turn, false),
        }
    }

    /// Ends fast recovery, or the one after a timeout.
    pub(crate) fn end_recovery(&mut self, fast: bool) {
        match &mut self.control {
            Control::Cubic(_) if fast => {
                if let Some(left) = self.validation.end_recovery() {
                    self.ssthresh = left.max(2 * self.mss);
                }
                self.cwnd = self.ssthresh;
            }
            Control::Cubic(_) => {}
            Control::Bbr(bbr) => self.cwnd = bbr.restored_cwnd(self.cwnd),
        }
    }

    /// Begins again with one segment after a retransmission timeout; a repeated timeout reduces
    /// ssthresh no further (RFC 5681, 3.1).
    pub(crate) fn handle_timeout(&mut self, flight: u32, repeated: bool) {
        let mut window = self.window();
        match &mut self.control {
            Control::Cubic(cubic) => {
                if !repeated {
                    cubic.handle_loss(&mut window, flight);
                    self.ssthresh = window.ssthresh;
                }
                self.validation = Validation::Undefined;
                cubic.restart();
            }
            Control::Bbr(bbr) => bbr.save_cwnd(self.cwnd, repeated),
        }
        self.cwnd = self.mss;
    }

    /// Returns what a reduction is about to change.
    pub(crate) fn before_reduction(&self) -> Reduction {
        Reduction {
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            validation: self.validation,
            curve: match &self.control {
                Control::Cubic(cubic) => Some(cubic.curve),
                Control::Bbr(_) => None,
            },
        }
    }

    /// Takes back a reduction that proved needless (RFC 4015; RFC 9438, 4.9.2).
    pub(crate) fn undo(&mut self, flight: Flight, before: Reduction) {
        let turn = self.turn(flight);
        self.cwnd = self.cwnd.max(before.cwnd);
        self.ssthresh = self.ssthresh.max(before.ssthresh);
        match (&mut self.control, before.curve) {
            (Control::Cubic(cubic), Some(curve)) => {
                cubic.curve = curve;
                self.validation = before.validation;
            }
            (Control::Cubic(_), None) => {}
            (Control::Bbr(bbr), _) => bbr.handle_needless_recovery(turn),
        }
    }

    /// Follows a pause of the sender, after which nothing is in flight.
    pub(crate) fn handle_idle(&mut self, now: Instant, flight: Flight, pause: Pause) {
        let turn = self.turn(flight);
        match &mut self.control {
            Control::Cubic(cubic) => {
                cubic.skip(now, pause.quiet);
                self.validation.handle_idle(pause.clock, pause.idle);
                self.end_periods(pause.clock);
            }
            Control::Bbr(bbr) if pause.application_limited => {
                self.cwnd = bbr.handle_restart(turn);
            }
            Control::Bbr(_) => {}
        }
    }

    fn window(&self) -> Window {
        Window {
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            mss: self.mss,
        }
    }

    fn set_window(&mut self, window: Window) {
        self.cwnd = window.cwnd.min(self.cwnd_max);
        self.ssthresh = window.ssthresh;
    }

    fn turn(&self, flight: Flight) -> Turn {
        Turn {
            now: flight.now,
            cwnd: self.cwnd,
            mss: self.mss,
            in_flight: flight.in_flight,
            delivered: flight.delivered,
        }
    }
}

#[cfg(test)]
impl Congestion {
    pub(crate) fn pipe_ack(&self) -> Option<u32> {
        self.validation.pipe_ack()
    }
}
