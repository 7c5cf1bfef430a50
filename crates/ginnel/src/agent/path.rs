//! How the way to a peer is, by echo requests through its tunnel.

use std::{net::IpAddr, time::Duration};

use model::key::PublicKey;
use tokio::{task::JoinSet, time};
use tunnel::Tunnel;

use super::protocol::{Path, RoundTrips};

/// Requests of the size that ping(8) has.
const COUNT: u16 = 5;
const SIZE: u16 = 56;

/// They do not leave all at once.
const INTERVAL: Duration = Duration::from_millis(20);

/// A longer way carries nobody's interactive work.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The smallest MTU that IPv6 allows (RFC 8200, 5), for paths of which nothing was found.
const FULL: u16 = 1_280;

/// Headers of IPv6 and of ICMPv6, of which IPv4 has fewer.
const HEADERS: u16 = 48;

/// Asks the gateway behind a peer, or `host` where there is none; `None` without a session, or when
/// nobody is known there.
pub(super) async fn measure(
    tunnel: &Tunnel,
    peer: &PublicKey,
    host: Option<IpAddr>,
) -> Option<Path> {
    let target = target(tunnel, peer, host)?;
    let mut asked = JoinSet::new();
    for sequence in 1..=COUNT {
        let tunnel = tunnel.clone();
        asked.spawn(async move {
            time::sleep(INTERVAL * u32::from(sequence)).await;
            round_trip(&tunnel, target, sequence, SIZE).await
        });
    }
    let mut times = Vec::new();
    while let Some(answer) = asked.join_next().await {
        times.extend(answer.ok().flatten());
    }
    let found = tunnel.with(|node, now| node.peer_status(now, peer)?.path_mtu_bytes);
    let size = found.unwrap_or_default().max(FULL);
    let full = match times.is_empty() {
        true => None,
        false => round_trip(tunnel, target, COUNT + 1, size - HEADERS).await,
    };
    let count = u64::try_from(times.len()).unwrap_or(u64::MAX);
    let sum: u64 = times.iter().sum();
    let least_and_most = times.iter().min().zip(times.iter().max());
    Some(Path {
        target,
        sent: u64::from(COUNT),
        answered: count,
        round_trip_us: least_and_most.map(|(min, max)| RoundTrips {
            min: *min,
            avg: sum / count.max(1),
            max: *max,
        }),
        carries_bytes: full.map(|_| size),
    })
}

/// Chooses whom to ask: only who is reached through the peer says something about it.
fn target(tunnel: &Tunnel, peer: &PublicKey, host: Option<IpAddr>) -> Option<IpAddr> {
    tunnel.with(|node, now| {
        let org = node.map().and_then(|map| map.own_org());
        let gateway = org.map(|org| IpAddr::V6(org.prefix.resolver()));
        let target = gateway.or(host)?;
        let through = node.path(now, target)?;
        let stands = through.tunnel == model::status::Tunnel::Up;
        (stands && through.public_key == *peer).then_some(target)
    })
}

/// Returns after how many microseconds an answer came.
async fn round_trip(tunnel: &Tunnel, target: IpAddr, sequence: u16, size: u16) -> Option<u64> {
    let asked = tunnel.probe(target, sequence, size, HOP_LIMIT);
    let probed = time::timeout(TIMEOUT, asked).await.ok()?.ok()??;
    let micros = u64::try_from(probed.round_trip.as_micros());
    probed.cause.is_none().then(|| micros.unwrap_or(u64::MAX))
}

/// What the system sends with (ip(7)).
const HOP_LIMIT: u8 = 64;
