//! What commands ask for where packets come through a TUN interface: sockets of the system for
//! connections and echoes, and the node's own zone for names.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use model::zone::{Answer, Kind, Name, Question};
use netstack::CloseReason;
use os::{echo, reactor::Watched};
use packet::icmp::{Cause, Unreachable};
use tokio::{net, time};

use super::{Code, Failure, Probed, Record, RecordKind, TcpStream, Tunnel, stream::System};

/// As long as the node's own stack waits for a reply.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// The resolver of the network gives records as long.
const TTL: u32 = 5;

/// Opens a connection to `remote`, to which the interface's route leads.
pub(super) async fn connect(remote: SocketAddr) -> Result<TcpStream, CloseReason> {
    let stream = net::TcpStream::connect(remote).await.and_then(System::new);
    stream.map(TcpStream::from).map_err(|error| reason(&error))
}

fn reason(error: &io::Error) -> CloseReason {
    let refused = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset,
    ];
    if refused.contains(&error.kind()) {
        CloseReason::Refused
    } else if error.kind() == io::ErrorKind::TimedOut {
        CloseReason::TimedOut
    } else {
        CloseReason::Unreachable(unreachable(error))
    }
}

/// What a router must have said for the system to report `error` (net/ipv6/icmp.c,
/// `icmpv6_err_convert`).
fn unreachable(error: &io::Error) -> Unreachable {
    let causes = [
        (io::ErrorKind::NetworkUnreachable, Unreachable::Network),
        (io::ErrorKind::PermissionDenied, Unreachable::Prohibited),
        (io::ErrorKind::ConnectionRefused, Unreachable::Port),
    ];
    let known = causes.into_iter().find(|(kind, _)| *kind == error.kind());
    known.map_or(Unreachable::Host, |(_, cause)| cause)
}

/// Sends one echo request and waits for what comes back.
pub(super) async fn probe(
    clock: &Tunnel,
    remote: IpAddr,
    sequence: u16,
    size: u16,
    hop_limit: u8,
) -> Result<Option<Probed>, Failure> {
    let IpAddr::V6(address) = remote else {
        let message = format!("{remote}: the network has IPv6 addresses only");
        let remedy = "ping the node by its name";
        return Err(Failure::new(Code::NoRoute, message, remedy));
    };
    let unsent = |error: io::Error| {
        let remedy = "give the agent the right to send echo requests: CAP_NET_RAW, or sysctl \
                      net.ipv4.ping_group_range";
        Failure::new(Code::Unreachable, format!("{remote}: {error}"), remedy)
    };
    let socket = echo::Echo::connect(address.into()).and_then(Watched::new);
    let socket = socket.map_err(unsent)?;
    socket.get().set_hop_limit(hop_limit).map_err(unsent)?;
    let begin = clock.now();
    let sent = socket.get().send(sequence, usize::from(size));
    let reply = match sent {
        Ok(()) => socket.read(|socket| socket.recv(sequence)),
        Err(error) => return Err(unsent(error)),
    };
    let deadline = begin + ECHO_TIMEOUT;
    let Ok(reply) = time::timeout_at(deadline.into(), reply).await else {
        return Ok(None);
    };
    let round_trip = clock.now().saturating_duration_since(begin);
    let (from, cause) = match reply {
        Ok(None) => (remote, None),
        Ok(Some(report)) if report.kind == TIME_EXCEEDED => {
            (report.from, Some(Cause::TimeExceeded { code: report.code }))
        }
        Ok(Some(report)) => {
            let cause = Cause::Unreachable(unreachable(&report.error()));
            (report.from, Some(cause))
        }
        Err(error) => (remote, Some(Cause::Unreachable(unreachable(&error)))),
    };
    Ok(Some(Probed {
        from,
        round_trip,
        cause,
    }))
}

/// The type of the ICMPv6 message (RFC 4443, 3.3).
const TIME_EXCEEDED: u8 = 3;

/// Asks the node's own zone; `None` when there is no such name.
pub(super) fn records(tunnel: &Tunnel, name: &str, kinds: &[RecordKind]) -> Option<Vec<Record>> {
    let mut seed = [0; 8];
    os::random::fill(&mut seed);
    let parsed = Name::parse(name).ok()?;
    let mut exists = false;
    let mut records = Vec::new();
    for &kind in kinds {
        let asked = match kind {
            RecordKind::A => Kind::Other,
            RecordKind::Aaaa => Kind::Aaaa,
            RecordKind::Txt => Kind::Txt,
        };
        let question = Question {
            name: parsed.clone(),
            kind: asked,
        };
        let answer = tunnel.with(|node, _| node.answer(&question, u64::from_ne_bytes(seed)));
        let values: Vec<String> = match answer {
            Some(Answer::Addresses(addresses)) => {
                addresses.iter().map(ToString::to_string).collect()
            }
            Some(Answer::Text(strings)) => vec![strings.concat()],
            Some(Answer::Authority | Answer::NoData) => Vec::new(),
            Some(Answer::NoSuchName) | None => continue,
        };
        exists = true;
        records.extend(values.into_iter().map(|value| Record {
            name: name.trim_end_matches('.').to_owned(),
            kind,
            ttl: TTL,
            value,
        }));
    }
    exists.then_some(records)
}
