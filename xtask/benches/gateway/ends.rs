//! The peers: what they send through the gateway, and what comes out of it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant, SystemTime},
};

use model::address::{Kind, OrgPrefix};
use os::{
    clock::Clock,
    udp::{Batch, Envelope, Options, Socket},
};
use packet::{ip, udp};
use wireguard::{Device, HEADER, OVERHEAD, PeerId, Prefix, Received, Seal, StaticSecret, padded};

/// Length of every IP packet: a gateway passes on up to 1,280 bytes to a peer that has not told it
/// what its path carries, as these do not, and a kernel's ICMP errors have just these.
pub(crate) const PACKET: u16 = 1_264;

/// Packets on their way through the gateway, over all peers: less than any of its queues hold.
const WINDOW: u32 = 512;

/// After so long without a packet, what is on its way counts as lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// One datagram in so many is opened and looked at; the others are only counted, so that the
/// peers cost less than the gateway.
const OPENED: u32 = 16;

/// The peers of one run.
pub(crate) struct Ends {
    clock: Clock,
    ends: Vec<End>,
    batch: Batch,
    run: Vec<u8>,
    /// Datagrams with data that have come out, over all runs.
    counted: u32,
}

struct End {
    device: Device,
    gateway: PeerId,
    socket: Socket,
    /// What it sends: one UDP datagram to the peer opposite.
    packet: Vec<u8>,
}

/// What one exchange has moved.
pub(crate) struct Exchanged {
    pub(crate) received: u32,
    pub(crate) lost: u32,
    pub(crate) took: Duration,
}

struct OsRandom;

impl wireguard::Random for OsRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}

/// The private key of the gateway.
pub(crate) fn gateway_secret() -> [u8; 32] {
    [0x77; 32]
}

/// The private key of a peer.
pub(crate) fn secret(number: u16) -> StaticSecret {
    let mut bytes = [0x42; 32];
    // Not at the ends, where X25519 fixes bits (RFC 7748, 5).
    bytes[8..10].copy_from_slice(&number.to_be_bytes());
    StaticSecret::new(bytes)
}

/// The prefix that all peers are in.
pub(crate) fn prefix() -> OrgPrefix {
    OrgPrefix::new([0x51, 0x6d, 0x77, 0, 1])
}

/// The address of a peer.
pub(crate) fn address(number: u16) -> Ipv6Addr {
    // Scattered, as real ids are.
    let id = (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    prefix().address(Kind::Node, id)
}

impl Ends {
    pub(crate) fn new(count: u16, seed: u16) -> Self {
        let mut clock = Clock::start();
        let now = clock.now();
        let ends =
            (0..count).map(|number| End::new(now, number, (number + count / 2) % count, seed));
        Self {
            ends: ends.collect(),
            clock,
            batch: Batch::default(),
            run: vec![0; 64 << 10],
            counted: 0,
        }
    }

    /// Makes a session between each peer and the gateway at `port`.
    pub(crate) fn shake_hands(&mut self, port: u16) {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for end in &mut self.ends {
            let deadline = self.clock.now() + Duration::from_secs(30);
            end.device.set_endpoint(end.gateway, Some(to));
            while !end.has_session(self.clock.now()) {
                let now = self.clock.now();
                assert!(now < deadline, "the gateway answers");
                end.device.initiate(now, end.gateway);
                end.device.handle_timeout(now);
                end.flush();
                thread::sleep(Duration::from_micros(500));
                end.receive(now, &mut self.batch, || true);
            }
            // The keepalive that confirms the session.
            end.flush();
        }
    }

    /// Sends for so many seconds, each peer `burst` packets in its turn, and waits for the rest.
    pub(crate) fn exchange(&mut self, burst: usize, seconds: u64) -> Exchanged {
        let began = self.clock.now();
        let end = began + Duration::from_secs(seconds);
        let (mut now, mut progress) = (began, began);
        let (mut sent, mut received, mut given_up) = (0_u32, 0_u32, 0_u32);
        let (mut sender, mut receiver) = (0, 0);
        let burst_packets = u32::try_from(burst).expect("a run is short");
        loop {
            // What was given up may still come.
            let flying = |sent: u32, received| sent.saturating_sub(received + given_up);
            while now < end && flying(sent, received) + burst_packets <= WINDOW {
                self.ends[sender].send(now, &mut self.run, burst);
                sent += burst_packets;
                sender = (sender + 1) % self.ends.len();
            }
            // Peers receive in the order in which those opposite have sent.
            let before = received;
            for _ in 0..self.ends.len() {
                let count = self.receive(now, receiver);
                receiver = (receiver + 1) % self.ends.len();
                received += count;
                if count > 0 && flying(sent, received) + burst_packets <= WINDOW {
                    break;
                }
            }
            let idle = flying(sent, received) == 0;
            now = self.clock.now();
            if received > before {
                progress = now;
            } else if now > progress + PATIENCE || idle {
                if now >= end {
                    break;
                }
                given_up = sent.saturating_sub(received);
                progress = now;
            } else {
                thread::sleep(Duration::from_micros(20));
            }
        }
        Exchanged {
            received,
            lost: sent.saturating_sub(received),
            took: now - began,
        }
    }

    fn receive(&mut self, now: Instant, receiver: usize) -> u32 {
        let counted = &mut self.counted;
        self.ends[receiver].receive(now, &mut self.batch, || {
            *counted += 1;
            counted.is_multiple_of(OPENED)
        })
    }
}

impl End {
    fn new(now: Instant, number: u16, opposite: u16, seed: u16) -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + u64::from(seed));
        let mut device = Device::new(now, wall, Box::new(OsRandom));
        device.set_private_key(now, Some(secret(number)));
        let key = StaticSecret::new(gateway_secret()).public_key();
        let gateway = device.add_peer(now, key).expect("the first peer");
        let inside = Prefix::new(IpAddr::V6(prefix().network()), 48);
        device.allow(gateway, inside.expect("at most 128 bits"));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = Options {
            mark: 0,
            buffer_bytes: 4 << 20,
            singly: false,
        };
        Self {
            device,
            gateway,
            socket: Socket::bind(local, &options).expect("a free port"),
            packet: datagram(address(number), address(opposite)),
        }
    }

    fn has_session(&self, now: Instant) -> bool {
        self.device.sealing(now, self.gateway).is_some()
    }

    fn flush(&mut self) {
        while let Some(transmit) = self.device.poll_transmit() {
            let sent = self
                .socket
                .send(&Envelope::to(transmit.destination), &transmit.datagram);
            sent.expect("loopback takes it");
        }
        while self.device.poll_event().is_some() {}
    }

    /// Seals `count` packets and sends them with one call.
    fn send(&mut self, now: Instant, run: &mut [u8], count: usize) {
        let length = self.packet.len();
        let (sealed, room) = (sealed(length), padded(length) + OVERHEAD);
        let mut to = None;
        for index in 0..count {
            // The next slot begins where this datagram ends.
            let slot = &mut run[index * sealed..index * sealed + room];
            slot[HEADER..HEADER + length].copy_from_slice(&self.packet);
            match self.device.seal(now, slot, length) {
                Seal::Sealed {
                    endpoint,
                    length: total,
                    ..
                } => {
                    assert_eq!(total, sealed, "padded at most to the MTU");
                    to = Some(endpoint);
                }
                Seal::Staged { .. } | Seal::Discarded(_) => panic!("the session is alive"),
            }
        }
        let to = to.expect("at least one packet");
        let sent = self
            .socket
            .send_run(&Envelope::to(to), &run[..count * sealed], sealed);
        sent.expect("loopback takes it");
    }

    /// Takes what has come and returns how many data packets it was; `opens` chooses those that
    /// are opened.
    fn receive(&mut self, now: Instant, batch: &mut Batch, mut opens: impl FnMut() -> bool) -> u32 {
        let mut count = 0;
        let sealed = sealed(self.packet.len());
        if self.socket.recv_batch(batch).is_err() {
            return 0;
        }
        for datagram in batch.datagrams() {
            // A kernel that forwards also sends ICMP redirects.
            let is_data = datagram.bytes.len() == sealed;
            if !is_data {
                self.device
                    .handle_datagram(now, datagram.source, datagram.bytes);
                continue;
            }
            count += 1;
            if opens() {
                match self
                    .device
                    .handle_datagram(now, datagram.source, datagram.bytes)
                {
                    Received::Packet { packet, .. } => {
                        assert_eq!(packet.len(), self.packet.len(), "it came through whole");
                    }
                    Received::Handled | Received::Discarded(_) => panic!("a packet is opened"),
                }
            }
        }
        count
    }
}

/// How long a datagram with a packet of that length is: padding stops at the MTU, which is the
/// length of ours.
fn sealed(length: usize) -> usize {
    length + OVERHEAD
}

fn datagram(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
    let mut packet = vec![0; usize::from(PACKET)];
    let payload = vec![0x67; packet.len() - ip::V6_HEADER - udp::HEADER];
    let header = ip::Header {
        source,
        destination,
        next_header: ip::UDP,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let at = ip::emit_header(&header, udp::HEADER + payload.len(), &mut packet);
    let datagram = udp::Datagram {
        source_port: 40_000,
        destination_port: 5_001,
        payload: &payload,
    };
    udp::emit(source, destination, &datagram, &mut packet[at..]);
    packet
}
