//! What changed between two maps of one node, so that a change costs what it touches and not what
//! there is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Gateway, NetworkMap, Node, Org, Own, Service, Site};
use crate::{
    address::OrgPrefix,
    id::{NodeId, OrgId, RuleId, SiteId},
    name::Label,
    policy::Rule,
    ssh,
};

/// What makes the map with one serial from the map with another (delta encoding, RFC 3229).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Difference {
    /// The serial of the map that it applies to; to no other.
    pub after: u64,
    /// The serial of the map that it makes.
    pub serial: u64,
    /// The node that the map was made for.
    pub own: Own,
    /// The organisations that changed; `None` is one that the node does not see any more.
    pub orgs: BTreeMap<OrgId, Option<OrgChange>>,
}

/// What a node is told of its map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// The map that it has is the newest.
    Same,
    /// What changed after the map that it has.
    Difference(Difference),
    /// The whole map.
    Map(NetworkMap),
    /// It is not part of the network any more.
    Removed,
}

/// How one organisation changed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrgChange {
    /// It is new, or too much of it changed.
    Whole(Org),
    /// Some of it changed.
    Parts(OrgDifference),
}

/// What changed in an organisation that stays; `None` is an entry that went.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct OrgDifference {
    /// All but the entries below, if any of that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<NodeId, Option<Node>>,
    /// Services by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<Label, Option<Vec<Service>>>,
    /// Sites.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<SiteId, Option<Site>>,
    /// Rules.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<RuleId, Option<Rule>>,
}

/// What an organisation has once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head {
    /// Its name.
    pub name: Label,
    /// Its addresses.
    pub prefix: OrgPrefix,
    /// The gateway that forwards for it.
    pub gateway: Option<Gateway>,
    /// Whom it trusts to certify SSH users and hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<ssh::Authority>,
}

impl NetworkMap {
    /// Returns what makes `self` from `former`, both of one node.
    #[must_use]
    pub fn difference(&self, former: &Self) -> Difference {
        let gone = former.orgs.keys().filter(|id| !self.orgs.contains_key(id));
        let gone = gone.map(|id| (*id, None));
        let other = self.orgs.iter().filter_map(|(id, org)| {
            let known = former.orgs.get(id).filter(|known| *known != org);
            let change = match known.and_then(|known| org.difference(known)) {
                Some(parts) => OrgChange::Parts(parts),
                None if former.orgs.get(id) == Some(org) => return None,
                None => OrgChange::Whole(org.clone()),
            };
            Some((*id, Some(change)))
        });
        Difference {
            after: former.serial,
            serial: self.serial,
            own: self.own.clone(),
            orgs: gone.chain(other).collect(),
        }
    }

    /// Tells whether `difference` is to this map.
    #[must_use]
    pub fn fits(&self, difference: &Difference) -> bool {
        let fits = |(id, change): (&OrgId, &Option<OrgChange>)| match change {
            Some(OrgChange::Parts(_)) => self.orgs.contains_key(id),
            Some(OrgChange::Whole(_)) | None => true,
        };
        self.serial == difference.after && difference.orgs.iter().all(fits)
    }

    /// Makes this map the one after `difference`. Returns false and leaves it as it is when the
    /// difference is to another map.
    pub fn apply(&mut self, difference: &Difference) -> bool {
        if !self.fits(difference) {
            return false;
        }
        self.serial = difference.serial;
        self.own = difference.own.clone();
        for (&id, change) in &difference.orgs {
            match change {
                Some(OrgChange::Whole(org)) => drop(self.orgs.insert(id, org.clone())),
                Some(OrgChange::Parts(parts)) => {
                    if let Some(org) = self.orgs.get_mut(&id) {
                        org.apply(parts);
                    }
                }
                None => drop(self.orgs.remove(&id)),
            }
        }
        true
    }
}

impl Org {
    /// Returns what makes `self` from `former`; `None` when one has rules and the other says
    /// nothing of them.
    #[must_use]
    pub fn difference(&self, former: &Self) -> Option<OrgDifference> {
        let none = BTreeMap::new();
        let rules = match (&former.rules, &self.rules) {
            (Some(former), Some(rules)) => (former, rules),
            (None, None) => (&none, &none),
            (Some(_), None) | (None, Some(_)) => return None,
        };
        let head = self.head();
        Some(OrgDifference {
            head: (head != former.head()).then_some(head),
            nodes: entries(&former.nodes, &self.nodes),
            services: entries(&former.services, &self.services),
            sites: entries(&former.sites, &self.sites),
            rules: entries(rules.0, rules.1),
        })
    }

    /// Makes this organisation the one after `difference`.
    pub fn apply(&mut self, difference: &OrgDifference) {
        if let Some(head) = &difference.head {
            let head = head.clone();
            self.name = head.name;
            self.prefix = head.prefix;
            self.gateway = head.gateway;
            self.ssh = head.ssh;
        }
        enter(&mut self.nodes, &difference.nodes);
        enter(&mut self.services, &difference.services);
        enter(&mut self.sites, &difference.sites);
        if !difference.rules.is_empty() {
            enter(self.rules.get_or_insert_default(), &difference.rules);
        }
    }

    fn head(&self) -> Head {
        Head {
            name: self.name.clone(),
            prefix: self.prefix,
            gateway: self.gateway.clone(),
            ssh: self.ssh.clone(),
        }
    }
}

impl OrgDifference {
    /// Returns how many entries changed.
    #[must_use]
    pub fn len(&self) -> usize {
        let entries = self.nodes.len() + self.services.len() + self.sites.len();
        entries + self.rules.len() + usize::from(self.head.is_some())
    }

    /// Tells whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds what changed after it, so that one difference makes both steps.
    pub fn extend(&mut self, later: &Self) {
        if later.head.is_some() {
            self.head.clone_from(&later.head);
        }
        add(&mut self.nodes, &later.nodes);
        add(&mut self.services, &later.services);
        add(&mut self.sites, &later.sites);
        add(&mut self.rules, &later.rules);
    }
}

/// Lists the entries that are not in both alike.
fn entries<K: Clone + Ord, V: Clone + PartialEq>(
    former: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = former.keys().filter(|key| !now.contains_key(key));
    let gone = gone.map(|key| (key.clone(), None));
    let other = now
        .iter()
        .filter(|(key, value)| former.get(key) != Some(value));
    let other = other.map(|(key, value)| (key.clone(), Some(value.clone())));
    gone.chain(other).collect()
}

fn enter<K: Clone + Ord, V: Clone>(map: &mut BTreeMap<K, V>, difference: &BTreeMap<K, Option<V>>) {
    for (key, value) in difference {
        match value {
            Some(value) => drop(map.insert(key.clone(), value.clone())),
            None => drop(map.remove(key)),
        }
    }
}

fn add<K: Clone + Ord, V: Clone>(
    former: &mut BTreeMap<K, Option<V>>,
    later: &BTreeMap<K, Option<V>>,
) {
    let later = later
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()));
    former.extend(later);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        key::PublicKey,
        map::{Role, State},
    };

    fn label(number: u8) -> Label {
        format!("n{number}").parse().expect("a well-formed label")
    }

    fn own() -> Own {
        Own {
            id: NodeId(1),
            name: label(1),
            role: Role::Gateway,
            state: State::Active,
            capture: None,
        }
    }

    fn node(number: u8) -> Node {
        Node {
            name: label(number),
            public_key: PublicKey([number; 32]),
            address: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
            owner: None,
            may_reach: Vec::new(),
            reached_by: Vec::new(),
        }
    }

    /// Organisations that share many entries and differ in some.
    fn org() -> impl Strategy<Value = Org> {
        let nodes = prop::collection::btree_map(0..6_i64, 0..4_u8, 0..6);
        let services = prop::collection::btree_map(0..3_u8, 1..4_u16, 0..3);
        (0..2_u8, nodes, services, any::<bool>()).prop_map(|(name, nodes, services, ruled)| Org {
            name: label(name),
            prefix: "fd00::/48".parse().expect("a prefix"),
            gateway: None,
            nodes: nodes
                .into_iter()
                .map(|(id, number)| (NodeId(id), node(number)))
                .collect(),
            services: services
                .into_iter()
                .map(|(name, port)| {
                    let (node, target) = (NodeId(0), None);
                    (label(name), vec![Service { node, port, target }])
                })
                .collect(),
            sites: BTreeMap::new(),
            rules: ruled.then(BTreeMap::new),
            ssh: None,
        })
    }

    proptest! {
        #[test]
        fn a_difference_makes_the_one_from_the_other(former in org(), now in org()) {
            let same_rules = former.rules.is_some() == now.rules.is_some();
            let difference = now.difference(&former);
            prop_assert_eq!(difference.is_some(), same_rules);
            if let Some(difference) = difference {
                prop_assert_eq!(difference.is_empty(), former == now);
                let mut made = former;
                made.apply(&difference);
                prop_assert_eq!(made, now);
            }
        }

        #[test]
        fn a_map_becomes_another(
            former in prop::collection::btree_map(0..3_i64, org(), 0..3),
            now in prop::collection::btree_map(0..3_i64, org(), 0..3),
        ) {
            let map = |serial, orgs: BTreeMap<i64, Org>| NetworkMap {
                serial,
                own: own(),
                orgs: orgs.into_iter().map(|(id, org)| (OrgId(id), org)).collect(),
            };
            let (former, now) = (map(1, former), map(2, now));
            let mut made = former.clone();
            prop_assert!(made.apply(&now.difference(&former)));
            prop_assert_eq!(made, now);
        }

        #[test]
        fn two_steps_are_one(first in org(), mut second in org(), mut third in org()) {
            second.rules.clone_from(&first.rules);
            third.rules.clone_from(&first.rules);
            let mut both = second.difference(&first).expect("the same rules");
            both.extend(&third.difference(&second).expect("the same rules"));
            let text = serde_json::to_string(&both).expect("plain data");
            let both: OrgDifference = serde_json::from_str(&text).expect("what was written");
            let mut made = first;
            made.apply(&both);
            prop_assert_eq!(made, third);
        }
    }

    #[test]
    fn a_difference_to_another_map_changes_nothing() {
        let map = NetworkMap {
            serial: 5,
            own: own(),
            orgs: BTreeMap::new(),
        };
        let parts = OrgChange::Parts(OrgDifference::default());
        for (after, change) in [(4, None), (6, None), (5, Some(parts))] {
            let difference = Difference {
                after,
                serial: 7,
                own: own(),
                orgs: BTreeMap::from([(OrgId(1), change)]),
            };
            let mut other = map.clone();
            assert!(!other.apply(&difference));
            assert_eq!(other, map);
        }
    }
}
