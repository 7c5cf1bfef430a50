//! The tunnel of a plain WireGuard configuration.

use std::net::{Ipv6Addr, SocketAddr};

use model::{config::Config, key::PublicKey};
use node::{Attachment, Event, Node};
use tokio::sync::mpsc;
use wireguard::StaticSecret;

use super::profile::Opened;
use crate::{
    random::OsRandom,
    remedy::advise,
    tunnel::{self, Endpoints, Resolver, Tunnel},
};

/// The port of DNS.
const DNS: u16 = 53;

/// Returns the public half of the configuration's key.
pub(super) fn public_key(config: &Config) -> PublicKey {
    let secret = StaticSecret::new(*config.interface.private_key.expose());
    PublicKey(secret.public_key().0)
}

/// Opens the tunnel.
pub(super) fn open(config: &Config) -> anyhow::Result<Opened> {
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
    let attachment = Attachment::Netstack { mtu, seed };
    let random = Box::new(OsRandom);
    let mut node = Node::new(
        now,
        os::clock::wall(),
        random,
        &interface.private_key,
        attachment,
    );
    node.apply_config(now, config);
    let servers = interface
        .dns
        .iter()
        .map(|server| SocketAddr::new(*server, DNS));
    let resolver = Resolver {
        servers: servers.collect(),
        search: interface.search.clone(),
    };
    let port = interface.listen_port.map_or(0, u16::from);
    let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let stack = tunnel::Attachment::Stack;
    let (tunnel, events) = Tunnel::start(node, stack, resolver, listen, interface.fw_mark)?;
    let background = Box::pin(keep_resolved(tunnel.clone(), events));
    Ok(Opened {
        tunnel,
        control: None,
        background,
    })
}

/// Keeps endpoints that are names resolved.
async fn keep_resolved(tunnel: Tunnel, mut events: mpsc::Receiver<Event>) -> anyhow::Result<()> {
    let mut endpoints = Endpoints::default();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::ResolveEndpoint { public_key, endpoint }) => {
                    endpoints.learn(&tunnel, public_key, endpoint);
                }
                Some(
                    Event::Stack(_)
                    | Event::UnknownInitiator { .. }
                    | Event::HandshakeCompleted { .. }
                    | Event::HandshakeAbandoned { .. }
                    | Event::EndpointMoved { .. }
                    | Event::KeyLog(_),
                ) => {}
                None => return Ok(()),
            },
            () = tunnel.doubted() => endpoints.refresh(&tunnel),
        }
    }
}
