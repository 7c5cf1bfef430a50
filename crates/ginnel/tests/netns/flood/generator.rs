//! Sends handshake messages of strangers from many ports, as fast as it is told.
//!
//! It aims at loopback or at the outer addresses of namespaces that the tests made, and refuses
//! everything else.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use base64::Engine as _;
use os::udp::{Batch, Envelope, Options, Socket};
use wireguard::{COOKIE_REPLY, Device, INITIATION, PublicKey, RESPONSE, Random, StaticSecret};

use crate::world::{SHORT, Space, now, outer, within};

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
    /// An initiation of somebody who is known, which was answered before.
    Replayed,
}

/// Datagrams a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) valid: u32,
    pub(crate) wrong: u32,
    /// Those that one call sends pass as one until they arrive; else each is sent by itself.
    pub(crate) joined: bool,
}

/// Datagrams after which a flood has reached its victim.
const UNDER_WAY: u64 = 1_000;

/// What went and what came back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_back: u64,
    /// Handshakes that were answered.
    pub(crate) responses: u64,
    pub(crate) time: Duration,
}

/// Sockets on many ports, and messages of many strangers.
pub(crate) struct Generator {
    sockets: Vec<Socket>,
    to: SocketAddr,
    victim: PublicKey,
    initiations: Vec<Vec<u8>>,
    /// See [`Kind::Replayed`].
    replayed: Option<Vec<u8>>,
}

impl Sent {
    /// Returns datagrams a second.
    pub(crate) fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.datagrams).expect("a short flood")) / self.time.as_secs_f64()
    }
}

impl Kind {
    pub(crate) const STRANGERS: [Self; 6] = [
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
            let bind = || Socket::bind(any, &Options::default()).expect("a free port");
            (0..PORTS).map(|_| bind()).collect::<Vec<_>>()
        });
        let key = base64::engine::general_purpose::STANDARD.decode(public_key);
        let key = PublicKey(key.expect("wg prints keys").try_into().expect("32 bytes"));
        Self {
            sockets,
            to,
            victim: key,
            initiations: (0..STRANGERS).map(|_| initiation(key, None)).collect(),
            replayed: None,
        }
    }

    /// Shakes hands as whoever has `private_key`, and remembers how for [`Kind::Replayed`].
    pub(crate) fn shake_hands(&mut self, private_key: &str) {
        let key = base64::engine::general_purpose::STANDARD.decode(private_key.trim());
        let key: [u8; 32] = key.expect("base64").try_into().expect("32 bytes");
        let (mut sent, mut batch) = (Sent::default(), Batch::default());
        // Under load, which does not end at once, it gets a cookie at first.
        within(SHORT, "an answer to somebody who is known", || {
            let message = initiation(self.victim, Some(StaticSecret::new(key)));
            self.replayed = Some(message);
            assert!(self.try_send(Kind::Replayed, 0, 1, &mut sent));
            thread::sleep(TICK * 100);
            self.collect(self.sockets.iter().take(1), &mut batch, &mut sent);
            sent.responses > 0
        });
    }

    /// Floods until `done`; `begun` turns true when the flood is under way.
    pub(crate) fn run(&self, rates: Rates, begun: &AtomicBool, done: &AtomicBool) -> Sent {
        let (mut sent, mut batch) = (Sent::default(), Batch::default());
        for socket in &self.sockets {
            socket.set_segments(rates.joined);
        }
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
                for group in from / TOGETHER..due / TOGETHER {
                    // A full queue is as good as a sent datagram here.
                    let _sent = self.try_send(kind, group, TOGETHER, &mut sent);
                }
                passed[count] = due;
            }
            // Each socket has its turn in time.
            self.collect(
                self.sockets.iter().skip(turns % 10).step_by(10),
                &mut batch,
                &mut sent,
            );
            turns += 1;
            begun.store(sent.datagrams >= UNDER_WAY, Ordering::Relaxed);
            thread::sleep(TICK);
        }
        sent.time = now() - start;
        sent
    }

    /// Sends `count` datagrams of one kind and waits for answers until none came for `patience`.
    pub(crate) fn burst(&self, kind: Kind, count: u64, patience: Duration) -> Sent {
        let (mut sent, mut batch) = (Sent::default(), Batch::default());
        for number in 0..count {
            while !self.try_send(kind, number, 1, &mut sent) {
                thread::sleep(TICK);
            }
            if number % BURST == 0 {
                self.collect(self.sockets.iter(), &mut batch, &mut sent);
                thread::sleep(TICK);
            }
        }
        let mut last = now();
        while now() - last < patience {
            let before = sent.bytes_back;
            self.collect(self.sockets.iter(), &mut batch, &mut sent);
            if sent.bytes_back > before {
                last = now();
            }
            thread::sleep(TICK);
        }
        sent
    }

    /// Sends `count` messages by the socket of `number`; false when none was taken.
    fn try_send(&self, kind: Kind, number: u64, count: u64, sent: &mut Sent) -> bool {
        let place = |number: u64| usize::try_from(number).expect("64 bits");
        let mut bytes = Vec::new();
        let mut length = 0;
        for message in number * count..(number + 1) * count {
            let mut message = match (&self.replayed, kind) {
                (Some(replayed), Kind::Replayed) => replayed.clone(),
                _ => self.initiations[place(message) % STRANGERS].clone(),
            };
            match kind {
                Kind::Valid | Kind::Replayed => {}
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
            length = message.len();
            bytes.append(&mut message);
        }
        let socket = &self.sockets[place(number) % PORTS];
        let Ok(taken) = socket.send_run(&Envelope::to(self.to), &bytes, length) else {
            return false;
        };
        sent.datagrams += u64::try_from(taken / length).expect("64 bits");
        sent.bytes += u64::try_from(taken).expect("64 bits");
        true
    }

    fn collect<'s>(
        &self,
        sockets: impl Iterator<Item = &'s Socket>,
        batch: &mut Batch,
        sent: &mut Sent,
    ) {
        for socket in sockets {
            while socket.recv_batch(batch).is_ok() {
                for datagram in batch.datagrams() {
                    sent.bytes_back += u64::try_from(datagram.bytes.len()).expect("64 bits");
                    sent.responses += u64::from(datagram.bytes.len() == RESPONSE);
                }
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

/// Makes one of `whom`, or of a stranger.
fn initiation(key: PublicKey, whom: Option<StaticSecret>) -> Vec<u8> {
    let at: Instant = now();
    let mut device = Device::new(at, os::clock::wall(), Box::new(SystemRandom));
    let whom = whom.unwrap_or_else(|| StaticSecret::new(os::random::bytes()));
    device.set_private_key(at, Some(whom));
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
/// Datagrams of a flood that one call sends.
const TOGETHER: u64 = 10;
const TICK: Duration = Duration::from_millis(1);
