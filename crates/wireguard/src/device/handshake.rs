//! Handshakes from both sides, cookies, and initiators that nobody knows yet.

use super::*;
use crate::{
    constants::{INITIATION_INTERVAL_MIN, REJECT_AFTER_TIME, REKEY_JITTER_MAX, REKEY_TIMEOUT},
    crypto::{Secret, scrub_stack},
    keylog::KeyLog,
    message::{COOKIE_REPLY, INITIATION, RECEIVER, RESPONSE, RESPONSE_RECEIVER, SENDER, index},
    noise::{self, Claim, TransportKeys},
    session::Session,
    unknown::{Keep, Kept},
};

impl Device {
    /// Answers a kept initiation after its initiator was added; false when it is not kept any more
    /// or was forged.
    pub fn answer_unknown(&mut self, now: Instant, ticket: Ticket) -> bool {
        let Some(Kept {
            source, message, ..
        }) = self.unknown.take(now, ticket)
        else {
            return false;
        };
        let answered = self.answer_kept(now, source, &message);
        scrub_stack();
        answered.is_ok()
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    fn answer_kept(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; INITIATION],
    ) -> Result<(), Discard> {
        let claim = self.claim(message)?;
        let place = self.table.by_key(&claim.public_key);
        let place = place.ok_or(Discard::UnknownInitiator)?;
        self.consume_initiation(now, source, message, claim, place)
    }

    /// Forgets a kept initiation.
    pub fn forget_unknown(&mut self, ticket: Ticket) {
        self.unknown.forget(ticket);
    }

    /// Begins a handshake unless one is under way or began within `REKEY_TIMEOUT`. `fresh` when
    /// a packet wants it, so that the attempt lasts `REKEY_ATTEMPT_TIME` from now.
    pub(super) fn request_handshake(&mut self, now: Instant, place: u32, fresh: bool) {
        let peer = self.table.peer_mut(place);
        if self.identity.is_none() || peer.endpoint.is_none() {
            return;
        }
        if fresh || peer.attempt_began.is_none() {
            peer.attempt_began = Some(now);
        }
        // An attempt is under way: its timer repeats the initiation, with jitter.
        if peer.timers.is_ahead(Timer::RetransmitHandshake, now) {
            return;
        }
        match peer.handshake_sent {
            Some(sent) if now < sent + REKEY_TIMEOUT => {
                // The last message was a response: nothing else would bring us back.
                if !peer.staged.is_empty() {
                    let retry = sent + REKEY_TIMEOUT + peer.jitter;
                    peer.timers.arm(Timer::RetransmitHandshake, retry);
                    self.reschedule(place);
                }
            }
            Some(_) | None => {
                self.send_initiation(now, place);
                scrub_stack();
            }
        }
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    fn send_initiation(&mut self, now: Instant, place: u32) {
        let Some(static_static) = self.static_static(place) else {
            return;
        };
        let Some(identity) = &self.identity else {
            return;
        };
        let ephemeral = random_secret(&mut *self.random);
        let index = self.table.new_index(&mut *self.random, place);
        let peer = self.table.peer_mut(place);
        let Some(endpoint) = peer.endpoint else {
            return;
        };
        let timestamp = self.clock.timestamp(now, peer.timestamp_sent);
        let written = noise::initiate(
            identity,
            &peer.key,
            &static_static,
            &ephemeral,
            index,
            timestamp,
        );
        let Some((mut message, pending)) = written else {
            self.table.drop_index(index);
            return;
        };
        let log = self.key_log.then(|| {
            KeyLog::new(
                &identity.secret,
                &peer.key,
                &ephemeral,
                peer.preshared.as_ref(),
            )
        });
        let keys = MacKeys::new(&peer.key);
        let hot = peer.hot_mut();
        hot.initiation_mac1 = Some(keys.sign(&mut message, hot.cookie.as_ref(), now));
        let former = hot.pending.replace(pending);
        peer.timestamp_sent = timestamp;
        peer.handshake_sent = Some(now);
        peer.note_sent(now, message.len());
        peer.jitter = jitter(&mut *self.random);
        let retry = now + REKEY_TIMEOUT + peer.jitter;
        peer.timers.arm(Timer::RetransmitHandshake, retry);
        if let Some(former) = former {
            self.table.drop_index(former.index);
        }
        self.reschedule(place);
        if let Some(log) = log {
            self.push_event(Event::KeyLog(log));
        }
        self.push_transmit(Some(place), endpoint, message.to_vec());
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    pub(super) fn handle_initiation(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; INITIATION],
    ) -> Result<(), Discard> {
        self.verify_mac1(message)?;
        if self.answer_with_cookie(now, source, message)? {
            return Ok(());
        }
        let claim = self.claim(message)?;
        if let Some(place) = self.table.by_key(&claim.public_key) {
            return self.consume_initiation(now, source, message, claim, place);
        }
        match self.unknown.keep(now, source, message) {
            Keep::Kept { ticket, displaced } => {
                self.drop_later(Discard::QueueFull, usize::from(displaced));
                self.push_event(Event::UnknownInitiator {
                    public_key: claim.public_key,
                    source,
                    ticket,
                });
                Ok(())
            }
            Keep::Refused => Err(Discard::UnknownInitiator),
        }
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; RESPONSE],
    ) -> Result<(), Discard> {
        self.verify_mac1(message)?;
        let receiver = index(message, RESPONSE_RECEIVER);
        let place = self.table.by_index(receiver).ok_or(Discard::UnknownIndex)?;
        if !self.awaits(place, receiver) {
            return Err(Discard::UnknownIndex);
        }
        if self.answer_with_cookie(now, source, message)? {
            return Ok(());
        }
        let identity = self.identity.as_ref().ok_or(Discard::NoPrivateKey)?;
        let peer = self.table.peer_mut(place);
        let preshared = peer.preshared.as_ref();
        let pending = peer.hot.as_ref().and_then(|hot| hot.pending.as_ref());
        let keys = pending
            .and_then(|pending| pending.complete(identity, preshared, message))
            .ok_or(Discard::Handshake)?;
        // From here on the response is authentic: the pending handshake becomes a session.
        let session = Session::new(now, &keys, receiver, index(message, SENDER), true);
        let hot = peer.hot_mut();
        hot.pending = None;
        hot.initiation_mac1 = None;
        let gone = hot.insert_initiated(session);
        peer.note_received(now, message.len());
        peer.timers
            .arm(Timer::ZeroKeyMaterial, now + REJECT_AFTER_TIME * 3);
        for index in gone.into_iter().flatten() {
            self.table.drop_index(index);
        }
        self.move_endpoint(place, source);
        self.complete(now, place);
        if !self.send_staged(now, place) {
            self.send_keepalive(now, place, true);
        }
        self.reschedule(place);
        Ok(())
    }

    /// Takes a cookie; nothing else changes, least of all the endpoint.
    pub(super) fn handle_cookie_reply(
        &mut self,
        now: Instant,
        message: &[u8; COOKIE_REPLY],
    ) -> Result<(), Discard> {
        let receiver = index(message, RECEIVER);
        let place = self.table.by_index(receiver).ok_or(Discard::UnknownIndex)?;
        let awaits_response = self.awaits(place, receiver);
        let peer = self.table.peer_mut(place);
        let keys = MacKeys::new(&peer.key);
        let hot = peer.hot_mut();
        let mac1 = if awaits_response {
            &mut hot.initiation_mac1
        } else {
            &mut hot.response_mac1
        };
        let sent = mac1.as_ref().ok_or(Discard::Cookie)?;
        let cookie = keys.open_reply(message, sent, now).ok_or(Discard::Cookie)?;
        *mac1 = None;
        hot.cookie = Some(cookie);
        Ok(())
    }

    /// A session is confirmed in both directions.
    pub(super) fn complete(&mut self, now: Instant, place: u32) {
        let wall = self.clock.wall(now);
        let peer = self.table.peer_mut(place);
        peer.timers.disarm(Timer::RetransmitHandshake);
        peer.attempt_began = None;
        peer.last_minute_rekey = false;
        peer.completed = Some((now, wall));
        let event = Event::HandshakeCompleted {
            peer: self.table.id(place),
        };
        self.push_event(event);
    }

    fn consume_initiation(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; INITIATION],
        claim: Claim,
        place: u32,
    ) -> Result<(), Discard> {
        let soon = |at: Instant| now < at + INITIATION_INTERVAL_MIN;
        if self.table.peer(place).initiation_received.is_some_and(soon) {
            return Err(Discard::InitiationFlood);
        }
        let static_static = self.static_static(place).ok_or(Discard::Handshake)?;
        let proven = claim
            .prove(&static_static, message)
            .ok_or(Discard::Handshake)?;
        if proven.timestamp <= self.table.peer(place).timestamp_received {
            return Err(Discard::ReplayedInitiation);
        }
        let (timestamp, receiver) = (proven.timestamp, proven.sender);
        let ephemeral = random_secret(&mut *self.random);
        let index = self.table.new_index(&mut *self.random, place);
        let peer = self.table.peer_mut(place);
        let answer = proven.respond(&peer.key, peer.preshared.as_ref(), &ephemeral, index);
        let Some((mut response, keys)) = answer else {
            self.table.drop_index(index);
            return Err(Discard::Handshake);
        };
        peer.timestamp_received = timestamp;
        peer.initiation_received = Some(now);
        peer.note_received(now, message.len());
        self.respond(now, source, place, &mut response, &keys, (index, receiver));
        if self.key_log
            && let Some(identity) = &self.identity
        {
            let peer = self.table.peer(place);
            let preshared = peer.preshared.as_ref();
            let log = KeyLog::new(&identity.secret, &peer.key, &ephemeral, preshared);
            self.push_event(Event::KeyLog(log));
        }
        Ok(())
    }

    /// Sends the response to where the initiation came from. The endpoint moves when the session
    /// is confirmed: whoever sends a recorded initiation again after our restart, when its
    /// timestamp is forgotten, gets an answer and nothing more.
    fn respond(
        &mut self,
        now: Instant,
        source: SocketAddr,
        place: u32,
        response: &mut [u8; RESPONSE],
        keys: &TransportKeys,
        (index, receiver): (u32, u32),
    ) {
        let peer = self.table.peer_mut(place);
        let mac_keys = MacKeys::new(&peer.key);
        let hot = peer.hot_mut();
        hot.response_mac1 = Some(mac_keys.sign(response, hot.cookie.as_ref(), now));
        let session = Session::new(now, keys, index, receiver, false);
        let former = hot.next.replace(session).map(|session| session.index());
        peer.handshake_sent = Some(now);
        peer.jitter = jitter(&mut *self.random);
        peer.note_sent(now, response.len());
        peer.timers
            .arm(Timer::ZeroKeyMaterial, now + REJECT_AFTER_TIME * 3);
        if let Some(former) = former {
            self.table.drop_index(former);
        }
        self.reschedule(place);
        self.push_transmit(Some(place), source, response.to_vec());
    }

    fn verify_mac1(&self, message: &[u8]) -> Result<(), Discard> {
        let keys = self.mac_keys.as_ref().ok_or(Discard::NoPrivateKey)?;
        if keys.mac1_holds(message) {
            Ok(())
        } else {
            Err(Discard::Mac1)
        }
    }

    /// Under load, answers a message without a right mac2 by a cookie and tells so.
    fn answer_with_cookie(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8],
    ) -> Result<bool, Discard> {
        if !self.load.count(now) {
            return Ok(false);
        }
        let keys = self.mac_keys.as_ref().ok_or(Discard::NoPrivateKey)?;
        let random = &mut *self.random;
        if self.cookie_secret.mac2_holds(now, random, source, message) {
            return if self.load.admit(now, source) {
                Ok(false)
            } else {
                Err(Discard::RateLimited)
            };
        }
        let reply = self.cookie_secret.reply(now, random, source, message, keys);
        self.push_transmit(None, source, reply.to_vec());
        Ok(true)
    }

    fn claim(&self, message: &[u8; INITIATION]) -> Result<Claim, Discard> {
        let identity = self.identity.as_ref().ok_or(Discard::NoPrivateKey)?;
        Claim::open(identity, message).ok_or(Discard::Handshake)
    }

    /// Tells whether `receiver` is the index of our pending initiation to the peer at `place`.
    fn awaits(&self, place: u32, receiver: u32) -> bool {
        let hot = self.table.peer(place).hot.as_ref();
        hot.and_then(|hot| hot.pending.as_ref())
            .is_some_and(|pending| pending.index == receiver)
    }

    /// Returns the secret of both static keys, computed once for each peer.
    fn static_static(&mut self, place: u32) -> Option<Secret> {
        let identity = self.identity.as_ref()?;
        let peer = self.table.peer_mut(place);
        if peer.static_static.is_none() {
            peer.static_static = identity.pair.agree(&peer.key.0);
        }
        peer.static_static.clone()
    }
}

fn random_secret(random: &mut dyn Random) -> Secret {
    let mut secret = Secret::default();
    random.fill(secret.as_mut());
    secret
}

fn jitter(random: &mut dyn Random) -> Duration {
    let mut bytes = [0; 4];
    random.fill(&mut bytes);
    // A bias of 2^-23 does not matter: two initiators shall only not meet for ever.
    REKEY_JITTER_MAX * (u32::from_le_bytes(bytes) >> 22) / 1023
}
