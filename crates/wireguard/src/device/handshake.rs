//! Handshakes from both sides, cookies, and initiators that nobody knows yet.

use super::*;
use crate::{
    agreement::{Answer, Answered, Complete, Stage},
    constants::{INITIATION_INTERVAL_MIN, REJECT_AFTER_TIME, REKEY_JITTER_MAX, REKEY_TIMEOUT},
    crypto::{MAC, Secret, scrub_stack},
    keylog::KeyLog,
    message::{
        COOKIE_REPLY, INITIATION, RECEIVER, RESPONSE, RESPONSE_RECEIVER, SENDER, field, index, put,
    },
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
        let Ok(mut agreement) = self.begin_claim(source, message) else {
            return false;
        };
        agreement.compute();
        let is_peer = match &agreement.stage {
            Stage::Claim { claim, .. } => claim
                .as_ref()
                .is_some_and(|claim| self.table.by_key(&claim.public_key).is_some()),
            Stage::Answer(_) | Stage::Complete(_) => false,
        };
        let answered = is_peer && self.finish(now, agreement).is_ok();
        scrub_stack();
        answered
    }

    /// Forgets a kept initiation.
    pub fn forget_unknown(&mut self, ticket: Ticket) {
        self.unknown.forget(ticket);
    }

    /// Takes up an initiation that another run of this device, with the same private key, has sent
    /// to `peer` with that ephemeral key: its response will be ours. False when it was not made
    /// with these keys, or its sender index is in use.
    pub fn adopt_initiation(
        &mut self,
        now: Instant,
        peer: PeerId,
        ephemeral: &StaticSecret,
        message: &[u8; INITIATION],
    ) -> bool {
        let adopted = self.adopt(now, peer, ephemeral, message).is_some();
        scrub_stack();
        adopted
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    fn adopt(
        &mut self,
        now: Instant,
        peer: PeerId,
        ephemeral: &StaticSecret,
        message: &[u8; INITIATION],
    ) -> Option<()> {
        let place = self.table.place(peer)?;
        let static_static = self.static_static(place)?;
        let identity = self.identity().ok()?;
        let ephemeral = Secret::new(*ephemeral.expose());
        let key = self.table.peer(place).key;
        let timestamp = noise::own_timestamp(&identity, &key, &static_static, &ephemeral, message)?;
        let index = index(message, SENDER);
        let (_, pending) = noise::initiate(
            &identity,
            &key,
            &static_static,
            &ephemeral,
            index,
            timestamp,
        )?;
        if !self.table.insert_index(index, place) {
            return None;
        }
        let peer = self.table.peer_mut(place);
        let hot = peer.hot_mut();
        hot.initiation_mac1 = Some(*field(message, INITIATION - 2 * MAC));
        let former = hot.pending.replace(Arc::new(pending));
        peer.timestamp_sent = timestamp;
        peer.handshake_sent = Some(now);
        peer.note_sent(now, 1, message.len());
        peer.timers
            .arm(Timer::RetransmitHandshake, now + REKEY_TIMEOUT);
        if let Some(former) = former {
            self.table.drop_index(former.index);
        }
        self.reschedule(place);
        Some(())
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
                    self.remember_request(now, place);
                }
            }
            Some(_) | None => {
                self.send_initiation(now, place);
                scrub_stack();
            }
        }
    }

    /// Sees to an initiation that came too soon after the last message of a handshake.
    pub(super) fn remember_request(&mut self, now: Instant, place: u32) {
        let peer = self.table.peer_mut(place);
        if peer.timers.is_ahead(Timer::RetransmitHandshake, now) {
            return;
        }
        if let Some(sent) = peer.handshake_sent {
            let retry = sent + REKEY_TIMEOUT + peer.jitter;
            peer.timers.arm(Timer::RetransmitHandshake, retry);
            self.reschedule(place);
        }
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    fn send_initiation(&mut self, now: Instant, place: u32) {
        let Some(static_static) = self.static_static(place) else {
            return;
        };
        let Ok(identity) = self.identity() else {
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
            &identity,
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
        let former = hot.pending.replace(Arc::new(pending));
        peer.timestamp_sent = timestamp;
        peer.handshake_sent = Some(now);
        peer.note_sent(now, 1, message.len());
        peer.jitter = jitter(&mut *self.random);
        let retry = now + REKEY_TIMEOUT + peer.jitter;
        peer.timers.arm(Timer::RetransmitHandshake, retry);
        if let Some(former) = former {
            self.table.drop_index(former.index);
        }
        self.reschedule(place);
        if let Some(log) = log {
            self.push_event(Event::KeyLog {
                log,
                remote: endpoint,
                initiator: true,
            });
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
        self.gate.verify(message)?;
        // A queue that grows is load too: it is felt before anything is lost.
        let queued = self.agreements.len() >= AGREEMENTS_LOADED;
        if self.answer_with_cookie(now, source, message, queued)? {
            return Ok(());
        }
        let agreement = self.begin_claim(source, Box::new(*message))?;
        self.settle(now, agreement)
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; RESPONSE],
    ) -> Result<(), Discard> {
        self.gate.verify(message)?;
        let receiver = index(message, RESPONSE_RECEIVER);
        let place = self.table.by_index(receiver).ok_or(Discard::UnknownIndex)?;
        if !self.awaits(place, receiver) {
            return Err(Discard::UnknownIndex);
        }
        // Strangers queue none of these.
        if self.answer_with_cookie(now, source, message, false)? {
            return Ok(());
        }
        let peer = self.table.peer(place);
        let pending = peer.hot.as_ref().and_then(|hot| hot.pending.as_ref());
        let complete = Complete {
            message: *message,
            pending: Arc::clone(pending.ok_or(Discard::UnknownIndex)?),
            preshared: peer.preshared.clone(),
            keys: None,
        };
        let agreement = Agreement {
            identity: self.identity()?,
            source,
            stage: Stage::Complete(Box::new(complete)),
        };
        self.settle(now, agreement)
    }

    fn complete_response(
        &mut self,
        now: Instant,
        source: SocketAddr,
        complete: &Complete,
    ) -> Result<(), Discard> {
        let message = &complete.message;
        let receiver = index(message, RESPONSE_RECEIVER);
        let place = self.table.by_index(receiver).ok_or(Discard::UnknownIndex)?;
        // Another answer to the same initiation may have been faster.
        if !self.awaits(place, receiver) {
            return Err(Discard::UnknownIndex);
        }
        let keys = complete.keys.as_ref().ok_or(Discard::Handshake)?;
        // From here on the response is authentic: the pending handshake becomes a session.
        let peer = self.table.peer_mut(place);
        let session = Session::new(now, keys, receiver, index(message, SENDER), true);
        let hot = peer.hot_mut();
        hot.pending = None;
        hot.initiation_mac1 = None;
        let gone = hot.insert_initiated(session);
        peer.note_received(now, 1, message.len());
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

    /// Returns a handshake message to compute, which then goes back by
    /// [`Device::handle_agreement`]. Only after [`Device::set_deferred_agreements`] there are any.
    pub fn poll_agreement(&mut self) -> Option<Agreement> {
        self.agreements.pop_front()
    }

    /// Returns how many messages wait for [`Device::poll_agreement`].
    #[must_use]
    pub fn waiting_agreements(&self) -> usize {
        self.agreements.len()
    }

    /// Takes an agreement that was computed; returns it when there is more to compute.
    ///
    /// What it was about may have changed since: then it is discarded, which
    /// [`Device::poll_event`] tells.
    pub fn handle_agreement(&mut self, now: Instant, agreement: Agreement) -> Option<Agreement> {
        let advanced = self.advance(now, agreement);
        scrub_stack();
        match advanced {
            Ok(next) => next,
            Err(discard) => {
                self.drop_later(discard, 1);
                None
            }
        }
    }

    fn begin_claim(
        &self,
        source: SocketAddr,
        message: Box<[u8; INITIATION]>,
    ) -> Result<Agreement, Discard> {
        Ok(Agreement {
            identity: self.identity()?,
            source,
            stage: Stage::Claim {
                message,
                claim: None,
            },
        })
    }

    /// Computes everything at once, or lets it wait for the caller.
    fn settle(&mut self, now: Instant, mut agreement: Agreement) -> Result<(), Discard> {
        if !self.defers {
            agreement.compute();
            return self.finish(now, agreement);
        }
        if self.agreements.len() >= AGREEMENTS_MAX {
            return Err(Discard::QueueFull);
        }
        self.agreements.push_back(agreement);
        Ok(())
    }

    /// Computes what is left after the first stage.
    fn finish(&mut self, now: Instant, mut agreement: Agreement) -> Result<(), Discard> {
        while let Some(next) = self.advance(now, agreement)? {
            agreement = next;
            agreement.compute();
        }
        Ok(())
    }

    /// Not inlined, so that its frame is scrubbed too.
    #[inline(never)]
    fn advance(
        &mut self,
        now: Instant,
        agreement: Agreement,
    ) -> Result<Option<Agreement>, Discard> {
        let Agreement {
            identity,
            source,
            stage,
        } = agreement;
        if !Arc::ptr_eq(&identity, &self.identity()?) {
            return Err(Discard::Handshake);
        }
        match stage {
            Stage::Claim { message, claim } => {
                let claim = claim.ok_or(Discard::Handshake)?;
                let stage = match self.table.by_key(&claim.public_key) {
                    Some(place) => Stage::Answer(self.begin_answer(now, message, claim, place)?),
                    None => {
                        return self
                            .keep_unknown(now, source, &message, &claim)
                            .map(|()| None);
                    }
                };
                Ok(Some(Agreement {
                    identity,
                    source,
                    stage,
                }))
            }
            Stage::Answer(mut answer) => self.answer(now, source, &mut answer).map(|()| None),
            Stage::Complete(complete) => {
                let completed = self.complete_response(now, source, &complete);
                completed.map(|()| None)
            }
        }
    }

    fn keep_unknown(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8; INITIATION],
        claim: &Claim,
    ) -> Result<(), Discard> {
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

    fn begin_answer(
        &mut self,
        now: Instant,
        message: Box<[u8; INITIATION]>,
        claim: Box<Claim>,
        place: u32,
    ) -> Result<Box<Answer>, Discard> {
        let soon = |at: Instant| now < at + INITIATION_INTERVAL_MIN;
        let peer = self.table.peer(place);
        if peer.initiation_received.is_some_and(soon) {
            return Err(self.refuse(place, Discard::InitiationFlood));
        }
        Ok(Box::new(Answer {
            message,
            peer: self.table.id(place),
            key: claim.public_key,
            claim,
            preshared: peer.preshared.clone(),
            static_static: peer.static_static.clone(),
            newest: peer.timestamp_received,
            ephemeral: random_secret(&mut *self.random),
            answered: Err(Discard::Handshake),
        }))
    }

    /// Borrows, for what is moved out of a box stays in the memory that the box gives back.
    fn answer(
        &mut self,
        now: Instant,
        source: SocketAddr,
        answer: &mut Answer,
    ) -> Result<(), Discard> {
        let place = self.table.place(answer.peer).ok_or(Discard::UnknownPeer)?;
        let peer = self.table.peer_mut(place);
        peer.static_static.clone_from(&answer.static_static);
        let answered = answer.answered.as_mut().map_err(|discard| *discard)?;
        let Answered {
            response,
            keys,
            timestamp,
            receiver,
        } = answered;
        if *timestamp <= peer.timestamp_received {
            return Err(peer.discard(Discard::ReplayedInitiation, 1));
        }
        peer.timestamp_received = *timestamp;
        peer.initiation_received = Some(now);
        peer.note_received(now, 1, INITIATION);
        let index = self.table.new_index(&mut *self.random, place);
        put(response, SENDER, &index.to_le_bytes());
        self.respond(now, source, place, response, keys, (index, *receiver));
        if self.key_log
            && let Some(identity) = &self.identity
        {
            let (key, preshared) = (&answer.key, answer.preshared.as_ref());
            let log = KeyLog::new(&identity.secret, key, &answer.ephemeral, preshared);
            self.push_event(Event::KeyLog {
                log,
                remote: source,
                initiator: false,
            });
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
        peer.note_sent(now, 1, response.len());
        peer.timers
            .arm(Timer::ZeroKeyMaterial, now + REJECT_AFTER_TIME * 3);
        if let Some(former) = former {
            self.table.drop_index(former);
        }
        self.reschedule(place);
        self.push_transmit(Some(place), source, response.to_vec());
    }

    /// Under load, which `loaded` may say too, answers a message without a right mac2 by a cookie
    /// and tells so.
    fn answer_with_cookie(
        &mut self,
        now: Instant,
        source: SocketAddr,
        message: &[u8],
        loaded: bool,
    ) -> Result<bool, Discard> {
        if !self.load.count(now) && !loaded {
            return Ok(false);
        }
        let keys = self.gate.keys()?;
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

    fn identity(&self) -> Result<Arc<Identity>, Discard> {
        self.identity.clone().ok_or(Discard::NoPrivateKey)
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

/// Ten milliseconds of work for one core.
const AGREEMENTS_LOADED: usize = 100;
