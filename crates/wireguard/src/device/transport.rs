//! Transport data: sealing, opening, staging, and what they mean for sessions and timers.

use std::sync::Arc;

use super::*;
use crate::{
    constants::{
        HEADER, KEEPALIVE_TIMEOUT, OVERHEAD, REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_TIMEOUT,
    },
    crypto::scrub_stack,
    inbound::Heard,
    message::{KEEPALIVE, Message},
    peer::Place,
    session::{Opening, Sealing},
};

impl Device {
    /// Seals a packet in place for the peer that its destination belongs to.
    ///
    /// `slot` is `[HEADER bytes of room | packet of length bytes | room for padding and tag]`:
    /// `padded(length) + OVERHEAD` bytes always are enough.
    ///
    /// # Panics
    /// When the slot is too small.
    pub fn seal(&mut self, now: Instant, slot: &mut [u8], length: usize) -> Seal {
        let Ok(addresses) = packet::ip::addresses(&slot[HEADER..HEADER + length]) else {
            return Seal::Discarded(Discard::NotIp);
        };
        match self.allowed.lookup(addresses.destination) {
            Some(place) => self.seal_at(now, place, slot, length),
            None => Seal::Discarded(Discard::NoRoute),
        }
    }

    /// Seals a packet in place for `peer`, whatever its destination; see [`Device::seal`].
    pub fn seal_to(&mut self, now: Instant, peer: PeerId, slot: &mut [u8], length: usize) -> Seal {
        match self.table.place(peer) {
            Some(place) => self.seal_at(now, place, slot, length),
            None => Seal::Discarded(Discard::UnknownPeer),
        }
    }

    /// Takes a datagram from the network and opens it in place.
    pub fn handle_datagram<'d>(
        &mut self,
        now: Instant,
        source: SocketAddr,
        datagram: &'d mut [u8],
    ) -> Received<'d> {
        let result = match Message::parse(datagram) {
            Ok(Message::Transport {
                receiver,
                counter,
                sealed,
            }) => return self.handle_transport(now, source, receiver, counter, sealed),
            Ok(Message::Initiation(message)) => {
                let result = self.handle_initiation(now, source, message);
                scrub_stack();
                result
            }
            Ok(Message::Response(message)) => {
                let result = self.handle_response(now, source, message);
                scrub_stack();
                result
            }
            Ok(Message::CookieReply(message)) => self.handle_cookie_reply(now, message),
            Err(discard) => Err(discard),
        };
        match result {
            Ok(()) => Received::Handled,
            Err(discard) => Received::Discarded(discard),
        }
    }

    /// Returns the half that seals for `peer` now, for a thread that seals by itself and reports
    /// by [`Device::note_sealed`].
    #[must_use]
    pub fn sealing(&self, now: Instant, peer: PeerId) -> Option<Arc<Sealing>> {
        let session = self.table.peer(self.table.place(peer)?).current()?;
        session.is_usable(now).then(|| Arc::clone(&session.sealing))
    }

    /// Returns the half that opens datagrams with the receiver index `index`, for a thread that
    /// opens by itself and reports by [`Device::note_opened`].
    #[must_use]
    pub fn opening(&self, index: u32) -> Option<(PeerId, Arc<Opening>)> {
        let place = self.table.by_index(index)?;
        let hot = self.table.peer(place).hot.as_ref()?;
        let session = hot.session(hot.place(index)?)?;
        Some((self.table.id(place), Arc::clone(&session.opening)))
    }

    /// Tells whether `peer` may send from `source`, by the longest prefix.
    #[must_use]
    pub fn allows(&self, peer: PeerId, source: IpAddr) -> bool {
        self.route(source) == Some(peer)
    }

    /// Reports a datagram that a thread could not open with the half of `index`; an unknown one is
    /// nobody's.
    pub fn note_refused(&mut self, index: u32, discard: Discard) {
        if discard != Discard::UnknownIndex
            && let Some(place) = self.table.by_index(index)
        {
            self.refuse(place, discard);
        }
    }

    /// Reports datagrams that a thread has sealed with [`Device::sealing`]: `bytes` in all, `data`
    /// unless all were keepalives.
    pub fn note_sealed(
        &mut self,
        now: Instant,
        peer: PeerId,
        datagrams: usize,
        bytes: usize,
        data: bool,
    ) {
        if let Some(place) = self.table.place(peer) {
            self.sealed(now, place, datagrams, bytes, data);
        }
    }

    /// Reports datagrams from `source` that a thread has opened with [`Device::opening`].
    pub fn note_opened(&mut self, now: Instant, source: SocketAddr, heard: &Heard) {
        if let Some(place) = self.table.by_index(heard.index)
            && let Some(hot) = &self.table.peer(place).hot
            && let Some(session) = hot.place(heard.index)
        {
            self.opened(now, source, place, session, heard);
        }
    }

    fn seal_at(&mut self, now: Instant, place: u32, slot: &mut [u8], length: usize) -> Seal {
        let peer = self.table.peer(place);
        let Some(endpoint) = peer.endpoint else {
            return Seal::Discarded(self.refuse(place, Discard::NoEndpoint));
        };
        let nonces = peer
            .current()
            .and_then(|session| Sealing::reserve_from(&*session.sealing, now, 1));
        if let Some(mut nonces) = nonces {
            let total = nonces
                .seal(slot, length, self.mtu)
                .expect("one nonce was reserved");
            self.sealed(now, place, 1, total, length > 0);
            return Seal::Sealed {
                peer: self.table.id(place),
                endpoint,
                length: total,
            };
        }
        if self.identity.is_none() {
            return Seal::Discarded(Discard::NoPrivateKey);
        }
        // No handshake will ever come for which it could wait.
        if peer.key.is_low_order() {
            return Seal::Discarded(Discard::Handshake);
        }
        let packet = &slot[HEADER..HEADER + length];
        if self.staged_packets >= STAGED_ALL_MAX {
            return Seal::Discarded(self.refuse(place, Discard::QueueFull));
        }
        if self.table.peer_mut(place).stage(packet) {
            let discard = self.refuse(place, Discard::StagedOverflow);
            self.drop_later(discard, 1);
        } else {
            self.staged_packets += 1;
        }
        self.request_handshake(now, place, true);
        Seal::Staged {
            peer: self.table.id(place),
        }
    }

    fn handle_transport<'d>(
        &mut self,
        now: Instant,
        source: SocketAddr,
        receiver: u32,
        counter: u64,
        sealed: &'d mut [u8],
    ) -> Received<'d> {
        let bytes = HEADER + sealed.len();
        let Some(place) = self.table.by_index(receiver) else {
            return Received::Discarded(Discard::UnknownIndex);
        };
        let hot = self.table.peer(place).hot.as_deref();
        let found = hot.and_then(|hot| {
            let at = hot.place(receiver)?;
            Some((at, hot.session(at)?))
        });
        // The index of a pending handshake has no session yet.
        let Some((at, session)) = found else {
            return Received::Discarded(Discard::UnknownIndex);
        };
        let opened = match session.opening.open(now, counter, sealed) {
            Ok(opened) => opened,
            Err(discard) => return Received::Discarded(self.refuse(place, discard)),
        };
        let heard = Heard::one(receiver, bytes, opened.newest);
        self.opened(now, source, place, at, &heard);
        if !heard.data {
            return Received::Handled;
        }
        let Ok(addresses) = packet::ip::addresses(opened.text) else {
            return Received::Discarded(self.refuse(place, Discard::NotIp));
        };
        if self.allowed.lookup(addresses.source) != Some(place) {
            return Received::Discarded(self.refuse(place, Discard::SourceNotAllowed));
        }
        Received::Packet {
            peer: self.table.id(place),
            packet: &mut opened.text[..addresses.length],
        }
    }

    /// Counts what is not delivered at its peer, and returns it.
    pub(super) fn refuse(&mut self, place: u32, discard: Discard) -> Discard {
        self.table.peer_mut(place).discard(discard, 1)
    }

    fn sealed(&mut self, now: Instant, place: u32, datagrams: usize, bytes: usize, data: bool) {
        let peer = self.table.peer_mut(place);
        peer.note_sent(now, datagrams, bytes);
        if data {
            peer.note_data_sent(now);
        }
        let stale = peer.current().is_some_and(|session| {
            session.sealing.wants_rekey()
                || (session.initiator && now >= session.created + REKEY_AFTER_TIME)
        });
        self.reschedule(place);
        if stale {
            self.request_handshake(now, place, true);
        }
    }

    fn opened(
        &mut self,
        now: Instant,
        source: SocketAddr,
        place: u32,
        session: Place,
        heard: &Heard,
    ) {
        let peer = self.table.peer_mut(place);
        peer.note_received(now, heard.datagrams, heard.bytes);
        if heard.data {
            peer.note_data_received(now);
        }
        if heard.newest {
            self.move_endpoint(place, source);
        }
        match session {
            Place::Next => self.confirm(now, place),
            Place::Current | Place::Previous => {}
        }
        if heard.data && self.table.peer(place).is_overdue(now) {
            self.overdue = Some(now);
        }
        let peer = self.table.peer_mut(place);
        let ends_soon = peer.current().is_some_and(|session| {
            session.initiator
                && now >= session.created + (REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT)
        });
        let rekey = ends_soon && !peer.last_minute_rekey;
        if rekey {
            peer.last_minute_rekey = true;
        }
        self.reschedule(place);
        if rekey {
            self.request_handshake(now, place, true);
        }
    }

    /// The first datagram of a session that we answered proves that the initiator has its keys.
    fn confirm(&mut self, now: Instant, place: u32) {
        let peer = self.table.peer_mut(place);
        if let Some(gone) = peer.hot_mut().confirm_next() {
            self.table.drop_index(gone);
        }
        self.complete(now, place);
        self.send_staged(now, place);
    }

    pub(super) fn move_endpoint(&mut self, place: u32, source: SocketAddr) {
        let peer = self.table.peer_mut(place);
        if peer.endpoint != Some(source) {
            peer.endpoint = Some(source);
            let event = Event::EndpointMoved {
                peer: self.table.id(place),
                endpoint: source,
            };
            self.push_event(event);
        }
    }

    /// Seals what waits for a session; true when something went out.
    pub(super) fn send_staged(&mut self, now: Instant, place: u32) -> bool {
        let mut sent = false;
        loop {
            let peer = self.table.peer_mut(place);
            let Some(mut staged) = peer.staged.pop_front() else {
                return sent;
            };
            let (slot, length) = (&mut staged.slot, staged.length);
            if !self.transmit_sealed(now, place, slot, length) {
                self.table.peer_mut(place).staged.push_front(staged);
                return sent;
            }
            self.staged_packets -= 1;
            sent = true;
        }
    }

    /// Sends a keepalive, or begins a handshake when there is no session; its end sends one.
    pub(super) fn send_keepalive(&mut self, now: Instant, place: u32, fresh: bool) {
        if !self.transmit_sealed(now, place, &mut vec![0; KEEPALIVE], 0) {
            self.request_handshake(now, place, fresh);
        }
    }

    /// Persistent keepalives try for ever, but each attempt ends and is told.
    pub(super) fn send_persistent_keepalive(&mut self, now: Instant, place: u32) {
        self.send_keepalive(now, place, false);
    }

    /// Seals the packet in `slot` and queues it; false when there is no session or endpoint.
    fn transmit_sealed(
        &mut self,
        now: Instant,
        place: u32,
        slot: &mut Vec<u8>,
        length: usize,
    ) -> bool {
        let peer = self.table.peer(place);
        let Some(endpoint) = peer.endpoint else {
            return false;
        };
        let nonces = peer
            .current()
            .and_then(|session| Sealing::reserve_from(&*session.sealing, now, 1));
        let Some(mut nonces) = nonces else {
            return false;
        };
        let total = nonces
            .seal(slot, length, self.mtu)
            .expect("one nonce was reserved");
        slot.truncate(total);
        debug_assert!(slot.len() >= OVERHEAD);
        self.push_transmit(Some(place), endpoint, std::mem::take(slot));
        self.sealed(now, place, 1, total, length > 0);
        true
    }
}
