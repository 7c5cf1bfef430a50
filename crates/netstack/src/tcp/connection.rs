//! One connection: segments, time and calls in; segments out.

mod black_hole;
mod ecn;
mod receive;
mod timeout;
mod transmit;
mod undo;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use packet::{icmp::Unreachable, ip, tcp};

use super::{
    CloseReason, State, Statistics,
    buffer::{Budget, FLOOR, Pieces, ReceiveBuffer, SendBuffer},
    congestion::{Clock, Congestion, CongestionControl, Flight, Pause},
    pacing::{Pace, Pacer},
    rtt::Rtt,
    scoreboard::Scoreboard,
    sequence::Seq,
};
use black_hole::Lengths;
use ecn::Ecn;
use undo::{Forward, Undo};

/// The shift that our windows have: 64 KiB << 7 covers buffers of 8 MiB.
const WINDOW_SHIFT: u8 = 7;
/// What a peer can take that does not say (RFC 9293, 3.7.1).
const MSS_DEFAULT_V4: u32 = 536;
const MSS_DEFAULT_V6: u32 = 1220;
/// No path is believed to carry less: RFC 791 and the guard of Linux against absurd claims.
const MSS_MIN: u32 = 88;
/// Where buffers begin to grow from.
const BUFFER_INITIAL: usize = 256 << 10;
/// What waits behind the flight at most: enough for a writer who comes 1.5 ms after the word at
/// 2 Gbit/s, and no more than the cache of a core has when its turn comes.
const UNSENT_MAX: usize = 512 << 10;
/// So much room is worth waking a writer for.
const WRITABLE_ROOM: usize = 128 << 10;
/// Two maximum segment lifetimes, as Linux counts them.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// How long FIN-WAIT-2 lasts when nobody can read any more, as in Linux.
const FIN_WAIT_2: Duration = Duration::from_secs(60);
/// Longest delay of an acknowledgement: what Linux uses; RFC 9293, 3.8.6.3 allows 500 ms.
const ACK_DELAY: Duration = Duration::from_millis(40);
/// So many first data segments are acknowledged at once, to open the peer's window quickly.
const QUICK_ACKS: u8 = 16;

/// What the stack tells the owner of a connection, as bits.
pub(crate) mod signal {
    /// Established by an active open.
    pub(crate) const CONNECTED: u8 = 1;
    /// Established by a passive open.
    pub(crate) const ACCEPTED: u8 = 2;
    /// Bytes or the end of the stream can be read.
    pub(crate) const READABLE: u8 = 4;
    /// There is room to send again.
    pub(crate) const WRITABLE: u8 = 8;
    /// The connection has ended.
    pub(crate) const CLOSED: u8 = 16;
}

/// What a connection is opened with; the owner may change the timeout, and the link its MTU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) local: End,
    pub(crate) remote: End,
    pub(crate) iss: Seq,
    /// Path MTU in bytes of an IP packet.
    pub(crate) mtu: usize,
    /// The clock of timestamps: when it stood at the offset.
    pub(crate) stamp_base: (Instant, u32),
    pub(crate) send_bytes_max: u32,
    pub(crate) receive_bytes_max: u32,
    pub(crate) user_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) congestion_control: CongestionControl,
    /// Our SYN asks for marks of congestion.
    pub(crate) ecn: bool,
}

/// An address and a port; a flow label or a scope belongs to no connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    ip: IpAddr,
    port: u16,
}

impl End {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
        }
    }

    fn ip(self) -> IpAddr {
        self.ip
    }

    fn port(self) -> u16 {
        self.port
    }

    fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl Opening {
    pub(crate) fn stamp(&self, now: Instant) -> u32 {
        let (base, offset) = self.stamp_base;
        let millis = now.saturating_duration_since(base).as_millis() & u128::from(u32::MAX);
        offset.wrapping_add(u32::try_from(millis).expect("masked to 32 bits"))
    }

    /// Whole seconds since the clock of timestamps was set.
    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.stamp_base.0).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// What our SYN says.
    pub(crate) fn maximum_segment_size(&self) -> u16 {
        let headers = ip::header_length(self.remote.ip()) + tcp::HEADER;
        u16::try_from(self.mtu.saturating_sub(headers)).unwrap_or(u16::MAX)
    }

    /// What our SYN says.
    pub(crate) fn window_scale(&self) -> u8 {
        WINDOW_SHIFT
    }
}

/// What a connection transmits: a header that is written, and data that is not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Length of the header.
    pub(crate) head: usize,
    /// Where in the send buffer the data begins.
    pub(crate) offset: usize,
    /// Octets of data.
    pub(crate) length: usize,
    /// Octets of data of each segment but the last; less than `length` in a run.
    pub(crate) size: usize,
}

impl Written {
    /// A segment without data.
    fn bare(head: usize) -> Self {
        Self {
            head,
            offset: 0,
            length: 0,
            size: 0,
        }
    }
}

/// Whether the SYN-ACK waits for the owner's word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hold {
    Never,
    Waiting,
    Over,
}

/// Whether an acknowledgement is owed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ack {
    None,
    Delayed(Instant),
    Now,
}

/// Where loss recovery stands; each ends when `snd_una` reaches its point.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Recovery {
    Open,
    /// Fast recovery with proportional rate reduction (RFC 6937).
    Fast {
        point: Seq,
        flight: u32,
        delivered: u32,
        out: u32,
    },
    /// After a retransmission timeout.
    Loss {
        point: Seq,
        forward: Forward,
    },
}

/// A tail loss probe that is out (RFC 8985, 7.3).
#[derive(Clone, Copy, Debug)]
struct Probe {
    end: Seq,
    retransmits: bool,
}

/// The timestamps option once both sides have agreed on it (RFC 7323).
#[derive(Clone, Copy, Debug)]
struct Stamps {
    recent: u32,
    /// Whole seconds of our clock of timestamps at which that came.
    recent_seconds: u32,
}

/// Challenge ACKs of late (RFC 5961, 7).
#[derive(Clone, Copy, Debug)]
struct Challenges {
    began: Instant,
    count: u8,
}

/// A peer whose window is of no use.
#[derive(Clone, Copy, Debug)]
struct Blocked {
    since: Instant,
    /// When it was last asked, or `since`.
    asked_at: Instant,
    probes: u32,
}

impl Blocked {
    fn new(now: Instant) -> Box<Self> {
        Box::new(Self {
            since: now,
            asked_at: now,
            probes: 0,
        })
    }
}

/// One TCP connection (RFC 9293) without demultiplexing and IP.
#[derive(Debug)]
pub(crate) struct Connection {
    opening: Opening,
    pub(crate) state: State,
    pub(crate) reason: Option<CloseReason>,
    /// Bits of [`signal`] that nobody has taken yet.
    pub(crate) signals: u8,
    /// Nobody can read or write any more; the close goes on.
    pub(crate) orphaned: bool,
    active: bool,
    hold: Hold,

    snd_una: Seq,
    snd_nxt: Seq,
    snd_wnd: u32,
    snd_wnd_max: u32,
    snd_wl1: Seq,
    snd_wl2: Seq,
    snd_scale: u8,
    /// `shutdown` was called.
    finishing: bool,
    /// Sequence number of our FIN once it was transmitted.
    fin: Option<Seq>,
    send_buffer: SendBuffer,
    /// `send` took less than it was given.
    wants_room: bool,
    nagle: bool,

    irs: Seq,
    rcv_nxt: Seq,
    /// The right edge of the window that the peer was told; it never moves left.
    rcv_adv: Seq,
    rcv_scale: u8,
    rcv_limit: usize,
    /// Sequence number of the peer's FIN once it is known.
    peer_fin: Option<Seq>,
    receive_buffer: ReceiveBuffer,
    /// When the current measurement of the reader began, and what it has read since.
    read_round: (Option<Instant>, usize),
    ack: Ack,
    /// Octets received since our last acknowledgement, and the peer's segment size.
    unacknowledged: u32,
    peer_segment: u32,
    quick_acks: u8,
    last_ack_sent: Seq,
    /// A range that arrived twice, to be reported (RFC 2883).
    duplicate: Option<(Seq, Seq)>,
    /// `None` until the first, which most connections never send.
    challenges: Option<Box<Challenges>>,

    sack: bool,
    ecn: Ecn,
    stamps: Option<Stamps>,
    /// The smaller of what the peer takes and the path carries, without options.
    mss: u32,
    peer_mss: u32,
    mtu: usize,
    lengths: Lengths,

    rtt: Rtt,
    congestion: Congestion,
    cwnd_limited: bool,
    pacer: Pacer,
    scoreboard: Scoreboard,
    recovery: Recovery,
    undo: Option<Box<Undo>>,
    /// Duplicate acknowledgements of a peer without SACK.
    duplicate_acks: u32,
    /// One retransmission goes out whatever the window says.
    force: bool,
    /// A tail loss probe is due, and the end of the one that is out (RFC 8985, 7).
    probe_due: bool,
    probe_end: Option<Probe>,
    /// A segment that only provokes an answer is due: zero-window probe or keepalive.
    question_due: bool,

    /// Since when the retransmission timer runs.
    rto_base: Instant,
    /// Since when nothing of what is outstanding was acknowledged.
    una_since: Instant,
    last_sent: Instant,
    last_heard: Instant,
    /// `None` while the peer's window is of use, as it mostly is.
    blocked: Option<Box<Blocked>>,
    keepalive: Option<Duration>,
    keepalive_probes: u32,
    /// End of TIME-WAIT or of an orphaned FIN-WAIT-2.
    linger: Option<Instant>,
    reset_due: bool,
    soft_error: Option<Unreachable>,
}

impl Connection {
    /// Makes an active open; the SYN comes out of [`Connection::poll_transmit`].
    pub(crate) fn connect(now: Instant, opening: Opening) -> Self {
        let peer_mss = default_mss(opening.remote.ip());
        let cwnd_max = opening.send_bytes_max.saturating_mul(2);
        let connection = Self {
            opening,
            state: State::SynSent,
            reason: None,
            signals: 0,
            orphaned: false,
            active: true,
            hold: Hold::Never,
            snd_una: opening.iss,
            snd_nxt: opening.iss,
            snd_wnd: 0,
            snd_wnd_max: 0,
            snd_wl1: Seq(0),
            snd_wl2: Seq(0),
            snd_scale: 0,
            finishing: false,
            fin: None,
            send_buffer: SendBuffer::default(),
            wants_room: false,
            nagle: false,
            irs: Seq(0),
            rcv_nxt: Seq(0),
            rcv_adv: Seq(0),
            rcv_scale: 0,
            rcv_limit: BUFFER_INITIAL.min(bytes(opening.receive_bytes_max)),
            peer_fin: None,
            receive_buffer: ReceiveBuffer::default(),
            read_round: (None, 0),
            ack: Ack::None,
            unacknowledged: 0,
            peer_segment: 0,
            quick_acks: QUICK_ACKS,
            last_ack_sent: Seq(0),
            duplicate: None,
            challenges: None,
            sack: false,
            ecn: Ecn::new(opening.ecn),
            stamps: None,
            mss: peer_mss,
            peer_mss,
            mtu: opening.mtu,
            lengths: Lengths::default(),
            rtt: Rtt::new(),
            congestion: Congestion::new(peer_mss, cwnd_max),
            cwnd_limited: false,
            pacer: Pacer::new(),
            scoreboard: Scoreboard::default(),
            recovery: Recovery::Open,
            undo: None,
            duplicate_acks: 0,
            force: false,
            probe_due: false,
            probe_end: None,
            question_due: false,
            rto_base: now,
            una_since: now,
            last_sent: now,
            last_heard: now,
            blocked: None,
            keepalive: None,
            keepalive_probes: 0,
            linger: None,
            reset_due: false,
            soft_error: None,
        };
        connection.controlled(now)
    }

    /// Makes a passive open from a SYN; the SYN-ACK comes out of [`Connection::poll_transmit`].
    pub(crate) fn accept(now: Instant, opening: Opening, syn: &tcp::Header) -> Self {
        let mut connection = Self::connect(now, opening);
        connection.active = false;
        connection.state = State::SynReceived;
        connection.handle_syn(now, syn);
        connection
    }

    /// Makes a passive open whose SYN-ACK waits for [`Connection::admit`].
    pub(crate) fn hold(now: Instant, opening: Opening, syn: &tcp::Header) -> Self {
        let mut connection = Self::accept(now, opening, syn);
        connection.hold = Hold::Waiting;
        connection
    }

    /// Lets the SYN-ACK go.
    pub(crate) fn admit(&mut self, now: Instant) {
        if self.is_held() {
            self.hold = Hold::Over;
            self.una_since = now;
        }
    }

    /// The peer has had no answer to its SYN.
    pub(crate) fn is_held(&self) -> bool {
        self.hold == Hold::Waiting && self.state == State::SynReceived
    }

    /// The SYN that began a passive open, as far as an answer quotes it.
    pub(crate) fn syn(&self) -> tcp::Header {
        tcp::Header {
            source_port: self.opening.remote.port(),
            destination_port: self.opening.local.port(),
            sequence: self.irs.0,
            flags: tcp::Flags::SYN,
            ..tcp::Header::default()
        }
    }

    /// Ends a held connection without a word.
    pub(crate) fn drop_held(&mut self, budget: &mut Budget) {
        self.orphaned = true;
        self.close(CloseReason::Aborted, budget);
    }

    /// Makes the connection whose SYN-ACK, with that window, nobody has remembered; the segment
    /// that acknowledges it comes next.
    pub(crate) fn resume(now: Instant, opening: Opening, syn: &tcp::Header, window: u16) -> Self {
        let mut connection = Self::accept(now, opening, syn);
        connection.snd_nxt = opening.iss + 1;
        connection.rcv_adv = connection.rcv_nxt + u32::from(window);
        connection
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.opening.local.address()
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.opening.remote.address()
    }

    /// Octets of data in a full segment.
    pub(crate) fn data_size(&self) -> usize {
        usize::try_from(self.segment_size()).expect("a segment fits memory")
    }

    /// Copies what is [`Written`].
    pub(crate) fn copy_data(&self, offset: usize, out: &mut [u8]) {
        self.send_buffer.copy(offset, out);
    }

    /// Shows what is [`Written`] where it lies.
    pub(crate) fn data(&self, offset: usize, length: usize) -> Pieces<'_> {
        self.send_buffer.pieces(offset, length)
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let smoothed_rtt = self.rtt.smoothed();
        let ssthresh = self.congestion.ssthresh;
        Statistics {
            local: self.local(),
            remote: self.remote(),
            state: self.state,
            segment_size: self.segment_size(),
            mtu: self.mtu,
            congestion_control: if self.congestion.has_model() {
                CongestionControl::Bbr
            } else {
                CongestionControl::Cubic
            },
            cwnd: self.congestion.cwnd,
            ssthresh: (ssthresh != u32::MAX).then_some(ssthresh),
            pacing_rate: smoothed_rtt.map(|smoothed| self.pace(smoothed).rate()),
            smoothed_rtt,
            rtt_variation: self.rtt.variation(),
            min_rtt: self.rtt.min(),
            retransmission_timeout: self.rtt.timeout(),
            in_flight: self.pipe(),
            send_window: self.snd_wnd,
            receive_window: self.rcv_adv.since(self.rcv_nxt),
            send_queue: self.send_buffer.len(),
            receive_queue: self.receive_buffer.readable(),
            acknowledged: self.send_buffer.acknowledged(),
            received: self.receive_buffer.received(),
            retransmissions: self.scoreboard.retransmissions(),
        }
    }

    pub(crate) fn owes_reset(&self) -> bool {
        self.reset_due
    }

    /// Takes bytes to send and returns how many.
    pub(crate) fn send(&mut self, now: Instant, bytes: &[u8], budget: &mut Budget) -> usize {
        self.detect_limits(now);
        let taken = self.send_buffer.push(bytes, self.send_limit(), budget);
        self.wants_room |= taken < bytes.len();
        taken
    }

    pub(crate) fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// What may follow the flight: as much as the congestion window, up to [`UNSENT_MAX`].
    fn unsent_limit(&self) -> usize {
        bytes(self.congestion.cwnd).min(UNSENT_MAX)
    }

    /// The flight, with all that stays behind holes, and what may follow it.
    fn send_limit(&self) -> usize {
        let flight = bytes(self.snd_nxt - self.snd_una);
        let wanted = flight.saturating_add(self.unsent_limit());
        let wanted = wanted.max(BUFFER_INITIAL);
        wanted.min(bytes(self.opening.send_bytes_max))
    }

    /// Tells a writer who found no room that there is some.
    fn offer_room(&mut self) {
        let limit = self.send_limit();
        let room = limit.saturating_sub(self.send_buffer.len());
        // Of a window that losses have made small, little follows a long flight.
        let worth = (limit / 8).min(self.unsent_limit() / 2).min(WRITABLE_ROOM);
        if self.wants_room && room >= worth {
            self.wants_room = false;
            self.signals |= signal::WRITABLE;
        }
    }

    /// Moves received bytes to the front of `out` and returns their number.
    pub(crate) fn recv(&mut self, now: Instant, out: &mut [u8], budget: &mut Budget) -> usize {
        let length = self.receive_buffer.read(out, budget);
        if length > 0 {
            self.grow_window(now, length);
            self.announce_window(budget);
        }
        length
    }

    pub(crate) fn readable(&self) -> usize {
        self.receive_buffer.readable()
    }

    /// Tells whether everything that the peer will ever send has arrived.
    pub(crate) fn is_at_end(&self) -> bool {
        self.peer_fin.is_some_and(|fin| self.rcv_nxt.after(fin))
    }

    /// A reader that takes more than a quarter of a window in a round-trip time may be held up by
    /// it: a peer that repairs losses has a second flight beyond the first hole, and one whose
    /// window doubles must not wait for ours.
    fn grow_window(&mut self, now: Instant, length: usize) {
        let (began, read) = &mut self.read_round;
        *read += length;
        let round = self.rtt.smoothed().unwrap_or(Duration::from_millis(100));
        let since = *began.get_or_insert(now);
        let wider = (self.rcv_limit * 2).min(bytes(self.opening.receive_bytes_max));
        if now.saturating_duration_since(since) >= round {
            if *read > self.rcv_limit / 4 {
                self.rcv_limit = wider;
            }
            self.read_round = (Some(now), 0);
        } else if *read > self.rcv_limit / 4 {
            self.rcv_limit = wider;
            *read = 0;
        }
    }

    /// Owes an acknowledgement when the window that the peer knows is nearly used up and ours is
    /// wide again (RFC 9293, 3.8.6.2.2).
    fn announce_window(&mut self, budget: &Budget) {
        let known = self.rcv_adv.since(self.rcv_nxt);
        let wide = self.receive_room(budget);
        let worth = self.window_step().min(wide.saturating_sub(known));
        if worth >= self.window_step() && wide / 2 >= known && self.can_receive() {
            self.ack = Ack::Now;
        }
    }

    fn window_step(&self) -> u32 {
        let small = self.rcv_limit.min(FLOOR * 2) / 2;
        self.local_mss()
            .min(u32::try_from(small).unwrap_or(u32::MAX))
    }

    fn receive_room(&self, budget: &Budget) -> u32 {
        let readable = self.receive_buffer.readable();
        let room = self.rcv_limit.saturating_sub(readable).min(budget.room());
        let room = room.max(FLOOR.min(self.rcv_limit).saturating_sub(readable));
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    /// Finishes our side after what was sent before.
    pub(crate) fn shutdown(&mut self) {
        self.finishing = true;
    }

    /// Ends the connection with a RST where the peer could still wait for something.
    pub(crate) fn abort(&mut self, budget: &mut Budget) {
        self.reset_due = match self.state {
            State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait => true,
            State::SynSent | State::Closing | State::LastAck | State::TimeWait | State::Closed => {
                false
            }
        };
        self.close(CloseReason::Aborted, budget);
    }

    /// Lets the close go on without an owner.
    pub(crate) fn release(&mut self, now: Instant, budget: &mut Budget) {
        self.orphaned = true;
        if self.state == State::SynSent || self.receive_buffer.readable() > 0 {
            self.abort(budget);
        }
        self.shutdown();
        if self.state == State::FinWait2 {
            self.linger = Some(now + FIN_WAIT_2);
        }
    }

    /// Ends the connection here; a RST that is due still goes out.
    pub(crate) fn close(&mut self, reason: CloseReason, budget: &mut Budget) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.reason = Some(reason);
        self.signals |= signal::CLOSED;
        self.send_buffer.clear(budget);
        if reason != CloseReason::Finished {
            self.receive_buffer.clear(budget);
        }
        self.scoreboard = Scoreboard::default();
        self.undo = None;
        self.ack = Ack::None;
        self.linger = None;
        self.pacer.rest();
    }

    /// Gives all memory back to the budget.
    pub(crate) fn free(&mut self, budget: &mut Budget) {
        self.send_buffer.clear(budget);
        self.receive_buffer.clear(budget);
    }

    pub(crate) fn set_nagle(&mut self, enabled: bool) {
        self.nagle = enabled;
    }

    fn controlled(mut self, now: Instant) -> Self {
        self.set_congestion_control(now, self.opening.congestion_control);
        self
    }

    pub(crate) fn set_congestion_control(&mut self, now: Instant, control: CongestionControl) {
        // Nobody else has the same numbers, which is all that its chance is for.
        let seed = u64::from(self.opening.iss.0) << 32 | u64::from(self.opening.stamp_base.1);
        self.congestion.set_control(now, control, seed);
        self.scoreboard
            .measure_delivery(now, self.congestion.has_model());
    }

    pub(crate) fn set_keepalive(&mut self, interval: Option<Duration>) {
        self.keepalive = interval;
    }

    pub(crate) fn set_user_timeout(&mut self, timeout: Duration) {
        self.opening.user_timeout = timeout;
    }

    pub(crate) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Follows the MTU of the link, which bounds that of every path.
    pub(crate) fn bound_mtu(&mut self, mtu: usize) {
        self.opening.mtu = self.opening.mtu.min(mtu);
        if self.mtu > mtu {
            self.set_mtu(mtu);
        }
    }

    /// Follows the path MTU; what was too long is transmitted again in shorter segments.
    pub(crate) fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
        let before = self.mss;
        self.update_mss();
        if self.mss < before {
            self.scoreboard.mark_longer_lost(self.segment_size());
        }
    }

    /// Takes an ICMP error that quotes sequence number `quoted` of this connection, and returns
    /// whether it was believed (RFC 5927, 4 and 5).
    pub(crate) fn handle_unreachable(
        &mut self,
        quoted: Seq,
        what: Unreachable,
        budget: &mut Budget,
    ) -> bool {
        if !self.is_outstanding(quoted) {
            return false;
        }
        if self.state == State::SynSent {
            let reason = match what {
                Unreachable::Port => CloseReason::Refused,
                Unreachable::Network
                | Unreachable::Host
                | Unreachable::Prohibited
                | Unreachable::Other(_) => CloseReason::Unreachable(what),
            };
            self.close(reason, budget);
        } else {
            // A synchronised connection only remembers it (RFC 5927, 5.2).
            self.soft_error = Some(what);
        }
        true
    }

    /// Tells whether a quoted sequence number is one that we have on its way.
    pub(crate) fn is_outstanding(&self, quoted: Seq) -> bool {
        !quoted.before(self.snd_una) && quoted.before(self.snd_nxt)
    }

    /// Tells whether a SYN may take the place of this connection (RFC 6191, 2; RFC 9293, 3.6.1).
    pub(crate) fn yields_to(&self, syn: &tcp::Header) -> bool {
        if self.state != State::TimeWait {
            return false;
        }
        match (self.stamps, syn.options.timestamps) {
            (Some(stamps), Some(new)) if new.value != stamps.recent => {
                Seq(new.value).after(Seq(stamps.recent))
            }
            (Some(_) | None, _) => Seq(syn.sequence).after(self.rcv_nxt),
        }
    }

    /// The first sequence number that a next incarnation may use.
    pub(crate) fn next_iss(&self) -> Seq {
        self.snd_nxt + 1
    }

    fn can_receive(&self) -> bool {
        match self.state {
            State::Established | State::FinWait1 | State::FinWait2 => true,
            State::SynSent
            | State::SynReceived
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => false,
        }
    }

    /// What is on its way now.
    fn flight(&self, now: Instant) -> Flight {
        Flight {
            now,
            in_flight: self.pipe(),
            delivered: self.scoreboard.delivered(),
        }
    }

    /// The time at which the use of the congestion window is measured.
    fn validation_clock(&self, now: Instant) -> Clock {
        Clock::new(self.stamp(now), self.rtt.smoothed())
    }

    /// Takes notice when window and pace would let data out and there is none
    /// (draft-ietf-ccwg-bbr-06, 4.1.2.4).
    fn detect_limits(&mut self, now: Instant) {
        let idle = self.congestion.has_model()
            && !self.owes_new()
            && self.pipe() < self.congestion.cwnd
            && !self.pacer.is_ahead(now)
            && !self.scoreboard.has_lost();
        if idle {
            self.scoreboard.limit_delivery();
        }
    }

    fn stamp(&self, now: Instant) -> u32 {
        self.opening.stamp(now)
    }

    /// The largest segment that the path brings us, without options.
    fn local_mss(&self) -> u32 {
        let headers = ip::header_length(self.opening.remote.ip()) + tcp::HEADER;
        u32::try_from(self.mtu.saturating_sub(headers))
            .unwrap_or(u32::MAX)
            .max(MSS_MIN)
    }

    /// The largest segment that a path of that MTU brings to the peer, without options.
    fn mss_for(&self, mtu: usize) -> u32 {
        let headers = ip::header_length(self.opening.remote.ip()) + tcp::HEADER;
        let length = u32::try_from(mtu.saturating_sub(headers)).unwrap_or(u32::MAX);
        self.peer_mss.min(length).max(MSS_MIN)
    }

    fn update_mss(&mut self) {
        self.mss = self.mss_for(self.mtu);
        self.congestion.set_mss(self.segment_size());
    }

    /// Octets of data in a full segment (RFC 6691).
    fn segment_size(&self) -> u32 {
        self.mss - if self.stamps.is_some() { 12 } else { 0 }
    }

    /// The sequence number of the first octet in the send buffer.
    ///
    /// Decided by the state: 2 GiB on, `snd_una` no longer compares with the initial number.
    fn data_start(&self) -> Seq {
        match self.state {
            State::SynSent | State::SynReceived => self.opening.iss + 1,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => self.snd_una,
        }
    }

    /// Octets of data that were never transmitted.
    fn unsent(&self) -> u32 {
        let sent = self.snd_nxt.since(self.data_start()) - u32::from(self.fin_outstanding());
        let length = u32::try_from(self.send_buffer.len()).expect("buffers are below 4 GiB");
        length - sent
    }

    fn fin_outstanding(&self) -> bool {
        self.fin.is_some_and(|fin| !self.snd_una.after(fin))
    }

    /// Data or a FIN waits for its first transmission.
    fn owes_new(&self) -> bool {
        match self.state {
            State::Established
            | State::CloseWait
            | State::FinWait1
            | State::Closing
            | State::LastAck => self.unsent() > 0 || (self.finishing && self.fin.is_none()),
            State::SynSent
            | State::SynReceived
            | State::FinWait2
            | State::TimeWait
            | State::Closed => false,
        }
    }
}

fn default_mss(remote: IpAddr) -> u32 {
    match remote {
        IpAddr::V4(_) => MSS_DEFAULT_V4,
        IpAddr::V6(_) => MSS_DEFAULT_V6,
    }
}

fn bytes(bound: u32) -> usize {
    usize::try_from(bound).unwrap_or(usize::MAX)
}

#[cfg(test)]
impl Connection {
    pub(crate) fn cwnd(&self) -> u32 {
        self.congestion.cwnd
    }

    pub(crate) fn send_window(&self) -> u32 {
        self.snd_wnd
    }

    pub(crate) fn pipe_ack(&self) -> Option<u32> {
        self.congestion.pipe_ack()
    }

    pub(crate) fn is_validated(&self) -> bool {
        self.congestion.is_validated()
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.recovery != Recovery::Open
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Connection {
    /// Panics when an invariant does not hold.
    pub(crate) fn assert_invariants(&self) {
        assert!(!self.snd_una.after(self.snd_nxt), "snd_una <= snd_nxt");
        assert!(!self.rcv_nxt.after(self.rcv_adv), "rcv_nxt <= rcv_adv");
        if self.state == State::Closed {
            return;
        }
        assert!(
            self.congestion.cwnd >= self.segment_size(),
            "cwnd >= 1 SMSS"
        );
        self.scoreboard
            .assert_invariants(self.snd_una, self.snd_nxt);
        let owed = !self.scoreboard.is_empty() || self.owes_new();
        assert!(
            !owed || self.is_held() || self.poll_timeout().is_some(),
            "progress owed: {self:?}"
        );
    }
}
