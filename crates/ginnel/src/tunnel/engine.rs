//! What is driven: a WireGuard device and a network stack, joined back to back.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use netstack::Stack;
use wireguard::{Device, PeerId, PeerStatus, PublicKey, Received, Seal};

/// The two protocols of a node in user mode.
pub(crate) struct Engine {
    device: Device,
    stack: Stack,
    mtu: usize,
}

/// Something that a task waits for.
pub(super) enum Event {
    /// A session was made with some peer.
    Session,
    /// Something happened to a socket.
    Stack(netstack::Event),
}

/// How things stand with the peer of an address.
pub(super) enum Session {
    /// It can be sent to.
    Ready,
    /// A handshake runs.
    Waiting,
    /// There is no such peer.
    NoRoute,
    /// It is not known where the peer is.
    NoEndpoint,
}

/// A session older than this may be refused by the peer (whitepaper 6.1, `REJECT_AFTER_TIME`).
const SESSION_AGE_MAX: Duration = wireguard::REJECT_AFTER_TIME;

impl Engine {
    /// Joins a device, its peers configured, and a stack with the MTU `mtu`.
    pub(crate) fn new(device: Device, stack: Stack, mtu: usize) -> Self {
        Self { device, stack, mtu }
    }

    /// Returns the stack, for its sockets.
    pub(crate) fn stack(&mut self) -> &mut Stack {
        &mut self.stack
    }

    /// Returns the device, for its peers.
    pub(crate) fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    pub(super) fn public_key(&self) -> Option<model::key::PublicKey> {
        self.device
            .public_key()
            .map(|PublicKey(bytes)| model::key::PublicKey(bytes))
    }

    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        datagram: &mut [u8],
    ) {
        match self.device.handle_datagram(now, source, datagram) {
            Received::Packet { packet, .. } => {
                if let Err(discard) = self.stack.handle_packet(now, packet) {
                    tracing::trace!(?discard, "inner packet");
                }
            }
            Received::Handled => {}
            Received::Discarded(discard) => tracing::trace!(?discard, %source, "datagram"),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.device.handle_timeout(now);
        self.stack.handle_timeout(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = [self.device.poll_timeout(), self.stack.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }

    /// Writes the next datagram to the front of `out`: where it goes and its length.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        out: &mut [u8],
    ) -> Option<(SocketAddr, usize)> {
        loop {
            if let Some(transmit) = self.device.poll_transmit() {
                let length = transmit.datagram.len();
                out[..length].copy_from_slice(&transmit.datagram);
                return Some((transmit.destination, length));
            }
            let room = &mut out[wireguard::HEADER..wireguard::HEADER + self.mtu];
            let length = self.stack.poll_transmit(now, room)?;
            let slot = wireguard::OVERHEAD + wireguard::padded(length);
            match self.device.seal(now, &mut out[..slot], length) {
                Seal::Sealed {
                    endpoint, length, ..
                } => return Some((endpoint, length)),
                Seal::Staged { .. } => {}
                Seal::Discarded(discard) => tracing::trace!(?discard, "seal"),
            }
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        while let Some(event) = self.device.poll_event() {
            if matches!(event, wireguard::Event::HandshakeCompleted { .. }) {
                return Some(Event::Session);
            }
        }
        self.stack.poll_event().map(Event::Stack)
    }

    /// Tells how things stand with the peer of `address` and begins a handshake if one is needed.
    pub(super) fn reach(&mut self, now: Instant, address: IpAddr) -> Session {
        let Some(peer) = self.device.route(address) else {
            return Session::NoRoute;
        };
        let Some(status) = self.device.status(peer) else {
            return Session::NoRoute;
        };
        let age = status
            .last_handshake
            .map(|at| now.saturating_duration_since(at));
        if age.is_some_and(|age| age < SESSION_AGE_MAX) {
            return Session::Ready;
        }
        if status.endpoint.is_none() {
            return Session::NoEndpoint;
        }
        self.device.initiate(now, peer);
        Session::Waiting
    }

    /// Begins a handshake with the peer of `address` although there is a session.
    pub(super) fn renew(&mut self, now: Instant, address: IpAddr) {
        if let Some(peer) = self.device.route(address) {
            self.device.initiate(now, peer);
        }
    }

    /// Begins a handshake with every peer that has a session: time has passed unseen.
    pub(super) fn renew_all(&mut self, now: Instant) {
        let sessions = self
            .device
            .peers()
            .filter(|peer| peer.last_handshake.is_some());
        let peers: Vec<PeerId> = sessions.map(|peer| peer.id).collect();
        for peer in peers {
            self.device.initiate(now, peer);
        }
    }

    pub(super) fn peer_of(&self, address: IpAddr) -> Option<Peer> {
        let peer = self.device.route(address)?;
        self.device.status(peer).map(|status| Peer::of(&status))
    }

    /// Shows every peer.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        self.device
            .peers()
            .map(|status| Peer::of(&status))
            .collect()
    }
}

/// A peer as people see it.
pub(crate) struct Peer {
    pub(crate) public_key: model::key::PublicKey,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) last_handshake: Option<Instant>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Peer {
    fn of(status: &PeerStatus<'_>) -> Self {
        Self {
            public_key: model::key::PublicKey(status.public_key.0),
            endpoint: status.endpoint,
            last_handshake: status.last_handshake,
            received_bytes: status.received_bytes,
            sent_bytes: status.sent_bytes,
        }
    }
}
