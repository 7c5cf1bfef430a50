//! Two stacks, a link between them, and virtual time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use packet::{gro, ip, tcp};

use crate::{Config, ConnectionId, Discard, Event, Limits, ListenerId, Stack, Transmit};

/// The beginning of virtual time.
#[expect(
    clippy::disallowed_methods,
    reason = "one base for virtual time; nothing depends on it"
)]
pub(crate) fn base() -> Instant {
    Instant::now()
}

/// A seeded generator (SplitMix64).
#[derive(Clone)]
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(crate) fn half(&mut self) -> u16 {
        let [a, b, ..] = self.next().to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    pub(crate) fn word(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.next().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True with a probability of `per_mille` in a thousand.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What the link did to one packet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Fate {
    pub(crate) lost: bool,
    /// It overtook what was sent before.
    overtakes: bool,
    /// A byte and a bit of it that changed.
    flipped: Option<(usize, u8)>,
    /// How much later it arrived, and how much later a duplicate.
    late: [Option<Duration>; 2],
}

/// What the link does to packets; probabilities per mille.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) delay: Duration,
    /// Up to so much is added, which reorders.
    pub(crate) jitter: Duration,
    /// How often a packet skips the delay and overtakes, as netem reorders.
    pub(crate) reordering: u64,
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) corruption: u64,
    /// Bytes per second and bytes of its drop-tail queue; `None` is infinitely fast.
    pub(crate) rate: Option<(u64, u64)>,
    /// Bytes in that queue above which packets of IPv6 that may be marked are (RFC 3168, 5).
    pub(crate) marked_above: Option<u64>,
    /// Longer packets vanish, and nobody tells.
    pub(crate) passes: usize,
    /// SYNs lose all options but the MSS: two peers of the year 1990.
    pub(crate) bare: bool,
    /// Time is seen in steps of this length only.
    pub(crate) tick: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            reordering: 0,
            loss: 0,
            duplication: 0,
            corruption: 0,
            rate: None,
            marked_above: None,
            passes: usize::MAX,
            bare: false,
            tick: Duration::ZERO,
        }
    }
}

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

type Arrival = Reverse<(Instant, u64, usize, Vec<u8>)>;

/// Two stacks and the link between them.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) stacks: [Stack; 2],
    pub(crate) link: Link,
    pub(crate) random: Seeded,
    pub(crate) discards: BTreeMap<Discard, u64>,
    pub(crate) sent: [u64; 2],
    /// Packets that were marked, and the length of the longest that was sent.
    pub(crate) marks: u64,
    pub(crate) longest: usize,
    pub(crate) watched: [Option<ConnectionId>; 2],
    /// Segments leave in runs of up to so many; above one, runs are also merged on arrival.
    pub(crate) run: usize,
    /// How long the runs were that left.
    pub(crate) runs: Vec<usize>,
    /// What the link does to which packet, instead of what its probabilities would.
    pub(crate) script: Option<BTreeMap<u64, Fate>>,
    /// What it did, where that was anything.
    pub(crate) fates: BTreeMap<u64, Fate>,
    /// The latest packet of each side.
    pub(crate) latest: [Vec<u8>; 2],
    /// One line for each packet, if wanted.
    pub(crate) trace: Option<String>,
    carried: u64,
    /// The first sequence number of each side.
    first: [Option<u32>; 2],
    in_flight: BinaryHeap<Arrival>,
    free_at: [Instant; 2],
    began: Instant,
    serial: u64,
    /// Where packets are written to.
    out: Vec<u8>,
}

pub(crate) fn address(side: usize, v6: bool) -> IpAddr {
    let host = if side == A { 1 } else { 2 };
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host).into()
    } else {
        Ipv4Addr::new(10, 0, 0, u8::try_from(host).unwrap()).into()
    }
}

pub(crate) fn config(side: usize, seed: u64) -> Config {
    let mut bytes = [u8::try_from(side).unwrap(); 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    Config {
        addresses: vec![address(side, true), address(side, false)],
        mtu: 1420,
        seed: bytes,
        limits: Limits::default(),
    }
}

fn strip_options(packet: Vec<u8>) -> Vec<u8> {
    let Ok(parsed) = ip::parse(&packet) else {
        return packet;
    };
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    let Ok(mut segment) = tcp::parse(source, destination, parsed.payload) else {
        return packet;
    };
    if !segment.header.flags.has(tcp::Flags::SYN) {
        return packet;
    }
    segment.header.options = tcp::Options {
        maximum_segment_size: segment.header.options.maximum_segment_size,
        ..tcp::Options::default()
    };
    let mut out = packet.clone();
    let at = ip::header_length(source);
    let length = tcp::emit(source, destination, &segment, &mut out[at..]);
    ip::emit_header(&parsed.header, length, &mut out);
    out.truncate(at + length);
    out
}

impl Pair {
    pub(crate) fn new(seed: u64, link: Link) -> Self {
        Self::with_limits(seed, link, Limits::default())
    }

    pub(crate) fn with_limits(seed: u64, link: Link, limits: Limits) -> Self {
        let config = |side| Config {
            limits,
            ..config(side, seed)
        };
        Self::with_configs(seed, link, [config(A), config(B)])
    }

    pub(crate) fn with_mtu(seed: u64, link: Link, mtu: usize) -> Self {
        let config = |side| Config {
            mtu,
            ..config(side, seed)
        };
        Self::with_configs(seed, link, [config(A), config(B)])
    }

    pub(crate) fn with_configs(seed: u64, link: Link, configs: [Config; 2]) -> Self {
        let now = base();
        Self {
            now,
            stacks: configs.map(Stack::new),
            link,
            random: Seeded(seed),
            discards: BTreeMap::new(),
            sent: [0; 2],
            marks: 0,
            longest: 0,
            watched: [None; 2],
            run: 1,
            runs: Vec::new(),
            script: None,
            fates: BTreeMap::new(),
            latest: [Vec::new(), Vec::new()],
            trace: None,
            carried: 0,
            first: [None; 2],
            in_flight: BinaryHeap::new(),
            free_at: [now; 2],
            began: now,
            serial: 0,
            out: vec![0; 65_535],
        }
    }

    /// Moves everything that the stacks want to transmit onto the link.
    pub(crate) fn drain(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        for side in [A, B] {
            let mtu = self.stacks[side].mtu();
            loop {
                let stack = &mut self.stacks[side];
                let mut packets = Vec::new();
                match stack.poll_transmit_large(self.now, self.run, &mut out) {
                    None => break,
                    Some(Transmit::Packet(length)) => packets.push(out[..length].to_vec()),
                    Some(Transmit::Large(mut large)) => {
                        self.runs.push(large.segments());
                        while let Some(length) = large.next_into(&mut out) {
                            packets.push(out[..length].to_vec());
                        }
                    }
                }
                for packet in packets {
                    assert!(packet.len() <= mtu);
                    self.sent[side] += 1;
                    self.latest[side].clone_from(&packet);
                    self.carry(side, packet);
                }
            }
            if let Some(id) = self.watched[side] {
                self.stacks[side].assert_invariants(id);
            }
        }
        self.out = out;
    }

    fn carry(&mut self, from: usize, mut packet: Vec<u8>) {
        let link = self.link;
        let mut at = self.now;
        self.longest = self.longest.max(packet.len());
        if packet.len() > link.passes {
            return;
        }
        if let Some((rate, queue)) = link.rate {
            let backlog = self.free_at[from].saturating_duration_since(self.now);
            let backlog = backlog.as_nanos() * u128::from(rate) / 1_000_000_000;
            if backlog > u128::from(queue) {
                return;
            }
            let full = link
                .marked_above
                .is_some_and(|above| backlog > above.into());
            // The second nibble of the traffic class of IPv6.
            if full && packet[0] >> 4 == 6 && packet[1] & 0x30 != 0 {
                packet[1] |= 0x30;
                self.marks += 1;
            }
            let nanos = packet.len() as u64 * 1_000_000_000 / rate;
            at = self.free_at[from].max(self.now) + Duration::from_nanos(nanos);
            self.free_at[from] = at;
        }
        let number = self.carried;
        self.carried += 1;
        // A script uses up as much chance as what it replaces, so that the rest goes on alike.
        let drawn = self.draw(packet.len());
        let fate = match &self.script {
            Some(script) => script.get(&number).copied().unwrap_or_default(),
            None => drawn,
        };
        if fate != Fate::default() {
            self.fates.insert(number, fate);
        }
        self.note(from, &packet, fate);
        if fate.lost {
            return;
        }
        if let Some((index, bit)) = fate.flipped
            && let Some(byte) = packet.get_mut(index)
        {
            *byte ^= 1 << bit;
        }
        if link.bare {
            packet = strip_options(packet);
        }
        let delay = if fate.overtakes {
            Duration::ZERO
        } else {
            link.delay
        };
        let copies = [Some(fate.late[0].unwrap_or_default()), fate.late[1]];
        for late in copies.into_iter().flatten() {
            self.serial += 1;
            let arrival = (at + delay + late, self.serial, 1 - from, packet.clone());
            self.in_flight.push(Reverse(arrival));
        }
    }

    /// Draws what the link does to a packet.
    fn draw(&mut self, length: usize) -> Fate {
        let link = self.link;
        let mut fate = Fate {
            lost: self.random.chance(link.loss),
            ..Fate::default()
        };
        if fate.lost {
            return fate;
        }
        if self.random.chance(link.corruption) {
            let index = usize::try_from(self.random.below(length as u64)).unwrap();
            let bit = u8::try_from(self.random.below(8)).unwrap();
            fate.flipped = Some((index, bit));
        }
        fate.overtakes = link.reordering > 0 && self.random.chance(link.reordering);
        let copies = 1 + usize::from(self.random.chance(link.duplication));
        let nanos = u64::try_from(link.jitter.as_nanos()).unwrap();
        for late in &mut fate.late[..copies] {
            let jitter = Duration::from_nanos(self.random.below(nanos + 1));
            *late = Some(jitter);
        }
        if fate.late == [Some(Duration::ZERO), None] {
            fate.late = [None; 2];
        }
        fate
    }

    /// Writes a line of the trace.
    fn note(&mut self, from: usize, packet: &[u8], fate: Fate) {
        let Some(trace) = &mut self.trace else { return };
        let Ok(parsed) = ip::parse(packet) else {
            return;
        };
        let (source, destination) = (parsed.header.source, parsed.header.destination);
        let Ok(segment) = tcp::parse(source, destination, parsed.payload) else {
            return;
        };
        let header = segment.header;
        let [own, peer] = &mut self.first;
        let (own, peer) = if from == A { (own, peer) } else { (peer, own) };
        let sequence = header
            .sequence
            .wrapping_sub(*own.get_or_insert(header.sequence));
        let acknowledged = peer.map_or(0, |first| header.acknowledgement.wrapping_sub(first));
        let names = [
            (tcp::Flags::SYN, "SYN "),
            (tcp::Flags::FIN, "FIN "),
            (tcp::Flags::RST, "RST "),
        ];
        let flags: String = names
            .iter()
            .filter(|(flag, _)| header.flags.has(*flag))
            .map(|(_, name)| *name)
            .collect();
        let at = (self.now - self.began).as_secs_f64();
        let side = if from == A { 'A' } else { 'B' };
        let length = segment.payload.len();
        write!(
            trace,
            "{at:.6} {side} > {flags}seq {sequence} length {length} ack {acknowledged} win {}",
            header.window
        )
        .unwrap();
        for (left, right) in header.options.sack.as_slice() {
            let first = peer.unwrap_or_default();
            let (left, right) = (left.wrapping_sub(first), right.wrapping_sub(first));
            write!(trace, " sack {left}-{right}").unwrap();
        }
        if let Some(late) = fate.late[0].filter(|late| !late.is_zero()) {
            write!(trace, " late {late:?}").unwrap();
        }
        if let Some(late) = fate.late[1] {
            write!(trace, " twice, late {late:?}").unwrap();
        }
        if fate.overtakes {
            trace.push_str(" overtakes");
        }
        if fate.flipped.is_some() {
            trace.push_str(" corrupted");
        }
        trace.push_str(if fate.lost { " lost\n" } else { "\n" });
    }

    /// Goes on to whatever happens next; false when nothing ever will.
    pub(crate) fn step(&mut self) -> bool {
        self.drain();
        let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
        let timeouts = self.stacks.iter().filter_map(Stack::poll_timeout).min();
        let Some(next) = [arrival, timeouts].into_iter().flatten().min() else {
            return false;
        };
        self.now = self.now.max(next);
        let tick = self.link.tick.as_nanos();
        if tick > 0 {
            let since = (self.now - self.began).as_nanos().next_multiple_of(tick);
            self.now = self.began + Duration::from_nanos(u64::try_from(since).unwrap());
        }
        let mut merging = [None, None];
        while self
            .in_flight
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= self.now)
        {
            let Reverse((_, _, side, packet)) = self.in_flight.pop().unwrap();
            self.arrive(side, &packet, &mut merging[side]);
        }
        for (side, run) in merging.into_iter().enumerate() {
            self.take_run(side, run);
        }
        for stack in &mut self.stacks {
            stack.handle_timeout(self.now);
        }
        self.drain();
        true
    }

    /// Delivers a packet, or merges it into the run that it follows.
    fn arrive(&mut self, side: usize, packet: &[u8], merging: &mut Option<gro::Run>) {
        if self.run > 1 {
            if merging.as_mut().is_some_and(|run| run.append(packet)) {
                return;
            }
            self.take_run(side, merging.take());
            *merging = gro::Run::begin(packet, Vec::new()).ok();
            if merging.is_some() {
                return;
            }
        }
        let taken = self.stacks[side].handle_packet(self.now, packet);
        self.count(taken);
    }

    fn take_run(&mut self, side: usize, run: Option<gro::Run>) {
        if let Some(run) = run {
            let (merged, _) = run.finish();
            let taken = self.stacks[side].handle_merged(self.now, &merged);
            self.count(taken);
        }
    }

    fn count(&mut self, taken: Result<(), Discard>) {
        if let Err(discard) = taken {
            *self.discards.entry(discard).or_default() += 1;
        }
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.drain();
            let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
            let timeouts = self.stacks.iter().filter_map(Stack::poll_timeout).min();
            let next = [arrival, timeouts].into_iter().flatten().min();
            if next.is_none_or(|next| next > end) {
                self.now = end;
                return;
            }
            self.step();
        }
    }

    pub(crate) fn events(&mut self, side: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.stacks[side].poll_event()).collect()
    }

    pub(crate) fn listen(&mut self, v6: bool) -> (ListenerId, SocketAddr) {
        let local = SocketAddr::new(address(B, v6), 80);
        (self.stacks[B].listen(local, 1_000).unwrap(), local)
    }

    /// Opens a connection from A to B.
    pub(crate) fn connect(&mut self, v6: bool) -> [ConnectionId; 2] {
        let (listener, remote) = self.listen(v6);
        let a = self.stacks[A].connect(self.now, remote).unwrap();
        loop {
            if let Some(b) = self.stacks[B].accept(listener) {
                self.watched = [Some(a), Some(b)];
                return [a, b];
            }
            assert!(self.step(), "the handshake stalled");
        }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.in_flight.is_empty() && self.stacks.iter().all(|s| s.poll_timeout().is_none())
    }
}
