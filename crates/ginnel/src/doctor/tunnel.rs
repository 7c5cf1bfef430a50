//! The tunnel to the gateway: routes into it, datagrams, session, both directions, size, names.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use model::{
    map::NetworkMap,
    name::Label,
    status::{Peer, Tunnel},
};
use tokio::time;

use super::{
    Seen,
    agent::{Agent, Echoed},
    finding::{Cause, Finding},
};
use crate::agent::protocol::Code;

/// The name that every gateway answers.
const HEALTH: &str = "_health.internal";

/// Every tunnel has to carry IPv6 packets of so many bytes (RFC 8200, 5).
const FULL_SIZE: u16 = 1280;

/// Of an echo request over IPv6 (RFC 8200, 3; RFC 4443, 4.1).
const HEADERS: u16 = 40 + 8;

/// Data of an echo request that passes everywhere.
pub(super) const SMALL_SIZE: u16 = 32;

/// How long a host may take to say that nobody listens at a UDP port.
const PORT_UNREACHABLE_TIMEOUT: Duration = Duration::from_millis(500);

/// A device that hears nothing for 15 s begins a handshake, and repeats it after 5 s (whitepaper
/// 6.4, 6.5); within this it is known whether that was answered.
const LOOKS_MAX: usize = 44;
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Waits for a session with the gateway; returns the gateway's address inside the network.
pub(super) async fn reach(agent: &Agent, map: &NetworkMap) -> Seen<IpAddr> {
    let Some((org, Some(_))) = map.own_org().map(|org| (org, &org.gateway)) else {
        return Err(Finding::new(
            Cause::NoGateway,
            "map: the organisation has no gateway",
            "start one with `ginnel gateway`, or ask the operator to",
        ));
    };
    let address = IpAddr::V6(org.prefix.resolver());
    let failed = match agent.ping(address, SMALL_SIZE).await? {
        Echoed::Failed(failure) => Some(failure),
        // Whether an answer comes is the question of a later step.
        Echoed::Reply(_) | Echoed::Prohibited | Echoed::Unreachable | Echoed::Nothing => None,
    };
    let peer = gateway(agent).await?;
    let endpoint = peer.as_ref().and_then(|peer| peer.endpoint);
    match (failed, endpoint) {
        (Some(failure), Some(endpoint)) if failure.code == Code::HandshakeUnanswered => {
            return Err(unanswered(endpoint));
        }
        (Some(failure), _) => return Err(failure.into()),
        (None, _) => {}
    }
    let name = peer.as_ref().and_then(|peer| peer.name.as_ref());
    let name = name.map_or("the gateway", Label::as_str);
    let endpoint = endpoint.map(|endpoint| format!(" at {endpoint}"));
    let detail = format!("{name}{} answers", endpoint.unwrap_or_default());
    Ok((address, detail))
}

/// Tells how old the session is.
pub(super) async fn handshake(agent: &Agent) -> Seen<()> {
    let peer = gateway(agent).await?;
    let age = peer.and_then(|peer| peer.last_handshake_seconds);
    let detail = age.map_or_else(String::new, |age| format!("{age} s ago"));
    Ok(((), detail))
}

/// Asks the gateway for an echo.
pub(super) async fn echo(agent: &Agent, gateway: IpAddr) -> Seen<()> {
    match agent.ping(gateway, SMALL_SIZE).await? {
        Echoed::Reply(time) => Ok(((), format!("the gateway answers in {time:.1?}"))),
        Echoed::Failed(failure) => Err(failure.into()),
        Echoed::Prohibited | Echoed::Unreachable | Echoed::Nothing => Err(no_echo(agent).await?),
    }
}

/// Asks the gateway for an echo of the size that was found, and of the least that has to pass if
/// that does not: the path may just have become smaller.
pub(super) async fn full_size(agent: &Agent, address: IpAddr) -> Seen<()> {
    let peer = gateway(agent).await?;
    let found = peer.and_then(|peer| peer.path_mtu_bytes);
    if let Some(size) = found.filter(|found| *found > FULL_SIZE)
        && let Echoed::Reply(_) = agent.ping(address, size - HEADERS).await?
    {
        return Ok(((), format!("packets of {size} bytes pass")));
    }
    match agent.ping(address, FULL_SIZE - HEADERS).await? {
        Echoed::Reply(_) => Ok(((), format!("packets of {FULL_SIZE} bytes pass"))),
        Echoed::Failed(failure) => Err(failure.into()),
        Echoed::Prohibited | Echoed::Unreachable | Echoed::Nothing => Err(Finding::new(
            Cause::MtuBlackHole,
            "MTU: small packets pass through the tunnel, packets of 1280 bytes do not",
            "the path to the gateway has to carry IP packets of 1360 bytes: raise the MTU of the \
             link in between, such as of a PPP or another tunnel",
        )),
    }
}

/// Asks the resolver of the network; with an interface also as programs of this machine do, which
/// may have been told to ask it.
pub(super) async fn names(agent: &Agent, gateway: IpAddr) -> Seen<()> {
    agent.resolve(HEALTH).await?;
    if let (Some(_), IpAddr::V6(resolver)) = (agent.status().await?.interface, gateway) {
        let asked = tunnel::ask_as_machine(resolver, HEALTH).await;
        asked.map_err(|instead| {
            Finding::new(
                Cause::DnsCaptured,
                format!(
                    "names: what programs of this machine ask the resolver {resolver} of the \
                     network does not reach it: {instead}"
                ),
                format!(
                    "let what else handles DNS here, such as a rule that redirects port 53, a \
                     filter or another VPN, leave out {resolver}; commands of ginnel find names \
                     without"
                ),
            )
        })?;
    }
    Ok(((), "the resolver answers".to_owned()))
}

/// Looks whether something else on this machine takes packets for the network.
pub(super) async fn routes(agent: &Agent, map: &NetworkMap) -> Seen<()> {
    let status = agent.status().await?;
    let (Some(interface), Some(org)) = (&status.interface, map.own_org()) else {
        return Ok(((), "user mode needs none".to_owned()));
    };
    let free = tunnel::routes_are_free(interface, org.prefix).await;
    free.map_err(|error| Finding::of_error(Cause::RouteConflict, &error))?;
    Ok(((), format!("{} leads to {interface} alone", org.prefix)))
}

/// Looks closer at a handshake that was not answered: whether its peer listens at all.
pub(super) async fn explained(agent: &Agent, finding: Finding) -> Finding {
    if finding.code != Cause::UdpUnanswered {
        return finding;
    }
    let Ok(status) = agent.status().await else {
        return finding;
    };
    let mut peers = status.node.peers.iter();
    let peer = peers.find(|peer| peer.tunnel == Tunnel::Unanswered);
    let endpoint = peer.and_then(|peer| peer.endpoint);
    endpoint.and_then(closed).unwrap_or(finding)
}

/// Says why initiations to the gateway get no answer.
fn unanswered(endpoint: SocketAddr) -> Finding {
    if let Some(finding) = closed(endpoint) {
        return finding;
    }
    Finding::new(
        Cause::UdpUnanswered,
        format!("UDP: {endpoint} answers no handshake initiation"),
        "let UDP to it pass every firewall on the way; if it does, the gateway has another key \
         than the map says, or does not know this node: see its log",
    )
}

/// Says that nobody listens at `endpoint`, if its machine says so.
fn closed(endpoint: SocketAddr) -> Option<Finding> {
    nobody_listens(endpoint).then(|| {
        Finding::new(
            Cause::GatewayDown,
            format!("UDP: nobody listens at {endpoint}"),
            "start what should: the gateway, the server whose gateway it is, or another WireGuard",
        )
    })
}

/// Tells whether the machine behind `endpoint` says that its port is closed (RFC 1122, 4.1.3.1).
fn nobody_listens(endpoint: SocketAddr) -> bool {
    let probe = || -> io::Result<()> {
        let any: SocketAddr = if endpoint.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0; 16], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PORT_UNREACHABLE_TIMEOUT))?;
        socket.connect(endpoint)?;
        // No message of WireGuard is that short, so nobody answers it.
        socket.send(&[0])?;
        socket.recv(&mut [0]).map(drop)
    };
    probe().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Finds out why the gateway sends nothing back: whether it answers the next handshake tells.
async fn no_echo(agent: &Agent) -> Result<Finding, Finding> {
    for _ in 0..LOOKS_MAX {
        time::sleep(LOOK_AGAIN).await;
        let Some(peer) = gateway(agent).await? else {
            break;
        };
        if let (Tunnel::Unanswered, Some(endpoint)) = (peer.tunnel, peer.endpoint) {
            return Ok(unanswered(endpoint));
        }
    }
    Ok(Finding::new(
        Cause::OneWay,
        "tunnel: the gateway answers handshakes, and nothing comes back through the tunnel",
        "see that no other process or machine uses this node's key, and that no firewall drops \
         all but the first datagrams of a UDP flow",
    ))
}

/// Shows the gateway as a WireGuard peer; a client has no other.
async fn gateway(agent: &Agent) -> Result<Option<Peer>, Finding> {
    let status = agent.status().await?;
    Ok(status.node.peers.into_iter().next())
}
