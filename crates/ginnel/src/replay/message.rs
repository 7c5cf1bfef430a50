//! What a datagram says without keys, and what a packet is.

use std::fmt;

use packet::ip;
use wireguard::{COOKIE_REPLY, INITIATION, KEEPALIVE, RESPONSE};

/// A message of WireGuard by its head (whitepaper 5.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    /// 5.4.2
    Initiation { sender: u32 },
    /// 5.4.3
    Response { sender: u32, receiver: u32 },
    /// 5.4.7
    CookieReply { receiver: u32 },
    /// 5.4.6
    Data {
        receiver: u32,
        counter: u64,
        length: usize,
    },
    /// None.
    Other,
}

impl Message {
    /// Looks at a datagram.
    pub(crate) fn of(datagram: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = datagram.get(at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let message = || {
            let first = word(4)?;
            Some(match (word(0)?, datagram.len()) {
                (1, INITIATION) => Self::Initiation { sender: first },
                (2, RESPONSE) => Self::Response {
                    sender: first,
                    receiver: word(8)?,
                },
                (3, COOKIE_REPLY) => Self::CookieReply { receiver: first },
                (4, length) if length >= KEEPALIVE => Self::Data {
                    receiver: first,
                    counter: u64::from(word(12)?) << 32 | u64::from(word(8)?),
                    length,
                },
                (_, _) => return None,
            })
        };
        message().unwrap_or(Self::Other)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initiation { sender } => write!(f, "initiation from {sender:08x}"),
            Self::Response { sender, receiver } => {
                write!(f, "response from {sender:08x} to {receiver:08x}")
            }
            Self::CookieReply { receiver } => write!(f, "cookie reply to {receiver:08x}"),
            Self::Data {
                receiver,
                counter,
                length,
            } => write!(f, "data {counter} to {receiver:08x}, {length} B"),
            Self::Other => f.write_str("no message of WireGuard"),
        }
    }
}

/// Says in short what an IP packet is.
pub(crate) fn describe(bytes: &[u8]) -> String {
    let Ok(packet) = ip::parse(bytes) else {
        return format!("malformed IP packet, {} B", bytes.len());
    };
    let header = &packet.header;
    let ports = || {
        let port = |at: usize| {
            let bytes = packet.payload.get(at..)?.first_chunk()?;
            Some(u16::from_be_bytes(*bytes))
        };
        Some((port(0)?, port(2)?))
    };
    let protocol = match header.next_header {
        ip::TCP => "TCP".to_owned(),
        ip::UDP => "UDP".to_owned(),
        ip::ICMP | ip::ICMPV6 => "ICMP".to_owned(),
        number => format!("protocol {number}"),
    };
    let (source, destination) = (header.source, header.destination);
    let length = bytes.len();
    match ports().filter(|_| matches!(header.next_header, ip::TCP | ip::UDP)) {
        Some((from, to)) if header.fragment.is_none() => {
            format!("{protocol} {source} port {from} to {destination} port {to}, {length} B")
        }
        Some(_) | None => format!("{protocol} {source} to {destination}, {length} B"),
    }
}
