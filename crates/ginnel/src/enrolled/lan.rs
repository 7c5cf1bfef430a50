//! Whether this machine leads to the LANs of sites that have several nodes: looked at every second,
//! so that the gateway hears of it with its next probe.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::IpAddr,
    time::Duration,
};

use model::{
    id::SiteId,
    map,
    site::{Health, Mode},
};
use os::net::Netlink;
use tokio::{sync::Notify, time};
use tunnel::Tunnel;

use super::return_path::{forwards, own};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(1);

/// How soon it is looked again whether something is wrong: what the kernel lists while interfaces
/// change may lack some of them, and it tells that a link is there up to a second late.
const LOOK_AGAIN: Duration = Duration::from_millis(1_200);

/// What is remembered of one site.
#[derive(Default)]
struct Known {
    /// The machine has had an address in the LAN, so it is not there without one.
    had_address: bool,
    fault: Option<Health>,
}

/// Looks, as long as the node lives; `changed` tells of another map.
pub(super) async fn watch(tunnel: &Tunnel, changed: &Notify) -> Infallible {
    let mut known = BTreeMap::<SiteId, Known>::new();
    loop {
        let mut own = own(tunnel);
        own.retain(|_, site| !site.standbys.is_empty());
        known.retain(|id, _| own.contains_key(id));
        if own.is_empty() {
            changed.notified().await;
            continue;
        }
        for (&id, site) in &own {
            let known = known.entry(id).or_default();
            let mut fault = look(site, tunnel, known).await;
            if fault.is_some() && fault != known.fault {
                time::sleep(LOOK_AGAIN).await;
                fault = look(site, tunnel, known).await;
            }
            if fault != known.fault {
                tracing::warn!(site = %site.name, ?fault, "site: this machine's way to its LAN");
            }
            known.fault = fault;
            tunnel.with(|node, _| node.set_site_fault(id, fault));
        }
        tokio::select! {
            () = time::sleep(PERIOD) => {}
            () = changed.notified() => {}
        }
    }
}

/// Returns why the machine does not lead to a site's LAN. Whoever cannot look is believed to be
/// well.
async fn look(site: &map::Site, tunnel: &Tunnel, known: &mut Known) -> Option<Health> {
    let found = fault(site, tunnel.interface().is_some(), known).await;
    found.unwrap_or_else(|error| {
        tracing::debug!(%error, "site: look at the interfaces of the LAN");
        None
    })
}

async fn fault(
    site: &map::Site,
    has_interface: bool,
    known: &mut Known,
) -> io::Result<Option<Health>> {
    let within = |address: IpAddr| match address {
        IpAddr::V4(address) => site.prefixes.iter().any(|prefix| prefix.contains(address)),
        IpAddr::V6(_) => false,
    };
    let netlink = Netlink::open()?;
    let addresses = netlink.addresses().await?;
    let lan = addresses
        .into_iter()
        .filter(|own| within(own.network.address));
    let lan: BTreeSet<_> = lan.map(|own| own.interface).collect();
    if lan.is_empty() {
        // A machine outside the LAN may reach it by routers, of which it knows nothing.
        return Ok(known.had_address.then_some(Health::NoLan));
    }
    known.had_address = true;
    let running = netlink.running().await?;
    let mut working = lan.intersection(&running).peekable();
    if working.peek().is_none() {
        return Ok(Some(Health::NoLan));
    }
    let needs_forwarding = site.mode == Mode::Routed && has_interface;
    let fails = needs_forwarding && !working.any(|interface| forwards(interface));
    Ok(fails.then_some(Health::NotForwarding))
}
