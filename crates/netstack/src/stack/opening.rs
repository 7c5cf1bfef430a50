//! Passive opens: a SYN becomes a connection, or a cookie while too many are half open.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use packet::{
    ip,
    tcp::{self, Flags, Header, Options, Segment, Timestamps},
};

use super::{Stack, tcp::begins};
use crate::{
    Discard, ListenerId,
    tcp::{
        connection::Connection,
        cookie::{self, Opener},
        sequence::Seq,
    },
};

/// The window of a SYN-ACK with a cookie, which is the same when the cookie comes back.
const COOKIE_WINDOW: u16 = 32_768;

impl Stack {
    /// A segment without a connection: a SYN for a listener, an ACK that brings back a cookie, or
    /// nothing (RFC 9293, 3.10.7.2).
    pub(super) fn handle_opening(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        segment: &Segment<'_>,
        floor: Option<Seq>,
    ) -> Result<(), Discard> {
        let listener = if self.is_own(local.ip()) {
            self.tcp.find_listener(local)
        } else {
            self.tcp.by_prefix.find(local.ip())
        };
        let listener = listener.ok_or(Discard::TcpNoSocket)?;
        let header = &segment.header;
        if remote.port() == 0 {
            return Err(Discard::TcpNoSocket);
        }
        if !begins(header) {
            return self.handle_cookie(now, listener, local, remote, segment);
        }
        self.accept_opening(now, listener, remote)?;
        let bound = self.config.limits.half_open_max;
        let full = !self.tcp.accounts.admits_opening(remote.ip(), bound);
        if self.tcp.is_prefix(listener) {
            return self.hold_opening(now, listener, local, remote, header, floor, full);
        }
        // The cookie of a new incarnation might not be beyond the old one's numbers.
        if full && floor.is_none() {
            return self.answer_cookie(now, local, remote, header);
        }
        let opening = self.opening(now, local, remote, floor);
        let connection = Connection::accept(now, opening, header);
        self.insert_connection(now, connection, Some(listener));
        Ok(())
    }

    /// Makes a connection that waits for its owner's word, who learns from it which address is
    /// meant.
    fn hold_opening(
        &mut self,
        now: Instant,
        listener: ListenerId,
        local: SocketAddr,
        remote: SocketAddr,
        syn: &Header,
        floor: Option<Seq>,
        full: bool,
    ) -> Result<(), Discard> {
        if full {
            return Err(Discard::TcpBacklogFull);
        }
        let opening = self.opening(now, local, remote, floor);
        let connection = Connection::hold(now, opening, syn);
        let id = self.insert_connection(now, connection, Some(listener));
        self.offer(listener, id);
        Ok(())
    }

    /// Tells whether there is room for one more connection of that listener from that peer.
    fn accept_opening(
        &mut self,
        now: Instant,
        listener: ListenerId,
        remote: SocketAddr,
    ) -> Result<(), Discard> {
        let backlogged = self.tcp.is_backlogged(listener);
        if backlogged || !self.make_room(now) || !self.admits(now, remote) {
            return Err(Discard::TcpBacklogFull);
        }
        Ok(())
    }

    fn uptime(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch(now))
    }

    fn answer_cookie(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        syn: &Header,
    ) -> Result<(), Discard> {
        if self.answers.len() >= self.config.limits.answers_max {
            return Err(Discard::AnswersFull);
        }
        let opening = self.opening(now, local, remote, None);
        let stamps = syn.options.timestamps.map(|stamps| Timestamps {
            value: cookie::stamp(opening.stamp(now), &syn.options),
            echo: stamps.value,
        });
        // What a peer without timestamps would have to repeat is not granted.
        let granted = stamps.map(|stamps| cookie::options(stamps.value));
        let granted = granted.unwrap_or_default();
        let opener = Opener {
            local,
            remote,
            irs: Seq(syn.sequence),
        };
        let uptime = self.uptime(now);
        let size = syn.options.maximum_segment_size.unwrap_or(536);
        let value = stamps.map(|stamps| stamps.value);
        let iss = cookie::seal(&self.secret, &opener, uptime, size, value);
        let header = Header {
            source_port: local.port(),
            destination_port: remote.port(),
            sequence: iss.0,
            acknowledgement: syn.sequence.wrapping_add(1),
            flags: Flags::SYN.with(Flags::ACK),
            window: COOKIE_WINDOW,
            options: Options {
                maximum_segment_size: Some(opening.maximum_segment_size()),
                window_scale: granted.window_scale.map(|_| opening.window_scale()),
                sack_permitted: granted.sack_permitted,
                timestamps: stamps,
                ..Options::default()
            },
            ..Header::default()
        };
        self.answer_segment(local, remote, header);
        self.tcp.cookies_at = Some(now);
        Ok(())
    }

    /// Takes an ACK that may bring back a cookie; everything else belongs to no connection.
    fn handle_cookie(
        &mut self,
        now: Instant,
        listener: ListenerId,
        local: SocketAddr,
        remote: SocketAddr,
        segment: &Segment<'_>,
    ) -> Result<(), Discard> {
        let header = &segment.header;
        let lately = |at: Instant| now.saturating_duration_since(at) < 2 * cookie::PERIOD;
        let plain = !self.tcp.is_prefix(listener)
            && header.flags.has(Flags::ACK)
            && !header.flags.has(Flags::SYN)
            && !header.flags.has(Flags::RST);
        if !plain || !self.tcp.cookies_at.is_some_and(lately) {
            return Err(Discard::TcpNoSocket);
        }
        let opener = Opener {
            local,
            remote,
            irs: Seq(header.sequence.wrapping_sub(1)),
        };
        let iss = Seq(header.acknowledgement.wrapping_sub(1));
        let stamps = header.options.timestamps;
        let echo = stamps.map(|stamps| stamps.echo);
        let uptime = self.uptime(now);
        let size = cookie::open(&self.secret, &opener, uptime, iss, echo);
        let size = size.ok_or(Discard::TcpNoSocket)?;
        self.accept_opening(now, listener, remote)?;
        let mut opening = self.opening(now, local, remote, None);
        opening.iss = iss;
        // The SYN as it was, for all that matters now.
        let syn = Header {
            sequence: opener.irs.0,
            flags: Flags::SYN,
            options: Options {
                maximum_segment_size: Some(size),
                timestamps: stamps,
                ..echo.map(cookie::options).unwrap_or_default()
            },
            ..*header
        };
        let connection = Connection::resume(now, opening, &syn, COOKIE_WINDOW);
        let id = self.insert_connection(now, connection, Some(listener));
        let handle = self.tcp.act(id, |connection, budget| {
            connection.handle_segment(now, segment, budget)
        });
        self.settle(now, id);
        handle.unwrap_or(Ok(()))
    }

    /// Queues a segment that belongs to no connection of ours.
    pub(super) fn answer_segment(&mut self, local: SocketAddr, remote: SocketAddr, header: Header) {
        let at = ip::header_length(remote.ip());
        let mut packet = vec![0; at + tcp::HEADER + header.options.length()];
        let segment = Segment {
            header,
            payload: &[],
        };
        let length = tcp::emit(local.ip(), remote.ip(), &segment, &mut packet[at..]);
        let header = super::header(local.ip(), remote.ip(), ip::TCP);
        ip::emit_header(&header, length, &mut packet);
        self.answers.push_back(packet);
    }
}
