//! The way to a host, hop by hop: echo requests with growing hop limits, then its port.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use packet::icmp::{Cause, Unreachable};
use tokio::{net::UnixStream, task::JoinSet, time};
use tunnel::{Probed, Tunnel};

use super::{
    protocol::{Answer, Code, Failure, Outcome, Probe, Trace, Traced, Way},
    request::{INTERVAL_MIN, NAME_TIMEOUT},
    server::Agent,
    wire,
};

/// Routers that are looked for: a gateway, a node, and some in the LAN of a site behind it.
const HOPS_MAX: u8 = 8;

/// How long an answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The same for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Data of an echo request, as ping(8) sends it.
const SIZE: u16 = 56;

/// Asks every hop as often as is wanted, or until the command goes away.
pub(super) async fn serve(
    agent: &Arc<Agent>,
    stream: &mut UnixStream,
    wanted: Trace,
) -> io::Result<()> {
    let way = match way(&agent.tunnel, &wanted.host).await {
        Ok(way) => way,
        Err(failure) => return wire::send(stream, &Answer::Failed(failure)).await,
    };
    let address = way.address;
    wire::send(stream, &Answer::Tracing(way)).await?;
    let interval = Duration::from_millis(wanted.interval_ms).max(INTERVAL_MIN);
    let mut ticks = time::interval(interval);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut last = HOPS_MAX;
    for sequence in 1..=wanted.count {
        ticks.tick().await;
        let probes = match round(&agent.tunnel, address, sequence, last).await {
            Ok(probes) => probes,
            Err(failure) => return wire::send(stream, &Answer::Failed(failure)).await,
        };
        let end = probes.iter().find(|probe| probe.outcome.is_end());
        last = end.map_or(last, |end| end.hop);
        let known = probes.into_iter().take_while(|probe| probe.hop <= last);
        for probe in known {
            wire::send(stream, &Answer::Traced(Traced::Hop(probe))).await?;
        }
        if let Some(port) = wanted.port {
            let remote = SocketAddr::new(address, port);
            let probe = connect(&agent.tunnel, remote, sequence).await;
            wire::send(stream, &Answer::Traced(Traced::Port(probe))).await?;
        }
    }
    wire::send(stream, &Answer::Done).await
}

/// Finds out whom the name means and through which peer its packets go, and waits for a session.
async fn way(tunnel: &Tunnel, host: &str) -> Result<Way, Failure> {
    let deadline = tunnel.now() + NAME_TIMEOUT;
    let addresses = tunnel.addresses(host, deadline).await?;
    let address = *addresses.first().expect("never empty");
    tunnel.reach(address, deadline).await?;
    let (peer, gateway) = tunnel.with(|node, now| {
        let org = node.map().and_then(|map| map.own_org());
        let gateway = org.map(|org| IpAddr::V6(org.prefix.resolver()));
        (node.path(now, address), gateway)
    });
    Ok(Way {
        address,
        gateway,
        peer: peer.as_ref().and_then(|peer| peer.name.clone()),
        endpoint: peer.and_then(|peer| peer.endpoint),
    })
}

/// Asks the hops up to `last` at once; returns their answers in order.
async fn round(
    tunnel: &Tunnel,
    address: IpAddr,
    sequence: u16,
    last: u8,
) -> Result<Vec<Probe>, Failure> {
    let mut asked = JoinSet::new();
    for hop in 1..=last {
        let tunnel = tunnel.clone();
        asked.spawn(async move {
            let probed = tunnel.probe(address, sequence, SIZE, hop);
            let probed = time::timeout(PROBE_TIMEOUT, probed).await;
            let probed = probed.unwrap_or(Ok(None))?;
            Ok(probe(hop, sequence, probed))
        });
    }
    let mut probes = Vec::new();
    while let Some(joined) = asked.join_next().await {
        // A task that panicked is a bug, and tells it by itself.
        if let Ok(probe) = joined {
            probes.push(probe?);
        }
    }
    probes.sort_by_key(|probe| probe.hop);
    Ok(probes)
}

fn probe(hop: u8, sequence: u16, probed: Option<Probed>) -> Probe {
    let outcome = match probed.map(|probed| probed.cause) {
        None => Outcome::Silent,
        Some(None) => Outcome::Reply,
        Some(Some(Cause::TimeExceeded { .. })) => Outcome::TimeExceeded,
        Some(Some(Cause::Unreachable(Unreachable::Prohibited))) => Outcome::Prohibited,
        Some(Some(
            Cause::Unreachable(
                Unreachable::Network
                | Unreachable::Host
                | Unreachable::Port
                | Unreachable::Other(_),
            )
            | Cause::PacketTooBig { .. }
            | Cause::ParameterProblem { .. },
        )) => Outcome::Unreachable,
    };
    Probe {
        hop,
        sequence,
        from: probed.map(|probed| probed.from),
        round_trip_us: probed.map(|probed| microseconds(probed.round_trip)),
        outcome,
    }
}

/// Opens a connection and ends it.
async fn connect(tunnel: &Tunnel, remote: SocketAddr, sequence: u16) -> Probe {
    let begin = tunnel.now();
    let connected = tunnel.connect(remote, CONNECT_TIMEOUT).await;
    let round_trip = tunnel.now().saturating_duration_since(begin);
    let outcome = match connected.map_err(|failure| failure.code) {
        Ok(_) => Outcome::Reply,
        Err(Code::ConnectionRefused) => Outcome::Refused,
        Err(Code::Prohibited) => Outcome::Prohibited,
        Err(Code::Unreachable | Code::NoRoute) => Outcome::Unreachable,
        Err(
            Code::NameUnknown
            | Code::ResolverSilent
            | Code::NameRefused
            | Code::EndpointUnknown
            | Code::HandshakeUnanswered
            | Code::ConnectionReset
            | Code::RemoteSilent
            | Code::TooMany
            | Code::Draining
            | Code::ConfigurationChanged
            | Code::KeyNotReplaced
            | Code::Misunderstood,
        ) => Outcome::Silent,
    };
    let heard = outcome != Outcome::Silent;
    Probe {
        hop: 0,
        sequence,
        from: heard.then_some(remote.ip()),
        round_trip_us: heard.then(|| microseconds(round_trip)),
        outcome,
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
