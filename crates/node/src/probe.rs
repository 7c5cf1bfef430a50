//! Probes of the way back: the SYN of a connection that another site seems to open to a host of a
//! LAN, so that it shows whether what the host answers comes to this node.
//!
//! ```text
//!   host ── LAN ── kernel │ ◄── SYN ─── here
//!     └── router? ─► kernel │ ── SYN-ACK or RST ──► here, and no further
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use packet::{
    flow::{Flow, Part, Transport},
    ip,
    tcp::{self, Flags},
};

/// Probes at a time; the oldest makes room for a further one.
const PROBES_MAX: usize = 64;

/// How long answers are expected: longer than a host repeats a SYN-ACK that was refused.
const PATIENCE: Duration = Duration::from_secs(10);

/// A SYN whose answer is awaited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probe {
    /// The host and one of its ports, which may be closed.
    pub host: SocketAddrV4,
    /// Any port, which nobody can guess.
    pub source_port: u16,
    /// The sequence number of the SYN, which nobody can guess.
    pub sequence: u32,
}

/// Probes that have been sent.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    sent: Vec<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    probe: Probe,
    source: Ipv4Addr,
    at: Instant,
}

/// What an answer means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// The host has answered; what it is told then, if anything.
    Host(SocketAddrV4, Option<Vec<u8>>),
    /// It belongs to a probe and says nothing.
    Other,
}

impl Probes {
    /// Returns the packet that asks, as it seems to come from `source`. The same probe again is
    /// the same packet.
    pub(crate) fn ask(&mut self, now: Instant, source: Ipv4Addr, probe: Probe) -> Vec<u8> {
        self.sent.retain(|sent| sent.probe != probe);
        if self.sent.len() >= PROBES_MAX {
            self.sent.remove(0);
        }
        let at = now;
        self.sent.push(Sent { probe, source, at });
        segment(source, &probe, probe.sequence, Flags::SYN)
    }

    /// Looks whether a packet from the machine is about a probe; `None` when it is not.
    pub(crate) fn take(&mut self, now: Instant, packet: &[u8]) -> Option<Answer> {
        if self.sent.is_empty() {
            return None;
        }
        self.sent
            .retain(|sent| now.saturating_duration_since(sent.at) < PATIENCE);
        let flow = match Part::of(packet)? {
            Part::Continuing(flow) | Part::Ending(flow) => flow.reversed(),
            // Some router cannot lead it on.
            Part::Error(flow) => {
                let ours = self.sent.iter().any(|sent| sent.flow() == flow);
                return ours.then_some(Answer::Other);
            }
            Part::Opening(_) | Part::Fragment { .. } => return None,
        };
        let sent = self.sent.iter().find(|sent| sent.flow() == flow)?;
        let parsed = ip::parse(packet).ok()?;
        let header = parsed.header;
        let parsed = tcp::parse(header.source, header.destination, parsed.payload);
        let Ok(tcp::Segment { header, .. }) = parsed else {
            return Some(Answer::Other);
        };
        // Only who has seen the SYN knows its number (RFC 9293, 3.10.7.3).
        if header.acknowledgement != sent.probe.sequence.wrapping_add(1) {
            return Some(Answer::Other);
        }
        // A connection that was accepted goes again; a refusal needs no answer.
        let reset = !header.flags.has(Flags::RST);
        let reset = reset.then(|| {
            let sequence = header.acknowledgement;
            segment(sent.source, &sent.probe, sequence, Flags::RST)
        });
        Some(Answer::Host(sent.probe.host, reset))
    }
}

impl Sent {
    /// The direction of the probe.
    fn flow(&self) -> Flow {
        Flow {
            source: self.source.into(),
            destination: (*self.probe.host.ip()).into(),
            transport: Transport::Tcp {
                source: self.probe.source_port,
                destination: self.probe.host.port(),
            },
        }
    }
}

fn segment(source: Ipv4Addr, probe: &Probe, sequence: u32, flags: Flags) -> Vec<u8> {
    let (source, destination) = (IpAddr::from(source), IpAddr::from(*probe.host.ip()));
    let header = ip::Header {
        source,
        destination,
        next_header: ip::TCP,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let at = ip::header_length(destination);
    let mut packet = vec![0; at + tcp::HEADER];
    ip::emit_header(&header, tcp::HEADER, &mut packet);
    let segment = tcp::Segment {
        header: tcp::Header {
            source_port: probe.source_port,
            destination_port: probe.host.port(),
            sequence,
            flags,
            ..tcp::Header::default()
        },
        payload: &[],
    };
    tcp::emit(source, destination, &segment, &mut packet[at..]);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);

    fn probe() -> Probe {
        Probe {
            host: SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10), 9),
            source_port: 40_000,
            sequence: u32::MAX,
        }
    }

    /// What the host sends back.
    fn answer(acknowledgement: u32, flags: Flags) -> Vec<u8> {
        let (host, source) = (probe().host, IpAddr::from(SOURCE));
        let header = ip::Header {
            source: (*host.ip()).into(),
            destination: source,
            next_header: ip::TCP,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let mut packet = vec![0; ip::V4_HEADER + tcp::HEADER];
        ip::emit_header(&header, tcp::HEADER, &mut packet);
        let segment = tcp::Segment {
            header: tcp::Header {
                source_port: host.port(),
                destination_port: probe().source_port,
                acknowledgement,
                flags,
                ..tcp::Header::default()
            },
            payload: &[],
        };
        let body = &mut packet[ip::V4_HEADER..];
        tcp::emit((*host.ip()).into(), source, &segment, body);
        packet
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary first instant")]
        Instant::now()
    }

    #[test]
    fn whoever_has_seen_the_syn_answers_it_and_an_open_port_is_told_to_forget() {
        let now = start();
        let mut probes = Probes::default();
        assert_eq!(probes.take(now, &answer(0, Flags::RST)), None);
        let asked = probes.ask(now, SOURCE, probe());
        assert_eq!(asked, probes.ask(now, SOURCE, probe()), "the same again");
        assert_eq!(probes.sent.len(), 1);
        let rst = Flags::RST.with(Flags::ACK);
        let host = probe().host;
        let refused = Some(Answer::Host(host, None));
        assert_eq!(probes.take(now, &answer(0, rst)), refused);
        let accepted = answer(0, Flags::SYN.with(Flags::ACK));
        let Some(Answer::Host(_, Some(reset))) = probes.take(now, &accepted) else {
            panic!("a connection that was accepted is reset");
        };
        assert!(
            matches!(Part::of(&reset), Some(Part::Ending(flow)) if flow == probes.sent[0].flow())
        );
        assert_eq!(probes.take(now, &answer(7, rst)), Some(Answer::Other));
    }

    #[test]
    fn probes_are_bounded_in_number_and_time() {
        let now = start();
        let mut probes = Probes::default();
        for port in 0..200 {
            let source_port = 1_000 + port;
            let probe = Probe {
                source_port,
                ..probe()
            };
            probes.ask(now, SOURCE, probe);
        }
        assert_eq!(probes.sent.len(), PROBES_MAX);
        probes.ask(now, SOURCE, probe());
        let rst = answer(0, Flags::RST.with(Flags::ACK));
        assert!(probes.take(now, &rst).is_some());
        assert_eq!(probes.take(now + PATIENCE, &rst), None);
        assert!(probes.sent.is_empty());
    }
}
