//! The network of a plain WireGuard configuration, for a program of its own.

use std::net::{Ipv6Addr, SocketAddr};

use model::config::Config;
use node::{Event, Node};
use os::tun::OffloadMax;
use tokio::sync::mpsc;

use super::{Attachment, Endpoints, Resolver, Tunnel, advised::advise};

/// A network that a plain WireGuard configuration describes, in user mode.
///
/// ```no_run
/// # async fn example(text: &[u8]) -> anyhow::Result<()> {
/// let network = tunnel::Network::open(&model::config::Config::parse(text)?)?;
/// let tunnel = network.tunnel().clone();
/// tokio::spawn(network.run());
/// let timeout = std::time::Duration::from_secs(10);
/// let stream = tunnel.dial("intranet", 80, timeout).await?;
/// # drop(stream);
/// # Ok(())
/// # }
/// ```
pub struct Network {
    tunnel: Tunnel,
    events: mpsc::Receiver<Event>,
}

/// Draws from the system's randomness, every time anew.
pub struct OsRandom;

/// The port of DNS.
const DNS: u16 = 53;

impl Network {
    /// Opens it: binds UDP sockets and begins to drive them; needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The configuration has no address, or the UDP port cannot be bound.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        Self::open_with(config, OffloadMax::All)
    }

    /// Does the same, and lets no more pass as one than `offload` says.
    ///
    /// # Errors
    ///
    /// As [`Network::open`].
    pub fn open_with(config: &Config, offload: OffloadMax) -> anyhow::Result<Self> {
        let interface = &config.interface;
        if interface.addresses.is_empty() {
            return Err(advise(
                "configuration: [Interface] has no Address",
                "add the address that the server expects from this device: Address = 10.0.0.2/32",
            ));
        }
        let now = os::clock::Clock::start().now();
        let mut seed = [0; 32];
        os::random::fill(&mut seed);
        let mtu = interface.mtu.map_or(wireguard::MTU_DEFAULT, usize::from);
        let inside = node::Attachment::Netstack { mtu, seed };
        let random = Box::new(OsRandom);
        let key = &interface.private_key;
        let mut node = Node::new(now, os::clock::wall(), random, key, inside);
        node.apply_config(now, config);
        let servers = interface.dns.iter();
        let resolver = Resolver {
            servers: servers
                .map(|server| SocketAddr::new(*server, DNS))
                .collect(),
            search: interface.search.clone(),
        };
        let port = interface.listen_port.map_or(0, u16::from);
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let mark = interface.fw_mark;
        let inside = Attachment::Stack;
        let (tunnel, events) = Tunnel::start(node, inside, resolver, listen, mark, offload)?;
        Ok(Self { tunnel, events })
    }

    /// Returns its tunnel, in which sockets are made.
    pub fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Keeps endpoints that are names resolved, until it is dropped. Without it only endpoints
    /// that are addresses work.
    pub async fn run(self) {
        let Self { tunnel, mut events } = self;
        let mut endpoints = Endpoints::default();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::ResolveEndpoint { public_key, endpoint }) => {
                        endpoints.learn(&tunnel, public_key, endpoint);
                    }
                    Some(
                        Event::Stack(_)
                        | Event::HostReturned { .. }
                        | Event::UnknownInitiator { .. }
                        | Event::HandshakeCompleted { .. }
                        | Event::HandshakeAbandoned { .. }
                        | Event::SiteChanged { .. }
                        | Event::EndpointMoved { .. },
                    ) => {}
                    None => return,
                },
                () = tunnel.doubted() => endpoints.refresh(&tunnel),
            }
        }
    }
}

impl wireguard::Random for OsRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}
