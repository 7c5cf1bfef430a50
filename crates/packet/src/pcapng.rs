//! Capture files: a writer of pcapng blocks (draft-ietf-opsawg-pcapng).
//!
//! A file is [`section_header`], one [`interface_description`] for each interface, then packets
//! and the rest in any order. Each function appends one whole block to `out`. Blocks are little
//! endian, which the section header says; times count nanoseconds since 1970.

use std::{net::IpAddr, time::Duration};

/// What a packet of an interface begins with (the registry of LINKTYPE values).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkType {
    /// An IPv4 or IPv6 header (LINKTYPE_RAW).
    Raw = 101,
}

/// An interface; the first that is described has number 0.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// What its packets begin with.
    pub link_type: LinkType,
    /// Its name.
    pub name: &'a str,
    /// What it is, for people.
    pub description: &'a str,
    /// Which packets were wanted, in the language of pcap-filter(7); `None` for all.
    pub filter: Option<&'a str>,
}

/// Which way a packet went, as the interface sees it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// It came in.
    Inbound = 1,
    /// It went out.
    Outbound = 2,
}

/// A captured packet.
#[derive(Clone, Copy, Debug)]
pub struct EnhancedPacket<'a> {
    /// Number of its interface.
    pub interface: u32,
    /// When, since 1970.
    pub time: Duration,
    /// Which way it went.
    pub direction: Direction,
    /// Its bytes, all of them: pieces one behind the other, together at most [`PACKET_MAX`].
    pub pieces: &'a [&'a [u8]],
    /// What is said about it; empty for nothing.
    pub comment: &'a str,
}

/// What was counted at an interface since the capture began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Packets that passed the interface.
    pub received: u64,
    /// Those of them that the filter wanted.
    pub accepted: u64,
    /// Those of the wanted that are missing, because nobody read fast enough.
    pub dropped: u64,
}

/// A name of an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NameRecord<'a> {
    /// The address.
    pub address: IpAddr,
    /// Its name, without the dot of the root.
    pub name: &'a str,
}

/// Which program's secrets they are (pcapng, "Decryption Secrets Block").
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecretsType {
    /// Lines of a WireGuard key log.
    WireGuardKeyLog = 0x5747_4b4c,
}

/// The longest packet that a block takes: what the IP header can state.
pub const PACKET_MAX: usize = 65_575;

/// No block of a packet is longer.
pub const PACKET_BLOCK_MAX: usize = 32 + PACKET_MAX.next_multiple_of(4) + 8 + 4 + TEXT_MAX + 4;

/// No block of names is longer.
pub const NAMES_BLOCK_MAX: usize = 65_536;

/// A longer comment, name of an interface or filter is cut.
pub const TEXT_MAX: usize = 4_096;

/// Begins a section, written by `application`.
pub fn section_header(out: &mut Vec<u8>, application: &str) {
    block(out, 0x0a0d_0d0a, |out| {
        put_u32(out, BYTE_ORDER_MAGIC);
        put_u16(out, 1);
        put_u16(out, 0);
        // The length of the section is not known while it is written.
        put_u64(out, u64::MAX);
        put_text(out, SHB_USERAPPL, &[], application);
        put_option(out, OPT_ENDOFOPT, &[]);
    });
}

/// Describes the next interface of the section; its packets are not cut, its times are in
/// nanoseconds.
pub fn interface_description(out: &mut Vec<u8>, interface: &Interface<'_>) {
    block(out, 1, |out| {
        put_u16(out, interface.link_type as u16);
        put_u16(out, 0);
        put_u32(out, SNAP_LENGTH_NONE);
        put_text(out, IF_NAME, &[], interface.name);
        put_text(out, IF_DESCRIPTION, &[], interface.description);
        put_option(out, IF_TSRESOL, &[9]);
        if let Some(filter) = interface.filter {
            put_text(out, IF_FILTER, &[IF_FILTER_STRING], filter);
        }
        put_option(out, OPT_ENDOFOPT, &[]);
    });
}

/// Adds a packet.
///
/// # Panics
/// When it is longer than [`PACKET_MAX`].
pub fn enhanced_packet(out: &mut Vec<u8>, packet: &EnhancedPacket<'_>) {
    let length: usize = packet.pieces.iter().map(|piece| piece.len()).sum();
    assert!(length <= PACKET_MAX, "no IP packet is longer");
    let stated = u32::try_from(length).expect("it was just compared");
    block(out, 6, |out| {
        put_u32(out, packet.interface);
        put_time(out, packet.time);
        put_u32(out, stated);
        put_u32(out, stated);
        for piece in packet.pieces {
            out.extend_from_slice(piece);
        }
        pad(out, length);
        put_option(out, EPB_FLAGS, &(packet.direction as u32).to_le_bytes());
        if !packet.comment.is_empty() {
            put_text(out, OPT_COMMENT, &[], packet.comment);
        }
        put_option(out, OPT_ENDOFOPT, &[]);
    });
}

/// Adds what was counted at an interface up to `time`, since `start`, with a comment unless that is
/// empty.
pub fn interface_statistics(
    out: &mut Vec<u8>,
    interface: u32,
    start: Duration,
    time: Duration,
    statistics: &Statistics,
    comment: &str,
) {
    block(out, 5, |out| {
        put_u32(out, interface);
        put_time(out, time);
        for (code, time) in [(ISB_STARTTIME, start), (ISB_ENDTIME, time)] {
            let mut value = Vec::with_capacity(8);
            put_time(&mut value, time);
            put_option(out, code, &value);
        }
        for (code, count) in [
            (ISB_IFRECV, statistics.received),
            (ISB_FILTERACCEPT, statistics.accepted),
            (ISB_OSDROP, statistics.dropped),
        ] {
            put_option(out, code, &count.to_le_bytes());
        }
        if !comment.is_empty() {
            put_text(out, OPT_COMMENT, &[], comment);
        }
        put_option(out, OPT_ENDOFOPT, &[]);
    });
}

/// Adds secrets that open the packets behind them.
///
/// # Panics
/// When they are longer than a block can say, 4 GiB.
pub fn decryption_secrets(out: &mut Vec<u8>, secrets_type: SecretsType, secrets: &[u8]) {
    block(out, 10, |out| {
        put_u32(out, secrets_type as u32);
        put_u32(
            out,
            u32::try_from(secrets.len()).expect("secrets are short"),
        );
        out.extend_from_slice(secrets);
        pad(out, secrets.len());
    });
}

/// Adds a block of at most `length_max` bytes, and [`NAMES_BLOCK_MAX`], with the first of the names
/// that addresses have in the packets behind it. Returns how many it took; where not even one fits,
/// it writes nothing and returns 0. What is no name of a host is taken and left out: whoever reads
/// the file sees names as they are.
pub fn name_resolution(out: &mut Vec<u8>, records: &[NameRecord<'_>], length_max: usize) -> usize {
    let start = out.len();
    let end_max = start + length_max.min(NAMES_BLOCK_MAX);
    let mut taken = 0;
    let mut written = 0;
    block(out, 4, |out| {
        for record in records {
            if is_host_name(record.name) {
                // The record, that which ends the list, and the length of the block.
                if out.len() + name_record_length(record) + 4 + 4 > end_max {
                    break;
                }
                put_name(out, record);
                written += 1;
            }
            taken += 1;
        }
        put_option(out, NRB_RECORD_END, &[]);
    });
    if written == 0 {
        out.truncate(start);
    }
    taken
}

/// Tells whether a text is the name of a host (RFC 1123, 2.1) and fits a question (RFC 1035,
/// 2.3.4).
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        (1..=LABEL_MAX).contains(&label.len())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= HOST_NAME_MAX && text.split('.').all(is_label)
}

fn name_record_length(record: &NameRecord<'_>) -> usize {
    let address = match record.address {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 16,
    };
    4 + (address + record.name.len() + 1).next_multiple_of(4)
}

/// Writes address and name, which a zero ends; a record has the form of an option.
fn put_name(out: &mut Vec<u8>, record: &NameRecord<'_>) {
    let name = record.name.as_bytes();
    match record.address {
        IpAddr::V4(address) => {
            let value = [&address.octets()[..], name, &[0]].concat();
            put_option(out, NRB_RECORD_IPV4, &value);
        }
        IpAddr::V6(address) => {
            let value = [&address.octets()[..], name, &[0]].concat();
            put_option(out, NRB_RECORD_IPV6, &value);
        }
    }
}

/// Writes type, length, body and once more the length (pcapng, "General Block Structure").
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_u32(out, kind);
    put_u32(out, 0);
    body(out);
    let length = u32::try_from(out.len() - start + 4).expect("a block is short");
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    put_u32(out, length);
}

fn put_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    put_u16(out, code);
    put_u16(out, u16::try_from(value.len()).expect("an option is short"));
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Writes an option with text, cut to [`TEXT_MAX`] bytes, behind a few bytes that say what it is.
fn put_text(out: &mut Vec<u8>, code: u16, before: &[u8], text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_MAX - before.len())];
    put_option(out, code, &[before, text.as_bytes()].concat());
}

/// Writes the upper half first, whatever the byte order (pcapng, "Enhanced Packet Block").
fn put_time(out: &mut Vec<u8>, time: Duration) {
    // Enough until 2554.
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let [a, b, c, d, e, f, g, h] = nanos.to_le_bytes();
    out.extend_from_slice(&[e, f, g, h, a, b, c, d]);
}

/// Fills up to a multiple of four bytes behind `length` of them.
fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&[0; 3][..length.next_multiple_of(4) - length]);
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Tells the reader in which order the bytes of a number stand.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const SNAP_LENGTH_NONE: u32 = 0;

// Codes of options, by the names in the draft.
const OPT_ENDOFOPT: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const IF_FILTER: u16 = 11;
const EPB_FLAGS: u16 = 2;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_OSDROP: u16 = 7;

// Types of name records, by the names in the draft.
const NRB_RECORD_END: u16 = 0;
const NRB_RECORD_IPV4: u16 = 1;
const NRB_RECORD_IPV6: u16 = 2;

/// The longest name as text, without the dot of the root (RFC 1035, 2.3.4).
const HOST_NAME_MAX: usize = 253;

/// The longest label (RFC 1035, 2.3.4).
const LABEL_MAX: usize = 63;

/// The filter is text, not a program (pcapng, "if_filter").
const IF_FILTER_STRING: u8 = 0;

#[cfg(test)]
mod tests;
