//! Congestion window validation (RFC 7661): a window that is not used says nothing about the path.
//!
//! ```text
//!         pipeACK < cwnd / 2, not limited               no growth; after five minutes cwnd / 2
//!   validated ─────────────────────▶ non-validated ───┐
//!       ▲  ◀─────────────────────────        │  ◀─────┘
//!       │      pipeACK >= cwnd / 2           │ congestion: what was used is halved
//!       └─────────── pipeACK undefined ◀─────┘
//! ```

use std::time::Duration;

/// How long a window that is not used is kept, in milliseconds (RFC 7661, 5).
const PERIOD: u32 = 300_000;
/// The least pipeACK sampling period (RFC 7661, 4.2).
const SAMPLING_MIN: Duration = Duration::from_secs(1);

/// Which phase the window is in, and what tells.
#[derive(Clone, Copy, Debug)]
pub(super) enum Validation {
    /// Nothing has been measured, at the beginning and after congestion: the window counts as
    /// validated (RFC 7661, 4.1 and 4.4.1).
    Undefined,
    Measured(PipeAck),
    /// Losses are repaired that were found in the non-validated phase (RFC 7661, 4.4.1).
    Recovering {
        /// The larger of pipeACK and LossFlightSize.
        used: u32,
        /// R: octets that had to be transmitted again.
        repaired: u32,
    },
}

/// The pipeACK variable (RFC 7661, 4.2): the most that was acknowledged within a round-trip time.
#[derive(Clone, Copy, Debug)]
pub(super) struct PipeAck {
    /// The largest samples of this half of the sampling period and of the one before.
    current: u32,
    previous: u32,
    /// When this half began, and when the window was validated last.
    began: u32,
    validated: u32,
    /// The window is in the validated phase.
    holds: bool,
}

/// The time at which something is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Milliseconds since any moment, and they wrap.
    millis: u32,
    /// Half of the pipeACK sampling period: max(3 RTT, 1 s) is the whole.
    half: u32,
}

impl Clock {
    pub(crate) fn new(millis: u32, smoothed_rtt: Option<Duration>) -> Self {
        let rtt = smoothed_rtt.unwrap_or(Duration::ZERO);
        Self {
            millis,
            half: millis_of((3 * rtt).max(SAMPLING_MIN) / 2),
        }
    }
}

impl PipeAck {
    fn value(self) -> u32 {
        self.current.max(self.previous)
    }

    fn sample(&mut self, clock: Clock, octets: u32) {
        let elapsed = clock.millis.wrapping_sub(self.began);
        if elapsed >= clock.half {
            // What is older than the sampling period no longer counts.
            let recent = elapsed < 2 * clock.half;
            self.previous = if recent { self.current } else { 0 };
            self.current = 0;
            self.began = clock.millis;
        }
        self.current = self.current.max(octets);
    }
}

impl Validation {
    /// Tells whether the window is in the validated phase (RFC 7661, 4.3).
    pub(super) fn holds(&self) -> bool {
        match self {
            Self::Measured(pipe_ack) => pipe_ack.holds,
            Self::Undefined | Self::Recovering { .. } => true,
        }
    }

    /// Takes a sample outside of recovery: octets that were on their way together, and all of them
    /// acknowledged in the round-trip time of the last of them.
    ///
    /// In slow start half of the window is all that can have arrived, and pacing leaves a little
    /// less: a sender whom the window limits does not leave the validated phase for that.
    pub(super) fn sample(&mut self, clock: Clock, cwnd: u32, limited: bool, octets: u32) {
        let mut pipe_ack = match *self {
            Self::Measured(pipe_ack) => pipe_ack,
            Self::Undefined | Self::Recovering { .. } => PipeAck {
                current: 0,
                previous: 0,
                began: clock.millis,
                validated: clock.millis,
                holds: true,
            },
        };
        pipe_ack.sample(clock, octets);
        pipe_ack.holds = pipe_ack.value() >= cwnd / 2 || (pipe_ack.holds && limited);
        if pipe_ack.holds {
            pipe_ack.validated = clock.millis;
        }
        *self = Self::Measured(pipe_ack);
    }

    /// Follows a pause of the sender: what lies before counts as long as the sampling period.
    pub(super) fn handle_idle(&mut self, clock: Clock, idle: Duration) {
        let idle = millis_of(idle);
        if idle < 2 * clock.half {
            return;
        }
        let since = match self {
            Self::Measured(pipe_ack) => clock.millis.wrapping_sub(pipe_ack.validated),
            Self::Undefined | Self::Recovering { .. } => 0,
        };
        *self = Self::Measured(PipeAck {
            current: 0,
            previous: 0,
            began: clock.millis,
            validated: clock.millis.wrapping_sub(since.max(idle)),
            holds: false,
        });
    }

    /// Ends one non-validated period that is over, and tells whether there was one; another begins
    /// where it ended (RFC 7661, 4.4.3).
    pub(super) fn end_period(&mut self, clock: Clock) -> bool {
        match self {
            Self::Measured(pipe_ack) if !pipe_ack.holds => {
                let over = clock.millis.wrapping_sub(pipe_ack.validated) >= PERIOD;
                if over {
                    pipe_ack.validated = pipe_ack.validated.wrapping_add(PERIOD);
                }
                over
            }
            Self::Measured(_) | Self::Undefined | Self::Recovering { .. } => false,
        }
    }

    /// Leaves the phase because of congestion while `flight` octets were on their way; returns in
    /// the non-validated phase how much was used (RFC 7661, 4.4.1).
    pub(super) fn handle_congestion(&mut self, cwnd: u32, flight: u32) -> Option<u32> {
        let used = match *self {
            Self::Measured(pipe_ack) if !pipe_ack.holds => {
                Some(pipe_ack.value().max(flight).min(cwnd))
            }
            Self::Measured(_) | Self::Undefined | Self::Recovering { .. } => None,
        };
        *self = Self::Undefined;
        used
    }

    /// Counts what is transmitted again.
    pub(super) fn count_repair(&mut self, octets: u32) {
        match self {
            Self::Recovering { repaired, .. } => *repaired = repaired.saturating_add(octets),
            Self::Undefined | Self::Measured(_) => {}
        }
    }

    /// Ends a recovery that began in the non-validated phase, and returns the window that it
    /// leaves (RFC 7661, 4.4.1).
    pub(super) fn end_recovery(&mut self) -> Option<u32> {
        match *self {
            Self::Recovering { used, repaired } => {
                *self = Self::Undefined;
                Some(used.saturating_sub(repaired) / 2)
            }
            Self::Undefined | Self::Measured(_) => None,
        }
    }
}

/// Bounded, so that sums and differences of it do not wrap: 24 days are as long as anything.
fn millis_of(duration: Duration) -> u32 {
    let millis = duration.as_millis().min(i32::MAX.unsigned_abs().into());
    u32::try_from(millis).expect("bounded")
}

#[cfg(test)]
impl Validation {
    pub(super) fn pipe_ack(&self) -> Option<u32> {
        match self {
            Self::Measured(pipe_ack) => Some(pipe_ack.value()),
            Self::Undefined | Self::Recovering { .. } => None,
        }
    }
}
