//! A capture file as it is replayed: datagrams in their order, and the keys that open them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use data_encoding::BASE64;
use packet::{ip, udp};
use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, PcapBlockOwned, PcapError, PcapNGReader,
    traits::{PcapNGPacketBlock as _, PcapReaderIterator as _},
};
use wireguard::{KEY, StaticSecret};
use zeroize::Zeroizing;

/// What is in a file.
#[derive(Default)]
pub(crate) struct Recording {
    /// In the order of the file.
    pub(crate) datagrams: Vec<Datagram>,
    /// The keys of handshakes by the public half of our ephemeral key.
    pub(crate) keys: BTreeMap<[u8; KEY], Keys>,
    /// Packets that are no UDP datagrams of an outer interface.
    pub(crate) others: u64,
}

/// A UDP datagram.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Datagram {
    /// Since 1970.
    pub(crate) time: Duration,
    /// Whether it came in, where the file says so.
    pub(crate) inbound: Option<bool>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

/// What opens one handshake.
pub(crate) struct Keys {
    pub(crate) local: StaticSecret,
    pub(crate) remote: Option<[u8; KEY]>,
    pub(crate) ephemeral: Zeroizing<[u8; KEY]>,
    pub(crate) preshared: Option<Zeroizing<[u8; KEY]>>,
}

/// Why a file cannot be replayed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// It does not begin as pcapng does, or a block is malformed.
    #[error("it is no pcapng file")]
    NotPcapng,
    /// No secrets of WireGuard are in it.
    #[error("it holds no keys of WireGuard")]
    NoKeys,
}

/// Lines of a key log that belong to the next ephemeral key.
#[derive(Default)]
struct Log {
    local: Option<Zeroizing<[u8; KEY]>>,
    remote: Option<[u8; KEY]>,
    /// Public half of the ephemeral key that was read last.
    last: Option<[u8; KEY]>,
}

/// What an interface says about its packets.
#[derive(Clone, Copy)]
struct Interface {
    link: Link,
    /// Packets inside the tunnel.
    inner: bool,
    resolution: u8,
}

/// What stands in front of an IP packet.
#[derive(Clone, Copy)]
enum Link {
    Ip,
    /// 14 bytes, the last two an EtherType.
    Ethernet,
    /// `SLL`: 16 bytes, the last two an EtherType.
    Cooked,
    /// `SLL2`: 20 bytes, the first two an EtherType.
    Cooked2,
    Other,
}

/// The longest block that is read; a longer one is malformed.
const BLOCK_MAX: usize = 1 << 20;

/// Decryption secrets of WireGuard (pcapng, 4.7).
const WIREGUARD_KEY_LOG: u32 = 0x5747_4b4c;

/// Reads a whole file.
pub(crate) fn read(file: &[u8]) -> Result<Recording, Unreadable> {
    let mut reader = PcapNGReader::new(BLOCK_MAX, file).map_err(|_| Unreadable::NotPcapng)?;
    let mut recording = Recording::default();
    let (mut interfaces, mut log) = (Vec::new(), Log::default());
    loop {
        let length = match reader.next() {
            Ok((length, PcapBlockOwned::NG(block))) => {
                recording.take(&block, &mut interfaces, &mut log);
                length
            }
            Ok((_, PcapBlockOwned::Legacy(_) | PcapBlockOwned::LegacyHeader(_))) => {
                return Err(Unreadable::NotPcapng);
            }
            Err(PcapError::Eof) => break,
            Err(PcapError::Incomplete(_)) => {
                let before = reader.data().len();
                reader.refill().map_err(|_| Unreadable::NotPcapng)?;
                if reader.data().len() == before && !reader.reader_exhausted() {
                    return Err(Unreadable::NotPcapng);
                }
                continue;
            }
            // A capture that was cut off: what is whole is replayed.
            Err(PcapError::UnexpectedEof) => break,
            Err(_) => return Err(Unreadable::NotPcapng),
        };
        reader.consume(length);
    }
    if recording.keys.is_empty() {
        return Err(Unreadable::NoKeys);
    }
    Ok(recording)
}

impl Recording {
    fn take(&mut self, block: &Block<'_>, interfaces: &mut Vec<Interface>, log: &mut Log) {
        if let Block::SectionHeader(_) = block {
            interfaces.clear();
        } else if let Block::InterfaceDescription(interface) = block {
            interfaces.push(Interface::of(interface));
        } else if let Block::DecryptionSecrets(secrets) = block {
            if secrets.secrets_type.0 == WIREGUARD_KEY_LOG {
                let length = usize::try_from(secrets.secrets_len).unwrap_or(usize::MAX);
                let text = secrets.data.get(..length).unwrap_or(secrets.data);
                let lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
                lines.for_each(|line| log.take(line, &mut self.keys));
            }
        } else if let Block::EnhancedPacket(packet) = block {
            let interface = usize::try_from(packet.if_id).ok();
            let interface = interface.and_then(|number| interfaces.get(number));
            match interface.and_then(|interface| datagram(interface, packet)) {
                Some(datagram) => self.datagrams.push(datagram),
                None => self.others += 1,
            }
        }
    }
}

impl Interface {
    fn of(block: &InterfaceDescriptionBlock<'_>) -> Self {
        /// `if_name`
        const NAME: u16 = 2;
        let name = block.options.iter().find(|option| option.code.0 == NAME);
        let name = name.and_then(|option| option.value().get(..usize::from(option.len)));
        Self {
            link: match block.linktype.0 {
                101 | 228 | 229 => Link::Ip,
                1 => Link::Ethernet,
                113 => Link::Cooked,
                276 => Link::Cooked2,
                _ => Link::Other,
            },
            inner: name == Some(b"inner".as_slice()),
            resolution: block.if_tsresol,
        }
    }

    /// Returns the time of a packet since 1970 (pcapng, 4.2, `if_tsresol`).
    fn time(self, high: u32, low: u32) -> Duration {
        let units = u128::from(high) << 32 | u128::from(low);
        let exponent = u32::from(self.resolution & 0x7f);
        let unit = match self.resolution & 0x80 {
            0 => 10_u128.checked_pow(exponent),
            _ => 2_u128.checked_pow(exponent),
        };
        let nanos = units.saturating_mul(1_000_000_000) / unit.unwrap_or(u128::MAX);
        let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
        let rest = u32::try_from(nanos % 1_000_000_000).expect("below a second");
        // Beyond this, sums of times would overflow.
        Duration::new(seconds.min(TIME_MAX), rest)
    }
}

/// The year 4000 or so.
const TIME_MAX: u64 = 1 << 36;

impl Log {
    fn take(&mut self, line: &[u8], keys: &mut BTreeMap<[u8; KEY], Keys>) {
        let Some(at) = line.iter().position(|byte| *byte == b'=') else {
            return;
        };
        let (kind, value) = (line[..at].trim_ascii(), line[at + 1..].trim_ascii());
        let Ok(decoded) = BASE64.decode(value).map(Zeroizing::new) else {
            return;
        };
        let Ok(key) = <[u8; KEY]>::try_from(decoded.as_slice()).map(Zeroizing::new) else {
            return;
        };
        match kind {
            b"LOCAL_STATIC_PRIVATE_KEY" => self.local = Some(key),
            b"REMOTE_STATIC_PUBLIC_KEY" => self.remote = Some(*key),
            b"LOCAL_EPHEMERAL_PRIVATE_KEY" => {
                let Some(local) = &self.local else { return };
                let public = StaticSecret::new(*key).public_key().0;
                self.last = Some(public);
                let entry = Keys {
                    local: StaticSecret::new(**local),
                    remote: self.remote,
                    ephemeral: key,
                    preshared: None,
                };
                keys.insert(public, entry);
            }
            b"PRESHARED_KEY" => {
                if let Some(entry) = self.last.and_then(|last| keys.get_mut(&last)) {
                    entry.preshared = Some(key);
                }
            }
            _ => {}
        }
    }
}

/// Takes the UDP datagram out of a packet of an outer interface.
fn datagram(interface: &Interface, packet: &EnhancedPacketBlock<'_>) -> Option<Datagram> {
    if interface.inner {
        return None;
    }
    let bytes = behind_link(interface.link, packet.packet_data())?;
    let parsed = ip::parse(bytes).ok()?;
    let outer = &parsed.header;
    if outer.next_header != ip::UDP || outer.fragment.is_some() {
        return None;
    }
    // Checksums of captured packets are often not filled in yet: they do not count.
    let header: &[u8; udp::HEADER] = parsed.payload.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let payload = parsed.payload.get(udp::HEADER..usize::from(port(4)))?;
    Some(Datagram {
        time: interface.time(packet.ts_high, packet.ts_low),
        inbound: direction(packet),
        source: SocketAddr::new(outer.source, port(0)),
        destination: SocketAddr::new(outer.destination, port(2)),
        payload: payload.to_vec(),
    })
}

fn behind_link(link: Link, bytes: &[u8]) -> Option<&[u8]> {
    let (kind, rest) = match link {
        Link::Ip => return Some(bytes),
        Link::Ethernet => (bytes.get(12..14)?, bytes.get(14..)?),
        Link::Cooked => (bytes.get(14..16)?, bytes.get(16..)?),
        Link::Cooked2 => (bytes.get(..2)?, bytes.get(20..)?),
        Link::Other => return None,
    };
    matches!(kind, [0x08, 0x00] | [0x86, 0xdd]).then_some(rest)
}

/// Reads `epb_flags` (pcapng, 4.3.1): the lowest two bits say the direction.
fn direction(packet: &EnhancedPacketBlock<'_>) -> Option<bool> {
    const FLAGS: u16 = 2;
    let flags = packet
        .options
        .iter()
        .find(|option| option.code.0 == FLAGS)?;
    let bytes: [u8; 4] = flags.value().get(..4)?.try_into().ok()?;
    // The bytes stand in the order of the file, and only one of both has them at that end.
    let low = if packet.big_endian() {
        bytes[3]
    } else {
        bytes[0]
    };
    match low & 3 {
        1 => Some(true),
        2 => Some(false),
        _ => None,
    }
}
