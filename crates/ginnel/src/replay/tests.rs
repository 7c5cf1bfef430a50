//! Files that two real devices make are replayed for each of them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use packet::{
    ip,
    pcapng::{self, Direction, EnhancedPacket, Interface, LinkType, SecretsType},
    udp,
};
use wireguard::{
    Device, Discard, Event, HEADER, OVERHEAD, Prefix, PresharedKey, PublicKey, Random, Received,
    Seal, StaticSecret, padded,
};

use super::{
    message::Message,
    recording::{self, Unreadable},
    story::{self, Line, Verdict},
};

struct Counted(u64);

impl Random for Counted {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = self.0.to_be_bytes()[0];
        }
    }
}

/// Two devices, of which `ours` is recorded, and the file.
struct World {
    base: Instant,
    now: Instant,
    devices: [Device; 2],
    /// Whose datagrams and keys are in the file.
    ours: usize,
    /// Whether the file says which way datagrams go.
    directed: bool,
    file: Vec<u8>,
}

fn address(side: usize) -> SocketAddr {
    [([192, 0, 2, 1], 51_820), ([192, 0, 2, 2], 51_821)][side].into()
}

impl World {
    fn new(ours: usize, preshared: bool, directed: bool) -> Self {
        let base = os::clock::Clock::start().now();
        let secret = |side: usize| StaticSecret::new([[7; 32], [9; 32]][side]);
        let mut file = Vec::new();
        pcapng::section_header(&mut file, "test");
        let interface = Interface {
            link_type: LinkType::Raw,
            name: "outer",
            description: "",
            filter: None,
        };
        pcapng::interface_description(&mut file, &interface);
        let mut devices = [0, 1].map(|side| {
            let random = Box::new(Counted(side as u64 + 3));
            let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let mut device = Device::new(base, wall, random);
            device.set_private_key(base, Some(secret(side)));
            device.set_key_log(side == ours);
            device
        });
        let mut add = |side: usize| {
            let device = &mut devices[side];
            let key: PublicKey = secret(1 - side).public_key();
            let peer = device.add_peer(base, key).expect("a good key");
            device.set_endpoint(peer, Some(address(1 - side)));
            device.set_preshared_key(peer, preshared.then(|| PresharedKey::new([5; 32])));
            device.allow(
                peer,
                Prefix::new([10, 0, 0, 0].into(), 8).expect("a prefix"),
            );
        };
        add(0);
        add(1);
        Self {
            base,
            now: base,
            devices,
            ours,
            directed,
            file,
        }
    }

    /// Lets the devices talk until both are silent; returns what left the one that is not ours.
    fn drive(&mut self) -> Vec<Vec<u8>> {
        let mut theirs = Vec::new();
        loop {
            let mut silent = true;
            for side in [0, 1] {
                while let Some(event) = self.devices[side].poll_event() {
                    if let Event::KeyLog { log, .. } = event {
                        let secrets = log.expose().as_bytes();
                        let kind = SecretsType::WireGuardKeyLog;
                        pcapng::decryption_secrets(&mut self.file, kind, secrets);
                    }
                }
                if let Some(transmit) = self.devices[side].poll_transmit() {
                    silent = false;
                    self.deliver(side, &transmit.datagram);
                    if side != self.ours {
                        theirs.push(transmit.datagram);
                    }
                }
            }
            if silent {
                return theirs;
            }
        }
    }

    /// Records a datagram of `side` and hands it to the other.
    fn deliver(&mut self, side: usize, datagram: &[u8]) {
        // Keys of an answer come with the answer, and stand before it.
        self.record(side, datagram);
        let mut copy = datagram.to_vec();
        let other = &mut self.devices[1 - side];
        let received = other.handle_datagram(self.now, address(side), &mut copy);
        assert!(!matches!(received, Received::Discarded(_)), "{received:?}");
    }

    fn record(&mut self, side: usize, datagram: &[u8]) {
        let (source, destination) = (address(side), address(1 - side));
        let datagram = udp::Datagram {
            source_port: source.port(),
            destination_port: destination.port(),
            payload: datagram,
        };
        let mut bytes = [0; 2_048];
        let header = ip::Header {
            source: source.ip(),
            destination: destination.ip(),
            next_header: ip::UDP,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let length = udp::HEADER + datagram.payload.len();
        let start = ip::emit_header(&header, length, &mut bytes);
        let (from, to) = (source.ip(), destination.ip());
        let length = start + udp::emit(from, to, &datagram, &mut bytes[start..]);
        let before = self.file.len();
        let packet = EnhancedPacket {
            interface: 0,
            time: Duration::from_secs(1_800_000_000) + self.now.duration_since(self.base),
            direction: if side == self.ours {
                Direction::Outbound
            } else {
                Direction::Inbound
            },
            pieces: &[&bytes[..length]],
            comment: "",
        };
        pcapng::enhanced_packet(&mut self.file, &packet);
        if !self.directed {
            forget_direction(&mut self.file[before..]);
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Sends a packet of so many bytes from one side to the other.
    fn send(&mut self, side: usize, length: usize) -> Vec<u8> {
        let mut slot = vec![0; padded(length) + OVERHEAD];
        let header = ip::Header {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            next_header: ip::UDP,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        ip::emit_header(&header, length - ip::V4_HEADER, &mut slot[HEADER..]);
        match self.devices[side].seal(self.now, &mut slot, length) {
            Seal::Sealed { length, .. } => {
                slot.truncate(length);
                self.deliver(side, &slot);
                slot
            }
            Seal::Staged { .. } | Seal::Discarded(_) => Vec::new(),
        }
    }

    fn replayed(&self) -> Vec<Line> {
        let recording = recording::read(&self.file).expect("it holds keys");
        let mut lines = Vec::new();
        story::tell(recording, self.base, |line| lines.push(line));
        lines
    }
}

/// Takes `epb_flags` from a block, as capture programs that do not know it do.
fn forget_direction(block: &mut [u8]) {
    let flags = [2, 0, 4, 0];
    let at = block.windows(4).rposition(|four| four == flags);
    let at = at.expect("our writer tells it");
    // An option of this block alone that nobody knows.
    block[at..at + 2].copy_from_slice(&[0xcc, 0x0b]);
}

fn verdicts(lines: &[Line]) -> Vec<(bool, &Verdict)> {
    let told = lines.iter().filter_map(|line| line.datagram.as_ref());
    told.map(|told| (told.inbound, &told.verdict)).collect()
}

/// A session and its successor, packets both ways, told as the recorded node saw them.
fn check(ours: usize, preshared: bool, directed: bool) {
    let mut world = World::new(ours, preshared, directed);
    world.send(0, 100);
    world.drive();
    world.send(1, 60);
    world.pass(121);
    // This is older than `REKEY_AFTER_TIME`, so the initiator shakes hands anew.
    world.send(0, 200);
    world.drive();
    world.send(0, 300);
    world.send(1, 400);
    let lines = world.replayed();
    let packets: Vec<_> = verdicts(&lines)
        .into_iter()
        .filter_map(|(inbound, verdict)| match verdict {
            Verdict::Packet(packet) => {
                let length = packet.rsplit(", ").next()?.trim_end_matches(" B");
                Some((inbound, length.parse::<usize>().ok()?))
            }
            Verdict::Handled | Verdict::Keepalive | Verdict::Discarded(_) | Verdict::Sealed => None,
        })
        .collect();
    let of = |side: usize| side != ours;
    let expected = [
        (of(0), 100),
        (of(1), 60),
        (of(0), 200),
        (of(0), 300),
        (of(1), 400),
    ];
    assert_eq!(packets, expected, "{lines:#?}");
    let sealed = |(_, verdict): &(bool, &Verdict)| {
        matches!(verdict, Verdict::Sealed | Verdict::Discarded(_))
    };
    assert!(!verdicts(&lines).iter().any(sealed), "{lines:#?}");
    let sessions = lines.iter().flat_map(|line| &line.changes);
    let role = if ours == 0 {
        "as initiator"
    } else {
        "as responder"
    };
    let made = sessions.filter(|change| change.ends_with(role));
    assert_eq!(made.count(), 2, "{lines:#?}");
}

#[test]
fn either_side_of_two_sessions_is_told_with_and_without_preshared_keys_and_directions() {
    for ours in [0, 1] {
        for preshared in [false, true] {
            for directed in [false, true] {
                check(ours, preshared, directed);
            }
        }
    }
}

#[test]
fn what_the_node_refused_is_refused_again_for_the_same_reason() {
    let mut world = World::new(1, false, true);
    world.send(0, 100);
    let theirs = world.drive();
    let initiation = theirs.first().expect("it began").clone();
    let data = world.send(0, 80);
    let mut forged = data.clone();
    forged[20] ^= 1;
    let mut elsewhere = data.clone();
    elsewhere[4] ^= 1;
    for datagram in [&data, &forged, &elsewhere] {
        world.record(0, datagram);
    }
    world.pass(1);
    world.record(0, &initiation);
    world.record(0, b"no message");
    world.pass(180);
    world.record(0, &data);
    let lines = world.replayed();
    let discards: Vec<_> = verdicts(&lines)
        .into_iter()
        .filter_map(|(_, verdict)| match verdict {
            Verdict::Discarded(discard) => Some(*discard),
            Verdict::Handled | Verdict::Keepalive | Verdict::Packet(_) | Verdict::Sealed => None,
        })
        .collect();
    let expected = [
        Discard::Duplicate,
        Discard::Tag,
        Discard::UnknownIndex,
        Discard::ReplayedInitiation,
        Discard::MessageType,
        Discard::SessionExpired,
    ];
    assert_eq!(discards, expected, "{lines:#?}");
}

#[test]
fn sessions_without_keys_stay_sealed_and_a_file_without_any_is_refused() {
    let mut world = World::new(0, false, true);
    assert!(matches!(
        recording::read(&world.file),
        Err(Unreadable::NoKeys)
    ));
    assert!(matches!(
        recording::read(b"text"),
        Err(Unreadable::NotPcapng)
    ));
    world.send(0, 100);
    world.drive();
    let mut foreign = world.send(0, 80);
    foreign[4] ^= 1;
    world.record(0, &foreign);
    let lines = world.replayed();
    let last = lines.last().and_then(|line| line.datagram.clone());
    let last = last.expect("a datagram");
    assert_eq!((last.inbound, last.verdict), (false, Verdict::Sealed));
    assert!(matches!(last.message, Message::Data { counter: 1, .. }));
    // What was cut off in the middle is told up to there.
    world.file.truncate(world.file.len() - 3);
    assert_eq!(world.replayed().len(), lines.len() - 1);
}
