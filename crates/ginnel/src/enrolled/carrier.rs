//! A gateway tells the control plane which nodes carry the sites that have several, so that people
//! see it. Nothing waits for that: the gateway decides alone.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use model::{
    id::{OrgId, SiteId},
    site::NodeHealth,
};
use tokio::{sync::Notify, time};
use tunnel::Tunnel;

use super::Source;

/// How often everything is told again: the control plane may have started anew.
const REPEAT: Duration = Duration::from_secs(60);

/// The shortest pause between two reports: what changes meanwhile is told by one.
const PAUSE: Duration = Duration::from_secs(1);

/// Says in the log what has changed at a site.
pub(super) fn log(tunnel: &Tunnel, org: OrgId, site: SiteId, moved: bool) {
    tunnel.with(|node, now| {
        let Some(carried) = node.carried(now, org, site) else {
            return;
        };
        let told = carried.nodes.iter().map(|told| {
            let (name, health) = (&told.name, told.health.in_words());
            let carries = if told.carries { ", carries" } else { "" };
            format!("{name}: {health}{carries}")
        });
        let nodes = told.collect::<Vec<_>>().join("; ");
        let (org, site) = (&carried.org, &carried.site);
        if moved {
            tracing::warn!(%org, %site, nodes, "site: another node carries it");
        } else {
            tracing::info!(%org, %site, nodes, "site: its nodes");
        }
    });
}

/// Tells, as long as the gateway lives; `changed` says that there is something to tell.
pub(super) async fn report(tunnel: &Tunnel, source: &Source, changed: &Notify) -> Infallible {
    let mut told = BTreeMap::<SiteId, Vec<NodeHealth>>::new();
    let mut repeat = time::interval(REPEAT);
    repeat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = changed.notified() => {}
            _ = repeat.tick() => told.clear(),
        }
        let sites = tunnel.with(|node, _| node.carried_sites());
        told.retain(|id, _| sites.iter().any(|(_, site, _)| site == id));
        for (_, site, nodes) in sites {
            if told.get(&site) != Some(&nodes) && source.report_site(site, &nodes).await {
                told.insert(site, nodes);
            }
        }
        time::sleep(PAUSE).await;
    }
}
