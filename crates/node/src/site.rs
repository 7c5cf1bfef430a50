//! The sites that lie behind the own node: which addresses they have, and what the stack takes for
//! their hosts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use model::{
    id::SiteId,
    map::{NetworkMap, Org, Role, Site},
    site::{Ipv4Prefix, SITE_PREFIX_BITS, SitePrefix},
};
use netstack::{ListenerId, Prefix, PrefixId, Stack};

/// What the stack takes for hosts of sites.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    taken: BTreeMap<Prefix, (ListenerId, PrefixId)>,
}

/// Connections, flows and echo requests of one prefix that wait until the shell accepts them;
/// further ones wait in their own SYN, or are lost as a full queue of a router loses them.
const BACKLOG: usize = 256;

impl Sites {
    /// Takes what comes to `wanted`, and nothing else any more.
    pub(crate) fn apply(&mut self, now: Instant, stack: &mut Stack, wanted: &BTreeSet<Prefix>) {
        self.taken.retain(|prefix, &mut (listener, flows)| {
            let stays = wanted.contains(prefix);
            if !stays {
                stack.release_listener(now, listener);
                stack.release_prefix(flows);
            }
            stays
        });
        for &prefix in wanted {
            if self.taken.contains_key(&prefix) {
                continue;
            }
            let Ok(listener) = stack.listen_prefix(prefix, BACKLOG) else {
                continue;
            };
            match stack.bind_prefix(prefix, BACKLOG) {
                Ok(flows) => {
                    self.taken.insert(prefix, (listener, flows));
                }
                Err(_) => stack.release_listener(now, listener),
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Tells whether a listener takes connections to hosts of a site.
    pub(crate) fn listens(&self, listener: ListenerId) -> bool {
        self.taken.values().any(|(other, _)| *other == listener)
    }

    /// Tells whether `address` is a host's.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        self.taken.keys().any(|prefix| prefix.contains(address))
    }
}

/// Lists the prefixes of some sites as the network has them, and those of their aliases.
pub(crate) fn prefixes(
    org: &Org,
    wanted: impl Fn(SiteId, &Site) -> bool,
) -> impl Iterator<Item = (IpAddr, u8)> {
    let sites = org
        .sites
        .iter()
        .filter(move |(id, site)| wanted(**id, site));
    sites.flat_map(|(&id, site)| {
        let network = SitePrefix::new(org.prefix, id);
        let embedded = move |prefix: Ipv4Prefix| {
            let address = network?.embed(prefix.address());
            Some((IpAddr::V6(address), SITE_PREFIX_BITS + prefix.length()))
        };
        site.embedded().filter_map(embedded)
    })
}

/// Lists the prefixes of the sites behind the map's own node.
pub(crate) fn own(map: &NetworkMap) -> BTreeSet<Prefix> {
    let orgs = match map.own.role {
        Role::Client => map.orgs.values(),
        Role::Gateway => return BTreeSet::new(),
    };
    let own = map.own.id;
    let prefixes = orgs.flat_map(move |org| prefixes(org, move |_, site| site.is_behind(own)));
    prefixes
        .filter_map(|(address, length)| Prefix::new(address, length))
        .collect()
}
