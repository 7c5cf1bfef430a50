//! Sites with several nodes, at a gateway: which of them carries each, and the probes that decide.
//!
//! ```text
//!   gateway ── echo request to the lowest address of the site's /96 ──► node
//!           ◄── echo reply ── its data plane works, and its machine leads to the LAN
//!           ◄── unreachable ── its data plane works, and the LAN is not to be had
//! ```
//! No host has that address, which is the one of the routers that lead there (RFC 4291, 2.6.1).
//! A node answers from its own address (RFC 4443, 4.2), which cryptokey routing proves. What is
//! asked tells the node which one carries the site, so that people hear it there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use model::{
    address::OrgPrefix,
    id::{NodeId, OrgId, SiteId},
    map::{NetworkMap, Org, Role, Site},
    site::{Health, NodeHealth, SITE_NODES_MAX, SitePrefix},
};
use packet::{
    icmp::{self, Cause, Echo, Message, Unreachable},
    ip,
};

use crate::{
    failover::{Failover, Probe},
    refusal,
};

/// The sites of a gateway that several nodes lead to.
#[derive(Debug, Default)]
pub(crate) struct Carriers {
    sites: BTreeMap<SitePrefix, Watched>,
    /// Probes to be sent: at most one for each node of each site.
    probes: VecDeque<(SitePrefix, Probe)>,
    /// The earliest that is due, so that nobody looks through all sites for each packet.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Watched {
    org: OrgId,
    site: SiteId,
    failover: Failover,
}

/// What has changed at one site.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Change {
    pub(crate) org: OrgId,
    pub(crate) site: SiteId,
    /// Who carried it before, if another node does now.
    pub(crate) former: Option<NodeId>,
}

/// What a node of a site knows about it.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Why the machine does not lead to the LAN of a site behind the node.
    faults: BTreeMap<SiteId, Health>,
    /// What the gateway last said of a site's nodes, and when.
    told: BTreeMap<SiteId, (Instant, Vec<NodeHealth>)>,
}

/// What a node has said to a probe.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Said {
    pub(crate) source: Ipv6Addr,
    pub(crate) site: SitePrefix,
    pub(crate) sequence: u16,
    pub(crate) fault: Option<Health>,
}

impl Carriers {
    /// Takes over the sites of `map`, or of some organisations in it. What is known of a site that
    /// stays is kept.
    pub(crate) fn apply<'a>(
        &mut self,
        now: Instant,
        map: &NetworkMap,
        only: Option<impl Iterator<Item = &'a OrgId>>,
    ) {
        let whole = only.is_none();
        let orgs: BTreeSet<_> = match (map.own.role, only) {
            (Role::Client, _) => BTreeSet::new(),
            (Role::Gateway, Some(only)) => only.copied().collect(),
            (Role::Gateway, None) => map.orgs.keys().copied().collect(),
        };
        let mut wanted = BTreeMap::new();
        // Nodes answer the gateway of their organisation and no other.
        let own = map.own.id;
        let uses = |org: &Org| org.gateway.as_ref().is_some_and(|used| used.id == own);
        let known = orgs.iter().filter_map(|id| Some((*id, map.orgs.get(id)?)));
        for (id, org) in known.filter(|(_, org)| uses(org)) {
            let several = |(_, site): &(_, &Site)| !site.standbys.is_empty();
            for (&site_id, site) in org.sites.iter().filter(several) {
                if let Some(prefix) = SitePrefix::new(org.prefix, site_id) {
                    wanted.entry(prefix).or_insert((id, site_id, site));
                }
            }
        }
        let untouched = |watched: &Watched| !whole && !orgs.contains(&watched.org);
        self.sites
            .retain(|prefix, watched| wanted.contains_key(prefix) || untouched(watched));
        for (prefix, (org, site_id, site)) in wanted {
            match self.sites.get_mut(&prefix) {
                Some(watched) => watched.failover.apply(now, site.nodes()),
                None => {
                    let failover = Failover::new(now, site.nodes());
                    let watched = failover.map(|failover| Watched {
                        org,
                        site: site_id,
                        failover,
                    });
                    self.sites.extend(watched.map(|watched| (prefix, watched)));
                }
            }
        }
        self.rearm();
    }

    /// Returns the node through which a site is reached.
    pub(crate) fn carrier(&self, org: OrgPrefix, id: SiteId, site: &Site) -> NodeId {
        if site.standbys.is_empty() {
            return site.node;
        }
        let watched = SitePrefix::new(org, id).and_then(|prefix| self.sites.get(&prefix));
        watched.map_or(site.node, |watched| watched.failover.carrier())
    }

    /// Lists what is known of the nodes of a site; none when it has but one.
    pub(crate) fn nodes(&self, org: OrgPrefix, id: SiteId) -> Vec<NodeHealth> {
        let watched = SitePrefix::new(org, id).and_then(|prefix| self.sites.get(&prefix));
        watched.map_or_else(Vec::new, |watched| report(&watched.failover))
    }

    /// Lists the sites that several nodes lead to.
    pub(crate) fn sites(&self) -> impl Iterator<Item = (OrgId, SiteId, Vec<NodeHealth>)> {
        let sites = self.sites.values();
        sites.map(|watched| (watched.org, watched.site, report(&watched.failover)))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Does what is due; returns what has changed by it.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.due.is_none_or(|due| due > now) {
            return changes;
        }
        for (prefix, watched) in &mut self.sites {
            if watched
                .failover
                .poll_timeout()
                .is_some_and(|due| due <= now)
            {
                changes.extend(watched.change(|failover| failover.handle_timeout(now)));
                while let Some(probe) = watched.failover.poll_probe() {
                    let same =
                        |&(other, waits): &(_, Probe)| other == *prefix && waits.node == probe.node;
                    self.probes.retain(|waiting| !same(waiting));
                    self.probes.push_back((*prefix, probe));
                }
            }
        }
        self.rearm();
        changes
    }

    /// Returns the next probe that is to be sent, of which site of which organisation, and what it
    /// says.
    pub(crate) fn poll_probe(&mut self) -> Option<(OrgId, SitePrefix, Probe, Vec<NodeHealth>)> {
        while let Some((prefix, probe)) = self.probes.pop_front() {
            if let Some(watched) = self.sites.get(&prefix) {
                let report = report(&watched.failover);
                return Some((watched.org, prefix, probe, report));
            }
        }
        None
    }

    /// Returns the organisation and the id of a site that is probed.
    pub(crate) fn site(&self, prefix: SitePrefix) -> Option<(OrgId, SiteId)> {
        let watched = self.sites.get(&prefix)?;
        Some((watched.org, watched.site))
    }

    /// Takes what `node` has said, which was proven; returns what has changed by it.
    pub(crate) fn handle_answer(
        &mut self,
        now: Instant,
        node: NodeId,
        said: &Said,
    ) -> Option<Change> {
        let watched = self.sites.get_mut(&said.site)?;
        let sequence = said.sequence;
        let probe = Probe { node, sequence };
        let change = watched.change(|failover| failover.handle_answer(now, probe, said.fault));
        self.rearm();
        change
    }

    fn rearm(&mut self) {
        let sites = self.sites.values();
        self.due = sites
            .filter_map(|watched| watched.failover.poll_timeout())
            .min();
    }
}

impl Watched {
    /// Does something to the nodes and returns what that has changed.
    fn change(&mut self, act: impl FnOnce(&mut Failover)) -> Option<Change> {
        let before: Vec<_> = self.failover.members().collect();
        let carrier = self.failover.carrier();
        act(&mut self.failover);
        let former = Some(carrier).filter(|former| *former != self.failover.carrier());
        let differs = former.is_some() || !self.failover.members().eq(before);
        differs.then_some(Change {
            org: self.org,
            site: self.site,
            former,
        })
    }
}

fn report(failover: &Failover) -> Vec<NodeHealth> {
    let members = failover.members().map(|(node, health)| NodeHealth {
        node,
        carries: node == failover.carrier(),
        health,
    });
    members.collect()
}

impl Carried {
    /// Takes over the sites behind the map's own node.
    pub(crate) fn apply(&mut self, map: &NetworkMap) {
        let stays = |id: &SiteId| {
            let site = map.own_org().and_then(|org| org.sites.get(id));
            site.is_some_and(|site| site.is_behind(map.own.id))
        };
        self.faults.retain(|id, _| stays(id));
        self.told.retain(|id, _| stays(id));
    }

    pub(crate) fn set_fault(&mut self, site: SiteId, fault: Option<Health>) {
        match fault {
            Some(fault) => self.faults.insert(site, fault),
            None => self.faults.remove(&site),
        };
    }

    /// Returns what the gateway says of a site's nodes at present.
    pub(crate) fn told(&self, now: Instant, site: SiteId) -> &[NodeHealth] {
        let told = self.told.get(&site);
        let fresh = told.filter(|(at, _)| now.saturating_duration_since(*at) < TOLD_AGE_MAX);
        fresh.map_or(&[], |(_, nodes)| nodes)
    }

    /// Takes what a probe of a site says; returns who carried the site when it was told last, if
    /// another node does now.
    pub(crate) fn hear(&mut self, now: Instant, site: SiteId, probe: &Asked<'_>) -> Option<NodeId> {
        let told = parse_report(probe.echo.payload);
        let carrier = carrier_of(&told);
        let before = self.told.insert(site, (now, told));
        let before = before.and_then(|(_, told)| carrier_of(&told));
        before.filter(|_| carrier.is_some() && carrier != before)
    }

    /// Returns what is answered to a probe of a site.
    pub(crate) fn answer(&self, own: Ipv6Addr, site: SiteId, probe: &Asked<'_>) -> Option<Vec<u8>> {
        let own = IpAddr::V6(own);
        match self.faults.get(&site) {
            Some(fault) => refusal::emit(own, cause(*fault), probe.packet),
            None => Some(emit(own, probe.source, &Message::EchoReply(probe.echo))),
        }
    }
}

fn carrier_of(nodes: &[NodeHealth]) -> Option<NodeId> {
    let carrier = nodes.iter().find(|told| told.carries);
    carrier.map(|told| told.node)
}

/// A probe as its node sees it.
pub(crate) struct Asked<'a> {
    packet: &'a [u8],
    pub(crate) source: IpAddr,
    pub(crate) site: SitePrefix,
    echo: Echo<'a>,
}

impl<'a> Asked<'a> {
    /// Parses a packet that came out of the tunnel; `None` when it is something else.
    pub(crate) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (source, destination, message) = icmp_of(packet)?;
        let IpAddr::V6(address) = destination else {
            return None;
        };
        let (site, host) = SitePrefix::of(address)?;
        match message {
            Message::EchoRequest(echo) if host.is_unspecified() => Some(Self {
                packet,
                source,
                site,
                echo,
            }),
            Message::EchoRequest(_)
            | Message::EchoReply(_)
            | Message::Error { .. }
            | Message::Other { .. } => None,
        }
    }
}

impl Said {
    /// Parses a packet of a node to the gateway; `None` when it is something else.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let (source, gateway, message) = icmp_of(packet)?;
        let (probe, address, fault) = match message {
            Message::EchoReply(echo) => (echo, site_of(echo.payload)?, None),
            Message::Error { cause, quote } => {
                let quoted = ip::parse_quote(quote).ok()?;
                let (asker, asked) = (quoted.header.source, quoted.header.destination);
                if asker != gateway || quoted.header.next_header != ip::ICMPV6 {
                    return None;
                }
                let Message::EchoRequest(echo) = icmp::parse(asker, asked, quoted.payload).ok()?
                else {
                    return None;
                };
                (echo, site_of(echo.payload)?, Some(fault(cause)?))
            }
            Message::EchoRequest(_) | Message::Other { .. } => return None,
        };
        let IpAddr::V6(source) = source else {
            return None;
        };
        let (site, _) = SitePrefix::of(address)?;
        (probe.identifier == IDENTIFIER).then_some(Self {
            source,
            site,
            sequence: probe.sequence,
            fault,
        })
    }
}

/// Makes the packet that asks a node of a site, in the name of the gateway's resolver.
pub(crate) fn request(
    gateway: Ipv6Addr,
    site: SitePrefix,
    probe: Probe,
    report: &[NodeHealth],
) -> Vec<u8> {
    let address = site.embed(Ipv4Addr::UNSPECIFIED);
    let mut payload = address.octets().to_vec();
    for told in report {
        payload.extend(told.node.0.to_be_bytes());
        let carries = if told.carries { CARRIES } else { 0 };
        payload.push(told.health.code() | carries);
    }
    let message = Message::EchoRequest(Echo {
        identifier: IDENTIFIER,
        sequence: probe.sequence,
        payload: &payload,
    });
    emit(gateway.into(), address.into(), &message)
}

/// Reads what a probe says of the nodes of its site: as much as is understood.
fn parse_report(payload: &[u8]) -> Vec<NodeHealth> {
    let entries = payload.get(ADDRESS..).unwrap_or_default();
    let entries = entries.chunks_exact(ENTRY).take(SITE_NODES_MAX);
    let parse = |entry: &[u8]| {
        let (node, told) = entry.split_first_chunk()?;
        let told = *told.first()?;
        Some(NodeHealth {
            node: NodeId(i64::from_be_bytes(*node)),
            carries: told & CARRIES != 0,
            health: Health::of_code(told & !CARRIES)?,
        })
    };
    entries.filter_map(parse).collect()
}

/// Reads the address that a probe was sent to.
fn site_of(payload: &[u8]) -> Option<Ipv6Addr> {
    let address: [u8; ADDRESS] = *payload.first_chunk()?;
    Some(address.into())
}

/// Says as a router would why a LAN is not to be had.
fn cause(fault: Health) -> Cause {
    Cause::Unreachable(match fault {
        Health::NotForwarding => Unreachable::Prohibited,
        Health::NoLan | Health::Untried | Health::Healthy | Health::Silent | Health::Returning => {
            Unreachable::Network
        }
    })
}

fn fault(cause: Cause) -> Option<Health> {
    match cause {
        Cause::Unreachable(Unreachable::Prohibited) => Some(Health::NotForwarding),
        Cause::Unreachable(Unreachable::Network) => Some(Health::NoLan),
        Cause::Unreachable(Unreachable::Host | Unreachable::Port | Unreachable::Other(_))
        | Cause::PacketTooBig { .. }
        | Cause::TimeExceeded { .. }
        | Cause::ParameterProblem { .. } => None,
    }
}

fn icmp_of(packet: &[u8]) -> Option<(IpAddr, IpAddr, Message<'_>)> {
    // Most packets are something else, and are told apart by two bytes.
    if packet.first()? >> 4 != 6 || packet.get(NEXT_HEADER) != Some(&ip::ICMPV6) {
        return None;
    }
    let parsed = ip::parse(packet).ok()?;
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    let message = icmp::parse(source, destination, parsed.payload).ok()?;
    Some((source, destination, message))
}

fn emit(source: IpAddr, destination: IpAddr, message: &Message<'_>) -> Vec<u8> {
    let data = match message {
        Message::EchoRequest(echo) | Message::EchoReply(echo) => echo.payload.len(),
        Message::Error { quote, .. } => quote.len(),
        Message::Other { body, .. } => body.len(),
    };
    let header = ip::Header {
        source,
        destination,
        next_header: ip::ICMPV6,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let length = icmp::HEADER + data;
    let mut packet = vec![0; ip::header_length(destination) + length];
    let at = ip::emit_header(&header, length, &mut packet);
    icmp::emit(source, destination, message, &mut packet[at..]);
    packet
}

/// Of our echo requests: nobody else sends any from the gateway's address.
const IDENTIFIER: u16 = 0x7374;

/// Bytes of the address that leads a probe.
const ADDRESS: usize = 16;

/// Bytes that tell of one node: its id and its health.
const ENTRY: usize = 9;

/// Stands beside the health of the node that carries the site.
const CARRIES: u8 = 0x80;

/// Where the next header stands in an IPv6 header (RFC 8200, 3).
const NEXT_HEADER: usize = 6;

/// What the gateway has said counts so long: it says it every second.
const TOLD_AGE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn org() -> OrgPrefix {
        OrgPrefix::new([1, 2, 3, 4, 5])
    }

    fn site() -> SitePrefix {
        SitePrefix::new(org(), SiteId(7)).expect("a site")
    }

    fn own() -> Ipv6Addr {
        org().address(model::address::Kind::Node, 12)
    }

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        Instant::now()
    }

    const PROBE: Probe = Probe {
        node: NodeId(12),
        sequence: 0xfffe,
    };

    fn told() -> [NodeHealth; 2] {
        [(12, false, Health::Silent), (13, true, Health::Healthy)].map(|(node, carries, health)| {
            NodeHealth {
                node: NodeId(node),
                carries,
                health,
            }
        })
    }

    #[test]
    fn a_node_answers_from_its_own_address_and_learns_who_carries_the_site() {
        let packet = request(org().resolver(), site(), PROBE, &told());
        let asked = Asked::parse(&packet).expect("a probe");
        assert_eq!(asked.site, site());
        let mut carried = Carried::default();
        let faults = [None, Some(Health::NoLan), Some(Health::NotForwarding)];
        for fault in faults {
            carried.set_fault(SiteId(7), fault);
            assert_eq!(carried.hear(now(), SiteId(7), &asked), None, "as before");
            let answer = carried.answer(own(), SiteId(7), &asked);
            let said = Said::parse(&answer.expect("an answer"));
            let expected = Said {
                source: own(),
                site: site(),
                sequence: PROBE.sequence,
                fault,
            };
            assert_eq!(said, Some(expected));
        }
        assert_eq!(carried.told(now(), SiteId(7)), told());
        assert_eq!(carried.told(now() + TOLD_AGE_MAX, SiteId(7)), []);
        assert_eq!(carried.told(now(), SiteId(8)), []);
    }

    #[test]
    fn what_is_no_probe_is_not_taken_for_one() {
        let packet = request(org().resolver(), site(), PROBE, &told());
        let host = site().embed(Ipv4Addr::new(10, 0, 0, 1));
        let echo = Message::EchoRequest(Echo {
            identifier: IDENTIFIER,
            sequence: 1,
            payload: &[],
        });
        let to_host = emit(org().resolver().into(), host.into(), &echo);
        let to_node = emit(org().resolver().into(), own().into(), &echo);
        for other in [&packet[..packet.len() - 1], &to_host, &to_node, &[]] {
            assert!(Asked::parse(other).is_none());
        }
        for other in [&packet, &to_node] {
            assert_eq!(Said::parse(other), None);
        }
        for length in 0..packet.len() - ip::V6_HEADER - icmp::HEADER {
            let payload = &packet[ip::V6_HEADER + icmp::HEADER..][..length];
            assert!(parse_report(payload).len() <= 2);
        }
        assert_eq!(parse_report(&[0xff; 200]), []);
        assert_eq!(parse_report(&[0; 200]).len(), SITE_NODES_MAX);
    }
}
