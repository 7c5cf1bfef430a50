//! The WireGuard device: single messages against a live session, and a pair driven by bytes.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{KeyInit, Mac, consts::U16},
};
use packet::ip;
use wireguard::{
    Device, HEADER, Prefix, PresharedKey, PublicKey, Received, Seal, StaticSecret, padded,
};

use crate::input::{Generator, Input, base};

/// One datagram from a stranger, as it came and with a right mac1: it is not answered by more
/// bytes than it has, delivers nothing, and the session beside it goes on.
pub fn messages(data: &[u8]) {
    thread_local! {
        static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
    }
    PAIR.with_borrow_mut(|pair| {
        let pair = pair.get_or_insert_with(|| {
            let mut pair = Pair::new(0);
            pair.recover();
            pair
        });
        for data in [data.to_vec(), with_mac1(data, &pair.sides[B].key)] {
            let stranger = SocketAddr::from(([203, 0, 113, 9], 9));
            let mut datagram = data.clone();
            let device = &mut pair.sides[B].device;
            match device.handle_datagram(pair.now, stranger, &mut datagram) {
                Received::Packet { .. } => panic!("a stranger delivered a packet"),
                Received::Handled | Received::Discarded(_) => (),
            }
            let mut answered = 0;
            while let Some(transmit) = device.poll_transmit() {
                assert_eq!(transmit.destination, stranger);
                answered += transmit.datagram.len();
            }
            assert!(answered <= data.len(), "no amplification");
            while device.poll_event().is_some() {}
        }
        pair.exchange(A);
        pair.exchange(B);
    });
}

/// Two devices on a link that a program of bytes delays, duplicates, drops and forges on: what is
/// opened was sealed, no packet comes twice, and afterwards a packet gets through again.
pub fn device(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pair = Pair::new(u64::from(input.byte()));
    let mut steps = 0;
    // Each handshake costs four key agreements; the bound keeps one run below a second.
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        pair.step(&mut input);
    }
    pair.recover();
}

const STEPS_MAX: usize = 400;
const A: usize = 0;
const B: usize = 1;
/// Datagrams in flight; at the bound new ones are lost.
const FLIGHT_MAX: usize = 256;
/// More outputs than any one input can have.
const OUTPUTS_MAX: usize = 4_096;

struct Side {
    device: Device,
    key: PublicKey,
    address: SocketAddr,
    inner: Ipv6Addr,
}

struct Flight {
    to: usize,
    source: SocketAddr,
    datagram: Vec<u8>,
}

struct Pair {
    sides: [Side; 2],
    now: Instant,
    flights: VecDeque<Flight>,
    next_id: u64,
    /// Packets that were sealed or staged and have not come out yet.
    sealed: BTreeSet<u64>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (now, wall) = base();
        let keys = [1, 2].map(|byte| StaticSecret::new([byte; 32]));
        let publics = keys.each_ref().map(StaticSecret::public_key);
        let mut index = 0;
        let sides = keys.map(|secret| {
            let last = u8::try_from(index + 1).expect("one or two");
            let random = Generator(seed << 8 | u64::from(last));
            let mut device = Device::new(now, wall, Box::new(random));
            device.set_private_key(now, Some(secret));
            let side = Side {
                device,
                key: publics[index],
                address: SocketAddr::from(([192, 0, 2, last], 51_820)),
                inner: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)),
            };
            index += 1;
            side
        });
        let mut pair = Self {
            sides,
            now,
            flights: VecDeque::new(),
            next_id: 0,
            sealed: BTreeSet::new(),
        };
        pair.add_peer(A);
        pair.add_peer(B);
        pair
    }

    /// Makes the other side a peer of `at`, anew if it is one.
    fn add_peer(&mut self, at: usize) {
        let (key, address, inner) = {
            let other = &self.sides[1 - at];
            (other.key, other.address, other.inner)
        };
        let device = &mut self.sides[at].device;
        if let Some(peer) = device.peer(&key) {
            assert!(device.remove_peer(peer));
            assert!(!device.remove_peer(peer), "a removed peer is gone");
        }
        let peer = device.add_peer(self.now, key).expect("room for one peer");
        device.set_endpoint(peer, Some(address));
        device.allow(peer, Prefix::new(inner.into(), 128).expect("128 bits fit"));
        assert_eq!(device.route(inner.into()), Some(peer));
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let at = usize::from(operation >> 7);
        match operation & 0x0f {
            0..=2 => self.send(at, usize::from(input.number() % 1_360)),
            3..=5 => self.deliver(0, false),
            6 => self.deliver(usize::from(input.byte()), true),
            7 => drop(self.take(usize::from(input.byte()))),
            8 => {
                let nth = usize::from(input.byte());
                let (place, change) = (usize::from(input.number()), input.byte());
                if let Some(mut flight) = self.take(nth) {
                    let length = flight.datagram.len();
                    flight.datagram[place % length] ^= change;
                    self.arrive(flight);
                }
            }
            9 => {
                self.now += input.duration();
                self.time_out();
            }
            10 => {
                let due = self
                    .sides
                    .iter()
                    .filter_map(|side| side.device.poll_timeout())
                    .min();
                self.now = due.map_or(self.now, |due| due.max(self.now));
                self.time_out();
            }
            11 => {
                let length = usize::from(input.byte());
                let datagram = with_mac1(input.bytes(length), &self.sides[at].key);
                let source = SocketAddr::from(([203, 0, 113, 7], 7));
                self.arrive(Flight {
                    to: at,
                    source,
                    datagram,
                });
            }
            12 => self.configure(at, input),
            13 => {
                let peer = self.peer(at);
                self.sides[at].device.initiate(self.now, peer);
                self.drain(at);
            }
            14 => self.add_peer(at),
            _ => {
                // The side moves to another address and port.
                let port = 1_024 + u16::from(input.byte());
                let ip = IpAddr::from([192, 0, 2, input.byte()]);
                self.sides[at].address = SocketAddr::new(ip, port);
            }
        }
    }

    fn configure(&mut self, at: usize, input: &mut Input<'_>) {
        let peer = self.peer(at);
        let now = self.now;
        let choice = input.byte();
        match choice % 4 {
            0 => {
                let key = PresharedKey::new([choice; 32]);
                self.sides[at].device.set_preshared_key(peer, Some(key));
            }
            1 => {
                let seconds = NonZeroU16::new(u16::from(choice / 4));
                self.sides[at]
                    .device
                    .set_persistent_keepalive(now, peer, seconds);
            }
            2 => self.sides[at].device.set_load(Some(choice & 0x80 != 0)),
            _ => self.sides[at].device.set_key_log(choice & 0x80 != 0),
        }
        self.drain(at);
    }

    fn peer(&self, at: usize) -> wireguard::PeerId {
        let key = &self.sides[1 - at].key;
        self.sides[at]
            .device
            .peer(key)
            .expect("each is the other's peer")
    }

    fn send(&mut self, at: usize, extra: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let (source, destination) = (self.sides[at].inner, self.sides[1 - at].inner);
        let header = ip::Header {
            source: source.into(),
            destination: destination.into(),
            next_header: 59,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let length = 40 + 8 + extra;
        let mut slot = vec![0; HEADER + padded(length) + 16];
        let packet = &mut slot[HEADER..HEADER + length];
        ip::emit_header(&header, 8 + extra, packet);
        packet[40..48].copy_from_slice(&id.to_be_bytes());
        self.sealed.insert(id);
        match self.sides[at].device.seal(self.now, &mut slot, length) {
            Seal::Sealed {
                endpoint, length, ..
            } => {
                assert_eq!(length % 16, 0, "padded, and no length leaks");
                slot.truncate(length);
                self.launch(at, endpoint, slot);
            }
            Seal::Staged { .. } | Seal::Discarded(_) => (),
        }
        self.drain(at);
    }

    fn launch(&mut self, from: usize, destination: SocketAddr, datagram: Vec<u8>) {
        let source = self.sides[from].address;
        let to = (0..2).find(|side| self.sides[*side].address == destination);
        if let Some(to) = to.filter(|_| self.flights.len() < FLIGHT_MAX) {
            self.flights.push_back(Flight {
                to,
                source,
                datagram,
            });
        }
    }

    fn take(&mut self, nth: usize) -> Option<Flight> {
        let count = self.flights.len();
        (count > 0)
            .then(|| self.flights.remove(nth % count))
            .flatten()
    }

    fn deliver(&mut self, nth: usize, keep: bool) {
        if let Some(flight) = self.take(nth) {
            if keep {
                let (to, source) = (flight.to, flight.source);
                let datagram = flight.datagram.clone();
                self.flights.push_back(Flight {
                    to,
                    source,
                    datagram,
                });
            }
            self.arrive(flight);
        }
    }

    fn arrive(&mut self, mut flight: Flight) {
        let to = flight.to;
        let expected = (self.sides[1 - to].inner, self.sides[to].inner);
        let device = &mut self.sides[to].device;
        match device.handle_datagram(self.now, flight.source, &mut flight.datagram) {
            Received::Packet { packet, .. } => {
                let parsed = ip::parse(packet).expect("an IP packet, trimmed");
                assert_eq!(parsed.header.source, IpAddr::from(expected.0));
                assert_eq!(parsed.header.destination, IpAddr::from(expected.1));
                let id = parsed
                    .payload
                    .first_chunk()
                    .expect("as long as it was sealed");
                let id = u64::from_be_bytes(*id);
                assert!(
                    self.sealed.remove(&id),
                    "packet {id} came twice, or was never sealed"
                );
            }
            Received::Handled | Received::Discarded(_) => (),
        }
        self.drain(to);
    }

    fn time_out(&mut self) {
        for at in [A, B] {
            self.sides[at].device.handle_timeout(self.now);
            self.drain(at);
            let next = self.sides[at].device.poll_timeout();
            assert!(
                next.is_none_or(|next| next > self.now),
                "what was due is done"
            );
        }
    }

    fn drain(&mut self, at: usize) {
        let mut outputs = 0;
        while let Some(transmit) = self.sides[at].device.poll_transmit() {
            self.launch(at, transmit.destination, transmit.datagram);
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "outputs end");
        }
        while self.sides[at].device.poll_event().is_some() {
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "outputs end");
        }
    }

    /// Makes the world good again and waits until packets get through both ways.
    fn recover(&mut self) {
        self.flights.clear();
        for at in [A, B] {
            let peer = self.peer(at);
            let address = self.sides[1 - at].address;
            let device = &mut self.sides[at].device;
            device.set_preshared_key(peer, None);
            device.set_load(Some(false));
            device.set_endpoint(peer, Some(address));
        }
        // Two sides at one address cannot be told apart by the link.
        if self.sides[A].address == self.sides[B].address {
            return;
        }
        for from in [A, B] {
            let arrived = (0..RECOVERY_SECONDS).any(|_| {
                let first = self.next_id;
                self.send(from, 0);
                for _ in 0..16 {
                    while !self.flights.is_empty() {
                        self.deliver(0, false);
                    }
                    if !self.sealed.contains(&first) {
                        return true;
                    }
                    self.now += Duration::from_millis(100);
                    self.time_out();
                }
                false
            });
            assert!(
                arrived,
                "a packet gets through once the network is good again"
            );
        }
    }

    /// Sends one packet through a session that stands.
    fn exchange(&mut self, from: usize) {
        let id = self.next_id;
        self.send(from, 10);
        while !self.flights.is_empty() {
            self.deliver(0, false);
        }
        assert!(!self.sealed.contains(&id), "the session goes on");
    }
}

/// Until the sessions of before are dead (`REJECT_AFTER_TIME`), a side may seal with a key that
/// the other has lost; it notices after `KEEPALIVE_TIMEOUT + REKEY_TIMEOUT`.
const RECOVERY_SECONDS: usize = 300;

/// Writes a right mac1 for the receiver into a message that has one (whitepaper 5.4.4).
fn with_mac1(data: &[u8], receiver: &PublicKey) -> Vec<u8> {
    let mut data = data.to_vec();
    if data.len() < 32 {
        return data;
    }
    let at = data.len() - 32;
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(receiver.0)
        .finalize();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).expect("a key of 32 bytes");
    let mac = mac.chain_update(&data[..at]).finalize().into_bytes();
    data[at..at + 16].copy_from_slice(&mac);
    data
}

/// Returns the messages of a real handshake and what follows, for the corpus.
#[must_use]
pub fn conversation(seed: u64) -> Vec<Vec<u8>> {
    let mut pair = Pair::new(seed);
    let mut messages = Vec::new();
    pair.send(A, 20);
    while let Some(flight) = pair.take(0) {
        messages.push(flight.datagram.clone());
        pair.arrive(flight);
    }
    pair.sides[B].device.set_load(Some(true));
    pair.now += Duration::from_secs(6);
    let peer = pair.peer(A);
    pair.sides[A].device.initiate(pair.now, peer);
    pair.drain(A);
    while let Some(flight) = pair.take(0) {
        messages.push(flight.datagram.clone());
        pair.arrive(flight);
    }
    messages
}
