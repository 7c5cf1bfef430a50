//! The network map: all that one node must know, and the only thing that control tells it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    address::OrgPrefix,
    api::AskedCapture,
    id::{NodeId, OrgId, RuleId, SiteId},
    key::PublicKey,
    name::Label,
    policy::{self, Reach, Rule, SiteReach},
    site::{self, Alias, Ipv4Prefix, SitePrefix},
    ssh,
};

pub use self::difference::{Difference, Head, OrgChange, OrgDifference, Told};

mod difference;

/// All that one node must know. A node that holds one works without the control plane.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetworkMap {
    /// Grows with every change that the node can see.
    pub serial: u64,
    /// The node that the map was made for.
    pub own: Own,
    /// The organisations that the node may see: its own, or for a gateway all that it serves.
    pub orgs: BTreeMap<OrgId, Org>,
}

impl NetworkMap {
    /// Returns the organisation that the map's own node belongs to; `None` when the map does not
    /// name it.
    #[must_use]
    pub fn own_org(&self) -> Option<&Org> {
        let mut orgs = self.orgs.values();
        orgs.find(|org| org.nodes.contains_key(&self.own.id))
    }
}

/// The node that a map was made for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Own {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Label,
    /// Its part in the network.
    pub role: Role,
    /// Whether others know it; an older control plane says nothing.
    #[serde(default, skip_serializing_if = "State::is_active")]
    pub state: State,
    /// The capture that somebody asked for; none is begun twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<AskedCapture>,
}

impl Own {
    /// Says why others do not know the node, and what to do about it; `None` when they do.
    #[must_use]
    pub fn hindrance(&self) -> Option<(&'static str, String)> {
        let name = &self.name;
        match self.state {
            State::Active => None,
            State::Pending => Some((
                "this node waits for approval",
                format!("ask an administrator for `ginnel node approve {name}`"),
            )),
            State::Expired => Some((
                "this node's time is over",
                format!("ask an administrator for `ginnel node expire {name} --never`"),
            )),
        }
    }
}

/// The part that a node plays.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Belongs to one organisation and reaches the others of it through a gateway.
    Client,
    /// Has a public endpoint and forwards between the nodes of each organisation it serves.
    Gateway,
}

/// Whether a node stands in the maps of others.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does.
    #[default]
    Active,
    /// It is enrolled and waits until somebody approves it; its own map holds itself alone.
    Pending,
    /// Its time is over; its own map holds itself alone.
    Expired,
}

impl State {
    /// Tells whether others know the node.
    #[must_use]
    pub fn is_active(&self) -> bool {
        match self {
            Self::Active => true,
            Self::Pending | Self::Expired => false,
        }
    }

    /// Returns its word in lists and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Expired => "expired",
        }
    }
}

/// One organisation as a node sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Org {
    /// Its name.
    pub name: Label,
    /// Its addresses.
    pub prefix: OrgPrefix,
    /// The gateway that forwards for it; `None` while it has none.
    pub gateway: Option<Gateway>,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Its services by name: who offers them, at which port.
    pub services: BTreeMap<Label, Vec<Service>>,
    /// Its sites; the id is part of the addresses of a site's hosts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<SiteId, Site>,
    /// Who may reach what; an older control plane says nothing, and then everything is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<BTreeMap<RuleId, Rule>>,
    /// Whom it trusts to certify SSH users and hosts; an older control plane says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<ssh::Authority>,
}

impl Org {
    /// Returns the site whose hosts have addresses in `prefix`.
    #[must_use]
    pub fn site_of(&self, prefix: SitePrefix) -> Option<&Site> {
        let is_it = |id: &SiteId| SitePrefix::new(self.prefix, *id) == Some(prefix);
        let mut sites = self.sites.iter();
        sites.find_map(|(id, site)| is_it(id).then_some(site))
    }

    /// Returns the address by which IPv6 programs know the host that IPv4 programs know by an
    /// alias; `None` for an address that is in no alias.
    #[must_use]
    pub fn of_alias(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let host = |site: &Site| site.aliases.iter().find_map(|alias| alias.host(address));
        let mut sites = self.sites.iter();
        let (id, host) = sites.find_map(|(id, site)| Some((*id, host(site)?)))?;
        Some(SitePrefix::new(self.prefix, id)?.embed(host))
    }
}

/// How a client reaches its organisation's gateway.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Gateway {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Label,
    /// Its public key.
    pub public_key: PublicKey,
    /// `HOST:PORT` of its WireGuard socket; the host may be a name.
    pub endpoint: String,
}

/// A node as others see it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Node {
    /// Its name, unique in the organisation.
    pub name: Label,
    /// Its public key, unique in the installation.
    pub public_key: PublicKey,
    /// Its address, fixed for its life.
    pub address: Ipv6Addr,
    /// The person whose device it is; `None` for a machine. Gateways are told of nobody, devices
    /// of guests only of their owner, and an older control plane says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<User>,
    /// The rules by which it may reach others, in the order of their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_reach: Vec<RuleId>,
    /// The rules by which others may reach it, in the order of their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached_by: Vec<Reach>,
}

/// A person as others see her.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct User {
    /// Her name, unique in the organisation.
    pub name: Label,
    /// What she may be there.
    pub role: policy::Role,
}

/// A port that a node publishes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Service {
    /// The node that offers it.
    pub node: NodeId,
    /// The TCP port, at the node's address.
    pub port: u16,
    /// `HOST:PORT` that the node connects to for each accepted connection, told to it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// LANs behind a node, or behind several of which one carries the traffic.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Site {
    /// Its name, unique in the organisation.
    pub name: Label,
    /// The node that leads to it, of several the one that is preferred.
    pub node: NodeId,
    /// Who leads to it while that one does not, in the order in which they are preferred; with it
    /// at most [`SITE_NODES_MAX`](site::SITE_NODES_MAX).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<NodeId>,
    /// The addresses of its hosts, no two of which overlap.
    pub prefixes: Vec<Ipv4Prefix>,
    /// By which other addresses machines elsewhere know the hosts of some of these prefixes: at
    /// most one for each, and none that overlaps a prefix or an alias of the organisation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Alias>,
    /// How its hosts and the network reach each other.
    #[serde(default, skip_serializing_if = "site::Mode::is_default")]
    pub mode: site::Mode,
    /// The rules by which its hosts may reach others, in the order of their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_reach: Vec<SiteReach>,
    /// The rules by which others may reach its hosts, in the order of their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached_by: Vec<SiteReach>,
}

impl Site {
    /// Lists the nodes that may lead to it, the preferred one first.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let standbys = self.standbys.iter().copied();
        [self.node].into_iter().chain(standbys)
    }

    /// Lists all by which its hosts have addresses inside the network: the prefixes, and the
    /// aliases of those that have one.
    pub fn embedded(&self) -> impl Iterator<Item = Ipv4Prefix> {
        let aliases = self.aliases.iter().map(|alias| alias.alias());
        self.prefixes.iter().copied().chain(aliases)
    }

    /// Returns the alias of one of the prefixes, if it has one.
    #[must_use]
    pub fn alias_of(&self, prefix: Ipv4Prefix) -> Option<Alias> {
        let mut aliases = self.aliases.iter().copied();
        aliases.find(|alias| alias.prefix() == prefix)
    }

    /// Tells whether `node` is one of them.
    #[must_use]
    pub fn is_behind(&self, node: NodeId) -> bool {
        self.nodes().any(|other| other == node)
    }
}
