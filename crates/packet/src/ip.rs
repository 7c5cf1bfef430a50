//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, Sum};

/// Next header of ICMP for IPv4.
pub const ICMP: u8 = 1;
/// Next header of TCP.
pub const TCP: u8 = 6;
/// Next header of UDP.
pub const UDP: u8 = 17;
/// Next header of ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// Length of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Length of the fixed IPv6 header.
pub const V6_HEADER: usize = 40;

/// The largest number of IPv6 extension headers that a packet may carry here.
const EXTENSION_HEADERS_MAX: usize = 8;

/// Why bytes are not an IP packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Shorter than its header or than the length that the header states.
    Truncated,
    /// The version is neither 4 nor 6.
    Version,
    /// A length field contradicts another, or the extension headers do not end.
    Length,
}

/// The addresses and the total length of a packet: all that routing needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// Who sent it.
    pub source: IpAddr,
    /// Who shall receive it.
    pub destination: IpAddr,
    /// Length of the packet; bytes behind it are padding.
    pub length: usize,
}

/// The fields of an IP header that the layers above need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// Who sent it.
    pub source: IpAddr,
    /// Who shall receive it.
    pub destination: IpAddr,
    /// What the payload is: the protocol of IPv4, or the last next header of IPv6.
    pub next_header: u8,
    /// Time to live of IPv4, hop limit of IPv6.
    pub hop_limit: u8,
    /// Differentiated services and ECN: the former type of service, or traffic class, octet.
    pub traffic_class: u8,
    /// Where in a fragmented packet the payload belongs; `None` for a whole packet.
    pub fragment: Option<Fragment>,
}

/// Position of a fragment (RFC 791, 3.1; RFC 8200, 4.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// The same in all fragments of one packet.
    pub identification: u32,
    /// Offset of the payload in bytes; a multiple of eight.
    pub offset: u16,
    /// Whether further fragments follow.
    pub more: bool,
}

/// A parsed packet: its header and what follows it, without padding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packet<'a> {
    /// The header.
    pub header: Header,
    /// The bytes behind the header and its options or extension headers.
    pub payload: &'a [u8],
}

/// Parses only addresses and total length; the checksum and options are not looked at.
pub fn addresses(bytes: &[u8]) -> Result<Addresses, Malformed> {
    match version(bytes)? {
        4 => {
            let header: &[u8; V4_HEADER] = prefix(bytes)?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let header_length = usize::from(header[0] & 0x0f) * 4;
            if header_length < V4_HEADER || length < header_length {
                return Err(Malformed::Length);
            }
            if bytes.len() < length {
                return Err(Malformed::Truncated);
            }
            Ok(Addresses {
                source: v4(header, 12),
                destination: v4(header, 16),
                length,
            })
        }
        _ => {
            let header: &[u8; V6_HEADER] = prefix(bytes)?;
            let length = V6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
            if bytes.len() < length {
                return Err(Malformed::Truncated);
            }
            Ok(Addresses {
                source: v6(header, 8),
                destination: v6(header, 24),
                length,
            })
        }
    }
}

/// Parses the whole header chain; bytes behind the stated length are ignored as padding.
///
/// The IPv4 header checksum is verified by [`v4_checksum_holds`], not here: a packet that came
/// through an authenticated tunnel or a kernel offload need not be summed again.
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let addresses = addresses(bytes)?;
    let bytes = &bytes[..addresses.length];
    if addresses.source.is_ipv4() {
        Ok(parse_v4(addresses, bytes))
    } else {
        parse_v6(addresses, bytes)
    }
}

/// Parses the beginning of a packet that an ICMP error quotes: its end may be missing.
pub fn parse_quote(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let addresses = match version(bytes)? {
        4 => {
            let header: &[u8; V4_HEADER] = prefix(bytes)?;
            let header_length = usize::from(header[0] & 0x0f) * 4;
            if header_length < V4_HEADER || bytes.len() < header_length {
                return Err(Malformed::Length);
            }
            Addresses {
                source: v4(header, 12),
                destination: v4(header, 16),
                length: bytes.len(),
            }
        }
        _ => {
            let header: &[u8; V6_HEADER] = prefix(bytes)?;
            Addresses {
                source: v6(header, 8),
                destination: v6(header, 24),
                length: bytes.len(),
            }
        }
    };
    if addresses.source.is_ipv4() {
        Ok(parse_v4(addresses, bytes))
    } else {
        parse_v6(addresses, bytes)
    }
}

/// Tells whether the checksum of an IPv4 header holds; true for IPv6, which has none.
#[must_use]
pub fn v4_checksum_holds(bytes: &[u8]) -> bool {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            let length = usize::from(bytes[0] & 0x0f) * 4;
            bytes
                .get(..length)
                .is_some_and(|header| Sum::default().add(header).fold() == 0xffff)
        }
        Some(_) => true,
        None => false,
    }
}

/// Gives an IPv4 packet another source. The checksum of its header follows (RFC 1624, 3); those of
/// TCP and UDP, which cover the source, do not.
pub fn set_v4_source(packet: &mut [u8], source: Ipv4Addr) {
    let Some(header) = packet.first_chunk_mut::<V4_HEADER>() else {
        return;
    };
    let [a, b, c, d] = source.octets();
    let mut sum = u16::from_be_bytes([header[10], header[11]]);
    for (at, new) in [(12, [a, b]), (14, [c, d])] {
        let old = u16::from_be_bytes([header[at], header[at + 1]]);
        sum = checksum::update(sum, old, u16::from_be_bytes(new));
        header[at..at + 2].copy_from_slice(&new);
    }
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn parse_v4(addresses: Addresses, bytes: &[u8]) -> Packet<'_> {
    let header_length = usize::from(bytes[0] & 0x0f) * 4;
    let flags = u16::from_be_bytes([bytes[6], bytes[7]]);
    let offset = (flags & 0x1fff) * 8;
    let more = flags & 0x2000 != 0;
    let identification = u32::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    Packet {
        header: Header {
            source: addresses.source,
            destination: addresses.destination,
            next_header: bytes[9],
            hop_limit: bytes[8],
            traffic_class: bytes[1],
            fragment: (more || offset != 0).then_some(Fragment {
                identification,
                offset,
                more,
            }),
        },
        payload: &bytes[header_length..],
    }
}

fn parse_v6(addresses: Addresses, bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let mut header = Header {
        source: addresses.source,
        destination: addresses.destination,
        next_header: bytes[6],
        hop_limit: bytes[7],
        traffic_class: (bytes[0] << 4) | (bytes[1] >> 4),
        fragment: None,
    };
    let mut payload = &bytes[V6_HEADER..];
    for _ in 0..EXTENSION_HEADERS_MAX {
        match header.next_header {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                let &[next, length, ..] = payload else {
                    return Err(Malformed::Truncated);
                };
                header.next_header = next;
                payload = payload
                    .get((usize::from(length) + 1) * 8..)
                    .ok_or(Malformed::Truncated)?;
            }
            44 => {
                let fragment: &[u8; 8] = prefix(payload)?;
                let flags = u16::from_be_bytes([fragment[2], fragment[3]]);
                header.next_header = fragment[0];
                payload = &payload[8..];
                let position = Fragment {
                    identification: u32::from_be_bytes([
                        fragment[4],
                        fragment[5],
                        fragment[6],
                        fragment[7],
                    ]),
                    offset: flags & 0xfff8,
                    more: flags & 1 != 0,
                };
                // An atomic fragment is a whole packet (RFC 6946).
                if position.offset == 0 && !position.more {
                    continue;
                }
                header.fragment = Some(position);
                return Ok(Packet { header, payload });
            }
            _ => return Ok(Packet { header, payload }),
        }
    }
    Err(Malformed::Length)
}

/// Returns the length of the header that [`emit_header`] writes for `destination`'s family.
#[must_use]
pub fn header_length(destination: IpAddr) -> usize {
    match destination {
        IpAddr::V4(_) => V4_HEADER,
        IpAddr::V6(_) => V6_HEADER,
    }
}

/// Writes a header for `payload_length` bytes to the front of `out` and returns its length.
///
/// Options, extension headers and fragmentation are not emitted: `header.fragment` is ignored and
/// IPv4 packets carry "don't fragment" with identification zero (RFC 6864).
///
/// # Panics
/// When the addresses differ in family, `out` is too short, or the payload exceeds 65,515 bytes.
pub fn emit_header(header: &Header, payload_length: usize, out: &mut [u8]) -> usize {
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(V4_HEADER + payload_length).expect("fits an IPv4 packet");
            let out = &mut out[..V4_HEADER];
            out[..2].copy_from_slice(&[0x45, header.traffic_class]);
            out[2..4].copy_from_slice(&length.to_be_bytes());
            out[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            out[8..12].copy_from_slice(&[header.hop_limit, header.next_header, 0, 0]);
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&destination.octets());
            let checksum = Sum::default().add(out).finish();
            out[10..12].copy_from_slice(&checksum.to_be_bytes());
            V4_HEADER
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(payload_length).expect("fits an IPv6 packet");
            let out = &mut out[..V6_HEADER];
            out[0] = 0x60 | (header.traffic_class >> 4);
            out[1..4].copy_from_slice(&[header.traffic_class << 4, 0, 0]);
            out[4..6].copy_from_slice(&length.to_be_bytes());
            out[6..8].copy_from_slice(&[header.next_header, header.hop_limit]);
            out[8..24].copy_from_slice(&source.octets());
            out[24..40].copy_from_slice(&destination.octets());
            V6_HEADER
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("both addresses of a packet are of one family")
        }
    }
}

fn version(bytes: &[u8]) -> Result<u8, Malformed> {
    match bytes.first().ok_or(Malformed::Truncated)? >> 4 {
        version @ (4 | 6) => Ok(version),
        _ => Err(Malformed::Version),
    }
}

fn prefix<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], Malformed> {
    bytes.first_chunk().ok_or(Malformed::Truncated)
}

fn v4(header: &[u8; V4_HEADER], at: usize) -> IpAddr {
    let octets: [u8; 4] = header[at..at + 4].try_into().expect("four bytes");
    IpAddr::V4(Ipv4Addr::from(octets))
}

fn v6(header: &[u8; V6_HEADER], at: usize) -> IpAddr {
    let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen bytes");
    IpAddr::V6(Ipv6Addr::from(octets))
}

#[cfg(test)]
mod tests;
