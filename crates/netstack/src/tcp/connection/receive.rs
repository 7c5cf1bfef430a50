//! Segments in (RFC 9293, 3.10.7).

use std::time::{Duration, Instant};

use packet::tcp::{Flags, Header, Segment};

use super::{
    ACK_DELAY, Ack, Budget, Challenges, CloseReason, Connection, FIN_WAIT_2, Flight, Hold, MSS_MIN,
    Recovery, Seq, Stamps, State, TIME_WAIT, Undo, WINDOW_SHIFT, signal, undo,
};
use crate::{
    Discard,
    tcp::{
        buffer::Inserted,
        congestion::{self, Acknowledged},
        scoreboard::{Delivered, RackTime},
    },
};

/// After so long a silence the peer's timestamps may have wrapped (RFC 7323, 5.5).
const STAMPS_VALID_SECONDS: u32 = 24 * 24 * 60 * 60;
/// Challenge ACKs in one second per connection (RFC 5961, 7; a global limit would leak).
const CHALLENGES_MAX: u8 = 10;
const CHALLENGE_PERIOD: Duration = Duration::from_secs(1);

impl Connection {
    /// Takes one segment of this connection.
    ///
    /// [`Discard::TcpNoSocket`] means that the segment belongs to no connection after all, and is
    /// to be answered by a RST like one for a port where nobody listens.
    pub(crate) fn handle_segment(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        budget: &mut Budget,
    ) -> Result<(), Discard> {
        match self.state {
            State::Closed => Err(Discard::TcpNoSocket),
            State::SynSent => self.handle_in_syn_sent(now, segment, budget),
            State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => self.handle_synchronized(now, segment, budget),
        }
    }

    /// Learns what a SYN says.
    pub(super) fn handle_syn(&mut self, now: Instant, syn: &Header) {
        self.irs = Seq(syn.sequence);
        self.rcv_nxt = self.irs + 1;
        self.rcv_adv = self.rcv_nxt;
        self.last_ack_sent = self.rcv_nxt;
        self.last_heard = now;
        let options = &syn.options;
        if let Some(mss) = options.maximum_segment_size {
            self.peer_mss = u32::from(mss).max(MSS_MIN);
        }
        if let Some(shift) = options.window_scale {
            self.snd_scale = shift.min(14);
            self.rcv_scale = WINDOW_SHIFT;
        }
        self.agree_on_ecn(syn.flags);
        self.sack = options.sack_permitted;
        self.stamps = options.timestamps.map(|stamps| Stamps {
            recent: stamps.value,
            recent_seconds: self.opening.seconds(now),
        });
        self.update_mss();
        // The window of a SYN is never scaled (RFC 7323, 2.2).
        self.snd_wnd = u32::from(syn.window);
        self.snd_wnd_max = self.snd_wnd;
        self.snd_wl1 = self.irs;
        self.snd_wl2 = self.snd_una;
    }

    /// RFC 9293, 3.10.7.3.
    fn handle_in_syn_sent(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        budget: &mut Budget,
    ) -> Result<(), Discard> {
        let header = &segment.header;
        let acknowledges = header.flags.has(Flags::ACK);
        if acknowledges && Seq(header.acknowledgement) != self.snd_nxt {
            let reset = header.flags.has(Flags::RST);
            return Err(if reset {
                Discard::TcpUnacceptable
            } else {
                Discard::TcpNoSocket
            });
        }
        if header.flags.has(Flags::RST) {
            if !acknowledges {
                return Err(Discard::TcpUnacceptable);
            }
            self.close(CloseReason::Refused, budget);
            return Ok(());
        }
        if !header.flags.has(Flags::SYN) {
            return Err(Discard::TcpUnacceptable);
        }
        self.handle_syn(now, header);
        if acknowledges {
            let delivered = self.scoreboard.acknowledge(now, self.snd_nxt);
            self.finish_opening(now, delivered.rtt);
            self.ack = Ack::Now;
        } else {
            // Simultaneous open (RFC 9293, 3.5): our SYN goes out again with an ACK.
            self.state = State::SynReceived;
            self.scoreboard.mark_first_lost();
        }
        Ok(())
    }

    fn finish_opening(&mut self, now: Instant, rtt: Option<Duration>) {
        self.snd_una = self.snd_nxt;
        self.snd_wl2 = self.snd_una;
        self.una_since = now;
        self.rto_base = now;
        self.rtt.backoff = 0;
        if let Some(rtt) = rtt {
            self.rtt.sample(now, rtt);
        } else {
            // RFC 5681, 3.1: a lost SYN suggests a narrow path.
            self.congestion.cwnd = self.congestion.cwnd.min(4 * self.segment_size());
        }
        self.state = State::Established;
        self.signals |= if self.active || self.hold == Hold::Over {
            signal::CONNECTED
        } else {
            signal::ACCEPTED
        };
    }

    /// RFC 9293, 3.10.7.4.
    fn handle_synchronized(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        budget: &mut Budget,
    ) -> Result<(), Discard> {
        if self.is_held() && !segment.header.flags.has(Flags::RST) {
            // The SYN again, or an acknowledgement of what we have not sent.
            return Err(Discard::TcpUnacceptable);
        }
        let mut repeated;
        let segment = if self.state == State::SynReceived && segment.header.flags.has(Flags::SYN) {
            repeated = *segment;
            self.handle_repeated_syn(&mut repeated)?;
            &repeated
        } else {
            segment
        };
        let header = &segment.header;
        self.accept_timestamp(now, segment)?;
        self.accept_sequence(now, segment)?;
        if header.flags.has(Flags::RST) {
            return self.handle_reset(now, segment, budget);
        }
        if header.flags.has(Flags::SYN) {
            // RFC 5961, 4.2.
            self.challenge(now);
            return Err(Discard::TcpChallenged);
        }
        if !header.flags.has(Flags::ACK) {
            return Err(Discard::TcpUnacceptable);
        }
        self.accept_acknowledgement(now, segment)?;
        self.last_heard = now;
        self.keepalive_probes = 0;
        self.remember_timestamp(now, header);
        self.handle_ack(now, segment, budget);
        let outcome = self.handle_data(now, segment, budget);
        self.handle_fin(now, segment);
        outcome
    }

    /// A SYN in SYN-RECEIVED that is no news: the peer has not seen our SYN-ACK, or it opens at
    /// the same time and this is its SYN-ACK, whose acknowledgement counts.
    fn handle_repeated_syn(&mut self, segment: &mut Segment<'_>) -> Result<(), Discard> {
        if Seq(segment.header.sequence) != self.irs {
            return Ok(());
        }
        if !segment.header.flags.has(Flags::ACK) {
            self.scoreboard.mark_first_lost();
            return Err(Discard::TcpUnacceptable);
        }
        segment.header.flags.0 &= !Flags::SYN.0;
        segment.header.sequence = segment.header.sequence.wrapping_add(1);
        self.ack = Ack::Now;
        Ok(())
    }

    /// PAWS (RFC 7323, 5.3, R1).
    fn accept_timestamp(&mut self, now: Instant, segment: &Segment<'_>) -> Result<(), Discard> {
        let Some(stamps) = self.stamps else {
            return Ok(());
        };
        if segment.header.flags.has(Flags::RST) {
            return Ok(());
        }
        let Some(new) = segment.header.options.timestamps else {
            return Err(Discard::TcpPaws);
        };
        let silence = self
            .opening
            .seconds(now)
            .saturating_sub(stamps.recent_seconds);
        let valid = silence < STAMPS_VALID_SECONDS;
        if valid && Seq(new.value).before(Seq(stamps.recent)) {
            self.challenge(now);
            return Err(Discard::TcpPaws);
        }
        Ok(())
    }

    fn remember_timestamp(&mut self, now: Instant, header: &Header) {
        let earlier = !Seq(header.sequence).after(self.last_ack_sent);
        if let (Some(stamps), Some(new)) = (&mut self.stamps, header.options.timestamps)
            && earlier
        {
            *stamps = Stamps {
                recent: new.value,
                recent_seconds: self.opening.seconds(now),
            };
        }
    }

    /// RFC 9293, 3.10.7.4, first check; what is not acceptable is answered with an ACK.
    fn accept_sequence(&mut self, now: Instant, segment: &Segment<'_>) -> Result<(), Discard> {
        let start = Seq(segment.header.sequence);
        let length = segment.sequence_length();
        let end = start + length;
        let window_end = self.rcv_adv.max(self.rcv_nxt);
        let fresh = if length == 0 {
            !start.before(self.rcv_nxt)
        } else {
            end.after(self.rcv_nxt)
        };
        // The right edge itself is taken, as Linux does: what stands there may be a probe of a
        // closed window, or the ACK of a peer that has used its window up.
        if fresh && !start.after(window_end) {
            return Ok(());
        }
        if segment.header.flags.has(Flags::RST) {
            return Err(Discard::TcpUnacceptable);
        }
        if !segment.payload.is_empty() && end.since(self.rcv_nxt) == 0 {
            self.duplicate = Some((start, end));
        }
        if self.state == State::TimeWait && segment.header.flags.has(Flags::FIN) {
            self.linger = Some(now + TIME_WAIT);
        }
        // Data is always answered: the peer may have missed our ACK, or be probing a zero window.
        // An empty segment is answered within a limit, or two ends that are out of step would
        // answer each other for ever.
        if length > 0 {
            self.ack = Ack::Now;
        } else {
            self.challenge(now);
        }
        Err(Discard::TcpUnacceptable)
    }

    /// RFC 5961, 3.2.
    fn handle_reset(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        budget: &mut Budget,
    ) -> Result<(), Discard> {
        if Seq(segment.header.sequence) != self.rcv_nxt {
            self.challenge(now);
            return Err(Discard::TcpChallenged);
        }
        let reason = match self.state {
            State::SynReceived if self.active => CloseReason::Refused,
            // Everything was said; the peer only hurries, or has waited long enough for us.
            State::TimeWait => CloseReason::Finished,
            State::Closing | State::LastAck if self.fin == Some(self.snd_una) => {
                CloseReason::Finished
            }
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::Closed => CloseReason::Reset,
        };
        self.close(reason, budget);
        Ok(())
    }

    fn challenge(&mut self, now: Instant) {
        let none = Challenges {
            began: now,
            count: 0,
        };
        let challenges = self.challenges.get_or_insert_with(|| Box::new(none));
        if now >= challenges.began + CHALLENGE_PERIOD {
            **challenges = none;
        }
        if challenges.count < CHALLENGES_MAX {
            challenges.count += 1;
            self.ack = Ack::Now;
        }
    }

    /// RFC 9293, 3.10.7.4, fifth check, with the narrower window of RFC 5961, 5.2.
    fn accept_acknowledgement(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
    ) -> Result<(), Discard> {
        let ack = Seq(segment.header.acknowledgement);
        if self.state == State::SynReceived {
            if ack != self.snd_nxt {
                return Err(Discard::TcpNoSocket);
            }
            let delivered = self.scoreboard.acknowledge(now, ack);
            self.finish_opening(now, delivered.rtt);
            self.snd_wl1 = Seq(segment.header.sequence);
            self.snd_wnd = u32::from(segment.header.window) << self.snd_scale;
            self.snd_wnd_max = self.snd_wnd_max.max(self.snd_wnd);
            return Ok(());
        }
        let oldest = Seq(self.snd_una.0.wrapping_sub(self.snd_wnd_max));
        if ack.before(oldest) || ack.after(self.snd_nxt) {
            self.challenge(now);
            return Err(Discard::TcpChallenged);
        }
        Ok(())
    }

    fn handle_ack(&mut self, now: Instant, segment: &Segment<'_>, budget: &mut Budget) {
        let header = &segment.header;
        let ack = Seq(header.acknowledgement);
        if ack.before(self.snd_una) {
            return;
        }
        let window = u32::from(header.window) << self.snd_scale;
        let same_window = window == self.snd_wnd;
        self.update_window(header, window);
        self.detect_limits(now);
        let flight = self.snd_nxt - self.snd_una;
        if flight == 0 && self.acknowledges_nothing(header) {
            return;
        }
        let pipe = self.pipe();
        let quiet = now.saturating_duration_since(self.una_since);
        self.probe_due = false;
        let min_rtt = self.rtt.min().unwrap_or(Duration::ZERO);
        self.scoreboard.set_min_rtt(min_rtt);
        let mut delivered = Delivered::default();
        let advanced = ack.after(self.snd_una);
        if advanced {
            // Before the SACK blocks, which would make what was in order look reordered.
            delivered = self.scoreboard.acknowledge(now, ack);
            self.detect_by_timestamp(now, header);
            let acknowledged = ack - self.snd_una;
            self.advance(now, ack, budget);
            self.detect_length(acknowledged);
        }
        if self.sack {
            let blocks = header.options.sack.as_slice();
            let above = self
                .scoreboard
                .handle_sack(now, blocks, self.snd_una, self.snd_nxt);
            delivered.octets += above.octets;
            delivered.rtt = above.rtt.or(delivered.rtt);
            delivered.retransmitted |= above.retransmitted;
            delivered.once = delivered.once.or(above.once);
            delivered.flight = delivered.flight.max(above.flight);
        }
        self.detect_by_duplicate(now, header);
        self.detect_by_forwarding(now, &delivered, advanced);
        self.take_rtt_sample(now, header, &delivered, advanced);
        let duplicate = !advanced
            && !self.scoreboard.is_empty()
            && segment.sequence_length() == 0
            && same_window;
        self.end_probe(now, ack, header, flight);
        self.recover(now, &delivered, advanced, duplicate, flight);
        if self.congestion.has_model() {
            self.follow_model(now, &delivered, min_rtt);
        } else {
            self.grow(now, &delivered, pipe, quiet);
        }
    }

    /// Whether a segment that comes while nothing is in flight says nothing of the path, as all do
    /// of a peer that only sends.
    fn acknowledges_nothing(&self, header: &Header) -> bool {
        header.options.sack.as_slice().is_empty()
            && self.recovery == Recovery::Open
            && !self.probe_due
            && !self.congestion.has_model()
    }

    /// RFC 9293, 3.10.7.4: SND.WND follows the latest segment.
    fn update_window(&mut self, header: &Header, window: u32) {
        let (seq, ack) = (Seq(header.sequence), Seq(header.acknowledgement));
        if self.snd_wl1.before(seq) || (self.snd_wl1 == seq && !ack.before(self.snd_wl2)) {
            self.snd_wnd = window;
            self.snd_wnd_max = self.snd_wnd_max.max(window);
            self.snd_wl1 = seq;
            self.snd_wl2 = ack;
        }
    }

    /// Moves `snd_una` and lets go of what was acknowledged.
    fn advance(&mut self, now: Instant, ack: Seq, budget: &mut Budget) {
        let fin_acked = self.fin.is_some_and(|fin| ack.after(fin));
        let data = ack - self.data_start() - u32::from(fin_acked && self.fin_outstanding());
        let data = usize::try_from(data).expect("a window fits memory");
        self.send_buffer.advance(data, budget);
        self.snd_una = ack;
        self.una_since = now;
        self.rto_base = now;
        self.rtt.backoff = 0;
        self.soft_error = None;
        self.offer_room();
        if fin_acked {
            match self.state {
                State::FinWait1 => {
                    self.state = State::FinWait2;
                    self.linger = self.orphaned.then_some(now + FIN_WAIT_2);
                }
                State::Closing => self.enter_time_wait(now),
                State::LastAck => self.close(CloseReason::Finished, budget),
                State::SynSent
                | State::SynReceived
                | State::Established
                | State::FinWait2
                | State::CloseWait
                | State::TimeWait
                | State::Closed => {}
            }
        }
    }

    fn enter_time_wait(&mut self, now: Instant) {
        self.state = State::TimeWait;
        self.linger = Some(now + TIME_WAIT);
        self.rtt.backoff = 0;
    }

    /// By transmission times where every segment was sent once (Karn), else by the echo.
    ///
    /// What stands behind a hole is acknowledged late because of the hole, and an acknowledgement
    /// with a DSACK echoes the first arrival, whose own acknowledgement was lost: either would
    /// count the time that we have waited to retransmit, and the RTO would never come down again.
    fn take_rtt_sample(
        &mut self,
        now: Instant,
        header: &Header,
        delivered: &Delivered,
        advanced: bool,
    ) {
        let arrived_twice = undo::duplicate(header).is_some();
        if let Some(rtt) = delivered.rtt.filter(|_| !delivered.retransmitted) {
            self.rtt.sample(now, rtt);
        } else if let (true, false, Some(_), Some(stamps)) = (
            advanced,
            arrived_twice,
            self.stamps,
            header.options.timestamps,
        ) {
            let millis = self.stamp(now).wrapping_sub(stamps.echo);
            let rtt = Duration::from_millis(u64::from(millis));
            if stamps.echo != 0 && rtt <= now.saturating_duration_since(self.opening.stamp_base.0) {
                self.rtt.sample(now, rtt);
            }
        }
    }

    /// RFC 8985, 7.4: a probe that repaired a loss counts as one.
    fn end_probe(&mut self, now: Instant, ack: Seq, header: &Header, flight: u32) {
        let Some(probe) = self.probe_end else { return };
        if ack.before(probe.end) {
            return;
        }
        self.probe_end = None;
        // A DSACK tells that the original had arrived as well (RFC 2883, 4).
        let arrived_twice = undo::duplicate(header).is_some();
        if probe.retransmits && !arrived_twice && self.recovery == Recovery::Open {
            self.undo = None;
            let in_flight = if self.congestion.is_validated() {
                self.congestion.cwnd
            } else {
                flight
            };
            let flight = Flight {
                in_flight,
                ..self.flight(now)
            };
            self.congestion.reduce(flight);
        }
    }

    /// Octets on their way: SACK tells exactly, a peer without it leaves us to count its
    /// duplicate acknowledgements.
    pub(super) fn pipe(&self) -> u32 {
        let arrived = self.duplicate_acks.saturating_mul(self.segment_size());
        self.scoreboard.in_flight().saturating_sub(arrived)
    }

    fn recover(
        &mut self,
        now: Instant,
        delivered: &Delivered,
        advanced: bool,
        duplicate: bool,
        flight: u32,
    ) {
        let mut octets = delivered.octets;
        let mut lost = false;
        if self.sack {
            let recovering = self.recovery != Recovery::Open;
            lost = self
                .scoreboard
                .detect_losses(self.rack_time(now, recovering));
        } else if duplicate {
            self.duplicate_acks += 1;
            octets += self.segment_size();
            lost = self.duplicate_acks == 3
                && self.recovery == Recovery::Open
                && self.scoreboard.mark_first_lost();
        } else if advanced {
            // RFC 6582, 3.2: a partial acknowledgement uncovers the next hole.
            let point = match self.recovery {
                Recovery::Fast { point, .. } => Some(point),
                Recovery::Open | Recovery::Loss { .. } => None,
            };
            let segments = delivered.octets.div_ceil(self.segment_size());
            self.duplicate_acks = match point {
                Some(point) if self.snd_una.before(point) => {
                    self.scoreboard.mark_first_lost();
                    (self.duplicate_acks + 1).saturating_sub(segments)
                }
                Some(_) | None => 0,
            };
        }
        self.report_losses(now, self.recovery != Recovery::Open);
        let congested = lost && !self.has_lost_only_probe();
        match self.recovery {
            Recovery::Open if congested => self.enter_recovery(flight),
            Recovery::Open => {}
            Recovery::Fast { point, .. } if !self.snd_una.before(point) => {
                self.recovery = Recovery::Open;
                self.congestion.end_recovery(true);
                self.scoreboard.end_recovery();
            }
            Recovery::Fast { .. } => {}
            Recovery::Loss { point, .. } => {
                if !self.snd_una.before(point) {
                    self.recovery = Recovery::Open;
                    self.congestion.end_recovery(false);
                    self.scoreboard.end_recovery();
                }
            }
        }
        // An acknowledgement that tells of further losses is no good sign (RFC 9937, 7).
        self.reduce_rate(octets, advanced && !lost);
        self.forget_undo();
    }

    pub(super) fn rack_time(&self, now: Instant, recovering: bool) -> RackTime {
        RackTime {
            now,
            min_rtt: self.rtt.min(),
            smoothed_rtt: self.rtt.smoothed(),
            recovering,
            mss: self.segment_size(),
        }
    }

    /// Reduces the window once for all that was in flight.
    pub(super) fn enter_recovery(&mut self, flight: u32) {
        self.undo = Some(Undo::new(self.congestion.before_reduction()));
        self.congestion.begin_recovery(flight);
        self.recovery = Recovery::Fast {
            point: self.snd_nxt,
            flight,
            delivered: 0,
            out: 0,
        };
        self.force = true;
        self.probe_end = None;
    }

    /// Proportional rate reduction with its slow-start bound (RFC 9937, 6).
    fn reduce_rate(&mut self, octets: u32, safe: bool) {
        if self.congestion.has_model() {
            return;
        }
        let mss = self.segment_size();
        let pipe = self.pipe();
        let ssthresh = self.congestion.ssthresh;
        let Recovery::Fast {
            flight,
            delivered,
            out,
            ..
        } = &mut self.recovery
        else {
            return;
        };
        *delivered = delivered.saturating_add(octets);
        let allowed = if pipe > ssthresh {
            let share = u64::from(*delivered) * u64::from(ssthresh);
            let share = share.div_ceil(u64::from((*flight).max(1)));
            u32::try_from(share)
                .unwrap_or(u32::MAX)
                .saturating_sub(*out)
        } else {
            let mut limit = delivered.saturating_sub(*out).max(octets);
            if safe {
                limit += mss;
            }
            limit.min(ssthresh - pipe)
        };
        self.congestion.cwnd = (pipe + allowed).max(mss);
    }

    /// Tells the model of the path what was found lost.
    pub(super) fn report_losses(&mut self, now: Instant, recovering: bool) {
        let losses = self.scoreboard.take_losses();
        let flight = self.flight(now);
        self.congestion.handle_losses(flight, recovering, &losses);
    }

    /// Tells the model of the path what was delivered.
    fn follow_model(&mut self, now: Instant, delivered: &Delivered, min_rtt: Duration) {
        let sample = self.scoreboard.sample_delivery(now, min_rtt);
        let told = congestion::Delivered {
            sample,
            rtt: delivered.rtt,
            smoothed_rtt: self.rtt.smoothed(),
            cwnd_limited: self.cwnd_limited,
            recovering: self.recovery != Recovery::Open,
            sack: self.sack,
        };
        let flight = self.flight(now);
        if self.congestion.handle_delivery(flight, told) {
            self.scoreboard.limit_delivery();
        }
        if self.congestion.begins_round() {
            self.cwnd_limited = false;
        }
    }

    /// Lets CUBIC's window grow where it is what limits the sender, or in slow start while half of
    /// it is in flight, unless it is not validated; `quiet` is how long nothing was acknowledged.
    fn grow(&mut self, now: Instant, delivered: &Delivered, pipe: u32, quiet: Duration) {
        if delivered.octets == 0 || matches!(self.recovery, Recovery::Fast { .. }) {
            return;
        }
        // Samples of a recovery tell nothing (RFC 7661, 4.2).
        let sampled = self.recovery == Recovery::Open && delivered.flight > 0;
        let clock = self.validation_clock(now);
        let (limited, flight) = (self.cwnd_limited, delivered.flight);
        let validated = !sampled || self.congestion.validate(clock, limited, flight);
        let slow_start = self.congestion.in_slow_start();
        let used = self.cwnd_limited || (slow_start && pipe >= self.congestion.cwnd / 2);
        if !used || !validated {
            self.congestion.skip(now, quiet);
            return;
        }
        self.congestion.handle_ack(
            now,
            Acknowledged {
                bytes: delivered.octets,
                rtt: delivered.rtt,
                smoothed_rtt: self.rtt.smoothed().unwrap_or(Duration::ZERO),
                snd_una: self.snd_una,
                snd_nxt: self.snd_nxt,
            },
        );
    }

    /// RFC 9293, 3.10.7.4, seventh check.
    fn handle_data(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        budget: &mut Budget,
    ) -> Result<(), Discard> {
        if segment.payload.is_empty() {
            return Ok(());
        }
        if !self.can_receive() {
            self.ack = Ack::Now;
            return Ok(());
        }
        if self.orphaned {
            // Nobody will read it, and the peer must learn that (RFC 1122, 4.2.2.13).
            self.abort(budget);
            return Ok(());
        }
        let start = Seq(segment.header.sequence);
        let skip = usize::try_from(self.rcv_nxt.since(start)).unwrap_or(usize::MAX);
        let offset = usize::try_from(start.since(self.rcv_nxt)).unwrap_or(usize::MAX);
        let edge = self
            .peer_fin
            .map_or(self.rcv_adv, |fin| fin.min(self.rcv_adv));
        let room = usize::try_from(edge.since(self.rcv_nxt)).unwrap_or(usize::MAX);
        let payload = segment.payload.get(skip..).unwrap_or_default();
        let payload = &payload[..payload.len().min(room.saturating_sub(offset))];
        if payload.is_empty() {
            self.ack = Ack::Now;
            return Ok(());
        }
        let had_gaps = self.receive_buffer.has_gaps();
        match self.receive_buffer.insert(offset, payload, budget) {
            Inserted::Advanced(length) => {
                let length = u32::try_from(length).expect("a window is below 4 GiB");
                self.rcv_nxt = self.rcv_nxt + length;
                self.signals |= signal::READABLE;
                self.owe_ack(now, segment.payload.len(), had_gaps);
                Ok(())
            }
            Inserted::OutOfOrder => {
                self.ack = Ack::Now;
                Ok(())
            }
            Inserted::Duplicate => {
                let length = u32::try_from(payload.len()).expect("a segment is below 4 GiB");
                self.duplicate = Some((start, start + length));
                self.ack = Ack::Now;
                Ok(())
            }
            Inserted::NoRoom => {
                self.ack = Ack::Now;
                Err(Discard::TcpNoRoom)
            }
        }
    }

    /// Acknowledges every second full segment at once and others after a delay, and everything
    /// at once while there are gaps (RFC 5681, 4.2).
    fn owe_ack(&mut self, now: Instant, length: usize, had_gaps: bool) {
        let length = u32::try_from(length).expect("a segment is below 4 GiB");
        // Of merged segments none was longer than what we take.
        let segment = length.min(self.local_mss());
        self.peer_segment = self.peer_segment.max(segment);
        self.unacknowledged = self.unacknowledged.saturating_add(length);
        let quick = self.quick_acks > 0;
        self.quick_acks = self.quick_acks.saturating_sub(1);
        if had_gaps || quick || self.unacknowledged >= 2 * self.peer_segment {
            self.ack = Ack::Now;
        } else if self.ack == Ack::None {
            self.ack = Ack::Delayed(now + ACK_DELAY);
        }
    }

    /// RFC 9293, 3.10.7.4, eighth check; a FIN that comes early waits for the data before it.
    fn handle_fin(&mut self, now: Instant, segment: &Segment<'_>) {
        if segment.header.flags.has(Flags::FIN) {
            let length = u32::try_from(segment.payload.len()).expect("a segment is below 4 GiB");
            let fin = Seq(segment.header.sequence) + length;
            if self.can_receive() && !fin.before(self.rcv_nxt) && !fin.after(self.rcv_adv) {
                self.peer_fin.get_or_insert(fin);
            }
            self.ack = if self.state == State::Closed {
                Ack::None
            } else {
                Ack::Now
            };
        }
        if self.peer_fin != Some(self.rcv_nxt) || self.state == State::Closed {
            return;
        }
        self.rcv_nxt = self.rcv_nxt + 1;
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        self.ack = Ack::Now;
        self.signals |= signal::READABLE;
        match self.state {
            State::Established => self.state = State::CloseWait,
            // Our FIN is not acknowledged, or the acknowledgement would have moved the state.
            State::FinWait1 => self.state = State::Closing,
            State::FinWait2 => self.enter_time_wait(now),
            State::SynSent
            | State::SynReceived
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => {}
        }
    }
}
