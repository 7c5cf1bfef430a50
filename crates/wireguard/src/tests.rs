//! Two or more devices in virtual time, and the stories that they must live through.

mod agreement;
mod exhaustion;
mod flood;
mod forgery;
mod inbound;
mod keepalive;
mod lifetime;
mod load;
mod many;
mod replay;
mod unknown;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use crate::*;

/// A reproducible generator (SplitMix64); its seed names a run.
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The instant at which every story begins.
#[expect(
    clippy::disallowed_methods,
    reason = "an `Instant` cannot be made otherwise"
)]
pub(crate) fn base() -> Instant {
    static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *BASE.get_or_init(Instant::now)
}

pub(crate) fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn secret(n: u8) -> StaticSecret {
    StaticSecret::new([n; KEY])
}

pub(crate) fn device(n: u8) -> Device {
    let mut device = Device::new(base(), wall(), Box::new(Seeded::new(n.into())));
    device.set_private_key(base(), Some(secret(n)));
    device
}

pub(crate) fn prefix(text: &str) -> Prefix {
    let (address, bits) = text.split_once('/').expect("a slash");
    Prefix::new(address.parse().unwrap(), bits.parse().unwrap()).expect("bits fit")
}

/// An IPv6 packet of `length` bytes, at least its header.
pub(crate) fn packet(source: &str, destination: &str, length: usize) -> Vec<u8> {
    let header = packet::ip::Header {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        next_header: packet::ip::UDP,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let room = packet::ip::header_length(header.destination);
    let mut bytes = vec![0x5a; length];
    packet::ip::emit_header(&header, length - room, &mut bytes);
    bytes
}

/// Seals `bytes` by route.
pub(crate) fn seal(device: &mut Device, now: Instant, bytes: &[u8]) -> (Seal, Vec<u8>) {
    let mut slot = vec![0xee; padded(bytes.len()) + OVERHEAD];
    slot[HEADER..HEADER + bytes.len()].copy_from_slice(bytes);
    let seal = device.seal(now, &mut slot, bytes.len());
    if let Seal::Sealed { length, .. } = seal {
        slot.truncate(length);
    }
    (seal, slot)
}

/// One datagram as the net saw it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) at: Duration,
    pub(crate) from: usize,
    pub(crate) source: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// Two devices that are peers, and a net without loss and delay unless a story wants it.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) devices: [Device; 2],
    pub(crate) peers: [PeerId; 2],
    pub(crate) addresses: [SocketAddr; 2],
    /// Everything that was sent, lost or not.
    pub(crate) wire: Vec<Sent>,
    pub(crate) events: [Vec<Event>; 2],
    pub(crate) delivered: [Vec<Vec<u8>>; 2],
    pub(crate) discards: [BTreeMap<Discard, u64>; 2],
    /// Datagrams from this side are lost.
    pub(crate) deaf: [bool; 2],
}

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const INNER: [&str; 2] = ["fd00::a", "fd00::b"];

impl Pair {
    /// B knows where A is only after A spoke.
    pub(crate) fn new() -> Self {
        Self::with_addresses("192.0.2.1:1111", "198.51.100.2:2222")
    }

    pub(crate) fn with_addresses(a: &str, b: &str) -> Self {
        let mut devices = [device(1), device(2)];
        let keys = [secret(2).public_key(), secret(1).public_key()];
        let addresses = [a.parse().unwrap(), b.parse().unwrap()];
        let mut peers = Vec::new();
        for (side, device) in devices.iter_mut().enumerate() {
            let peer = device.add_peer(base(), keys[side]).expect("a new key");
            device.allow(peer, Prefix::host(INNER[1 - side].parse().unwrap()));
            peers.push(peer);
        }
        devices[A].set_endpoint(peers[A], Some(addresses[B]));
        Self {
            now: base(),
            devices,
            peers: [peers[A], peers[B]],
            addresses,
            wire: Vec::new(),
            events: Default::default(),
            delivered: Default::default(),
            discards: Default::default(),
            deaf: [false; 2],
        }
    }

    /// A pair with a session that both sides may use.
    pub(crate) fn connected() -> Self {
        let mut pair = Self::new();
        pair.send(A, 100);
        assert_eq!(pair.delivered[B].len(), 1);
        pair.send(B, 100);
        assert_eq!(pair.delivered[A].len(), 1);
        pair.clear();
        pair
    }

    pub(crate) fn clear(&mut self) {
        self.wire.clear();
        self.events = Default::default();
        self.delivered = Default::default();
        self.discards = Default::default();
    }

    /// Seals a packet of `length` bytes to the other side and lets the net deliver all.
    pub(crate) fn send(&mut self, side: usize, length: usize) {
        let bytes = packet(INNER[side], INNER[1 - side], length);
        self.send_bytes(side, &bytes);
        self.drive();
    }

    /// Seals and puts on the wire, but delivers nothing yet: returns the datagram.
    pub(crate) fn seal(&mut self, side: usize, length: usize) -> Vec<u8> {
        let bytes = packet(INNER[side], INNER[1 - side], length);
        match seal(&mut self.devices[side], self.now, &bytes) {
            (Seal::Sealed { .. }, datagram) => datagram,
            (other, _) => panic!("not sealed: {other:?}"),
        }
    }

    fn send_bytes(&mut self, side: usize, bytes: &[u8]) {
        match seal(&mut self.devices[side], self.now, bytes) {
            (Seal::Sealed { endpoint, .. }, datagram) => {
                self.transmit(side, endpoint, datagram);
            }
            (Seal::Staged { .. }, _) => {}
            (Seal::Discarded(discard), _) => self.count(side, discard),
        }
    }

    /// Delivers what was polled until both are silent.
    pub(crate) fn drive(&mut self) {
        loop {
            let mut quiet = true;
            for side in [A, B] {
                self.compute(side);
                while let Some(event) = self.devices[side].poll_event() {
                    self.events[side].push(event);
                }
                while let Some(sent) = self.devices[side].poll_transmit() {
                    quiet = false;
                    self.transmit(side, sent.destination, sent.datagram);
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Computes what waits to be, if this side defers that.
    pub(crate) fn compute(&mut self, side: usize) {
        let device = &mut self.devices[side];
        while let Some(mut agreement) = device.poll_agreement() {
            agreement.compute();
            while let Some(mut next) = device.handle_agreement(self.now, agreement) {
                next.compute();
                agreement = next;
            }
        }
    }

    pub(crate) fn transmit(&mut self, side: usize, destination: SocketAddr, bytes: Vec<u8>) {
        let source = self.addresses[side];
        self.wire.push(Sent {
            at: self.now - base(),
            from: side,
            source,
            bytes: bytes.clone(),
        });
        if !self.deaf[side] && destination == self.addresses[1 - side] {
            self.deliver(1 - side, source, bytes);
        }
    }

    /// Hands a datagram to one side, wherever it comes from; tells whether it was taken.
    pub(crate) fn deliver(&mut self, side: usize, source: SocketAddr, mut bytes: Vec<u8>) -> bool {
        let received = self.devices[side].handle_datagram(self.now, source, &mut bytes);
        match received {
            Received::Packet { packet, .. } => {
                let packet = packet.to_vec();
                self.delivered[side].push(packet);
                true
            }
            Received::Handled => true,
            Received::Discarded(discard) => {
                self.count(side, discard);
                false
            }
        }
    }

    fn count(&mut self, side: usize, discard: Discard) {
        *self.discards[side].entry(discard).or_default() += 1;
    }

    /// Lets `time` pass with every timer in its turn.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.drive();
        loop {
            let due = self.devices.iter().filter_map(Device::poll_timeout).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            for device in &mut self.devices {
                device.handle_timeout(self.now);
            }
            self.drive();
        }
        self.now = end;
    }

    /// Returns how many datagrams of a message type went over the wire.
    pub(crate) fn sent(&self, from: usize, kind: u8) -> usize {
        let of = |sent: &&Sent| sent.from == from && sent.bytes[0] == kind;
        self.wire.iter().filter(of).count()
    }

    pub(crate) fn endpoint(&self, side: usize) -> Option<SocketAddr> {
        self.devices[side]
            .status(self.peers[side])
            .unwrap()
            .endpoint
    }

    /// Both directions carry a packet.
    #[track_caller]
    pub(crate) fn assert_alive(&mut self) {
        for side in [A, B] {
            let before = self.delivered[1 - side].len();
            self.send(side, 60);
            assert_eq!(
                self.delivered[1 - side].len(),
                before + 1,
                "from side {side}"
            );
        }
    }
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_packet_is_staged_and_arrives_after_the_handshake() {
    let mut pair = Pair::new();
    pair.send(A, 100);
    assert_eq!(pair.delivered[B], [packet(INNER[A], INNER[B], 100)]);
    let kinds: Vec<_> = pair
        .wire
        .iter()
        .map(|sent| (sent.from, sent.bytes[0]))
        .collect();
    assert_eq!(kinds, [(A, 1), (B, 2), (A, 4)]);
    let lengths: Vec<_> = pair.wire.iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(lengths, [INITIATION, RESPONSE, 112 + OVERHEAD]);
    for side in [A, B] {
        let peer = pair.peers[side];
        assert!(pair.events[side].contains(&Event::HandshakeCompleted { peer }));
        let status = pair.devices[side].status(peer).unwrap();
        assert_eq!(status.last_handshake_wall, Some(wall()));
    }
    let (a, b) = (pair.peers[A], pair.peers[B]);
    let (a, b) = (
        pair.devices[A].status(a).unwrap(),
        pair.devices[B].status(b).unwrap(),
    );
    let expected = Traffic {
        received_datagrams: 1,
        received_bytes: 92,
        sent_datagrams: 2,
        sent_bytes: 148 + 144,
    };
    assert_eq!(a.traffic, expected);
    let (received, sent) = (b.traffic.received_bytes, b.traffic.sent_bytes);
    assert_eq!((received, sent), (148 + 144, 92));
    let received = b.traffic.received_datagrams;
    assert_eq!((received, b.traffic.sent_datagrams), (2, 1));
    // The sum of all peers never goes back.
    assert!(pair.devices[A].remove_peer(pair.peers[A]));
    assert_eq!(pair.devices[A].peer_count(), 0);
    assert_eq!(pair.devices[A].traffic(), expected);
}

#[test]
fn an_initiator_without_packets_confirms_by_a_keepalive() {
    let mut pair = Pair::new();
    let peer = pair.peers[A];
    pair.devices[A].initiate(pair.now, peer);
    pair.drive();
    let lengths: Vec<_> = pair.wire.iter().map(|sent| sent.bytes.len()).collect();
    assert_eq!(lengths, [INITIATION, RESPONSE, KEEPALIVE]);
    pair.send(B, 60);
    assert_eq!(pair.delivered[A].len(), 1);
}

#[test]
fn a_responder_sends_nothing_on_a_session_before_it_is_confirmed() {
    let mut pair = Pair::new();
    let (a, b) = (pair.peers[A], pair.peers[B]);
    pair.devices[B].set_endpoint(b, Some(pair.addresses[A]));
    pair.devices[A].initiate(pair.now, a);
    let initiation = pair.devices[A].poll_transmit().unwrap();
    assert!(pair.deliver(B, pair.addresses[A], initiation.datagram));
    let response = pair.devices[B].poll_transmit().unwrap();
    let bytes = packet(INNER[B], INNER[A], 60);
    assert_eq!(
        seal(&mut pair.devices[B], pair.now, &bytes).0,
        Seal::Staged { peer: b }
    );
    assert!(pair.devices[B].poll_transmit().is_none());
    assert!(pair.deliver(A, pair.addresses[B], response.datagram));
    pair.drive();
    assert_eq!(pair.delivered[A], [bytes]);
}

#[test]
fn plaintext_is_padded_to_sixteen_and_what_is_opened_is_trimmed() {
    let mut pair = Pair::connected();
    for length in 40..=90 {
        pair.clear();
        pair.send(A, length);
        assert_eq!(
            pair.wire[0].bytes.len(),
            length.next_multiple_of(16) + OVERHEAD
        );
        assert_eq!(pair.delivered[B][0].len(), length);
    }
}

#[test]
fn sixty_four_bytes_behind_a_valid_packet_are_trimmed() {
    let mut pair = Pair::connected();
    let peer = pair.peers[A];
    pair.devices[B].allow(pair.peers[B], prefix("10.0.0.1/32"));
    let mut bytes = packet("10.0.0.1", "10.0.0.2", 84);
    bytes.extend([0xaa; 64]);
    let mut slot = vec![0; bytes.len() + 64];
    slot[HEADER..HEADER + bytes.len()].copy_from_slice(&bytes);
    let sealed = pair.devices[A].seal_to(pair.now, peer, &mut slot, bytes.len());
    let Seal::Sealed { length, .. } = sealed else {
        panic!("{sealed:?}");
    };
    assert!(pair.deliver(B, pair.addresses[A], slot[..length].to_vec()));
    assert_eq!(pair.delivered[B], [bytes[..84].to_vec()]);
}

#[test]
fn inner_packets_that_are_none_are_dropped() {
    let mut pair = Pair::connected();
    let good = packet(INNER[A], INNER[B], 60);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let v4 = packet("10.0.0.1", "10.0.0.2", 40);
    let mut v4_short = v4.clone();
    v4_short[3] = 19;
    let mut v4_zero = v4.clone();
    v4_zero[2..4].fill(0);
    let mut v4_long = v4;
    v4_long[3] = 200;
    let cases = [
        changed(0, 0x00),
        changed(0, 0xf0),
        changed(5, 100),
        good[..30].to_vec(),
        vec![0x45],
        v4_short,
        v4_zero,
        v4_long,
    ];
    for case in cases {
        let mut slot = vec![0; padded(case.len()) + OVERHEAD];
        slot[HEADER..HEADER + case.len()].copy_from_slice(&case);
        let peer = pair.peers[A];
        let sealed = pair.devices[A].seal_to(pair.now, peer, &mut slot, case.len());
        assert!(matches!(sealed, Seal::Sealed { .. }));
        let received = pair.devices[B].handle_datagram(pair.now, pair.addresses[A], &mut slot);
        assert_eq!(received, Received::Discarded(Discard::NotIp), "{case:02x?}");
        let mut slot = vec![0; padded(case.len()) + OVERHEAD];
        slot[HEADER..HEADER + case.len()].copy_from_slice(&case);
        let refused = pair.devices[A].seal(pair.now, &mut slot, case.len());
        assert_eq!(refused, Seal::Discarded(Discard::NotIp));
    }
    pair.assert_alive();
}

#[test]
fn a_source_belongs_to_the_peer_with_the_longest_prefix() {
    // A may send from fd00::/16, but fd00::c belongs to somebody else.
    let mut pair = Pair::connected();
    pair.devices[B].allow(pair.peers[B], prefix("fd00::/16"));
    let other = pair.devices[B]
        .add_peer(pair.now, secret(3).public_key())
        .unwrap();
    pair.devices[B].allow(other, prefix("fd00::c/128"));
    for (source, taken) in [("fd00::d", true), ("fd00::c", false), ("fd01::1", false)] {
        let before = pair.delivered[B].len();
        pair.send_bytes(A, &packet(source, INNER[B], 60));
        assert_eq!(pair.delivered[B].len() > before, taken, "{source}");
    }
    assert_eq!(pair.discards[B][&Discard::SourceNotAllowed], 2);
    let route = |address: &str| pair.devices[B].route(address.parse::<IpAddr>().unwrap());
    assert_eq!(route("fd00::c"), Some(other));
    assert_eq!(route("fd00::d"), Some(pair.peers[B]));
    assert!(pair.devices[B].allows(other, "fd00::c".parse().unwrap()));
    assert!(!pair.devices[B].allows(other, "fd00::d".parse().unwrap()));
}

#[test]
fn the_first_packet_to_an_ipv6_endpoint_after_ipv4_use_goes_there() {
    let mut pair = Pair::connected();
    let key = secret(3).public_key();
    let sixth = pair.devices[A].add_peer(pair.now, key).unwrap();
    let endpoint: SocketAddr = "[2001:db8::3]:3333".parse().unwrap();
    pair.devices[A].set_endpoint(sixth, Some(endpoint));
    pair.devices[A].allow(sixth, prefix("fd03::/16"));
    pair.send(A, 60);
    pair.send_bytes(A, &packet(INNER[A], "fd03::1", 60));
    let sent = pair.devices[A].poll_transmit().unwrap();
    assert_eq!((sent.destination, sent.peer), (endpoint, Some(sixth)));
}

#[test]
fn both_sides_initiating_at_once_end_with_both_directions_open() {
    let mut pair = Pair::new();
    pair.devices[B].set_endpoint(pair.peers[B], Some(pair.addresses[A]));
    for side in [A, B] {
        let bytes = packet(INNER[side], INNER[1 - side], 60);
        pair.send_bytes(side, &bytes);
    }
    let first = [A, B].map(|side| pair.devices[side].poll_transmit().unwrap());
    for (side, sent) in first.into_iter().enumerate() {
        pair.transmit(side, sent.destination, sent.datagram);
    }
    pair.drive();
    assert_eq!([pair.delivered[A].len(), pair.delivered[B].len()], [1, 1]);
    for _ in 0..30 {
        pair.pass(SECOND);
        pair.assert_alive();
    }
    assert_eq!(pair.sent(A, 1) + pair.sent(B, 1), 2);
}

#[test]
fn a_key_log_holds_what_wireshark_needs_for_each_role() {
    let mut pair = Pair::new();
    let preshared = || Some(PresharedKey::new([9; KEY]));
    for side in [A, B] {
        pair.devices[side].set_preshared_key(pair.peers[side], preshared());
        pair.devices[side].set_key_log(true);
    }
    pair.send(A, 60);
    for side in [A, B] {
        let logs: Vec<_> = pair.events[side]
            .iter()
            .filter_map(|event| {
                if let Event::KeyLog { log, .. } = event {
                    Some(log.expose())
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(logs.len(), 1);
        assert_eq!(logs[0].lines().count(), 4);
        assert!(logs[0].starts_with("LOCAL_STATIC_PRIVATE_KEY = "));
        assert!(
            logs[0]
                .lines()
                .last()
                .unwrap()
                .starts_with("PRESHARED_KEY = ")
        );
    }
    let mut silent = Pair::new();
    silent.send(A, 60);
    let is_log = |event: &Event| matches!(event, Event::KeyLog { .. });
    assert!(!silent.events.iter().flatten().any(is_log));
}
