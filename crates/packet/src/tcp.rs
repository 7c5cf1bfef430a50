//! TCP segments: header, options and checksum (RFC 9293, 3.1).

mod mss;

use std::{fmt, net::IpAddr};

use crate::{checksum::Sum, ip};

pub use self::mss::clamp_mss;

/// Length of a TCP header without options.
pub const HEADER: usize = 20;
/// The largest length of all options together.
pub const OPTIONS_MAX: usize = 40;
/// The largest number of SACK blocks that one segment can carry (RFC 2018, 3).
pub const SACK_BLOCKS_MAX: usize = 4;

/// The control bits of a segment (RFC 9293, 3.1; RFC 3168, 6.1 for ECE and CWR).
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Flags(pub u8);

/// A TCP header with the options that are understood here; others are skipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Sequence number of the first octet, or of the SYN.
    pub sequence: u32,
    /// The next sequence number that the sender of this segment expects; valid with ACK.
    pub acknowledgement: u32,
    /// The control bits.
    pub flags: Flags,
    /// The receive window, not yet scaled.
    pub window: u16,
    /// The urgent pointer; valid with URG.
    pub urgent: u16,
    /// The options.
    pub options: Options,
}

/// The options of a segment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// Maximum segment size (RFC 9293, 3.7.1); only with SYN.
    pub maximum_segment_size: Option<u16>,
    /// Window scale shift (RFC 7323, 2); only with SYN; values above 14 count as 14.
    pub window_scale: Option<u8>,
    /// SACK permitted (RFC 2018, 2); only with SYN.
    pub sack_permitted: bool,
    /// Timestamps (RFC 7323, 3).
    pub timestamps: Option<Timestamps>,
    /// SACK blocks (RFC 2018, 3).
    pub sack: SackBlocks,
}

/// The timestamps option (RFC 7323, 3.2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the value that is echoed; valid with ACK.
    pub echo: u32,
}

/// Up to four SACK blocks, each from its left edge up to but not including its right edge.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct SackBlocks {
    blocks: [(u32, u32); SACK_BLOCKS_MAX],
    length: u8,
}

/// A parsed segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment<'a> {
    /// The header.
    pub header: Header,
    /// The data.
    pub payload: &'a [u8],
}

/// Why bytes are not a TCP segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Shorter than the header or than the data offset states.
    Truncated,
    /// The data offset is below five words, or an option is longer than the room for options.
    Length,
    /// The checksum is wrong.
    Checksum,
}

/// Parses the payload of an IP packet between the given addresses and verifies its checksum.
pub fn parse(source: IpAddr, destination: IpAddr, bytes: &[u8]) -> Result<Segment<'_>, Malformed> {
    let segment = parse_unverified(bytes)?;
    let sum = Sum::default()
        .add_pseudo_header(source, destination, ip::TCP, bytes.len())
        .add(bytes);
    if sum.fold() != 0xffff {
        return Err(Malformed::Checksum);
    }
    Ok(segment)
}

/// Parses a segment whose checksum somebody else answers for (an offload of the kernel).
pub fn parse_unverified(bytes: &[u8]) -> Result<Segment<'_>, Malformed> {
    let fixed: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
    let offset = usize::from(fixed[12] >> 4) * 4;
    if offset < HEADER {
        return Err(Malformed::Length);
    }
    let options = bytes.get(HEADER..offset).ok_or(Malformed::Truncated)?;
    Ok(Segment {
        header: Header {
            source_port: u16::from_be_bytes([fixed[0], fixed[1]]),
            destination_port: u16::from_be_bytes([fixed[2], fixed[3]]),
            sequence: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            acknowledgement: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            flags: Flags(fixed[13]),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            urgent: u16::from_be_bytes([fixed[18], fixed[19]]),
            options: Options::parse(options)?,
        },
        payload: &bytes[offset..],
    })
}

/// Writes the segment with its checksum to the front of `out` and returns its length.
///
/// # Panics
/// When `out` is too short or the options do not fit ([`Options::length`]).
pub fn emit(source: IpAddr, destination: IpAddr, segment: &Segment<'_>, out: &mut [u8]) -> usize {
    let offset = emit_header(&segment.header, out);
    let length = offset + segment.payload.len();
    out[offset..length].copy_from_slice(segment.payload);
    fill_checksum(source, destination, &mut out[..length]);
    length
}

/// Writes the header with a checksum of zero to the front of `out` and returns its length.
///
/// The caller writes the data behind it and then calls [`fill_checksum`].
///
/// # Panics
/// As [`emit`].
pub fn emit_header(header: &Header, out: &mut [u8]) -> usize {
    let length = HEADER + header.options.length();
    let words = u8::try_from(length / 4).expect("a header is at most 15 words");
    let out = &mut out[..length];
    out[..2].copy_from_slice(&header.source_port.to_be_bytes());
    out[2..4].copy_from_slice(&header.destination_port.to_be_bytes());
    out[4..8].copy_from_slice(&header.sequence.to_be_bytes());
    out[8..12].copy_from_slice(&header.acknowledgement.to_be_bytes());
    out[12..14].copy_from_slice(&[words << 4, header.flags.0]);
    out[14..16].copy_from_slice(&header.window.to_be_bytes());
    out[16..18].copy_from_slice(&[0, 0]);
    out[18..20].copy_from_slice(&header.urgent.to_be_bytes());
    header.options.emit(&mut out[HEADER..]);
    length
}

/// Computes the checksum of a whole segment and writes it into its header.
///
/// # Panics
/// When `segment` is shorter than a header.
pub fn fill_checksum(source: IpAddr, destination: IpAddr, segment: &mut [u8]) {
    segment[16..18].copy_from_slice(&[0, 0]);
    let checksum = Sum::default()
        .add_pseudo_header(source, destination, ip::TCP, segment.len())
        .add(segment)
        .finish();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
}

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push function.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);
    /// ECN echo.
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced.
    pub const CWR: Self = Self(0x80);

    /// Tells whether all bits of `other` are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the bits of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut list = formatter.debug_set();
        for (bit, name) in names.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                list.entry(&format_args!("{name}"));
            }
        }
        list.finish()
    }
}

impl Segment<'_> {
    /// Returns the sequence space that the segment occupies: its data, SYN and FIN.
    #[must_use]
    pub fn sequence_length(&self) -> u32 {
        let data = u32::try_from(self.payload.len()).expect("a segment is shorter than 2^32");
        data + u32::from(self.header.flags.has(Flags::SYN))
            + u32::from(self.header.flags.has(Flags::FIN))
    }
}

impl SackBlocks {
    /// Appends a block; a fifth is ignored.
    pub fn push(&mut self, left: u32, right: u32) {
        if let Some(block) = self.blocks.get_mut(usize::from(self.length)) {
            *block = (left, right);
            self.length += 1;
        }
    }

    /// Returns the blocks in the order of the option.
    #[must_use]
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.blocks[..usize::from(self.length)]
    }
}

impl fmt::Debug for SackBlocks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.as_slice()).finish()
    }
}

impl Options {
    /// Returns the length of the emitted options, a multiple of four.
    ///
    /// Everything that [`parse`] can yield fits [`OPTIONS_MAX`]; beside timestamps there is room
    /// for three SACK blocks.
    #[must_use]
    pub fn length(&self) -> usize {
        let aligned = self.aligned_length();
        if aligned > OPTIONS_MAX {
            self.compact_length().next_multiple_of(4)
        } else {
            aligned
        }
    }

    fn aligned_length(&self) -> usize {
        let sack = self.sack.as_slice().len();
        4 * usize::from(self.maximum_segment_size.is_some())
            + 4 * usize::from(self.window_scale.is_some())
            + 12 * usize::from(self.timestamps.is_some())
            + 4 * usize::from(self.sack_permitted && self.timestamps.is_none())
            + if sack > 0 { 4 + 8 * sack } else { 0 }
    }

    fn compact_length(&self) -> usize {
        let sack = self.sack.as_slice().len();
        4 * usize::from(self.maximum_segment_size.is_some())
            + 3 * usize::from(self.window_scale.is_some())
            + 10 * usize::from(self.timestamps.is_some())
            + 2 * usize::from(self.sack_permitted)
            + if sack > 0 { 2 + 8 * sack } else { 0 }
    }

    /// Options of one kind may repeat: the last counts. A truncated list is an error.
    fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut options = Self::default();
        // What nearly every segment has (RFC 7323, appendix A).
        if let [1, 1, 8, 10, stamps @ ..] = bytes
            && stamps.len() == 8
        {
            options.apply(8, stamps);
            return Ok(options);
        }
        while let [kind, rest @ ..] = bytes {
            match kind {
                0 => break,
                1 => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let length = usize::from(*rest.first().ok_or(Malformed::Length)?);
            if length < 2 {
                return Err(Malformed::Length);
            }
            let value = bytes.get(2..length).ok_or(Malformed::Length)?;
            bytes = &bytes[length..];
            options.apply(*kind, value);
        }
        Ok(options)
    }

    fn apply(&mut self, kind: u8, value: &[u8]) {
        match (kind, value) {
            (2, &[high, low]) => {
                self.maximum_segment_size = Some(u16::from_be_bytes([high, low]));
            }
            (3, &[shift]) => self.window_scale = Some(shift),
            (4, &[]) => self.sack_permitted = true,
            (5, blocks) if blocks.len().is_multiple_of(8) => {
                self.sack = SackBlocks::default();
                for block in blocks.chunks_exact(8) {
                    self.sack.push(word(&block[..4]), word(&block[4..]));
                }
            }
            (8, value) if value.len() == 8 => {
                self.timestamps = Some(Timestamps {
                    value: word(&value[..4]),
                    echo: word(&value[4..]),
                });
            }
            // Unknown, or of an impossible length: ignored (RFC 9293, 3.1).
            _ => {}
        }
    }

    /// Fills `out`, which is [`Options::length`] long.
    fn emit(&self, out: &mut [u8]) {
        let aligned = self.aligned_length() <= OPTIONS_MAX;
        let mut at = 0;
        let mut put = |padding: usize, bytes: &[u8]| {
            if aligned {
                out[at..at + padding].fill(1);
                at += padding;
            }
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        if let Some(size) = self.maximum_segment_size {
            let [high, low] = size.to_be_bytes();
            put(0, &[2, 4, high, low]);
        }
        if self.sack_permitted {
            let alone = self.timestamps.is_none();
            put(if alone { 2 } else { 0 }, &[4, 2]);
        }
        if let Some(timestamps) = self.timestamps {
            let mut option = [8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
            option[2..6].copy_from_slice(&timestamps.value.to_be_bytes());
            option[6..].copy_from_slice(&timestamps.echo.to_be_bytes());
            put(if self.sack_permitted { 0 } else { 2 }, &option);
        }
        if let Some(shift) = self.window_scale {
            put(1, &[3, 3, shift]);
        }
        let blocks = self.sack.as_slice();
        if !blocks.is_empty() {
            let length = u8::try_from(2 + 8 * blocks.len()).expect("at most four blocks");
            put(2, &[5, length]);
            for (left, right) in blocks {
                put(0, &left.to_be_bytes());
                put(0, &right.to_be_bytes());
            }
        }
        out[at..].fill(0);
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests;
