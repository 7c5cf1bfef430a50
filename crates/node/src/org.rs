//! The organisations of the map, found by the address of a packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use model::{
    address::OrgPrefix,
    id::{NodeId, OrgId},
    map::{NetworkMap, Node, Org, Role},
    zone::Zone,
};

use crate::{filter::Policy, refusal::Bucket};

/// One organisation that this node belongs to or serves.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) id: OrgId,
    pub(crate) zone: Zone,
    /// Who may reach what; `None` allows everything.
    pub(crate) policy: Option<Policy>,
    /// Its own share of ICMP errors, so that no organisation can silence another.
    pub(crate) errors: Bucket,
}

/// The organisations by prefix, and the own addresses in all of them.
#[derive(Debug, Default)]
pub(crate) struct Orgs {
    served: BTreeMap<OrgPrefix, Served>,
    own: BTreeSet<Ipv6Addr>,
}

impl Orgs {
    /// Takes over `map`; zones of organisations that are as they were in `former` are kept.
    ///
    /// Of two organisations with one prefix only the one with the lower id is served: control
    /// never makes two, and mixing them would break their isolation.
    pub(crate) fn apply(&mut self, now: Instant, map: &NetworkMap, former: Option<&NetworkMap>) {
        let mut before = std::mem::take(&mut self.served);
        self.own.clear();
        for (&id, org) in &map.orgs {
            if self.served.contains_key(&org.prefix) {
                continue;
            }
            let unchanged = former.and_then(|former| former.orgs.get(&id)) == Some(org);
            let known = before.remove(&org.prefix).filter(|served| served.id == id);
            let served = match known {
                Some(served) if unchanged => served,
                Some(served) => Served {
                    zone: Zone::new(org, map.serial),
                    policy: Policy::of(org),
                    ..served
                },
                None => Served {
                    id,
                    zone: Zone::new(org, map.serial),
                    policy: Policy::of(org),
                    errors: Bucket::new(now),
                },
            };
            self.served.insert(org.prefix, served);
            self.own.extend(own_address(map, org));
        }
    }

    /// Takes over some organisations of `map` that changed and have the prefix they had.
    pub(crate) fn apply_part<'a>(
        &mut self,
        map: &NetworkMap,
        changed: impl Iterator<Item = &'a OrgId>,
    ) {
        for id in changed {
            let Some(org) = map.orgs.get(id) else {
                continue;
            };
            let served = self.served.get_mut(&org.prefix);
            if let Some(served) = served.filter(|served| served.id == *id) {
                served.zone = Zone::new(org, map.serial);
                served.policy = Policy::of(org);
            }
        }
    }

    /// Takes over one node of `org` that is new, or has changed from `former`.
    pub(crate) fn insert(
        &mut self,
        org: (OrgId, &Org),
        node: NodeId,
        former: Option<&Node>,
        serial: u64,
    ) {
        let (id, org) = org;
        let served = self.served.get_mut(&org.prefix);
        if let Some(served) = served.filter(|served| served.id == id) {
            served.zone.insert(org, node, former, serial);
            if let (Some(policy), Some(node)) = (&mut served.policy, org.nodes.get(&node)) {
                policy.insert(node, former);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.served.clear();
        self.own.clear();
    }

    /// Returns the organisation whose prefix holds `address`.
    pub(crate) fn of(&self, address: IpAddr) -> Option<(OrgPrefix, &Served)> {
        let prefix = prefix_of(address)?;
        self.served.get(&prefix).map(|served| (prefix, served))
    }

    pub(crate) fn of_mut(&mut self, address: IpAddr) -> Option<(OrgPrefix, &mut Served)> {
        let prefix = prefix_of(address)?;
        let served = self.served.get_mut(&prefix)?;
        Some((prefix, served))
    }

    pub(crate) fn is_own(&self, address: Ipv6Addr) -> bool {
        self.own.contains(&address)
    }

    /// Returns the node's own addresses, one in each organisation.
    pub(crate) fn own(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.own.iter().copied()
    }

    pub(crate) fn prefixes(&self) -> impl Iterator<Item = OrgPrefix> {
        self.served.keys().copied()
    }

    /// Tells whether the one organisation that a client belongs to has rules.
    pub(crate) fn have_policy(&self) -> bool {
        self.first()
            .is_some_and(|(_, served)| served.policy.is_some())
    }

    /// Returns the zone of the one organisation that a client belongs to.
    pub(crate) fn first(&self) -> Option<(OrgPrefix, &Served)> {
        self.served
            .first_key_value()
            .map(|(prefix, served)| (*prefix, served))
    }
}

/// A gateway is the resolver of each organisation; a client has its node's address.
fn own_address(map: &NetworkMap, org: &Org) -> Option<Ipv6Addr> {
    match map.own.role {
        Role::Gateway => Some(org.prefix.resolver()),
        Role::Client => {
            let own = org.nodes.get(&map.own.id)?;
            org.prefix.contains(own.address).then_some(own.address)
        }
    }
}

fn prefix_of(address: IpAddr) -> Option<OrgPrefix> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => OrgPrefix::of(address),
    }
}
