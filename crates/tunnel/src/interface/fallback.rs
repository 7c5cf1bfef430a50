//! Unreachable routes behind those of an interface. They belong to no interface and stay when the
//! process is killed, so that what it would have sealed goes nowhere, instead of where everything
//! else goes, as it is. The next interface of this name takes them over; a node that ends by itself
//! removes them.
//!
//! Without them everything works, so what fails here is said and no more.

use std::{collections::BTreeSet, io};

use os::net::{Netlink, Network};

/// Stands behind the route of `destination` into the interface `name`, before it is there.
pub(super) async fn add(netlink: &Netlink, name: &str, destination: Network) {
    if let Err(error) = netlink.add_unreachable_route(name, destination).await {
        let Network { address, bits } = destination;
        tracing::warn!(%error, "TUN: make {address}/{bits} unreachable for when nobody routes it");
    }
}

/// Removes what stands behind the interface `name`, but for the routes of which it is told; true
/// if that is done.
pub(super) async fn remove_but(name: &str, routed: &BTreeSet<Network>) -> bool {
    let removed = async {
        let netlink = Netlink::open()?;
        for left in netlink.unreachable_routes(name).await?.difference(routed) {
            netlink.remove_unreachable_route(name, *left).await?;
        }
        io::Result::Ok(())
    };
    told(&removed.await)
}

/// Removes the unreachable routes that killed nodes have left on this machine, whichever they were.
pub async fn remove_left_routes() {
    let removed = async { Netlink::open()?.remove_orphaned_routes().await };
    told(&removed.await);
}

fn told(removed: &io::Result<()>) -> bool {
    if let Err(error) = removed {
        tracing::warn!(
            %error,
            "TUN: remove unreachable routes: see `ip -4 route show proto 71` and `ip -6`"
        );
    }
    removed.is_ok()
}
