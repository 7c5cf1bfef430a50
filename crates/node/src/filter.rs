//! Which packets may pass: what the rules of an organisation allow, and what answers it.
//!
//! A gateway asks about packets between nodes, every node about packets for itself; so a rule
//! holds even where one of the two has an older map. A packet is compared with the rules once for
//! each conversation and each change of the rules.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use model::{
    id::RuleId,
    map::{Node, Org},
    policy::{self, Reach, Rule, SiteReach, Wanted},
    site::{Alias, Ipv4Prefix, SitePrefix},
};
use packet::{
    flow::{Flow, Part, Transport},
    ip,
};

use self::table::{Found, Table};
use crate::org::Orgs;

mod table;

/// The rules of one organisation, and who they are about.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: BTreeMap<RuleId, Rule>,
    members: HashMap<Ipv6Addr, Member>,
    sites: HashMap<SitePrefix, Hosts>,
}

/// By which rules a node may reach others and be reached.
#[derive(Debug)]
struct Member {
    may_reach: Box<[RuleId]>,
    reached_by: Box<[Reach]>,
}

/// By which rules hosts of a site may reach others and be reached.
#[derive(Debug)]
struct Hosts {
    /// Rules are about the addresses that hosts have themselves.
    aliases: Box<[Alias]>,
    may_reach: Box<[SiteReach]>,
    reached_by: Box<[SiteReach]>,
}

/// The packet filter of one node.
pub(crate) struct Filter {
    table: Table,
    /// Grows with every change of the rules: what was allowed before is looked at again.
    generation: u64,
}

impl Policy {
    /// Takes the rules of `org`; `None` when it has none, and everything is allowed.
    pub(crate) fn of(org: &Org) -> Option<Self> {
        let rules = org.rules.clone()?;
        let mut policy = Self {
            rules,
            members: HashMap::new(),
            sites: HashMap::new(),
        };
        for node in org.nodes.values() {
            policy.insert(node, None);
        }
        for (&id, site) in &org.sites {
            let prefix = SitePrefix::new(org.prefix, id);
            let mut may_reach = site.may_reach.clone();
            // The decision searches in order.
            may_reach.sort_unstable();
            let hosts = Hosts {
                aliases: site.aliases.clone().into(),
                may_reach: may_reach.into(),
                reached_by: site.reached_by.clone().into(),
            };
            policy.sites.extend(prefix.map(|prefix| (prefix, hosts)));
        }
        Some(policy)
    }

    /// Takes over a node that is new, or has changed from `former`.
    pub(crate) fn insert(&mut self, node: &Node, former: Option<&Node>) {
        if let Some(former) = former {
            self.members.remove(&former.address);
        }
        let mut member = Member {
            may_reach: node.may_reach.clone().into(),
            reached_by: node.reached_by.clone().into(),
        };
        // The decision searches in order.
        member.may_reach.sort_unstable();
        member.reached_by.sort_unstable();
        self.members.insert(node.address, member);
    }

    fn allows(&self, flow: &Flow, wanted: Wanted) -> bool {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (flow.source, flow.destination) else {
            return false;
        };
        let may_reach = match self.members.get(&source) {
            Some(from) => Cow::from(&from.may_reach[..]),
            None => Cow::from(self.host_may_reach(source)),
        };
        let rule = match self.members.get(&destination) {
            Some(to) => {
                let reached_by = to.reached_by.iter().copied();
                policy::decide(&self.rules, &may_reach, reached_by, wanted)
            }
            None => {
                let reached_by = self.host_reached_by(destination);
                policy::decide(&self.rules, &may_reach, reached_by, wanted)
            }
        };
        rule.is_some()
    }

    /// Returns by which rules a host of a site may reach others.
    fn host_may_reach(&self, address: Ipv6Addr) -> Vec<RuleId> {
        let rules = self.about_host(address, |hosts| &hosts.may_reach);
        rules.map(|reach| reach.rule).collect()
    }

    /// Returns how a host of a site is reached.
    fn host_reached_by(&self, address: Ipv6Addr) -> impl Iterator<Item = Reach> {
        self.about_host(address, |hosts| &hosts.reached_by)
    }

    fn about_host(
        &self,
        address: Ipv6Addr,
        list: impl Fn(&Hosts) -> &[SiteReach],
    ) -> impl Iterator<Item = Reach> {
        let host = SitePrefix::of(address);
        let rules = host.and_then(|(site, host)| {
            let hosts = self.sites.get(&site)?;
            let host = Alias::host_among(&hosts.aliases, host);
            let host = Ipv4Prefix::host(host).ok()?;
            let rules = list(hosts);
            Some(rules.iter().filter_map(move |rule| rule.of(host)))
        });
        rules.into_iter().flatten()
    }
}

impl Filter {
    /// Makes a filter; `key` keeps peers from choosing which conversations collide in its table.
    pub(crate) fn new(key: u128) -> Self {
        Self {
            table: Table::new(key),
            generation: 0,
        }
    }

    /// Tells that the rules, or whom they are about, have changed.
    pub(crate) fn changed(&mut self) {
        self.generation += 1;
    }

    /// Takes note of a packet that the own side sends, so that its answers pass.
    pub(crate) fn sent(&mut self, now: Instant, packet: &[u8]) {
        let (flow, ending) = match Part::of(packet) {
            Some(Part::Opening(flow) | Part::Continuing(flow)) => (flow, false),
            Some(Part::Ending(flow)) => (flow, true),
            Some(Part::Error(_) | Part::Fragment { .. }) | None => return,
        };
        match self.table.find(now, flow) {
            Some(found) => self.table.touch(now, found, flow, ending),
            None => self.table.insert(now, flow, None, ending),
        }
    }

    /// Tells whether a packet from another node belongs to a conversation that the own side has
    /// opened.
    pub(crate) fn is_answer(&self, now: Instant, part: Part) -> bool {
        let flow = match part {
            Part::Opening(flow) | Part::Continuing(flow) | Part::Ending(flow) => flow.reversed(),
            Part::Error(flow) => flow,
            Part::Fragment { .. } => return false,
        };
        let found = self.table.find(now, flow);
        found.is_some_and(|found| found.opening == flow)
    }

    /// Tells whether a packet from another node may pass.
    ///
    /// Whether its source is true was settled before, by cryptokey routing.
    pub(crate) fn admits(&mut self, now: Instant, orgs: &Orgs, packet: &[u8]) -> bool {
        let served = ip::addresses(packet).map(|addresses| orgs.of(addresses.source));
        let Ok(Some((_, served))) = served else {
            return false;
        };
        let Some(policy) = &served.policy else {
            return true;
        };
        let Some(part) = Part::of(packet) else {
            return false;
        };
        match part {
            Part::Opening(flow) => self.admits_opening(now, policy, flow),
            Part::Continuing(flow) => self.admits_continuing(now, policy, flow, false),
            Part::Ending(flow) => self.admits_continuing(now, policy, flow, true),
            Part::Error(flow) => {
                self.is_known(now, policy, flow) || either_way(policy, flow, wanted(flow))
            }
            Part::Fragment {
                source,
                destination,
            } => {
                // Useless without the first fragment, which names the ports; so it suffices that
                // the two may speak at all.
                let transport = Transport::Echo(0);
                let flow = Flow {
                    source,
                    destination,
                    transport,
                };
                either_way(policy, flow, Wanted::Ping)
            }
        }
    }

    fn admits_opening(&mut self, now: Instant, policy: &Policy, flow: Flow) -> bool {
        if let Some(found) = self.table.find(now, flow) {
            // UDP does not tell an answer from a question; the others do, and a question in the
            // other direction is another conversation.
            let is_question = match flow.transport {
                Transport::Tcp { .. } | Transport::Echo(_) => true,
                Transport::Udp { .. } | Transport::Other(_) => false,
            };
            if found.opening == flow || !is_question {
                return self.still_allowed(now, policy, found, flow, false);
            }
            return policy.allows(&flow, wanted(flow));
        }
        let allowed = policy.allows(&flow, wanted(flow));
        if allowed {
            let generation = Some(self.generation);
            self.table.insert(now, flow, generation, false);
        }
        allowed
    }

    /// A TCP segment of a connection that is not in the table passes when the rules allow the
    /// connection in either direction: a gateway or node that starts again must not cut it, and a
    /// segment that is no SYN opens nothing.
    fn admits_continuing(
        &mut self,
        now: Instant,
        policy: &Policy,
        flow: Flow,
        ending: bool,
    ) -> bool {
        if let Some(found) = self.table.find(now, flow) {
            return self.still_allowed(now, policy, found, flow, ending);
        }
        if matches!(flow.transport, Transport::Echo(_)) {
            return false;
        }
        let directions = [flow, flow.reversed()];
        let opening = directions
            .into_iter()
            .find(|flow| policy.allows(flow, wanted(*flow)));
        if let Some(opening) = opening {
            let generation = Some(self.generation);
            self.table.insert(now, opening, generation, ending);
        }
        opening.is_some()
    }

    /// Compares a conversation with the rules again if they have changed since.
    fn still_allowed(
        &mut self,
        now: Instant,
        policy: &Policy,
        found: Found,
        flow: Flow,
        ending: bool,
    ) -> bool {
        let opening = found.opening;
        if found.generation.is_some_and(|seen| seen != self.generation) {
            if !policy.allows(&opening, wanted(opening)) {
                self.table.remove(opening);
                return false;
            }
            self.table.renew(opening, self.generation);
        }
        self.table.touch(now, found, flow, ending);
        true
    }

    fn is_known(&mut self, now: Instant, policy: &Policy, flow: Flow) -> bool {
        let found = self.table.find(now, flow);
        found.is_some_and(|found| self.still_allowed(now, policy, found, found.opening, false))
    }
}

fn either_way(policy: &Policy, flow: Flow, wanted_there: Wanted) -> bool {
    let back = flow.reversed();
    let wanted_back = match flow.transport {
        Transport::Echo(_) => wanted_there,
        Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Other(_) => wanted(back),
    };
    policy.allows(&flow, wanted_there) || policy.allows(&back, wanted_back)
}

fn wanted(flow: Flow) -> Wanted {
    match flow.transport {
        Transport::Tcp { destination, .. } => Wanted::Tcp(destination),
        Transport::Udp { destination, .. } => Wanted::Udp(destination),
        Transport::Echo(_) => Wanted::Ping,
        Transport::Other(_) => Wanted::Other,
    }
}

#[cfg(test)]
mod tests;
