//! What passes the node, written as a capture file into a bounded queue.
//!
//! ```text
//!   inner: packets in the clear, as they come out of the tunnel or go into it
//!   outer: the datagrams that carry them, behind an IP and a UDP header made for the file
//! ```
//! A packet waits for its verdict before it is written, so that its comment says why it was
//! discarded. What happens between packets is told in the comment of the next one, and after the
//! last one in that of the end.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use packet::{
    checksum::Sum,
    ip,
    pcap_filter::Filter,
    pcapng::{self, Direction, EnhancedPacket, Interface, LinkType, SecretsType, Statistics},
    udp,
};
use wireguard::{HEADER, INITIATION, KeyLog, RESPONSE};
use zeroize::Zeroizing;

use self::name::Names;
use crate::discard::{Counters, Discard};

mod name;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program that writes, for the section header.
    pub application: String,
    /// Whether packets inside the tunnel are wanted.
    pub inner: bool,
    /// Whether datagrams are wanted.
    pub outer: bool,
    /// Which of both; `None` for all. Of datagrams, it is compared with the headers in the file.
    pub filter: Option<Filter>,
    /// Whether keys are written that open the datagrams: of the handshakes that the filter wants.
    /// They hold the node's private key.
    pub keys: bool,
    /// Our UDP port.
    pub port: u16,
    /// The capture is complete after so many packets.
    pub packets_max: Option<u64>,
    /// The file has at most so many bytes; too few for its headers hold no packets.
    pub bytes_max: Option<u64>,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    filter: Option<Filter>,
    keys: Option<Sessions>,
    port: u16,
    /// By `Layer`; those that are wanted.
    taps: [Option<Tap>; 2],
    began: (Instant, Duration),
    /// At most [`QUEUE_MAX`] and a block of each kind; what does not fit is counted as dropped.
    /// Made in its full size, so that no key stays behind in a smaller one.
    queue: Buffer,
    /// Bytes in blocks, those taken included.
    written: u64,
    /// Packets in blocks.
    packets: u64,
    packets_max: u64,
    bytes_max: u64,
    complete: bool,
    /// Of addresses inside the tunnel; `None` where nobody sees such.
    names: Option<Names>,
    /// At most [`NOTES_MAX`]; further ones are not told.
    notes: Vec<String>,
    /// What was discarded since the last packet, after its own had been written.
    late: Option<Counters>,
}

/// Blocks of a capture file.
pub type Buffer = Zeroizing<Vec<u8>>;

/// On which side of the tunnel a packet is seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layer {
    Inner,
    Outer,
}

/// One interface of the file.
#[derive(Debug)]
struct Tap {
    number: u32,
    statistics: Statistics,
    /// Which way the packet goes that waits for its verdict; `None` when none does.
    held_direction: Option<Direction>,
    held: Vec<u8>,
}

/// Sessions whose keys are in the file.
///
/// Data of older ones is left out: nobody could open it.
#[derive(Debug, Default)]
struct Sessions {
    /// Sender indices of initiations and who sent them, at most [`INITIATIONS_MAX`], the oldest
    /// first.
    initiations: VecDeque<(Direction, u32)>,
    /// Receiver indices and which way the data goes, at most [`SESSIONS_MAX`].
    open: BTreeSet<(Direction, u32)>,
    /// The same, the oldest first.
    order: VecDeque<(Direction, u32)>,
}

/// Bytes that wait to be taken: some milliseconds of the fastest traffic.
pub const QUEUE_MAX: usize = 16 << 20;

/// The most that a buffer ever holds: behind packets there is room for keys and the end.
const BUFFER: usize = QUEUE_MAX + 64 * 1_024;

const NOTES_MAX: usize = 16;
const INITIATIONS_MAX: usize = 4_096;
const SESSIONS_MAX: usize = 65_536;

/// What the end of a file takes: statistics of two interfaces.
const END_MAX: usize = 2 * 112;

/// What a comment takes beside its text: code, length and padding.
const COMMENT_OPTION: usize = 8;

/// The most that a block of a packet or of keys adds to what it holds: headers, options, padding.
const BLOCK: usize = 64;

/// The longest datagram that an IPv4 header can announce.
const DATAGRAM_MAX: usize = 65_507;

impl Capture {
    /// Begins a file; `wall` is the time of day at `now`.
    #[must_use]
    pub fn new(now: Instant, wall: SystemTime, settings: Settings) -> Self {
        let mut queue = buffer();
        pcapng::section_header(&mut queue, &settings.application);
        let mut described = 0;
        let mut tap = |wanted: bool, name, description| {
            if !wanted {
                return None;
            }
            let interface = Interface {
                link_type: LinkType::Raw,
                name,
                description,
                filter: settings.filter.as_ref().map(Filter::text),
            };
            pcapng::interface_description(&mut queue, &interface);
            described += 1;
            Some(Tap {
                number: described - 1,
                statistics: Statistics::default(),
                held_direction: None,
                held: Vec::new(),
            })
        };
        let inner = tap(settings.inner, "inner", "packets inside the tunnel");
        let outer = tap(settings.outer, "outer", "WireGuard datagrams");
        let epoch = wall.duration_since(SystemTime::UNIX_EPOCH);
        let shows_inside = settings.inner || settings.keys;
        let bytes_max = settings.bytes_max.unwrap_or(u64::MAX);
        Self {
            filter: settings.filter,
            keys: settings.keys.then(Sessions::default),
            port: settings.port,
            taps: [inner, outer],
            began: (now, epoch.unwrap_or_default()),
            written: u64::try_from(queue.len()).expect("a length fits 64 bits"),
            queue,
            packets: 0,
            packets_max: settings.packets_max.unwrap_or(u64::MAX),
            bytes_max,
            complete: false,
            names: shows_inside.then(|| Names::new(bytes_max)),
            notes: Vec::new(),
            late: None,
        }
    }

    /// Tells whether there is something to take.
    #[must_use]
    pub fn has_blocks(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Tells whether keys are written.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Tells whether the file has all that was wanted: no packet is written any more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Exchanges what was written for an empty buffer: one of [`buffer`], or one whose contents
    /// are not needed any more.
    pub fn take(&mut self, emptied: &mut Buffer) {
        emptied.clear();
        std::mem::swap(&mut self.queue, emptied);
    }

    /// Writes how much was captured, what is missing, and what was discarded since the last packet,
    /// as the last blocks.
    pub fn finish(&mut self, now: Instant) {
        let (start, time) = (self.began.1, self.time(now));
        let mut comment = self.comment(None);
        comment.truncate(comment.floor_char_boundary(self.end_room()));
        for tap in self.taps.iter().flatten() {
            let (number, told) = (tap.number, &tap.statistics);
            let comment = std::mem::take(&mut comment);
            pcapng::interface_statistics(&mut self.queue, number, start, time, told, &comment);
        }
        self.complete = true;
    }

    /// Tells whether the keys of a handshake with `remote` are wanted: keys are, and the filter
    /// takes both of its messages, without which nobody can make use of them. So the keys of
    /// others never leave.
    #[must_use]
    pub fn wants_keys(&self, remote: SocketAddr, initiator: bool) -> bool {
        let initiation = match initiator {
            true => Direction::Outbound,
            false => Direction::Inbound,
        };
        let messages = [
            (initiation, &[0; INITIATION][..]),
            (reversed(initiation), &[0; RESPONSE][..]),
        ];
        let wants = |(direction, message): (Direction, &[u8])| {
            let mut header = [0; ip::V6_HEADER + udp::HEADER];
            let length = emit_headers(direction, remote, self.port, message, &mut header);
            let filter = self.filter.as_ref();
            filter.is_none_or(|filter| filter.matches(&header[..length], length + message.len()))
        };
        self.keys.is_some() && messages.into_iter().all(wants)
    }

    /// Tells whether names of addresses inside the tunnel are written.
    #[must_use]
    pub fn wants_names(&self) -> bool {
        self.names.is_some()
    }

    /// Says which names addresses inside the tunnel have, or have now: those that are new stand
    /// before the next packet, as far as there is room for names.
    pub fn name(&mut self, names: impl IntoIterator<Item = (IpAddr, String)>) {
        if let Some(known) = &mut self.names {
            names
                .into_iter()
                .for_each(|(address, name)| known.insert(address, name));
            self.write_names();
        }
    }

    fn write_names(&mut self) {
        let Some(names) = self.names.as_mut().filter(|_| !self.complete) else {
            return;
        };
        if names.wait() {
            let file = self.bytes_max.saturating_sub(self.written);
            let file = usize::try_from(file).unwrap_or(usize::MAX);
            let before = self.queue.len();
            names.write(&mut self.queue, file.saturating_sub(END_MAX));
            self.note_written(before);
        }
    }

    /// Writes keys, before the datagrams that they open, if they are wanted.
    pub fn write_keys(&mut self, log: &KeyLog, remote: SocketAddr, initiator: bool) {
        if self.wants_keys(remote, initiator) {
            self.write_secrets(log);
        }
    }

    /// Writes the node's private key if keys are wanted. A node that answers initiations later
    /// than it takes them does so first: a reader opens an initiation when it comes, or never.
    pub fn write_identity(&mut self, log: &KeyLog) {
        if self.keys.is_some() {
            self.write_secrets(log);
        }
    }

    fn write_secrets(&mut self, log: &KeyLog) {
        let secrets = log.expose().as_bytes();
        if !self.has_room(secrets.len() + BLOCK) {
            return;
        }
        if self.queue.len() + secrets.len() + BLOCK <= BUFFER - END_MAX {
            let before = self.queue.len();
            let secrets_type = SecretsType::WireGuardKeyLog;
            pcapng::decryption_secrets(&mut self.queue, secrets_type, secrets);
            self.note_written(before);
        }
    }

    /// Tells something in the comment of the next packet.
    pub fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        }
    }

    /// Tells in the comment of the next packet that packets were discarded which had been written
    /// as taken, or which nobody saw.
    pub fn discarded(&mut self, discard: Discard, count: u64) {
        let late = self.late.get_or_insert_default();
        late.add(discard, count);
    }

    /// Writes a packet inside the tunnel.
    pub fn inner(
        &mut self,
        now: Instant,
        direction: Direction,
        packet: &[u8],
        discard: Option<Discard>,
    ) {
        if self.hold_inner(direction, packet) {
            self.release_inner(now, discard);
        }
    }

    /// Keeps a copy of a packet until its verdict is known; false when it is not wanted.
    pub fn hold_inner(&mut self, direction: Direction, packet: &[u8]) -> bool {
        let packet = &packet[..packet.len().min(pcapng::PACKET_MAX)];
        if !self.passes(Layer::Inner) {
            return false;
        }
        let filter = self.filter.as_ref();
        let wanted = filter.is_none_or(|filter| filter.matches(packet, packet.len()));
        if wanted {
            self.hold(Layer::Inner, direction, &[packet]);
        }
        wanted
    }

    /// Writes the packet that was kept, if one was.
    pub fn release_inner(&mut self, now: Instant, discard: Option<Discard>) {
        self.release(now, Layer::Inner, discard);
    }

    /// Writes a datagram.
    pub fn outer(
        &mut self,
        now: Instant,
        direction: Direction,
        remote: SocketAddr,
        datagram: &[u8],
    ) {
        if self.hold_outer(direction, remote, datagram) {
            self.release_outer(now, None);
        }
    }

    /// Keeps a copy of a datagram until its verdict is known; false when it is not wanted.
    pub fn hold_outer(
        &mut self,
        direction: Direction,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> bool {
        let datagram = &datagram[..datagram.len().min(DATAGRAM_MAX)];
        if !self.passes(Layer::Outer) {
            return false;
        }
        let mut header = [0; ip::V6_HEADER + udp::HEADER];
        let length = emit_headers(direction, remote, self.port, datagram, &mut header);
        let (filter, keys) = (self.filter.as_ref(), self.keys.as_ref());
        let total = length + datagram.len();
        let wanted = filter.is_none_or(|filter| filter.matches(&header[..length], total))
            && keys.is_none_or(|keys| keys.open(direction, datagram));
        if wanted {
            // Only now: a sum of all bytes costs as much as a copy.
            emit_checksum(&mut header[..length], datagram);
            self.hold(Layer::Outer, direction, &[&header[..length], datagram]);
        }
        wanted
    }

    /// Writes the datagram that was kept, if one was.
    pub fn release_outer(&mut self, now: Instant, discard: Option<Discard>) {
        self.release(now, Layer::Outer, discard);
    }

    /// Counts a packet at an interface; false when nothing of it is wanted.
    fn passes(&mut self, layer: Layer) -> bool {
        let complete = self.complete;
        let Some(tap) = self.taps[layer as usize].as_mut().filter(|_| !complete) else {
            return false;
        };
        tap.statistics.received += 1;
        true
    }

    fn hold(&mut self, layer: Layer, direction: Direction, pieces: &[&[u8]]) {
        if let Some(tap) = &mut self.taps[layer as usize] {
            tap.statistics.accepted += 1;
            tap.held_direction = Some(direction);
            tap.held.clear();
            for piece in pieces {
                tap.held.extend_from_slice(piece);
            }
        }
    }

    fn release(&mut self, now: Instant, layer: Layer, discard: Option<Discard>) {
        let time = self.time(now);
        let Some(tap) = &mut self.taps[layer as usize] else {
            return;
        };
        let Some(direction) = tap.held_direction.take() else {
            return;
        };
        let (interface, packet) = (tap.number, std::mem::take(&mut tap.held));
        let comment = self.comment(discard);
        let written = self.write(&EnhancedPacket {
            interface,
            time,
            direction,
            pieces: &[&packet],
            comment: &comment,
        });
        if let (Layer::Outer, Some(keys), true, None) = (layer, &mut self.keys, written, discard) {
            keys.learn(direction, &packet);
        }
        if let Some(tap) = &mut self.taps[layer as usize] {
            tap.statistics.dropped += u64::from(!written);
            // Its room is for the next one.
            tap.held = packet;
        }
    }

    /// Writes a packet if there is room, or ends what has reached its bound.
    fn write(&mut self, packet: &EnhancedPacket<'_>) -> bool {
        self.write_names();
        let length: usize = packet.pieces.iter().map(|piece| piece.len()).sum();
        let needed = length + packet.comment.len() + BLOCK;
        if !self.has_room(needed) || self.queue.len() + needed > QUEUE_MAX {
            return false;
        }
        let before = self.queue.len();
        pcapng::enhanced_packet(&mut self.queue, packet);
        self.note_written(before);
        self.packets += 1;
        self.complete = self.packets >= self.packets_max;
        true
    }

    /// Tells whether a block of so many bytes stays within the bound of the file; otherwise the
    /// file is complete.
    fn has_room(&mut self, needed: usize) -> bool {
        let within = u64::try_from(needed + END_MAX)
            .is_ok_and(|needed| self.written.saturating_add(needed) <= self.bytes_max);
        self.complete |= !within;
        !self.complete
    }

    /// Returns how long the comment of the end may be: it makes neither the file longer than its
    /// bound nor the queue larger than it was made.
    fn end_room(&self) -> usize {
        let file = self.bytes_max.saturating_sub(self.written);
        let file = usize::try_from(file).unwrap_or(usize::MAX);
        let queue = BUFFER.saturating_sub(self.queue.len());
        file.min(queue).saturating_sub(END_MAX + COMMENT_OPTION)
    }

    fn note_written(&mut self, before: usize) {
        let written = self.queue.len() - before;
        self.written += u64::try_from(written).expect("a length fits 64 bits");
    }

    fn comment(&mut self, discard: Option<Discard>) -> String {
        let discard = discard.map(|discard| format!("discarded: {}", discard.name()));
        let mut notes = std::mem::take(&mut self.notes);
        if let Some(late) = self.late.take() {
            let late = late.occurred().into_iter();
            notes.extend(late.map(|(name, count)| format!("{count} discarded since: {name}")));
        }
        notes.extend(discard);
        notes.join("; ")
    }

    fn time(&self, now: Instant) -> Duration {
        let (instant, epoch) = self.began;
        epoch + now.saturating_duration_since(instant)
    }
}

impl Sessions {
    /// Tells whether a reader of the file can make sense of a datagram.
    fn open(&self, direction: Direction, datagram: &[u8]) -> bool {
        match transport_index(datagram) {
            Some(index) => self.open.contains(&(direction, index)),
            None => true,
        }
    }

    /// Remembers what a handshake message that was written says about sessions (whitepaper 5.4.2,
    /// 5.4.3).
    fn learn(&mut self, direction: Direction, packet: &[u8]) {
        let headers = match packet.first().map(|first| first >> 4) {
            Some(4) => ip::V4_HEADER + udp::HEADER,
            Some(_) | None => ip::V6_HEADER + udp::HEADER,
        };
        let Some(message) = packet.get(headers..) else {
            return;
        };
        let index = |at: usize| {
            let bytes = message[at..].first_chunk().expect("the message is longer");
            u32::from_le_bytes(*bytes)
        };
        match (message.first(), message.len()) {
            (Some(1), INITIATION) => {
                self.initiations.push_back((direction, index(4)));
                if self.initiations.len() > INITIATIONS_MAX {
                    self.initiations.pop_front();
                }
            }
            (Some(2), RESPONSE) => {
                let (responder, initiator) = (index(4), index(8));
                let initiation = (reversed(direction), initiator);
                // Of another, the reader does not know the keys.
                if self.initiations.contains(&initiation) {
                    self.insert((direction, initiator));
                    self.insert((reversed(direction), responder));
                }
            }
            (_, _) => {}
        }
    }

    fn insert(&mut self, session: (Direction, u32)) {
        if self.open.insert(session) {
            self.order.push_back(session);
        }
        if self.order.len() > SESSIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.open.remove(&oldest);
        }
    }
}

/// Returns an empty buffer in the size that a capture wants.
#[must_use]
pub fn buffer() -> Buffer {
    Zeroizing::new(Vec::with_capacity(BUFFER))
}

/// Returns the receiver index of transport data (whitepaper 5.4.6).
fn transport_index(datagram: &[u8]) -> Option<u32> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    let (kind, rest) = header.split_first_chunk::<4>()?;
    let index = rest.first_chunk()?;
    (*kind == [4, 0, 0, 0]).then(|| u32::from_le_bytes(*index))
}

fn reversed(direction: Direction) -> Direction {
    match direction {
        Direction::Inbound => Direction::Outbound,
        Direction::Outbound => Direction::Inbound,
    }
}

/// Writes the headers that a datagram has on the wire, as far as the node knows them: its own
/// address is unspecified, because the kernel chooses it.
fn emit_headers(
    direction: Direction,
    remote: SocketAddr,
    port: u16,
    datagram: &[u8],
    out: &mut [u8; ip::V6_HEADER + udp::HEADER],
) -> usize {
    let address = remote.ip().to_canonical();
    let own = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (source, destination) = match direction {
        Direction::Inbound => ((address, remote.port()), (own, port)),
        Direction::Outbound => ((own, port), (address, remote.port())),
    };
    let length = udp::HEADER + datagram.len();
    let header = ip::Header {
        source: source.0,
        destination: destination.0,
        next_header: ip::UDP,
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        fragment: None,
    };
    let start = ip::emit_header(&header, length, out);
    let stated = u16::try_from(length).expect("a datagram fits 16 bits");
    let words = [source.1, destination.1, stated, 0];
    let (fields, _) = out[start..].as_chunks_mut::<2>();
    for (field, word) in fields.iter_mut().zip(words) {
        *field = word.to_be_bytes();
    }
    start + udp::HEADER
}

/// Completes the headers of IPv6; IPv4 needs no checksum (RFC 768).
fn emit_checksum(headers: &mut [u8], datagram: &[u8]) {
    let Some((ip, udp)) = headers.split_at_mut_checked(ip::V6_HEADER) else {
        return;
    };
    let (addresses, _) = ip[8..].as_chunks::<16>();
    let [source, destination] = [addresses[0], addresses[1]].map(IpAddr::from);
    let length = udp.len() + datagram.len();
    let sum = Sum::default().add_pseudo_header(source, destination, ip::UDP, length);
    let checksum = match sum.add(udp).add(datagram).finish() {
        0 => 0xffff,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// What the kernel sets unless told otherwise (ip(7)).
const HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests;
