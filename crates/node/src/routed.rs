//! Sites in routed mode, and aliases of sites: which IPv4 addresses this machine knows.
//!
//! ```text
//!   host ── LAN ── kernel │ here │ tunnel ══ gateway ══ tunnel │ there │ kernel ── LAN ── host
//!   192.168.1.10          fd..:192.168.1.10   to   fd..:192.168.2.10          192.168.2.10
//! ```
//! Both ends translate statelessly, so each host sees the other's own address. That works where an
//! IPv4 address means one host: a site that shares addresses with one behind this node, or with
//! another, is reached by the stack alone, unless it has an alias.
//!
//! ```text
//!   program ── kernel │ here │ tunnel ══ gateway ══ tunnel │ there │ kernel ── LAN ── host
//!   192.0.0.6             fd..:node   to   fd..:10.99.1.10              192.168.1.10
//! ```
//! Inside the network an alias is embedded as it is, and the node of the site, which knows what it
//! stands for, puts the host's own address in its place, and the alias where the host is the
//! source. So packets to and from aliases are those of IPv4 programs, and all others between the
//! same two machines are IPv6, without anything being remembered. A machine that is behind no
//! routed site speaks to aliases from an address of its own (RFC 6877, 6.3), which is its node's
//! inside the network.
//!
//! Behind a site that leaves its mode to the node, what others open is the stack's while nothing
//! that hosts answer would come back; what hosts open themselves always passes here.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::{
    id::SiteId,
    map::{NetworkMap, Org, Role},
    site::{Alias, Ipv4Prefix, Mode, SitePrefix},
};
use packet::{
    ip, tcp,
    translate::{self, Mapping},
};

/// The largest IPv4 packet in bytes that a host of a routed site gets through: translated, its
/// header is 20 bytes longer, and a fragment header takes 8, of the least MTU of IPv6.
pub const SITE_MTU_V4: u16 = 1280 - 20 - 8;

/// From which the machine of a node speaks to hosts that it knows by an alias: the last address of
/// the IPv4 service continuity prefix (RFC 7335, 3), which nobody routes, and any number of
/// interfaces of one machine may have.
pub const MACHINE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 6);

/// The largest segment that a host of another site is told to send to one here: it may hear of no
/// MTU but that of its LAN. The node there does the same (RFC 9293, 3.7.1).
const MSS_MAX: u16 = SITE_MTU_V4 - 40;

/// The LANs whose addresses are known as they are.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// Behind this node.
    own: Vec<Lan>,
    /// Behind other nodes; while there is none behind this one, those with an alias.
    others: Vec<Lan>,
    /// The node's own address, for which [`MACHINE_V4`] stands while no own site is routed.
    machine: Option<Ipv6Addr>,
    /// Which of the others' prefixes the machine routes into the interface.
    routes: BTreeSet<Ipv4Prefix>,
    /// Of the own sites that leave it to the node, those whose hosts' answers come back.
    returning: BTreeSet<SiteId>,
}

/// Who takes what others open to the hosts of an own site.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Taker {
    /// The kernel, always.
    Kernel,
    /// The kernel, but for what the stack has begun.
    KernelNow,
    /// The stack; the kernel has what hosts opened themselves.
    StackNow,
}

/// One prefix of a site.
#[derive(Clone, Copy, Debug)]
struct Lan {
    /// The addresses that its hosts have.
    prefix: Ipv4Prefix,
    /// By which others know them.
    alias: Option<Alias>,
    site: SitePrefix,
    id: SiteId,
    mode: Mode,
}

impl Routed {
    /// Takes over the sites of `map`.
    pub(crate) fn apply(&mut self, map: &NetworkMap) {
        self.own.clear();
        self.others.clear();
        self.machine = None;
        let org = match map.own.role {
            Role::Client => map.own_org(),
            Role::Gateway => None,
        };
        let Some(org) = org else {
            return;
        };
        let own = |site: &model::map::Site| site.is_behind(map.own.id);
        let routed = |site: &model::map::Site| own(site) && site.mode != Mode::Masquerade;
        self.own.extend(lans(org, routed));
        let known = &self.own;
        self.returning
            .retain(|id| known.iter().any(|lan| lan.id == *id));
        let here: Vec<_> = lans(org, own).collect();
        let others: Vec<_> = lans(org, |site| !own(site)).collect();
        let is_alone = |lan: &&Lan| {
            let known_as = lan.known_as();
            let is_here = here.iter().any(|own| own.prefix.overlaps(known_as));
            let shares = |other: &&Lan| other.known_as().overlaps(known_as);
            !is_here && others.iter().filter(shares).count() == 1
        };
        let is_bridged = !self.own.is_empty();
        let is_wanted = |lan: &&Lan| is_bridged || lan.alias.is_some();
        let alone = others.iter().filter(is_alone).filter(is_wanted);
        self.others.extend(alone.copied());
        if !is_bridged && !self.others.is_empty() {
            let node = org.nodes.get(&map.own.id);
            self.machine = node.map(|node| node.address);
        }
    }

    /// Lists the addresses that the machine shall route into the interface.
    pub(crate) fn wanted(&self) -> BTreeSet<Ipv4Prefix> {
        self.others.iter().map(|lan| lan.known_as()).collect()
    }

    /// Returns from where the machine itself speaks to these; `None` for any address that is a
    /// host's of an own site.
    pub(crate) fn source(&self) -> Option<Ipv4Addr> {
        self.machine.map(|_| MACHINE_V4)
    }

    pub(crate) fn set_routes(&mut self, routes: BTreeSet<Ipv4Prefix>) {
        self.routes = routes;
    }

    /// Tells whether what the hosts of a site answer comes back.
    pub(crate) fn set_returning(&mut self, site: SiteId, returning: bool) {
        if returning {
            self.returning.insert(site);
        } else {
            self.returning.remove(&site);
        }
    }

    /// Returns who takes what a host of another site sends to one of an own site; `None` for
    /// everything else.
    pub(crate) fn taker(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Option<Taker> {
        if self.own.is_empty() {
            return None;
        }
        self.extract(source)?;
        let (site, host) = SitePrefix::of(destination)?;
        let mut own = self.own.iter();
        let lan = own.find(|lan| lan.site == site && lan.known_as().contains(host))?;
        Some(match lan.mode {
            Mode::Routed | Mode::Masquerade => Taker::Kernel,
            Mode::Auto if self.returning.contains(&lan.id) => Taker::KernelNow,
            Mode::Auto => Taker::StackNow,
        })
    }

    /// Returns an address of another site that the machine routes into the interface.
    pub(crate) fn foreigner(&self) -> Option<Ipv4Addr> {
        let others = self.others.iter();
        let prefix = others
            .map(|lan| lan.known_as())
            .find(|prefix| self.routes.contains(prefix))?;
        let first = prefix.address();
        // The first address of a network stands for itself (RFC 1122, 3.2.1.3).
        let host = u32::from(prefix.length() < 31);
        Some(Ipv4Addr::from_bits(first.to_bits() + host))
    }

    /// Writes what a host behind this node, or its machine, sends to a host behind another as the
    /// network carries it, and returns its length; `None` for everything else. Errors of a router
    /// without an address in the site come from `router`.
    pub(crate) fn departing(
        &self,
        packet: &[u8],
        router: Ipv6Addr,
        out: &mut [u8],
    ) -> Option<usize> {
        let addresses = ip::addresses(packet).ok()?;
        let (IpAddr::V4(source), IpAddr::V4(destination)) =
            (addresses.source, addresses.destination)
        else {
            return None;
        };
        // Nobody here speaks for a host elsewhere.
        let leaves = self.other(destination).is_some() && self.other(source).is_none();
        let length = leaves.then(|| translate::to_v6(packet, self, router, out))??;
        tcp::clamp_mss(&mut out[..length], MSS_MAX);
        Some(length)
    }

    /// Writes what the network brings to a host behind this node, or to its machine, from one
    /// behind another, as the kernel takes it, and returns its length; `None` for everything else.
    pub(crate) fn arriving(&self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.own.is_empty() && self.machine.is_none() {
            return None;
        }
        let addresses = ip::addresses(packet).ok()?;
        let IpAddr::V6(destination) = addresses.destination else {
            return None;
        };
        let is_machine = self.machine == Some(destination);
        if !is_machine {
            self.own(self.extract(destination)?)?;
        }
        let length = translate::to_v4(packet, self, out)?;
        if is_machine && addresses.source == addresses.destination {
            // The node's own error: the kernel takes nothing from an address that it has.
            ip::set_v4_source(&mut out[..length], translate::DUMMY_V4);
        }
        Some(length)
    }

    /// Finds the own site that has a host with this address.
    fn own(&self, address: Ipv4Addr) -> Option<&Lan> {
        self.own.iter().find(|lan| lan.prefix.contains(address))
    }

    /// Finds the site of others whose hosts are known by such an address, which is routed here.
    fn other(&self, address: Ipv4Addr) -> Option<&Lan> {
        let holds = |lan: &&Lan| {
            let known_as = lan.known_as();
            known_as.contains(address) && self.routes.contains(&known_as)
        };
        self.others.iter().find(holds)
    }
}

impl Lan {
    /// Returns the addresses by which others know the hosts.
    fn known_as(&self) -> Ipv4Prefix {
        self.alias.map_or(self.prefix, Alias::alias)
    }
}

impl Mapping for Routed {
    fn embed(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        if address == MACHINE_V4 && self.machine.is_some() {
            return self.machine;
        }
        if let Some(lan) = self.own(address) {
            let known_as = lan.alias.and_then(|alias| alias.of_host(address));
            return Some(lan.site.embed(known_as.unwrap_or(address)));
        }
        Some(self.other(address)?.site.embed(address))
    }

    fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        if self.machine == Some(address) {
            return Some(MACHINE_V4);
        }
        let (site, known_as) = SitePrefix::of(address)?;
        let mut own = self.own.iter().filter(|lan| lan.site == site);
        let host = own.find_map(|lan| lan.alias?.host(known_as));
        let host = host.unwrap_or(known_as);
        (self.embed(host)? == address).then_some(host)
    }
}

/// Lists the prefixes of some sites.
fn lans(org: &Org, wanted: impl Fn(&model::map::Site) -> bool) -> impl Iterator<Item = Lan> {
    let sites = org.sites.iter().filter(move |(_, site)| wanted(site));
    sites.flat_map(|(&id, site)| {
        let network = SitePrefix::new(org.prefix, id);
        let prefixes = site.prefixes.iter();
        prefixes.filter_map(move |&prefix| {
            Some(Lan {
                prefix,
                alias: site.alias_of(prefix),
                site: network?,
                id,
                mode: site.mode,
            })
        })
    })
}

#[cfg(test)]
mod tests;
