//! A site behind a node: how its hosts and other sites reach each other at present, and why.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{
    name::Label,
    site::{Health, Ipv4Prefix, Mode},
};

/// How it stands with one site behind the node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Site {
    /// Its name.
    pub name: Label,
    /// The mode that was chosen.
    pub mode: Mode,
    /// The mode that it works by: `masquerade` or `routed`.
    pub in_force: Mode,
    /// What was found out about answers of its hosts to other sites.
    pub return_path: ReturnPath,
    /// What the router of the LAN has to know so that they find back.
    pub routes: Vec<StaticRoute>,
    /// The same for hosts that take their configuration by DHCP: the data of option 121 (RFC 3442)
    /// in hexadecimal digits, with the default route that the machine has itself.
    #[serde(default)]
    pub dhcp_option_121: Option<String>,
    /// Of a site with several nodes: these, and what the gateway says of them; the preferred one
    /// first. Empty for a site with one node, and while no gateway says anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<SiteNode>,
}

/// One of several nodes of a site.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SiteNode {
    /// Its name.
    pub name: Label,
    /// Whether the gateway leads to the site through it.
    pub carries: bool,
    /// What the gateway has found out about it.
    pub health: Health,
}

/// A route by the node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StaticRoute {
    /// The addresses of another site.
    pub destination: Ipv4Prefix,
    /// The node's own address in the LAN.
    pub router: Ipv4Addr,
}

/// Whether what hosts of a LAN answer to hosts of other sites comes back to the node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReturnPath {
    /// It was not tried out yet.
    Undecided,
    /// It need not be: everything works by masquerade, as was chosen.
    NotWanted,
    /// The node has no interface, so nothing comes back but to itself.
    NoInterface,
    /// The node's machine has no address in the prefixes of the site.
    NoAddress,
    /// No other site has addresses of its own that this machine routes to it.
    NoOtherSite,
    /// The node's machine forwards nothing that comes from the LAN.
    NotForwarding,
    /// No host of the LAN answers TCP, even to the node's machine itself.
    NoWitness,
    /// Hosts answer the node's machine, and another site not: the LAN's router has no route.
    Missing,
    /// The same, but the LAN's router has the route: it drops what belongs to no connection whose
    /// beginning it saw, because only one direction goes through it.
    Triangle,
    /// Answers come back.
    Present,
}
