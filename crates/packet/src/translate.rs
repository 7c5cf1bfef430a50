//! Stateless translation of packets between IPv4 and IPv6 (RFC 7915).
//!
//! Addresses of both families stand for each other by a [`Mapping`]. Checksums of TCP and UDP are
//! updated by what has changed, so an error stays one. IPv4 options and IPv6 extension headers
//! other than the fragment header are left out, as the RFC says. Nothing is fragmented here:
//! packets leave as "don't fragment" or as the fragments that they came as.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    checksum::{self, Sum},
    icmp::{self, Cause, Message, Unreachable},
    ip::{self, Fragment, Header},
};

/// Which addresses of the two families stand for each other.
pub trait Mapping {
    /// Returns the IPv6 address of an IPv4 address.
    fn embed(&self, address: Ipv4Addr) -> Option<Ipv6Addr>;

    /// Returns the IPv4 address of an IPv6 address.
    fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr>;
}

/// How many bytes a packet grows by at most: a longer header and a fragment header, in the packet
/// and in the one that an ICMP error quotes.
pub const GROWTH: usize = 2 * (ip::V6_HEADER - ip::V4_HEADER + FRAGMENT_HEADER);

/// The source of errors from routers without an IPv4 address (RFC 7600, 4.8).
pub const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Writes the IPv6 packet that stands for an IPv4 packet to the front of `out` and returns its
/// length. Errors of a router without an address in `mapping` come from `router`.
///
/// `None` when it is none, is malformed, has no counterpart, or `out` is too short.
pub fn to_v6(
    packet: &[u8],
    mapping: &impl Mapping,
    router: Ipv6Addr,
    out: &mut [u8],
) -> Option<usize> {
    let is_v4 = packet.first()? >> 4 == 4;
    let plain = is_v4 && ip::v4_checksum_holds(packet) && !is_source_routed(packet);
    if !plain {
        return None;
    }
    translate(packet, mapping, router.into(), out)
}

/// Writes the IPv4 packet that stands for an IPv6 packet to the front of `out` and returns its
/// length. Errors of a router without an address in `mapping` come from [`DUMMY_V4`].
///
/// `None` when it is none, is malformed, has no counterpart, or `out` is too short.
pub fn to_v4(packet: &[u8], mapping: &impl Mapping, out: &mut [u8]) -> Option<usize> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    translate(packet, mapping, DUMMY_V4.into(), out)
}

fn translate(
    packet: &[u8],
    mapping: &impl Mapping,
    router: IpAddr,
    out: &mut [u8],
) -> Option<usize> {
    let parsed = ip::parse(packet).ok()?;
    let (from, payload) = (parsed.header, parsed.payload);
    let destination = counterpart(mapping, from.destination)?;
    let next_header = next_header(from.source, from.next_header)?;
    let is_icmp = matches!(next_header, ip::ICMP | ip::ICMPV6);
    if is_icmp && from.fragment.is_some() {
        // The pseudo-header of ICMPv6 has the length of the whole message (RFC 7915, 1.2).
        return None;
    }
    let error = is_icmp.then(|| error(from, payload)).flatten();
    let source = counterpart(mapping, from.source).or(error.and(Some(router)))?;
    let to = Header {
        source,
        destination,
        next_header,
        ..from
    };
    if let Some((cause, quote)) = error {
        return translate_error(&to, cause, quote, mapping, out);
    }
    let header = header_length(&to);
    let length = header + payload.len();
    let body = out.get_mut(header..length)?;
    body.copy_from_slice(payload);
    adjust(&from, &to, payload.len(), body, Whole::Yes)?;
    emit_header(&to, payload.len(), out)?;
    Some(length)
}

/// Whether an upper-layer header stands in a packet, or in what an error quotes of one.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Whole {
    Yes,
    No,
}

fn counterpart(mapping: &impl Mapping, address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => mapping.embed(address).map(IpAddr::V6),
        IpAddr::V6(address) => mapping.extract(address).map(IpAddr::V4),
    }
}

/// Returns what the payload is called in the other family; `None` for ICMP of the wrong family and
/// for numbers that are extension headers of IPv6.
fn next_header(source: IpAddr, next_header: u8) -> Option<u8> {
    match (source, next_header) {
        (IpAddr::V4(_), ip::ICMP) => Some(ip::ICMPV6),
        (IpAddr::V6(_), ip::ICMPV6) => Some(ip::ICMP),
        (IpAddr::V4(_), ip::ICMPV6 | 0 | 43 | 44 | 60) | (IpAddr::V6(_), ip::ICMP) => None,
        (_, other) => Some(other),
    }
}

/// Finds the cause and the quote of a well-formed ICMP error.
fn error(header: Header, payload: &[u8]) -> Option<(Cause, &[u8])> {
    match icmp::parse(header.source, header.destination, payload) {
        Ok(Message::Error { cause, quote }) => Some((cause, quote)),
        Ok(Message::EchoRequest(_) | Message::EchoReply(_) | Message::Other { .. }) | Err(_) => {
            None
        }
    }
}

const FRAGMENT_HEADER: usize = 8;

fn header_length(header: &Header) -> usize {
    let fragment = match (header.source, header.fragment) {
        (IpAddr::V6(_), Some(_)) => FRAGMENT_HEADER,
        (IpAddr::V6(_), None) | (IpAddr::V4(_), _) => 0,
    };
    ip::header_length(header.source) + fragment
}

/// What an IPv4 packet with the shortest header carries.
const PAYLOAD_MAX: usize = 65_535 - ip::V4_HEADER;

/// Writes the header, with a fragment header where it needs one.
fn emit_header(header: &Header, payload_length: usize, out: &mut [u8]) -> Option<()> {
    if payload_length + FRAGMENT_HEADER > PAYLOAD_MAX {
        return None;
    }
    let Some(fragment) = header.fragment else {
        ip::emit_header(header, payload_length, out);
        return Some(());
    };
    let Fragment {
        identification,
        offset,
        more,
    } = fragment;
    if header.source.is_ipv4() {
        ip::emit_header(header, payload_length, out);
        // The low half of the identification, as RFC 7915, 5.1.1 has it.
        out[4..6].copy_from_slice(&identification.to_be_bytes()[2..]);
        let flags = (offset / 8) | if more { 0x2000 } else { 0 };
        out[6..8].copy_from_slice(&flags.to_be_bytes());
        out[10..12].fill(0);
        let sum = Sum::default().add(&out[..ip::V4_HEADER]).finish();
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let next_header = header.next_header;
        let outer = Header {
            next_header: FRAGMENT,
            ..*header
        };
        let at = ip::emit_header(&outer, FRAGMENT_HEADER + payload_length, out);
        let flags = offset | u16::from(more);
        out[at..at + 2].copy_from_slice(&[next_header, 0]);
        out[at + 2..at + 4].copy_from_slice(&flags.to_be_bytes());
        out[at + 4..at + 8].copy_from_slice(&identification.to_be_bytes());
    }
    Some(())
}

/// The next header that is a fragment header (RFC 8200, 4.5).
const FRAGMENT: u8 = 44;

/// Where the checksums stand (RFC 9293, 3.1; RFC 768; RFC 792).
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

/// Changes the upper-layer header in `body` from one family to the other; `length` is that of the
/// whole payload. A quote may end before its checksum.
fn adjust(from: &Header, to: &Header, length: usize, body: &mut [u8], whole: Whole) -> Option<()> {
    if from.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Some(());
    }
    match to.next_header {
        ip::ICMP | ip::ICMPV6 => return adjust_echo(from, to, length, body),
        ip::TCP | ip::UDP => {}
        _ => return Some(()),
    }
    let at = if to.next_header == ip::TCP {
        TCP_CHECKSUM
    } else {
        UDP_CHECKSUM
    };
    let Some(&[high, low]) = body.get(at..at + 2) else {
        return (whole == Whole::No).then_some(());
    };
    let old = u16::from_be_bytes([high, low]);
    let is_udp = to.next_header == ip::UDP;
    let new = match (is_udp && old == 0, whole) {
        (false, _) => checksum::update(old, sum(from), sum(to)),
        (true, Whole::No) => return Some(()),
        // IPv6 demands a checksum, for which one fragment does not suffice (RFC 7915, 4.5).
        (true, Whole::Yes) if to.source.is_ipv6() && to.fragment.is_none() => {
            pseudo_header(to, length).add(body).finish()
        }
        (true, Whole::Yes) => return None,
    };
    // Zero means that there is none (RFC 768).
    let new = if is_udp && new == 0 { 0xffff } else { new };
    body[at..at + 2].copy_from_slice(&new.to_be_bytes());
    Some(())
}

/// Changes an echo request or reply; there is no counterpart of other messages (RFC 7915, 4.2).
fn adjust_echo(from: &Header, to: &Header, length: usize, body: &mut [u8]) -> Option<()> {
    let &[kind, code, high, low] = body.first_chunk()?;
    let new_kind = match (from.source, kind, code) {
        (IpAddr::V4(_), 8, 0) => 128,
        (IpAddr::V4(_), 0, 0) => 129,
        (IpAddr::V6(_), 128, 0) => 8,
        (IpAddr::V6(_), 129, 0) => 0,
        _ => return None,
    };
    let (old, new) = if from.source.is_ipv4() {
        (0, pseudo_header(to, length).fold())
    } else {
        (pseudo_header(from, length).fold(), 0)
    };
    let word = |kind| u16::from_be_bytes([kind, code]);
    let sum = u16::from_be_bytes([high, low]);
    let sum = checksum::update(sum, word(kind), word(new_kind));
    let sum = checksum::update(sum, old, new);
    body[0] = new_kind;
    body[ICMP_CHECKSUM..ICMP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Sums what differs in the pseudo-headers of the families: the addresses.
fn sum(header: &Header) -> u16 {
    let sum = match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Sum::default()
            .add(&source.octets())
            .add(&destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Sum::default()
            .add(&source.octets())
            .add(&destination.octets()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Sum::default(),
    };
    sum.fold()
}

fn pseudo_header(header: &Header, length: usize) -> Sum {
    let Header {
        source,
        destination,
        next_header,
        ..
    } = *header;
    Sum::default().add_pseudo_header(source, destination, next_header, length)
}

/// As much as a packet that every link of IPv6 takes can quote (RFC 4443, 2.4 c).
const QUOTE_MAX: usize = 1280 - ip::V6_HEADER - icmp::HEADER;

/// Writes an ICMP error about a packet, which is translated too: to its sender it is what he sent.
fn translate_error(
    to: &Header,
    cause: Cause,
    quote: &[u8],
    mapping: &impl Mapping,
    out: &mut [u8],
) -> Option<usize> {
    let cause = translate_cause(to.source.is_ipv4(), cause)?;
    let parsed = ip::parse_quote(quote).ok()?;
    if parsed.header.source.is_ipv4() == to.source.is_ipv4() {
        return None;
    }
    let from = parsed.header;
    let inner = Header {
        source: counterpart(mapping, from.source)?,
        destination: counterpart(mapping, from.destination)?,
        next_header: next_header(from.source, from.next_header)?,
        ..from
    };
    let mut bytes = [0; QUOTE_MAX];
    let header = header_length(&inner);
    let kept = parsed.payload.len().min(QUOTE_MAX - header);
    let body = &mut bytes[header..header + kept];
    body.copy_from_slice(&parsed.payload[..kept]);
    let whole = stated_payload(quote, parsed.payload.len())?;
    adjust(&from, &inner, whole, body, Whole::No)?;
    emit_header(&inner, whole, &mut bytes)?;
    let quote = &bytes[..header + kept];
    let (header, length) = (ip::header_length(to.source), icmp::HEADER + quote.len());
    let room = out.get_mut(header..header + length)?;
    let message = Message::Error { cause, quote };
    icmp::emit(to.source, to.destination, &message, room);
    ip::emit_header(to, length, out);
    Some(header + length)
}

/// Returns how long the payload of a quoted packet was, of which `present` bytes are there.
fn stated_payload(quote: &[u8], present: usize) -> Option<usize> {
    let headers = quote.len() - present;
    let stated = match quote.first()? >> 4 {
        4 => usize::from(u16::from_be_bytes(*quote.get(2..4)?.first_chunk()?)),
        _ => ip::V6_HEADER + usize::from(u16::from_be_bytes(*quote.get(4..6)?.first_chunk()?)),
    };
    stated.checked_sub(headers)
}

/// The least MTU of a link of IPv6, and by how much its header is longer.
const V6_MTU_MIN: u32 = 1280;
const V6_LONGER: u32 = 20;

/// Returns the cause as the other family has it (RFC 7915, 4.2 and 5.2); nobody acts upon the
/// parameter problems that have a counterpart, so they have none here.
fn translate_cause(to_v4: bool, cause: Cause) -> Option<Cause> {
    let unreachable = |what| Some(Cause::Unreachable(what));
    match (to_v4, cause) {
        (_, Cause::Unreachable(Unreachable::Port)) => unreachable(Unreachable::Port),
        (_, Cause::TimeExceeded { .. }) => Some(cause),
        (true, Cause::Unreachable(Unreachable::Network | Unreachable::Host)) => {
            unreachable(Unreachable::Host)
        }
        (true, Cause::Unreachable(Unreachable::Prohibited)) => unreachable(Unreachable::Other(10)),
        (true, Cause::Unreachable(Unreachable::Other(2))) => unreachable(Unreachable::Host),
        (true, Cause::PacketTooBig { mtu }) => Some(Cause::PacketTooBig {
            mtu: mtu.saturating_sub(V6_LONGER),
        }),
        // The protocol is not known there.
        (true, Cause::ParameterProblem { code: 1, .. }) => unreachable(Unreachable::Other(2)),
        (false, Cause::Unreachable(Unreachable::Other(2))) => Some(Cause::ParameterProblem {
            code: 1,
            pointer: 6,
        }),
        (false, Cause::Unreachable(Unreachable::Network | Unreachable::Host)) => {
            unreachable(Unreachable::Network)
        }
        (false, Cause::Unreachable(Unreachable::Prohibited | Unreachable::Other(9 | 10 | 15))) => {
            unreachable(Unreachable::Prohibited)
        }
        (false, Cause::Unreachable(Unreachable::Other(5..=8 | 11 | 12))) => {
            unreachable(Unreachable::Network)
        }
        (false, Cause::PacketTooBig { mtu }) => Some(Cause::PacketTooBig {
            mtu: mtu.saturating_add(V6_LONGER).max(V6_MTU_MIN),
        }),
        (_, Cause::Unreachable(Unreachable::Other(_)) | Cause::ParameterProblem { .. }) => None,
    }
}

/// Tells whether an IPv4 packet names routers to pass by (RFC 791, 3.1): these are not in IPv6.
fn is_source_routed(packet: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let length = usize::from(packet[0] & 0x0f) * 4;
    let mut options = packet.get(ip::V4_HEADER..length).unwrap_or_default();
    loop {
        options = match *options {
            [] | [END, ..] => return false,
            [NO_OPERATION, ref rest @ ..] => rest,
            [LOOSE | STRICT, ..] => return true,
            [_, length, ..] => options
                .get(usize::from(length.max(2))..)
                .unwrap_or_default(),
            [_] => return false,
        };
    }
}

#[cfg(test)]
mod tests;
