//! Unreachable routes behind those of the interface. They belong to no interface and stay when the
//! process is killed, so that what it would have sealed goes nowhere, instead of where everything
//! else goes, as it is. A node that starts again takes them over; one that ends removes them.

use std::collections::BTreeSet;

use model::address::ORG_PREFIX_BITS;
use os::net::{Netlink, Network};

use super::{Interface, network};

/// Stands behind the routes of the organisations, and removes what a process that was killed has
/// left and nobody routes any more. Those behind the routes of sites come and go with them.
pub(super) async fn stand_behind(interface: &Interface) -> anyhow::Result<()> {
    let netlink = Netlink::open()?;
    for destination in of_orgs(interface) {
        netlink.add_unreachable_route(destination).await?;
    }
    remove_but_routed(&netlink, &BTreeSet::new()).await
}

/// Removes all that stand behind routes of the interface, and what processes have left.
pub(super) async fn remove(interface: &Interface) {
    let sites = interface.sites().routed.clone();
    let sites = sites.into_iter().map(network::site);
    let own = of_orgs(interface).chain(sites).collect();
    remove_or_warn(&own).await;
}

/// Removes the unreachable routes that nodes with an interface have left behind on this machine
/// because they were killed.
pub async fn remove_left_routes() {
    remove_or_warn(&BTreeSet::new()).await;
}

async fn remove_or_warn(without: &BTreeSet<Network>) {
    let removed = async { remove_but_routed(&Netlink::open()?, without).await };
    if let Err(error) = removed.await {
        tracing::warn!("{error:#}: unreachable routes stay: `ip route show proto 71`");
    }
}

/// Removes all that stand behind no route that one of us has made, but for the routes of which it
/// is told; another node of this machine keeps those behind its own.
async fn remove_but_routed(netlink: &Netlink, without: &BTreeSet<Network>) -> anyhow::Result<()> {
    let routes = netlink.routes().await?;
    let routed = routes.iter().filter(|route| route.is_ours);
    let mut routed: BTreeSet<_> = routed.map(|route| route.destination).collect();
    routed.retain(|destination| !without.contains(destination));
    for left in netlink.unreachable_routes().await?.difference(&routed) {
        netlink.remove_unreachable_route(*left).await?;
    }
    Ok(())
}

fn of_orgs(interface: &Interface) -> impl Iterator<Item = Network> {
    let memberships = interface.memberships.iter();
    memberships.map(|membership| network::network(membership.prefix.network(), ORG_PREFIX_BITS))
}
