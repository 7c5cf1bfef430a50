//! Splitting of TCP and UDP super-packets into packets that fit the path (GSO).
//!
//! A kernel hands them over through a TUN device with `IFF_VNET_HDR`: one header, a payload of up
//! to 64 KiB, and the size of a segment.

use crate::{checksum::Sum, ip, tcp, udp};

/// What a super-packet carries, and so what its parts look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// TCP segments of one run (`VIRTIO_NET_HDR_GSO_TCPV4` and `_TCPV6`).
    Tcp,
    /// UDP datagrams of one size (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// Why a packet cannot be split.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Not an IP packet, or one in fragments or with extension headers.
    Ip,
    /// Not a segment or datagram of the stated kind.
    Transport,
    /// The segment size is zero.
    SegmentSize,
    /// The checksum field lies outside the packet.
    Checksum,
}

/// The parts of a super-packet that have not been written yet.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    kind: Kind,
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    size: usize,
    /// How much of the payload has been written.
    at: usize,
    index: u16,
}

/// Begins to split `packet` into parts with at most `size` bytes of payload.
///
/// Checksums of the super-packet are not looked at: every part gets its own. A packet whose
/// payload fits `size` yields one part.
pub fn split(packet: &[u8], kind: Kind, size: usize) -> Result<Segments<'_>, Malformed> {
    let addresses = ip::addresses(packet).map_err(|_| Malformed::Ip)?;
    let packet = &packet[..addresses.length];
    let parsed = ip::parse(packet).map_err(|_| Malformed::Ip)?;
    let transport = packet.len() - parsed.payload.len();
    let plain = match addresses.source {
        std::net::IpAddr::V4(_) => transport >= ip::V4_HEADER,
        std::net::IpAddr::V6(_) => transport == ip::V6_HEADER,
    };
    if parsed.header.fragment.is_some() || !plain {
        return Err(Malformed::Ip);
    }
    let header_length = match (kind, parsed.header.next_header) {
        (Kind::Tcp, ip::TCP) => {
            let offset = parsed.payload.get(12).ok_or(Malformed::Transport)? >> 4;
            let length = usize::from(offset) * 4;
            if length < tcp::HEADER {
                return Err(Malformed::Transport);
            }
            length
        }
        (Kind::Udp, ip::UDP) => udp::HEADER,
        (Kind::Tcp | Kind::Udp, _) => return Err(Malformed::Transport),
    };
    if parsed.payload.len() < header_length {
        return Err(Malformed::Transport);
    }
    if size == 0 {
        return Err(Malformed::SegmentSize);
    }
    let payload = transport + header_length;
    Ok(Segments {
        packet,
        kind,
        transport,
        payload,
        size,
        at: 0,
        index: 0,
    })
}

impl Segments<'_> {
    /// Returns the length of the longest part.
    #[must_use]
    pub fn length_max(&self) -> usize {
        self.packet.len().min(self.payload + self.size)
    }

    /// Writes the next part to the front of `out` and returns its length.
    ///
    /// # Panics
    /// When `out` is shorter than [`Segments::length_max`].
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let data = &self.packet[self.payload..];
        if self.at >= data.len() && self.index > 0 {
            return None;
        }
        let end = data.len().min(self.at + self.size);
        let length = self.payload + (end - self.at);
        let out = &mut out[..length];
        out[..self.payload].copy_from_slice(&self.packet[..self.payload]);
        out[self.payload..].copy_from_slice(&data[self.at..end]);
        self.patch_ip(out);
        let is_last = end == data.len();
        let transport = &mut out[self.transport..];
        let addresses = ip::addresses(self.packet).expect("parsed by `split`");
        match self.kind {
            Kind::Tcp => {
                let at = u32::try_from(self.at).expect("an IP packet is shorter than 2^32");
                patch_tcp(transport, at, self.index == 0, is_last);
                tcp::fill_checksum(addresses.source, addresses.destination, transport);
            }
            Kind::Udp => {
                let length = u16::try_from(transport.len()).expect("part of an IP packet");
                transport[4..6].copy_from_slice(&length.to_be_bytes());
                transport[6..8].copy_from_slice(&[0, 0]);
                let sum = Sum::default().add_pseudo_header(
                    addresses.source,
                    addresses.destination,
                    ip::UDP,
                    transport.len(),
                );
                // Zero means "no checksum" (RFC 768).
                let checksum = match sum.add(transport).finish() {
                    0 => 0xffff,
                    checksum => checksum,
                };
                transport[6..8].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        self.at = end;
        self.index = self.index.wrapping_add(1);
        Some(length)
    }

    fn patch_ip(&self, out: &mut [u8]) {
        let length = out.len();
        if out[0] >> 4 == 4 {
            let length = u16::try_from(length).expect("part of an IP packet");
            out[2..4].copy_from_slice(&length.to_be_bytes());
            // Identifications count up, as Linux has them (RFC 6864 needs it with DF unset).
            let identification = u16::from_be_bytes([out[4], out[5]]).wrapping_add(self.index);
            out[4..6].copy_from_slice(&identification.to_be_bytes());
            out[10..12].copy_from_slice(&[0, 0]);
            let checksum = Sum::default().add(&out[..self.transport]).finish();
            out[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let length = u16::try_from(length - ip::V6_HEADER).expect("part of an IP packet");
            out[4..6].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// FIN and PSH belong to the last part, CWR to the first (RFC 3168, 6.1.2).
fn patch_tcp(segment: &mut [u8], at: u32, is_first: bool, is_last: bool) {
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    segment[4..8].copy_from_slice(&sequence.wrapping_add(at).to_be_bytes());
    if !is_last {
        segment[13] &= !(tcp::Flags::FIN.0 | tcp::Flags::PSH.0);
    }
    if !is_first {
        segment[13] &= !tcp::Flags::CWR.0;
    }
}

/// Completes a checksum that the kernel has left to the device (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
///
/// The sum covers everything from `start`; the field is `offset` behind it and holds the sum of
/// the pseudo-header.
pub fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let covered = packet.get_mut(start..).ok_or(Malformed::Checksum)?;
    if offset.checked_add(2).is_none_or(|end| end > covered.len()) {
        return Err(Malformed::Checksum);
    }
    // Zero stands for "no checksum" in UDP, and its complement is as good in all protocols.
    let checksum = match Sum::default().add(covered).finish() {
        0 => 0xffff,
        checksum => checksum,
    };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
