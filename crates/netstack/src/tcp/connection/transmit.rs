//! Segments out.

use std::time::{Duration, Instant};

use packet::tcp::{self, Flags, Header, Options, Timestamps};

use super::{
    Ack, Blocked, Budget, Connection, MSS_MIN, Pace, Pause, Probe, Recovery, Seq, State,
    WINDOW_SHIFT, Written,
};

impl Connection {
    /// Writes the header of the next segment that may go out now to the front of `out`, with a
    /// checksum of zero, or of a run of at most `segments_max` segments. `None` until time or an
    /// input changes something.
    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        budget: &Budget,
        segments_max: usize,
        out: &mut [u8],
    ) -> Option<Written> {
        match self.state {
            State::Closed => {
                let due = std::mem::take(&mut self.reset_due);
                due.then(|| {
                    let header = self.header(now, self.snd_nxt, Flags::RST.with(Flags::ACK));
                    Written::bare(tcp::emit_header(&header, out))
                })
            }
            State::SynSent | State::SynReceived => {
                let head = self.transmit_syn(now, budget, out);
                head.map(Written::bare)
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                let run = self.next_run(now);
                if let Some((start, end)) = run {
                    let last = self.extend_run(now, (start, end), segments_max);
                    let mut written = self.transmit_run(now, start, last, budget, out);
                    if last != end {
                        written.size = self.data_size();
                    }
                    return Some(written);
                }
                if std::mem::take(&mut self.question_due) {
                    // Outside the window, so that it must be answered (RFC 9293, 3.8.4).
                    let before = Seq(self.snd_una.0.wrapping_sub(1));
                    let head = self.transmit_empty(now, before, budget, out);
                    return Some(Written::bare(head));
                }
                let due = self.ack == Ack::Now;
                due.then(|| Written::bare(self.transmit_empty(now, self.snd_nxt, budget, out)))
            }
        }
    }

    /// Adds further segments of new data to a full one that was new, one by one, as far as windows
    /// and pace let them out: so a burst is no longer than without.
    fn extend_run(
        &mut self,
        now: Instant,
        (start, mut end): (Seq, Seq),
        segments_max: usize,
    ) -> Seq {
        let mss = self.segment_size();
        let probe = self.probe_end.is_some_and(|probe| probe.end == end);
        let fresh = end == self.snd_nxt && end - start == mss && self.fin.is_none() && !probe;
        // Recovery lets out what each acknowledgement allows.
        if !fresh || self.recovery != Recovery::Open || self.duplicate_acks > 0 {
            return end;
        }
        for _ in 1..segments_max {
            // A segment that measures the path goes by itself.
            let over = self.unsent() == 0 && !self.finishing;
            if over || self.length_of_new(now) != mss {
                break;
            }
            let Some((_, next)) = self.next_new(now, false) else {
                break;
            };
            let full = next - end == mss && self.fin.is_none();
            end = next;
            if !full {
                break;
            }
        }
        end
    }

    fn transmit_syn(&mut self, now: Instant, budget: &Budget, out: &mut [u8]) -> Option<usize> {
        let iss = self.opening.iss;
        if self.is_held() {
            return None;
        }
        let repeated = self.snd_nxt != iss;
        if !repeated {
            self.scoreboard.push(now, iss, iss + 1);
            self.snd_nxt = iss + 1;
            self.una_since = now;
        } else if self.scoreboard.take_lost(now, 1).is_none() {
            let due = self.ack == Ack::Now && self.state == State::SynReceived;
            return due.then(|| self.transmit_empty(now, self.snd_nxt, budget, out));
        }
        self.rto_base = now;
        self.last_sent = now;
        let answers = self.state == State::SynReceived;
        let flags = if answers {
            Flags::SYN.with(Flags::ACK)
        } else {
            Flags::SYN
        };
        let flags = flags.with(self.ecn_of_syn(repeated));
        let mut header = self.header(now, iss, flags);
        let mss = self.local_mss().max(MSS_MIN);
        header.options = Options {
            maximum_segment_size: Some(u16::try_from(mss).unwrap_or(u16::MAX)),
            window_scale: (!answers || self.rcv_scale > 0).then_some(WINDOW_SHIFT),
            sack_permitted: !answers || self.sack,
            timestamps: (!answers || self.stamps.is_some()).then(|| self.timestamps(now)),
            ..Options::default()
        };
        // The window of a SYN is never scaled (RFC 7323, 2.2).
        let window = self.receive_room(budget).min(u32::from(u16::MAX));
        header.window = u16::try_from(window).expect("at most 65,535");
        if answers {
            self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + window);
            self.ack = Ack::None;
        }
        Some(tcp::emit_header(&header, out))
    }

    /// Chooses what goes out: what was lost, a probe, or what is new.
    fn next_run(&mut self, now: Instant) -> Option<(Seq, Seq)> {
        let mss = self.segment_size();
        let lost = self.scoreboard.peek_lost().min(mss);
        if lost > 0 && self.awaits_verdict() {
            return self.forwards().then(|| self.next_new(now, false)).flatten();
        }
        if lost > 0 {
            let pipe = self.pipe();
            if !self.force && pipe > 0 && pipe + lost > self.congestion.cwnd {
                if self.congestion.has_model() {
                    self.cwnd_limited = true;
                    self.pacer.rest();
                }
                return None;
            }
            if self.congestion.has_model() && !self.keeps_pace(now, lost, self.force) {
                return None;
            }
            self.force = false;
            let run = self.scoreboard.take_lost(now, mss)?;
            self.count_out(run);
            self.congestion.count_repair(run.1 - run.0);
            self.count_retransmission(now, run);
            self.end_length_probe(now, run.0);
            if run.0 == self.snd_una {
                // The timer stands for the oldest segment, and that has just gone out, as in
                // Linux; else it expires while recovery is at work.
                self.rto_base = now;
            }
            return Some(run);
        }
        self.force = false;
        let probe = std::mem::take(&mut self.probe_due);
        let mut run = self.next_new(now, probe);
        if probe {
            let retransmits = run.is_none();
            run = run.or_else(|| self.scoreboard.take_last(now, mss));
            self.probe_end = Some(Probe {
                end: self.snd_nxt,
                retransmits,
            });
        }
        run
    }

    fn count_out(&mut self, (start, end): (Seq, Seq)) {
        if let Recovery::Fast { out, .. } = &mut self.recovery {
            *out += end - start;
        }
    }

    /// Returns the next run of new data and FIN that windows, Nagle (RFC 9293, 3.7.4) and the
    /// avoidance of silly windows (3.8.6.2.1) let out. A probe need not heed the cwnd.
    fn next_new(&mut self, now: Instant, probe: bool) -> Option<(Seq, Seq)> {
        if !self.owes_new() {
            self.cwnd_limited = false;
            self.pacer.rest();
            return None;
        }
        let mss = self.length_of_new(now);
        let unsent = self.unsent();
        let window = (self.snd_una + self.snd_wnd).since(self.snd_nxt);
        let length = unsent.min(window).min(mss);
        let fin = self.finishing && self.fin.is_none() && length == unsent && window > length;
        let octets = length + u32::from(fin);
        if octets == 0 {
            self.block(now);
            return None;
        }
        let pipe = self.pipe();
        if !probe && pipe > 0 && pipe + octets > self.congestion.cwnd {
            self.cwnd_limited = true;
            self.pacer.rest();
            return None;
        }
        if length < mss && length < unsent {
            // The window is what cuts the segment short.
            let overdue = self.window_probes() > 0 && self.scoreboard.is_empty();
            if length < self.snd_wnd_max / 2 && !overdue {
                self.block(now);
                return None;
            }
        }
        if length < mss && !fin && self.nagle && !self.scoreboard.is_empty() {
            return None;
        }
        if !self.keeps_pace(now, octets, probe) {
            return None;
        }
        self.blocked = None;
        if self.scoreboard.is_empty() {
            let idle = now.saturating_duration_since(self.last_sent);
            let pause = Pause {
                clock: self.validation_clock(now),
                idle,
                quiet: now.saturating_duration_since(self.una_since),
                application_limited: self.scoreboard.is_application_limited(),
            };
            self.congestion.handle_idle(now, self.flight(now), pause);
            self.rto_base = now;
            self.una_since = now;
        }
        let start = self.snd_nxt;
        let end = start + octets;
        if fin {
            self.fin = Some(start + length);
            self.enter_finishing_state();
        }
        self.scoreboard.push(now, start, end);
        self.snd_nxt = end;
        self.note_length(start, end);
        self.count_out((start, end));
        Some((start, end))
    }

    /// Counts `octets`, or holds them back until the pace lets them go.
    ///
    /// Held back is only what follows something in flight on a path without losses: a probe,
    /// limited transmit (RFC 3042) and the first segment after silence go at once, and recovery has
    /// its own clock. A rate that a model of the path gives holds also for what is lost.
    fn keeps_pace(&mut self, now: Instant, octets: u32, probe: bool) -> bool {
        let Some(smoothed_rtt) = self.rtt.smoothed() else {
            return true;
        };
        let pace = self.pace(smoothed_rtt);
        // A duplicate acknowledgement lets out one segment, to tell loss from reordering.
        let clocked = self.duplicate_acks > 0 || self.recovery != Recovery::Open;
        let free = probe || (clocked && !self.congestion.has_model()) || self.pipe() == 0;
        if !free && self.pacer.holds(now, pace, octets) {
            return false;
        }
        self.pacer.count(now, pace, octets);
        true
    }

    /// How fast data may leave.
    pub(super) fn pace(&self, smoothed_rtt: Duration) -> Pace {
        let in_flight = self.scoreboard.in_flight();
        self.congestion.pace(in_flight, smoothed_rtt)
    }

    /// The peer's window is closed or too small to be of use.
    fn block(&mut self, now: Instant) {
        self.cwnd_limited = false;
        self.pacer.rest();
        if self.scoreboard.is_empty() {
            self.blocked.get_or_insert_with(|| Blocked::new(now));
        }
    }

    fn enter_finishing_state(&mut self) {
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            State::SynSent
            | State::SynReceived
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => {}
        }
    }

    fn transmit_run(
        &mut self,
        now: Instant,
        start: Seq,
        end: Seq,
        budget: &Budget,
        out: &mut [u8],
    ) -> Written {
        let fin = self.fin.is_some_and(|fin| end.after(fin));
        let length = usize::try_from(end - start - u32::from(fin)).expect("a segment fits memory");
        let offset = start - self.data_start();
        let offset = usize::try_from(offset).expect("a window fits memory");
        let mut flags = Flags::ACK;
        if offset + length == self.send_buffer.len() && length > 0 {
            flags = flags.with(Flags::PSH);
        }
        if fin {
            flags = flags.with(Flags::FIN);
        }
        let fresh = length > 0 && !self.scoreboard.is_retransmitted(start);
        flags = flags.with(self.ecn_of_segment(fresh));
        let mut header = self.header(now, start, flags);
        self.acknowledge(budget, &mut header, length == 0);
        self.last_sent = now;
        // Nothing that leaves gives memory back.
        if budget.room() > 0 {
            self.offer_room();
        }
        Written {
            head: tcp::emit_header(&header, out),
            offset,
            length,
            size: length,
        }
    }

    fn transmit_empty(
        &mut self,
        now: Instant,
        sequence: Seq,
        budget: &Budget,
        out: &mut [u8],
    ) -> usize {
        let flags = Flags::ACK.with(self.ecn_of_segment(false));
        let mut header = self.header(now, sequence, flags);
        self.acknowledge(budget, &mut header, true);
        tcp::emit_header(&header, out)
    }

    fn header(&self, now: Instant, sequence: Seq, flags: Flags) -> Header {
        let mut header = Header {
            source_port: self.opening.local.port(),
            destination_port: self.opening.remote.port(),
            sequence: sequence.0,
            acknowledgement: if flags.has(Flags::ACK) {
                self.rcv_nxt.0
            } else {
                0
            },
            flags,
            ..Header::default()
        };
        if self.stamps.is_some() {
            header.options.timestamps = Some(self.timestamps(now));
        }
        header
    }

    fn timestamps(&self, now: Instant) -> Timestamps {
        Timestamps {
            value: self.stamp(now),
            echo: self.stamps.map_or(0, |stamps| stamps.recent),
        }
    }

    /// Puts window and SACK blocks into a header; nothing is owed afterwards but a report of ranges
    /// for which there was no room.
    fn acknowledge(&mut self, budget: &Budget, header: &mut Header, empty: bool) {
        let room = self.receive_room(budget);
        let edge = self.rcv_nxt + room;
        // The receiver's side of the silly window syndrome (RFC 9293, 3.8.6.2.2).
        let gain = edge.since(self.rcv_adv);
        if gain >= self.window_step() {
            self.rcv_adv = self.rcv_adv.max(edge);
        }
        let window = self.rcv_adv.since(self.rcv_nxt);
        // Rounded up, because a right edge that the peer knows must not move left.
        let scaled = window
            .div_ceil(1 << self.rcv_scale)
            .min(u32::from(u16::MAX));
        header.window = u16::try_from(scaled).expect("at most 65,535");
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + (scaled << self.rcv_scale));
        self.ack = Ack::None;
        self.unacknowledged = 0;
        self.last_ack_sent = self.rcv_nxt;
        let duplicate = self.duplicate.take();
        if self.sack && (duplicate.is_some() || self.receive_buffer.has_gaps()) {
            // Beside data there might be no room for the option within the MSS.
            if empty {
                let limit = if self.stamps.is_some() { 3 } else { 4 };
                if let Some((left, right)) = duplicate {
                    header.options.sack.push(left.0, right.0);
                }
                let count = limit - header.options.sack.as_slice().len();
                for (left, right) in self.receive_buffer.report(self.rcv_nxt, count) {
                    header.options.sack.push(left.0, right.0);
                }
            }
            if self.receive_buffer.has_unreported() {
                self.ack = Ack::Now;
            }
        }
    }
}
