//! A flood of malformed datagrams and packets changes nothing but counters
//! (20 million by default; `FLOOD_PACKETS` scales it).

use std::{
    env,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use netstack::{Config, Limits, Stack};
use packet::{ip, udp};
use sim::{Seed, beginning};
use wireguard::{
    COOKIE_REPLY, Device, HEADER, INITIATION, Prefix, Received, Seal, StaticSecret, padded,
};

/// Of reliability's programme, row 1: per submission.
const PACKETS: u64 = 20_000_000;

/// Both floods look at the memory of the one process that they share.
static ALONE: Mutex<()> = Mutex::new(());

/// How many of them go to the stack, which answers some; the rest go to the device.
const STACK_PERCENT: u64 = 25;

#[test]
fn a_flood_of_malformed_datagrams_leaves_the_session_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pair = Pair::new();
    let mut seed = Seed::new(1);
    let recorded = pair.handshake();
    let before = resident_kilobytes();
    let flood = packets() * (100 - STACK_PERCENT) / 100;
    let mut buffer = [0; 2_048];
    for number in 0..flood {
        let length = malformed_datagram(&mut seed, &recorded, &mut buffer);
        let port = 1_024 + u16::try_from(number % 1_000).expect("below 1,000");
        let source = SocketAddr::from(([203, 0, 113, 5], port));
        let received = pair
            .b
            .handle_datagram(pair.now, source, &mut buffer[..length]);
        let handled = matches!(received, Received::Handled);
        let delivered = matches!(received, Received::Packet { .. });
        assert!(!delivered, "datagram {number} delivered a packet");
        // So many replayed initiations put the device under load: it then asks each sender for a
        // cookie, which is smaller than the question and keeps no state.
        let answer = pair.b.poll_transmit().map(|transmit| transmit.datagram);
        assert_eq!(answer.is_some(), handled, "datagram {number} had an effect");
        if let Some(answer) = answer {
            assert_eq!((length, answer.len()), (INITIATION, COOKIE_REPLY));
            assert!(pair.b.poll_transmit().is_none());
        }
        if number % 1_000_000 == 0 {
            pair.exchange();
        }
    }
    pair.exchange();
    let grown = resident_kilobytes().saturating_sub(before);
    assert!(grown < 1_024, "the flood left {grown} KiB behind");
}

#[test]
fn a_flood_of_malformed_packets_leaves_the_stack_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let now = beginning();
    let mut stack = stack();
    let mut seed = Seed::new(2);
    let mut buffer = [0; 2_048];
    let mut out = [0; 1_500];
    let before = resident_kilobytes();
    let flood = packets() * STACK_PERCENT / 100;
    for number in 0..flood {
        let length = malformed_packet(&mut seed, &mut buffer);
        let taken = stack.handle_packet(now, &buffer[..length]);
        while let Some(length) = stack.poll_transmit(now, &mut out) {
            assert!(ip::parse(&out[..length]).is_ok());
        }
        // A fragment waits for the others.
        let fragment = |packet: ip::Packet<'_>| packet.header.fragment.is_some();
        assert!(
            taken.is_err() || ip::parse(&buffer[..length]).is_ok_and(fragment),
            "packet {number} was taken: {:02x?}",
            &buffer[..length]
        );
        assert!(
            stack.poll_event().is_none(),
            "packet {number} had an effect"
        );
    }
    let grown = resident_kilobytes().saturating_sub(before);
    assert!(grown < 1_024, "the flood left {grown} KiB behind");
}

/// Makes bytes that no device may act on: noise of every length, real messages with a few bits
/// flipped, cut or extended.
fn malformed_datagram(seed: &mut Seed, recorded: &[Vec<u8>], out: &mut [u8]) -> usize {
    let choice = seed.number();
    if choice.is_multiple_of(4) {
        let length = seed.below(200);
        for chunk in out[..length].chunks_mut(8) {
            chunk.copy_from_slice(&seed.number().to_be_bytes()[..chunk.len()]);
        }
        if length > 3 && choice & 4 == 0 {
            out[..4].copy_from_slice(&[1 + choice.to_be_bytes()[0] % 4, 0, 0, 0]);
        }
        return length;
    }
    let message = &recorded[seed.below(recorded.len())];
    let length = message.len();
    out[..length].copy_from_slice(message);
    match choice % 4 {
        1 => {
            let place = seed.below(length);
            out[place] ^= 1 << seed.below(8);
            length
        }
        2 => seed.below(length),
        // Recorded messages as they were: every one is a replay.
        _ => length,
    }
}

/// Makes a UDP packet for a port where nobody listens, with a byte changed.
fn malformed_packet(seed: &mut Seed, out: &mut [u8]) -> usize {
    let (source, destination) = (address(2), address(1));
    let payload = seed.bytes();
    let datagram = udp::Datagram {
        source_port: 9,
        destination_port: 9,
        payload: &payload,
    };
    let length = udp::HEADER + payload.len();
    let protocol = [ip::UDP, ip::TCP, ip::ICMPV6, 0, 43, 44, 60][seed.below(7)];
    let header = ip::Header {
        source,
        destination,
        next_header: protocol,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let front = ip::emit_header(&header, length, out);
    udp::emit(source, destination, &datagram, &mut out[front..]);
    for _ in 0..=seed.below(4) {
        let place = seed.below(front + length);
        out[place] ^= seed.number().to_be_bytes()[0];
    }
    front + length - seed.below(2) * seed.below(length)
}

struct Pair {
    a: Device,
    b: Device,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = beginning();
        let secrets = [1, 2].map(|byte| StaticSecret::new([byte; 32]));
        let publics = secrets.each_ref().map(StaticSecret::public_key);
        let [a, b] = secrets;
        let device = |secret, seed, peer: wireguard::PublicKey, inner, endpoint: SocketAddr| {
            let mut device = Device::new(now, SystemTime::UNIX_EPOCH, Box::new(Seed::new(seed)));
            device.set_private_key(now, Some(secret));
            let id = device.add_peer(now, peer).expect("room for one peer");
            device.set_endpoint(id, Some(endpoint));
            device.allow(id, Prefix::new(inner, 128).expect("128 bits fit"));
            device
        };
        let a = device(a, 3, publics[1], address(2), A_TO);
        let b = device(b, 4, publics[0], address(1), B_TO);
        Self { a, b, now }
    }

    /// Makes a session and returns every datagram that went to the second device.
    fn handshake(&mut self) -> Vec<Vec<u8>> {
        let mut recorded = Vec::new();
        let mut slot = packet();
        let length = slot.len() - HEADER - 32;
        assert!(matches!(
            self.a.seal(self.now, &mut slot, length),
            Seal::Staged { .. }
        ));
        for _ in 0..3 {
            while let Some(transmit) = self.a.poll_transmit() {
                recorded.push(transmit.datagram.clone());
                let mut datagram = transmit.datagram;
                self.b.handle_datagram(self.now, B_TO, &mut datagram);
            }
            while let Some(transmit) = self.b.poll_transmit() {
                let mut datagram = transmit.datagram;
                self.a.handle_datagram(self.now, A_TO, &mut datagram);
            }
        }
        while self.b.poll_event().is_some() {}
        assert!(recorded.len() >= 2, "an initiation and data");
        recorded
    }

    /// Sends one packet each way through the session.
    fn exchange(&mut self) {
        let mut slot = packet();
        let length = slot.len() - HEADER - 32;
        let Seal::Sealed { length, .. } = self.a.seal(self.now, &mut slot, length) else {
            panic!("the session is gone");
        };
        let received = self.b.handle_datagram(self.now, B_TO, &mut slot[..length]);
        assert!(matches!(received, Received::Packet { .. }), "{received:?}");
        let peer = self.b.peers().next().expect("one peer");
        assert_eq!(peer.endpoint, Some(B_TO), "the endpoint is where it was");
    }
}

/// Where the first device finds the second, and the other way round.
const A_TO: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 2);
const B_TO: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);

/// A packet in its slot: room for the header in front, for padding and tag behind.
fn packet() -> Vec<u8> {
    let header = ip::Header {
        source: address(1),
        destination: address(2),
        next_header: 59,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let length = padded(ip::V6_HEADER + 24);
    let mut slot = vec![0; HEADER + length + 32];
    ip::emit_header(&header, length - ip::V6_HEADER, &mut slot[HEADER..]);
    slot
}

fn stack() -> Stack {
    let mut stack = Stack::new(Config {
        addresses: vec![address(1)],
        mtu: 1_420,
        seed: [7; 32],
        limits: Limits {
            echo_timeout: Duration::from_secs(1),
            ..Limits::default()
        },
    });
    stack
        .listen(SocketAddr::new(address(1), 80), 8)
        .expect("a free port");
    stack
}

fn address(last: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into()
}

fn packets() -> u64 {
    let packets = env::var("FLOOD_PACKETS").ok();
    packets
        .and_then(|packets| packets.parse().ok())
        .unwrap_or(PACKETS)
}

/// Returns the memory that this process holds, where the system tells (proc_pid_statm(5)).
fn resident_kilobytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4
}
