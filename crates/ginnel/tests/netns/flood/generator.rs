//! Sends handshake messages of strangers from many ports, as fast as it is told.
//!
//! It aims at loopback or at the outer addresses of namespaces that the tests made, and refuses
//! everything else.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use base64::Engine as _;
use wireguard::{COOKIE_REPLY, Device, INITIATION, PublicKey, RESPONSE, Random, StaticSecret};

use crate::world::{Space, now, outer};

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// An initiation of a stranger, whose mac1 is right: it costs a key agreement or a cookie.
    Valid,
    /// The same with a wrong mac1.
    Wrong,
    /// The same, cut short.
    Short,
    Response,
    CookieReply,
    Transport,
}

/// Datagrams a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) valid: u32,
    pub(crate) wrong: u32,
}

/// Datagrams after which a flood has reached its victim.
const UNDER_WAY: u64 = 1_000;

/// What went and what came back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_back: u64,
    pub(crate) time: Duration,
}

/// Sockets on many ports, and messages of many strangers.
pub(crate) struct Generator {
    sockets: Vec<UdpSocket>,
    to: SocketAddr,
    initiations: Vec<Vec<u8>>,
}

impl Sent {
    /// Returns datagrams a second.
    pub(crate) fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.datagrams).expect("a short flood")) / self.time.as_secs_f64()
    }
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Valid,
        Self::Wrong,
        Self::Short,
        Self::Response,
        Self::CookieReply,
        Self::Transport,
    ];
}

impl Generator {
    /// Prepares to send from `space` to `to`, whose public key is in base64.
    pub(crate) fn inside(space: &Space, to: SocketAddr, public_key: &str) -> Self {
        assert!(
            may_aim_at(to.ip()),
            "{to} is none of ours: nothing is sent there"
        );
        os::process::raise_descriptor_limit().expect("as many as we may have");
        let sockets = space.enter(|| {
            let any = SocketAddr::from((outer(0, to.is_ipv6()), 0));
            let bind = || UdpSocket::bind(any).expect("a free port");
            (0..PORTS).map(|_| bind()).collect::<Vec<_>>()
        });
        for socket in &sockets {
            socket.set_nonblocking(true).expect("a socket");
        }
        let key = base64::engine::general_purpose::STANDARD.decode(public_key);
        let key = PublicKey(key.expect("wg prints keys").try_into().expect("32 bytes"));
        Self {
            sockets,
            to,
            initiations: (0..STRANGERS).map(|_| initiation(key)).collect(),
        }
    }

    /// Floods until `done`; `begun` turns true when the flood is under way.
    pub(crate) fn run(&self, rates: Rates, begun: &AtomicBool, done: &AtomicBool) -> Sent {
        let mut sent = Sent::default();
        let start = now();
        let mut passed = [0_u64; 2];
        let mut turns = 0;
        while !done.load(Ordering::Relaxed) {
            let time = now() - start;
            for (kind, rate, count) in
                [(Kind::Valid, rates.valid, 0), (Kind::Wrong, rates.wrong, 1)]
            {
                let due = due(time, rate);
                // What a busy machine cannot send in time is left out.
                let from = passed[count].max(due.saturating_sub(BURST));
                (from..due).for_each(|number| self.send(kind, number, &mut sent));
                passed[count] = due;
            }
            // Each socket has its turn in time.
            self.collect(self.sockets.iter().skip(turns % 10).step_by(10), &mut sent);
            turns += 1;
            begun.store(sent.datagrams >= UNDER_WAY, Ordering::Relaxed);
            thread::sleep(TICK);
        }
        sent.time = now() - start;
        sent
    }

    /// Sends `count` datagrams of one kind and waits for answers until none came for `patience`.
    pub(crate) fn burst(&self, kind: Kind, count: u64, patience: Duration) -> Sent {
        let mut sent = Sent::default();
        for number in 0..count {
            while !self.try_send(kind, number, &mut sent) {
                thread::sleep(TICK);
            }
            if number % BURST == 0 {
                self.collect(self.sockets.iter(), &mut sent);
                thread::sleep(TICK);
            }
        }
        let mut last = now();
        while now() - last < patience {
            let before = sent.bytes_back;
            self.collect(self.sockets.iter(), &mut sent);
            if sent.bytes_back > before {
                last = now();
            }
            thread::sleep(TICK);
        }
        sent
    }

    fn send(&self, kind: Kind, number: u64, sent: &mut Sent) {
        // A full queue is as good as a sent datagram here.
        let _sent = self.try_send(kind, number, sent);
    }

    fn try_send(&self, kind: Kind, number: u64, sent: &mut Sent) -> bool {
        let number = usize::try_from(number).expect("64 bits");
        let mut message = self.initiations[number % STRANGERS].clone();
        match kind {
            Kind::Valid => {}
            Kind::Wrong => message[INITIATION - 20] ^= 1,
            Kind::Short => message.truncate(INITIATION - 1),
            Kind::Response => {
                message[0] = 2;
                message.truncate(RESPONSE);
            }
            Kind::CookieReply => {
                message[0] = 3;
                message.truncate(COOKIE_REPLY);
            }
            Kind::Transport => message[0] = 4,
        }
        let socket = &self.sockets[number % PORTS];
        let Ok(length) = socket.send_to(&message, self.to) else {
            return false;
        };
        sent.datagrams += 1;
        sent.bytes += u64::try_from(length).expect("64 bits");
        true
    }

    fn collect<'s>(&self, sockets: impl Iterator<Item = &'s UdpSocket>, sent: &mut Sent) {
        let mut buffer = [0; 2_048];
        for socket in sockets {
            while let Ok(length) = socket.recv(&mut buffer) {
                sent.bytes_back += u64::try_from(length).expect("64 bits");
            }
        }
    }
}

fn may_aim_at(ip: IpAddr) -> bool {
    ip.is_loopback()
        || [
            outer(0, false),
            outer(1, false),
            outer(0, true),
            outer(1, true),
        ]
        .contains(&ip)
}

fn due(time: Duration, rate: u32) -> u64 {
    let micros = u64::try_from(time.as_micros()).expect("less than an age");
    micros * u64::from(rate) / 1_000_000
}

struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}

fn initiation(key: PublicKey) -> Vec<u8> {
    let at: Instant = now();
    let mut device = Device::new(at, os::clock::wall(), Box::new(SystemRandom));
    device.set_private_key(at, Some(StaticSecret::new(os::random::bytes())));
    let peer = device.add_peer(at, key).expect("a good key");
    device.set_endpoint(peer, Some(([192, 0, 2, 1], 1).into()));
    device.initiate(at, peer);
    device.poll_transmit().expect("an initiation").datagram
}

#[test]
fn nothing_is_aimed_at_others() {
    for other in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
        assert!(!may_aim_at(other.parse().expect("an address")), "{other}");
    }
    assert!(may_aim_at("127.0.0.1".parse().expect("an address")));
}

const PORTS: usize = 1_000;
const STRANGERS: usize = 256;
/// Datagrams of one kind sent in one go, at most.
const BURST: u64 = 500;
const TICK: Duration = Duration::from_millis(1);
