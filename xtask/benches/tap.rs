//! A node that seals and opens packets while a capture runs, against the same without one.
//!
//! No socket and no interface is touched: with them each packet costs more, and a capture the same.

use std::{
    hint::black_box,
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use model::config::Config;
use node::{
    Attachment, Node, Outcome,
    capture::{Settings, buffer},
};
use packet::{ecn::Ecn, ip, pcap_filter::Filter};
use wireguard::{HEADER, OVERHEAD, Random, padded};

/// How many packets one measurement takes; the best of [`ROUNDS`] counts, for it was disturbed
/// least.
const PACKETS: u32 = 2_000;
const ROUNDS: u32 = 60;

/// What is captured.
#[derive(Clone, Copy)]
enum Captured {
    /// Both interfaces, with a filter that wants none of the packets.
    Nothing,
    /// Both interfaces, and what is written is taken as a reader would.
    All,
}

fn main() {
    for length in [64, 1_408] {
        for (name, captured) in [("no packet", Captured::Nothing), ("all", Captured::All)] {
            let mut pair = Pair::new();
            let mut best = [[Duration::MAX; 2]; 2];
            // By turns, so that what else the machine does meets both.
            for _ in 0..ROUNDS {
                for (place, captured) in [Some(captured), None].into_iter().enumerate() {
                    pair.capture(captured);
                    for (best, time) in best.iter_mut().zip(pair.pass(length)) {
                        best[place] = best[place].min(time);
                    }
                    pair.end();
                }
            }
            let [sent, received] = best;
            print(&format!("send {length} B, {name} captured"), sent);
            print(&format!("receive {length} B, {name} captured"), received);
        }
    }
}

fn print(case: &str, [ours, baseline]: [Duration; 2]) {
    let nanos = |duration: Duration| duration.as_secs_f64() * 1e9 / f64::from(PACKETS);
    let (ours, baseline) = (nanos(ours), nanos(baseline));
    writeln!(std::io::stdout(), "{case}\t{ours:.1}\t{baseline:.1}").expect("somebody reads");
}

struct Pair {
    nodes: [Node; 2],
    now: Instant,
    taken: node::capture::Buffer,
}

const ADDRESSES: [&str; 2] = ["192.0.2.1:1", "192.0.2.2:2"];

impl Pair {
    fn new() -> Self {
        let now = now();
        let key = |side: usize| {
            let secret = wireguard::StaticSecret::new([[1; 32], [2; 32]][side]);
            let public = model::key::PublicKey(secret.public_key().0);
            (model::key::SecretKey::new(*secret.expose()), public)
        };
        let node = |side: usize| {
            let (secret, _) = key(side);
            let (_, public) = key(1 - side);
            let text = format!(
                "[Interface]\nPrivateKey = {}\nAddress = 10.0.0.{}/32\n[Peer]\nPublicKey = \
                 {public}\nAllowedIPs = 10.0.0.0/24\nEndpoint = {}\n",
                secret.to_base64().as_str(),
                side + 1,
                ADDRESSES[1 - side],
            );
            let config = Config::parse(text.as_bytes()).expect("a good configuration");
            let random = Box::new(Counter(u8::try_from(side).expect("small")));
            let wall = SystemTime::UNIX_EPOCH;
            let mut node = Node::new(now, wall, random, &secret, Attachment::Tun);
            node.apply_config(now, &config);
            node
        };
        let mut pair = Self {
            nodes: [node(0), node(1)],
            now,
            taken: buffer(),
        };
        pair.shake_hands();
        pair
    }

    fn shake_hands(&mut self) {
        let mut slot = slot(64);
        let staged = self.nodes[0].handle_packet(self.now, &mut slot, 64);
        assert_eq!(staged, Outcome::Nothing);
        let mut buffer = vec![0; Node::DATAGRAM_MAX];
        for side in [0, 1, 0] {
            while let Some((_, length)) = self.nodes[side].poll_transmit(self.now, &mut buffer) {
                let datagram = &mut buffer[..length];
                let other = &mut self.nodes[1 - side];
                other.handle_datagram(self.now, address(side), Ecn::NotEct, datagram);
            }
        }
    }

    /// Begins a capture at both nodes, if one is wanted.
    fn capture(&mut self, captured: Option<Captured>) {
        let Some(captured) = captured else { return };
        let filter = match captured {
            Captured::Nothing => Some("tcp port 4999 and host 203.0.113.9"),
            Captured::All => None,
        };
        for node in &mut self.nodes {
            let settings = Settings {
                application: "bench".to_owned(),
                inner: true,
                outer: true,
                filter: filter.map(|text| Filter::parse(text).expect("a filter")),
                keys: false,
                port: 1,
                packets_max: None,
                bytes_max: None,
            };
            assert!(node.start_capture(self.now, SystemTime::UNIX_EPOCH, settings));
        }
    }

    fn end(&mut self) {
        for node in &mut self.nodes {
            node.end_capture(self.now);
        }
    }

    /// Sends packets through both nodes; returns what sealing and what opening took.
    fn pass(&mut self, length: usize) -> [Duration; 2] {
        let mut slots: Vec<_> = (0..PACKETS).map(|_| slot(length)).collect();
        let mut lengths = Vec::new();
        let begin = now();
        for slot in &mut slots {
            match self.nodes[0].handle_packet(self.now, slot, length) {
                Outcome::Send { datagram, .. } => lengths.push(datagram.len()),
                Outcome::Nothing | Outcome::Refused | Outcome::Packet(_) => {
                    panic!("the session is gone")
                }
            }
        }
        self.take(0);
        let sealed = now();
        for (slot, length) in slots.iter_mut().zip(lengths) {
            let datagram = &mut slot[..length];
            let node = &mut self.nodes[1];
            let received = node.handle_datagram(self.now, address(0), Ecn::NotEct, datagram);
            assert!(matches!(black_box(received), Outcome::Packet(_)));
        }
        self.take(1);
        [sealed - begin, now() - sealed]
    }

    /// Takes what was captured, as a reader would.
    fn take(&mut self, side: usize) {
        if let Some(capture) = self.nodes[side].capture() {
            capture.take(&mut self.taken);
            black_box(self.taken.len());
        }
    }
}

fn address(side: usize) -> SocketAddr {
    ADDRESSES[side].parse().expect("an address")
}

fn slot(length: usize) -> Vec<u8> {
    let mut slot = vec![0; OVERHEAD + padded(length)];
    let header = ip::Header {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        next_header: 59,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    ip::emit_header(&header, length - ip::V4_HEADER, &mut slot[HEADER..]);
    slot
}

struct Counter(u8);

impl Random for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(5).wrapping_add(77);
            *byte = self.0;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}
