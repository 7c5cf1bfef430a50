//! When peers need attention, and what they get then (whitepaper section 6).

use super::*;
use crate::constants::{REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME};

impl Device {
    /// Performs what is due at `now`, for at most 1,024 peers at once: while
    /// [`Device::poll_timeout`] is not in the future, drain and call it again. Calling it early,
    /// late or twice is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..DUE_MAX {
            let Some(&(at, place)) = self.schedule.first() else {
                return;
            };
            if at > now {
                return;
            }
            self.schedule.pop_first();
            self.table.peer_mut(place).scheduled = None;
            while let Some(timer) = self.table.peer_mut(place).timers.pop_due(now) {
                self.fire(now, place, timer);
            }
            self.reschedule(place);
        }
    }

    /// Returns when [`Device::handle_timeout`] is to be called next; it may find nothing to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// Brings the schedule forward to the earliest timer of a peer. Timers that move back, as
    /// they do with each packet, leave it alone: the early wake-up finds that out.
    pub(super) fn reschedule(&mut self, place: u32) {
        let peer = self.table.peer_mut(place);
        let Some(deadline) = peer.timers.next_deadline() else {
            return;
        };
        match peer.scheduled {
            Some(scheduled) if scheduled <= deadline => {}
            scheduled => {
                peer.scheduled = Some(deadline);
                if let Some(scheduled) = scheduled {
                    self.schedule.remove(&(scheduled, place));
                }
                self.schedule.insert((deadline, place));
            }
        }
    }

    fn fire(&mut self, now: Instant, place: u32, timer: Timer) {
        match timer {
            Timer::RetransmitHandshake => self.retransmit_handshake(now, place),
            Timer::SendKeepalive => self.send_keepalive(now, place, true),
            Timer::NewHandshake => self.request_handshake(now, place, true),
            Timer::ZeroKeyMaterial => {
                if self.table.drop_hot(place) {
                    let peer = self.table.id(place);
                    self.push_event(Event::SessionsZeroed { peer });
                }
            }
            Timer::PersistentKeepalive => {
                self.send_persistent_keepalive(now, place);
                let peer = self.table.peer_mut(place);
                if let Some(seconds) = peer.persistent_keepalive
                    && !peer.timers.is_armed(Timer::PersistentKeepalive)
                {
                    let interval = Duration::from_secs(seconds.get().into());
                    peer.timers.arm(Timer::PersistentKeepalive, now + interval);
                }
            }
        }
    }

    fn retransmit_handshake(&mut self, now: Instant, place: u32) {
        let peer = self.table.peer_mut(place);
        let given_up = peer
            .attempt_began
            .is_some_and(|began| now >= began + REKEY_ATTEMPT_TIME);
        if !given_up {
            self.request_handshake(now, place, false);
            return;
        }
        peer.attempt_began = None;
        peer.timers.disarm(Timer::SendKeepalive);
        if !peer.timers.is_armed(Timer::ZeroKeyMaterial) {
            peer.timers
                .arm(Timer::ZeroKeyMaterial, now + REJECT_AFTER_TIME * 3);
        }
        let waiting = std::mem::take(&mut peer.staged).len();
        peer.discard(Discard::StagedAbandoned, waiting);
        self.staged_packets -= waiting;
        let hot = peer.hot_mut();
        hot.initiation_mac1 = None;
        if let Some(pending) = hot.pending.take() {
            self.table.drop_index(pending.index);
        }
        self.drop_later(Discard::StagedAbandoned, waiting);
        let peer = self.table.id(place);
        self.push_event(Event::HandshakeAbandoned { peer });
    }
}

/// What one call may cause stays bounded, however many peers are due.
const DUE_MAX: usize = 1024;
