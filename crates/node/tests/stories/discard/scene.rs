//! A node that captures everything, and a peer of it that sends whatever it likes.

use std::{
    collections::BTreeMap,
    io::Cursor,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use model::config::Config;
use node::{
    Attachment, Node, Outcome,
    capture::{Settings, buffer},
};
use packet::{ecn::Ecn, icmp, ip, tcp, udp};
use pcap_parser::{
    Block, PcapBlockOwned, PcapError, PcapNGOption, PcapNGReader, traits::PcapReaderIterator as _,
};
use wireguard::{
    Device, HEADER, OVERHEAD, PeerId, Prefix, PresharedKey, Received, Seal, StaticSecret,
};

use crate::world::{
    GATEWAY, Installation, Seeded, address, endpoint, ip as ip_of, public_key, secret,
};

/// The node.
pub(super) const NODE: u8 = 12;
/// Its peer.
pub(super) const PEER: u8 = 11;

/// The node's address in the other family.
pub(super) const NODE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 12));

pub(super) struct Scene {
    pub(super) now: Instant,
    pub(super) node: Node,
    pub(super) peer: Device,
    /// The node among the peers of its peer.
    id: PeerId,
    /// Datagrams of the node.
    pub(super) sent: Vec<Vec<u8>>,
    /// The packets in them.
    pub(super) heard: Vec<Vec<u8>>,
}

impl Scene {
    /// A node by a plain configuration, which lets the peer use most addresses.
    pub(super) fn plain(attachment: Attachment) -> Self {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}, {NODE_V4}\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = ::/0, 10.0.0.0/8\nEndpoint = {}\n",
            secret(NODE).to_base64(),
            ip_of(NODE),
            public_key(PEER),
            endpoint(PEER),
        );
        let config = Config::parse(text.as_bytes()).expect("a well-formed file");
        let mut scene = Self::new(NODE, attachment);
        scene.node.apply_config(scene.now, &config);
        scene
    }

    /// The same without a peer.
    pub(super) fn forget_peer(&mut self) {
        let text = format!("[Interface]\nPrivateKey = {}\n", secret(NODE).to_base64());
        let config = Config::parse(text.as_bytes()).expect("a well-formed file");
        self.node.apply_config(self.now, &config);
    }

    /// A gateway, whose peer is a node of the organisation.
    pub(super) fn gateway(attachment: Attachment, installation: &Installation) -> Self {
        let mut scene = Self::new(GATEWAY, attachment);
        scene.node.apply(scene.now, &installation.map_of(GATEWAY));
        scene
    }

    fn new(host: u8, attachment: Attachment) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        let now = Instant::now();
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let random = Box::new(Seeded(host.into()));
        let mut node = Node::new(now, wall, random, &secret(host), attachment);
        let settings = Settings {
            application: "stories".to_owned(),
            inner: true,
            outer: true,
            filter: None,
            keys: false,
            port: 51_820,
            packets_max: None,
            bytes_max: None,
        };
        assert!(node.start_capture(now, wall, settings));
        let (peer, id) = device(now, PEER, host);
        Self {
            now,
            node,
            peer,
            id,
            sent: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// Gives the node a datagram, and takes nothing out of it.
    pub(super) fn datagram(&mut self, datagram: &[u8]) {
        self.datagram_with(Ecn::NotEct, datagram);
    }

    pub(super) fn datagram_with(&mut self, ecn: Ecn, datagram: &[u8]) {
        let mut datagram = datagram.to_vec();
        let source = endpoint(PEER);
        // What the node passes on is of no concern here.
        let _outcome = self
            .node
            .handle_datagram(self.now, source, ecn, &mut datagram);
    }

    /// Gives the node a packet of its TUN interface, in a slot with `room` bytes behind it.
    pub(super) fn own(&mut self, packet: &[u8], room: usize) {
        let mut slot = vec![0; HEADER + packet.len() + room];
        slot[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        let outcome = self.node.handle_packet(self.now, &mut slot, packet.len());
        assert_eq!(outcome, Outcome::Nothing);
    }

    /// Seals whatever bytes for the node.
    pub(super) fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut slot = vec![0; OVERHEAD + packet.len() + 16];
        slot[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        let sealed = self
            .peer
            .seal_to(self.now, self.id, &mut slot, packet.len());
        let Seal::Sealed { length, .. } = sealed else {
            panic!("there is a session");
        };
        slot.truncate(length);
        slot
    }

    /// Gives the node a packet through the tunnel, and takes nothing out of it.
    pub(super) fn packet(&mut self, packet: &[u8]) {
        let datagram = self.seal(packet);
        self.datagram(&datagram);
    }

    /// Sets the preshared key of the peer, which the node does not know.
    pub(super) fn share_key(&mut self, key: Option<PresharedKey>) {
        self.peer.set_preshared_key(self.id, key);
    }

    /// Returns an initiation of the peer.
    pub(super) fn initiation(&mut self) -> Vec<u8> {
        self.peer.initiate(self.now, self.id);
        self.peer.poll_transmit().expect("an initiation").datagram
    }

    /// Takes what the node sends, without an answer.
    pub(super) fn drain(&mut self) {
        let mut buffer = vec![0; Node::DATAGRAM_MAX];
        while let Some((_, length)) = self.node.poll_transmit(self.now, &mut buffer) {
            self.sent.push(buffer[..length].to_vec());
        }
        while self.node.poll_packet().is_some() {}
        while self.node.poll_event(self.now).is_some() {}
    }

    /// Lets both talk until both are silent.
    pub(super) fn exchange(&mut self) {
        loop {
            self.drain();
            for mut datagram in std::mem::take(&mut self.sent) {
                let source = endpoint(NODE);
                let received = self.peer.handle_datagram(self.now, source, &mut datagram);
                if let Received::Packet { packet, .. } = received {
                    self.heard.push(packet.to_vec());
                }
            }
            let Some(transmit) = self.peer.poll_transmit() else {
                return;
            };
            self.datagram(&transmit.datagram);
        }
    }

    /// Makes a session.
    pub(super) fn shake(&mut self) {
        self.peer.initiate(self.now, self.id);
        self.exchange();
    }

    /// Lets time pass for the node alone; nobody answers it.
    pub(super) fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(due) = self.node.poll_timeout().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.node.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Returns how often each discard is counted in the status, and told in the capture.
    pub(super) fn discards(mut self) -> [BTreeMap<String, u64>; 2] {
        let counted = self.node.status(self.now).discards;
        let mut capture = self.node.end_capture(self.now).expect("it runs");
        let mut file = buffer();
        capture.take(&mut file);
        [counted, told(&file)]
    }
}

/// A device of `host` that knows `other`, and lets it use every address.
pub(super) fn device(now: Instant, host: u8, other: u8) -> (Device, PeerId) {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut device = Device::new(now, wall, Box::new(Seeded(host.into())));
    device.set_private_key(now, Some(StaticSecret::new([host; 32])));
    let key = wireguard::PublicKey(public_key(other).0);
    let id = device.add_peer(now, key).expect("another key");
    device.set_endpoint(id, Some(endpoint(other)));
    for (address, bits) in [("::", 0), ("0.0.0.0", 0)] {
        let address = address.parse().expect("an address");
        device.allow(id, Prefix::new(address, bits).expect("few bits"));
    }
    (device, id)
}

/// Adds up what the comments of a capture say about discards.
fn told(file: &[u8]) -> BTreeMap<String, u64> {
    let mut told = BTreeMap::new();
    let mut reader = PcapNGReader::new(1 << 20, Cursor::new(file)).expect("a header");
    loop {
        let offset = match reader.next() {
            Ok((offset, PcapBlockOwned::NG(Block::EnhancedPacket(packet)))) => {
                add_comment(&mut told, &packet.options);
                offset
            }
            Ok((offset, PcapBlockOwned::NG(Block::InterfaceStatistics(end)))) => {
                add_comment(&mut told, &end.options);
                offset
            }
            Ok((offset, _)) => offset,
            Err(PcapError::Eof) => return told,
            Err(PcapError::Incomplete(_)) => {
                reader.refill().expect("a cursor");
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        reader.consume(offset);
    }
}

fn add_comment(told: &mut BTreeMap<String, u64>, options: &[PcapNGOption<'_>]) {
    let comment = options.iter().find(|option| option.code.0 == 1);
    let comment = comment.map_or(&[][..], |told| &told.value()[..told.len.into()]);
    for part in std::str::from_utf8(comment).expect("text").split("; ") {
        let (count, name) = match part.split_once(" discarded since: ") {
            Some((count, name)) => (count.parse().expect("a number"), name),
            None => match part.strip_prefix("discarded: ") {
                Some(name) => (1, name),
                None => continue,
            },
        };
        *told.entry(name.to_owned()).or_default() += count;
    }
}

/// A UDP datagram from the peer to `port` of the node.
pub(super) fn datagram(destination: IpAddr, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let source = source(destination);
    let datagram = udp::Datagram {
        source_port: ports[0],
        destination_port: ports[1],
        payload,
    };
    let mut body = vec![0; udp::HEADER + payload.len()];
    udp::emit(source, destination, &datagram, &mut body);
    crate::world::raw(source, destination, ip::UDP, &body)
}

/// An ICMP message from the peer to the node.
pub(super) fn message(message: &icmp::Message<'_>) -> Vec<u8> {
    let (source, destination) = (ip_of(PEER), ip_of(NODE));
    let mut body = [0; 64];
    let length = icmp::emit(source, destination, message, &mut body);
    crate::world::raw(source, destination, ip::ICMPV6, &body[..length])
}

/// A TCP connection of the peer to the node, made by hand.
pub(super) struct Tcp {
    /// Acknowledges all that the node has sent.
    header: tcp::Header,
}

/// The initial sequence number of the peer.
const ISS: u32 = 1_000;

impl Tcp {
    pub(super) const PORT: u16 = 80;

    /// Where the node listens.
    pub(super) fn local() -> SocketAddr {
        SocketAddr::new(ip_of(NODE), Self::PORT)
    }

    /// Opens a connection to what the node listens on.
    pub(super) fn open(scene: &mut Scene, port: u16, options: tcp::Options) -> Self {
        let mut header = tcp::Header {
            source_port: port,
            destination_port: Self::PORT,
            sequence: ISS,
            flags: tcp::Flags::SYN,
            window: 10_000,
            options,
            ..tcp::Header::default()
        };
        scene.packet(&segment(&header, &[]));
        scene.exchange();
        let answer = scene.heard.pop().expect("an answer");
        let answer = ip::parse(&answer).expect("an IP packet");
        let (from, to) = (answer.header.source, answer.header.destination);
        let answer = tcp::parse(from, to, answer.payload).expect("a segment");
        header.flags = tcp::Flags::ACK;
        header.acknowledgement = answer.header.sequence.wrapping_add(1);
        let connection = Self { header };
        scene.packet(&connection.segment(1, &[], |_| {}));
        connection
    }

    /// A segment `at` octets behind the initial sequence number.
    pub(super) fn segment(
        &self,
        at: u32,
        payload: &[u8],
        change: impl Fn(&mut tcp::Header),
    ) -> Vec<u8> {
        let mut header = self.header;
        header.sequence = ISS.wrapping_add(at);
        change(&mut header);
        segment(&header, payload)
    }
}

/// A TCP segment from the peer to the node.
pub(super) fn segment(header: &tcp::Header, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (ip_of(PEER), ip_of(NODE));
    let segment = tcp::Segment {
        header: *header,
        payload,
    };
    let mut body = vec![0; tcp::HEADER + tcp::OPTIONS_MAX + payload.len()];
    let length = tcp::emit(source, destination, &segment, &mut body);
    crate::world::raw(source, destination, ip::TCP, &body[..length])
}

/// The peer's address in the family of `destination`.
fn source(destination: IpAddr) -> IpAddr {
    match destination {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11)),
        IpAddr::V6(_) => IpAddr::V6(address(PEER)),
    }
}
