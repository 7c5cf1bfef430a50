//! Packet traces written from the RFCs: one stack, and a peer that is spelled out.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use packet::{
    icmp::{Cause, Message, Unreachable},
    ip,
    tcp::{self, Flags, Header, Options, Segment, Timestamps},
};

use super::pair::{A, B, address, base, config};
use crate::{CloseReason, Config, ConnectionId, Discard, Event, Received, Stack, State};

pub(super) const SYN: Flags = Flags::SYN;
pub(super) const ACK: Flags = Flags::ACK;
pub(super) const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
pub(super) const FIN_ACK: Flags = Flags::FIN.with(Flags::ACK);
pub(super) const RST: Flags = Flags::RST;
/// The initial sequence number of the peer.
pub(super) const IRS: u32 = 5_000;
/// What our stack puts into a full segment at an MTU of 1420 without options.
pub(super) const MSS: usize = 1380;

/// Our stack, and the pen that writes its peer's segments.
pub(super) struct Wire {
    pub(super) stack: Stack,
    pub(super) now: Instant,
    pub(super) id: ConnectionId,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Our initial sequence number.
    pub(super) iss: u32,
    pub(super) window: u16,
}

pub(super) fn listening() -> (Stack, Instant, SocketAddr) {
    let mut stack = Stack::new(config(A, 7));
    let local = SocketAddr::new(address(A, false), 80);
    stack.listen(local, 10).unwrap();
    (stack, base(), local)
}

impl Wire {
    /// An active open whose SYN is on the wire.
    pub(super) fn opening() -> Self {
        Self::opening_with(config(A, 7))
    }

    pub(super) fn opening_with(config: Config) -> Self {
        Self::opening_on(Stack::new(config), SYN)
    }

    /// An active open whose SYN has those flags.
    pub(super) fn opening_on(mut stack: Stack, flags: Flags) -> Self {
        let now = base();
        let remote = SocketAddr::new(address(B, false), 443);
        let id = stack.connect(now, remote).unwrap();
        let local = stack.local(id).unwrap();
        let mut wire = Self {
            stack,
            now,
            id,
            local,
            remote,
            iss: 0,
            window: 65_535,
        };
        let syn = wire.sent_one();
        assert_eq!(syn.0.flags, flags);
        wire.iss = syn.0.sequence;
        wire
    }

    /// An established connection with a peer without any options but an MSS of 1380.
    pub(super) fn established() -> Self {
        let mut wire = Self::opening();
        wire.establish(Options {
            maximum_segment_size: Some(1380),
            ..Options::default()
        });
        wire
    }

    /// The same with SACK.
    pub(super) fn with_sack() -> Self {
        let mut wire = Self::opening();
        wire.establish(Options {
            maximum_segment_size: Some(1380),
            sack_permitted: true,
            ..Options::default()
        });
        wire
    }

    pub(super) fn establish(&mut self, options: Options) {
        let mut header = self.header(SYN_ACK, 0, 1);
        header.options = options;
        self.write(header, &[]).unwrap();
        assert_eq!(self.sent_one().0.flags, ACK);
        assert_eq!(self.stack.poll_event(), Some(Event::Connected(self.id)));
    }

    /// `sequence` and `acknowledgement` count from the initial numbers.
    pub(super) fn header(&self, flags: Flags, sequence: u32, acknowledgement: u32) -> Header {
        Header {
            source_port: self.remote.port(),
            destination_port: self.local.port(),
            sequence: IRS.wrapping_add(sequence),
            acknowledgement: self.iss.wrapping_add(acknowledgement),
            flags,
            window: self.window,
            ..Header::default()
        }
    }

    pub(super) fn write(&mut self, header: Header, payload: &[u8]) -> Result<(), Discard> {
        let packet = packet(self.remote, self.local, header, payload);
        self.stack.handle_packet(self.now, &packet)
    }

    pub(super) fn get(
        &mut self,
        flags: Flags,
        seq: u32,
        ack: u32,
        data: &[u8],
    ) -> Result<(), Discard> {
        self.write(self.header(flags, seq, ack), data)
    }

    pub(super) fn sent(&mut self) -> Vec<(Header, Vec<u8>)> {
        sent(&mut self.stack, self.now)
    }

    pub(super) fn sent_one(&mut self) -> (Header, Vec<u8>) {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    /// What goes out: flags, sequence number, acknowledgement number, length.
    pub(super) fn expect(&mut self, expected: &[(Flags, u32, u32, usize)]) {
        let iss = self.iss;
        let sent = self.sent().into_iter().map(|(header, payload)| {
            let ack = if header.flags.has(ACK) {
                header.acknowledgement - IRS
            } else {
                0
            };
            let flags = Flags(header.flags.0 & !Flags::PSH.0);
            (flags, header.sequence.wrapping_sub(iss), ack, payload.len())
        });
        assert_eq!(sent.collect::<Vec<_>>(), expected);
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.stack.handle_timeout(self.now);
    }

    /// Goes on to the next deadline and returns how long that took.
    pub(super) fn wait_for_timer(&mut self) -> Duration {
        let began = self.now;
        self.now = self
            .stack
            .poll_timeout()
            .expect("a timer runs")
            .max(self.now);
        self.stack.handle_timeout(self.now);
        self.now - began
    }

    /// Goes on over deadlines until something is sent.
    pub(super) fn wait_for_segment(&mut self) -> (Duration, Vec<(Header, Vec<u8>)>) {
        let began = self.now;
        loop {
            self.wait_for_timer();
            let sent = self.sent();
            if !sent.is_empty() {
                return (self.now - began, sent);
            }
        }
    }

    pub(super) fn send(&mut self, length: usize) {
        let taken = self.stack.send(self.now, self.id, &vec![7; length]);
        assert_eq!(taken, Ok(length));
    }

    pub(super) fn state(&self) -> State {
        self.stack.state(self.id).unwrap()
    }

    pub(super) fn recv(&mut self) -> Received {
        self.stack
            .recv(self.now, self.id, &mut [0; 10_000])
            .unwrap()
    }
}

pub(super) fn packet(from: SocketAddr, to: SocketAddr, header: Header, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 2_000];
    let length = tcp::HEADER + header.options.length() + payload.len();
    let ip = crate::stack::header(from.ip(), to.ip(), ip::TCP);
    let at = ip::emit_header(&ip, length, &mut out);
    tcp::emit(
        from.ip(),
        to.ip(),
        &Segment { header, payload },
        &mut out[at..],
    );
    out.truncate(at + length);
    out
}

pub(super) fn sent(stack: &mut Stack, now: Instant) -> Vec<(Header, Vec<u8>)> {
    let mut out = [0; 1_500];
    let mut sent = Vec::new();
    while let Some(length) = stack.poll_transmit(now, &mut out) {
        let packet = ip::parse(&out[..length]).unwrap();
        assert!(ip::v4_checksum_holds(&out[..length]));
        let (source, destination) = (packet.header.source, packet.header.destination);
        let segment = tcp::parse(source, destination, packet.payload).unwrap();
        sent.push((segment.header, segment.payload.to_vec()));
    }
    sent
}

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_three_way_handshake_opens_actively_and_passively() {
    let wire = Wire::established();
    assert_eq!(wire.state(), State::Established);
    let (mut stack, now, local) = listening();
    let remote = SocketAddr::new(address(B, false), 999);
    let mut header = Header {
        source_port: 999,
        destination_port: 80,
        ..Header::default()
    };
    header.sequence = IRS;
    header.flags = SYN;
    header.window = 1_000;
    stack
        .handle_packet(now, &packet(remote, local, header, &[]))
        .unwrap();
    let answer = sent(&mut stack, now).remove(0).0;
    assert_eq!((answer.flags, answer.acknowledgement), (SYN_ACK, IRS + 1));
    assert_eq!(
        answer.options,
        Options {
            maximum_segment_size: Some(1380),
            ..Options::default()
        }
    );
    header.flags = ACK;
    header.sequence += 1;
    header.acknowledgement = answer.sequence + 1;
    stack
        .handle_packet(now, &packet(remote, local, header, &[]))
        .unwrap();
    let Some(Event::Accepted(listener)) = stack.poll_event() else {
        panic!("accepted")
    };
    let id = stack.accept(listener).unwrap();
    assert_eq!(stack.state(id), Some(State::Established));
}

#[test]
fn our_syn_offers_every_option() {
    let mut wire = Wire::opening();
    wire.wait(Duration::from_secs(1));
    let options = wire.sent_one().0.options;
    assert_eq!(options.maximum_segment_size, Some(1380));
    assert_eq!(
        (options.window_scale, options.sack_permitted),
        (Some(7), true)
    );
    assert!(options.timestamps.is_some());
}

#[test]
fn an_unanswered_syn_goes_out_again_after_a_second_and_then_twice_as_late_each_time() {
    // RFC 6298, 2.1 and 5.5.
    let mut wire = Wire::opening();
    for expected in [1, 2, 4, 8] {
        let (after, sent) = wire.wait_for_segment();
        assert_eq!((after, sent.len()), (Duration::from_secs(expected), 1));
        assert_eq!(sent[0].0.flags, SYN);
    }
}

#[test]
fn both_may_open_at_once() {
    let mut wire = Wire::opening();
    wire.get(SYN, 0, 0, &[]).unwrap();
    assert_eq!(wire.state(), State::SynReceived);
    wire.expect(&[(SYN_ACK, 0, 1, 0)]);
    wire.get(SYN_ACK, 0, 1, &[]).unwrap();
    assert_eq!(wire.state(), State::Established);
    assert_eq!(wire.stack.poll_event(), Some(Event::Connected(wire.id)));
}

#[test]
fn a_reset_answers_our_syn_only_with_its_acknowledgement() {
    let mut wire = Wire::opening();
    assert_eq!(wire.get(RST, 0, 0, &[]), Err(Discard::TcpUnacceptable));
    assert_eq!(
        wire.get(RST.with(ACK), 0, 7, &[]),
        Err(Discard::TcpUnacceptable)
    );
    wire.get(RST.with(ACK), 0, 1, &[]).unwrap();
    let closed = Event::Closed(wire.id, CloseReason::Refused);
    assert_eq!(wire.stack.poll_event(), Some(closed));
}

#[test]
fn a_wrong_acknowledgement_of_our_syn_is_reset() {
    let mut wire = Wire::opening();
    assert_eq!(wire.get(SYN_ACK, 0, 99, &[]), Err(Discard::TcpNoSocket));
    wire.expect(&[(RST, 99, 0, 0)]);
    assert_eq!(wire.state(), State::SynSent);
}

#[test]
fn a_silent_peer_is_asked_with_growing_gaps_and_then_given_up() {
    let mut wire = Wire::opening();
    for seconds in [1, 2, 4, 8] {
        let (after, sent) = wire.wait_for_segment();
        assert_eq!(
            (after, sent[0].0.flags),
            (Duration::from_secs(seconds), SYN)
        );
    }
    wire.wait_for_timer();
    assert_eq!(wire.sent(), []);
    let closed = Event::Closed(wire.id, CloseReason::TimedOut);
    assert_eq!(wire.stack.poll_event(), Some(closed));
    assert_eq!(wire.stack.poll_timeout(), None);
}

#[test]
fn we_close_first_and_wait_out_late_segments() {
    let mut wire = Wire::established();
    wire.stack.shutdown(wire.now, wire.id);
    wire.expect(&[(FIN_ACK, 1, 1, 0)]);
    assert_eq!(wire.state(), State::FinWait1);
    wire.get(ACK, 1, 2, &[]).unwrap();
    assert_eq!(wire.state(), State::FinWait2);
    // The other half goes on.
    wire.get(ACK, 1, 2, b"late").unwrap();
    assert_eq!(wire.recv(), Received::Bytes(4));
    wire.get(FIN_ACK, 5, 2, &[]).unwrap();
    assert_eq!(
        (wire.state(), wire.recv()),
        (State::TimeWait, Received::End)
    );
    wire.expect(&[(ACK, 2, 6, 0)]);
    // A repeated FIN is acknowledged again and prolongs the wait.
    wire.wait(Duration::from_secs(59));
    assert!(wire.get(FIN_ACK, 5, 2, &[]).is_err());
    wire.expect(&[(ACK, 2, 6, 0)]);
    wire.wait(Duration::from_secs(59));
    assert_eq!(wire.state(), State::TimeWait);
    wire.wait(Duration::from_secs(2));
    assert_eq!(wire.state(), State::Closed);
    assert_eq!(
        wire.stack.close_reason(wire.id),
        Some(CloseReason::Finished)
    );
}

#[test]
fn the_peer_closes_first_and_we_go_on() {
    let mut wire = Wire::established();
    wire.get(FIN_ACK, 1, 1, &[]).unwrap();
    assert_eq!(
        (wire.state(), wire.recv()),
        (State::CloseWait, Received::End)
    );
    wire.expect(&[(ACK, 1, 2, 0)]);
    wire.send(10);
    wire.expect(&[(ACK, 1, 2, 10)]);
    wire.stack.shutdown(wire.now, wire.id);
    wire.expect(&[(FIN_ACK, 11, 2, 0)]);
    assert_eq!(wire.state(), State::LastAck);
    wire.get(ACK, 2, 12, &[]).unwrap();
    assert_eq!(wire.state(), State::Closed);
}

#[test]
fn both_may_close_at_once() {
    let mut wire = Wire::established();
    wire.stack.shutdown(wire.now, wire.id);
    wire.expect(&[(FIN_ACK, 1, 1, 0)]);
    wire.get(FIN_ACK, 1, 1, &[]).unwrap();
    assert_eq!(wire.state(), State::Closing);
    wire.expect(&[(ACK, 2, 2, 0)]);
    wire.get(ACK, 2, 2, &[]).unwrap();
    assert_eq!(wire.state(), State::TimeWait);
}

#[test]
fn a_fin_that_overtakes_its_data_waits() {
    let mut wire = Wire::established();
    wire.get(FIN_ACK, 5, 1, b"tail").unwrap();
    assert_eq!(
        (wire.state(), wire.recv()),
        (State::Established, Received::WouldBlock)
    );
    wire.get(ACK, 1, 1, b"head").unwrap();
    assert_eq!(
        (wire.state(), wire.recv()),
        (State::CloseWait, Received::Bytes(8))
    );
    assert_eq!(wire.recv(), Received::End);
}

/// Brings a connection into `state`, with our next sequence number.
fn in_state(state: State) -> (Wire, u32, u32) {
    let mut wire = Wire::established();
    let (mut rcv, mut snd) = (1, 1);
    if matches!(state, State::CloseWait | State::LastAck) {
        wire.get(FIN_ACK, 1, 1, &[]).unwrap();
        rcv = 2;
    }
    if !matches!(state, State::Established | State::CloseWait) {
        wire.stack.shutdown(wire.now, wire.id);
        snd = 2;
    }
    wire.sent();
    if matches!(state, State::FinWait2 | State::TimeWait) {
        wire.get(ACK, rcv, 2, &[]).unwrap();
    }
    if matches!(state, State::Closing | State::TimeWait) {
        wire.get(
            FIN_ACK,
            1,
            snd.min(if state == State::Closing { 1 } else { 2 }),
            &[],
        )
        .unwrap();
        rcv = 2;
    }
    wire.sent();
    assert_eq!(wire.state(), state);
    (wire, rcv, snd)
}

const SYNCHRONIZED: [State; 7] = [
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::Closing,
    State::LastAck,
    State::TimeWait,
];

#[test]
fn a_reset_ends_every_state_at_its_exact_sequence_number_only() {
    for state in SYNCHRONIZED {
        let (mut wire, rcv, snd) = in_state(state);
        assert!(
            wire.get(RST, rcv.wrapping_sub(1), 0, &[]).is_err(),
            "{state:?}"
        );
        wire.expect(&[]);
        // Inside the window but not exact: challenged (RFC 5961, 3.2).
        let inside = wire.get(RST, rcv + 100, 0, &[]);
        assert_eq!(inside, Err(Discard::TcpChallenged), "{state:?}");
        wire.expect(&[(ACK, snd, rcv, 0)]);
        assert_eq!(wire.state(), state);
        wire.get(RST, rcv, 0, &[]).unwrap();
        assert_eq!(wire.state(), State::Closed, "{state:?}");
        wire.expect(&[]);
    }
}

#[test]
fn a_blind_syn_or_acknowledgement_is_challenged_in_every_state() {
    for state in SYNCHRONIZED {
        let (mut wire, rcv, snd) = in_state(state);
        let syn = wire.get(SYN_ACK, rcv, snd, &[]);
        assert_eq!(syn, Err(Discard::TcpChallenged), "{state:?}");
        wire.expect(&[(ACK, snd, rcv, 0)]);
        for blind in [snd + 1, snd.wrapping_sub(70_000)] {
            let data = wire.get(ACK, rcv, blind, b"blind");
            assert_eq!(data, Err(Discard::TcpChallenged), "{state:?}");
            wire.expect(&[(ACK, snd, rcv, 0)]);
        }
        assert_eq!(
            (wire.state(), wire.stack.close_reason(wire.id)),
            (state, None)
        );
    }
}

#[test]
fn challenges_are_few() {
    let mut wire = Wire::established();
    let mut answers = 0;
    for _ in 0..100 {
        assert!(wire.get(RST, 100, 0, &[]).is_err());
        answers += wire.sent().len();
    }
    assert_eq!(answers, 10);
}

#[test]
fn a_closed_window_is_probed_with_growing_gaps_and_for_as_long_as_it_takes() {
    let mut wire = Wire::established();
    wire.window = 0;
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.send(100);
    wire.expect(&[]);
    let mut gaps = Vec::new();
    for _ in 0..12 {
        let (after, sent) = wire.wait_for_segment();
        gaps.push(after);
        assert_eq!(sent[0].0.sequence, wire.iss, "one below what is expected");
        wire.get(ACK, 1, 1, &[]).unwrap();
    }
    assert!(gaps.windows(2).all(|pair| pair[0] <= pair[1]), "{gaps:?}");
    assert_eq!(
        (gaps[0], *gaps.last().unwrap()),
        (millis(200), Duration::from_secs(40))
    );
    assert_eq!(wire.state(), State::Established);
    wire.window = 65_535;
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.expect(&[(ACK, 1, 1, 100)]);
}

#[test]
fn a_closed_window_of_a_dead_peer_ends_the_connection() {
    let mut wire = Wire::established();
    wire.window = 0;
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.wait(Duration::from_secs(1_000));
    wire.send(100);
    let began = wire.now;
    while wire.state() == State::Established {
        wire.wait_for_timer();
        wire.sent();
    }
    assert_eq!(wire.now - began, Duration::from_secs(120));
    assert_eq!(
        wire.stack.close_reason(wire.id),
        Some(CloseReason::TimedOut)
    );
}

#[test]
fn our_window_closes_and_opens_again() {
    let mut config = config(A, 7);
    config.limits.receive_bytes_max = 8_000;
    let mut wire = Wire::opening_with(config);
    wire.establish(Options::default());
    for at in 0..8 {
        wire.get(ACK, 1 + at * 1_000, 1, &[1; 1_000]).unwrap();
        wire.sent();
    }
    // Full: a probe is answered, not taken.
    wire.get(ACK, 8_001, 1, b"x").unwrap();
    assert_eq!(wire.sent_one().0.window, 0);
    assert_eq!(wire.recv(), Received::Bytes(8_000));
    assert_eq!(wire.sent_one().0.window, 8_000);
}

#[test]
fn windows_are_scaled_both_ways_or_not_at_all() {
    let mut wire = Wire::opening();
    wire.window = 10;
    wire.establish(Options {
        window_scale: Some(9),
        ..Options::default()
    });
    // The window of the SYN-ACK was ten octets, this one is 10 << 9.
    wire.get(ACK, 1, 1, b"hello").unwrap();
    assert_eq!(wire.sent_one().0.window, 2_048, "256 KiB >> 7");
    wire.send(10 << 9);
    let octets: usize = wire.sent().iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(octets, 10 << 9);
    wire.send(1);
    assert_eq!(wire.sent(), []);
}

#[test]
fn three_duplicate_acknowledgements_repeat_the_first_segment() {
    let mut wire = Wire::established();
    wire.send(10 * MSS);
    assert_eq!(wire.sent().len(), 10);
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.expect(&[]);
    wire.get(ACK, 1, 1, &[]).unwrap();
    wire.expect(&[(ACK, 1, 1, MSS)]);
    // A partial acknowledgement uncovers the next hole (RFC 6582).
    let third = 1 + 2 * u32::try_from(MSS).unwrap();
    wire.get(ACK, 1, third, &[]).unwrap();
    assert_eq!(wire.sent()[0].0.sequence, wire.iss.wrapping_add(third));
}

#[test]
fn each_of_the_first_two_duplicate_acknowledgements_lets_one_new_segment_out_at_once() {
    // Limited transmit (RFC 3042), which the pace does not delay.
    let mut wire = Wire::opening();
    wire.wait(millis(100));
    wire.establish(Options {
        maximum_segment_size: Some(1380),
        ..Options::default()
    });
    wire.send(20 * MSS);
    assert_eq!(wire.sent().len(), 10);
    wire.wait(millis(100));
    for segment in [10, 11, 0] {
        wire.get(ACK, 1, 1, &[]).unwrap();
        let sequence = 1 + u32::try_from(segment * MSS).unwrap();
        wire.expect(&[(ACK, sequence, 1, MSS)]);
    }
}

#[test]
fn sack_repeats_exactly_what_is_missing() {
    let mut wire = Wire::with_sack();
    wire.send(10 * MSS);
    assert_eq!(wire.sent().len(), 10);
    let at = |segment: usize| 1 + u32::try_from(segment * MSS).unwrap();
    // The first, third and fifth are lost.
    let mut header = wire.header(ACK, 1, 1);
    let iss = wire.iss;
    let mut block = |from, to| {
        header
            .options
            .sack
            .push(iss.wrapping_add(at(from)), iss.wrapping_add(at(to)));
    };
    block(5, 10);
    block(3, 4);
    block(1, 2);
    wire.wait(millis(1));
    wire.write(header, &[]).unwrap();
    let mut repeated = wire.sent();
    wire.wait(millis(100));
    repeated.extend(wire.sent());
    wire.get(ACK, 1, at(2), &[]).unwrap();
    repeated.extend(wire.sent());
    let sequences: Vec<_> = repeated
        .iter()
        .map(|s| s.0.sequence.wrapping_sub(iss))
        .collect();
    assert_eq!(sequences, [at(0), at(2), at(4)]);
}

#[test]
fn sack_blocks_report_what_came_out_of_order_and_what_came_twice() {
    let mut wire = Wire::with_sack();
    wire.get(ACK, 11, 1, &[1; 10]).unwrap();
    wire.get(ACK, 31, 1, &[1; 10]).unwrap();
    let block = |from: u32, to: u32| (IRS + from, IRS + to);
    let options = wire.sent_one().0.options;
    assert_eq!(options.sack.as_slice(), [block(31, 41), block(11, 21)]);
    // RFC 2883, 4: the first block names a duplicate, the second what it belongs to.
    wire.get(ACK, 11, 1, &[1; 10]).unwrap();
    let options = wire.sent_one().0.options;
    assert_eq!(
        options.sack.as_slice(),
        [block(11, 21), block(11, 21), block(31, 41)]
    );
    wire.get(ACK, 1, 1, &[1; 10]).unwrap();
    let (header, _) = wire.sent_one();
    assert_eq!(header.acknowledgement, IRS + 21);
    assert_eq!(header.options.sack.as_slice(), [block(31, 41)]);
}

#[test]
fn out_of_order_ranges_are_bounded() {
    let mut wire = Wire::with_sack();
    for at in 0..256 {
        wire.get(ACK, 11 + at * 10, 1, &[1; 5]).unwrap();
    }
    assert_eq!(wire.get(ACK, 4_001, 1, &[1; 5]), Err(Discard::TcpNoRoom));
    wire.get(ACK, 1, 1, &[1; 10]).unwrap();
    assert_eq!(wire.recv(), Received::Bytes(15));
}

#[test]
fn the_retransmission_timeout_doubles_and_starts_again_after_progress() {
    let mut wire = Wire::established();
    wire.send(100);
    wire.expect(&[(ACK, 1, 1, 100)]);
    for expected in [200, 400, 800, 1_600] {
        let (after, sent) = wire.wait_for_segment();
        assert_eq!((after, sent.len()), (millis(expected), 1));
    }
    wire.get(ACK, 1, 101, &[]).unwrap();
    wire.send(100);
    wire.sent();
    // Karn: the ambiguous round trip of 3 s was no sample.
    assert_eq!(wire.wait_for_segment().0, millis(200));
}

#[test]
fn waiting_behind_a_hole_is_no_round_trip() {
    let mut wire = Wire::with_sack();
    let length = 3 * MSS;
    wire.send(length);
    wire.sent();
    // The last goes out again as a probe and the first by the timeout, the middle never.
    for _ in 0..5 {
        wire.wait_for_segment();
    }
    wire.wait(millis(20));
    let next = 1 + u32::try_from(length).unwrap();
    wire.get(ACK, 1, next, &[]).unwrap();
    wire.send(10);
    wire.sent();
    assert_eq!(wire.wait_for_segment().0, millis(200));
}

#[test]
fn the_echo_beside_a_dsack_is_no_round_trip() {
    let mut wire = Wire::opening();
    let stamped = |value, echo| Options {
        maximum_segment_size: Some(1380),
        sack_permitted: true,
        timestamps: Some(Timestamps { value, echo }),
        ..Options::default()
    };
    wire.establish(stamped(1_000, 0));
    wire.send(10);
    let first = wire.sent_one().0.options.timestamps.unwrap();
    for _ in 0..5 {
        wire.wait_for_segment();
    }
    wire.wait(millis(20));
    // All but the last acknowledgement were lost: it echoes the first arrival (RFC 7323, 4.3).
    let mut header = wire.header(ACK, 1, 11);
    header.options.timestamps = stamped(1_001, first.value).timestamps;
    let (left, right) = (wire.iss.wrapping_add(1), wire.iss.wrapping_add(11));
    header.options.sack.push(left, right);
    wire.write(header, &[]).unwrap();
    wire.send(10);
    wire.sent();
    assert_eq!(wire.wait_for_segment().0, millis(200));
}

#[test]
fn a_tail_that_is_lost_is_probed_before_the_timeout() {
    let mut wire = Wire::with_sack();
    // A round-trip time of 20 ms.
    wire.send(10);
    wire.sent();
    wire.wait(millis(20));
    wire.get(ACK, 1, 11, &[]).unwrap();
    wire.send(3 * MSS);
    assert_eq!(wire.sent().len(), 3);
    let (after, sent) = wire.wait_for_segment();
    assert!(after < millis(50), "{after:?}");
    let last = wire.iss.wrapping_add(11 + 2 * u32::try_from(MSS).unwrap());
    assert_eq!(sent[0].0.sequence, last);
}

#[test]
fn nothing_acknowledged_within_the_user_timeout_ends_the_connection() {
    let mut wire = Wire::established();
    let timeout = Duration::from_secs(20);
    wire.stack
        .set_user_timeout(wire.now, wire.id, timeout)
        .unwrap();
    wire.send(100);
    let began = wire.now;
    while wire.state() == State::Established {
        wire.sent();
        wire.wait_for_timer();
    }
    assert_eq!(wire.now - began, timeout);
    assert_eq!(
        wire.stack.close_reason(wire.id),
        Some(CloseReason::TimedOut)
    );
}

#[test]
fn keepalive_asks_three_times() {
    let mut wire = Wire::established();
    let interval = Some(Duration::from_secs(10));
    wire.stack
        .set_keepalive(wire.now, wire.id, interval)
        .unwrap();
    wire.wait(Duration::from_secs(10));
    wire.expect(&[(ACK, 0, 1, 0)]);
    wire.get(ACK, 1, 1, &[]).unwrap();
    for _ in 0..3 {
        assert_eq!(wire.wait_for_segment().0, Duration::from_secs(10));
    }
    wire.wait_for_timer();
    assert_eq!(
        wire.stack.close_reason(wire.id),
        Some(CloseReason::TimedOut)
    );
}

#[test]
fn nagle_holds_back_only_when_asked() {
    let mut wire = Wire::established();
    wire.send(10);
    wire.expect(&[(ACK, 1, 1, 10)]);
    wire.send(10);
    wire.expect(&[(ACK, 11, 1, 10)]);
    wire.stack.set_nagle(wire.now, wire.id, true).unwrap();
    wire.send(10);
    wire.expect(&[]);
    wire.get(ACK, 1, 21, &[]).unwrap();
    wire.expect(&[(ACK, 21, 1, 10)]);
}

#[test]
fn an_acknowledgement_is_delayed_but_not_beyond_two_segments() {
    let mut wire = Wire::established();
    let mut at = 1;
    let mut get = |wire: &mut Wire| {
        wire.get(ACK, at, 1, &[1; 1_000]).unwrap();
        at += 1_000;
    };
    // The first ones are quick.
    for _ in 0..16 {
        get(&mut wire);
        assert_eq!(wire.sent().len(), 1);
    }
    get(&mut wire);
    assert_eq!(wire.sent(), []);
    get(&mut wire);
    assert_eq!(wire.sent().len(), 1);
    get(&mut wire);
    assert_eq!(wire.sent(), []);
    assert_eq!(wire.wait_for_segment().0, millis(40));
}

#[test]
fn an_old_timestamp_is_refused() {
    let mut wire = Wire::opening();
    let stamps = |value| Some(Timestamps { value, echo: 0 });
    wire.establish(Options {
        timestamps: stamps(1_000),
        ..Options::default()
    });
    let mut header = wire.header(ACK, 1, 1);
    header.options.timestamps = stamps(999);
    assert_eq!(wire.write(header, b"old"), Err(Discard::TcpPaws));
    assert_eq!(wire.sent_one().0.options.timestamps.unwrap().echo, 1_000);
    header.options.timestamps = None;
    assert_eq!(wire.write(header, b"bare"), Err(Discard::TcpPaws));
    header.options.timestamps = stamps(1_001);
    wire.write(header, b"new").unwrap();
    assert_eq!(wire.sent_one().0.options.timestamps.unwrap().echo, 1_001);
}

#[test]
fn a_newer_syn_takes_the_place_of_time_wait() {
    let (mut stack, now, local) = listening();
    let remote = SocketAddr::new(address(B, false), 999);
    let mut iss = [0; 2];
    for (round, irs) in [IRS, IRS + 50_000].into_iter().enumerate() {
        let mut header = Header {
            source_port: 999,
            destination_port: 80,
            sequence: irs,
            flags: SYN,
            window: 1_000,
            ..Header::default()
        };
        let mut get = |header| stack.handle_packet(now, &packet(remote, local, header, &[]));
        get(header).unwrap();
        let answer = sent(&mut stack, now).remove(0).0;
        assert_eq!(answer.acknowledgement, irs + 1);
        iss[round] = answer.sequence;
        header.flags = ACK;
        header.sequence += 1;
        header.acknowledgement = answer.sequence + 1;
        stack
            .handle_packet(now, &packet(remote, local, header, &[]))
            .unwrap();
        let listener = std::iter::from_fn(|| stack.poll_event()).find_map(|event| {
            if let Event::Accepted(listener) = event {
                Some(listener)
            } else {
                None
            }
        });
        let id = stack.accept(listener.unwrap()).unwrap();
        stack.release(now, id);
        sent(&mut stack, now);
        header.flags = FIN_ACK;
        header.acknowledgement += 1;
        stack
            .handle_packet(now, &packet(remote, local, header, &[]))
            .unwrap();
        sent(&mut stack, now);
        assert_eq!(stack.connections(), 1, "in TIME-WAIT");
        // The same SYN again is an old duplicate.
        header.flags = SYN;
        header.sequence = irs;
        assert!(
            stack
                .handle_packet(now, &packet(remote, local, header, &[]))
                .is_err()
        );
        sent(&mut stack, now);
    }
    assert!(
        iss[1].wrapping_sub(iss[0]) < u32::MAX / 2,
        "sequence numbers only grow"
    );
}

#[test]
fn data_after_release_is_reset() {
    let mut wire = Wire::established();
    wire.stack.release(wire.now, wire.id);
    wire.expect(&[(FIN_ACK, 1, 1, 0)]);
    wire.get(ACK, 1, 2, b"too late").unwrap();
    wire.expect(&[(RST.with(ACK), 2, 1, 0)]);
    assert_eq!(wire.stack.connections(), 0);
    assert_eq!(wire.stack.state(wire.id), None);
}

#[test]
fn an_orphan_leaves_fin_wait_2_after_a_minute() {
    let mut wire = Wire::established();
    wire.stack.release(wire.now, wire.id);
    wire.sent();
    wire.get(ACK, 1, 2, &[]).unwrap();
    wire.sent();
    assert_eq!(wire.stack.connections(), 1);
    wire.wait(Duration::from_secs(61));
    wire.sent();
    assert_eq!(wire.stack.connections(), 0);
}

#[test]
fn abort_resets() {
    let mut wire = Wire::established();
    wire.stack.abort(wire.now, wire.id);
    wire.expect(&[(RST.with(ACK), 1, 1, 0)]);
    assert_eq!(wire.stack.close_reason(wire.id), Some(CloseReason::Aborted));
    let end = wire.stack.recv(wire.now, wire.id, &mut [0; 10]);
    assert_eq!(end, Err(crate::RecvError::Closed(CloseReason::Aborted)));
}

#[test]
fn a_segment_for_nobody_is_reset_and_a_reset_is_not() {
    let mut wire = Wire::established();
    wire.remote.set_port(444);
    assert_eq!(wire.get(ACK, 1, 77, &[]), Err(Discard::TcpNoSocket));
    wire.expect(&[(RST, 77, 0, 0)]);
    assert_eq!(wire.get(SYN, 0, 0, &[]), Err(Discard::TcpNoSocket));
    let reset = wire.sent_one().0;
    assert_eq!((reset.flags, reset.sequence), (RST.with(ACK), 0));
    assert_eq!(reset.acknowledgement, IRS + 1);
    assert_eq!(wire.get(RST, 1, 0, &[]), Err(Discard::TcpNoSocket));
    wire.expect(&[]);
}

/// An ICMP error about the segment of ours that began at `sequence`.
pub(super) fn quote(wire: &Wire, cause: Cause, sequence: u32) -> Vec<u8> {
    let header = Header {
        source_port: wire.local.port(),
        destination_port: wire.remote.port(),
        sequence: wire.iss.wrapping_add(sequence),
        flags: ACK,
        ..Header::default()
    };
    let quote = packet(wire.local, wire.remote, header, &[]);
    let (router, own) = (address(B, false), wire.local.ip());
    let mut out = vec![0; 100];
    let message = Message::Error {
        cause,
        quote: &quote[..28],
    };
    let length = packet::icmp::emit(router, own, &message, &mut out[20..]);
    ip::emit_header(
        &crate::stack::header(router, own, ip::ICMP),
        length,
        &mut out,
    );
    out.truncate(20 + length);
    out
}

#[test]
fn an_icmp_error_counts_only_for_a_segment_on_its_way() {
    let unreachable = |what| Cause::Unreachable(what);
    let mut wire = Wire::opening();
    let blind = quote(&wire, unreachable(Unreachable::Port), 1_000);
    assert_eq!(
        wire.stack.handle_packet(wire.now, &blind),
        Err(Discard::IcmpUnrelated)
    );
    assert_eq!(wire.state(), State::SynSent);
    let error = quote(&wire, unreachable(Unreachable::Port), 0);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    assert_eq!(wire.stack.close_reason(wire.id), Some(CloseReason::Refused));
    // A synchronised connection only remembers it (RFC 5927, 5.2).
    let mut wire = Wire::established();
    wire.send(100);
    wire.sent();
    let error = quote(&wire, unreachable(Unreachable::Host), 1);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    assert_eq!(wire.state(), State::Established);
    while wire.state() == State::Established {
        wire.wait_for_timer();
        wire.sent();
    }
    let reason = CloseReason::Unreachable(Unreachable::Host);
    assert_eq!(wire.stack.close_reason(wire.id), Some(reason));
}

#[test]
fn packet_too_big_makes_segments_shorter_and_repeats_what_was_lost() {
    let mut wire = Wire::established();
    wire.send(2 * MSS);
    assert_eq!(wire.sent().len(), 2);
    let blind = quote(&wire, Cause::PacketTooBig { mtu: 600 }, 10_000);
    assert!(wire.stack.handle_packet(wire.now, &blind).is_err());
    wire.expect(&[]);
    let error = quote(&wire, Cause::PacketTooBig { mtu: 1_000 }, 1);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    let lengths: Vec<_> = wire
        .sent()
        .iter()
        .map(|(_, payload)| payload.len())
        .collect();
    assert_eq!(lengths, [960, 420, 960, 420]);
    // Nobody talks us into tiny segments.
    let error = quote(&wire, Cause::PacketTooBig { mtu: 68 }, 1);
    wire.stack.handle_packet(wire.now, &error).unwrap();
    assert_eq!(wire.sent()[0].1.len(), 512);
}
