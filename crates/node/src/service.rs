//! The ports that the own node publishes, and the listeners that its stack must have for them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use model::{map::NetworkMap, name::Label};
use netstack::{ListenerId, Stack};

/// A port of the own node that others of the organisation may connect to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Published {
    /// Name of the service.
    pub name: Label,
    /// The TCP port at the node's own address.
    pub port: u16,
    /// `HOST:PORT` to connect to for each accepted connection; `None` when the map names none.
    pub target: Option<String>,
}

/// The listeners of published ports.
#[derive(Debug, Default)]
pub(crate) struct Services {
    listeners: BTreeMap<SocketAddr, (ListenerId, Published)>,
    by_id: BTreeMap<ListenerId, SocketAddr>,
}

/// Connections that wait until the shell accepts them; further ones wait in their own SYN.
const BACKLOG: usize = 128;

impl Services {
    /// Opens and closes listeners until they are those of `wanted`; others are left alone.
    pub(crate) fn apply(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        wanted: &BTreeMap<SocketAddr, Published>,
    ) {
        let gone = |local: &&SocketAddr| !wanted.contains_key(local);
        let gone: Vec<_> = self.listeners.keys().filter(gone).copied().collect();
        for local in gone {
            if let Some((listener, _)) = self.listeners.remove(&local) {
                self.by_id.remove(&listener);
                stack.release_listener(now, listener);
            }
        }
        for (&local, published) in wanted {
            if let Some((_, known)) = self.listeners.get_mut(&local) {
                known.clone_from(published);
            } else if let Ok(listener) = stack.listen(local, BACKLOG) {
                // A port that the stack refuses is taken by a listener of the shell.
                self.by_id.insert(listener, local);
                let entry = (listener, published.clone());
                self.listeners.insert(local, entry);
            }
        }
    }

    pub(crate) fn published(&self, listener: ListenerId) -> Option<&Published> {
        let local = self.by_id.get(&listener)?;
        self.listeners.get(local).map(|(_, published)| published)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (ListenerId, &Published)> {
        let entries = self.listeners.values();
        entries.map(|(listener, published)| (*listener, published))
    }
}

/// Lists what the map's own node publishes at its own `addresses`.
///
/// Of two services at one port the first by name counts; control refuses the second.
pub(crate) fn published(
    map: &NetworkMap,
    addresses: &[Ipv6Addr],
) -> BTreeMap<SocketAddr, Published> {
    let mut published = BTreeMap::new();
    for org in map.orgs.values() {
        let own = addresses
            .iter()
            .find(|&&address| org.prefix.contains(address));
        let Some(&own) = own else {
            continue;
        };
        for (name, offers) in &org.services {
            for offer in offers.iter().filter(|offer| offer.node == map.own.id) {
                let local = SocketAddr::new(IpAddr::V6(own), offer.port);
                published.entry(local).or_insert_with(|| Published {
                    name: name.clone(),
                    port: offer.port,
                    target: offer.target.clone(),
                });
            }
        }
    }
    published
}
