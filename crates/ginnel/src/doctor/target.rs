//! The machine that is to be reached: its name, the rules about it, its site, its port.

use std::{fmt::Write as _, net::IpAddr};

use model::{
    map::{NetworkMap, Node, Org, Site},
    policy::{Reach, Wanted, decide},
    site::{Alias, Ipv4Prefix, SitePrefix},
};

use super::{
    Seen,
    agent::{Agent, Echoed},
    finding::{Cause, Finding},
    tunnel::{self, SMALL_SIZE},
};

/// The node that leads to a site.
pub(super) struct Lead<'a> {
    site: &'a Site,
    nodes: Vec<&'a Node>,
}

/// Finds the address that `host` means.
pub(super) async fn name(agent: &Agent, host: &str) -> Seen<IpAddr> {
    let literal = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Ok(address) = literal.unwrap_or(host).parse() {
        return Ok((address, "an address".to_owned()));
    }
    let addresses = agent.resolve(host).await?;
    let Some(address) = addresses.first() else {
        return Err(Finding::new(
            Cause::NoSuchName,
            format!("DNS: `{host}` has no address"),
            "see `ginnel node list` and `ginnel service list` for the names that there are",
        ));
    };
    Ok((*address, format!("{host} is {address}")))
}

/// Returns what is wanted of the machine.
pub(super) fn wanted(port: Option<u16>) -> Wanted {
    port.map_or(Wanted::Ping, Wanted::Tcp)
}

/// Decides by the rules as this node and the gateway do.
pub(super) fn policy(map: &NetworkMap, host: &str, address: IpAddr, wanted: Wanted) -> Seen<()> {
    let Some(org) = map.own_org() else {
        return Ok(((), "the map says nothing about it".to_owned()));
    };
    let (Some(own), Some(rules)) = (org.nodes.get(&map.own.id), &org.rules) else {
        return Ok(((), "an older control plane, which has no rules".to_owned()));
    };
    let Some((selector, reached_by)) = reached_by(org, address) else {
        return Ok(((), "no node of the network has this address".to_owned()));
    };
    let rule = decide(rules, &own.may_reach, reached_by.iter().copied(), wanted);
    if let Some(rule) = rule {
        return Ok(((), format!("rule {rule} allows {wanted}")));
    }
    let mut message = format!(
        "policy: no rule lets {} reach {host} with {wanted}",
        map.own.name
    );
    for (count, reach) in reached_by.iter().take(RULES_SHOWN_MAX).enumerate() {
        let joint = if count == 0 { ": " } else { ", " };
        let is_ours = own.may_reach.contains(&reach.rule);
        let why = if is_ours {
            "has other traffic"
        } else {
            "is for others"
        };
        write!(message, "{joint}rule {} {why}", reach.rule).expect("a string takes everything");
    }
    Err(Finding::new(
        Cause::Prohibited,
        message,
        format!(
            "an administrator may add one: `ginnel policy add --from node:{} --to {selector} \
             --allow {wanted}`",
            map.own.name
        ),
    ))
}

/// Rules that a refusal names; the rest is in `ginnel policy list`.
const RULES_SHOWN_MAX: usize = 8;

/// Returns how rules name the machine at `address`, and by which of them it is reached.
fn reached_by(org: &Org, address: IpAddr) -> Option<(String, Vec<Reach>)> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    if let Some(node) = org.nodes.values().find(|node| node.address == address) {
        return Some((format!("node:{}", node.name), node.reached_by.clone()));
    }
    let (_, host) = SitePrefix::of(address)?;
    let site = site_at(org, address)?;
    let host = Ipv4Prefix::host(Alias::host_among(&site.aliases, host)).ok()?;
    let reached_by = site.reached_by.iter().filter_map(|rule| rule.of(host));
    let selector = format!("site:{}:{}", site.name, host.address());
    Some((selector, reached_by.collect()))
}

fn site_at(org: &Org, address: std::net::Ipv6Addr) -> Option<&Site> {
    let (prefix, _) = SitePrefix::of(address)?;
    org.site_of(prefix)
}

/// Returns the nodes that lead to `address`, the preferred one first; `None`
/// when it is no host of a site.
pub(super) fn site_of(map: &NetworkMap, address: IpAddr) -> Option<Lead<'_>> {
    let org = map.own_org()?;
    let IpAddr::V6(address) = address else {
        return None;
    };
    let site = site_at(org, address)?;
    let nodes = site.nodes().filter_map(|id| org.nodes.get(&id)).collect();
    Some(Lead { site, nodes })
}

/// Asks the nodes of a site for an echo until one answers: the gateway leads through one that
/// does.
pub(super) async fn site(agent: &Agent, lead: Lead<'_>) -> Seen<()> {
    let Lead { site, nodes } = lead;
    let mut silent = Vec::new();
    for node in nodes {
        let others = silent
            .iter()
            .map(|name| format!("; {name} does not answer"));
        let others = others.collect::<Vec<_>>().concat();
        match agent.ping(node.address.into(), SMALL_SIZE).await? {
            Echoed::Reply(time) => {
                let name = &node.name;
                return Ok(((), format!("its node {name} answers in {time:.1?}{others}")));
            }
            Echoed::Failed(failure) => return Err(failure.into()),
            // The rules may be about the site alone; then the host has to tell.
            Echoed::Prohibited => {
                return Ok((
                    (),
                    format!("its node {} may not be asked{others}", node.name),
                ));
            }
            Echoed::Unreachable | Echoed::Nothing => silent.push(node.name.as_str()),
        }
    }
    let names = silent.join(" and ");
    let (what, verb) = match silent.len() {
        1 => ("the node", "does"),
        _ => ("the nodes", "do"),
    };
    Err(Finding::new(
        Cause::SiteNodeDown,
        format!("site: {names}, {what} of {}, {verb} not answer", site.name),
        format!("see that `ginnel up` runs on {names}"),
    ))
}

/// Reaches the machine, at its port if one is given.
pub(super) async fn target(
    agent: &Agent,
    host: &str,
    address: IpAddr,
    port: Option<u16>,
) -> Seen<()> {
    if let Some(port) = port {
        return match agent.dial(&address.to_string(), port).await {
            Ok(remote) => Ok(((), format!("{remote} accepts"))),
            Err(finding) => Err(tunnel::explained(agent, finding).await),
        };
    }
    match agent.ping(address, SMALL_SIZE).await? {
        Echoed::Reply(time) => Ok(((), format!("{host} answers in {time:.1?}"))),
        Echoed::Failed(failure) => Err(tunnel::explained(agent, failure.into()).await),
        Echoed::Prohibited => Err(Finding::new(
            Cause::Prohibited,
            format!("policy: {host} may not be reached from here, says a router on the way"),
            "the rules of the network may have changed just now: try again; else it is a firewall",
        )),
        Echoed::Unreachable => Err(Finding::new(
            Cause::Unreachable,
            format!("remote machine: {host} is not there, says a router on the way"),
            "see that `ginnel up` runs on it, or that it is in the LAN of its site",
        )),
        Echoed::Nothing => Err(Finding::new(
            Cause::Silent,
            format!("remote machine: {host} answers no echo request"),
            "see that it runs, and `ginnel up` on it; or name a port that it serves",
        )),
    }
}
