//! What a node did with each datagram of a recording, found out by doing it again in virtual time.
//!
//! The device gets the keys that the node had, the randomness that it drew and the time that it
//! was: so it makes the same sessions, and its verdict on each datagram is the node's. Its peers
//! have no endpoint, so it sends nothing by itself: the recording says what was sent. Allowed IPs
//! are in no recording, so a source that may not be used is not noticed.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use packet::ip;
use wireguard::{
    Device, Discard, Event, HEADER, Heard, INITIATION, KEEPALIVE, KEY, PeerId, PresharedKey,
    PublicKey, RESPONSE, Random, Received, Sealing, StaticSecret,
};
use zeroize::Zeroizing;

use super::{
    message::Message,
    recording::{Datagram, Keys, Recording},
};

/// Something to tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Line {
    /// Since the first datagram.
    pub(crate) time: Duration,
    /// The datagram; `None` for what happened between datagrams.
    pub(crate) datagram: Option<Told>,
    /// What changed.
    pub(crate) changes: Vec<String>,
}

/// A datagram and what became of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    /// Whether it came in.
    pub(crate) inbound: bool,
    /// Where it came from or went.
    pub(crate) remote: SocketAddr,
    /// What it is.
    pub(crate) message: Message,
    /// What became of it.
    pub(crate) verdict: Verdict,
}

/// What became of a datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// A handshake message or a cookie did its work.
    Handled,
    /// It held nothing: it keeps the session alive.
    Keepalive,
    /// It held this packet.
    Packet(String),
    /// It was refused.
    Discarded(Discard),
    /// The recording does not open it.
    Sealed,
}

/// A node in virtual time.
struct Replay {
    device: Device,
    script: Script,
    base: Instant,
    now: Instant,
    keys: BTreeMap<[u8; KEY], Keys>,
    /// Our responses by the sender index that they answer: their ephemeral key and sender index.
    answers: BTreeMap<u32, VecDeque<([u8; KEY], u32)>>,
    /// Responses that the device made, by their sender index; one for each recorded answer.
    made: BTreeMap<u32, Vec<u8>>,
    /// What seals, by the receiver index that it writes; one for each session.
    sealing: BTreeMap<u32, (PeerId, Arc<Sealing>)>,
    /// Where each peer was heard last.
    heard: BTreeMap<PeerId, SocketAddr>,
}

/// The randomness that the node drew: what the recording tells, and anything beside it.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Draws>>);

#[derive(Default)]
struct Draws {
    ephemeral: Option<Zeroizing<[u8; KEY]>>,
    index: Option<u32>,
    count: u64,
}

/// Timers between two datagrams; there are five for each peer.
const TIMERS_MAX: usize = 10_000;

/// Replays a whole recording from virtual time `base` on, and tells each line.
pub(crate) fn tell(recording: Recording, base: Instant, mut line: impl FnMut(Line)) {
    let Recording {
        datagrams, keys, ..
    } = recording;
    let Some(first) = datagrams.first().map(|datagram| datagram.time) else {
        return;
    };
    let mut replay = Replay::new(base, first, keys, &datagrams);
    for datagram in datagrams {
        let now = base + datagram.time.saturating_sub(first);
        // Threads may have written their datagrams out of order.
        replay.wait(now.max(replay.now), &mut line);
        let told = replay.take(datagram);
        let changes = replay.changes();
        line(Line {
            time: replay.time(),
            datagram: Some(told),
            changes,
        });
    }
}

impl Replay {
    fn new(
        base: Instant,
        first: Duration,
        keys: BTreeMap<[u8; KEY], Keys>,
        datagrams: &[Datagram],
    ) -> Self {
        let script = Script::default();
        let wall = SystemTime::UNIX_EPOCH + first;
        let mut device = Device::new(base, wall, Box::new(script.clone()));
        device.set_load(Some(false));
        device.set_unknown_initiators(true);
        if let Some(keys) = keys.values().next() {
            device.set_private_key(base, Some(StaticSecret::new(*keys.local.expose())));
        }
        let mut answers: BTreeMap<_, VecDeque<_>> = BTreeMap::new();
        for datagram in datagrams {
            if let Message::Response { sender, receiver } = Message::of(&datagram.payload)
                && let Some(ephemeral) = ephemeral(&datagram.payload, RESPONSE_EPHEMERAL)
                && keys.contains_key(&ephemeral)
            {
                let answer = (ephemeral, sender);
                answers.entry(receiver).or_default().push_back(answer);
            }
        }
        Self {
            device,
            script,
            base,
            now: base,
            keys,
            answers,
            made: BTreeMap::new(),
            sealing: BTreeMap::new(),
            heard: BTreeMap::new(),
        }
    }

    fn time(&self) -> Duration {
        self.now.saturating_duration_since(self.base)
    }

    /// Lets time pass, with what becomes due in it.
    fn wait(&mut self, until: Instant, line: &mut impl FnMut(Line)) {
        for _ in 0..TIMERS_MAX {
            match self.device.poll_timeout() {
                Some(due) if due <= until => self.now = due.max(self.now),
                Some(_) | None => break,
            }
            self.device.handle_timeout(self.now);
            let changes = self.changes();
            if !changes.is_empty() {
                line(Line {
                    time: self.time(),
                    datagram: None,
                    changes,
                });
            }
        }
        self.now = until;
    }

    fn take(&mut self, datagram: Datagram) -> Told {
        let message = Message::of(&datagram.payload);
        let inbound = datagram
            .inbound
            .unwrap_or_else(|| self.is_inbound(&message, &datagram.payload));
        let remote = if inbound {
            datagram.source
        } else {
            datagram.destination
        };
        let payload = datagram.payload;
        let verdict = if inbound {
            self.receive(&message, remote, payload)
        } else {
            self.send(&message, payload)
        };
        Told {
            inbound,
            remote,
            message,
            verdict,
        }
    }

    /// Tells whether a datagram came in, where the recording does not: handshake messages carry a
    /// MAC for their receiver, data the index that its receiver chose.
    fn is_inbound(&self, message: &Message, payload: &[u8]) -> bool {
        match message {
            Message::Initiation { .. } | Message::Response { .. } => {
                self.device.gate().verify(payload).is_ok()
            }
            Message::CookieReply { receiver } => !self.sealing.contains_key(receiver),
            Message::Data { receiver, .. } => {
                self.device.opening(*receiver).is_some() || !self.sealing.contains_key(receiver)
            }
            Message::Other => true,
        }
    }

    fn receive(&mut self, message: &Message, source: SocketAddr, payload: Vec<u8>) -> Verdict {
        match message {
            Message::Data {
                receiver, counter, ..
            } => self.open(*receiver, *counter, source, payload),
            Message::Initiation { sender } => {
                let answer = self.answers.get_mut(sender).and_then(VecDeque::pop_front);
                if let Some((ephemeral, index)) = answer {
                    self.prepare(&ephemeral, index);
                }
                let verdict = self.handle(source, payload);
                self.script.clear();
                verdict
            }
            Message::Response { .. } | Message::CookieReply { .. } | Message::Other => {
                self.handle(source, payload)
            }
        }
    }

    fn handle(&mut self, source: SocketAddr, mut payload: Vec<u8>) -> Verdict {
        match self.device.handle_datagram(self.now, source, &mut payload) {
            Received::Handled | Received::Packet { .. } => Verdict::Handled,
            Received::Discarded(discard) => Verdict::Discarded(discard),
        }
    }

    /// Lets the next answer be the recorded one.
    fn prepare(&mut self, ephemeral: &[u8; KEY], index: u32) {
        let Some(keys) = self.keys.get(ephemeral) else {
            return;
        };
        self.script.set(keys.ephemeral.clone(), index);
        let local = StaticSecret::new(*keys.local.expose());
        let preshared = keys.preshared.as_ref().map(|key| PresharedKey::new(**key));
        let remote = keys.remote;
        self.device.set_private_key(self.now, Some(local));
        if let Some(peer) = remote.and_then(|remote| self.peer(PublicKey(remote))) {
            self.device.set_preshared_key(peer, preshared);
        }
    }

    /// Finds or adds a peer; `None` when its key cannot be one.
    fn peer(&mut self, key: PublicKey) -> Option<PeerId> {
        match self.device.peer(&key) {
            Some(peer) => Some(peer),
            None => self.device.add_peer(self.now, key).ok(),
        }
    }

    /// Opens data that came in, as a thread beside the device would.
    fn open(
        &mut self,
        index: u32,
        counter: u64,
        source: SocketAddr,
        mut payload: Vec<u8>,
    ) -> Verdict {
        let bytes = payload.len();
        let Some((_, opening)) = self.device.opening(index) else {
            return Verdict::Discarded(Discard::UnknownIndex);
        };
        let opened = match opening.open(self.now, counter, &mut payload[HEADER..]) {
            Ok(opened) => opened,
            Err(discard) => return Verdict::Discarded(discard),
        };
        let heard = Heard::one(index, bytes, opened.newest);
        let verdict = content(opened.text);
        self.device.note_opened(self.now, source, &heard);
        verdict
    }

    fn send(&mut self, message: &Message, mut payload: Vec<u8>) -> Verdict {
        match message {
            Message::Initiation { .. } => match <&[u8; INITIATION]>::try_from(&payload[..]) {
                Ok(message) => self.adopt(message),
                Err(_) => Verdict::Sealed,
            },
            Message::Response { sender, .. } => match self.made.remove(sender) {
                // The last bytes depend on a cookie.
                Some(made) if made[..RESPONSE_OF_KEYS] == payload[..RESPONSE_OF_KEYS] => {
                    Verdict::Handled
                }
                Some(_) | None => Verdict::Sealed,
            },
            Message::CookieReply { .. } => Verdict::Handled,
            Message::Data {
                receiver, counter, ..
            } => {
                let Some((peer, sealing)) = self.sealing.get(receiver) else {
                    return Verdict::Sealed;
                };
                let (peer, bytes) = (*peer, payload.len());
                let Some(text) = sealing.reveal(*counter, &mut payload[HEADER..]) else {
                    return Verdict::Sealed;
                };
                let verdict = content(text);
                let data = bytes > KEEPALIVE;
                self.device.note_sealed(self.now, peer, 1, bytes, data);
                verdict
            }
            Message::Other => Verdict::Discarded(Discard::MessageType),
        }
    }

    /// Takes up an initiation that the node sent.
    fn adopt(&mut self, message: &[u8; INITIATION]) -> Verdict {
        let keys = ephemeral(message, INITIATION_EPHEMERAL);
        let Some(keys) = keys.and_then(|ephemeral| self.keys.get(&ephemeral)) else {
            return Verdict::Sealed;
        };
        let ephemeral = StaticSecret::new(*keys.ephemeral);
        let local = StaticSecret::new(*keys.local.expose());
        let preshared = keys.preshared.as_ref().map(|key| PresharedKey::new(**key));
        let Some(remote) = keys.remote.map(PublicKey) else {
            return Verdict::Sealed;
        };
        self.device.set_private_key(self.now, Some(local));
        let Some(peer) = self.peer(remote) else {
            return Verdict::Sealed;
        };
        self.device.set_preshared_key(peer, preshared);
        let adopted = self
            .device
            .adopt_initiation(self.now, peer, &ephemeral, message);
        if adopted {
            Verdict::Handled
        } else {
            Verdict::Sealed
        }
    }

    /// Drains the device and tells what changed.
    fn changes(&mut self) -> Vec<String> {
        let mut changes = Vec::new();
        while let Some(event) = self.device.poll_event() {
            self.change(&event, &mut changes);
        }
        while let Some(transmit) = self.device.poll_transmit() {
            if let Message::Response { sender, .. } = Message::of(&transmit.datagram) {
                self.made.insert(sender, transmit.datagram);
            }
        }
        changes
    }

    fn change(&mut self, event: &Event, changes: &mut Vec<String>) {
        match *event {
            Event::UnknownInitiator {
                public_key, ticket, ..
            } => {
                // Its key stands in no key log of a responder.
                if self.peer(public_key).is_some() {
                    self.device.answer_unknown(self.now, ticket);
                }
            }
            Event::HandshakeCompleted { peer } => {
                if let Some(sealing) = self.device.sealing(self.now, peer) {
                    self.sealing.insert(sealing.receiver(), (peer, sealing));
                }
                let details = self.device.details(peer);
                let session = details.and_then(|details| details.sessions.into_iter().next());
                changes.extend(session.map(|session| {
                    format!(
                        "session {:08x} (theirs {:08x}) as {}",
                        session.local_index,
                        session.remote_index,
                        if session.initiator {
                            "initiator"
                        } else {
                            "responder"
                        },
                    )
                }));
            }
            Event::HandshakeAbandoned { .. } => changes.push("handshake abandoned".to_owned()),
            Event::EndpointMoved { peer, endpoint } => {
                // Without an endpoint it begins no handshakes by itself.
                self.device.set_endpoint(peer, None);
                let before = self.heard.insert(peer, endpoint);
                if before.is_some_and(|before| before != endpoint) {
                    changes.push(format!("the peer moved to {endpoint}"));
                }
            }
            Event::SessionsZeroed { .. } => changes.push("all keys zeroed".to_owned()),
            Event::KeyLog { .. } => {}
            Event::Discarded { discard, count } => {
                changes.push(format!("{count} discarded: {}", discard.name()));
            }
        }
    }
}

/// Where the ephemeral key stands, and how much of a response depends on keys alone (whitepaper
/// 5.4.2, 5.4.3).
const INITIATION_EPHEMERAL: usize = 8;
const RESPONSE_EPHEMERAL: usize = 12;
const RESPONSE_OF_KEYS: usize = RESPONSE - 32;

fn ephemeral(message: &[u8], at: usize) -> Option<[u8; KEY]> {
    message.get(at..)?.first_chunk().copied()
}

/// Tells what was sealed.
fn content(text: &[u8]) -> Verdict {
    if text.is_empty() {
        return Verdict::Keepalive;
    }
    let Ok(addresses) = ip::addresses(text) else {
        return Verdict::Discarded(Discard::NotIp);
    };
    Verdict::Packet(super::message::describe(&text[..addresses.length]))
}

impl Script {
    fn set(&self, ephemeral: Zeroizing<[u8; KEY]>, index: u32) {
        let mut draws = self.lock();
        (draws.ephemeral, draws.index) = (Some(ephemeral), Some(index));
    }

    fn clear(&self) {
        let mut draws = self.lock();
        (draws.ephemeral, draws.index) = (None, None);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Draws> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Random for Script {
    fn fill(&mut self, bytes: &mut [u8]) {
        let mut draws = self.lock();
        if bytes.len() == KEY
            && let Some(ephemeral) = draws.ephemeral.take()
        {
            bytes.copy_from_slice(&*ephemeral);
        } else if bytes.len() == 4
            && let Some(index) = draws.index.take()
        {
            bytes.copy_from_slice(&index.to_le_bytes());
        } else {
            for byte in bytes {
                draws.count = draws.count.wrapping_add(0x9e37_79b9_7f4a_7c15);
                *byte = (draws.count ^ (draws.count >> 31)).to_be_bytes()[0];
            }
        }
    }
}
