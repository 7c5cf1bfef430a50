//! Hosts of the sites behind this node: what comes for them goes on by ordinary sockets.
//!
//! ```text
//!   peer ══ tunnel ══ stack │ here │ socket ── LAN ── host
//! ```
//! No privilege and no address translation of the system is needed. Hosts see this machine's
//! address; a refusal of theirs goes back as what it is.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{
    map::NetworkMap,
    site::{Alias, Ipv4Prefix, SitePrefix},
};
use netstack::{EchoRequest, ListenerId, PrefixId, Refusal};
use os::{echo::Echo, reactor::Watched};
use packet::icmp::Unreachable;
use tokio::{io::Interest, net, time};
use tunnel::{Flow, Held, Tunnel};

use super::publish;

/// Connections, flows and echo requests at a time; at the bound a peer gets no answer.
const PLACES_MAX: usize = 4_096;

/// How long a host may take to accept; the peer's SYN waits longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// As long as the stack keeps an echo request.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest payload of a datagram (RFC 768).
const PAYLOAD_MAX: usize = 65_535;

/// The way to the hosts.
pub(super) struct Way {
    places: Arc<Places>,
}

/// Who holds how many of the places; a peer holds at most as many as are free.
#[derive(Default)]
struct Places {
    held: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A place that is free again when this is dropped.
struct Place {
    places: Arc<Places>,
    peer: IpAddr,
}

impl Way {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::default(),
        }
    }

    /// Leads on every connection that waits at a listener for hosts.
    pub(super) fn connect(&self, tunnel: &Tunnel, listener: ListenerId) {
        while let Some(held) = tunnel.accept_held(listener) {
            let Some(place) = self.places.take(held.peer().ip()) else {
                held.refuse(Refusal::Silence);
                continue;
            };
            let tunnel = tunnel.clone();
            tokio::spawn(async move {
                lead(&tunnel, held).await;
                drop(place);
            });
        }
    }

    /// Leads on every flow that waits in a prefix.
    pub(super) fn carry(&self, tunnel: &Tunnel, prefix: PrefixId) {
        while let Some(flow) = tunnel.accept_flow(prefix) {
            let Some(place) = self.places.take(flow.peer().ip()) else {
                continue;
            };
            let tunnel = tunnel.clone();
            tokio::spawn(async move {
                if let Err(error) = exchange(&tunnel, &flow).await {
                    tracing::debug!(%error, host = %flow.host(), "site");
                    flow.refuse(unreachable(&error));
                }
                drop(place);
            });
        }
    }

    /// Asks the hosts of every echo request that waits in a prefix.
    pub(super) fn ask(&self, tunnel: &Tunnel, prefix: PrefixId) {
        while let Some(request) = tunnel.accept_echo(prefix) {
            let Some(place) = self.places.take(request.from) else {
                continue;
            };
            let tunnel = tunnel.clone();
            tokio::spawn(async move {
                let answer = echo(&tunnel, request).await;
                match answer {
                    Ok(()) => tunnel.answer_echo(request.id, Ok(())),
                    // No answer is what the host gave.
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    Err(error) => {
                        tracing::debug!(%error, host = %request.to, "site");
                        tunnel.answer_echo(request.id, Err(unreachable(&error)));
                    }
                }
                drop(place);
            });
        }
    }
}

impl Places {
    fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let free = PLACES_MAX.saturating_sub(held.values().sum());
        let own = held.get(&peer).copied().unwrap_or_default();
        if own >= free {
            return None;
        }
        held.insert(peer, own + 1);
        Some(Place {
            places: Arc::clone(self),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self
            .places
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

/// Connects to the host that a peer wants, and moves bytes until both have finished.
async fn lead(tunnel: &Tunnel, held: Held) {
    let wanted = held.host();
    let mut host = match time::timeout(CONNECT_TIMEOUT, connect(tunnel, wanted)).await {
        Ok(Ok(host)) => host,
        Ok(Err(error)) => {
            tracing::debug!(%error, host = %wanted, "site");
            held.refuse(refusal(&error));
            return;
        }
        Err(_) => {
            held.refuse(Refusal::Unreachable(Unreachable::Host));
            return;
        }
    };
    match held.admit().await {
        Ok(mut peer) => {
            if !publish::join(&mut peer, &mut host).await {
                peer.abort();
            }
        }
        // The host has accepted, and nobody wants it any more.
        Err(_) => drop(host.set_zero_linger()),
    }
}

async fn connect(tunnel: &Tunnel, wanted: SocketAddr) -> io::Result<net::TcpStream> {
    let host = host(tunnel, wanted.ip())?;
    let socket = net::TcpSocket::new_v4()?;
    // They only cost latency, or a connection that outlives its host, if they fail.
    drop(socket.set_nodelay(true));
    drop(socket.set_keepalive(true));
    socket.connect((host, wanted.port()).into()).await
}

/// Moves datagrams until the flow has not been used for long.
async fn exchange(tunnel: &Tunnel, flow: &Flow) -> io::Result<()> {
    let host = host(tunnel, flow.host().ip())?;
    let socket = net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((host, flow.host().port())).await?;
    loop {
        tokio::select! {
            payload = flow.recv() => {
                let Some(payload) = payload else {
                    return Ok(());
                };
                told(flow, socket.send(&payload).await.map(drop));
            }
            ready = socket.ready(Interest::READABLE | Interest::ERROR) => {
                if ready?.is_error() {
                    told(flow, reported(&socket));
                }
                let mut payload = vec![0; PAYLOAD_MAX];
                match socket.try_recv(&mut payload) {
                    // What finds no room is lost, as on any link.
                    Ok(length) => drop(flow.send(&payload[..length])),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => told(flow, Err(error)),
                }
            }
        }
    }
}

/// Fails with what the system says of an earlier datagram, if it does: nothing to read comes with
/// that.
fn reported(socket: &net::UdpSocket) -> io::Result<()> {
    let reported = socket.try_io(Interest::ERROR, || match socket.take_error()? {
        Some(error) => Err(error),
        None => Err(io::ErrorKind::WouldBlock.into()),
    });
    match reported {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        reported => reported,
    }
}

/// Tells the peer what the system says of an earlier datagram; the flow goes on.
fn told(flow: &Flow, sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, host = %flow.host(), "site");
        flow.refuse(unreachable(&error));
    }
}

async fn echo(tunnel: &Tunnel, request: EchoRequest) -> io::Result<()> {
    let host = host(tunnel, request.to)?;
    let socket = Watched::new(Echo::connect(host.into())?)?;
    socket
        .get()
        .send(request.sequence, request.payload_length)?;
    let reply = socket.read(|socket| socket.recv(request.sequence));
    match time::timeout(ECHO_TIMEOUT, reply).await?? {
        None => Ok(()),
        Some(report) => Err(report.error()),
    }
}

/// Returns the IPv4 address that a host of a site has itself.
///
/// What the prefixes of a site cover and is no other machine of the LAN is refused: addresses of
/// this machine, which others reach by the rules about this node, and those of its gateways, so
/// that no tunnel runs through itself.
fn host(tunnel: &Tunnel, address: IpAddr) -> io::Result<Ipv4Addr> {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    let IpAddr::V6(address) = address else {
        return Err(refused());
    };
    let (prefix, known_as) = SitePrefix::of(address).ok_or_else(refused)?;
    let (host, carries_tunnel) = tunnel.with(|node, _| {
        let org = node.map().and_then(NetworkMap::own_org);
        let site = org.and_then(|org| org.site_of(prefix));
        let host = site.map_or(known_as, |site| Alias::host_among(&site.aliases, known_as));
        let mut endpoints = node.endpoints().into_iter();
        let is_host = |endpoint: SocketAddr| endpoint.ip().to_canonical() == IpAddr::V4(host);
        (host, endpoints.any(|(_, endpoint)| is_host(endpoint)))
    });
    // Only an address of this machine can be bound, and a broadcast address.
    let is_own = UdpSocket::bind((host, 0)).is_ok();
    if Ipv4Prefix::host(host).is_err() || carries_tunnel || is_own {
        return Err(refused());
    }
    Ok(host)
}

fn refusal(error: &io::Error) -> Refusal {
    let refused = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset,
    ];
    if refused.contains(&error.kind()) {
        Refusal::Reset
    } else if is_shortage(error) {
        // The peer tries again.
        Refusal::Silence
    } else {
        Refusal::Unreachable(unreachable(error))
    }
}

/// Tells whether this machine has no descriptors or ports left, and may have again soon.
fn is_shortage(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let codes = [ENFILE, EMFILE];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// What a router must have said for the system to report `error` (net/ipv4/icmp.c,
/// `icmp_err_convert`).
fn unreachable(error: &io::Error) -> Unreachable {
    let causes = [
        (io::ErrorKind::ConnectionRefused, Unreachable::Port),
        (io::ErrorKind::NetworkUnreachable, Unreachable::Network),
        (io::ErrorKind::PermissionDenied, Unreachable::Prohibited),
    ];
    let known = causes.into_iter().find(|(kind, _)| *kind == error.kind());
    known.map_or(Unreachable::Host, |(_, cause)| cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_holds_at_most_as_many_places_as_are_free() {
        let places = Arc::<Places>::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let take_all = |peer| -> Vec<Place> { std::iter::from_fn(|| places.take(peer)).collect() };
        let of_one = take_all(one);
        assert_eq!(of_one.len(), PLACES_MAX / 2);
        let of_other = take_all(other);
        assert_eq!(of_other.len(), PLACES_MAX / 4);
        drop(of_one);
        assert_eq!(take_all(other).len(), PLACES_MAX / 4);
        drop(of_other);
        assert!(places.held.lock().unwrap().is_empty());
    }

    #[test]
    fn a_refusal_of_the_lan_is_passed_on_as_what_it_is() {
        use io::ErrorKind::{
            ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied,
        };
        for (kind, expected) in [
            (ConnectionRefused, Refusal::Reset),
            (HostUnreachable, Refusal::Unreachable(Unreachable::Host)),
            (
                NetworkUnreachable,
                Refusal::Unreachable(Unreachable::Network),
            ),
            (
                PermissionDenied,
                Refusal::Unreachable(Unreachable::Prohibited),
            ),
        ] {
            assert_eq!(refusal(&kind.into()), expected);
        }
        let no_descriptors = io::Error::from_raw_os_error(24);
        assert_eq!(refusal(&no_descriptors), Refusal::Silence);
    }
}
