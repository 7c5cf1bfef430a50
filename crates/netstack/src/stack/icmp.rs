//! ICMP: echo both ways, and errors in and out (RFC 792, RFC 4443, RFC 5927).

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use packet::{
    icmp::{self, Cause, Echo, Message},
    ip, tcp, udp,
};

use super::{Due, HOP_LIMIT, Pending, Stack, is_unicast};
use crate::{
    Discard, EchoFailure, EchoId, Event, PingError,
    slab::Id,
    tcp::{buffer::Budget, connection::Connection, sequence::Seq},
};

/// ICMP errors that may be sent in one period (RFC 4443, 2.4(f)).
const ERRORS_MAX: u32 = 50;
const ERRORS_PERIOD: Duration = Duration::from_secs(1);
/// An IPv6 link carries at least that much, so an error of that length always arrives.
const ERROR_LENGTH_V6: usize = 1280;
/// RFC 1812, 4.3.2.3: an IPv4 error quotes as much as fits that length.
const ERROR_LENGTH_V4: usize = 576;
/// No IPv4 path is believed to be narrower (RFC 1191, 3 allows 68; see RFC 5927, 7).
const PATH_MTU_MIN_V4: u32 = 552;

/// An echo request without an answer, or with one that nobody has taken yet.
pub(super) struct Request {
    remote: IpAddr,
    sequence: u16,
    sent_at: Instant,
    armed: Option<Instant>,
    finished: Option<Event>,
}

/// How many ICMP errors were sent in the current period.
#[derive(Default)]
pub(super) struct ErrorLimit {
    began: Option<Instant>,
    count: u32,
}

impl ErrorLimit {
    fn admit(&mut self, now: Instant) -> bool {
        if self.began.is_none_or(|began| now >= began + ERRORS_PERIOD) {
            self.began = Some(now);
            self.count = 0;
        }
        self.count += 1;
        self.count <= ERRORS_MAX
    }
}

impl Stack {
    /// Sends an echo request with `payload_length` bytes of data; [`Event::EchoReply`] or
    /// [`Event::EchoFailed`] follows.
    pub fn ping(
        &mut self,
        now: Instant,
        remote: IpAddr,
        sequence: u16,
        payload_length: usize,
    ) -> Result<EchoId, PingError> {
        self.ping_within(now, remote, sequence, payload_length, HOP_LIMIT)
    }

    /// The same with a hop limit: the router at which it ends says so, and
    /// [`Event::EchoFailed`] names it with [`Cause::TimeExceeded`] (RFC 8200, 3; RFC 4443, 3.3).
    pub fn ping_within(
        &mut self,
        now: Instant,
        remote: IpAddr,
        sequence: u16,
        payload_length: usize,
        hop_limit: u8,
    ) -> Result<EchoId, PingError> {
        if !is_unicast(remote) {
            return Err(PingError::Address);
        }
        let source = self.best_source(remote).ok_or(PingError::NoAddress)?;
        if ip::header_length(remote) + icmp::HEADER + payload_length > self.config.mtu {
            return Err(PingError::TooLong);
        }
        let limits = &self.config.limits;
        // The identifier is the index of the request, so there are never more than 2^16.
        let bound = limits.echoes_max.min(usize::from(u16::MAX));
        if self.echoes.len() >= bound || self.answers.len() >= limits.answers_max {
            return Err(PingError::TooMany);
        }
        let deadline = now + limits.echo_timeout;
        let id = self.echoes.insert(Request {
            remote,
            sequence,
            sent_at: now,
            armed: None,
            finished: None,
        });
        let request = self.echoes.get_mut(id).expect("it was just inserted");
        self.deadlines
            .arm(now, Due::Echo(id), &mut request.armed, Some(deadline));
        let echo = Echo {
            identifier: identifier(id),
            sequence,
            payload: &vec![0x5a; payload_length],
        };
        self.send_icmp(source, remote, &Message::EchoRequest(echo), hop_limit);
        Ok(id)
    }

    pub(super) fn handle_icmp(
        &mut self,
        now: Instant,
        header: &ip::Header,
        payload: &[u8],
    ) -> Result<(), Discard> {
        let (source, destination) = (header.source, header.destination);
        let message = icmp::parse(source, destination, payload).map_err(|why| match why {
            icmp::Malformed::Truncated => Discard::IcmpMalformed,
            icmp::Malformed::Checksum => Discard::IcmpChecksum,
        })?;
        match message {
            Message::EchoRequest(echo) => {
                if self.answers.len() >= self.config.limits.answers_max {
                    return Err(Discard::AnswersFull);
                }
                let length = ip::header_length(source) + payload.len();
                if length > self.config.mtu {
                    return Err(Discard::IcmpUnrelated);
                }
                self.answer_icmp(destination, source, &Message::EchoReply(echo));
                Ok(())
            }
            Message::EchoReply(echo) => self.handle_echo_reply(now, source, echo),
            Message::Error { cause, quote } => {
                self.handle_icmp_error(now, source, destination, cause, quote)
            }
            Message::Other { .. } => Err(Discard::IcmpUnrelated),
        }
    }

    fn handle_echo_reply(
        &mut self,
        now: Instant,
        from: IpAddr,
        echo: Echo<'_>,
    ) -> Result<(), Discard> {
        let (id, request) = self
            .request(echo.identifier)
            .ok_or(Discard::IcmpUnrelated)?;
        if request.sequence != echo.sequence || request.remote != from {
            return Err(Discard::IcmpUnrelated);
        }
        let round_trip = now.saturating_duration_since(request.sent_at);
        let sequence = echo.sequence;
        self.finish_echo(
            now,
            id,
            Event::EchoReply {
                id,
                sequence,
                from,
                round_trip,
            },
        );
        Ok(())
    }

    fn request(&mut self, identifier: u16) -> Option<(EchoId, &mut Request)> {
        let (id, request) = self.echoes.at_mut(u32::from(identifier))?;
        request.finished.is_none().then_some((id, request))
    }

    fn finish_echo(&mut self, now: Instant, id: EchoId, event: Event) {
        if let Some(request) = self.echoes.get_mut(id)
            && request.finished.is_none()
        {
            request.finished = Some(event);
            self.deadlines
                .arm(now, Due::Echo(id), &mut request.armed, None);
            self.events.push_back(Pending::Echo(id));
        }
    }

    pub(super) fn handle_echo_timeout(&mut self, now: Instant, id: EchoId) {
        let limit = self.config.limits.echo_timeout;
        let Some(request) = self.echoes.get_mut(id) else {
            return;
        };
        request.armed = None;
        if request.finished.is_some() {
            return;
        }
        let deadline = request.sent_at + limit;
        if deadline > now {
            self.deadlines
                .arm(now, Due::Echo(id), &mut request.armed, Some(deadline));
            return;
        }
        let (sequence, from) = (request.sequence, request.remote);
        let elapsed = now.saturating_duration_since(request.sent_at);
        let failure = EchoFailure::TimedOut;
        self.finish_echo(
            now,
            id,
            Event::EchoFailed {
                id,
                sequence,
                from,
                elapsed,
                failure,
            },
        );
    }

    pub(super) fn poll_echo_event(&mut self, id: EchoId) -> Option<Event> {
        self.echoes.remove(id)?.finished
    }

    /// Delivers an error to the socket whose packet it quotes.
    pub(super) fn handle_icmp_error(
        &mut self,
        now: Instant,
        from: IpAddr,
        to: IpAddr,
        cause: Cause,
        quote: &[u8],
    ) -> Result<(), Discard> {
        let quoted = ip::parse_quote(quote).map_err(|_| Discard::IcmpMalformed)?;
        let header = quoted.header;
        // We sent the packet that is quoted, from the address that the error came to.
        if header.source != to || header.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Err(Discard::IcmpUnrelated);
        }
        let Some(&[a, b, c, d, rest @ ..]) = quoted.payload.first_chunk::<8>() else {
            return Err(Discard::IcmpMalformed);
        };
        let local = SocketAddr::new(header.source, u16::from_be_bytes([a, b]));
        let remote = SocketAddr::new(header.destination, u16::from_be_bytes([c, d]));
        match header.next_header {
            ip::TCP => {
                self.handle_tcp_error(now, local, remote, Seq(u32::from_be_bytes(rest)), cause)
            }
            ip::UDP => self.handle_udp_error(local, remote, cause),
            ip::ICMP | ip::ICMPV6 => {
                let is_request = a == if to.is_ipv4() { 8 } else { 128 };
                let identifier = u16::from_be_bytes([rest[0], rest[1]]);
                let sequence = u16::from_be_bytes([rest[2], rest[3]]);
                let (id, request) = self.request(identifier).ok_or(Discard::IcmpUnrelated)?;
                let ours = request.sequence == sequence && request.remote == header.destination;
                if !is_request || !ours {
                    return Err(Discard::IcmpUnrelated);
                }
                let elapsed = now.saturating_duration_since(request.sent_at);
                let failure = EchoFailure::Icmp(cause);
                self.finish_echo(
                    now,
                    id,
                    Event::EchoFailed {
                        id,
                        sequence,
                        from,
                        elapsed,
                        failure,
                    },
                );
                Ok(())
            }
            _ => Err(Discard::IcmpUnrelated),
        }
    }

    fn handle_tcp_error(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        quoted: Seq,
        cause: Cause,
    ) -> Result<(), Discard> {
        let id = self.tcp.find(local, remote).ok_or(Discard::IcmpUnrelated)?;
        let believe = |connection: &mut Connection, budget: &mut Budget| match cause {
            Cause::Unreachable(what) => connection.handle_unreachable(quoted, what, budget),
            Cause::PacketTooBig { mtu } => {
                let floor = if remote.is_ipv4() {
                    PATH_MTU_MIN_V4
                } else {
                    1280
                };
                let mtu = usize::try_from(mtu.max(floor)).unwrap_or(usize::MAX);
                let believed = connection.is_outstanding(quoted);
                if believed && mtu < connection.mtu() {
                    connection.set_mtu(mtu);
                }
                believed
            }
            // Routing loops and header errors pass or show as a timeout (RFC 5927, 5.2).
            Cause::TimeExceeded { .. } | Cause::ParameterProblem { .. } => {
                connection.is_outstanding(quoted)
            }
        };
        let believed = self.tcp.act(id, believe).unwrap_or(false);
        self.settle(now, id);
        if believed {
            Ok(())
        } else {
            Err(Discard::IcmpUnrelated)
        }
    }

    /// Tells the sender of `packet` why it was not delivered, within the limit for errors.
    pub(super) fn answer_error(
        &mut self,
        now: Instant,
        cause: Cause,
        header: &ip::Header,
        packet: Option<&[u8]>,
    ) {
        let Some(packet) = packet else { return };
        let full = self.answers.len() >= self.config.limits.answers_max;
        if full || !self.error_limit.admit(now) {
            return;
        }
        let length = match header.source {
            IpAddr::V4(_) => ERROR_LENGTH_V4,
            IpAddr::V6(_) => ERROR_LENGTH_V6,
        };
        let room = length - ip::header_length(header.source) - icmp::HEADER;
        let quote = &packet[..packet.len().min(room)];
        let message = Message::Error { cause, quote };
        self.answer_icmp(header.destination, header.source, &message);
    }

    pub(super) fn answer_icmp(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        message: &Message<'_>,
    ) {
        self.send_icmp(source, destination, message, HOP_LIMIT);
    }

    fn send_icmp(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        message: &Message<'_>,
        hop_limit: u8,
    ) {
        let next_header = if source.is_ipv4() {
            ip::ICMP
        } else {
            ip::ICMPV6
        };
        let at = ip::header_length(destination);
        let mut packet = vec![0; usize::from(u16::MAX)];
        let length = icmp::emit(source, destination, message, &mut packet[at..]);
        let header = ip::Header {
            hop_limit,
            ..super::header(source, destination, next_header)
        };
        ip::emit_header(&header, length, &mut packet);
        packet.truncate(at + length);
        packet.shrink_to_fit();
        self.answers.push_back(packet);
    }
}

/// The identifier on the wire is the index of the request.
fn identifier(id: EchoId) -> u16 {
    u16::try_from(id.index()).expect("requests are bounded below 2^16")
}

const _: () = assert!(
    tcp::HEADER >= 8 && udp::HEADER == 8,
    "a quote holds ports at least"
);
