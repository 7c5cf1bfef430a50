//! Handshake messages whose key agreements somebody else computes, and those that need none.

use std::time::Instant;

use wireguard::{Agreement, Gate};

use super::Node;

impl Node {
    /// Lets the key agreements of handshake messages wait for [`Node::poll_agreement`], so that
    /// nothing else waits for them; but not while a capture writes keys, which must come before
    /// what they open.
    pub fn set_deferred_agreements(&mut self, deferred: bool) {
        self.defers = deferred;
        self.choose_deferred_agreements();
    }

    pub(super) fn choose_deferred_agreements(&mut self) {
        let capture = self.capture.as_ref();
        let keys = capture.is_some_and(|capture| capture.has_keys());
        self.device.set_deferred_agreements(self.defers && !keys);
    }

    /// Returns an agreement to compute, which then goes back by [`Node::handle_agreement`].
    pub fn poll_agreement(&mut self) -> Option<Agreement> {
        self.device.poll_agreement()
    }

    /// Tells whether an agreement waits for [`Node::poll_agreement`].
    #[must_use]
    pub fn has_agreements(&self) -> bool {
        self.device.waiting_agreements() > 0
    }

    /// Takes an agreement that was computed; returns it when there is more to compute.
    pub fn handle_agreement(&mut self, now: Instant, agreement: Agreement) -> Option<Agreement> {
        let next = self.device.handle_agreement(now, agreement);
        self.pump(now);
        next
    }

    /// Tells whether within the last second data came by a session that a handshake should have
    /// replaced by now.
    #[must_use]
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.device.is_overdue(now)
    }

    /// Returns what tells forged handshake messages without the node; `None` while a capture runs,
    /// which may want to see them.
    #[must_use]
    pub fn gate(&self) -> Option<Gate> {
        self.capture.is_none().then(|| self.device.gate())
    }

    /// Counts datagrams that came to nothing before the node saw them.
    pub fn turn_away(&mut self, discard: wireguard::Discard, count: u64) {
        self.discard_late(discard, count);
    }
}
