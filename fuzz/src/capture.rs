//! Captures: filter expressions, and files that are replayed.

use std::time::Duration;

use packet::{
    ip,
    pcap_filter::Filter,
    pcapng::{self, Direction, EnhancedPacket, Interface, LinkType, SecretsType},
    udp,
};
use wireguard::{Device, Event, Received, StaticSecret};

use crate::{
    input::{Generator, base},
    replay::{recording, story},
};

/// An expression up to the first zero, and a packet: what is negated wants what was not wanted.
pub fn filters(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0);
    let (text, packet) = data.split_at(end.unwrap_or(data.len()));
    let packet = packet.get(1..).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let filter = match Filter::parse(&text) {
        Ok(filter) => filter,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(filter.text(), text);
    let wanted = filter.matches(packet, packet.len());
    // It may be too long or too deep with one more parenthesis.
    if let Ok(negated) = Filter::parse(&format!("not ({text})")) {
        assert_eq!(negated.matches(packet, packet.len()), !wanted);
    }
}

/// A file: each of its datagrams is told once, in an order of time that does not go back.
pub fn files(data: &[u8]) {
    let Ok(recording) = recording::read(data) else {
        return;
    };
    let datagrams = recording.datagrams.len();
    let (mut told, mut time) = (0, Duration::ZERO);
    story::tell(recording, base().0, |line| {
        assert!(line.time >= time);
        time = line.time;
        told += usize::from(line.datagram.is_some());
    });
    assert_eq!(told, datagrams);
}

/// Files of a handshake and a keepalive, as initiator and as responder.
#[must_use]
pub fn recorded() -> Vec<Vec<u8>> {
    [0, 1].map(recorded_by).into()
}

fn recorded_by(ours: usize) -> Vec<u8> {
    let (now, wall) = base();
    let secret = |side: usize| StaticSecret::new([[1; 32], [2; 32]][side]);
    let mut devices = [0, 1].map(|side| {
        let mut device = Device::new(now, wall, Box::new(Generator(side as u64)));
        device.set_private_key(now, Some(secret(side)));
        device.set_key_log(side == ours);
        let key = secret(1 - side).public_key();
        let peer = device.add_peer(now, key).expect("a good key");
        device.set_endpoint(peer, Some(([10, 0, 0, 9], 9).into()));
        if side == 0 {
            device.initiate(now, peer);
        }
        device
    });
    let mut file = Vec::new();
    pcapng::section_header(&mut file, "fuzz");
    let interface = Interface {
        link_type: LinkType::Raw,
        name: "outer",
        description: "",
        filter: None,
    };
    pcapng::interface_description(&mut file, &interface);
    for side in [0, 1, 0] {
        while let Some(event) = devices[side].poll_event() {
            if let Event::KeyLog { log, .. } = event {
                let kind = SecretsType::WireGuardKeyLog;
                pcapng::decryption_secrets(&mut file, kind, log.expose().as_bytes());
            }
        }
        let mut datagram = devices[side].poll_transmit().expect("its turn").datagram;
        record(&mut file, side == ours, &datagram);
        let source = ([10, 0, 0, 9], 9).into();
        let received = devices[1 - side].handle_datagram(now, source, &mut datagram);
        assert_eq!(received, Received::Handled);
    }
    file
}

fn record(file: &mut Vec<u8>, sent: bool, payload: &[u8]) {
    let (source, destination) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let header = ip::Header {
        source,
        destination,
        next_header: ip::UDP,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let datagram = udp::Datagram {
        source_port: 1,
        destination_port: 2,
        payload,
    };
    let mut bytes = [0; 256];
    let start = ip::emit_header(&header, udp::HEADER + payload.len(), &mut bytes);
    let length = start + udp::emit(source, destination, &datagram, &mut bytes[start..]);
    let packet = EnhancedPacket {
        interface: 0,
        time: Duration::from_secs(1_800_000_000),
        direction: if sent {
            Direction::Outbound
        } else {
            Direction::Inbound
        },
        pieces: &[&bytes[..length]],
        comment: "",
    };
    pcapng::enhanced_packet(file, &packet);
}
