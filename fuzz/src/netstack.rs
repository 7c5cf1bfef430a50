//! The user-mode stack: one stack under forged packets, and two stacks on a bad link.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use netstack::{
    Config, CongestionControl, ConnectionId, Event, Limits, ListenerId, Received, Stack, State,
    Transmit, UdpId,
};
use packet::{
    gro,
    icmp::{self, Cause, Unreachable},
    ip, tcp, udp,
};

use crate::input::{Input, base};

const MTU: usize = 1_420;
const STEPS_MAX: usize = 2_000;
const OUTPUTS_MAX: usize = 100_000;
/// Packets in flight; at the bound new ones are lost.
const FLIGHT_MAX: usize = 1_024;
const A: usize = 0;
const B: usize = 1;

/// One stack with a listener, a UDP socket and an opening connection under packets that are
/// malformed, or well formed with sequence numbers near the right ones.
pub fn packets(data: &[u8]) {
    let mut input = Input::new(data);
    let mut host = Host::new(A);
    let first = input.byte();
    let remote = SocketAddr::new(address(B, first & 1 == 1), 7_777);
    let listener = host
        .stack
        .listen(SocketAddr::new(address(A, first & 1 == 1), 80), 8);
    assert!(listener.is_ok());
    let socket = host
        .stack
        .bind(SocketAddr::new(address(A, first & 1 == 1), 53));
    assert!(socket.is_ok());
    let connection = host.stack.connect(host.now, remote).expect("a free port");
    let mut seen = Seen {
        port: 0,
        next: BTreeMap::new(),
    };
    seen.port = host
        .stack
        .local(connection)
        .expect("a new connection")
        .port();
    host.drain(&mut seen);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        forge(&mut host, &mut seen, &mut input, remote);
        host.drain(&mut seen);
    }
    host.stack.release(host.now, connection);
    for _ in 0..200 {
        host.now += Duration::from_secs(5);
        host.time_out();
        host.drain(&mut seen);
    }
}

/// What the stack has sent: by its own port, the next sequence number and its acknowledgement.
struct Seen {
    port: u16,
    next: BTreeMap<u16, (u32, u32)>,
}

struct Host {
    stack: Stack,
    now: Instant,
    accepted: Vec<ConnectionId>,
}

impl Host {
    fn new(at: usize) -> Self {
        let (now, _) = base();
        Self {
            stack: stack(at),
            now,
            accepted: Vec::new(),
        }
    }

    fn time_out(&mut self) {
        self.stack.handle_timeout(self.now);
        let next = self.stack.poll_timeout();
        assert!(
            next.is_none_or(|next| next > self.now),
            "what was due is done"
        );
    }

    fn drain(&mut self, seen: &mut Seen) {
        let mut out = [0; MTU];
        let mut outputs = 0;
        while let Some(length) = self.stack.poll_transmit(self.now, &mut out) {
            let packet = ip::parse(&out[..length]).expect("our own packet");
            if packet.header.next_header == ip::TCP {
                let segment = tcp::parse(
                    packet.header.source,
                    packet.header.destination,
                    packet.payload,
                );
                let segment = segment.expect("our own segment");
                let next = segment
                    .header
                    .sequence
                    .wrapping_add(segment.sequence_length());
                seen.next.insert(
                    segment.header.source_port,
                    (next, segment.header.acknowledgement),
                );
            }
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "outputs end");
        }
        while let Some(event) = self.stack.poll_event() {
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "events end");
            self.act(event);
        }
    }

    fn act(&mut self, event: Event) {
        let mut buffer = [0; 2_048];
        match event {
            Event::Accepted(listener) => self.accepted.extend(self.stack.accept(listener)),
            Event::Connected(id) => {
                let _ = self.stack.send(self.now, id, b"hello");
            }
            Event::Readable(id) => {
                for _ in 0..64 {
                    match self.stack.recv(self.now, id, &mut buffer) {
                        Ok(Received::Bytes(length)) => assert!(length > 0),
                        Ok(Received::WouldBlock) | Err(_) => break,
                        Ok(Received::End) => {
                            self.stack.shutdown(self.now, id);
                            break;
                        }
                    }
                }
            }
            Event::Closed(id, _) => self.stack.release(self.now, id),
            Event::UdpReadable(id) => {
                while let Some((length, from, _)) = self.stack.recv_from(id, &mut buffer) {
                    let _ = self.stack.send_to(id, from, &buffer[..length]);
                }
            }
            Event::Writable(_)
            | Event::UdpFailed(..)
            | Event::FlowOpened(_)
            | Event::FlowExpired(_)
            | Event::EchoRequested(_)
            | Event::EchoReply { .. }
            | Event::EchoFailed { .. } => (),
        }
    }
}

fn forge(host: &mut Host, seen: &mut Seen, input: &mut Input<'_>, remote: SocketAddr) {
    let (own, now) = (address(A, remote.is_ipv4()), host.now);
    match input.byte() % 8 {
        0 => {
            let length = usize::from(input.byte());
            let _ = host.stack.handle_packet(now, input.bytes(length));
        }
        1 => {
            // The payload of any protocol behind a right IP header.
            let (protocol, length) = (input.byte(), usize::from(input.byte()));
            let packet = wrap(remote.ip(), own, protocol, input.bytes(length));
            let _ = host.stack.handle_packet(now, &packet);
        }
        2 => {
            host.now += input.duration();
            host.time_out();
        }
        3 => {
            let length = usize::from(input.byte());
            let payload = input.bytes(length);
            let datagram = udp::Datagram {
                source_port: 9,
                destination_port: 53,
                payload,
            };
            let mut bytes = vec![0; udp::HEADER + payload.len()];
            udp::emit(remote.ip(), own, &datagram, &mut bytes);
            let _ = host
                .stack
                .handle_packet(now, &wrap(remote.ip(), own, ip::UDP, &bytes));
        }
        _ => {
            let choice = input.byte();
            let (source_port, destination_port) = match choice & 1 {
                0 => (remote.port(), seen.port),
                _ => (1_024 + u16::from(choice >> 1), 80),
            };
            let bytes = segment(seen, input, remote.ip(), own, source_port, destination_port);
            let _ = host
                .stack
                .handle_packet(now, &wrap(remote.ip(), own, ip::TCP, &bytes));
        }
    }
}

fn segment(
    seen: &Seen,
    input: &mut Input<'_>,
    source: IpAddr,
    destination: IpAddr,
    source_port: u16,
    destination_port: u16,
) -> Vec<u8> {
    let (theirs, ours) = seen
        .next
        .get(&destination_port)
        .copied()
        .unwrap_or_default();
    let delta = |number: u16| i32::from(i16::from_be_bytes(number.to_be_bytes()));
    let flags = tcp::Flags(input.byte());
    let sequence = ours.wrapping_add_signed(delta(input.number()) / 16);
    let acknowledgement = theirs.wrapping_add_signed(delta(input.number()) / 16);
    let window = input.number();
    let words = usize::from(input.byte() % 11);
    let options = input.bytes(words * 4);
    let length = usize::from(input.number() % 1_200);
    let payload = input.bytes(length);
    let header = tcp::Header {
        source_port,
        destination_port,
        sequence,
        acknowledgement,
        flags,
        window,
        ..tcp::Header::default()
    };
    let mut bytes = vec![0; tcp::HEADER];
    tcp::emit_header(&header, &mut bytes);
    bytes.extend_from_slice(options);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes[12] = u8::try_from(bytes.len() / 4).expect("at most 15 words") << 4;
    bytes.extend_from_slice(payload);
    tcp::fill_checksum(source, destination, &mut bytes);
    bytes
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

/// Two stacks on a link that a program of bytes delays, duplicates, drops, reorders and forges on,
/// whose segments travel one by one or in runs, and whose owners change their minds.
/// As long as nothing was forged, a stream brings what was sent, in order and without gaps.
pub fn pair(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        world.step(&mut input);
    }
    world.finish();
}

struct World {
    now: Instant,
    stacks: [Stack; 2],
    flights: VecDeque<(usize, Vec<u8>)>,
    listeners: [ListenerId; 2],
    sockets: [UdpId; 2],
    connections: [Vec<Stream>; 2],
    /// Segments that leave at once; above one, what comes in a row is merged on arrival.
    run: usize,
    forged: bool,
}

struct Stream {
    id: ConnectionId,
    sent: u64,
    received: u64,
}

impl World {
    fn new() -> Self {
        let (now, _) = base();
        let mut stacks = [stack(A), stack(B)];
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80));
        let listeners = stacks
            .each_mut()
            .map(|stack| stack.listen(any, 4).expect("a free port"));
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 53));
        let sockets = stacks
            .each_mut()
            .map(|stack| stack.bind(any).expect("a free port"));
        let connections = [Vec::new(), Vec::new()];
        let flights = VecDeque::new();
        Self {
            now,
            stacks,
            flights,
            listeners,
            sockets,
            connections,
            run: 1,
            forged: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let at = usize::from(operation >> 7);
        let now = self.now;
        match operation & 0x0f {
            0 if self.connections[at].len() < 32 => {
                let remote = SocketAddr::new(address(1 - at, false), 80);
                let id = self.stacks[at].connect(now, remote);
                let stream = id.ok().map(|id| Stream {
                    id,
                    sent: 0,
                    received: 0,
                });
                self.connections[at].extend(stream);
            }
            1 | 2 => {
                let (nth, length) = (input.byte(), usize::from(input.number()));
                self.send(at, usize::from(nth), length);
            }
            3 => self.receive(at, usize::from(input.byte()), usize::from(input.number())),
            4 => {
                let (nth, how) = (usize::from(input.byte()), input.byte());
                self.close(at, nth, how);
            }
            5..=7 if self.run > 1 => self.deliver_run(),
            5..=7 => self.deliver(0, false),
            8 => self.deliver(usize::from(input.byte()), operation & 0x40 != 0),
            9 => drop(self.take(usize::from(input.byte()))),
            10 => {
                let nth = usize::from(input.byte());
                let (place, change) = (usize::from(input.number()), input.byte());
                if let Some((to, mut packet)) = self.take(nth) {
                    self.forged = true;
                    let length = packet.len();
                    packet[place % length] ^= change;
                    let _ = self.stacks[to].handle_packet(now, &packet);
                }
            }
            11 => {
                self.now += input.duration();
                self.time_out();
            }
            12 => {
                let due = self.stacks.iter().filter_map(Stack::poll_timeout).min();
                self.now = due.map_or(now, |due| due.max(now));
                self.time_out();
            }
            13 => {
                let remote = SocketAddr::new(address(1 - at, true), 53);
                let payload = [operation; 600];
                let length = usize::from(input.number() % 600);
                let socket = self.sockets[at];
                let _ = self.stacks[at].send_to(socket, remote, &payload[..length]);
            }
            14 => {
                let remote = address(1 - at, operation & 0x10 != 0);
                let length = usize::from(input.number() % 2_000);
                let _ = self.stacks[at].ping(now, remote, 1, length);
            }
            _ => self.set(at, input),
        }
        self.drain();
    }

    /// What an owner sets, or a router reports.
    fn set(&mut self, at: usize, input: &mut Input<'_>) {
        let (what, nth, value) = (input.byte(), usize::from(input.byte()), input.byte());
        let now = self.now;
        if what % 8 < 2 {
            self.run = if value & 1 == 1 { 64 } else { 1 };
            return;
        }
        if what % 8 == 2 {
            self.stacks[at].set_mtu(1_280 + usize::from(value));
            return;
        }
        if what % 8 == 3 {
            self.report(nth, value);
            return;
        }
        let count = self.connections[at].len();
        if count == 0 {
            return;
        }
        let (id, on) = (self.connections[at][nth % count].id, value & 1 == 1);
        let stack = &mut self.stacks[at];
        let set = match what % 8 {
            4 => stack.set_nagle(now, id, on),
            5 => stack.set_keepalive(now, id, on.then(|| Duration::from_secs(value.into()))),
            6 => stack.set_user_timeout(now, id, Duration::from_secs(value.into())),
            _ if on => stack.set_congestion_control(now, id, CongestionControl::Bbr),
            _ => stack.set_congestion_control(now, id, CongestionControl::Cubic),
        };
        assert!(set.is_ok(), "it was not released");
    }

    /// An ICMP error about a packet in flight, to who has sent it.
    fn report(&mut self, nth: usize, value: u8) {
        let count = self.flights.len();
        if count == 0 {
            return;
        }
        let (to, packet) = &self.flights[nth % count];
        let parsed = ip::parse(packet).expect("our own packet");
        let (own, router) = (parsed.header.source, parsed.header.destination);
        let cause = match value % 4 {
            0 => Cause::Unreachable(Unreachable::Port),
            1 => Cause::Unreachable(Unreachable::Other(value)),
            2 => Cause::TimeExceeded { code: 0 },
            _ => Cause::PacketTooBig {
                mtu: u32::from(value) * 8,
            },
        };
        let quote = &packet[..packet.len().min(ip::header_length(own) + tcp::HEADER)];
        let message = icmp::Message::Error { cause, quote };
        let protocol = if own.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
        let mut bytes = vec![0; icmp::HEADER + quote.len()];
        let length = icmp::emit(router, own, &message, &mut bytes);
        let error = wrap(router, own, protocol, &bytes[..length]);
        let _ = self.stacks[1 - to].handle_packet(self.now, &error);
    }

    fn send(&mut self, at: usize, nth: usize, length: usize) {
        let count = self.connections[at].len();
        if count == 0 {
            return;
        }
        let stream = &mut self.connections[at][nth % count];
        let bytes: Vec<u8> = (0..)
            .map(|offset| pattern(stream.sent + offset))
            .take(length)
            .collect();
        if let Ok(taken) = self.stacks[at].send(self.now, stream.id, &bytes) {
            assert!(taken <= length);
            stream.sent += u64::try_from(taken).expect("a length fits 64 bits");
        }
    }

    fn receive(&mut self, at: usize, nth: usize, length: usize) {
        let count = self.connections[at].len();
        if count == 0 {
            return;
        }
        let stream = &mut self.connections[at][nth % count];
        let mut buffer = vec![0; length.max(1)];
        if let Ok(Received::Bytes(taken)) = self.stacks[at].recv(self.now, stream.id, &mut buffer) {
            for byte in &buffer[..taken] {
                assert!(
                    self.forged || *byte == pattern(stream.received),
                    "what was sent"
                );
                stream.received += 1;
            }
        }
    }

    fn close(&mut self, at: usize, nth: usize, how: u8) {
        let count = self.connections[at].len();
        if count == 0 {
            return;
        }
        let id = self.connections[at][nth % count].id;
        match how % 4 {
            0 => self.stacks[at].abort(self.now, id),
            1 => {
                self.connections[at].swap_remove(nth % count);
                self.stacks[at].release(self.now, id);
                assert_eq!(self.stacks[at].state(id), None, "a released id is stale");
            }
            _ => self.stacks[at].shutdown(self.now, id),
        }
    }

    fn take(&mut self, nth: usize) -> Option<(usize, Vec<u8>)> {
        let count = self.flights.len();
        (count > 0)
            .then(|| self.flights.remove(nth % count))
            .flatten()
    }

    fn deliver(&mut self, nth: usize, keep: bool) {
        if let Some((to, packet)) = self.take(nth) {
            let _ = self.stacks[to].handle_packet(self.now, &packet);
            if keep {
                self.flights.push_back((to, packet));
            }
        }
    }

    /// Delivers what comes next and whatever directly follows it, merged.
    fn deliver_run(&mut self) {
        let Some((to, packet)) = self.take(0) else {
            return;
        };
        let Ok(mut run) = gro::Run::begin(&packet, Vec::new()) else {
            let _ = self.stacks[to].handle_packet(self.now, &packet);
            return;
        };
        while self
            .flights
            .front()
            .is_some_and(|(other, packet)| *other == to && run.append(packet))
        {
            self.flights.pop_front();
        }
        let (merged, _) = run.finish();
        let _ = self.stacks[to].handle_merged(self.now, &merged);
    }

    fn time_out(&mut self) {
        for stack in &mut self.stacks {
            stack.handle_timeout(self.now);
            let next = stack.poll_timeout();
            assert!(
                next.is_none_or(|next| next > self.now),
                "what was due is done"
            );
        }
    }

    fn drain(&mut self) {
        let mut out = vec![0; MTU.max(1_280 + 255)];
        for at in [A, B] {
            let mut outputs = 0;
            while let Some(packets) = self.transmit(at, &mut out) {
                for packet in packets {
                    assert!(ip::parse(&packet).is_ok(), "our own packet");
                    if self.flights.len() < FLIGHT_MAX {
                        self.flights.push_back((1 - at, packet));
                    }
                    outputs += 1;
                    assert!(outputs < OUTPUTS_MAX, "outputs end");
                }
            }
            while let Some(event) = self.stacks[at].poll_event() {
                outputs += 1;
                assert!(outputs < OUTPUTS_MAX, "events end");
                self.act(at, event);
            }
        }
    }

    /// The next packet of a stack, or the packets of its next run.
    fn transmit(&mut self, at: usize, out: &mut [u8]) -> Option<Vec<Vec<u8>>> {
        match self.stacks[at].poll_transmit_large(self.now, self.run, out)? {
            Transmit::Packet(length) => Some(vec![out[..length].to_vec()]),
            Transmit::Large(mut large) => {
                assert!((2..=self.run).contains(&large.segments()));
                let mut packets = Vec::new();
                while let Some(length) = large.next_into(out) {
                    packets.push(out[..length].to_vec());
                }
                Some(packets)
            }
        }
    }

    fn act(&mut self, at: usize, event: Event) {
        match event {
            Event::Accepted(listener) => {
                assert_eq!(listener, self.listeners[at]);
                while let Some(id) = self.stacks[at].accept(listener) {
                    self.connections[at].push(Stream {
                        id,
                        sent: 0,
                        received: 0,
                    });
                }
            }
            Event::UdpReadable(id) => {
                let mut buffer = [0; 2_048];
                while self.stacks[at].recv_from(id, &mut buffer).is_some() {}
            }
            Event::Connected(id) => {
                let state = self.stacks[at].state(id);
                assert!(state.is_some_and(|state| state != State::SynSent));
            }
            Event::Readable(_)
            | Event::Writable(_)
            | Event::Closed(..)
            | Event::UdpFailed(..)
            | Event::FlowOpened(_)
            | Event::FlowExpired(_)
            | Event::EchoRequested(_)
            | Event::EchoReply { .. }
            | Event::EchoFailed { .. } => (),
        }
    }

    /// Releases everything and waits: the stacks end by themselves and want no more time.
    fn finish(mut self) {
        for at in [A, B] {
            for stream in std::mem::take(&mut self.connections[at]) {
                self.stacks[at].release(self.now, stream.id);
            }
            self.stacks[at].release_listener(self.now, self.listeners[at]);
        }
        for _ in 0..1_000 {
            self.drain();
            for at in [A, B] {
                // What was accepted meanwhile goes too.
                for stream in std::mem::take(&mut self.connections[at]) {
                    self.stacks[at].release(self.now, stream.id);
                }
            }
            for _ in 0..FLIGHT_MAX {
                self.deliver(0, false);
                self.drain();
            }
            let Some(due) = self.stacks.iter().filter_map(Stack::poll_timeout).min() else {
                return;
            };
            self.now = due.max(self.now);
            self.time_out();
        }
        panic!("released connections never end");
    }
}

/// A byte of every stream, by its place.
fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_be_bytes()[7]
}

fn stack(at: usize) -> Stack {
    let last = u8::try_from(at + 1).expect("one or two");
    let limits = Limits {
        connections_max: 64,
        half_open_max: 8,
        ..Limits::default()
    };
    Stack::new(Config {
        addresses: vec![address(at, true), address(at, false)],
        mtu: MTU,
        seed: [last; 32],
        limits,
    })
}

fn address(at: usize, v4: bool) -> IpAddr {
    let last = u8::try_from(at + 1).expect("one or two");
    if v4 {
        Ipv4Addr::new(10, 0, 0, last).into()
    } else {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)).into()
    }
}
