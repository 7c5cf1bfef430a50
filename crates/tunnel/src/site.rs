//! What comes for hosts of the sites behind the node: held until somebody has reached the host. And
//! whether these hosts find back to other sites.

use std::{
    future::poll_fn,
    net::{SocketAddr, SocketAddrV4},
    task::Poll,
    time::Duration,
};

use netstack::{
    CloseReason, EchoRequest, EchoRequestId, ListenerId, PrefixId, Refusal, SendToError, UdpId,
};
use node::Probe;
use packet::icmp::Unreachable;
use tokio::{sync::oneshot, time};

use crate::{Interface, TcpStream, Tunnel, stream::stack};

/// A TCP connection to a host, whose peer has no answer yet. Dropping it tells nothing.
pub struct Held {
    tunnel: Tunnel,
    stream: stack::TcpStream,
    id: netstack::ConnectionId,
}

/// The datagrams between one port of a peer and one of a host. Dropping it ends the flow.
pub struct Flow {
    tunnel: Tunnel,
    id: UdpId,
    host: SocketAddr,
    peer: SocketAddr,
}

/// The longest payload of a datagram (RFC 768).
const PAYLOAD_MAX: usize = 65_535;

/// A peer that is gone is noticed after some of these, so that a forgotten connection ends.
const KEEPALIVE: Duration = Duration::from_secs(600);

/// Hosts that are asked at a time whether they find back; no further one is asked.
pub(super) const PROBES_MAX: usize = 32;

/// How often a host is asked, so that one lost packet is no finding, and how long it has each time.
const PROBES: u32 = 3;
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

impl Tunnel {
    /// Asks a host of a LAN behind the node as if another site did, and tells whether its answer
    /// came back here; `None` when it cannot be asked.
    pub async fn returns(&self, host: SocketAddrV4) -> Option<bool> {
        let probe = Probe {
            host,
            // One of the dynamic ports (RFC 6335, 6).
            source_port: u16::from_le_bytes(os::random::bytes()) | 0xc000,
            sequence: u32::from_le_bytes(os::random::bytes()),
        };
        for _ in 0..PROBES {
            let (sender, answer) = oneshot::channel();
            {
                let mut turn = self.turn();
                let now = turn.now;
                if turn.probes.len() >= PROBES_MAX || !turn.node.probe_return(now, probe) {
                    return None;
                }
                turn.probes.insert(host, sender);
            }
            let answer = time::timeout(PROBE_INTERVAL, answer).await;
            if matches!(answer, Ok(Ok(()))) {
                return Some(true);
            }
            self.turn().probes.remove(&host);
        }
        Some(false)
    }

    /// Says which IPv4 addresses of other sites are not routed into the interface, and why.
    pub fn site_conflicts(&self) -> Vec<String> {
        let interface = self.shared.attachment.interface();
        interface.map(Interface::conflicts).unwrap_or_default()
    }

    /// Returns the next connection that waits at a listener of a site.
    pub fn accept_held(&self, listener: ListenerId) -> Option<Held> {
        let id = self.turn().stack().accept(listener)?;
        Some(Held {
            tunnel: self.clone(),
            stream: stack::TcpStream::new(self, id),
            id,
        })
    }

    /// Returns the next flow to a host in a prefix.
    pub fn accept_flow(&self, prefix: PrefixId) -> Option<Flow> {
        let mut turn = self.turn();
        loop {
            let id = turn.stack().accept_flow(prefix)?;
            let ends = (turn.stack().udp_local(id), turn.stack().udp_remote(id));
            if let (Some(host), Some(peer)) = ends {
                turn.datagrams.insert(id, None);
                return Some(Flow {
                    tunnel: self.clone(),
                    id,
                    host,
                    peer,
                });
            }
        }
    }

    /// Returns the next echo request to a host in a prefix.
    pub fn accept_echo(&self, prefix: PrefixId) -> Option<EchoRequest> {
        self.turn().stack().accept_echo(prefix)
    }

    /// Answers an echo request in the host's name, or tells why the host cannot be asked.
    pub fn answer_echo(&self, id: EchoRequestId, answer: Result<(), Unreachable>) {
        let mut turn = self.turn();
        let now = turn.now;
        let stack = turn.stack();
        let told = match answer {
            Ok(()) => stack.answer_echo(id),
            Err(what) => stack.refuse_echo(now, id, what),
        };
        if told.is_err() {
            tracing::debug!("echo request: its time is over");
        }
    }
}

impl Held {
    /// Returns the host and port that the peer wants.
    pub fn host(&self) -> SocketAddr {
        self.stream.local()
    }

    /// Returns the peer.
    pub fn peer(&self) -> SocketAddr {
        self.stream.remote()
    }

    /// Tells the peer that the host has accepted; an error when the peer has given up.
    pub async fn admit(self) -> Result<TcpStream, CloseReason> {
        let Self { tunnel, stream, id } = self;
        {
            let mut turn = tunnel.turn();
            let now = turn.now;
            let stack = turn.stack();
            let admitted = stack.admit(now, id);
            admitted.map_err(|_| CloseReason::Aborted)?;
            stack
                .set_keepalive(now, id, Some(KEEPALIVE))
                .map_err(|_| CloseReason::Aborted)?;
        }
        poll_fn(|context| stream.poll_established(context)).await?;
        Ok(TcpStream::from(stream))
    }

    /// Tells the peer that the host is not to be had.
    pub fn refuse(self, refusal: Refusal) {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        // The peer may have given up.
        let _told = turn.stack().refuse(now, self.id, refusal);
    }
}

impl Flow {
    /// Returns the host and port that the peer wants.
    pub fn host(&self) -> SocketAddr {
        self.host
    }

    /// Returns the peer.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Waits for the peer's next datagram; `None` when the flow has ended, because neither end has
    /// sent anything for long.
    pub async fn recv(&self) -> Option<Vec<u8>> {
        poll_fn(|context| {
            let mut turn = self.tunnel.turn();
            let mut payload = vec![0; PAYLOAD_MAX];
            let stack = turn.stack();
            if let Some((length, ..)) = stack.recv_from(self.id, &mut payload) {
                payload.truncate(length);
                payload.shrink_to_fit();
                return Poll::Ready(Some(payload));
            }
            if stack.udp_remote(self.id).is_none() {
                return Poll::Ready(None);
            }
            let waker = Some(context.waker().clone());
            turn.datagrams.insert(self.id, waker);
            Poll::Pending
        })
        .await
    }

    /// Sends one datagram to the peer in the host's name, now or not at all.
    pub fn send(&self, payload: &[u8]) -> Result<(), SendToError> {
        let mut turn = self.tunnel.turn();
        turn.stack().send_to(self.id, self.peer, payload)
    }

    /// Tells the peer that the host does not take its datagrams.
    pub fn refuse(&self, what: Unreachable) {
        let mut turn = self.tunnel.turn();
        let now = turn.now;
        // A flow that has ended needs no word.
        let _told = turn.stack().refuse_flow(now, self.id, what);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let mut turn = self.tunnel.turn();
        turn.datagrams.remove(&self.id);
        turn.stack().release_udp(self.id);
    }
}
