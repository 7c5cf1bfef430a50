//! UDP datagrams (RFC 768).

use std::net::IpAddr;

use crate::{checksum::Sum, ip};

/// Length of a UDP header.
pub const HEADER: usize = 8;

/// A parsed UDP datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Datagram<'a> {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// The data.
    pub payload: &'a [u8],
}

/// Why bytes are not a UDP datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Shorter than the header or than the length that it states.
    Truncated,
    /// The checksum is wrong, or missing where IPv6 demands it (RFC 8200, 8.1).
    Checksum,
}

/// Parses the payload of an IP packet between the given addresses and verifies its checksum.
pub fn parse(source: IpAddr, destination: IpAddr, bytes: &[u8]) -> Result<Datagram<'_>, Malformed> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if length < HEADER || bytes.len() < length {
        return Err(Malformed::Truncated);
    }
    let bytes = &bytes[..length];
    let absent = header[6..8] == [0, 0];
    let sum = Sum::default().add_pseudo_header(source, destination, ip::UDP, length);
    let holds = if absent {
        source.is_ipv4()
    } else {
        sum.add(bytes).fold() == 0xffff
    };
    if !holds {
        return Err(Malformed::Checksum);
    }
    Ok(Datagram {
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        payload: &bytes[HEADER..],
    })
}

/// Writes the datagram with its checksum to the front of `out` and returns its length.
///
/// # Panics
/// When `out` is too short or the payload exceeds 65,527 bytes.
pub fn emit(source: IpAddr, destination: IpAddr, datagram: &Datagram<'_>, out: &mut [u8]) -> usize {
    let length = HEADER + datagram.payload.len();
    let out = &mut out[..length];
    out[..2].copy_from_slice(&datagram.source_port.to_be_bytes());
    out[2..4].copy_from_slice(&datagram.destination_port.to_be_bytes());
    let stated = u16::try_from(length).expect("fits a UDP datagram");
    out[4..6].copy_from_slice(&stated.to_be_bytes());
    out[6..8].copy_from_slice(&[0, 0]);
    out[HEADER..].copy_from_slice(datagram.payload);
    let sum = Sum::default().add_pseudo_header(source, destination, ip::UDP, length);
    // Zero means "no checksum", so a computed zero is sent as its complement (RFC 768).
    let checksum = match sum.add(out).finish() {
        0 => 0xffff,
        checksum => checksum,
    };
    out[6..8].copy_from_slice(&checksum.to_be_bytes());
    length
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn a_datagram_survives_the_wire_and_a_changed_one_does_not() {
        for address in [V4, V6] {
            for payload in [&b""[..], b"a", b"ab", &[0xff; 1_000]] {
                let datagram = Datagram {
                    source_port: 1,
                    destination_port: 65_535,
                    payload,
                };
                let mut out = [0xee; 1_100];
                let length = emit(address, address, &datagram, &mut out);
                // Bytes behind the stated length are padding.
                assert_eq!(parse(address, address, &out), Ok(datagram));
                let cut = parse(address, address, &out[..length - 1]);
                assert_eq!(cut, Err(Malformed::Truncated));
                out[3] ^= 1;
                assert_eq!(parse(address, address, &out), Err(Malformed::Checksum));
            }
        }
    }

    #[test]
    fn a_missing_checksum_is_taken_in_ipv4_only() {
        let bytes = [0, 1, 0, 2, 0, 9, 0, 0, 7];
        assert!(parse(V4, V4, &bytes).is_ok());
        assert_eq!(parse(V6, V6, &bytes), Err(Malformed::Checksum));
        assert_eq!(
            parse(V4, V4, &[0, 1, 0, 2, 0, 7, 0, 0]),
            Err(Malformed::Truncated)
        );
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_its_complement() {
        let mut out = [0; 16];
        for word in 0..=u16::MAX {
            let payload = word.to_be_bytes();
            let datagram = Datagram {
                source_port: 1,
                destination_port: 2,
                payload: &payload,
            };
            let length = emit(V6, V6, &datagram, &mut out);
            assert_ne!(out[6..8], [0, 0]);
            assert!(parse(V6, V6, &out[..length]).is_ok());
        }
    }
}
