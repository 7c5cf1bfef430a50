//! Explicit congestion notification (RFC 3168): routers mark what they would else drop.

use packet::{
    ecn,
    tcp::{Flags, Segment},
};

use std::time::Instant;

use super::{Ack, Connection, Recovery, Seq, State};

/// Where a connection stands with marks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ecn {
    /// Our SYN asks for it.
    offered: bool,
    /// Both sides have agreed.
    on: bool,
    /// What was transmitted last carries data for the first time.
    fresh: bool,
    /// A mark came, and the peer has not said yet that it has reduced its window.
    echo: bool,
    /// We have reduced ours and have to say so.
    reduced: bool,
    /// What the reduction answers ends here; it is not answered again before.
    point: Option<Seq>,
}

impl Ecn {
    pub(super) fn new(offered: bool) -> Self {
        Self {
            offered,
            ..Self::default()
        }
    }
}

impl Connection {
    /// What our SYN, or SYN-ACK, says (RFC 3168, 6.1.1). One that was not answered may have been
    /// taken for garbage by an old firewall, so the next one does not ask (6.1.1.1).
    pub(super) fn ecn_of_syn(&mut self, repeated: bool) -> Flags {
        let Ecn { offered, on, .. } = self.ecn;
        match self.state {
            State::SynReceived if on => Flags::ECE,
            State::SynSent if offered && !repeated => Flags::ECE.with(Flags::CWR),
            State::SynSent => {
                self.ecn.offered = false;
                Flags::default()
            }
            State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => Flags::default(),
        }
    }

    /// Takes what the peer's SYN says.
    pub(super) fn agree_on_ecn(&mut self, flags: Flags) {
        let (echo, reduced) = (flags.has(Flags::ECE), flags.has(Flags::CWR));
        self.ecn.on = if flags.has(Flags::ACK) {
            self.ecn.offered && echo && !reduced
        } else {
            // Who opens at the same time has not heard our offer.
            self.state != State::SynSent && echo && reduced
        };
    }

    /// The mark of what was transmitted last: only data, and only the first time (RFC 3168, 6.1.4
    /// to 6.1.6).
    pub(crate) fn mark(&self) -> ecn::Ecn {
        if self.ecn.on && self.ecn.fresh {
            ecn::Ecn::Ect0
        } else {
            ecn::Ecn::NotEct
        }
    }

    /// Takes the marks of a segment that was accepted (RFC 3168, 6.1.3 and 6.1.4); `congested`
    /// tells that a router has marked its packet.
    pub(crate) fn handle_marks(&mut self, now: Instant, segment: &Segment<'_>, congested: bool) {
        let (flags, data) = (segment.header.flags, !segment.payload.is_empty());
        if !self.ecn.on || flags.has(Flags::SYN) {
            return;
        }
        // The peer has reduced its window, and what it sends since may be marked anew.
        if flags.has(Flags::CWR) && data {
            self.ecn.echo = false;
        }
        if congested && data {
            self.ecn.echo = true;
            self.ack = Ack::Now;
        }
        let answered = self
            .ecn
            .point
            .is_some_and(|point| self.snd_una.before(point));
        if flags.has(Flags::ECE) && !answered {
            self.ecn.point = Some(self.snd_nxt);
            self.ecn.reduced = true;
            // Recovery has reduced the window already.
            if self.recovery == Recovery::Open && !self.scoreboard.is_empty() {
                let flight = self.flight(now);
                self.congestion.handle_mark(flight);
            }
        }
    }

    /// What a segment of ours says; `fresh` is data that goes out for the first time.
    pub(super) fn ecn_of_segment(&mut self, fresh: bool) -> Flags {
        self.ecn.fresh = fresh;
        let mut flags = Flags::default();
        if self.ecn.echo {
            flags = flags.with(Flags::ECE);
        }
        if fresh && std::mem::take(&mut self.ecn.reduced) {
            flags = flags.with(Flags::CWR);
        }
        flags
    }
}
