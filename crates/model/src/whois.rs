//! Whois: whose an address of an organisation is, by a network map.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::{
    map::{NetworkMap, Org},
    name::Label,
    policy::Role,
    site::SitePrefix,
};

/// Whose an address is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Whois {
    /// The address.
    pub address: Ipv6Addr,
    /// The organisation that it belongs to.
    pub org: Label,
    /// The node that has it, or that leads to the site whose host has it, of several the preferred
    /// one.
    pub node: Label,
    /// The site whose host has it; `None` for an address of the node itself.
    pub site: Option<Label>,
    /// The person whose device the node is; `None` for a machine, and for a host of a site.
    pub user: Option<Label>,
    /// What that person may be in the organisation.
    pub role: Option<Role>,
}

impl NetworkMap {
    /// Returns whose `address` is; `None` outside the own node's organisation and where no node
    /// has it. Takes time in proportion to the nodes of the organisation.
    #[must_use]
    pub fn whois(&self, address: Ipv6Addr) -> Option<Whois> {
        let org = self.own_org()?;
        if !org.prefix.contains(address) {
            return None;
        }
        whois_of_node(org, address).or_else(|| whois_of_host(org, address))
    }
}

fn whois_of_node(org: &Org, address: Ipv6Addr) -> Option<Whois> {
    let mut nodes = org.nodes.values();
    let node = nodes.find(|node| node.address == address)?;
    Some(Whois {
        address,
        org: org.name.clone(),
        node: node.name.clone(),
        site: None,
        user: node.owner.as_ref().map(|owner| owner.name.clone()),
        role: node.owner.as_ref().map(|owner| owner.role),
    })
}

/// A site's host speaks for nobody, whoever owns the node that leads to it.
fn whois_of_host(org: &Org, address: Ipv6Addr) -> Option<Whois> {
    let (prefix, host) = SitePrefix::of(address)?;
    let site = org.site_of(prefix)?;
    if !site.embedded().any(|lan| lan.contains(host)) {
        return None;
    }
    let node = org.nodes.get(&site.node)?;
    Some(Whois {
        address,
        org: org.name.clone(),
        node: node.name.clone(),
        site: Some(site.name.clone()),
        user: None,
        role: None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        address::{Kind, OrgPrefix},
        id::{NodeId, OrgId, SiteId},
        key::PublicKey,
        map::{self, Node, Own, Site, User},
        site::Mode,
    };

    #[test]
    fn an_address_is_its_nodes_and_a_device_its_owners() {
        let map = map();
        let found = map.whois(node_address(1, 1)).expect("a device");
        assert_eq!(found.node, label("desk"));
        assert_eq!(found.org, label("acme"));
        assert_eq!(found.user, Some(label("alice")));
        assert_eq!(found.role, Some(Role::Developer));
        let found = map.whois(node_address(1, 2)).expect("a machine");
        assert_eq!((found.node, found.user), (label("shed"), None));
    }

    #[test]
    fn a_host_of_a_site_is_the_nodes_but_not_the_persons() {
        let map = map();
        let prefix = SitePrefix::new(OrgPrefix::new([1; 5]), SiteId(7)).expect("a small id");
        let host = prefix.embed([192, 168, 1, 9].into());
        let found = map.whois(host).expect("a host");
        let names = (found.node, found.site);
        assert_eq!(names, (label("desk"), Some(label("paris"))));
        assert_eq!((found.user, found.role), (None, None));
        let by_alias = map.whois(prefix.embed([10, 99, 1, 9].into()));
        assert_eq!(by_alias.and_then(|found| found.site), Some(label("paris")));
        let outside = prefix.embed([192, 168, 2, 9].into());
        assert_eq!(map.whois(outside), None);
    }

    #[test]
    fn addresses_of_nobody_and_of_others_are_nobodys() {
        let map = map();
        let resolver = OrgPrefix::new([1; 5]).resolver();
        let free = node_address(1, 9);
        let foreign = node_address(2, 1);
        for address in [resolver, free, foreign, Ipv6Addr::LOCALHOST] {
            assert_eq!(map.whois(address), None, "{address}");
        }
    }

    #[test]
    fn a_map_of_an_older_control_plane_names_no_person() {
        let text = serde_json::to_string(&map()).expect("JSON");
        let owner = r#","owner":{"name":"alice","role":"developer"}"#;
        assert!(text.contains(owner), "{text}");
        let older: NetworkMap = serde_json::from_str(&text.replace(owner, "")).expect("a map");
        let found = older.whois(node_address(1, 1)).expect("a device");
        assert_eq!((found.user, found.role), (None, None));
    }

    #[test]
    fn a_hostile_name_of_a_person_makes_no_map() {
        let text = serde_json::to_string(&map()).expect("JSON");
        for name in [r"a\r\nX-Ginnel-Role: admin", "älice", "$(id)", "-a", ""] {
            let hostile = text.replace(r#""name":"alice""#, &format!(r#""name":"{name}""#));
            assert_ne!(hostile, text);
            serde_json::from_str::<NetworkMap>(&hostile).expect_err(name);
        }
    }

    /// `acme` with alice's `desk`, which leads to `paris`, and the machine `shed`; and `other`.
    fn map() -> NetworkMap {
        let alice = User {
            name: label("alice"),
            role: Role::Developer,
        };
        let mut acme = org(1, "acme");
        acme.nodes
            .insert(NodeId(1), node("desk", 1, 1, Some(alice)));
        acme.nodes.insert(NodeId(2), node("shed", 1, 2, None));
        let paris = Site {
            name: label("paris"),
            node: NodeId(1),
            standbys: Vec::new(),
            prefixes: vec!["192.168.1.0/24".parse().expect("a prefix")],
            aliases: vec!["192.168.1.0/24=10.99.1.0/24".parse().expect("an alias")],
            mode: Mode::default(),
            may_reach: Vec::new(),
            reached_by: Vec::new(),
        };
        acme.sites.insert(SiteId(7), paris);
        let mut other = org(2, "other");
        other.nodes.insert(NodeId(3), node("web", 2, 1, None));
        NetworkMap {
            serial: 1,
            own: Own {
                id: NodeId(2),
                name: label("shed"),
                role: map::Role::Client,
                state: map::State::Active,
                capture: None,
            },
            orgs: [(OrgId(1), acme), (OrgId(2), other)].into(),
        }
    }

    fn org(byte: u8, name: &str) -> Org {
        Org {
            name: label(name),
            prefix: OrgPrefix::new([byte; 5]),
            gateway: None,
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            sites: BTreeMap::new(),
            rules: None,
            ssh: None,
        }
    }

    fn node(name: &str, org: u8, id: u8, owner: Option<User>) -> Node {
        Node {
            name: label(name),
            public_key: PublicKey([16 * org + id; 32]),
            address: node_address(org, id),
            owner,
            may_reach: Vec::new(),
            reached_by: Vec::new(),
        }
    }

    fn node_address(org: u8, id: u8) -> Ipv6Addr {
        OrgPrefix::new([org; 5]).address(Kind::Node, id.into())
    }

    fn label(text: &str) -> Label {
        text.parse().expect("a label")
    }
}
