//! Super-packets: splitting never fails on what it accepted, and coalescing loses nothing.

use std::net::{IpAddr, Ipv6Addr};

use packet::{
    gro::Run,
    gso::{self, Kind},
    ip,
    tcp::{self, Flags},
    udp,
};

use crate::input::Input;

/// Splits any bytes; then coalesces a flow made of them, and splits it back.
pub fn packets(data: &[u8]) {
    for kind in [Kind::Tcp, Kind::Udp] {
        for size in [0, 1, 100, 1_400] {
            if let Ok(mut parts) = gso::split(data, kind, size) {
                let mut out = vec![0; parts.length_max()];
                while let Some(length) = parts.next_into(&mut out) {
                    assert!(ip::parse(&out[..length]).is_ok());
                }
            }
        }
    }
    if let Ok(mut run) = Run::begin(data, Vec::new()) {
        run.append(data);
        let _ = run.finish();
    }
    let mut completed = data.to_vec();
    if let [start, offset, ..] = *data {
        let _ = gso::complete_checksum(&mut completed, start.into(), offset.into());
    }
    flow(&mut Input::new(data));
}

/// Coalesces packets that mostly follow each other; what the run took comes out of it again.
fn flow(input: &mut Input<'_>) {
    let is_tcp = input.byte() & 1 == 0;
    let mut sequence = u32::from(input.number()) << 16;
    let mut run: Option<Run> = None;
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (size, oddity) = (usize::from(input.byte()) * 4, input.byte());
        sequence = sequence.wrapping_add(u32::from(oddity == 1));
        let packet = emit(is_tcp, sequence, size, oddity);
        sequence = sequence.wrapping_add(u32::try_from(size).expect("below 1,024"));
        if let Some(run) = run.as_mut().filter(|run| run.packets() == taken.len())
            && run.append(&packet)
        {
            taken.push(packet);
            continue;
        }
        if let Some(run) = run.take() {
            compare(run, &taken);
        }
        taken.clear();
        if let Ok(begun) = Run::begin(&packet, Vec::new()) {
            run = Some(begun);
            taken.push(packet);
        }
    }
    if let Some(run) = run {
        compare(run, &taken);
    }
}

fn compare(run: Run, taken: &[Vec<u8>]) {
    assert_eq!(run.packets(), taken.len());
    let (packet, offload) = run.finish();
    let Some(offload) = offload else {
        assert_eq!(packet, taken[0]);
        return;
    };
    let mut parts = gso::split(&packet, offload.kind, offload.size).expect("our own packet");
    let mut out = vec![0; parts.length_max()];
    for expected in taken {
        let length = parts.next_into(&mut out).expect("as many as were taken");
        assert_eq!(&out[..length], &expected[..]);
    }
    assert!(
        parts.next_into(&mut out).is_none(),
        "no more than were taken"
    );
}

fn emit(is_tcp: bool, sequence: u32, size: usize, oddity: u8) -> Vec<u8> {
    let source = IpAddr::from(Ipv6Addr::LOCALHOST);
    let destination = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    let payload = vec![oddity; size];
    let mut transport = vec![0; tcp::HEADER + tcp::OPTIONS_MAX + size];
    let length = if is_tcp {
        let psh = if oddity & 0x0f == 2 {
            Flags::PSH
        } else {
            Flags::default()
        };
        let header = tcp::Header {
            source_port: 1,
            destination_port: 2 + u16::from(oddity == 3),
            sequence,
            flags: Flags::ACK.with(psh),
            window: 1_000,
            ..tcp::Header::default()
        };
        let segment = tcp::Segment {
            header,
            payload: &payload,
        };
        tcp::emit(source, destination, &segment, &mut transport)
    } else {
        let destination_port = 2 + u16::from(oddity == 3);
        let datagram = udp::Datagram {
            source_port: 1,
            destination_port,
            payload: &payload,
        };
        udp::emit(source, destination, &datagram, &mut transport)
    };
    let header = ip::Header {
        source,
        destination,
        next_header: if is_tcp { ip::TCP } else { ip::UDP },
        hop_limit: 64,
        traffic_class: u8::from(oddity == 4),
        fragment: None,
    };
    let mut packet = vec![0; ip::V6_HEADER];
    ip::emit_header(&header, length, &mut packet);
    packet.extend_from_slice(&transport[..length]);
    packet
}
