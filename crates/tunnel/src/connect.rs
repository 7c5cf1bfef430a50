//! From a remote address to an open connection: route, session, SYN, each with its own error.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use model::status::{self, Peer};
use netstack::{CloseReason, ConnectError};
use packet::icmp::Unreachable;
use tokio::time;

use super::{Code, Failure, TcpStream, Tunnel, at, stream::stack, system};

/// How long a peer may take to answer a handshake before a request fails.
///
/// Two initiations fit: the second follows the first after `REKEY_TIMEOUT` and jitter
/// (whitepaper 6.1).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A SYN that is unanswered for so long, while nothing at all comes from the peer, calls for a new
/// handshake: the peer may have lost the session in a restart, of which the protocol itself hears
/// after 15 s (whitepaper 6.5). As long as TCP waits before it sends a SYN again (RFC 6298, 2.1);
/// the device sends an initiation every `REKEY_TIMEOUT` at most, however often it is asked.
const DOUBT: Duration = Duration::from_secs(1);

/// An initiation that is unanswered for so long calls for a look where the endpoint is now.
const LOOKUP: Duration = Duration::from_millis(2_500);

/// Addresses of a name that are tried; each but the last gets this long.
const ADDRESSES_MAX: usize = 4;
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);

impl Tunnel {
    /// Opens a TCP connection to the first address of `host`, a name or an address, that takes it.
    pub async fn dial(
        &self,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> Result<TcpStream, Failure> {
        let deadline = self.now() + timeout;
        let mut addresses = self.addresses(host, deadline).await?;
        addresses.truncate(ADDRESSES_MAX);
        let last = addresses.pop();
        let mut failure = None;
        for address in addresses {
            let left = deadline.saturating_duration_since(self.now());
            let attempt = self.connect(SocketAddr::new(address, port), left.min(ADDRESS_TIMEOUT));
            match attempt.await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = Some(error),
            }
        }
        let left = deadline.saturating_duration_since(self.now());
        match (last, failure) {
            (Some(_), Some(failure)) if left.is_zero() => Err(failure),
            (Some(address), failure) => {
                let connected = self.connect(SocketAddr::new(address, port), left).await;
                // What the first address says is worth more than that the second family has no
                // route.
                connected.map_err(|last| match (last.code, failure) {
                    (Code::NoRoute, Some(failure)) => failure,
                    _ => last,
                })
            }
            (None, _) => Err(Failure::new(
                Code::NameUnknown,
                format!("`{host}` has no address"),
                "ask with `ginnel resolve` what it has",
            )),
        }
    }

    /// Opens a TCP connection within `timeout`.
    pub async fn connect(
        &self,
        remote: SocketAddr,
        timeout: Duration,
    ) -> Result<TcpStream, Failure> {
        let deadline = self.now() + timeout;
        self.reach(remote.ip(), deadline).await?;
        let received = self.received_from(remote.ip());
        let opening = self.open(remote)?;
        tokio::pin!(opening);
        loop {
            let made = self.shared.session.notified();
            tokio::pin!(made);
            made.as_mut().enable();
            let doubt = deadline.min(self.now() + DOUBT);
            tokio::select! {
                opened = &mut opening => {
                    return opened.map_err(|reason| self.closed(remote, reason));
                }
                // What went into the old session is lost, and TCP would wait long to send again.
                () = made => opening.set(self.open(remote)?),
                () = time::sleep_until(doubt.into()) => {
                    let silent_peer = self.received_from(remote.ip()) == received;
                    if self.now() < deadline && silent_peer {
                        self.doubt(remote.ip(), received);
                    } else if silent_peer {
                        return Err(self.peer_silent(remote, timeout));
                    } else if self.now() >= deadline {
                        return Err(silent(remote, timeout));
                    }
                }
            }
        }
    }

    /// Begins to open a connection: the node's own stack, or the system through the interface.
    fn open(
        &self,
        remote: SocketAddr,
    ) -> Result<impl Future<Output = Result<TcpStream, CloseReason>> + use<'_>, Failure> {
        let mut stack = None;
        if self.interface().is_none() {
            let mut turn = self.turn();
            let now = turn.now;
            let id = turn.stack().connect(now, remote);
            drop(turn);
            let id = id.map_err(|error| refused_at_once(remote, error))?;
            stack = Some(stack::TcpStream::new(self, id));
        }
        Ok(async move {
            let Some(stream) = stack else {
                return system::connect(remote).await;
            };
            poll_fn(|context| stream.poll_established(context)).await?;
            Ok(TcpStream::from(stream))
        })
    }

    /// Waits until the peer that `address` is routed to has a session.
    pub async fn reach(&self, address: IpAddr, deadline: Instant) -> Result<(), Failure> {
        let begin = self.now();
        let deadline = deadline.min(begin + HANDSHAKE_TIMEOUT);
        loop {
            let made = self.shared.session.notified();
            tokio::pin!(made);
            // From here on no session is missed.
            made.as_mut().enable();
            let Some(peer) = self.peer(address) else {
                return Err(self.no_route(address));
            };
            match peer.tunnel {
                status::Tunnel::Up => return Ok(()),
                status::Tunnel::NoEndpoint => return Err(no_endpoint(address)),
                status::Tunnel::Idle | status::Tunnel::Unanswered | status::Tunnel::Unresolved => {
                    self.with(|node, now| node.initiate(now, &peer.public_key));
                }
            }
            // The endpoint is looked up again while the second initiation still has time.
            let doubt = deadline.min(begin + LOOKUP);
            if time::timeout_at(doubt.into(), made.as_mut()).await.is_ok() {
                continue;
            }
            self.shared.doubt.notify_one();
            if time::timeout_at(deadline.into(), made).await.is_err() {
                return Err(self.unanswered(address, deadline - begin));
            }
        }
    }

    /// Shows the peer that `address` is routed to.
    fn peer(&self, address: IpAddr) -> Option<Peer> {
        self.with(|node, now| node.path(now, address))
    }

    fn closed(&self, remote: SocketAddr, reason: CloseReason) -> Failure {
        let mut failure = closed(remote, reason);
        if failure.code == Code::Unreachable && self.is_enrolled() {
            "that node is offline or was removed: see `ginnel node list`"
                .clone_into(&mut failure.remedy);
        }
        failure
    }

    fn is_enrolled(&self) -> bool {
        self.with(|node, _| node.map().is_some())
    }

    fn no_route(&self, address: IpAddr) -> Failure {
        if self.is_enrolled() {
            return Failure::new(
                Code::NoRoute,
                format!("{address} is not an address of this network"),
                "see `ginnel resolve NAME` for the address of a node",
            );
        }
        no_route_of_config(address)
    }

    /// Begins a new handshake if nothing at all came from the peer of `address` since `received`:
    /// it may have lost the session in a restart, or have moved.
    pub(super) fn doubt(&self, address: IpAddr, received: u64) {
        if self.received_from(address) != received {
            return;
        }
        if let Some(peer) = self.peer(address) {
            self.with(|node, now| node.initiate(now, &peer.public_key));
        }
        self.shared.doubt.notify_one();
    }

    /// Returns how many bytes have come from the peer of `address`.
    pub(super) fn received_from(&self, address: IpAddr) -> u64 {
        self.peer(address)
            .map_or(0, |peer| peer.traffic.received_bytes)
    }

    fn unanswered(&self, address: IpAddr, waited: Duration) -> Failure {
        let Some(peer) = self.peer(address) else {
            return self.no_route(address);
        };
        let Some(endpoint) = peer.endpoint else {
            return Failure::new(
                Code::EndpointUnknown,
                format!(
                    "the name in Endpoint of peer {} has no address",
                    peer.public_key
                ),
                "see whether this machine is online and the name is right",
            );
        };
        if self.is_enrolled() {
            return gateway_silent(endpoint, waited);
        }
        let own = self.with(|node, now| node.status(now).public_key);
        let own = own.map_or_else(|| "of this device".to_owned(), |own| own.to_string());
        Failure::new(
            Code::HandshakeUnanswered,
            format!(
                "no answer from {endpoint} within {} s: either UDP is blocked on the way or \
                 nobody listens there, or the keys do not match",
                waited.as_secs_f32().ceil()
            ),
            format!(
                "let UDP to {endpoint} through the firewalls; and compare with `wg show` over \
                 there: its public key must be {}, and it must have a peer {own}",
                peer.public_key
            ),
        )
    }

    fn peer_silent(&self, remote: SocketAddr, waited: Duration) -> Failure {
        let endpoint = self.peer(remote.ip()).and_then(|peer| peer.endpoint);
        if let (Some(endpoint), true) = (endpoint, self.is_enrolled()) {
            return gateway_silent(endpoint, waited);
        }
        let endpoint = endpoint.map_or_else(|| "the peer".to_owned(), |e| e.to_string());
        Failure::new(
            Code::RemoteSilent,
            format!(
                "no answer from {} within {} s, and {endpoint} has sent nothing at all since",
                at(remote),
                waited.as_secs_f32().ceil()
            ),
            "see whether the other side of the tunnel still runs, forwards to that machine and \
             has an answer route",
        )
    }
}

/// Says that the gateway of an enrolled node does not answer.
fn gateway_silent(endpoint: SocketAddr, waited: Duration) -> Failure {
    Failure::new(
        Code::HandshakeUnanswered,
        format!(
            "no answer from the gateway at {endpoint} within {} s: either UDP is blocked on the \
             way or the gateway does not run",
            waited.as_secs_f32().ceil()
        ),
        format!(
            "let UDP to {endpoint} through the firewalls, and see whether `ginnel server` or \
             `ginnel gateway` runs there"
        ),
    )
}

fn no_route_of_config(address: IpAddr) -> Failure {
    Failure::new(
        Code::NoRoute,
        format!("no peer's AllowedIPs hold {address}"),
        "add the address to AllowedIPs of the peer that leads to it",
    )
}

fn no_endpoint(address: IpAddr) -> Failure {
    Failure::new(
        Code::NoRoute,
        format!("the peer of {address} has no Endpoint and has not called yet"),
        "add `Endpoint = HOST:PORT` to that [Peer]",
    )
}

fn silent(remote: SocketAddr, timeout: Duration) -> Failure {
    Failure::new(
        Code::RemoteSilent,
        format!(
            "no answer from {} within {} s",
            at(remote),
            timeout.as_secs_f32().ceil()
        ),
        "the tunnel itself works: see whether the machine is up and a firewall there lets the \
         port through",
    )
}

fn refused_at_once(remote: SocketAddr, error: ConnectError) -> Failure {
    match error {
        ConnectError::Address => Failure::new(
            Code::Unreachable,
            format!("{remote} cannot be the other end of a connection"),
            "give the address of one machine and a port from 1 to 65535",
        ),
        ConnectError::NoAddress => Failure::new(
            Code::NoRoute,
            format!(
                "this device has no address of the family of {}",
                remote.ip()
            ),
            "add one to Address in [Interface], or use the other family",
        ),
        ConnectError::PortsExhausted | ConnectError::TooMany => Failure::new(
            Code::TooMany,
            format!("connection to {}: {error}", at(remote)),
            "close some connections first",
        ),
    }
}

fn closed(remote: SocketAddr, reason: CloseReason) -> Failure {
    match reason {
        CloseReason::Refused | CloseReason::Reset => Failure::new(
            Code::ConnectionRefused,
            format!("{} refuses the connection", at(remote)),
            "the machine is there: see whether the program listens at that port and on that \
             address",
        ),
        CloseReason::TimedOut => Failure::new(
            Code::RemoteSilent,
            format!("no answer from {}", at(remote)),
            "the tunnel itself works: see whether the machine is up and a firewall there lets \
             the port through",
        ),
        CloseReason::Unreachable(Unreachable::Prohibited) => Failure::new(
            Code::Prohibited,
            format!("{} may not be reached from here", at(remote)),
            "see which rules there are with `ginnel policy explain`, or ask an administrator for \
             one; behind a site it may be a firewall's refusal",
        ),
        CloseReason::Unreachable(_) | CloseReason::Finished | CloseReason::Aborted => Failure::new(
            Code::Unreachable,
            format!("{}: {reason}", at(remote)),
            "a router behind the tunnel refuses: see its routes and firewall",
        ),
    }
}
