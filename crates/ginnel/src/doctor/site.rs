//! The sites behind this node: whether their devices and other sites find to each other.

use std::time::Duration;

use model::{
    site::{Health, Mode},
    status::{ReturnPath, Site},
};
use tokio::time;

use super::{
    Seen,
    agent::Agent,
    finding::{Cause, Finding},
};
use crate::status::site;

/// How long a node that has just started takes to try everything out, at most.
const LOOKS_MAX: usize = 120;
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Tells whether any sites are behind the node, and waits until it knows how it stands with them.
pub(super) async fn behind(agent: &Agent) -> Result<Option<Vec<Site>>, Finding> {
    let mut sites = agent.status().await?.sites;
    for _ in 0..LOOKS_MAX {
        if sites
            .iter()
            .all(|site| site.return_path != ReturnPath::Undecided)
        {
            break;
        }
        time::sleep(LOOK_AGAIN).await;
        sites = agent.status().await?.sites;
    }
    Ok((!sites.is_empty()).then_some(sites))
}

/// Says which of them is served less well than it could be, and why.
pub(super) async fn served(agent: &Agent, sites: &[Site]) -> Seen<()> {
    let conflicts = agent.status().await?.site_conflicts;
    if let Some(conflict) = conflicts.first() {
        return Err(Finding::new(
            Cause::RouteConflict,
            format!("site: {conflict}; devices here do not reach it by these addresses"),
            "remove that route, or give the site another alias; devices of the other site are \
             reached by name all the same",
        ));
    }
    let mut told = Vec::new();
    for one in sites {
        if let Some(code) = cause(one) {
            let lost = site::lost(one).map_or_else(String::new, |lost| format!("; {lost}"));
            return Err(Finding::new(
                code,
                format!(
                    "site: {} is served by {}{lost}",
                    one.name,
                    site::summary(one)
                ),
                site::remedy(one).unwrap_or_default(),
            ));
        }
        if let Some(unwell) = unwell(one) {
            return Err(unwell);
        }
        told.push(format!(
            "{}: {}{}",
            one.name,
            site::summary(one),
            nodes(one)
        ));
    }
    Ok(((), told.join("; ")))
}

/// Says which node carries a site that has several.
fn nodes(site: &Site) -> String {
    let nodes = site.nodes.iter();
    let told = nodes.map(|node| format!(", node {}", site::node_text(node)));
    told.collect::<Vec<_>>().concat()
}

/// Finds a node of a site with several that does not lead there, so that one less is left to fail.
fn unwell(site: &Site) -> Option<Finding> {
    let node = site.nodes.iter().find(|node| match node.health {
        Health::Silent | Health::NoLan | Health::NotForwarding => true,
        Health::Untried | Health::Healthy | Health::Returning => false,
    })?;
    let carrier = site.nodes.iter().find(|node| node.carries);
    let carrier = carrier.map_or("nobody", |node| node.name.as_str());
    let remedy = match node.health {
        Health::NoLan => format!("look at the cable and the LAN interface of {}", node.name),
        Health::NotForwarding => {
            format!("on {}: sysctl -w net.ipv4.ip_forward=1", node.name)
        }
        Health::Silent | Health::Untried | Health::Healthy | Health::Returning => {
            format!(
                "see that {} runs and that `ginnel up` runs there",
                node.name
            )
        }
    };
    Some(Finding::new(
        Cause::SiteNodeDown,
        format!(
            "site: {}, a node of {}, {}; {carrier} carries the site",
            node.name,
            site.name,
            node.health.in_words()
        ),
        remedy,
    ))
}

/// Returns what is wrong with a site that was not meant to be so.
fn cause(site: &Site) -> Option<Cause> {
    match site.return_path {
        ReturnPath::Missing => Some(Cause::NoReturnRoute),
        ReturnPath::Triangle => Some(Cause::Triangle),
        ReturnPath::NotForwarding => Some(Cause::NotForwarding),
        ReturnPath::NoInterface | ReturnPath::NoAddress if site.mode == Mode::Routed => {
            Some(Cause::NotRouted)
        }
        ReturnPath::Undecided
        | ReturnPath::NotWanted
        | ReturnPath::NoInterface
        | ReturnPath::NoAddress
        | ReturnPath::NoOtherSite
        | ReturnPath::NoWitness
        | ReturnPath::Present => None,
    }
}
