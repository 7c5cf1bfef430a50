//! One connection of the user-mode stack, and a peer that says what a program of bytes wants.
//!
//! What the peer sends at a sequence number is always the same, and so is what our owner sends, so
//! that every octet that comes out of either end can be told right from wrong.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use netstack::{
    Config, CongestionControl, ConnectionId, Event, Limits, ListenerId, Received, Stack, State,
};
use packet::{
    icmp::{self, Cause, Unreachable},
    ip,
    tcp::{self, Flags, Header, Options, Segment, Timestamps},
};

use crate::input::{Input, base};

const STEPS_MAX: usize = 400;
const OUTPUTS_MAX: usize = 20_000;
/// Octets that either owner sends at most.
const SENT_MAX: u64 = 1 << 18;
/// Turns of a well-behaved peer in which everything must have arrived.
const TURNS_MAX: usize = 4_000;
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const MTU: usize = 1_420;
/// The shift of the windows that the peer offers, where it does.
const SHIFT: u8 = 3;
const ISS: [u32; 2] = [7_000, u32::MAX - 9_000];

/// Sequences of segments, spans of time and calls of the owner, and then a peer that behaves.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let Some(mut wire) = Wire::open(&mut input) else {
        return;
    };
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        wire.step(&mut input);
        wire.drain();
    }
    wire.behave();
    wire.end();
}

/// What the peer wants of the connection.
#[derive(Clone, Copy)]
struct Choice {
    passive: bool,
    sack: bool,
    stamps: bool,
    scale: bool,
}

struct Wire {
    stack: Stack,
    now: Instant,
    began: Instant,
    choice: Choice,
    listener: Option<ListenerId>,
    id: Option<ConnectionId>,
    local: SocketAddr,
    remote: SocketAddr,
    /// Our initial sequence number and the peer's.
    iss: u32,
    irs: u32,
    /// Offsets from `iss`: what was transmitted and the peer's highest right edge.
    transmitted: u32,
    allowed: u32,
    /// Offsets from `irs`: what we have acknowledged, and the highest right edge that we offered.
    acknowledged: u32,
    offered: u32,
    /// Data that our owner has sent and read.
    sent: u64,
    read: u64,
    finished: bool,
    /// Offsets from `irs`: how much data the peer has sent and where its FIN is.
    pushed: u32,
    peer_fin: Option<u32>,
    /// Our latest timestamp.
    stamp: u32,
}

impl Wire {
    /// Goes through the handshake; `None` if it does not lead to a connection.
    fn open(input: &mut Input<'_>) -> Option<Self> {
        let (first, second) = (input.byte(), input.byte());
        let choice = Choice {
            passive: first & 1 != 0,
            sack: first & 2 != 0,
            stamps: first & 4 != 0,
            scale: first & 8 != 0,
        };
        let (now, _) = base();
        let mut stack = Stack::new(Config {
            addresses: vec![OURS],
            mtu: MTU,
            seed: [second; 32],
            limits: Limits::default(),
        });
        if first & 16 != 0 {
            stack.set_default_congestion_control(CongestionControl::Bbr);
        }
        stack.set_ecn(first & 32 != 0);
        let mut wire = Self {
            stack,
            now,
            began: now,
            choice,
            listener: None,
            id: None,
            local: SocketAddr::new(OURS, 80),
            remote: SocketAddr::new(THEIRS, 4_000),
            iss: 0,
            irs: ISS[usize::from(first >> 6 & 1)],
            transmitted: 0,
            allowed: 0,
            acknowledged: 0,
            offered: 0,
            sent: 0,
            read: 0,
            finished: false,
            pushed: 0,
            peer_fin: None,
            stamp: 0,
        };
        wire.shake_hands(1 + u16::from(second) * 16);
        let id = wire.id?;
        let open = wire.stack.state(id) == Some(State::Established);
        open.then_some(wire)
    }

    fn shake_hands(&mut self, mss: u16) {
        let ecn = Flags::ECE.with(Flags::CWR);
        let mut options = Options {
            maximum_segment_size: Some(mss),
            window_scale: self.choice.scale.then_some(SHIFT),
            sack_permitted: self.choice.sack,
            ..Options::default()
        };
        if self.choice.passive {
            self.listener = self.stack.listen(self.local, 4).ok();
            let mut syn = self.header(Flags::SYN.with(ecn), 0, 0, 65_535);
            options.timestamps = self.timestamps(0);
            syn.options = options;
            syn.acknowledgement = 0;
            self.write(syn, &[]);
            self.pass_syn();
            let ack = self.header(Flags::ACK, 1, 1, 65_535);
            self.write(ack, &[]);
        } else {
            self.id = self.stack.connect(self.now, self.remote).ok();
            self.local = self.id.and_then(|id| self.stack.local(id)).expect("new");
            self.pass_syn();
            let mut answer = self.header(Flags::SYN.with(Flags::ACK), 0, 1, 65_535);
            options.timestamps = self.timestamps(self.stamp);
            answer.options = options;
            self.write(answer, &[]);
        }
        (self.transmitted, self.acknowledged, self.pushed) = (1, 1, 1);
        self.allowed = 1 + (65_535 << if self.choice.scale { SHIFT } else { 0 });
        self.drain();
    }

    /// Learns our initial sequence number from our SYN.
    fn pass_syn(&mut self) {
        let mut out = [0; MTU];
        while let Some(length) = self.stack.poll_transmit(self.now, &mut out) {
            let packet = ip::parse(&out[..length]).expect("our own packet");
            let segment = tcp::parse(OURS, THEIRS, packet.payload).expect("our own segment");
            self.iss = segment.header.sequence;
            let stamps = segment.header.options.timestamps;
            self.stamp = stamps.map_or(0, |stamps| stamps.value);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let turn = operation >> 4;
        match operation & 0x0f {
            0 | 1 => self.send(usize::from(input.number())),
            2 => self.receive(usize::from(input.number())),
            3 if turn == 0 => self.finish(),
            3 | 4 | 5 => self.pass(input.duration()),
            6 => self.pass_to_deadline(),
            7 | 8 => self.push(input),
            9..=12 => self.acknowledge(input),
            13 if turn < 2 => {
                self.peer_fin.get_or_insert(self.pushed);
                self.push(input);
            }
            13 | 14 => self.disturb(turn, input),
            _ => self.set(turn, input.byte()),
        }
    }

    fn send(&mut self, length: usize) {
        let left = usize::try_from(SENT_MAX - self.sent).expect("small");
        let bytes: Vec<u8> = (0..)
            .map(|at| ours(self.sent + at))
            .take(length.min(left))
            .collect();
        let Some(id) = self.id else { return };
        if let Ok(taken) = self.stack.send(self.now, id, &bytes) {
            assert!(taken <= bytes.len());
            self.sent += u64::try_from(taken).expect("small");
        }
    }

    fn receive(&mut self, length: usize) {
        let Some(id) = self.id else { return };
        let mut buffer = vec![0; length.max(1)];
        match self.stack.recv(self.now, id, &mut buffer) {
            Ok(Received::Bytes(taken)) => {
                for byte in &buffer[..taken] {
                    assert_eq!(*byte, theirs(self.read), "in order and once");
                    self.read += 1;
                }
                assert!(self.read < u64::from(self.pushed), "what was sent");
            }
            Ok(Received::End) => {
                let fin = self.peer_fin.expect("it ends with a FIN");
                assert_eq!(
                    self.read + 1,
                    u64::from(fin),
                    "the end comes behind all data"
                );
            }
            Ok(Received::WouldBlock) | Err(_) => (),
        }
    }

    fn finish(&mut self) {
        if let Some(id) = self.id {
            self.stack.shutdown(self.now, id);
            self.finished = true;
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.stack.handle_timeout(self.now);
        let next = self.stack.poll_timeout();
        assert!(
            next.is_none_or(|next| next > self.now),
            "what was due is done"
        );
    }

    fn pass_to_deadline(&mut self) {
        let due = self.stack.poll_timeout().unwrap_or(self.now);
        self.pass(due.saturating_duration_since(self.now));
    }

    /// Data of the peer, near what we expect next.
    fn push(&mut self, input: &mut Input<'_>) {
        let (back, ahead) = (input.byte(), input.byte());
        let length = u32::from(input.number() % 1_400);
        let ahead = if ahead > 200 {
            u32::from(ahead - 200) * 700
        } else {
            0
        };
        let start = self
            .acknowledged
            .saturating_sub(u32::from(back / 16))
            .max(1)
            + ahead;
        let last = self.last();
        let (start, end) = (start.min(last), (start + length).min(last));
        let fin = self.peer_fin == Some(end);
        self.pushed = self.pushed.max(end);
        let bytes: Vec<u8> = (start..end).map(|at| theirs(u64::from(at) - 1)).collect();
        let flags = if fin {
            Flags::ACK.with(Flags::FIN)
        } else {
            Flags::ACK
        };
        let (ack, window) = (self.part(input.byte()), input.number());
        let header = self.header(flags, start, ack, window);
        self.write(header, &bytes);
    }

    /// Where the data of the peer ends.
    fn last(&self) -> u32 {
        self.peer_fin.unwrap_or(1 << 18)
    }

    /// An acknowledgement with any window and ranges.
    fn acknowledge(&mut self, input: &mut Input<'_>) {
        let (ack, window, more) = (self.part(input.byte()), input.number(), input.byte());
        let mut header = self.header(Flags::ACK, self.acknowledged, ack, window);
        if more & 8 != 0 {
            header.flags = header.flags.with(Flags::ECE);
        }
        if more & 16 != 0 {
            header.options.timestamps = self.timestamps(self.stamp.wrapping_sub(u32::from(more)));
        }
        for _ in 0..more & 3 {
            let (left, length) = (self.part(input.byte()), u32::from(input.number() % 8_000));
            let left = self.iss.wrapping_add(left);
            header.options.sack.push(left, left.wrapping_add(length));
        }
        self.write(header, &[]);
    }

    /// A share of what was transmitted, as an offset.
    fn part(&self, share: u8) -> u32 {
        let all = u64::from(self.transmitted) * u64::from(share) / 250;
        u32::try_from(all).expect("small")
    }

    /// What nobody asked for.
    fn disturb(&mut self, turn: u8, input: &mut Input<'_>) {
        let (flags, off) = (input.byte(), u32::from(input.number()));
        if turn >= 12 {
            self.report(flags, off);
            return;
        }
        // A FIN would have to stand where the peer's is, and a SYN might begin another connection.
        let barred = if self.choice.passive {
            Flags::FIN.with(Flags::SYN)
        } else {
            Flags::FIN
        };
        let flags = Flags(flags & !barred.0);
        let start = self.acknowledged.saturating_add(off).saturating_sub(30);
        // Where it says that it stands, it has to come to in the end.
        self.pushed = self.pushed.max(start.min(self.last()));
        let start = start.min(self.pushed);
        let header = self.header(flags, start, self.part(input.byte()), input.number());
        self.write(header, &[]);
    }

    /// An ICMP error about a segment that was transmitted.
    fn report(&mut self, what: u8, off: u32) {
        let quoted = Header {
            source_port: self.local.port(),
            destination_port: self.remote.port(),
            sequence: self.iss.wrapping_add(off),
            ..Header::default()
        };
        let mut bytes = [0; tcp::HEADER];
        tcp::emit_header(&quoted, &mut bytes);
        let quote = wrap(OURS, THEIRS, ip::TCP, &bytes);
        let cause = match what % 3 {
            0 => Cause::Unreachable(Unreachable::Port),
            1 => Cause::Unreachable(Unreachable::Host),
            _ => Cause::PacketTooBig {
                mtu: u32::from(what) * 8,
            },
        };
        let message = icmp::Message::Error {
            cause,
            quote: &quote,
        };
        let mut bytes = vec![0; icmp::HEADER + quote.len()];
        let length = icmp::emit(THEIRS, OURS, &message, &mut bytes);
        let packet = wrap(THEIRS, OURS, ip::ICMP, &bytes[..length]);
        let _ = self.stack.handle_packet(self.now, &packet);
    }

    fn set(&mut self, turn: u8, value: u8) {
        let Some(id) = self.id else { return };
        let (now, on) = (self.now, value & 1 == 1);
        let stack = &mut self.stack;
        let set = match turn % 4 {
            0 => stack.set_nagle(now, id, on),
            1 => stack.set_keepalive(now, id, on.then(|| Duration::from_secs(value.into()))),
            2 if on => stack.set_congestion_control(now, id, CongestionControl::Bbr),
            2 => stack.set_congestion_control(now, id, CongestionControl::Cubic),
            _ => {
                stack.set_mtu(1_280 + usize::from(value % 140));
                Ok(())
            }
        };
        assert!(set.is_ok(), "it was not released");
    }

    fn header(&mut self, flags: Flags, sequence: u32, acknowledged: u32, window: u16) -> Header {
        let shift = if self.choice.scale && self.transmitted > 0 {
            SHIFT
        } else {
            0
        };
        let edge = acknowledged.saturating_add(u32::from(window) << shift);
        self.allowed = self.allowed.max(edge);
        let mut header = Header {
            source_port: self.remote.port(),
            destination_port: self.local.port(),
            sequence: self.irs.wrapping_add(sequence),
            acknowledgement: self.iss.wrapping_add(acknowledged),
            flags,
            window,
            ..Header::default()
        };
        header.options.timestamps = self.timestamps(self.stamp);
        header
    }

    fn timestamps(&self, echo: u32) -> Option<Timestamps> {
        let millis = (self.now - self.began).as_millis();
        let value = u32::try_from(millis & 0x7fff_ffff).expect("masked");
        self.choice.stamps.then_some(Timestamps { value, echo })
    }

    fn write(&mut self, header: Header, payload: &[u8]) {
        let mut header = header;
        if header.options.timestamps.is_some() {
            // Beside timestamps there is room for three.
            let mut sack = tcp::SackBlocks::default();
            for &(left, right) in header.options.sack.as_slice().iter().take(3) {
                sack.push(left, right);
            }
            header.options.sack = sack;
        }
        let segment = Segment { header, payload };
        let mut bytes = vec![0; tcp::HEADER + tcp::OPTIONS_MAX + payload.len()];
        let length = tcp::emit(THEIRS, OURS, &segment, &mut bytes);
        let packet = wrap(THEIRS, OURS, ip::TCP, &bytes[..length]);
        let _ = self.stack.handle_packet(self.now, &packet);
    }

    fn drain(&mut self) {
        let mut out = [0; MTU];
        let mut outputs = 0;
        while let Some(length) = self.stack.poll_transmit(self.now, &mut out) {
            let packet = ip::parse(&out[..length]).expect("our own packet");
            if packet.header.next_header == ip::TCP {
                let segment = tcp::parse(OURS, THEIRS, packet.payload);
                self.look_at(&segment.expect("our own segment"));
            }
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "outputs end");
        }
        while let Some(event) = self.stack.poll_event() {
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "events end");
            if let Event::Accepted(listener) = event {
                self.id = self.id.or(self.stack.accept(listener));
            }
        }
        if let Some(id) = self.id {
            self.stack.assert_invariants(id);
        }
    }

    /// What we transmit keeps to the protocol, whatever the peer does.
    fn look_at(&mut self, segment: &Segment<'_>) {
        let header = &segment.header;
        if header.flags.has(Flags::RST) || header.flags.has(Flags::SYN) {
            return;
        }
        let start = header.sequence.wrapping_sub(self.iss);
        if !segment.payload.is_empty() || header.flags.has(Flags::FIN) {
            let end = start + u32::try_from(segment.payload.len()).expect("small");
            for (at, byte) in (u64::from(start) - 1..).zip(segment.payload) {
                assert_eq!(*byte, ours(at), "a sequence number has one octet");
            }
            assert!(u64::from(end) <= self.sent + 1, "what the owner has sent");
            let fin = header.flags.has(Flags::FIN);
            assert!(!fin || (self.finished && u64::from(end) == self.sent + 1));
            assert!(start <= self.transmitted, "no sequence number is left out");
            assert!(end + u32::from(fin) <= self.allowed, "within the window");
            self.transmitted = self.transmitted.max(end + u32::from(fin));
        }
        let acknowledged = header.acknowledgement.wrapping_sub(self.irs);
        assert!(
            acknowledged >= self.acknowledged,
            "RCV.NXT never moves left"
        );
        let end = self.pushed + u32::from(self.peer_fin == Some(self.pushed));
        assert!(
            acknowledged <= end,
            "only what has come: {acknowledged} of {end}"
        );
        self.acknowledged = acknowledged;
        let edge =
            acknowledged + (u32::from(header.window) << if self.choice.scale { 7 } else { 0 });
        assert!(edge >= self.offered, "the right edge never moves left");
        self.offered = edge;
        for &(left, right) in header.options.sack.as_slice() {
            let (left, right) = (left.wrapping_sub(self.irs), right.wrapping_sub(self.irs));
            // A FIN that came twice is reported with its data (RFC 2883, 4).
            assert!(left < right && right <= end, "{left} to {right} of {end}");
        }
        if let Some(stamps) = header.options.timestamps {
            self.stamp = stamps.value;
        }
    }

    /// A peer that acknowledges everything and repeats what was not acknowledged: all that was
    /// sent goes out.
    fn behave(&mut self) {
        let Some(id) = self.id else { return };
        for _ in 0..TURNS_MAX {
            let state = self.stack.state(id);
            let end = u32::try_from(self.sent).expect("small") + 1 + u32::from(self.finished);
            if state.is_none_or(|state| state == State::Closed) || self.transmitted == end {
                return;
            }
            self.receive(1 << 16);
            let (start, room) = (
                self.acknowledged,
                self.offered.saturating_sub(self.acknowledged),
            );
            let end = self.pushed.min(start + room.min(1_000)).max(start);
            let bytes: Vec<u8> = (start..end).map(|at| theirs(u64::from(at) - 1)).collect();
            let fin = self.peer_fin == Some(end);
            let flags = if fin {
                Flags::ACK.with(Flags::FIN)
            } else {
                Flags::ACK
            };
            let header = self.header(flags, start, self.transmitted, 65_535);
            self.write(header, &bytes);
            self.drain();
            self.pass_to_deadline();
            self.drain();
        }
        panic!(
            "{} of {} octets were transmitted",
            self.transmitted, self.sent
        );
    }

    /// A released connection ends by itself and gives everything back.
    fn end(&mut self) {
        if let Some(id) = self.id.take() {
            self.stack.release(self.now, id);
            self.finished = true;
        }
        if let Some(listener) = self.listener.take() {
            self.stack.release_listener(self.now, listener);
        }
        for _ in 0..1_000 {
            self.drain();
            if self.stack.poll_timeout().is_none() {
                assert_eq!(self.stack.memory_bytes(), 0, "everything is given back");
                assert_eq!(self.stack.connections(), 0);
                return;
            }
            self.pass_to_deadline();
        }
        panic!("a released connection never ends");
    }
}

fn wrap(source: IpAddr, destination: IpAddr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let header = ip::Header {
        source,
        destination,
        next_header,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let mut packet = vec![0; ip::header_length(destination) + payload.len()];
    let length = ip::emit_header(&header, payload.len(), &mut packet);
    packet[length..].copy_from_slice(payload);
    packet
}

/// The octet of our stream at `offset`, and of the peer's.
fn ours(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_be_bytes()[7]
}

fn theirs(offset: u64) -> u8 {
    !ours(offset)
}
