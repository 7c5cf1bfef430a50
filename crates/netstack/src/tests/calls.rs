//! Any calls in any order, on a pair of stacks and with segments that nobody sent: invariants hold
//! after each, streams are right as long as nothing was forged, and in the end nothing is left.

use std::{net::SocketAddr, time::Duration};

use packet::{
    icmp::{self, Cause, Unreachable},
    ip, tcp,
};
use proptest::prelude::*;

use super::{
    pair::{A, B, Link, Pair, address},
    scenario::packet,
    transfer::byte,
};
use crate::{CongestionControl, ConnectionId, Limits, ListenerId, Received};

/// Connections of one program.
const STREAMS_MAX: usize = 4;
/// Little, so that programs meet it.
const MEMORY_MAX: usize = 1 << 20;

/// What an owner, the link or an attacker does.
#[derive(Clone, Copy, Debug)]
enum Call {
    Connect,
    /// On the nth stream, from that side.
    Send(usize, usize, usize),
    Receive(usize, usize, usize),
    Shutdown(usize, usize),
    Abort(usize, usize),
    Release(usize, usize),
    Nagle(usize, usize, bool),
    Keepalive(usize, usize, bool),
    Patience(usize, usize, u64),
    Control(usize, usize, CongestionControl),
    Mtu(usize, usize),
    /// Milliseconds pass.
    Pass(u64),
    /// Until something happens.
    Step,
    /// Per mille.
    Loss(u64),
    /// A segment like the latest of that side, with other flags, numbers that are off by a little,
    /// another window and a piece of the data.
    Forge {
        from: usize,
        flags: u8,
        sequence: i32,
        acknowledgement: i32,
        window: u16,
        length: usize,
        merged: bool,
    },
    /// An ICMP error that quotes the latest segment of that side, its number off by a little.
    Error(usize, Cause, i32),
}

fn call() -> impl Strategy<Value = Call> {
    let (side, nth) = (0_usize..2, 0..STREAMS_MAX);
    let of = (side.clone(), nth);
    let length = prop_oneof![0_usize..100, 0_usize..200_000];
    let off = prop_oneof![Just(0), -3_000..3_000, any::<i32>()];
    let control = prop_oneof![Just(CongestionControl::Cubic), Just(CongestionControl::Bbr)];
    let cause = prop_oneof![
        any::<u8>().prop_map(|code| Cause::Unreachable(Unreachable::Other(code))),
        Just(Cause::Unreachable(Unreachable::Port)),
        (0_u32..2_000).prop_map(|mtu| Cause::PacketTooBig { mtu }),
        Just(Cause::TimeExceeded { code: 0 }),
    ];
    let forged = (
        side.clone(),
        any::<u8>(),
        off.clone(),
        off.clone(),
        any::<u16>(),
        prop_oneof![Just(0_usize), 0_usize..1_400],
        any::<bool>(),
    );
    prop_oneof![
        2 => Just(Call::Connect),
        6 => (of.clone(), length.clone()).prop_map(|((a, b), length)| Call::Send(a, b, length)),
        6 => (of.clone(), length).prop_map(|((a, b), length)| Call::Receive(a, b, length)),
        1 => of.clone().prop_map(|(a, b)| Call::Shutdown(a, b)),
        1 => of.clone().prop_map(|(a, b)| Call::Abort(a, b)),
        1 => of.clone().prop_map(|(a, b)| Call::Release(a, b)),
        1 => (of.clone(), any::<bool>()).prop_map(|((a, b), on)| Call::Nagle(a, b, on)),
        1 => (of.clone(), any::<bool>()).prop_map(|((a, b), on)| Call::Keepalive(a, b, on)),
        1 => (of.clone(), 0_u64..100_000).prop_map(|((a, b), ms)| Call::Patience(a, b, ms)),
        1 => (of, control).prop_map(|((a, b), control)| Call::Control(a, b, control)),
        1 => (side.clone(), 576_usize..1_500).prop_map(|(side, mtu)| Call::Mtu(side, mtu)),
        4 => prop_oneof![0_u64..50, 0_u64..100_000].prop_map(Call::Pass),
        8 => Just(Call::Step),
        1 => (0_u64..400).prop_map(Call::Loss),
        3 => forged.prop_map(
            |(from, flags, sequence, acknowledgement, window, length, merged)| Call::Forge {
                from,
                flags,
                sequence,
                acknowledgement,
                window,
                length,
                merged,
            }
        ),
        1 => (side, cause, off).prop_map(|(side, cause, off)| Call::Error(side, cause, off)),
    ]
}

/// One connection from A to B, and how many bytes either side has sent and received.
struct Stream {
    /// B has its own once it has accepted.
    ids: [Option<ConnectionId>; 2],
    local: Option<SocketAddr>,
    sent: [usize; 2],
    received: [usize; 2],
}

struct World {
    pair: Pair,
    listener: ListenerId,
    remote: SocketAddr,
    streams: Vec<Stream>,
    forged: bool,
}

impl World {
    fn new(seed: u64, v6: bool, run: usize) -> Self {
        let limits = Limits {
            memory_bytes_max: MEMORY_MAX,
            ..Limits::default()
        };
        let mut pair = Pair::with_limits(seed, Link::default(), limits);
        pair.run = run;
        let (listener, remote) = pair.listen(v6);
        Self {
            pair,
            listener,
            remote,
            streams: Vec::new(),
            forged: false,
        }
    }

    fn id(&self, side: usize, nth: usize) -> Option<ConnectionId> {
        self.streams.get(nth)?.ids[side]
    }

    /// Calls `act` with the nth connection of a side, if there is one.
    fn with(
        &mut self,
        (side, nth): (usize, usize),
        act: impl FnOnce(&mut crate::Stack, std::time::Instant, ConnectionId),
    ) {
        if let Some(id) = self.id(side, nth) {
            act(&mut self.pair.stacks[side], self.pair.now, id);
        }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Connect if self.streams.len() < STREAMS_MAX => self.connect(),
            Call::Connect => {}
            Call::Send(side, nth, length) => self.send(side, nth, length),
            Call::Receive(side, nth, length) => self.receive(side, nth, length),
            Call::Shutdown(side, nth) => {
                self.with((side, nth), |stack, now, id| stack.shutdown(now, id));
            }
            Call::Abort(side, nth) => self.with((side, nth), |stack, now, id| stack.abort(now, id)),
            Call::Release(side, nth) => self.release(side, nth),
            Call::Nagle(side, nth, on) => self.with((side, nth), |stack, now, id| {
                stack.set_nagle(now, id, on).unwrap();
            }),
            Call::Keepalive(side, nth, on) => self.with((side, nth), |stack, now, id| {
                let interval = on.then_some(Duration::from_secs(1));
                stack.set_keepalive(now, id, interval).unwrap();
            }),
            Call::Patience(side, nth, millis) => self.with((side, nth), |stack, now, id| {
                let patience = Duration::from_millis(millis);
                stack.set_user_timeout(now, id, patience).unwrap();
            }),
            Call::Control(side, nth, control) => self.with((side, nth), |stack, now, id| {
                stack.set_congestion_control(now, id, control).unwrap();
            }),
            Call::Mtu(side, mtu) => self.pair.stacks[side].set_mtu(mtu),
            Call::Pass(millis) => self.pair.run_for(Duration::from_millis(millis)),
            Call::Step => {
                self.pair.step();
            }
            Call::Loss(loss) => self.pair.link.loss = loss,
            Call::Forge {
                from,
                flags,
                sequence,
                acknowledgement,
                window,
                length,
                merged,
            } => {
                let change = |header: &mut tcp::Header| {
                    header.flags = tcp::Flags(flags);
                    header.sequence = header.sequence.wrapping_add_signed(sequence);
                    header.acknowledgement =
                        header.acknowledgement.wrapping_add_signed(acknowledgement);
                    header.window = window;
                };
                self.forge(from, change, length, merged);
            }
            Call::Error(side, cause, off) => self.report(side, cause, off),
        }
    }

    fn connect(&mut self) {
        let a = self.pair.stacks[A].connect(self.pair.now, self.remote);
        let a = a.expect("there is room for a few");
        self.streams.push(Stream {
            ids: [Some(a), None],
            local: self.pair.stacks[A].local(a),
            sent: [0; 2],
            received: [0; 2],
        });
    }

    /// Takes the events, and what B may accept.
    fn settle(&mut self) {
        self.pair.drain();
        for side in [A, B] {
            self.pair.events(side);
        }
        while let Some(b) = self.pair.stacks[B].accept(self.listener) {
            let remote = self.pair.stacks[B].remote(b);
            let mut streams = self.streams.iter_mut().rev();
            let stream = streams.find(|stream| stream.ids[B].is_none() && stream.local == remote);
            match stream {
                Some(stream) => stream.ids[B] = Some(b),
                // A forged SYN, or the repeated one of a stream that was accepted before.
                None => self.pair.stacks[B].release(self.pair.now, b),
            }
        }
        self.pair.drain();
    }

    fn assert_invariants(&self) {
        for (side, stack) in self.pair.stacks.iter().enumerate() {
            for stream in &self.streams {
                if let Some(id) = stream.ids[side] {
                    stack.assert_invariants(id);
                }
            }
            // A floor for each connection, and the chunk at either end of each buffer.
            let held = stack.memory_bytes();
            assert!(held <= MEMORY_MAX + STREAMS_MAX * 4 * 4_096, "{held} bytes");
        }
    }

    fn send(&mut self, side: usize, nth: usize, length: usize) {
        let Some(id) = self.id(side, nth) else { return };
        let stream = &mut self.streams[nth];
        let sent = stream.sent[side];
        let bytes: Vec<_> = (sent..sent + length).map(|at| byte(at, side)).collect();
        if let Ok(taken) = self.pair.stacks[side].send(self.pair.now, id, &bytes) {
            assert!(taken <= length);
            stream.sent[side] += taken;
        }
    }

    fn receive(&mut self, side: usize, nth: usize, length: usize) {
        let Some(id) = self.id(side, nth) else { return };
        let stream = &mut self.streams[nth];
        let mut out = vec![0; length];
        let received = self.pair.stacks[side].recv(self.pair.now, id, &mut out);
        if let Ok(Received::Bytes(length)) = received {
            let at = stream.received[side];
            let right = (at..).zip(&out[..length]);
            let right = right
                .into_iter()
                .all(|(at, got)| *got == byte(at, 1 - side));
            assert!(self.forged || right, "what was sent, behind {at}");
            stream.received[side] += length;
            assert!(self.forged || stream.received[side] <= stream.sent[1 - side]);
        }
    }

    fn release(&mut self, side: usize, nth: usize) {
        self.with((side, nth), |stack, now, id| {
            stack.release(now, id);
            assert_eq!(stack.state(id), None, "a released id is stale");
        });
        if let Some(stream) = self.streams.get_mut(nth) {
            stream.ids[side] = None;
            // B does not accept what A has given back.
            stream.local = stream.local.filter(|_| side == B);
        }
    }

    fn forge(
        &mut self,
        from: usize,
        change: impl FnOnce(&mut tcp::Header),
        length: usize,
        merged: bool,
    ) {
        let Some((source, destination, mut header)) = self.latest(from) else {
            return;
        };
        self.forged = true;
        change(&mut header);
        let forged = packet(source, destination, header, &vec![7; length]);
        let (stack, now) = (&mut self.pair.stacks[1 - from], self.pair.now);
        let _ = if merged {
            stack.handle_merged(now, &forged)
        } else {
            stack.handle_packet(now, &forged)
        };
    }

    /// The ends and the header of the latest segment of a side.
    fn latest(&self, from: usize) -> Option<(SocketAddr, SocketAddr, tcp::Header)> {
        let parsed = ip::parse(&self.pair.latest[from]).ok()?;
        let (source, destination) = (parsed.header.source, parsed.header.destination);
        let header = tcp::parse(source, destination, parsed.payload).ok()?.header;
        Some((
            SocketAddr::new(source, header.source_port),
            SocketAddr::new(destination, header.destination_port),
            header,
        ))
    }

    fn report(&mut self, side: usize, cause: Cause, off: i32) {
        let Some((source, destination, mut header)) = self.latest(side) else {
            return;
        };
        // A connection may end for it, or its segments become short.
        self.forged = true;
        header.sequence = header.sequence.wrapping_add_signed(off);
        let quote = packet(source, destination, header, &[]);
        let (router, own) = (address(1 - side, source.is_ipv6()), source.ip());
        let message = icmp::Message::Error {
            cause,
            quote: &quote,
        };
        let next_header = if source.is_ipv6() {
            ip::ICMPV6
        } else {
            ip::ICMP
        };
        let mut out = vec![0; 200];
        let at = ip::header_length(own);
        let length = icmp::emit(router, own, &message, &mut out[at..]);
        ip::emit_header(
            &crate::stack::header(router, own, next_header),
            length,
            &mut out,
        );
        let _ = self.pair.stacks[side].handle_packet(self.pair.now, &out[..at + length]);
    }

    /// Everybody leaves: nothing may stay behind, and nothing may wait for anything.
    fn finish(mut self) {
        self.pair.link.loss = 0;
        for nth in 0..self.streams.len() {
            self.release(A, nth);
            self.release(B, nth);
        }
        self.settle();
        // Longer than every timeout, the user's among them.
        for _ in 0..10 {
            self.pair.run_for(Duration::from_secs(60));
            self.settle();
        }
        assert!(self.pair.is_silent(), "silence: nothing owed");
        for stack in &self.pair.stacks {
            assert_eq!((stack.connections(), stack.memory_bytes()), (0, 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_calls_in_any_order_keep_the_invariants(
        seed in any::<u64>(),
        v6 in any::<bool>(),
        run in prop_oneof![Just(1_usize), Just(64)],
        calls in proptest::collection::vec(call(), 1..120),
    ) {
        let mut world = World::new(seed, v6, run);
        world.connect();
        for call in calls {
            world.call(call);
            world.settle();
            world.assert_invariants();
        }
        world.finish();
    }
}
