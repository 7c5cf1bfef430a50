//! Explicit congestion notification (RFC 3168, 5), and how it passes a tunnel (RFC 6040).
//!
//! The outer header of a tunnel has the field of the inner one, so that routers on the way mark
//! instead of dropping; what they have marked goes back into the packet at the end of the tunnel.

use crate::checksum;

/// The two bits of an IP header in which senders and routers talk about congestion.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Ecn {
    /// Not-ECT: the sender does not understand marks.
    #[default]
    NotEct,
    /// ECT(1): the sender understands marks, and means something more by it (RFC 9331).
    Ect1,
    /// ECT(0): the sender understands marks.
    Ect0,
    /// CE: a router has met congestion.
    Ce,
}

/// The packet was marked though its sender does not understand marks: it counts as lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotEct;

impl Ecn {
    /// Takes the field from a type of service or traffic class octet.
    #[must_use]
    pub fn of_traffic_class(octet: u8) -> Self {
        match octet & FIELD {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// Takes the field from an IP packet; what is none has no marks.
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Self {
        match packet.first_chunk() {
            Some([first, second]) if first >> 4 == 4 => Self::of_traffic_class(*second),
            Some([first, second]) if first >> 4 == 6 => Self::of_traffic_class(second >> 4),
            Some(_) | None => Self::NotEct,
        }
    }

    /// Returns the field as the low bits of an octet.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::NotEct => 0b00,
            Self::Ect1 => 0b01,
            Self::Ect0 => 0b10,
            Self::Ce => 0b11,
        }
    }
}

/// Takes over into an IP packet what its outer header says (RFC 6040, 4.2); bytes that are no
/// packet stay as they are.
///
/// The checksum of an IPv4 header follows the change.
pub fn decapsulate(outer: Ecn, packet: &mut [u8]) -> Result<(), NotEct> {
    let inner = Ecn::of_packet(packet);
    let forwarded = match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => return Err(NotEct),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) => Ecn::Ce,
        (Ecn::Ect0, Ecn::Ect1) => Ecn::Ect1,
        (Ecn::NotEct | Ecn::Ect0 | Ecn::Ect1 | Ecn::Ce, _) => return Ok(()),
    };
    let v4 = packet[0] >> 4 == 4;
    let shift = if v4 { 0 } else { 4 };
    let old = u16::from_be_bytes([packet[0], packet[1]]);
    packet[1] = packet[1] & !(FIELD << shift) | forwarded.bits() << shift;
    let new = u16::from_be_bytes([packet[0], packet[1]]);
    if v4 && let Some([high, low]) = packet.get_mut(10..12) {
        let sum = checksum::update(u16::from_be_bytes([*high, *low]), old, new);
        [*high, *low] = sum.to_be_bytes();
    }
    Ok(())
}

/// Both bits (RFC 3168, 5).
const FIELD: u8 = 0b11;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::ip;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];

    fn packet(v4: bool, inner: Ecn, dscp: u8) -> Vec<u8> {
        let address = |last: u8| -> IpAddr {
            if v4 {
                [10, 0, 0, last].into()
            } else {
                [0xfd, 0, 0, 0, 0, 0, 0, u16::from(last)].into()
            }
        };
        let header = ip::Header {
            source: address(1),
            destination: address(2),
            next_header: ip::UDP,
            hop_limit: 64,
            traffic_class: dscp << 2 | inner.bits(),
            fragment: None,
        };
        let mut out = vec![0; 60];
        let start = ip::emit_header(&header, 20, &mut out);
        out.truncate(start + 20);
        out
    }

    /// The table of RFC 6040, 4.2: what the packet has afterwards.
    #[test]
    fn what_routers_marked_outside_is_marked_inside() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let table = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ect0, [Some(Ect0), Some(Ect1), Some(Ect0), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for v4 in [true, false] {
            for dscp in [0, 0b101_110, 0b111_111] {
                for (inner, row) in table {
                    for (outer, expected) in ALL.into_iter().zip(row) {
                        let mut bytes = packet(v4, inner, dscp);
                        let taken = decapsulate(outer, &mut bytes);
                        assert_eq!(taken.is_ok(), expected.is_some(), "{inner:?} in {outer:?}");
                        let now = expected.unwrap_or(inner);
                        assert_eq!(bytes, packet(v4, now, dscp), "{inner:?} in {outer:?}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(mut bytes: Vec<u8>, outer in 0..4usize) {
            let before = bytes.len();
            let _taken = decapsulate(ALL[outer], &mut bytes);
            prop_assert_eq!(bytes.len(), before);
        }
    }
}
