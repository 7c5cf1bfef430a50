//! Sites with several nodes: the gateway probes these and leads to each site through one of them;
//! a node answers.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use model::{
    id::{OrgId, SiteId},
    map::{self, Role},
    site::{Health, NodeHealth, SitePrefix},
};
use wireguard::PeerId;

use super::{Event, Node, QUEUE_MAX};
use crate::{
    carrier::{Asked, Change, Said, request},
    roster::{self, Plan},
    status::is_up,
};

impl Node {
    /// Tells why the machine does not lead to the LAN of a site behind the node, or that it does:
    /// [`Health::NoLan`] or [`Health::NotForwarding`]. A site with several nodes is carried by
    /// another one then.
    pub fn set_site_fault(&mut self, site: SiteId, fault: Option<Health>) {
        self.carried.set_fault(site, fault);
    }

    /// Lists what is known of the nodes of a site that has several: at a gateway what it has found
    /// out, at one of them what the gateway has said lately; else nothing.
    #[must_use]
    pub fn site_nodes(&self, now: Instant, org: OrgId, site: SiteId) -> Vec<NodeHealth> {
        let Some(map) = self.map() else {
            return Vec::new();
        };
        match (map.own.role, map.orgs.get(&org)) {
            (Role::Gateway, Some(org)) => self.carriers.nodes(org.prefix, site),
            (Role::Client, Some(_)) => self.carried.told(now, site).to_vec(),
            (Role::Gateway | Role::Client, None) => Vec::new(),
        }
    }

    /// Lists the sites of a gateway that have several nodes, with what is known of these.
    #[must_use]
    pub fn carried_sites(&self) -> Vec<(OrgId, SiteId, Vec<NodeHealth>)> {
        self.carriers.sites().collect()
    }

    /// Does what is due about the nodes of sites.
    pub(super) fn look_at_carriers(&mut self, now: Instant) {
        let changes = self.carriers.handle_timeout(now);
        for change in changes {
            self.follow_carrier(now, change);
        }
    }

    /// Returns the next packet of the node's own making that is for a peer.
    pub(super) fn next_packet(&mut self, now: Instant) -> Option<(PeerId, Vec<u8>)> {
        let waits = self.outgoing.pop_front();
        waits.or_else(|| self.poll_carrier_probe(now))
    }

    /// Returns the next probe, and the peer it is for.
    fn poll_carrier_probe(&mut self, now: Instant) -> Option<(PeerId, Vec<u8>)> {
        while let Some((org, site, probe, report)) = self.carriers.poll_probe() {
            let node = self.map().and_then(|map| {
                let org = map.orgs.get(&org)?;
                // Nodes answer the gateway of their organisation and no other.
                let gateway = org.gateway.as_ref()?;
                let node = org.nodes.get(&probe.node)?;
                (gateway.id == map.own.id).then_some((org.prefix, node))
            });
            let Some((prefix, node)) = node else {
                continue;
            };
            let peer = self.roster.peer(&node.public_key).map(|peer| peer.id);
            // A probe to whom no tunnel stands is not sent: nodes make theirs by themselves, and
            // nobody is to find it among what was discarded.
            let stands = |peer: &PeerId| {
                let status = self.device.status(*peer);
                status.is_some_and(|status| is_up(now, &status))
            };
            if let Some(peer) = peer.filter(stands) {
                return Some((peer, request(prefix.resolver(), site, probe, &report)));
            }
        }
        None
    }

    /// Takes a packet of a peer to the gateway itself; true when it was the answer to a probe.
    pub(super) fn take_carrier_answer(&mut self, now: Instant, packet: &[u8]) -> bool {
        if self.carriers.poll_timeout().is_none() {
            return false;
        }
        let Some(said) = Said::parse(packet) else {
            return false;
        };
        let node = self.carriers.site(said.site).and_then(|(org, site)| {
            let org = self.map()?.orgs.get(&org)?;
            let mut nodes = org.sites.get(&site)?.nodes();
            let has_address = |node: &map::Node| node.address == said.source;
            nodes.find(|id| org.nodes.get(id).is_some_and(has_address))
        });
        let Some(node) = node else {
            return false;
        };
        if let Some(change) = self.carriers.handle_answer(now, node, &said) {
            self.follow_carrier(now, change);
        }
        true
    }

    /// Leads to a site through the node that carries it now, and tells that something has changed.
    fn follow_carrier(&mut self, now: Instant, change: Change) {
        let Change { org, site, former } = change;
        if let Some(served) = self
            .map()
            .and_then(|map| map.orgs.get(&org))
            .filter(|_| former.is_some())
        {
            let nodes = served.sites.get(&site).into_iter();
            let nodes = nodes.flat_map(|site| site.nodes());
            let wanted = nodes.filter_map(|id| {
                let node = served.nodes.get(&id)?;
                roster::wanted_node(served, id, node, &self.carriers)
            });
            let plan: Plan = wanted.collect();
            self.roster.apply_part(now, &mut self.device, &plan, &plan);
        }
        self.tell_site(Change { org, site, former });
    }

    fn tell_site(&mut self, Change { org, site, former }: Change) {
        if former.is_some() {
            self.happened.sites_moved += 1;
        }
        self.events
            .push_back(Event::SiteChanged { org, site, former });
    }

    /// Takes a packet that `from` sealed for this node; true when it was a probe of a site behind
    /// it, which is answered.
    pub(super) fn take_carrier_probe(&mut self, now: Instant, from: PeerId, packet: &[u8]) -> bool {
        let Some(asked) = Asked::parse(packet) else {
            return false;
        };
        let Some((own, org, site)) = self.probed_site(&asked) else {
            return false;
        };
        let former = self.carried.hear(now, site, &asked);
        if former.is_some() {
            self.tell_site(Change { org, site, former });
        }
        let answer = self.carried.answer(own, site, &asked);
        if self.outgoing.len() < QUEUE_MAX {
            self.outgoing.extend(answer.map(|answer| (from, answer)));
        }
        true
    }

    /// Returns the own address, and the organisation and the site behind this node that its
    /// gateway asks about.
    fn probed_site(&self, asked: &Asked<'_>) -> Option<(Ipv6Addr, OrgId, SiteId)> {
        let map = self.map().filter(|map| map.own.role == Role::Client)?;
        let (id, org) = map.orgs.first_key_value()?;
        let own = self.orgs.own().next()?;
        let from_gateway = asked.source == IpAddr::V6(org.prefix.resolver());
        let mut sites = org
            .sites
            .iter()
            .filter(|(_, site)| site.is_behind(map.own.id));
        let is_asked = |id: SiteId| SitePrefix::new(org.prefix, id) == Some(asked.site);
        let (site, _) = sites
            .find(|(id, _)| is_asked(**id))
            .filter(|_| from_gateway)?;
        Some((own, *id, *site))
    }
}
