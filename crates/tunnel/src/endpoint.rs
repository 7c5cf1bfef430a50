//! Endpoints that are names: resolved at first, and again when a peer does not answer.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use model::{endpoint::Endpoint, key::PublicKey};
use tokio::time;

use super::Tunnel;

/// How long the system's resolver may take for one endpoint.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// An endpoint is not looked up again sooner: a name server has others to serve.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(15);

/// The names of a tunnel's endpoints, at most one for each peer.
#[derive(Default)]
pub struct Endpoints {
    named: BTreeMap<PublicKey, Named>,
}

struct Named {
    endpoint: Endpoint,
    resolved: Option<Instant>,
}

impl Endpoints {
    /// Takes the name that the node asks for and looks it up.
    pub fn learn(&mut self, tunnel: &Tunnel, public_key: PublicKey, endpoint: Endpoint) {
        let resolved = None;
        self.named.insert(public_key, Named { endpoint, resolved });
        self.refresh(tunnel);
    }

    /// Looks up every name that was not looked up lately: it may have moved.
    pub fn refresh(&mut self, tunnel: &Tunnel) {
        let now = tunnel.now();
        let recent = |then: Instant| now.saturating_duration_since(then) < RESOLVE_INTERVAL;
        for (public_key, named) in &mut self.named {
            if !named.resolved.is_some_and(recent) {
                named.resolved = Some(now);
                tokio::spawn(resolve(tunnel.clone(), *public_key, named.endpoint.clone()));
            }
        }
    }
}

/// Asks the system's resolver where an endpoint is and tells the node.
async fn resolve(tunnel: Tunnel, public_key: PublicKey, endpoint: Endpoint) {
    let lookup = tokio::net::lookup_host(endpoint.to_string());
    let answer = time::timeout(RESOLVE_TIMEOUT, lookup).await;
    let address: Option<SocketAddr> = match answer {
        Ok(Ok(mut addresses)) => addresses.next(),
        Ok(Err(_)) | Err(_) => None,
    };
    match address {
        Some(address) => tunnel.with(|node, now| node.set_endpoint(now, &public_key, address)),
        None => tracing::warn!(%endpoint, "DNS: no address for this endpoint"),
    }
}
