//! The user-mode stack and smoltcp, on a link that a program of bytes drives.

#[path = "../../crates/netstack/tests/smoltcp/theirs.rs"]
mod theirs;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use netstack::{
    Config, CongestionControl, ConnectionId, Limits, ListenerId, Received, Stack, State,
};
use smoltcp::{socket::tcp, time::Instant as Micros};

use self::theirs::{MTU, OURS, THEIRS, Theirs};
use crate::input::{Input, base};

const PORT: u16 = 80;
const STEPS_MAX: usize = 300;
/// Octets that each side sends at most.
const SENT_MAX: usize = 1 << 17;
/// Fates of packets that are not on the link yet.
const FATES_MAX: usize = 256;
/// Turns and time until both sides have ended.
const TURNS_MAX: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(3_600);

/// What each side reads is what the other has written, and both end.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::open(&mut input);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        world.act(&mut input);
    }
    world.finish();
}

/// What the link does to the next packet.
#[derive(Clone, Copy)]
struct Fate {
    lost: bool,
    twice: bool,
    late: Duration,
}

/// One side: what it has written and read.
#[derive(Default)]
struct End {
    written: usize,
    read: usize,
    /// It writes no more.
    closed: bool,
    /// It has read everything.
    ended: bool,
}

/// When, in which order, and whether it is for us.
type Arrival = Reverse<(Duration, u64, bool, Vec<u8>)>;

struct World {
    began: Instant,
    now: Duration,
    ours: Stack,
    theirs: Theirs,
    listener: Option<ListenerId>,
    id: Option<ConnectionId>,
    ends: [End; 2],
    delay: Duration,
    fates: VecDeque<Fate>,
    serial: u64,
    flying: BinaryHeap<Arrival>,
}

impl World {
    fn open(input: &mut Input<'_>) -> Self {
        let (first, delay) = (input.byte(), input.byte());
        let mut ours = Stack::new(Config {
            addresses: vec![OURS.into()],
            mtu: MTU,
            seed: [first; 32],
            limits: Limits {
                user_timeout: PATIENCE,
                connect_timeout: PATIENCE,
                ..Limits::default()
            },
        });
        if first & 2 != 0 {
            ours.set_default_congestion_control(CongestionControl::Bbr);
        }
        let mut world = Self {
            began: base().0,
            now: Duration::ZERO,
            ours,
            theirs: Theirs::new(u64::from(first)),
            listener: None,
            id: None,
            ends: [End::default(), End::default()],
            delay: Duration::from_millis(u64::from(delay % 128)),
            fates: VecDeque::new(),
            serial: 0,
            flying: BinaryHeap::new(),
        };
        let now = world.time();
        if first & 1 == 0 {
            world.theirs.socket().listen(PORT).expect("a free port");
            let remote = SocketAddr::new(THEIRS.into(), PORT);
            world.id = world.ours.connect(now, remote).ok();
        } else {
            let local = SocketAddr::new(OURS.into(), PORT);
            world.listener = world.ours.listen(local, 1).ok();
            world.theirs.connect(PORT);
        }
        world
    }

    fn time(&self) -> Instant {
        self.began + self.now
    }

    fn micros(&self) -> Micros {
        Micros::from_micros(i64::try_from(self.now.as_micros()).expect("virtual time is short"))
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let side = usize::from(operation >> 7);
        match operation & 0x0f {
            0..=2 => self.write(side, usize::from(input.number())),
            3 | 4 => self.read(side, usize::from(input.number())),
            5 if operation & 0x70 == 0 => self.ends[side].closed = true,
            5..=10 => {
                for _ in 0..=operation >> 4 & 7 {
                    self.step();
                }
            }
            11 => {
                // Time without a look at the link: what is due comes late.
                self.now += input.duration().min(Duration::from_secs(60));
                self.step();
            }
            kind => {
                let (count, value) = (input.byte() % 16, input.byte());
                for _ in 0..count {
                    self.add_fate(kind, value);
                }
            }
        }
        self.close();
        self.drain();
    }

    fn add_fate(&mut self, kind: u8, value: u8) {
        if self.fates.len() < FATES_MAX {
            self.fates.push_back(Fate {
                lost: kind == 12,
                twice: kind == 13,
                late: Duration::from_millis(if kind == 12 { 0 } else { value.into() }),
            });
            // A few pass unharmed.
            if kind == 15 {
                self.fates.push_back(Fate {
                    lost: false,
                    twice: false,
                    late: Duration::ZERO,
                });
            }
        }
    }

    fn write(&mut self, side: usize, length: usize) {
        let end = &self.ends[side];
        let length = length.min(SENT_MAX - end.written);
        if end.closed || length == 0 {
            return;
        }
        let bytes: Vec<u8> = (end.written..end.written + length)
            .map(|at| octet(side, at))
            .collect();
        let taken = if side == 0 {
            let now = self.time();
            let sent = self.id.map(|id| self.ours.send(now, id, &bytes));
            sent.and_then(Result::ok).unwrap_or(0)
        } else {
            let socket = self.theirs.socket();
            let open = socket.can_send();
            let sent = open.then(|| socket.send_slice(&bytes));
            sent.and_then(Result::ok).unwrap_or(0)
        };
        self.ends[side].written += taken;
    }

    fn read(&mut self, side: usize, length: usize) {
        let mut buffer = vec![0; length.clamp(1, 1 << 16)];
        let taken = if side == 0 {
            let (now, Some(id)) = (self.time(), self.id) else {
                return;
            };
            match self.ours.recv(now, id, &mut buffer) {
                Ok(Received::Bytes(taken)) => taken,
                Ok(Received::End) => {
                    self.ends[0].ended = true;
                    0
                }
                Ok(Received::WouldBlock) => 0,
                Err(error) => panic!("{error}"),
            }
        } else {
            let socket = self.theirs.socket();
            let taken = if socket.can_recv() {
                socket.recv_slice(&mut buffer).expect("it can receive")
            } else {
                0
            };
            let over = matches!(
                socket.state(),
                tcp::State::CloseWait
                    | tcp::State::LastAck
                    | tcp::State::Closing
                    | tcp::State::TimeWait
                    | tcp::State::Closed
            );
            self.ends[1].ended |= over && !socket.can_recv();
            taken
        };
        let at = self.ends[side].read;
        for (at, byte) in (at..).zip(&buffer[..taken]) {
            assert_eq!(*byte, octet(1 - side, at), "in order and once");
        }
        self.ends[side].read += taken;
        assert!(self.ends[side].read <= self.ends[1 - side].written);
    }

    /// Closes what writes no more.
    fn close(&mut self) {
        let now = self.time();
        if let (true, Some(id)) = (self.ends[0].closed, self.id) {
            self.ours.shutdown(now, id);
        }
        let socket = self.theirs.socket();
        if self.ends[1].closed && socket.may_send() {
            socket.close();
        }
    }

    fn carry(&mut self, to_us: bool, packet: &[u8]) {
        let fate = self.fates.pop_front().unwrap_or(Fate {
            lost: false,
            twice: false,
            late: Duration::ZERO,
        });
        if fate.lost {
            return;
        }
        let at = self.now + self.delay;
        for late in [Some(fate.late), fate.twice.then_some(Duration::ZERO)] {
            let Some(late) = late else { continue };
            self.serial += 1;
            let arrival = (at + late, self.serial, to_us, packet.to_vec());
            self.flying.push(Reverse(arrival));
        }
    }

    /// Moves everything that both want to transmit onto the link.
    fn drain(&mut self) {
        let (time, micros) = (self.time(), self.micros());
        for packet in self.theirs.poll(micros) {
            self.carry(true, &packet);
        }
        // It forgets what was not read when TIME-WAIT ends.
        if self.theirs.socket().state() == tcp::State::TimeWait {
            self.read(1, 1 << 16);
            self.read(1, 1 << 16);
        }
        let mut out = [0; MTU];
        while let Some(length) = self.ours.poll_transmit(time, &mut out) {
            self.carry(false, &out[..length]);
        }
        while self.ours.poll_event().is_some() {}
        if let Some(listener) = self.listener {
            self.id = self.id.or_else(|| self.ours.accept(listener));
        }
        if let Some(id) = self.id {
            self.ours.assert_invariants(id);
        }
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
        self.now = next.max(self.now + Duration::from_micros(1));
        while self
            .flying
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= self.now)
        {
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

    /// Both write no more, and read to the end.
    fn finish(mut self) {
        self.fates.clear();
        let patience = self.now + PATIENCE;
        for end in &mut self.ends {
            end.closed = true;
        }
        for _ in 0..TURNS_MAX {
            self.close();
            self.read(0, 1 << 16);
            self.read(1, 1 << 16);
            if self.ends.iter().all(|end| end.ended) {
                assert_eq!(self.ends[0].read, self.ends[1].written, "we read all");
                assert_eq!(self.ends[1].read, self.ends[0].written, "they read all");
                self.vanish();
                return;
            }
            assert!(self.now < patience, "it takes for ever");
            self.step();
        }
        panic!("it never ends");
    }

    /// What is left ends by itself.
    fn vanish(&mut self) {
        for _ in 0..1_000 {
            self.step();
            if self.ours.poll_timeout().is_none() {
                break;
            }
        }
        let id = self.id.expect("both have ended");
        assert_eq!(self.ours.state(id), Some(State::Closed));
        self.ours.release(self.time(), id);
        assert_eq!(self.ours.memory_bytes(), 0, "everything is given back");
    }
}

/// An octet of a stream, by its place.
fn octet(side: usize, at: usize) -> u8 {
    (at ^ (at >> 9)).wrapping_mul(167 + 2 * side).to_le_bytes()[0]
}
