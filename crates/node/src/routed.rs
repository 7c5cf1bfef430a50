//! Sites in routed mode: whose IPv4 addresses this machine and the network know as they are.
//!
//! ```text
//!   host ── LAN ── kernel │ here │ tunnel ══ gateway ══ tunnel │ there │ kernel ── LAN ── host
//!   192.168.1.10          fd..:192.168.1.10   to   fd..:192.168.2.10          192.168.2.10
//! ```
//! Both ends translate statelessly, so each host sees the other's own address. That works where an
//! IPv4 address means one host: a site that shares addresses with one behind this node, or with
//! another, is reached by the stack alone.
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
    site::{Ipv4Prefix, Mode, SitePrefix},
};
use packet::{
    ip, tcp,
    translate::{self, Mapping},
};

/// The largest IPv4 packet in bytes that a host of a routed site gets through: translated, its
/// header is 20 bytes longer, and a fragment header takes 8, of the least MTU of IPv6.
pub const SITE_MTU_V4: u16 = 1280 - 20 - 8;

/// The largest segment that a host of another site is told to send to one here: it may hear of no
/// MTU but that of its LAN. The node there does the same (RFC 9293, 3.7.1).
const MSS_MAX: u16 = SITE_MTU_V4 - 40;

/// The LANs whose addresses are known as they are.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// Behind this node.
    own: Vec<Lan>,
    /// Behind other nodes.
    others: Vec<Lan>,
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
    prefix: Ipv4Prefix,
    site: SitePrefix,
    id: SiteId,
    mode: Mode,
}

impl Routed {
    /// Takes over the sites of `map`.
    pub(crate) fn apply(&mut self, map: &NetworkMap) {
        self.own.clear();
        self.others.clear();
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
        let all: Vec<_> = lans(org, |_| true).collect();
        let is_alone = |lan: &Lan| {
            let shares = |other: &&Lan| other.prefix.overlaps(lan.prefix);
            all.iter().filter(shares).count() == 1
        };
        if !self.own.is_empty() {
            let others = lans(org, |site| !own(site));
            self.others.extend(others.filter(is_alone));
        }
    }

    /// Lists the addresses that the machine shall route into the interface.
    pub(crate) fn wanted(&self) -> BTreeSet<Ipv4Prefix> {
        self.others.iter().map(|lan| lan.prefix).collect()
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
        let lan = own.find(|lan| lan.site == site && lan.prefix.contains(host))?;
        Some(match lan.mode {
            Mode::Routed | Mode::Masquerade => Taker::Kernel,
            Mode::Auto if self.returning.contains(&lan.id) => Taker::KernelNow,
            Mode::Auto => Taker::StackNow,
        })
    }

    /// Returns an address of another site that the machine routes into the interface.
    pub(crate) fn foreigner(&self) -> Option<Ipv4Addr> {
        let mut others = self.others.iter();
        let lan = others.find(|lan| self.routes.contains(&lan.prefix))?;
        let first = lan.prefix.address();
        // The first address of a network stands for itself (RFC 1122, 3.2.1.3).
        let host = u32::from(lan.prefix.length() < 31);
        Some(Ipv4Addr::from_bits(first.to_bits() + host))
    }

    /// Writes what a host behind this node sends to one behind another as the network carries it,
    /// and returns its length; `None` for everything else. Errors of a router without an address
    /// in the site come from `router`.
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

    /// Writes what the network brings to a host behind this node, from one behind another, as the
    /// kernel takes it, and returns its length; `None` for everything else.
    pub(crate) fn arriving(&self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.own.is_empty() {
            return None;
        }
        let addresses = ip::addresses(packet).ok()?;
        let IpAddr::V6(destination) = addresses.destination else {
            return None;
        };
        self.own(self.extract(destination)?)?;
        translate::to_v4(packet, self, out)
    }

    fn own(&self, address: Ipv4Addr) -> Option<SitePrefix> {
        let lan = self.own.iter().find(|lan| lan.prefix.contains(address))?;
        Some(lan.site)
    }

    fn other(&self, address: Ipv4Addr) -> Option<SitePrefix> {
        let holds = |lan: &&Lan| lan.prefix.contains(address) && self.routes.contains(&lan.prefix);
        Some(self.others.iter().find(holds)?.site)
    }
}

impl Mapping for Routed {
    fn embed(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let site = self.own(address).or_else(|| self.other(address))?;
        Some(site.embed(address))
    }

    fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let (_, host) = SitePrefix::of(address)?;
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
                site: network?,
                id,
                mode: site.mode,
            })
        })
    })
}
