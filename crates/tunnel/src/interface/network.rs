//! Address and route of the interface, and whether its prefix is free on this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::Context as _;
use model::{
    address::{ORG_PREFIX_BITS, OrgPrefix},
    site::Ipv4Prefix,
};
use os::net::{Netlink, Network, Route};
use tokio::time;

use super::{Membership, fallback};
use crate::{Advised, advised::advise};

/// How often it is looked whether an address can be used.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// An address takes a moment; one that takes longer is refused by something else.
const TENTATIVE_MAX: Duration = Duration::from_secs(3);

/// Brings the interface up, unless what it would route is routed elsewhere.
pub(super) async fn configure(name: &str, memberships: &[Membership]) -> anyhow::Result<()> {
    for membership in memberships {
        routes_are_free(name, membership.prefix).await?;
    }
    let netlink = Netlink::open().context("TUN: open netlink")?;
    prepare(name);
    let configured = async {
        for membership in memberships {
            let own = network(membership.address, 128);
            netlink.add_address(name, own).await?;
        }
        netlink.set_up(name, true).await?;
        for membership in memberships {
            let all = org(membership.prefix);
            fallback::add(&netlink, name, all).await;
            netlink.add_route(name, all, None, None).await?;
            usable(membership.address).await?;
        }
        io::Result::Ok(())
    };
    configured
        .await
        .with_context(|| format!("TUN: configure interface `{name}`"))
        .map_err(|error| {
            let remedy = "see that IPv6 is on (sysctl net.ipv6.conf.default.disable_ipv6 is 0); or \
                          `ginnel up --user`, which needs no interface";
            Advised::new(error, remedy).into()
        })
}

/// Looks whether nothing but the interface `name` takes packets for `prefix` on this machine; an
/// error names the route that does.
pub async fn routes_are_free(name: &str, prefix: OrgPrefix) -> anyhow::Result<()> {
    let netlink = Netlink::open().context("TUN: open netlink")?;
    let routes = netlink.routes().await.context("TUN: list the routes")?;
    match conflict(&routes, name, prefix) {
        Some(conflict) => Err(refusal(conflict, prefix)),
        None => Ok(()),
    }
}

/// Into which interface sites are routed, and what else on this machine has addresses.
pub(super) struct Ways<'a> {
    pub(super) name: &'a str,
    /// What a narrower route holds stays with it, and the rest is routed.
    pub(super) except_lan: bool,
    pub(super) endpoints: &'a [Ipv4Addr],
    /// From which address the machine speaks to sites, if not from one that it has already.
    pub(super) source: Option<Ipv4Addr>,
}

/// Which IPv4 addresses of sites are routed into an interface, and why others are not.
pub(super) struct SiteRoutes {
    pub(super) routed: BTreeSet<Ipv4Prefix>,
    pub(super) conflicts: BTreeMap<Ipv4Prefix, String>,
}

/// Routes `wanted` into the interface, and what of `former` cannot stay no more. What holds an
/// endpoint, or is routed elsewhere before it is routed here, is left alone.
pub(super) async fn route(
    ways: &Ways<'_>,
    former: &BTreeSet<Ipv4Prefix>,
    wanted: &BTreeSet<Ipv4Prefix>,
) -> anyhow::Result<SiteRoutes> {
    let &Ways {
        name,
        except_lan,
        endpoints,
        source,
    } = ways;
    let netlink = Netlink::open().context("TUN: open netlink")?;
    let speaks = speak(&netlink, name, source).await;
    speaks.with_context(|| format!("TUN: set the IPv4 address of `{name}`"))?;
    let routes = netlink.routes().await.context("TUN: list the routes")?;
    let (mut routed, mut conflicts) = (BTreeSet::new(), BTreeMap::new());
    for &prefix in wanted {
        let what = format!("{prefix} of a site");
        if let Some(endpoint) = endpoints.iter().find(|address| prefix.contains(**address)) {
            conflicts.insert(prefix, format!("{what} holds the gateway's own {endpoint}"));
            continue;
        }
        let elsewhere_first = site_conflict(&routes, name, prefix, except_lan);
        if let Some(route) = elsewhere_first.filter(|_| !former.contains(&prefix)) {
            let mut conflict = elsewhere(route, &what);
            if site_conflict(&routes, name, prefix, true).is_none() {
                conflict.push_str("; `ginnel up --except-lan` reaches the rest");
            }
            conflict.push_str(OTHER_ADDRESSES);
            conflicts.insert(prefix, conflict);
            continue;
        }
        let mtu = Some(node::SITE_MTU_V4.into());
        let source = source.map(IpAddr::V4);
        fallback::add(&netlink, name, site(prefix)).await;
        let added = netlink.add_route(name, site(prefix), mtu, source).await;
        added.with_context(|| format!("TUN: route {prefix}"))?;
        routed.insert(prefix);
    }
    for gone in former.difference(&routed) {
        let removed = netlink.remove_route(name, site(*gone)).await;
        removed.with_context(|| format!("TUN: remove the route to {gone}"))?;
    }
    Ok(SiteRoutes { routed, conflicts })
}

/// What helps where somebody else has the addresses of a site.
const OTHER_ADDRESSES: &str = "; `ginnel site set SITE --alias PREFIX=ALIAS` gives the site others \
                               for machines, and `ginnel up --user` needs none";

/// Gives the interface the one IPv4 address from which the machine speaks to sites, or none.
async fn speak(netlink: &Netlink, name: &str, source: Option<Ipv4Addr>) -> io::Result<()> {
    let own = |address| Network {
        address: IpAddr::V4(address),
        bits: 32,
    };
    match source {
        Some(source) => netlink.add_address(name, own(source)).await,
        // Routes that have it as their source go with it.
        None => netlink
            .remove_address(name, own(node::MACHINE_V4))
            .await
            .map(drop),
    }
}

/// Lets the kernel forward what the interface brings; the setting goes with the interface. The
/// other direction is the administrator's, because it opens the LAN to more than sites.
pub(super) fn forward(name: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
    if let Err(error) = fs::write(&path, "1") {
        tracing::warn!(%error, path, "site: this machine does not forward");
    }
    let all = fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    if all.is_ok_and(|text| text.trim() == "0") {
        tracing::warn!(
            "site: devices of this LAN reach other sites only when this machine forwards for them: \
             sysctl -w net.ipv4.ip_forward=1"
        );
    }
}

/// Waits until sockets can be bound to `address`: the kernel looks for duplicates in a worker of
/// its own, even where there are no neighbours (RFC 4862, 5.4).
async fn usable(address: Ipv6Addr) -> io::Result<()> {
    let bound = async {
        while UdpSocket::bind((address, 0)).is_err() {
            time::sleep(LOOK_AGAIN).await;
        }
    };
    Ok(time::timeout(TENTATIVE_MAX, bound).await?)
}

/// Switches IPv6 on where it is off for new interfaces, and the system's own chatter off: there
/// are no neighbours and no routers. Where that fails, the address is refused next, or the
/// chatter is discarded.
fn prepare(name: &str) {
    let settings = [
        ("disable_ipv6", "0"),
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
    ];
    for (setting, value) in settings {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
        let is_set = fs::read_to_string(&path).is_ok_and(|text| text.trim() == value);
        if !is_set && let Err(error) = fs::write(&path, value) {
            tracing::debug!(%error, path, "setting");
        }
    }
}

/// Finds a route of another interface that shares addresses with `prefix`; a default route does
/// not count, because it is for what has no other.
fn conflict<'r>(routes: &'r [Route], name: &str, prefix: OrgPrefix) -> Option<&'r Route> {
    routes.iter().find(|route| {
        let Network { address, bits } = route.destination;
        let IpAddr::V6(address) = address else {
            return false;
        };
        let shared = bits.min(ORG_PREFIX_BITS);
        bits > 0
            && route.interface != name
            && first_bits(address, shared) == first_bits(prefix.network(), shared)
    })
}

/// Finds a route of another interface that shares addresses with a site's prefix; a default route
/// does not count, nor a narrower one where it is excepted: the kernel prefers it.
fn site_conflict<'r>(
    routes: &'r [Route],
    name: &str,
    prefix: Ipv4Prefix,
    except_lan: bool,
) -> Option<&'r Route> {
    routes.iter().find(|route| {
        let Network { address, bits } = route.destination;
        let IpAddr::V4(address) = address else {
            return false;
        };
        let shared = bits.min(prefix.length());
        let first_bits = |address: Ipv4Addr| address.to_bits() >> (32 - u32::from(shared));
        let is_excepted = except_lan && bits > prefix.length();
        bits > 0
            && !is_excepted
            && route.interface != name
            && first_bits(address) == first_bits(prefix.address())
    })
}

/// All addresses of an organisation.
pub(super) fn org(prefix: OrgPrefix) -> Network {
    network(prefix.network(), ORG_PREFIX_BITS)
}

/// The IPv4 addresses of a site.
pub(super) fn site(prefix: Ipv4Prefix) -> Network {
    Network {
        address: IpAddr::V4(prefix.address()),
        bits: prefix.length(),
    }
}

fn first_bits(address: Ipv6Addr, bits: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits));
    address.to_bits() & mask.unwrap_or(0)
}

fn refusal(route: &Route, prefix: OrgPrefix) -> anyhow::Error {
    let what = format!("TUN: {prefix} of the organisation");
    advise(
        elsewhere(route, &what),
        "remove that route, or use `ginnel up --user`, which needs none",
    )
}

/// Says that `what` is routed elsewhere, and where.
fn elsewhere(route: &Route, what: &str) -> String {
    let Network { address, bits } = route.destination;
    let mut message = format!(
        "{what} is routed elsewhere on this machine: {address}/{bits} through `{}`",
        route.interface
    );
    if let Some(gateway) = route.gateway {
        write!(message, " by {gateway}").expect("a string takes everything");
    }
    message
}

fn network(address: Ipv6Addr, bits: u8) -> Network {
    let address = IpAddr::V6(address);
    Network { address, bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(destination: &str, bits: u8, interface: &str, expected: bool) {
        let route = Route {
            destination: Network {
                address: destination.parse().unwrap(),
                bits,
            },
            interface: interface.to_owned(),
            gateway: None,
            metric: 1024,
        };
        let prefix = "fd12:3456:789a::/48".parse().unwrap();
        let found = conflict(std::slice::from_ref(&route), "ginnel0", prefix);
        assert_eq!(found.is_some(), expected, "{destination}/{bits}");
    }

    #[test]
    fn a_route_that_shares_addresses_with_the_prefix_is_a_conflict() {
        check("fd12:3456:789a::", 48, "eth0", true);
        check("fd12:3456:789a:1::7", 128, "eth0", true);
        check("fd12:3456:789a:1::", 64, "", true);
        check("fc00::", 7, "wg0", true);
    }

    #[test]
    fn a_route_that_shares_addresses_with_a_site_is_named() {
        let conflict_but = |except_lan, destination: &str, bits, interface: &str| {
            let route = Route {
                destination: Network {
                    address: destination.parse().unwrap(),
                    bits,
                },
                interface: interface.to_owned(),
                gateway: Some("10.0.0.1".parse().unwrap()),
                metric: 600,
            };
            let prefix = "192.168.200.0/24".parse().unwrap();
            let routes = std::slice::from_ref(&route);
            let found = site_conflict(routes, "ginnel0", prefix, except_lan);
            found.map(|route| elsewhere(route, "it"))
        };
        let conflict = |destination, bits, name| conflict_but(false, destination, bits, name);
        let said = "it is routed elsewhere on this machine: 192.168.200.0/24 through `eth0` by \
                    10.0.0.1";
        assert_eq!(conflict("192.168.200.0", 24, "eth0").as_deref(), Some(said));
        assert!(conflict("192.168.0.0", 16, "wg0").is_some());
        assert!(conflict("192.168.200.7", 32, "docker0").is_some());
        assert!(conflict("192.168.200.0", 24, "ginnel0").is_none());
        assert!(conflict("192.168.201.0", 24, "eth0").is_none());
        assert!(conflict("0.0.0.0", 0, "eth0").is_none());
        // Only a narrower one leaves something to reach, and is preferred by the kernel.
        assert!(conflict_but(true, "192.168.200.0", 25, "eth0").is_none());
        assert!(conflict_but(true, "192.168.200.7", 32, "docker0").is_none());
        assert!(conflict_but(true, "192.168.200.0", 24, "eth0").is_some());
        assert!(conflict_but(true, "192.168.0.0", 16, "wg0").is_some());
    }

    #[test]
    fn our_own_routes_default_routes_and_other_prefixes_are_none() {
        check("fd12:3456:789a::", 48, "ginnel0", false);
        check("::", 0, "eth0", false);
        check("0.0.0.0", 0, "eth0", false);
        check("10.0.0.0", 8, "eth0", false);
        check("fd12:3456:789b::", 48, "eth0", false);
        check("fe80::", 64, "eth0", false);
    }
}
