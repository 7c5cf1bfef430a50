//! One peer as the device sees it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    allowed::Prefix,
    constants::{
        HEADER, KEEPALIVE_TIMEOUT, OVERHEAD, REKEY_AFTER_TIME, REKEY_TIMEOUT, STAGED_PACKETS_MAX,
        padded,
    },
    cookie::Cookie,
    crypto::{MAC, Secret},
    discard::Discard,
    key::{PresharedKey, PublicKey},
    message::put,
    noise::Pending,
    session::Session,
    tai64n::Tai64n,
    timers::{Timer, Timers},
    traffic::Traffic,
};

/// Names a peer for as long as it exists; never reused for another one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AddPeerError {
    /// The key is a peer already; the id is its own.
    #[error("the peer exists already")]
    Exists(PeerId),
    /// The key is our own public key.
    #[error("a device cannot be its own peer")]
    OwnKey,
    /// The key is a point of low order, with which nothing secret can be agreed.
    #[error("the public key is of low order")]
    LowOrder,
    /// The table is full.
    #[error("there are too many peers")]
    Full,
}

/// What `wg show` says about a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerStatus<'a> {
    /// Its name in the device.
    pub id: PeerId,
    /// Its identity.
    pub public_key: PublicKey,
    /// The key shared besides the key pairs.
    pub preshared_key: Option<&'a PresharedKey>,
    /// Where it was heard last, or was configured to be.
    pub endpoint: Option<SocketAddr>,
    /// When the newest session was made, by the monotonic clock.
    pub last_handshake: Option<Instant>,
    /// When the newest session was made, by the wall clock.
    pub last_handshake_wall: Option<SystemTime>,
    /// What was received from it and sent to it.
    pub traffic: Traffic,
    /// The interval of persistent keepalives in seconds.
    pub persistent_keepalive: Option<NonZeroU16>,
    /// What it may send from and is sent to, ordered by family and address.
    pub allowed_ips: &'a BTreeSet<Prefix>,
    /// Packets that wait for a handshake.
    pub staged_packets: usize,
}

/// Everything about one peer. While it is idle this is all that it costs: hot state is boxed and
/// dropped when its keys are zeroed.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    pub(crate) preshared: Option<PresharedKey>,
    /// Computed at the first handshake, for it costs a key agreement.
    pub(crate) static_static: Option<Secret>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) allowed_ips: BTreeSet<Prefix>,
    pub(crate) persistent_keepalive: Option<NonZeroU16>,
    /// Of the path, as the caller knows it; the device only keeps it.
    pub(crate) path_mtu: Option<NonZeroU16>,
    pub(crate) timers: Timers,
    /// The entry in the device's schedule; never later than the earliest timer.
    pub(crate) scheduled: Option<Instant>,
    /// When the running attempt to shake hands began, or was last wanted by a packet.
    pub(crate) attempt_began: Option<Instant>,
    pub(crate) handshake_sent: Option<Instant>,
    pub(crate) initiation_received: Option<Instant>,
    pub(crate) completed: Option<(Instant, SystemTime)>,
    pub(crate) timestamp_received: Tai64n,
    pub(crate) timestamp_sent: Tai64n,
    pub(crate) traffic: Traffic,
    /// Of this peer alone, at most one entry for each reason.
    pub(crate) discards: BTreeMap<Discard, u64>,
    /// Between 0 and `REKEY_JITTER_MAX`, drawn anew for each handshake.
    pub(crate) jitter: Duration,
    /// The session was rekeyed because it nears its end while it receives.
    pub(crate) last_minute_rekey: bool,
    /// At most `STAGED_PACKETS_MAX`; the oldest gives way.
    pub(crate) staged: VecDeque<Staged>,
    pub(crate) hot: Option<Box<Hot>>,
}

/// What a peer needs while it talks.
#[derive(Default)]
pub(crate) struct Hot {
    pub(crate) pending: Option<Arc<Pending>>,
    /// mac1 of our last initiation and response, to which a cookie reply may come.
    pub(crate) initiation_mac1: Option<[u8; MAC]>,
    pub(crate) response_mac1: Option<[u8; MAC]>,
    pub(crate) cookie: Option<Cookie>,
    pub(crate) previous: Option<Session>,
    pub(crate) current: Option<Session>,
    /// Made as responder; not sealed with before something was opened with it.
    pub(crate) next: Option<Session>,
}

/// A packet that waits for a session, with the room that sealing needs.
pub(crate) struct Staged {
    pub(crate) slot: Vec<u8>,
    pub(crate) length: usize,
}

/// Which of a peer's sessions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    Previous,
    Current,
    Next,
}

impl Peer {
    pub(crate) fn new(key: PublicKey) -> Self {
        Self {
            key,
            preshared: None,
            static_static: None,
            endpoint: None,
            allowed_ips: BTreeSet::new(),
            persistent_keepalive: None,
            path_mtu: None,
            timers: Timers::default(),
            scheduled: None,
            attempt_began: None,
            handshake_sent: None,
            initiation_received: None,
            completed: None,
            timestamp_received: Tai64n::default(),
            timestamp_sent: Tai64n::default(),
            traffic: Traffic::default(),
            discards: BTreeMap::new(),
            jitter: Duration::ZERO,
            last_minute_rekey: false,
            staged: VecDeque::new(),
            hot: None,
        }
    }

    pub(crate) fn hot_mut(&mut self) -> &mut Hot {
        self.hot.get_or_insert_default()
    }

    /// Counts what is not delivered, and returns it.
    pub(crate) fn discard(&mut self, discard: Discard, count: usize) -> Discard {
        if count > 0 {
            let counted = self.discards.entry(discard).or_default();
            *counted = counted.saturating_add(count as u64);
        }
        discard
    }

    pub(crate) fn current(&self) -> Option<&Session> {
        self.hot.as_ref()?.current.as_ref()
    }

    /// Tells whether the session should have a successor: whoever began it and sends data begins a
    /// handshake at `REKEY_AFTER_TIME`.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let since = REKEY_AFTER_TIME + REKEY_TIMEOUT;
        self.hot.as_ref().is_some_and(|hot| {
            hot.current.as_ref().is_some_and(|session| {
                now >= session.created + since && (hot.pending.is_some() || !session.initiator)
            })
        })
    }

    /// Authenticated datagrams of any kind were sent.
    pub(crate) fn note_sent(&mut self, now: Instant, datagrams: usize, bytes: usize) {
        self.traffic.note_sent(datagrams, bytes);
        self.timers.disarm(Timer::SendKeepalive);
        self.note_traversal(now);
    }

    /// Authenticated datagrams of any kind were received.
    pub(crate) fn note_received(&mut self, now: Instant, datagrams: usize, bytes: usize) {
        self.traffic.note_received(datagrams, bytes);
        self.timers.disarm(Timer::NewHandshake);
        self.note_traversal(now);
    }

    /// A packet, not a keepalive, was sent: an answer of any kind must come.
    pub(crate) fn note_data_sent(&mut self, now: Instant) {
        if !self.timers.is_armed(Timer::NewHandshake) {
            let patience = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter;
            self.timers.arm(Timer::NewHandshake, now + patience);
        }
    }

    /// A packet, not a keepalive, was received: an answer of any kind must go.
    pub(crate) fn note_data_received(&mut self, now: Instant) {
        if !self.timers.is_armed(Timer::SendKeepalive) {
            self.timers
                .arm(Timer::SendKeepalive, now + KEEPALIVE_TIMEOUT);
        }
    }

    /// Traffic in either direction keeps mappings open, so the next keepalive moves.
    fn note_traversal(&mut self, now: Instant) {
        if let Some(seconds) = self.persistent_keepalive {
            let interval = Duration::from_secs(seconds.get().into());
            self.timers.arm(Timer::PersistentKeepalive, now + interval);
        }
    }

    /// Keeps a copy of `packet`; true when the oldest gave way.
    pub(crate) fn stage(&mut self, packet: &[u8]) -> bool {
        let full = self.staged.len() == STAGED_PACKETS_MAX;
        if full {
            self.staged.pop_front();
        }
        let mut slot = vec![0; padded(packet.len()) + OVERHEAD];
        put(&mut slot, HEADER, packet);
        self.staged.push_back(Staged {
            slot,
            length: packet.len(),
        });
        full
    }
}

impl Hot {
    /// Finds the session by our index.
    pub(crate) fn place(&self, index: u32) -> Option<Place> {
        [Place::Current, Place::Next, Place::Previous]
            .into_iter()
            .find(|place| self.session(*place).is_some_and(|s| s.index() == index))
    }

    pub(crate) fn session(&self, place: Place) -> Option<&Session> {
        match place {
            Place::Previous => self.previous.as_ref(),
            Place::Current => self.current.as_ref(),
            Place::Next => self.next.as_ref(),
        }
    }

    /// Puts a session that we initiated; returns the indices of sessions that gave way.
    pub(crate) fn insert_initiated(&mut self, session: Session) -> [Option<u32>; 2] {
        let current = self.current.replace(session);
        match self.next.take() {
            // The other side may seal with `next` already, so it is worth more than `current`.
            Some(next) => {
                let previous = self.previous.replace(next);
                [previous, current].map(|gone| gone.map(|session| session.index()))
            }
            None => {
                let previous = std::mem::replace(&mut self.previous, current);
                [previous.map(|session| session.index()), None]
            }
        }
    }

    /// Makes `next` the current session; returns the index of the session that gave way.
    pub(crate) fn confirm_next(&mut self) -> Option<u32> {
        let current = std::mem::replace(&mut self.current, self.next.take());
        let previous = std::mem::replace(&mut self.previous, current);
        previous.map(|session| session.index())
    }

    /// Returns every index that leads here.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        let sessions = [&self.previous, &self.current, &self.next]
            .into_iter()
            .flatten();
        sessions
            .map(Session::index)
            .chain(self.pending.as_ref().map(|pending| pending.index))
    }
}
