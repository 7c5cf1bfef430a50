//! A seeded relay between two packet descriptors: rate, drop-tail queue, delay, loss, reordering,
//! duplication, in both directions alike.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::IpAddr,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use os::clock::Clock;

/// What lies between the two ends, each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// Bits of IP packets per second.
    pub(crate) rate: u64,
    /// Bytes that wait for their turn at most; what comes then is dropped.
    pub(crate) queue: u64,
    /// From the end of the queue to the other side.
    pub(crate) delay: Duration,
    /// Share of packets that are lost before the queue.
    pub(crate) loss: f64,
    /// Share of packets that arrive [`LATE`] later than they should.
    pub(crate) reordering: f64,
    /// Share of packets that arrive twice.
    pub(crate) duplication: f64,
}

/// How much later a reordered packet arrives: about twenty packets at 100 Mbit/s.
const LATE: Duration = Duration::from_millis(3);

/// The relay looks whether it has to stop so often at least.
const PATIENCE: Duration = Duration::from_millis(50);

/// Packets that are taken from one side before the other has its turn.
const BATCH: usize = 64;

/// One direction of the relay.
struct Direction {
    path: Path,
    random: Random,
    /// When the last packet will have left the queue.
    free: Instant,
    /// On their way, by arrival; bounded by the queue and by rate times delay.
    flying: BTreeMap<(Instant, u64), Vec<u8>>,
    taken: u64,
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

/// Relays between the ends on the left, each with its address, and `right` until told to stop.
pub(crate) fn run(
    left: &[(&File, IpAddr)],
    right: &File,
    path: Path,
    seed: u64,
    stop: &AtomicBool,
) {
    let mut clock = Clock::start();
    let now = clock.now();
    let mut rightward = Direction::new(path, now, seed);
    let mut leftward = Direction::new(path, now, !seed);
    let files = left.iter().map(|&(file, _)| file).chain([right]);
    let files: Vec<_> = files.collect();
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        for (file, _) in left {
            rightward.take_from(file, now);
        }
        leftward.take_from(right, now);
        rightward.give(now, |_| right);
        leftward.give(now, |packet| {
            let to = packet::ip::addresses(packet).map(|addresses| addresses.destination);
            let owner = left.iter().find(|(_, address)| Ok(*address) == to);
            owner.map_or(files[0], |(file, _)| file)
        });
        let next = [rightward.next(), leftward.next()].into_iter().flatten();
        let until = next.fold(now + PATIENCE, Instant::min);
        wait(&files, until.saturating_duration_since(clock.now()));
    }
}

/// Waits until one of them can be read, at most so long.
pub(crate) fn wait(files: &[&File], at_most: Duration) {
    let polled = files
        .iter()
        .map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN));
    let mut polled: Vec<_> = polled.collect();
    // A signal only ends the wait early.
    let _early = ppoll(&mut polled, Some(TimeSpec::from(at_most)), None);
}

impl Direction {
    fn new(path: Path, now: Instant, seed: u64) -> Self {
        Self {
            path,
            random: Random(seed),
            free: now,
            flying: BTreeMap::new(),
            taken: 0,
        }
    }

    fn take_from(&mut self, mut file: &File, now: Instant) {
        let mut packet = [0; 2_048];
        for _ in 0..BATCH {
            match file.read(&mut packet) {
                Ok(length) => self.take(&packet[..length], now),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, packet: &[u8], now: Instant) {
        if self.random.happens(self.path.loss) {
            return;
        }
        let rate = self.path.rate;
        let waiting = self.free.saturating_duration_since(now);
        let waiting_bytes = waiting.as_nanos() * u128::from(rate) / 8_000_000_000;
        if waiting_bytes + packet.len() as u128 > u128::from(self.path.queue) {
            return;
        }
        let bits = packet.len() as u64 * 8;
        self.free = self.free.max(now) + Duration::from_nanos(bits * 1_000_000_000 / rate);
        let mut arrival = self.free + self.path.delay;
        if self.random.happens(self.path.reordering) {
            arrival += LATE;
        }
        let copies = 1 + usize::from(self.random.happens(self.path.duplication));
        for _ in 0..copies {
            self.taken += 1;
            self.flying.insert((arrival, self.taken), packet.to_vec());
        }
    }

    fn give<'a>(&mut self, now: Instant, to: impl Fn(&[u8]) -> &'a File) {
        while let Some(first) = self.flying.first_entry() {
            if first.key().0 > now {
                return;
            }
            let mut file = to(first.get());
            // A full socket takes it in the next turn; a TUN always takes.
            match file.write(first.get()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => drop(first.remove()),
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&mut self, share: f64) -> bool {
        // 53 bits are what a double holds.
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        uniform < share
    }
}
