//! A device: its key, its peers, and everything that goes in and out.

mod handshake;
mod schedule;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    agreement::Agreement,
    allowed::{AllowedIps, Prefix},
    constants::MTU_DEFAULT,
    cookie::{CookieSecret, MacKeys},
    details::Details,
    discard::Discard,
    event::{Event, Received, Seal, Ticket, Transmit},
    gate::Gate,
    key::{PresharedKey, PublicKey, StaticSecret},
    load::Load,
    noise::Identity,
    peer::{AddPeerError, Peer, PeerId, PeerStatus},
    random::Random,
    table::Table,
    tai64n::Tai64n,
    timers::Timer,
    traffic::Traffic,
    unknown::Unknown,
};

/// One WireGuard interface without its sockets.
///
/// After each call that takes `now`, drain [`Device::poll_transmit`] and [`Device::poll_event`];
/// what was refused may have caused output too. `now` never goes back.
pub struct Device {
    random: Box<dyn Random + Send>,
    clock: Clock,
    identity: Option<Arc<Identity>>,
    /// Kept because each flooded datagram needs its keys.
    gate: Gate,
    cookie_secret: CookieSecret,
    load: Load,
    table: Table,
    allowed: AllowedIps,
    /// When a peer next needs attention, by place; at most one entry for each.
    schedule: BTreeSet<(Instant, u32)>,
    /// At most `OUTPUTS_MAX` each; further ones are dropped and counted as `QueueFull`.
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    /// Discards of packets that were accepted earlier, until `poll_event` tells them.
    dropped: BTreeMap<Discard, u64>,
    unknown: Unknown,
    /// Of peers that were removed.
    former_traffic: Traffic,
    /// Staged packets of all peers: at most `STAGED_ALL_MAX`, then new ones are discarded.
    staged_packets: usize,
    mtu: usize,
    key_log: bool,
    defers: bool,
    /// At most `AGREEMENTS_MAX`; further messages are discarded.
    agreements: VecDeque<Agreement>,
    /// When data last came by a session that should have been replaced.
    overdue: Option<Instant>,
}

/// The time of day by the monotonic clock, and the timestamps that were made from it.
struct Clock {
    anchor: Instant,
    wall: SystemTime,
    /// Timestamps that are sent are newer.
    floor: Tai64n,
    newest_sent: Tai64n,
}

impl Device {
    /// Makes a device without key and peers; `wall` is the time of day at `now`.
    ///
    /// From then on the time of day advances with the monotonic clock, see
    /// [`Device::set_wall_clock`].
    #[must_use]
    pub fn new(now: Instant, wall: SystemTime, random: Box<dyn Random + Send>) -> Self {
        Self {
            random,
            clock: Clock {
                anchor: now,
                wall,
                floor: Tai64n::default(),
                newest_sent: Tai64n::default(),
            },
            identity: None,
            gate: Gate::default(),
            cookie_secret: CookieSecret::new(),
            load: Load::default(),
            table: Table::default(),
            allowed: AllowedIps::default(),
            schedule: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            dropped: BTreeMap::new(),
            unknown: Unknown::default(),
            former_traffic: Traffic::default(),
            staged_packets: 0,
            mtu: MTU_DEFAULT,
            key_log: false,
            defers: false,
            agreements: VecDeque::new(),
            overdue: None,
        }
    }

    /// Anchors the time of day anew; if it went back, timestamps still increase.
    pub fn set_wall_clock(&mut self, now: Instant, wall: SystemTime) {
        self.clock.floor = self.clock.floor.max(self.clock.newest_sent);
        self.clock.anchor = now;
        self.clock.wall = wall;
    }

    /// Returns the newest timestamp that was ever sent, to be kept on disk.
    #[must_use]
    pub fn timestamp_floor(&self) -> Tai64n {
        self.clock.floor.max(self.clock.newest_sent)
    }

    /// Makes every later timestamp newer than `floor`, so that a clock that went back between two
    /// runs does not lock us out.
    pub fn raise_timestamp_floor(&mut self, floor: Tai64n) {
        self.clock.floor = self.clock.floor.max(floor);
    }

    /// Sets the MTU of the tunnel, beyond which packets are not padded; 1,420 at first.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// Returns the MTU of the tunnel, see [`Device::set_mtu`].
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Sets or removes the private key.
    ///
    /// Another key than before ends every session and handshake; a peer with our own public key is
    /// removed. Nothing is sent: the next packet or [`Device::initiate`] begins a handshake.
    pub fn set_private_key(&mut self, now: Instant, secret: Option<StaticSecret>) {
        if secret.as_ref() == self.private_key() {
            return;
        }
        self.identity = secret.map(|secret| Arc::new(Identity::new(secret)));
        self.gate = Gate::new(self.public_key().as_ref());
        self.unknown.clear();
        self.agreements.clear();
        if let Some(place) = self.public_key().and_then(|key| self.table.by_key(&key)) {
            self.remove_peer(self.table.id(place));
        }
        let places: Vec<_> = self.table.places().collect();
        for place in places {
            self.table.drop_hot(place);
            let peer = self.table.peer_mut(place);
            peer.static_static = None;
            peer.handshake_sent = None;
            peer.timers.disarm(Timer::RetransmitHandshake);
            peer.timers.disarm(Timer::SendKeepalive);
            peer.timers.disarm(Timer::ZeroKeyMaterial);
            // Packets that wait are sent under the new key without waiting for another packet.
            if !peer.staged.is_empty() {
                peer.timers.arm(Timer::NewHandshake, now);
                self.reschedule(place);
            }
        }
    }

    /// Returns our public key.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.identity.as_ref().map(|identity| identity.public_key())
    }

    /// Returns what tells forged handshake messages on other threads, until the private key
    /// changes.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Returns our private key.
    #[must_use]
    pub fn private_key(&self) -> Option<&StaticSecret> {
        self.identity.as_ref().map(|identity| &identity.secret)
    }

    /// Adds a peer without endpoint and allowed IPs.
    pub fn add_peer(&mut self, now: Instant, key: PublicKey) -> Result<PeerId, AddPeerError> {
        if key.is_low_order() {
            return Err(AddPeerError::LowOrder);
        }
        self.add_peer_of_any_key(now, key)
    }

    /// Like [`Device::add_peer`], but takes keys of low order too, as the Linux kernel does: such
    /// a peer keeps its allowed IPs to itself, and nothing is ever sent to it or taken from it.
    pub fn add_peer_of_any_key(
        &mut self,
        _now: Instant,
        key: PublicKey,
    ) -> Result<PeerId, AddPeerError> {
        if let Some(id) = self.peer(&key) {
            return Err(AddPeerError::Exists(id));
        }
        if self.public_key() == Some(key) {
            return Err(AddPeerError::OwnKey);
        }
        self.table.insert(Peer::new(key)).ok_or(AddPeerError::Full)
    }

    /// Finds a peer by its key.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<PeerId> {
        self.table.by_key(key).map(|place| self.table.id(place))
    }

    /// Returns how many peers there are.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.table.len()
    }

    /// Removes a peer and drops its keys at once; false when it is gone already.
    ///
    /// Datagrams for it that were not polled yet are dropped.
    pub fn remove_peer(&mut self, peer: PeerId) -> bool {
        let Some(removed) = self.table.remove(peer) else {
            return false;
        };
        self.former_traffic.add(&removed.traffic);
        for prefix in &removed.allowed_ips {
            self.allowed.remove(*prefix);
        }
        if let Some(at) = removed.scheduled {
            self.schedule.remove(&(at, peer.index));
        }
        self.transmits
            .retain(|transmit| transmit.peer != Some(peer));
        self.staged_packets -= removed.staged.len();
        self.drop_later(Discard::UnknownPeer, removed.staged.len());
        true
    }

    /// Sets the preshared key, which counts from the next handshake; 32 zeros mean none.
    pub fn set_preshared_key(&mut self, peer: PeerId, key: Option<PresharedKey>) {
        if let Some(place) = self.table.place(peer) {
            let none = PresharedKey::new([0; 32]);
            self.table.peer_mut(place).preshared = key.filter(|key| *key != none);
        }
    }

    /// Sets where the peer is, until it is heard from elsewhere.
    pub fn set_endpoint(&mut self, peer: PeerId, endpoint: Option<SocketAddr>) {
        if let Some(place) = self.table.place(peer) {
            self.table.peer_mut(place).endpoint = endpoint;
        }
    }

    /// Keeps how many bytes the largest packet has that the path to a peer carries.
    pub fn set_path_mtu(&mut self, peer: PeerId, bytes: Option<NonZeroU16>) {
        if let Some(place) = self.table.place(peer) {
            self.table.peer_mut(place).path_mtu = bytes;
        }
    }

    /// Returns what [`Device::set_path_mtu`] was told last.
    #[must_use]
    pub fn path_mtu(&self, peer: PeerId) -> Option<NonZeroU16> {
        let place = self.table.place(peer)?;
        self.table.peer(place).path_mtu
    }

    /// Sets the interval of persistent keepalives in seconds; the first goes out at once.
    pub fn set_persistent_keepalive(
        &mut self,
        now: Instant,
        peer: PeerId,
        seconds: Option<NonZeroU16>,
    ) {
        let Some(place) = self.table.place(peer) else {
            return;
        };
        let peer = self.table.peer_mut(place);
        let first = peer.persistent_keepalive.is_none();
        peer.persistent_keepalive = seconds;
        match seconds {
            Some(seconds) => {
                let interval = Duration::from_secs(seconds.get().into());
                peer.timers.arm(Timer::PersistentKeepalive, now + interval);
                self.reschedule(place);
                if first {
                    self.send_persistent_keepalive(now, place);
                }
            }
            None => peer.timers.disarm(Timer::PersistentKeepalive),
        }
    }

    /// Gives a prefix to the peer, taking it from whoever had it.
    pub fn allow(&mut self, peer: PeerId, prefix: Prefix) {
        let Some(place) = self.table.place(peer) else {
            return;
        };
        if let Some(former) = self.allowed.insert(prefix, place) {
            self.table.peer_mut(former).allowed_ips.remove(&prefix);
        }
        self.table.peer_mut(place).allowed_ips.insert(prefix);
    }

    /// Takes a prefix from the peer; false when it had not this one.
    pub fn disallow(&mut self, peer: PeerId, prefix: Prefix) -> bool {
        let Some(place) = self.table.place(peer) else {
            return false;
        };
        let had = self.table.peer_mut(place).allowed_ips.remove(&prefix);
        if had {
            self.allowed.remove(prefix);
        }
        had
    }

    /// Takes all prefixes from the peer.
    pub fn clear_allowed_ips(&mut self, peer: PeerId) {
        if let Some(place) = self.table.place(peer) {
            for prefix in std::mem::take(&mut self.table.peer_mut(place).allowed_ips) {
                self.allowed.remove(prefix);
            }
        }
    }

    /// Returns the peer with the longest prefix that holds `destination`.
    #[must_use]
    pub fn route(&self, destination: IpAddr) -> Option<PeerId> {
        let place = self.allowed.lookup(destination)?;
        Some(self.table.id(place))
    }

    /// Begins a handshake now, or when `REKEY_TIMEOUT` has passed since the last message of one
    /// (whitepaper 6.1); a session that is made meanwhile serves as well.
    pub fn initiate(&mut self, now: Instant, peer: PeerId) {
        if let Some(place) = self.table.place(peer) {
            self.request_handshake(now, place, true);
            self.remember_request(now, place);
        }
    }

    /// Shows every peer.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus<'_>> {
        self.table.places().map(|place| self.status_at(place))
    }

    /// Adds up the traffic of all peers, those that were removed included: it only grows.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let mut all = self.former_traffic;
        for place in self.table.places() {
            all.add(&self.table.peer(place).traffic);
        }
        all
    }

    /// Shows the peers behind `last` in the order of [`Device::peers`], so that whoever shows very
    /// many can pause; `last` itself may be gone by then.
    pub fn peers_after(&self, last: Option<PeerId>) -> impl Iterator<Item = PeerStatus<'_>> {
        let first = last.map_or(0, |last| last.index.saturating_add(1));
        let places = self.table.places_from(first);
        places.map(|place| self.status_at(place))
    }

    /// Shows one peer.
    #[must_use]
    pub fn status(&self, peer: PeerId) -> Option<PeerStatus<'_>> {
        self.table.place(peer).map(|place| self.status_at(place))
    }

    /// Returns where a peer is.
    #[must_use]
    pub fn endpoint(&self, peer: PeerId) -> Option<SocketAddr> {
        self.table.peer(self.table.place(peer)?).endpoint
    }

    /// Tells everything about one peer, for whoever looks for a fault.
    #[must_use]
    pub fn details(&self, peer: PeerId) -> Option<Details> {
        let place = self.table.place(peer)?;
        Some(Details::of(self.table.peer(place)))
    }

    fn status_at(&self, place: u32) -> PeerStatus<'_> {
        let peer = self.table.peer(place);
        PeerStatus {
            id: self.table.id(place),
            public_key: peer.key,
            preshared_key: peer.preshared.as_ref(),
            endpoint: peer.endpoint,
            last_handshake: peer.completed.map(|(at, _)| at),
            last_handshake_wall: peer.completed.map(|(_, wall)| wall),
            traffic: peer.traffic,
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: &peer.allowed_ips,
            staged_packets: peer.staged.len(),
        }
    }

    /// Switches the key log: [`Event::KeyLog`] for each handshake from now on.
    pub fn set_key_log(&mut self, enabled: bool) {
        self.key_log = enabled;
    }

    /// Switches the keeping and reporting of initiations from unknown keys.
    pub fn set_unknown_initiators(&mut self, enabled: bool) {
        self.unknown.enabled = enabled;
        self.unknown.clear();
    }

    /// Tells whether within the last second data came by a session that a handshake should have
    /// replaced by now: its messages may be lost in a flood.
    #[must_use]
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.overdue.is_some_and(|at| now < at + OVERDUE_HOLD)
    }

    /// Lets the key agreements of handshake messages wait for [`Device::poll_agreement`], so that
    /// a thread of its own can compute them; at first they are computed at once.
    pub fn set_deferred_agreements(&mut self, deferred: bool) {
        self.defers = deferred;
    }

    /// Forces the load state, or leaves it to the rate of handshakes (`None`, as at first).
    pub fn set_load(&mut self, under_load: Option<bool>) {
        self.load.force(under_load);
    }

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front().or_else(|| {
            let (discard, count) = self.dropped.pop_first()?;
            Some(Event::Discarded { discard, count })
        })
    }

    /// Shows the sessions to tests that force their counters.
    #[cfg(test)]
    pub(crate) fn table_for_test(&self) -> &Table {
        &self.table
    }

    fn push_transmit(&mut self, peer: Option<u32>, destination: SocketAddr, datagram: Vec<u8>) {
        if self.transmits.len() >= OUTPUTS_MAX {
            self.drop_later(Discard::QueueFull, 1);
            return;
        }
        self.transmits.push_back(Transmit {
            peer: peer.map(|place| self.table.id(place)),
            destination,
            datagram,
        });
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() >= OUTPUTS_MAX {
            self.drop_later(Discard::QueueFull, 1);
        } else {
            self.events.push_back(event);
        }
    }

    fn drop_later(&mut self, discard: Discard, count: usize) {
        if count > 0 {
            *self.dropped.entry(discard).or_default() += count as u64;
        }
    }
}

impl Clock {
    fn wall(&self, now: Instant) -> SystemTime {
        let passed = now.saturating_duration_since(self.anchor);
        self.wall.checked_add(passed).unwrap_or(self.wall)
    }

    /// Returns a timestamp for a peer that got `last`: newer than that and than the floor.
    fn timestamp(&mut self, now: Instant, last: Tai64n) -> Tai64n {
        let least = self.floor.max(last);
        let mut timestamp = Tai64n::new(self.wall(now));
        if timestamp <= least {
            timestamp = least.successor();
        }
        self.newest_sent = self.newest_sent.max(timestamp);
        timestamp
    }
}

/// A tenth of a second of work for one core.
const AGREEMENTS_MAX: usize = 1_024;
/// More than one input can cause: a caller that drains never meets it.
const OUTPUTS_MAX: usize = 65_536;
/// Data by a session that was overdue says so for so long.
const OVERDUE_HOLD: Duration = Duration::from_secs(1);
/// 100 MB of packets of 1,500 bytes, for all peers that do not answer.
const STAGED_ALL_MAX: usize = 65_536;
