//! Beside a TCP that others wrote: smoltcp at one end of a bad link, in virtual time.

#[path = "smoltcp/theirs.rs"]
mod theirs;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use netstack::{CloseReason, Config, ConnectionId, Limits, ListenerId, Received, Stack};
use smoltcp::{socket::tcp, time::Instant as Micros};

use theirs::{MTU, OURS, THEIRS, Theirs};

const PORT: u16 = 80;

/// A seeded generator (SplitMix64).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }
}

/// What the link does, per mille and in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Link {
    delay: u64,
    jitter: u64,
    loss: u64,
    duplication: u64,
}

/// When, in which order, and whether it is for us.
type Arrival = Reverse<(Duration, u64, bool, Vec<u8>)>;

struct World {
    began: Instant,
    now: Duration,
    ours: Stack,
    theirs: Theirs,
    link: Link,
    random: Seeded,
    serial: u64,
    flying: BinaryHeap<Arrival>,
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "one base for virtual time; nothing depends on it"
    )]
    fn new(seed: u64, link: Link) -> Self {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let patience = Duration::from_secs(600);
        Self {
            began: Instant::now(),
            now: Duration::ZERO,
            ours: Stack::new(Config {
                addresses: vec![OURS.into()],
                mtu: MTU,
                seed: bytes,
                limits: Limits {
                    user_timeout: patience,
                    connect_timeout: patience,
                    ..Limits::default()
                },
            }),
            theirs: Theirs::new(seed),
            link,
            random: Seeded(seed),
            serial: 0,
            flying: BinaryHeap::new(),
        }
    }

    fn time(&self) -> Instant {
        self.began + self.now
    }

    fn micros(&self) -> Micros {
        Micros::from_micros(i64::try_from(self.now.as_micros()).expect("virtual time is short"))
    }

    fn carry(&mut self, to_us: bool, packet: &[u8]) {
        if self.random.chance(self.link.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.chance(self.link.duplication));
        for _ in 0..copies {
            self.serial += 1;
            let late = self.random.below(1_000 * self.link.jitter + 1);
            let at = self.now + Duration::from_micros(1_000 * self.link.delay + late);
            self.flying
                .push(Reverse((at, self.serial, to_us, packet.to_vec())));
        }
    }

    /// Moves everything that both want to transmit onto the link.
    fn drain(&mut self) {
        let (time, micros) = (self.time(), self.micros());
        for packet in self.theirs.poll(micros) {
            self.carry(true, &packet);
        }
        let mut out = [0; MTU];
        while let Some(length) = self.ours.poll_transmit(time, &mut out) {
            self.carry(false, &out[..length]);
        }
        while self.ours.poll_event().is_some() {}
    }

    /// Goes on to whatever happens next, at most a second.
    fn step(&mut self) {
        self.drain();
        let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
        let ours = self.ours.poll_timeout();
        let ours = ours.map(|at| at.saturating_duration_since(self.began));
        let theirs = self.theirs.poll_at(self.micros());
        let soon = self.now + Duration::from_secs(1);
        let next = [arrival, ours, theirs]
            .into_iter()
            .flatten()
            .fold(soon, Duration::min);
        // Their timers may be due at once and again and again.
        self.now = self.now.max(next).max(self.now + Duration::from_micros(1));
        while let Some(Reverse((at, ..))) = self.flying.peek() {
            if *at > self.now {
                break;
            }
            let Reverse((_, _, to_us, packet)) = self.flying.pop().expect("it was just seen");
            if to_us {
                // Duplicates are discarded, and counted elsewhere.
                let _ = self.ours.handle_packet(self.time(), &packet);
            } else {
                self.theirs.take(packet);
            }
        }
        let time = self.time();
        self.ours.handle_timeout(time);
        self.drain();
    }
}

fn bytes(length: usize, from: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 9)).wrapping_mul(167 + 2 * from).to_le_bytes()[0])
        .collect()
}

/// One end of a transfer: what it sends and has received.
#[derive(Default)]
struct End {
    send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    ended: bool,
}

fn pump_ours(world: &mut World, id: ConnectionId, end: &mut End) {
    let now = world.time();
    while end.sent < end.send.len() {
        match world.ours.send(now, id, &end.send[end.sent..]) {
            Ok(0) => break,
            Ok(taken) => end.sent += taken,
            Err(error) => panic!("{error}"),
        }
    }
    if end.sent == end.send.len() {
        world.ours.shutdown(now, id);
    }
    let mut buffer = [0; 4_096];
    while !end.ended {
        match world.ours.recv(now, id, &mut buffer) {
            Ok(Received::Bytes(length)) => end.received.extend_from_slice(&buffer[..length]),
            Ok(Received::End) => end.ended = true,
            Ok(Received::WouldBlock) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

fn pump_theirs(world: &mut World, end: &mut End) {
    let socket = world.theirs.socket();
    while end.sent < end.send.len() && socket.can_send() {
        let taken = socket
            .send_slice(&end.send[end.sent..])
            .expect("it can send");
        end.sent += taken;
        if taken == 0 {
            break;
        }
    }
    if end.sent == end.send.len() && socket.may_send() {
        socket.close();
    }
    let mut buffer = [0; 4_096];
    while socket.can_recv() {
        let length = socket.recv_slice(&mut buffer).expect("it can receive");
        end.received.extend_from_slice(&buffer[..length]);
    }
    let over = matches!(
        socket.state(),
        tcp::State::CloseWait
            | tcp::State::LastAck
            | tcp::State::Closing
            | tcp::State::TimeWait
            | tcp::State::Closed
    );
    end.ended |= over && end.sent == end.send.len();
}

/// Opens a connection, from us or to us.
fn open(world: &mut World, actively: bool) -> ConnectionId {
    let time = world.time();
    if actively {
        world.theirs.socket().listen(PORT).expect("a free port");
        let remote = SocketAddr::new(THEIRS.into(), PORT);
        return world.ours.connect(time, remote).expect("room");
    }
    let local = SocketAddr::new(OURS.into(), PORT);
    let listener: ListenerId = world.ours.listen(local, 1).expect("a free port");
    world.theirs.connect(PORT);
    loop {
        if let Some(id) = world.ours.accept(listener) {
            return id;
        }
        world.step();
    }
}

/// Returns what we and what they have received.
fn transfer(seed: u64, link: Link, actively: bool, lengths: [usize; 2]) -> [Vec<u8>; 2] {
    let mut world = World::new(seed, link);
    let id = open(&mut world, actively);
    let mut ends = lengths.map(|length| End {
        send: bytes(length, length % 2),
        ..End::default()
    });
    while !ends.iter().all(|end| end.ended) {
        assert!(
            world.now < Duration::from_secs(3_000),
            "stalled: {seed} {link:?}"
        );
        if world
            .ours
            .state(id)
            .is_some_and(|state| state != netstack::State::SynSent)
        {
            pump_ours(&mut world, id, &mut ends[0]);
        }
        if world.theirs.socket().state() != tcp::State::Listen {
            pump_theirs(&mut world, &mut ends[1]);
        }
        world.step();
    }
    let end = world.now + Duration::from_secs(300);
    while world.now < end {
        world.step();
    }
    let reason = world.ours.close_reason(id);
    assert!(
        matches!(reason, Some(CloseReason::Finished | CloseReason::Reset)),
        "{reason:?} of {seed}"
    );
    world.ours.release(world.time(), id);
    assert_eq!(world.ours.memory_bytes(), 0);
    ends.map(|end| end.received)
}

#[test]
fn streams_from_and_to_another_implementation_arrive_whole() {
    for seed in 0..60 {
        let mut random = Seeded(seed ^ 0xd1ff);
        let link = Link {
            delay: random.below(40),
            jitter: random.below(8),
            loss: random.below(40),
            duplication: random.below(40),
        };
        let lengths = [random.below(150_000), random.below(150_000)];
        let lengths = lengths.map(|length| usize::try_from(length).expect("small"));
        let [ours, theirs] = transfer(seed, link, seed % 2 == 0, lengths);
        let sent = lengths.map(|length| bytes(length, length % 2));
        assert_eq!(ours.len(), sent[1].len(), "seed {seed}: {link:?}");
        assert!(
            ours == sent[1] && theirs == sent[0],
            "seed {seed}: {link:?}"
        );
    }
}
