//! Runs of segments that leave as one: one header, and the data where it lies.

use std::{net::IpAddr, time::Instant};

use packet::{
    checksum::Sum,
    gro::Offload,
    gso::Kind,
    ip,
    tcp::{self, Flags},
};

use super::Stack;
use crate::{Discard, tcp::buffer::Pieces};

/// What [`Stack::poll_transmit_large`] has for the link.
pub enum Transmit<'a> {
    /// A packet of so many bytes, at the front of the buffer.
    Packet(usize),
    /// Several segments of one connection.
    Large(Large<'a>),
}

/// Segments of one connection that follow each other and differ in little else.
///
/// Either as they go on the wire, one after the other by [`Large::next_into`], which copies and
/// sums the data in one pass; or as a super-packet for a device with segmentation offload, by
/// [`Large::emit_head`] and [`Large::pieces`], which copies nothing.
#[derive(Debug)]
pub struct Large<'a> {
    header: ip::Header,
    /// The TCP header as of all segments together.
    head: [u8; HEAD_MAX],
    head_length: usize,
    /// What has not been written yet.
    pieces: Pieces<'a>,
    /// The rest of the piece that is being written.
    piece: &'a [u8],
    length: usize,
    size: usize,
    at: usize,
}

/// A TCP header with all options.
const HEAD_MAX: usize = tcp::HEADER + tcp::OPTIONS_MAX;
/// The longest IP packet.
const LENGTH_MAX: usize = 65_535;

impl<'a> Large<'a> {
    /// Returns who sends it.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.header.source
    }

    /// Returns whom it is for.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.header.destination
    }

    /// Returns how many segments there are in all.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.length.div_ceil(self.size)
    }

    /// Returns the data of each segment but the last, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the data of all segments, in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns the data in the pieces in which it lies.
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.pieces.clone()
    }

    /// Writes the headers of a super-packet to the front of `out` and returns what its device is
    /// told; the pieces follow. The checksum holds the sum of the pseudo-header.
    ///
    /// # Panics
    /// When `out` is shorter than 100 bytes.
    pub fn emit_head(&self, out: &mut [u8]) -> Offload {
        let covered = self.head_length + self.length;
        let at = ip::emit_header(&self.header, covered, out);
        let head = &mut out[at..at + self.head_length];
        head.copy_from_slice(&self.head[..self.head_length]);
        let (source, destination) = (self.header.source, self.header.destination);
        let sum = Sum::default().add_pseudo_header(source, destination, ip::TCP, covered);
        head[16..18].copy_from_slice(&sum.fold().to_be_bytes());
        Offload {
            kind: Kind::Tcp,
            size: self.size,
            header_length: at + self.head_length,
            checksum_start: at,
            checksum_offset: 16,
        }
    }

    /// Writes the packet of the next segment to the front of `out` and returns its length.
    ///
    /// # Panics
    /// When `out` is shorter than the MTU.
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let length = self.size.min(self.length - self.at);
        if length == 0 {
            return None;
        }
        let covered = self.head_length + length;
        let start = ip::emit_header(&self.header, covered, out);
        let segment = &mut out[start..start + covered];
        let (head, data) = segment.split_at_mut(self.head_length);
        head.copy_from_slice(&self.head[..self.head_length]);
        let at = u32::try_from(self.at).expect("below 64 KiB");
        let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        head[4..8].copy_from_slice(&sequence.wrapping_add(at).to_be_bytes());
        // FIN and PSH belong to the last segment, CWR to the first (RFC 3168, 6.1.2).
        if self.at + length < self.length {
            head[13] &= !(Flags::FIN.0 | Flags::PSH.0);
        }
        if self.at > 0 {
            head[13] &= !Flags::CWR.0;
        }
        let (source, destination) = (self.header.source, self.header.destination);
        let sum = Sum::default().add_pseudo_header(source, destination, ip::TCP, covered);
        let sum = self.copy(data, sum.add(head));
        head[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        self.at += length;
        Some(start + covered)
    }

    /// Fills `out` with data, and adds it to `sum` while it is at hand.
    fn copy(&mut self, mut out: &mut [u8], mut sum: Sum) -> Sum {
        let mut odd = false;
        while !out.is_empty() {
            if self.piece.is_empty() {
                self.piece = self.pieces.next().expect("as long as `length`");
            }
            let length = self.piece.len().min(out.len());
            let (now, rest) = self.piece.split_at(length);
            let (to, left) = out.split_at_mut(length);
            to.copy_from_slice(now);
            let part = Sum::default().add(to).fold();
            // What begins at an odd place counts with its bytes swapped (RFC 1071, 2(B)).
            sum = sum.add_word(if odd { part.swap_bytes() } else { part });
            odd ^= length % 2 == 1;
            (self.piece, out) = (rest, left);
        }
        sum
    }
}

impl Stack {
    /// The same as [`Stack::poll_transmit`], but up to `segments_max` segments of one connection
    /// may come as one [`Large`]; the pace of the connection bounds it too.
    ///
    /// What is returned counts as transmitted: there is no way to give a part of it back.
    ///
    /// # Panics
    /// When `out` is shorter than the MTU.
    pub fn poll_transmit_large(
        &mut self,
        now: Instant,
        segments_max: usize,
        out: &mut [u8],
    ) -> Option<Transmit<'_>> {
        if let Some(length) = self.transmit_first(now, out) {
            return Some(Transmit::Packet(length));
        }
        let (id, written) = self.transmit_connection(now, segments_max, out)?;
        let entry = self.tcp.connections.get(id);
        let connection = &entry.expect("it has just transmitted").connection;
        let (local, remote) = (connection.local().ip(), connection.remote().ip());
        let at = ip::header_length(remote);
        let mut header = super::header(local, remote, ip::TCP);
        header.traffic_class = connection.mark().bits();
        let (offset, length, size) = (written.offset, written.length, written.size);
        if length <= size {
            let end = at + written.head + length;
            connection.copy_data(offset, &mut out[at + written.head..end]);
            tcp::fill_checksum(local, remote, &mut out[at..end]);
            ip::emit_header(&header, end - at, out);
            return Some(Transmit::Packet(end));
        }
        let mut head = [0; HEAD_MAX];
        head[..written.head].copy_from_slice(&out[at..at + written.head]);
        Some(Transmit::Large(Large {
            header,
            head,
            head_length: written.head,
            pieces: connection.data(offset, length),
            piece: &[],
            length,
            size,
            at: 0,
        }))
    }

    /// Takes TCP segments in a row that were merged into one packet, as a device with receive
    /// offload has them, or one segment; `out` of whoever merged them is trusted for the checksum.
    ///
    /// The packet may be longer than the MTU. Other packets are taken by [`Stack::handle_packet`].
    pub fn handle_merged(&mut self, now: Instant, packet: &[u8]) -> Result<(), Discard> {
        let parsed = ip::parse(packet).map_err(|_| Discard::IpMalformed)?;
        let header = parsed.header;
        let plain = header.next_header == ip::TCP && header.fragment.is_none();
        if !plain || !self.is_own(header.destination) || !super::is_unicast(header.source) {
            return self.handle_packet(now, packet);
        }
        if !ip::v4_checksum_holds(packet) {
            return Err(Discard::IpChecksum);
        }
        let segment = tcp::parse_unverified(parsed.payload).map_err(|why| match why {
            tcp::Malformed::Truncated | tcp::Malformed::Length => Discard::TcpMalformed,
            tcp::Malformed::Checksum => Discard::TcpChecksum,
        })?;
        self.handle_tcp_segment(now, &header, &segment)
    }

    /// How many segments of `size` bytes and a header make a packet.
    pub(super) fn segments_in_packet(size: usize) -> usize {
        (LENGTH_MAX - ip::V6_HEADER - HEAD_MAX) / size.max(1)
    }
}
