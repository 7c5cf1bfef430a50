//! When a peer next needs attention (whitepaper section 6).

use std::time::Instant;

/// What becomes due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Timer {
    /// No answer to our initiation within `REKEY_TIMEOUT` and jitter.
    RetransmitHandshake,
    /// We received data and had none to send for `KEEPALIVE_TIMEOUT`.
    SendKeepalive,
    /// We sent data and heard nothing for `KEEPALIVE_TIMEOUT + REKEY_TIMEOUT` and jitter.
    NewHandshake,
    /// No fresh key for three times `REJECT_AFTER_TIME`.
    ZeroKeyMaterial,
    /// The interval the operator configured.
    PersistentKeepalive,
}

/// One deadline for each [`Timer`].
#[derive(Debug, Default)]
pub(crate) struct Timers {
    deadlines: [Option<Instant>; Timer::ALL.len()],
}

impl Timer {
    const ALL: [Self; 5] = [
        Self::RetransmitHandshake,
        Self::SendKeepalive,
        Self::NewHandshake,
        Self::ZeroKeyMaterial,
        Self::PersistentKeepalive,
    ];
}

impl Timers {
    /// Sets or moves the deadline of `timer`.
    pub(crate) fn arm(&mut self, timer: Timer, deadline: Instant) {
        self.deadlines[timer as usize] = Some(deadline);
    }

    /// Forgets the deadline of `timer`.
    pub(crate) fn disarm(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = None;
    }

    /// Tells whether `timer` has a deadline.
    pub(crate) fn is_armed(&self, timer: Timer) -> bool {
        self.deadlines[timer as usize].is_some()
    }

    /// Tells whether `timer` has a deadline after `now`.
    pub(crate) fn is_ahead(&self, timer: Timer, now: Instant) -> bool {
        self.is_armed(timer) && !self.is_due(timer, now)
    }

    /// Disarms and returns one timer that is due at `now`, in the order of [`Timer`].
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let timer = Timer::ALL
            .into_iter()
            .find(|&timer| self.is_due(timer, now))?;
        self.disarm(timer);
        Some(timer)
    }

    /// Lists every timer that has a deadline.
    pub(crate) fn armed(&self) -> impl Iterator<Item = (Timer, Instant)> {
        let armed = |timer: Timer| Some((timer, self.deadlines[timer as usize]?));
        Timer::ALL.into_iter().filter_map(armed)
    }

    /// Returns the earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.iter().copied().flatten().min()
    }

    fn is_due(&self, timer: Timer, now: Instant) -> bool {
        self.deadlines[timer as usize].is_some_and(|deadline| deadline <= now)
    }
}
