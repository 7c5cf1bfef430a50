//! The tunnel of a plain WireGuard configuration.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use model::{config::Config, endpoint::Endpoint, key::PublicKey};
use node::{Attachment, Event, Node};
use tokio::{sync::mpsc, time};
use wireguard::StaticSecret;

use super::profile::Opened;
use crate::{
    remedy::advise,
    tunnel::{Random, Resolver, Tunnel},
};

/// The port of DNS.
const DNS: u16 = 53;

/// How long the system's resolver may take for one endpoint.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// An endpoint is not looked up again sooner: a name server has others to serve.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(15);

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
    let random = Box::new(Random);
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
    let (tunnel, events) = Tunnel::start(node, resolver, port, interface.fw_mark)?;
    let background = Box::pin(keep_resolved(tunnel.clone(), events));
    Ok(Opened { tunnel, background })
}

/// Resolves the names of endpoints at first, and again when a peer does not answer.
async fn keep_resolved(tunnel: Tunnel, mut events: mpsc::Receiver<Event>) -> anyhow::Result<()> {
    // At most one for each peer of the configuration.
    let mut named: BTreeMap<PublicKey, (Endpoint, Option<Instant>)> = BTreeMap::new();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::ResolveEndpoint { public_key, endpoint }) => {
                    named.insert(public_key, (endpoint, None));
                }
                Some(
                    Event::Stack(_)
                    | Event::UnknownInitiator { .. }
                    | Event::HandshakeCompleted { .. }
                    | Event::HandshakeAbandoned { .. }
                    | Event::EndpointMoved { .. }
                    | Event::KeyLog(_),
                ) => continue,
                None => return Ok(()),
            },
            () = tunnel.doubted() => {}
        }
        for (public_key, (endpoint, last)) in &mut named {
            let now = tunnel.now();
            let due = |last: Instant| now.saturating_duration_since(last) >= RESOLVE_INTERVAL;
            if !last.is_none_or(due) {
                continue;
            }
            *last = Some(now);
            match resolve(endpoint).await {
                Some(address) => tunnel.with(|node, now| {
                    node.set_endpoint(now, public_key, address);
                }),
                None => tracing::info!(%endpoint, "DNS: no address for this endpoint"),
            }
        }
    }
}

/// Asks the system's resolver where an endpoint is.
pub(crate) async fn resolve(endpoint: &Endpoint) -> Option<SocketAddr> {
    let text = endpoint.to_string();
    let lookup = time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(text));
    lookup.await.ok()?.ok()?.next()
}
