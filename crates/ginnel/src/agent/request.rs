//! What the agent does for each request.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use model::{status::SiteNode, whois::Whois};
use netstack::EchoFailure;
use packet::icmp::{Cause, Unreachable};
use tokio::{net::UnixStream, sync::mpsc, time};

use super::{
    capture,
    ending::broken_off,
    events, path,
    pipe::{self, Broken},
    protocol::{
        self, Answer, Capturing, Code, Envelope, Failure, PROTOCOL, Request, ShownPeer, Sought,
        Status,
    },
    relay,
    server::{Agent, Mode},
    trace, wire,
};

use crate::enrolled::NodeKey;

/// No request may ask to wait longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// How long a name may take in `Resolve`, `Ping` and `Trace`.
pub(super) const NAME_TIMEOUT: Duration = Duration::from_secs(15);

/// Echo requests do not follow each other faster.
pub(super) const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Serves one request; an error means that the command has gone away.
pub(super) async fn serve(
    agent: &Arc<Agent>,
    stream: &mut UnixStream,
    envelope: Envelope,
) -> io::Result<()> {
    if let Some(answer) = turn_away(agent, &envelope) {
        return wire::send(stream, &answer).await;
    }
    match envelope.request {
        Request::Hello => {
            let version = agent.version.clone();
            wire::send(
                stream,
                &Answer::Hello {
                    version,
                    pid: std::process::id(),
                },
            )
            .await
        }
        Request::Dial {
            host,
            port,
            timeout_ms,
        } => {
            let timeout = Duration::from_millis(timeout_ms).min(TIMEOUT_MAX);
            dial(agent, stream, &host, port, timeout).await
        }
        Request::Udp => {
            wire::send(stream, &Answer::Relaying).await?;
            relay::join(stream, &agent.tunnel).await
        }
        Request::Resolve { name, kinds } => {
            let deadline = agent.tunnel.now() + NAME_TIMEOUT;
            let records = agent.tunnel.resolve(&name, &kinds, deadline).await;
            let answer = records.map_or_else(Answer::Failed, Answer::Records);
            wire::send(stream, &answer).await
        }
        Request::Ping {
            host,
            count,
            interval_ms,
            size,
        } => {
            let interval = Duration::from_millis(interval_ms).max(INTERVAL_MIN);
            ping(agent, stream, &host, count, interval, size).await
        }
        Request::Trace(wanted) => trace::serve(agent, stream, wanted).await,
        Request::Capture(wanted) => capture::serve(agent, stream, wanted).await,
        Request::Peer { name } => {
            let answer = peer(agent, &name).await;
            let answer = answer.map_or_else(Answer::Failed, |told| Answer::Peer(Box::new(told)));
            wire::send(stream, &answer).await
        }
        Request::Whois(sought) => {
            let answer = Answer::Whois(whois(agent, sought));
            wire::send(stream, &answer).await
        }
        Request::Events => events::serve(agent, stream).await,
        Request::Ending { connection } => {
            let failure = agent.endings.take(connection);
            wire::send(stream, &Answer::Ended(failure)).await
        }
        Request::Status => {
            let status = Box::new(status(agent));
            wire::send(stream, &Answer::Status(status)).await
        }
        Request::Drain => {
            agent.leave(Mode::Draining);
            let connections = agent.connections().saturating_sub(1);
            wire::send(stream, &Answer::Draining { connections }).await
        }
    }
}

/// Says why nobody can be reached while others do not know this node.
fn hindrance(agent: &Agent, request: &Request) -> Option<Answer> {
    match request {
        Request::Dial { .. }
        | Request::Resolve { .. }
        | Request::Ping { .. }
        | Request::Trace(_) => {}
        Request::Hello
        | Request::Udp
        | Request::Capture(_)
        | Request::Peer { .. }
        | Request::Whois(_)
        | Request::Events
        | Request::Ending { .. }
        | Request::Status
        | Request::Drain => return None,
    }
    let hindrance = |node: &node::Node| node.map()?.own.hindrance();
    let (message, remedy) = agent.tunnel.with(|node, _| hindrance(node))?;
    let failure = Failure::new(Code::Prohibited, message, remedy);
    Some(Answer::Failed(failure))
}

/// Decides whether the agent is the right one for the request.
///
/// To a newer program an idle agent gives way at once. A busy one goes on serving, this program
/// too, and gives way when it is idle: a second process with the same key would steal the session
/// of its open connections.
fn turn_away(agent: &Agent, envelope: &Envelope) -> Option<Answer> {
    match envelope.request {
        Request::Hello | Request::Ending { .. } | Request::Status | Request::Drain => return None,
        Request::Dial { .. }
        | Request::Udp
        | Request::Resolve { .. }
        | Request::Ping { .. }
        | Request::Trace(_)
        | Request::Capture(_)
        | Request::Peer { .. }
        | Request::Whois(_)
        | Request::Events => {}
    }
    let edited = envelope.fingerprint != agent.fingerprint;
    let newer = envelope.protocol > PROTOCOL || is_newer(&envelope.version, &agent.version);
    if agent.mode() == Mode::Draining {
        return Some(Answer::Failed(Failure::new(
            Code::Draining,
            "the agent ends with its open connections and takes no new ones",
            "end those connections, or wait for them",
        )));
    }
    if !edited && !newer {
        return hindrance(agent, &envelope.request);
    }
    agent.leave(Mode::Retiring);
    let others = agent.connections().saturating_sub(1);
    if others == 0 {
        return Some(Answer::Retired);
    }
    if edited {
        return Some(Answer::Failed(Failure::new(
            Code::ConfigurationChanged,
            format!(
                "{} was edited, and {others} connections still use the older text",
                agent.profile
            ),
            "end those connections, then try again",
        )));
    }
    if envelope.protocol > PROTOCOL {
        return Some(Answer::Failed(Failure::new(
            Code::Draining,
            format!(
                "an agent of version {} still has {others} connections",
                agent.version
            ),
            "end those connections, then try again",
        )));
    }
    None
}

fn is_newer(theirs: &str, ours: &str) -> bool {
    let numbers = |version: &str| {
        let core = version.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = core
            .split('.')
            .map(|number| number.parse::<u32>().unwrap_or(0));
        [(); 3].map(|()| numbers.next().unwrap_or(0))
    };
    numbers(theirs) > numbers(ours)
}

async fn dial(
    agent: &Agent,
    stream: &mut UnixStream,
    host: &str,
    port: u16,
    timeout: Duration,
) -> io::Result<()> {
    let connected = {
        let (client, _) = stream.split();
        tokio::select! {
            connected = agent.tunnel.dial(host, port, timeout) => connected,
            // Ctrl-C ends the attempt too.
            () = pipe::gone(&client) => return Ok(()),
        }
    };
    match connected {
        Ok(remote) => {
            let connection = agent.endings.begin();
            let answer = Answer::Connected {
                local: remote.local(),
                remote: remote.remote(),
                connection: Some(connection),
            };
            wire::send(stream, &answer).await?;
            match pipe::join(stream, &remote).await {
                Ok(()) => Ok(()),
                Err(Broken::Remote(error)) => {
                    let failure = broken_off(host, port, &error);
                    agent.endings.keep(connection, failure);
                    Ok(())
                }
                Err(Broken::Command(error)) => {
                    // What it was sent is lost, and the other side shall know.
                    remote.abort();
                    Err(error)
                }
            }
        }
        Err(failure) => wire::send(stream, &Answer::Failed(failure)).await,
    }
}

async fn ping(
    agent: &Arc<Agent>,
    stream: &mut UnixStream,
    host: &str,
    count: Option<u16>,
    interval: Duration,
    size: u16,
) -> io::Result<()> {
    let deadline = agent.tunnel.now() + NAME_TIMEOUT;
    let reached = async {
        let addresses = agent.tunnel.addresses(host, deadline).await?;
        let address = *addresses.first().expect("never empty");
        agent.tunnel.reach(address, deadline).await?;
        Ok(address)
    };
    let address = match reached.await {
        Ok(address) => address,
        Err(failure) => return wire::send(stream, &Answer::Failed(failure)).await,
    };
    wire::send(stream, &Answer::Pinging(address)).await?;
    // Echo requests are outstanding for the stack's time-out at most, so 10 s / 10 ms of them.
    let (results, mut answers) = mpsc::channel(1_024);
    let sender = async move {
        let mut ticks = time::interval(interval);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut sequence = 0_u16;
        while count.is_none_or(|count| sequence < count) {
            ticks.tick().await;
            sequence = sequence.wrapping_add(1);
            let (tunnel, results) = (agent.tunnel.clone(), results.clone());
            tokio::spawn(async move {
                let echo = tunnel.ping(address, sequence, size).await;
                drop(results.send((sequence, echo)).await);
            });
        }
    };
    let receiver = async {
        while let Some((sequence, echo)) = answers.recv().await {
            let answer = match echo {
                Ok(Ok(round_trip)) => Answer::Echo {
                    sequence,
                    round_trip_us: u64::try_from(round_trip.as_micros()).ok(),
                    error: None,
                    prohibited: false,
                },
                Ok(Err(EchoFailure::TimedOut)) => Answer::Echo {
                    sequence,
                    round_trip_us: None,
                    error: None,
                    prohibited: false,
                },
                Ok(Err(EchoFailure::Icmp(cause))) => {
                    let error = Some(format!("{cause:?}"));
                    let prohibited = cause == Cause::Unreachable(Unreachable::Prohibited);
                    Answer::Echo {
                        sequence,
                        round_trip_us: None,
                        error,
                        prohibited,
                    }
                }
                Err(failure) => return wire::send(stream, &Answer::Failed(failure)).await,
            };
            wire::send(stream, &answer).await?;
        }
        wire::send(stream, &Answer::Done).await
    };
    // The receiver ends with the last sender.
    let sender = async {
        sender.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = receiver => ended,
        () = sender => Ok(()),
    }
}

/// Finds a peer by its own name or key, or by what is reached through it.
async fn peer(agent: &Agent, name: &str) -> Result<ShownPeer, Failure> {
    let named = agent.tunnel.with(|node, _| node.peer_named(name));
    let (key, host) = match named {
        Some(key) => (key, None),
        None => {
            let deadline = agent.tunnel.now() + NAME_TIMEOUT;
            let addresses = agent.tunnel.addresses(name, deadline).await?;
            let through = |address| {
                let peer = agent.tunnel.with(|node, now| node.path(now, address));
                peer.map(|peer| (peer.public_key, Some(address)))
            };
            let peer = addresses.into_iter().find_map(through);
            peer.ok_or_else(|| {
                let message = format!("no peer leads to {name}");
                Failure::new(Code::NoRoute, message, "see `ginnel status` for the peers")
            })?
        }
    };
    // First, so that the sums below include it.
    let path = path::measure(&agent.tunnel, &key, host).await;
    let details = agent.tunnel.with(|node, now| node.peer_details(now, &key));
    let details = details.ok_or_else(|| {
        let message = format!("the peer of {name} was removed just now");
        Failure::new(Code::NoRoute, message, "see `ginnel status` for the peers")
    })?;
    Ok(ShownPeer {
        details,
        transport: protocol::udp(),
        path,
    })
}

/// Finds out whose an address, or the other end of a connection, is by the map that the node has.
///
/// A connection that this node leads is of whom it comes from and of nobody else, also when the
/// program sees an address of the network at its other end: that is then this node's own.
fn whois(agent: &Agent, sought: Sought) -> Option<Whois> {
    let address = match sought {
        Sought::Address(address) => address,
        Sought::Connection { client, server } => {
            let led = agent.led.source(client, server);
            led.unwrap_or_else(|| client.ip())
        }
    };
    let IpAddr::V6(address) = address else {
        return None;
    };
    agent.tunnel.with(|node, _| node.map()?.whois(address))
}

/// Tells what goes on.
pub(super) fn status(agent: &Agent) -> Status {
    let ((node, tcp, capture), now) = agent.tunnel.with(|node, now| {
        let capture = node.capture().map(|capture| Capturing {
            keys: capture.has_keys(),
            by: None,
            filter: None,
        });
        ((node.status(now), node.connections(), capture), now)
    });
    let asked = agent.asked.running();
    let capture = capture.map(|capture| match asked {
        Some(asked) => Capturing {
            by: Some(asked.by),
            filter: asked.wanted.filter,
            ..capture
        },
        None => capture,
    });
    let control = agent.control.as_ref();
    Status {
        version: agent.version.clone(),
        pid: std::process::id(),
        profile: agent.profile.clone(),
        interface: agent.tunnel.interface().map(str::to_owned),
        offload: Some(agent.tunnel.offload()),
        uptime_seconds: now.saturating_duration_since(agent.started).as_secs(),
        draining: agent.mode() != Mode::Serving,
        connections: agent.connections().saturating_sub(1),
        capture,
        key_exposed: agent.key.as_ref().is_some_and(NodeKey::is_exposed),
        control: control.map(|(url, contact)| contact.status(now, url)),
        tcp: Some(tcp),
        sites: sites(agent),
        site_conflicts: agent.tunnel.site_conflicts(),
        node,
    }
}

/// Tells how it stands with the sites behind the node, and with the other nodes of these.
fn sites(agent: &Agent) -> Vec<model::status::Site> {
    let mut sites = agent.sites.status();
    agent.tunnel.with(|node, now| {
        let Some(map) = node.map() else {
            return;
        };
        for (id, org) in &map.orgs {
            for told in &mut sites {
                let site = org.sites.iter().find(|(_, site)| site.name == told.name);
                let nodes = site.map(|(site, _)| node.site_nodes(now, *id, *site));
                let nodes = nodes.unwrap_or_default().into_iter();
                told.nodes.extend(nodes.filter_map(|one| {
                    let name = org.nodes.get(&one.node)?.name.clone();
                    let (carries, health) = (one.carries, one.health);
                    Some(SiteNode {
                        name,
                        carries,
                        health,
                    })
                }));
            }
        }
    });
    sites
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_newer("0.10.0", "0.9.9"));
        assert!(is_newer("1.0", "0.9.9"));
        assert!(!is_newer("0.1.0", "0.1.0"));
        assert!(!is_newer("0.1.0-rc1", "0.1.0"));
        assert!(!is_newer("garbage", "0.0.0"));
    }
}
