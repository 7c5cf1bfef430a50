//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443).

use std::net::IpAddr;

use crate::{checksum::Sum, ip};

/// Length of the header of every message that is understood here.
pub const HEADER: usize = 8;

/// A parsed message; which family it belongs to follows from the addresses around it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message<'a> {
    /// Asks for the same data back.
    EchoRequest(Echo<'a>),
    /// Brings back the data of a request.
    EchoReply(Echo<'a>),
    /// Tells that a packet was not delivered.
    Error {
        /// Why.
        cause: Cause,
        /// The beginning of the packet, for [`ip::parse_quote`].
        quote: &'a [u8],
    },
    /// A message of a type that is not understood here, for example neighbour discovery.
    Other {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// The four bytes behind the checksum.
        rest: [u8; 4],
        /// What follows them.
        body: &'a [u8],
    },
}

/// An echo request or reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Echo<'a> {
    /// Tells apart those who ask.
    pub identifier: u16,
    /// Tells apart the requests of one who asks.
    pub sequence: u16,
    /// The data.
    pub payload: &'a [u8],
}

/// Why a packet was not delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Destination unreachable.
    Unreachable(Unreachable),
    /// The packet exceeds the MTU of a link: "packet too big" of IPv6, "fragmentation needed" of
    /// IPv4, where zero stands for a router older than RFC 1191.
    PacketTooBig {
        /// MTU of that link in bytes.
        mtu: u32,
    },
    /// The hop limit was reached (code 0), or the time to reassemble (code 1).
    TimeExceeded {
        /// The code.
        code: u8,
    },
    /// A field of the header is wrong.
    ParameterProblem {
        /// The code.
        code: u8,
        /// Where the field stands in the packet; eight bits in IPv4.
        pointer: u32,
    },
}

/// What could not be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unreachable {
    /// No route (IPv4 code 0, IPv6 code 0).
    Network,
    /// No such neighbour (IPv4 code 1, IPv6 code 3).
    Host,
    /// Nobody listens (IPv4 code 3, IPv6 code 4).
    Port,
    /// A filter forbids it (IPv4 code 13, IPv6 code 1).
    Prohibited,
    /// Another code of the family.
    Other(u8),
}

/// Why bytes are not an ICMP message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Shorter than the header.
    Truncated,
    /// The checksum is wrong.
    Checksum,
}

/// Parses the payload of an IP packet between the given addresses and verifies its checksum.
pub fn parse(source: IpAddr, destination: IpAddr, bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
    let body = &bytes[HEADER..];
    let sum = pseudo_header(source, destination, bytes.len());
    if sum.add(bytes).fold() != 0xffff {
        return Err(Malformed::Checksum);
    }
    let [kind, code, _, _, rest @ ..] = *header;
    let echo = Echo {
        identifier: u16::from_be_bytes([rest[0], rest[1]]),
        sequence: u16::from_be_bytes([rest[2], rest[3]]),
        payload: body,
    };
    let other = Message::Other {
        kind,
        code,
        rest,
        body,
    };
    Ok(match (source.is_ipv4(), kind, code) {
        (true, 8, 0) | (false, 128, 0) => Message::EchoRequest(echo),
        (true, 0, 0) | (false, 129, 0) => Message::EchoReply(echo),
        _ => match parse_cause(source.is_ipv4(), kind, code, rest) {
            Some(cause) => Message::Error { cause, quote: body },
            None => other,
        },
    })
}

fn parse_cause(v4: bool, kind: u8, code: u8, rest: [u8; 4]) -> Option<Cause> {
    let word = u32::from_be_bytes(rest);
    Some(match (v4, kind, code) {
        (true, 3, 4) => Cause::PacketTooBig {
            mtu: u32::from(u16::from_be_bytes([rest[2], rest[3]])),
        },
        (false, 2, 0) => Cause::PacketTooBig { mtu: word },
        (true, 3, code) => Cause::Unreachable(match code {
            0 => Unreachable::Network,
            1 => Unreachable::Host,
            3 => Unreachable::Port,
            13 => Unreachable::Prohibited,
            code => Unreachable::Other(code),
        }),
        (false, 1, code) => Cause::Unreachable(match code {
            0 => Unreachable::Network,
            1 => Unreachable::Prohibited,
            3 => Unreachable::Host,
            4 => Unreachable::Port,
            code => Unreachable::Other(code),
        }),
        (true, 11, code) | (false, 3, code) => Cause::TimeExceeded { code },
        (true, 12, code) => Cause::ParameterProblem {
            code,
            pointer: u32::from(rest[0]),
        },
        (false, 4, code) => Cause::ParameterProblem {
            code,
            pointer: word,
        },
        _ => return None,
    })
}

/// Writes the message with its checksum to the front of `out` and returns its length.
///
/// # Panics
/// When the addresses differ in family or `out` is too short.
pub fn emit(source: IpAddr, destination: IpAddr, message: &Message<'_>, out: &mut [u8]) -> usize {
    let v4 = source.is_ipv4();
    let (kind, code, rest, body) = match *message {
        Message::EchoRequest(echo) => (if v4 { 8 } else { 128 }, 0, echo.rest(), echo.payload),
        Message::EchoReply(echo) => (if v4 { 0 } else { 129 }, 0, echo.rest(), echo.payload),
        Message::Error { cause, quote } => {
            let (kind, code, rest) = cause.fields(v4);
            (kind, code, rest, quote)
        }
        Message::Other {
            kind,
            code,
            rest,
            body,
        } => (kind, code, rest, body),
    };
    let length = HEADER + body.len();
    let out = &mut out[..length];
    out[..4].copy_from_slice(&[kind, code, 0, 0]);
    out[4..8].copy_from_slice(&rest);
    out[8..].copy_from_slice(body);
    let checksum = pseudo_header(source, destination, length).add(out).finish();
    out[2..4].copy_from_slice(&checksum.to_be_bytes());
    length
}

impl Echo<'_> {
    fn rest(&self) -> [u8; 4] {
        let [a, b] = self.identifier.to_be_bytes();
        let [c, d] = self.sequence.to_be_bytes();
        [a, b, c, d]
    }
}

impl Cause {
    fn fields(self, v4: bool) -> (u8, u8, [u8; 4]) {
        match self {
            Self::Unreachable(what) => (if v4 { 3 } else { 1 }, what.code(v4), [0; 4]),
            Self::PacketTooBig { mtu } if v4 => {
                // A link of more than 64 KiB can take every IPv4 packet.
                let [high, low] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
                (3, 4, [0, 0, high, low])
            }
            Self::PacketTooBig { mtu } => (2, 0, mtu.to_be_bytes()),
            Self::TimeExceeded { code } => (if v4 { 11 } else { 3 }, code, [0; 4]),
            Self::ParameterProblem { code, pointer } if v4 => {
                let pointer = u8::try_from(pointer).unwrap_or(u8::MAX);
                (12, code, [pointer, 0, 0, 0])
            }
            Self::ParameterProblem { code, pointer } => (4, code, pointer.to_be_bytes()),
        }
    }
}

impl Unreachable {
    fn code(self, v4: bool) -> u8 {
        match (self, v4) {
            (Self::Network, _) => 0,
            (Self::Host, true) | (Self::Prohibited, false) => 1,
            (Self::Host, false) | (Self::Port, true) => 3,
            (Self::Port, false) => 4,
            (Self::Prohibited, true) => 13,
            (Self::Other(code), _) => code,
        }
    }
}

/// Only ICMPv6 covers a pseudo-header (RFC 4443, 2.3).
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> Sum {
    match source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => Sum::default().add_pseudo_header(source, destination, ip::ICMPV6, length),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn check(address: IpAddr, message: Message<'_>, head: [u8; 2], rest: [u8; 4]) {
        let mut out = [0xee; 128];
        let length = emit(address, address, &message, &mut out);
        assert_eq!(
            (&out[..2], &out[4..8]),
            (&head[..], &rest[..]),
            "{message:?}"
        );
        assert_eq!(parse(address, address, &out[..length]), Ok(message));
        out[5] ^= 1;
        assert_eq!(
            parse(address, address, &out[..length]),
            Err(Malformed::Checksum)
        );
    }

    #[test]
    fn every_message_has_its_type_and_code_in_both_families() {
        let echo = Echo {
            identifier: 0x0102,
            sequence: 0x0304,
            payload: b"abc",
        };
        let error = |cause| Message::Error {
            cause,
            quote: b"quote",
        };
        let unreachable = |what| error(Cause::Unreachable(what));
        check(V4, Message::EchoRequest(echo), [8, 0], [1, 2, 3, 4]);
        check(V6, Message::EchoRequest(echo), [128, 0], [1, 2, 3, 4]);
        check(V4, Message::EchoReply(echo), [0, 0], [1, 2, 3, 4]);
        check(V6, Message::EchoReply(echo), [129, 0], [1, 2, 3, 4]);
        check(V4, unreachable(Unreachable::Port), [3, 3], [0; 4]);
        check(V6, unreachable(Unreachable::Port), [1, 4], [0; 4]);
        check(V4, unreachable(Unreachable::Prohibited), [3, 13], [0; 4]);
        check(V6, unreachable(Unreachable::Prohibited), [1, 1], [0; 4]);
        check(V6, unreachable(Unreachable::Host), [1, 3], [0; 4]);
        check(V4, unreachable(Unreachable::Other(2)), [3, 2], [0; 4]);
        check(
            V4,
            error(Cause::PacketTooBig { mtu: 1280 }),
            [3, 4],
            [0, 0, 5, 0],
        );
        check(
            V6,
            error(Cause::PacketTooBig { mtu: 1280 }),
            [2, 0],
            [0, 0, 5, 0],
        );
        check(V4, error(Cause::TimeExceeded { code: 0 }), [11, 0], [0; 4]);
        check(V6, error(Cause::TimeExceeded { code: 1 }), [3, 1], [0; 4]);
        let problem = error(Cause::ParameterProblem {
            code: 0,
            pointer: 6,
        });
        check(V4, problem, [12, 0], [6, 0, 0, 0]);
        check(V6, problem, [4, 0], [0, 0, 0, 6]);
    }

    proptest! {
        #[test]
        fn whatever_parses_is_written_back_with_the_same_meaning(
            bytes in proptest::collection::vec(any::<u8>(), 8..64),
            v4 in any::<bool>(),
        ) {
            let address = if v4 { V4 } else { V6 };
            let mut bytes = bytes;
            bytes[2..4].fill(0);
            let sum = pseudo_header(address, address, bytes.len()).add(&bytes).finish();
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
            let message = parse(address, address, &bytes).expect("the checksum holds");
            let mut out = [0; 64];
            let length = emit(address, address, &message, &mut out);
            prop_assert_eq!(parse(address, address, &out[..length]), Ok(message));
        }
    }
}
