//! SOCKS5 messages (RFC 1928): total parsers and exact emitters, no IO.

use std::net::{IpAddr, SocketAddr};

/// The version in every message.
const VERSION: u8 = 5;

/// The method "no authentication required" (section 3).
const METHOD_NONE: u8 = 0;

/// The answer "no acceptable methods" (section 3).
const METHOD_REFUSED: u8 = 0xff;

/// No message that a client sends is longer: a UDP header with a name of 255 bytes has 262, a
/// greeting with 255 methods has 257.
pub(crate) const MESSAGE_MAX: usize = 262;

/// What a parser makes of the bytes that have come so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Parsed<T> {
    /// A message and its length; what follows belongs to the next one.
    Message(T, usize),
    /// The message is not complete. Never returned for [`MESSAGE_MAX`] bytes or more.
    Incomplete,
    /// This is not SOCKS5.
    Malformed,
}

/// What a client asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    /// What to do.
    pub(crate) command: Command,
    /// With whom.
    pub(crate) target: Target,
}

/// What to do (section 4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Command {
    /// Open a TCP connection.
    Connect,
    /// Wait for a TCP connection; not supported.
    Bind,
    /// Relay datagrams.
    UdpAssociate,
    /// Anything else.
    Unknown,
}

/// An address and a port, where the address may be a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    /// The address.
    pub(crate) host: Host,
    /// The port.
    pub(crate) port: u16,
}

/// An address as SOCKS carries it (section 5).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Host {
    /// IPv4 or IPv6.
    Address(IpAddr),
    /// A domain name of 1 to 255 bytes without control characters or spaces.
    Name(String),
    /// An address of a kind that this version does not have.
    Unknown,
}

/// The outcome of a request (section 6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reply {
    /// The connection is open.
    Succeeded,
    /// Something else went wrong.
    GeneralFailure,
    /// A rule forbids the connection.
    NotAllowed,
    /// No route leads to the network.
    NetworkUnreachable,
    /// Nobody has the name or answers at the address.
    HostUnreachable,
    /// The port refuses.
    ConnectionRefused,
    /// No answer came in time.
    TtlExpired,
    /// The command is not supported.
    CommandNotSupported,
    /// The kind of address is not supported.
    AddressNotSupported,
}

/// Parses the greeting and tells whether the client offers to go without authentication.
#[must_use]
pub(crate) fn parse_greeting(bytes: &[u8]) -> Parsed<bool> {
    match *bytes {
        [] | [VERSION] => Parsed::Incomplete,
        [VERSION, count, ref rest @ ..] => match rest.get(..usize::from(count)) {
            Some(methods) => Parsed::Message(methods.contains(&METHOD_NONE), 2 + methods.len()),
            None => Parsed::Incomplete,
        },
        [_, ..] => Parsed::Malformed,
    }
}

/// Returns the answer to a greeting.
#[must_use]
pub(crate) fn emit_method(accepted: bool) -> [u8; 2] {
    [
        VERSION,
        if accepted {
            METHOD_NONE
        } else {
            METHOD_REFUSED
        },
    ]
}

/// Parses a request.
#[must_use]
pub(crate) fn parse_request(bytes: &[u8]) -> Parsed<Request> {
    match *bytes {
        [VERSION, command, _, ref rest @ ..] => {
            let command = match command {
                1 => Command::Connect,
                2 => Command::Bind,
                3 => Command::UdpAssociate,
                _ => Command::Unknown,
            };
            match parse_target(rest) {
                Parsed::Message(target, length) => {
                    Parsed::Message(Request { command, target }, 3 + length)
                }
                Parsed::Incomplete => Parsed::Incomplete,
                Parsed::Malformed => Parsed::Malformed,
            }
        }
        [] | [VERSION] | [VERSION, _] => Parsed::Incomplete,
        [_, ..] => Parsed::Malformed,
    }
}

/// Appends a reply that names the address at which the proxy acts for the client.
pub(crate) fn emit_reply(reply: Reply, bound: SocketAddr, out: &mut Vec<u8>) {
    out.extend([VERSION, reply.code(), 0]);
    emit_address(bound, out);
}

/// Parses the header of a datagram (section 7). The payload begins at the returned length.
///
/// A fragment is malformed: reassembly is optional and nobody uses it.
#[must_use]
pub(crate) fn parse_datagram(bytes: &[u8]) -> Parsed<Target> {
    match *bytes {
        [_, _, 0, ref rest @ ..] => match parse_target(rest) {
            Parsed::Message(target, length) => Parsed::Message(target, 3 + length),
            Parsed::Incomplete => Parsed::Incomplete,
            Parsed::Malformed => Parsed::Malformed,
        },
        [] | [_] | [_, _] => Parsed::Incomplete,
        [_, _, _, ..] => Parsed::Malformed,
    }
}

/// Appends the header of a datagram for `target`; false when the name is longer than 255 bytes.
pub(crate) fn emit_datagram_to(target: &Target, out: &mut Vec<u8>) -> bool {
    match &target.host {
        Host::Address(address) => emit_datagram(SocketAddr::new(*address, target.port), out),
        Host::Name(name) => {
            let Ok(length) = u8::try_from(name.len()) else {
                return false;
            };
            out.extend([0, 0, 0, 3, length]);
            out.extend(name.bytes());
            out.extend(target.port.to_be_bytes());
        }
        Host::Unknown => return false,
    }
    true
}

/// Appends the header of a datagram that came from `source`.
pub(crate) fn emit_datagram(source: SocketAddr, out: &mut Vec<u8>) {
    out.extend([0, 0, 0]);
    emit_address(source, out);
}

fn parse_target(bytes: &[u8]) -> Parsed<Target> {
    let (host, length) = match *bytes {
        [] => return Parsed::Incomplete,
        [1, ref rest @ ..] => match rest.first_chunk::<4>() {
            Some(octets) => (Host::Address((*octets).into()), 5),
            None => return Parsed::Incomplete,
        },
        [4, ref rest @ ..] => match rest.first_chunk::<16>() {
            Some(octets) => (Host::Address((*octets).into()), 17),
            None => return Parsed::Incomplete,
        },
        [3] => return Parsed::Incomplete,
        [3, count, ref rest @ ..] => match rest.get(..usize::from(count)) {
            Some(name) => match parse_name(name) {
                Some(host) => (host, 2 + name.len()),
                None => return Parsed::Malformed,
            },
            None => return Parsed::Incomplete,
        },
        // The length is unknown too, so the rest cannot be read; the request is answered at once.
        [_, ..] => {
            return Parsed::Message(
                Target {
                    host: Host::Unknown,
                    port: 0,
                },
                bytes.len(),
            );
        }
    };
    match bytes[length..].first_chunk() {
        Some(port) => {
            let port = u16::from_be_bytes(*port);
            Parsed::Message(Target { host, port }, length + 2)
        }
        None => Parsed::Incomplete,
    }
}

/// Parses a name; an address in text form counts as an address, as many clients send it so.
fn parse_name(bytes: &[u8]) -> Option<Host> {
    let name = std::str::from_utf8(bytes).ok()?;
    if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return None;
    }
    let address = name.trim_start_matches('[').trim_end_matches(']').parse();
    Some(address.map_or_else(|_| Host::Name(name.to_owned()), Host::Address))
}

fn emit_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(address) => {
            out.push(1);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            out.push(4);
            out.extend(address.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

impl Reply {
    fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::GeneralFailure => 1,
            Self::NotAllowed => 2,
            Self::NetworkUnreachable => 3,
            Self::HostUnreachable => 4,
            Self::ConnectionRefused => 5,
            Self::TtlExpired => 6,
            Self::CommandNotSupported => 7,
            Self::AddressNotSupported => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, port: u16) -> Target {
        Target {
            host: Host::Name(host.to_owned()),
            port,
        }
    }

    fn address(text: &str) -> Target {
        let address: SocketAddr = text.parse().unwrap();
        Target {
            host: Host::Address(address.ip()),
            port: address.port(),
        }
    }

    /// Holds that `bytes` are one request and that every shorter piece is incomplete.
    #[track_caller]
    fn check(bytes: &[u8], command: Command, target: Target) {
        for length in 0..bytes.len() {
            assert_eq!(
                parse_request(&bytes[..length]),
                Parsed::Incomplete,
                "{length}"
            );
        }
        let mut bytes = bytes.to_vec();
        let length = bytes.len();
        bytes.extend(b"early data");
        let request = Request { command, target };
        assert_eq!(parse_request(&bytes), Parsed::Message(request, length));
    }

    #[test]
    fn a_greeting_offers_methods() {
        assert_eq!(parse_greeting(&[]), Parsed::Incomplete);
        assert_eq!(parse_greeting(&[5]), Parsed::Incomplete);
        assert_eq!(parse_greeting(&[5, 2, 1]), Parsed::Incomplete);
        assert_eq!(parse_greeting(&[5, 2, 1, 0, 9]), Parsed::Message(true, 4));
        assert_eq!(parse_greeting(&[5, 1, 2]), Parsed::Message(false, 3));
        assert_eq!(parse_greeting(&[5, 0]), Parsed::Message(false, 2));
        assert_eq!(parse_greeting(&[4, 1, 0, 80]), Parsed::Malformed);
        assert_eq!(parse_greeting(b"GET / HTTP/1.1"), Parsed::Malformed);
        assert_eq!(emit_method(true), [5, 0]);
        assert_eq!(emit_method(false), [5, 0xff]);
    }

    #[test]
    fn a_request_carries_a_name_or_an_address() {
        check(
            b"\x05\x01\0\x03\x02db\x15\x38",
            Command::Connect,
            name("db", 5432),
        );
        check(
            b"\x05\x01\0\x01\x0a\0\0\x05\0\x50",
            Command::Connect,
            address("10.0.0.5:80"),
        );
        let v6 = b"\x05\x03\0\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x35";
        check(v6, Command::UdpAssociate, address("[fd00::1]:53"));
        check(
            b"\x05\x02\0\x03\x09[fd00::1]\0\x50",
            Command::Bind,
            address("[fd00::1]:80"),
        );
    }

    #[test]
    fn hostile_requests_are_refused() {
        for bytes in [
            &b"\x05\x01\0\x03\0\0\x50"[..],
            b"\x05\x01\0\x03\x03a b\0\x50",
            b"\x05\x01\0\x03\x03a\0b\0\x50",
            b"\x05\x01\0\x03\x02\xff\xfe\0\x50",
            b"\x04\x01\0\x50",
        ] {
            assert_eq!(parse_request(bytes), Parsed::Malformed, "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_kind_of_address_can_still_be_answered() {
        let target = Target {
            host: Host::Unknown,
            port: 0,
        };
        let request = Request {
            command: Command::Connect,
            target,
        };
        assert_eq!(
            parse_request(b"\x05\x01\0\x07xx"),
            Parsed::Message(request, 6)
        );
    }

    #[test]
    fn the_longest_message_is_never_incomplete() {
        for first in [0, 5] {
            let mut bytes = vec![255; MESSAGE_MAX];
            bytes[..5].copy_from_slice(&[first, 1, 0, 3, 255]);
            bytes[5..].fill(b'a');
            assert_ne!(parse_greeting(&bytes), Parsed::Incomplete);
            assert_ne!(parse_request(&bytes), Parsed::Incomplete);
            assert_ne!(parse_datagram(&bytes), Parsed::Incomplete);
        }
    }

    #[test]
    fn a_reply_names_the_bound_address() {
        let mut out = Vec::new();
        emit_reply(
            Reply::ConnectionRefused,
            "10.0.0.1:80".parse().unwrap(),
            &mut out,
        );
        assert_eq!(out, [5, 5, 0, 1, 10, 0, 0, 1, 0, 80]);
    }

    #[test]
    fn a_datagram_has_a_header_and_fragments_are_refused() {
        let mut out = Vec::new();
        emit_datagram("[fd00::1]:53".parse().unwrap(), &mut out);
        let length = out.len();
        out.extend(b"payload");
        assert_eq!(
            parse_datagram(&out),
            Parsed::Message(address("[fd00::1]:53"), length)
        );
        out[2] = 1;
        assert_eq!(parse_datagram(&out), Parsed::Malformed);
    }

    #[test]
    fn a_datagram_for_a_name_comes_back() {
        let mut out = Vec::new();
        assert!(emit_datagram_to(&name("db", 53), &mut out));
        assert_eq!(
            parse_datagram(&out),
            Parsed::Message(name("db", 53), out.len())
        );
        assert!(!emit_datagram_to(&name(&"a".repeat(256), 53), &mut out));
    }
}
