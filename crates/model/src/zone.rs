//! What a name means to one asker: decided by the organisation of its source address.
//!
//! ```text
//! NODE.internal           a node of the asker's organisation
//! NODE.ORG.internal       the same, with the asker's own organisation only
//! SERVICE.svc.internal    every node that offers the service, in shuffled order
//! SITE.site.internal      TXT: the IPv4 prefixes of the site, and their aliases
//! A-B-C-D.SITE.site.internal   the host A.B.C.D of the site
//! _sshca.internal         TXT: the signed CA keys of the organisation
//! _whoami.internal        TXT: who the resolver takes the asker for
//! _health.internal        AAAA of the resolver, TXT of constant size
//! ```
//! What belongs to another organisation is answered exactly like what does not exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{
    address::OrgPrefix,
    id::NodeId,
    map::{Node, Org},
    name::{Label, ZONE},
    site::{Alias, Ipv4Prefix, SitePrefix},
};

/// The names that the members of one organisation may see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Zone {
    org: Label,
    prefix: OrgPrefix,
    serial: u64,
    nodes: BTreeMap<Label, Ipv6Addr>,
    services: BTreeMap<Label, Vec<Ipv6Addr>>,
    sites: BTreeMap<Label, Site>,
    askers: BTreeMap<Ipv6Addr, Label>,
    /// The signed statement of the organisation's CA keys; empty if it has none.
    ssh: Vec<String>,
}

/// What is said of a site.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Site {
    prefix: SitePrefix,
    prefixes: Vec<Ipv4Prefix>,
    aliases: Vec<Alias>,
}

/// What an asker wants to know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// The name asked for.
    pub name: Name,
    /// The type of record asked for.
    pub kind: Kind,
}

/// A name inside the zone, by its form; whether it exists is for [`Zone::answer`] to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Name {
    /// `internal` itself.
    Apex,
    /// `NODE.internal`.
    Node(Label),
    /// `NODE.ORG.internal`.
    Qualified {
        /// The first label.
        node: Label,
        /// The second label.
        org: Label,
    },
    /// `svc.internal`, under which the services lie.
    Services,
    /// `SERVICE.svc.internal`.
    Service(Label),
    /// `site.internal`, under which the sites lie.
    Sites,
    /// `SITE.site.internal`.
    Site(Label),
    /// `A-B-C-D.SITE.site.internal`.
    Host {
        /// The address that the first label spells.
        address: Ipv4Addr,
        /// The second label.
        site: Label,
    },
    /// `_sshca.internal`.
    SshCa,
    /// `_whoami.internal`.
    Whoami,
    /// `_health.internal`.
    Health,
    /// A name inside the zone that has no form of the above, and so never exists.
    Unknown,
}

/// A type of record (RFC 1035, 3.2.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// IPv6 addresses (RFC 3596).
    Aaaa,
    /// Text.
    Txt,
    /// The start of authority.
    Soa,
    /// Any other: no name of the zone has records of it.
    Other,
}

/// What the zone says about a question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// AAAA records, at least one.
    Addresses(Vec<Ipv6Addr>),
    /// One TXT record with these strings, each of at most 255 bytes.
    Text(Vec<String>),
    /// The SOA record of the zone.
    Authority,
    /// The name exists, but has no record of that type (RFC 9499: NODATA).
    NoData,
    /// No such name, as far as this asker may know (`NXDOMAIN`).
    NoSuchName,
}

/// The name does not lie inside the zone: another resolver has to be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a name below `.{ZONE}`")]
pub struct Foreign;

impl Zone {
    /// Indexes the names of `org` as they stand in the map with `serial`.
    ///
    /// Of two nodes with one name the one with the lower id keeps it; a service is only answered
    /// with nodes that the map holds.
    #[must_use]
    pub fn new(org: &Org, serial: u64) -> Self {
        let mut nodes = BTreeMap::new();
        let mut askers = BTreeMap::new();
        for node in org.nodes.values() {
            nodes.entry(node.name.clone()).or_insert(node.address);
            askers.insert(node.address, node.name.clone());
        }
        let address = |id: NodeId| org.nodes.get(&id).map(|node| node.address);
        let services = org.services.iter().filter_map(|(name, offers)| {
            let addresses: BTreeSet<_> = offers.iter().filter_map(|o| address(o.node)).collect();
            (!addresses.is_empty()).then(|| (name.clone(), addresses.into_iter().collect()))
        });
        let sites = org.sites.iter().filter_map(|(&id, site)| {
            let prefix = SitePrefix::new(org.prefix, id)?;
            let said = Site {
                prefix,
                prefixes: site.prefixes.clone(),
                aliases: site.aliases.clone(),
            };
            Some((site.name.clone(), said))
        });
        let ssh = org.ssh.as_ref();
        Self {
            org: org.name.clone(),
            prefix: org.prefix,
            serial,
            nodes,
            services: services.collect(),
            sites: sites.collect(),
            askers,
            ssh: ssh.map_or_else(Vec::new, |ssh| ssh.statement.to_txt(org.prefix)),
        }
    }

    /// Takes over one node that was added to `org`, or changed from what it was as `former`.
    ///
    /// Equal to [`Zone::new`] of the changed organisation, at a cost that does not grow with it.
    pub fn insert(&mut self, org: &Org, id: NodeId, former: Option<&Node>, serial: u64) {
        let same_name = |other: &Node, node: &Node| other.name == node.name;
        let offers = || {
            org.services
                .values()
                .flatten()
                .any(|offer| offer.node == id)
        };
        let Some(node) = org.nodes.get(&id) else {
            return;
        };
        let renamed = former.is_some_and(|former| !same_name(former, node));
        if renamed || self.nodes.contains_key(&node.name) || offers() {
            // Who else had or has the name, or what is offered, only the whole can tell.
            *self = Self::new(org, serial);
            return;
        }
        self.serial = serial;
        self.nodes.insert(node.name.clone(), node.address);
        self.askers.insert(node.address, node.name.clone());
    }

    /// Returns the serial of the map that the zone was made from.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Answers `question` of the node at `asker`, which is known to be of this organisation.
    ///
    /// The order of several addresses follows from `seed`, so that clients which take the first
    /// one spread over all.
    #[must_use]
    pub fn answer(&self, asker: Ipv6Addr, question: &Question, seed: u64) -> Answer {
        match &question.name {
            Name::Apex => match question.kind {
                Kind::Soa => Answer::Authority,
                Kind::Aaaa | Kind::Txt | Kind::Other => Answer::NoData,
            },
            Name::Node(label) => self.node(label, question.kind),
            Name::Qualified { node, org } => {
                if *org != self.org {
                    return Answer::NoSuchName;
                }
                match self.nodes.get(node) {
                    Some(&address) => Records::addresses(vec![address]).of(question.kind),
                    None => Answer::NoSuchName,
                }
            }
            Name::Services => Answer::NoData,
            Name::Service(label) => match self.services.get(label) {
                Some(addresses) => Records::addresses(shuffled(addresses, seed)).of(question.kind),
                None => Answer::NoSuchName,
            },
            Name::Sites => Answer::NoData,
            Name::Site(label) => match self.sites.get(label) {
                Some(site) => Records::text(site.text()).of(question.kind),
                None => Answer::NoSuchName,
            },
            Name::Host { address, site } => match self.host(*address, site) {
                Some(address) => Records::addresses(vec![address]).of(question.kind),
                None => Answer::NoSuchName,
            },
            Name::SshCa => Records::text(self.ssh.clone()).of(question.kind),
            Name::Whoami => Records::text(self.whoami(asker)).of(question.kind),
            Name::Health => Records {
                addresses: vec![self.prefix.resolver()],
                text: vec!["ok".to_owned()],
            }
            .of(question.kind),
            Name::Unknown => Answer::NoSuchName,
        }
    }

    fn node(&self, label: &Label, kind: Kind) -> Answer {
        match self.nodes.get(label) {
            Some(&address) => Records::addresses(vec![address]).of(kind),
            // `ORG.internal` has no records, but names exist below it (RFC 8020).
            None if *label == self.org => Answer::NoData,
            None => Answer::NoSuchName,
        }
    }

    fn host(&self, address: Ipv4Addr, site: &Label) -> Option<Ipv6Addr> {
        let site = self.sites.get(site)?;
        let is_there = site.prefixes.iter().any(|prefix| prefix.contains(address));
        is_there.then(|| site.prefix.embed(address))
    }

    fn whoami(&self, asker: Ipv6Addr) -> Vec<String> {
        let node = self.askers.get(&asker);
        let node = node.map_or("", Label::as_str);
        vec![
            format!("org={}", self.org),
            format!("node={node}"),
            format!("address={asker}"),
        ]
    }
}

impl Name {
    /// Parses a name with or without its final dot.
    ///
    /// # Errors
    /// [`Foreign`] when it does not end in the zone.
    pub fn parse(text: &str) -> Result<Self, Foreign> {
        let text = text.strip_suffix('.').unwrap_or(text);
        Self::from_labels(text.split('.').map(str::as_bytes))
    }

    /// Parses a name as a person types it: the zone may be left out, as in `db` or `web.svc`.
    #[must_use]
    pub fn parse_relative(text: &str) -> Self {
        let text = text.strip_suffix('.').unwrap_or(text);
        Self::parse(text)
            .or_else(|Foreign| {
                let zone = std::iter::once(ZONE.as_bytes());
                Self::from_labels(text.split('.').map(str::as_bytes).chain(zone))
            })
            .unwrap_or(Self::Unknown)
    }

    /// Takes the labels of a name, the zone's label last, the root's left out.
    ///
    /// # Errors
    /// [`Foreign`] when they do not end in the zone.
    pub fn from_labels<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Result<Self, Foreign> {
        let labels: Vec<_> = labels.take(LABELS_MAX).collect();
        let Some((zone, labels)) = labels.split_last() else {
            return Err(Foreign);
        };
        if !zone.eq_ignore_ascii_case(ZONE.as_bytes()) {
            return Err(Foreign);
        }
        Ok(Self::below_zone(labels).unwrap_or(Self::Unknown))
    }

    fn below_zone(labels: &[&[u8]]) -> Option<Self> {
        match labels {
            [] => Some(Self::Apex),
            [one] if one.eq_ignore_ascii_case(b"_sshca") => Some(Self::SshCa),
            [one] if one.eq_ignore_ascii_case(b"_whoami") => Some(Self::Whoami),
            [one] if one.eq_ignore_ascii_case(b"_health") => Some(Self::Health),
            [one] if one.eq_ignore_ascii_case(b"svc") => Some(Self::Services),
            [one] if is_sites(one) => Some(Self::Sites),
            [one] => label(one).map(Self::Node),
            [service, svc] if svc.eq_ignore_ascii_case(b"svc") => label(service).map(Self::Service),
            [name, site] if is_sites(site) => label(name).map(Self::Site),
            [address, name, site] if is_sites(site) => Some(Self::Host {
                address: spelled(address)?,
                site: label(name)?,
            }),
            [node, org] => {
                let (node, org) = (label(node)?, label(org)?);
                Some(Self::Qualified { node, org })
            }
            _ => None,
        }
    }
}

impl Site {
    fn text(&self) -> Vec<String> {
        let prefixes = self.prefixes.iter().map(|it| format!("prefix={it}"));
        let aliases = self.aliases.iter().map(|it| format!("alias={it}"));
        prefixes.chain(aliases).collect()
    }
}

/// The records of one name.
struct Records {
    addresses: Vec<Ipv6Addr>,
    text: Vec<String>,
}

impl Records {
    fn addresses(addresses: Vec<Ipv6Addr>) -> Self {
        let text = Vec::new();
        Self { addresses, text }
    }

    fn text(text: Vec<String>) -> Self {
        let addresses = Vec::new();
        Self { addresses, text }
    }

    fn of(self, kind: Kind) -> Answer {
        match kind {
            Kind::Aaaa if !self.addresses.is_empty() => Answer::Addresses(self.addresses),
            Kind::Txt if !self.text.is_empty() => Answer::Text(self.text),
            Kind::Aaaa | Kind::Txt | Kind::Soa | Kind::Other => Answer::NoData,
        }
    }
}

/// More labels than a name of 255 bytes can have (RFC 1035, 2.3.4).
const LABELS_MAX: usize = 128;

fn is_sites(label: &[u8]) -> bool {
    label.eq_ignore_ascii_case(b"site")
}

/// Reads an IPv4 address with hyphens for dots; each has one spelling.
fn spelled(label: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(label).ok()?;
    // The standard library refuses leading zeros.
    let is_spelled = !text.contains('.');
    text.replace('-', ".").parse().ok().filter(|_| is_spelled)
}

fn label(bytes: &[u8]) -> Option<Label> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Fisher and Yates' shuffle, driven by `SplitMix64`.
fn shuffled(addresses: &[Ipv6Addr], seed: u64) -> Vec<Ipv6Addr> {
    let mut addresses = addresses.to_vec();
    let mut state = seed;
    for end in (1..addresses.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        let choices = u64::try_from(end).expect("a length fits 64 bits") + 1;
        let chosen = usize::try_from(word % choices).expect("smaller than a length");
        addresses.swap(end, chosen);
    }
    addresses
}

#[cfg(test)]
mod tests;
