//! Sites: LANs behind one node, or behind several of which one carries the traffic.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::{
    id::{NodeId, SiteId},
    name::Label,
    site::{Alias, Health, Ipv4Prefix, Mode, NodeHealth, SitePrefix},
};

/// Most prefixes of a site.
pub const SITE_PREFIXES_MAX: usize = 16;

/// Adds a site: LANs that are reached through a node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewSite {
    /// Its name, unique in the organisation.
    #[schema(value_type = String)]
    pub name: Label,
    /// The node that leads to it, of several the one that is preferred.
    pub node: NodeId,
    /// Who leads to it while that node does not, in the order in which they are preferred: at most
    /// three others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<NodeId>,
    /// The IPv4 addresses of its hosts, such as `192.168.1.0/24`: 1 to 16 prefixes, none of which
    /// overlap. Another site may have the same.
    #[schema(value_type = Vec<String>)]
    pub prefixes: Vec<Ipv4Prefix>,
    /// By which other addresses machines with an interface know its hosts, where their own mean
    /// somebody else: `192.168.1.0/24=10.99.1.0/24`, a prefix of the site and one of the same
    /// length, of which no prefix or other alias of the organisation has an address. At most one
    /// for each prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub aliases: Vec<Alias>,
    /// How its hosts and the network reach each other: `auto`, `masquerade` or `routed`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub mode: Mode,
}

/// Gives a site other nodes or aliases; what is absent stays, and so do its own addresses.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SiteChange {
    /// The nodes that lead to it, the preferred one first: 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<NodeId>>,
    /// All of its aliases, as in `NewSite`; none when it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub aliases: Option<Vec<Alias>>,
}

/// LANs that are reached through a node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Site {
    /// Its id.
    pub id: SiteId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// The node that leads to it, of several the one that is preferred.
    pub node: NodeId,
    /// The node's name.
    #[schema(value_type = String)]
    pub node_name: Label,
    /// Every node that leads to it, the preferred one first.
    #[serde(default)]
    pub nodes: Vec<SiteNode>,
    /// The IPv4 addresses of its hosts.
    #[schema(value_type = Vec<String>)]
    pub prefixes: Vec<Ipv4Prefix>,
    /// By which other addresses machines with an interface know them, such as
    /// `192.168.1.0/24=10.99.1.0/24`: a prefix and its alias.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub aliases: Vec<Alias>,
    /// How its hosts and the network reach each other: `auto`, `masquerade` or `routed`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub mode: Mode,
    /// The /96 in which each of these addresses has its IPv6 address.
    #[schema(value_type = String)]
    pub network: SitePrefix,
    /// When it was added.
    pub created: Timestamp,
}

/// One of the nodes that lead to a site.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SiteNode {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub node_name: Label,
    /// Whether the gateway leads to the site through it; absent when the site has no other, or no
    /// gateway has told this server lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carries: Option<bool>,
    /// What the gateway has found out about it: `untried`, `healthy`, `silent`, `no_lan`,
    /// `not_forwarding` or `returning`; absent as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub health: Option<Health>,
}

/// Tells which node of a site carries it, and why the others do not: said by gateways.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SiteHealth {
    /// The nodes that lead to the site: 1 to 4.
    pub nodes: Vec<NodeHealth>,
}
