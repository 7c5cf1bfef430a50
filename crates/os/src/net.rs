//! Addresses, routes and state of interfaces, by rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
            RouteType,
        },
    },
};

/// An address or the destination of a route, with the length of its prefix in bits.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Network {
    /// The address; in a route its bits behind the prefix are zero.
    pub address: IpAddr,
    /// At most 32 or 128.
    pub bits: u8,
}

/// A route of the main table.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Route {
    /// Where it leads.
    pub destination: Network,
    /// The interface it leaves by; empty for a route without one.
    pub interface: String,
    /// The router, if the destination is not on the link.
    pub gateway: Option<IpAddr>,
    /// Lower ones win among equal destinations.
    pub metric: u32,
}

/// An address of an interface.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Address {
    /// The interface's name.
    pub interface: String,
    /// The address and the length of its subnet's prefix.
    pub network: Network,
}

/// A host on a link of the machine, whose link-layer address is known.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Neighbour {
    /// The interface's name.
    pub interface: String,
    /// The host's address.
    pub address: IpAddr,
}

/// The least metric of unreachable routes: every other route of the same destination is preferred
/// to them. The lower 16 bits tell behind which interface they stand.
const METRIC_LAST: u32 = 0xffff_0000;

/// Who made the routes, as `ip -4 route show proto 71` and `ip -6` ask; nobody else uses the number
/// (iproute2, `etc/iproute2/rt_protos`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(71);

/// A connection to the kernel's network configuration, within a tokio runtime.
///
/// Dumps are not atomic; run one at a time.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Netlink {
    /// Opens the connection.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _messages) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, connection })
    }

    /// Takes the interface up or down.
    pub async fn set_up(&self, interface: &str, up: bool) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index(interface)?);
        let link = if up { link.up() } else { link.down() };
        let request = self.handle.link().set(link.build());
        request.execute().await.map_err(into_io)
    }

    /// Sets the MTU in bytes.
    pub async fn set_mtu(&self, interface: &str, mtu: u32) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index(interface)?).mtu(mtu);
        let request = self.handle.link().set(link.build());
        request.execute().await.map_err(into_io)
    }

    /// Adds an address; one that is there already is fine.
    pub async fn add_address(&self, interface: &str, network: Network) -> io::Result<()> {
        let address = self.handle.address();
        let request = address.add(index(interface)?, network.address, network.bits);
        request.replace().execute().await.map_err(into_io)
    }

    /// Removes an address; false if it was not there.
    pub async fn remove_address(&self, interface: &str, network: Network) -> io::Result<bool> {
        let index = index(interface)?;
        let address = self.handle.address();
        let mut dump = address.get().set_link_index_filter(index).execute();
        let mut found = None;
        while let Some(message) = dump.try_next().await.map_err(into_io)? {
            if message.header.index == index && network_of(&message) == Some(network) {
                found = Some(message);
            }
        }
        let Some(message) = found else {
            return Ok(false);
        };
        let request = self.handle.address().del(message);
        request.execute().await.map_err(into_io)?;
        Ok(true)
    }

    /// Makes a route of `destination` through the interface; one that is there is replaced. With
    /// an MTU, longer packets get an ICMP error or are fragmented. With a source, programs that
    /// choose none speak from it; it has to be an address of this machine.
    pub async fn add_route(
        &self,
        interface: &str,
        destination: Network,
        mtu: Option<u32>,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let mut route = route_message(interface, destination)?;
        let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
        route.attributes.extend(source);
        let metrics = mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        route.attributes.extend(metrics);
        let request = self.handle.route().add(route).replace();
        request.execute().await.map_err(into_io)
    }

    /// Removes the route of `destination` through the interface, if this program or another one of
    /// its kind made it; false if there was none.
    pub async fn remove_route(&self, interface: &str, destination: Network) -> io::Result<bool> {
        self.remove(route_message(interface, destination)?).await
    }

    /// Lets packets for `destination` go nowhere while nothing else routes the same one: their
    /// senders get an ICMP error. Such a route stands behind that of `interface`, which need not be
    /// there, and stays until it is removed; one that is there already is fine.
    pub async fn add_unreachable_route(
        &self,
        interface: &str,
        destination: Network,
    ) -> io::Result<()> {
        let route = unreachable_message(destination, metric_behind(interface))?;
        let added = self.handle.route().add(route).execute().await;
        match added.map_err(into_io) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            added => added,
        }
    }

    /// Removes the unreachable route of `destination` behind `interface`; false if there was none.
    pub async fn remove_unreachable_route(
        &self,
        interface: &str,
        destination: Network,
    ) -> io::Result<bool> {
        let route = unreachable_message(destination, metric_behind(interface))?;
        self.remove(route).await
    }

    /// Removes the unreachable routes behind interfaces that are not there.
    pub async fn remove_orphaned_routes(&self) -> io::Result<()> {
        let names = self.names().await?;
        let metrics: BTreeSet<_> = names.values().map(|name| metric_behind(name)).collect();
        for route in self.all_unreachable_routes().await? {
            if !metrics.contains(&route.metric) {
                let route = unreachable_message(route.destination, route.metric)?;
                self.remove(route).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, route: RouteMessage) -> io::Result<bool> {
        let removed = self.handle.route().del(route).execute().await;
        match removed.map_err(into_io) {
            Ok(()) => Ok(true),
            Err(absent) if absent.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists the addresses of all interfaces, in order.
    pub async fn addresses(&self) -> io::Result<Vec<Address>> {
        let names = self.names().await?;
        let mut dump = self.handle.address().get().execute();
        let mut addresses = Vec::new();
        while let Some(message) = dump.try_next().await.map_err(into_io)? {
            let interface = names.get(&message.header.index);
            if let (Some(interface), Some(network)) = (interface, network_of(&message)) {
                addresses.push(Address {
                    interface: interface.clone(),
                    network,
                });
            }
        }
        addresses.sort();
        Ok(addresses)
    }

    /// Lists the unicast routes of the main table, both families, in order.
    pub async fn routes(&self) -> io::Result<Vec<Route>> {
        let names = self.names().await?;
        let mut routes = Vec::new();
        for message in self.main_table().await? {
            if message.header.kind == RouteType::Unicast {
                routes.extend(route_of(&message, &names));
            }
        }
        routes.sort();
        Ok(routes)
    }

    /// Lists the destinations of the unreachable routes behind `interface`.
    pub async fn unreachable_routes(&self, interface: &str) -> io::Result<BTreeSet<Network>> {
        let metric = metric_behind(interface);
        let mut routes = self.all_unreachable_routes().await?;
        routes.retain(|route| route.metric == metric);
        Ok(routes.into_iter().map(|route| route.destination).collect())
    }

    /// Lists the unreachable routes behind all interfaces.
    async fn all_unreachable_routes(&self) -> io::Result<Vec<Route>> {
        let messages = self.main_table().await?;
        let ours = messages.iter().filter(|message| {
            message.header.kind == RouteType::Unreachable && message.header.protocol == PROTOCOL
        });
        let routes = ours.filter_map(|message| route_of(message, &BTreeMap::new()));
        Ok(routes.filter(|route| route.metric >= METRIC_LAST).collect())
    }

    /// Lists the routes of the main table of both families.
    async fn main_table(&self) -> io::Result<Vec<RouteMessage>> {
        let mut messages = Vec::new();
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for family in [v4, v6] {
            let mut dump = self.handle.route().get(family).execute();
            while let Some(message) = dump.try_next().await.map_err(into_io)? {
                if message.header.table == RouteHeader::RT_TABLE_MAIN {
                    messages.push(message);
                }
            }
        }
        Ok(messages)
    }

    /// Lists the IPv4 hosts that the machine has spoken with lately, in order (RFC 826).
    pub async fn neighbours(&self) -> io::Result<Vec<Neighbour>> {
        let names = self.names().await?;
        let request = self.handle.neighbours().get();
        let mut dump = request.set_address_family(AddressFamily::Inet).execute();
        let mut neighbours = Vec::new();
        while let Some(message) = dump.try_next().await.map_err(into_io)? {
            neighbours.extend(neighbour_of(&message, &names));
        }
        neighbours.sort();
        Ok(neighbours)
    }

    /// Lists the interfaces that carry packets: they are up, and their link is there.
    pub async fn running(&self) -> io::Result<BTreeSet<String>> {
        let wanted = LinkFlags::Up | LinkFlags::Running;
        let mut dump = self.handle.link().get().execute();
        let mut names = BTreeSet::new();
        while let Some(message) = dump.try_next().await.map_err(into_io)? {
            if !message.header.flags.contains(wanted) {
                continue;
            }
            for attribute in message.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(name);
                }
            }
        }
        Ok(names)
    }

    async fn names(&self) -> io::Result<BTreeMap<u32, String>> {
        let mut dump = self.handle.link().get().execute();
        let mut names = BTreeMap::new();
        while let Some(message) = dump.try_next().await.map_err(into_io)? {
            for attribute in message.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(message.header.index, name);
                }
            }
        }
        Ok(names)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn route_message(interface: &str, destination: Network) -> io::Result<RouteMessage> {
    let route = route_to(destination)?;
    Ok(route.output_interface(index(interface)?).build())
}

fn unreachable_message(destination: Network, metric: u32) -> io::Result<RouteMessage> {
    let route = route_to(destination)?.kind(RouteType::Unreachable);
    Ok(route.priority(metric).build())
}

/// Hashes the name of an interface into the metric of what stands behind it (FNV-1a, RFC 9923).
fn metric_behind(interface: &str) -> u32 {
    let hash = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = interface.bytes().fold(0x811c_9dc5, hash);
    METRIC_LAST | (hash >> 16) ^ (hash & 0xffff)
}

fn route_to(destination: Network) -> io::Result<RouteMessageBuilder<IpAddr>> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .protocol(PROTOCOL)
        .destination_prefix(destination.address, destination.bits);
    route.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn network_of(message: &AddressMessage) -> Option<Network> {
    // On a point-to-point link ADDRESS is the other end and LOCAL is ours.
    let mut address = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(local) = attribute {
            address = Some(*local);
        } else if let AddressAttribute::Address(other) = attribute {
            address = address.or(Some(*other));
        }
    }
    Some(Network {
        address: address?,
        bits: message.header.prefix_len,
    })
}

fn neighbour_of(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<Neighbour> {
    let known = [
        NeighbourState::Reachable,
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Permanent,
    ];
    if message.header.kind != RouteType::Unicast || !known.contains(&message.header.state) {
        return None;
    }
    let interface = names.get(&message.header.ifindex)?.clone();
    let mut address = None;
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) = attribute {
            address = Some((*inet).into());
        }
    }
    let address = address?;
    Some(Neighbour { interface, address })
}

fn route_of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let mut route = Route {
        destination: Network {
            address: if message.header.address_family == AddressFamily::Inet {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            },
            bits: message.header.destination_prefix_length,
        },
        interface: String::new(),
        gateway: None,
        metric: 0,
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(to) = attribute {
            route.destination.address = ip(to)?;
        } else if let RouteAttribute::Gateway(by) = attribute {
            route.gateway = ip(by);
        } else if let RouteAttribute::Oif(index) = attribute {
            route.interface = names.get(index).cloned().unwrap_or_default();
        } else if let RouteAttribute::Priority(metric) = attribute {
            route.metric = *metric;
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some((*address).into())
    } else if let RouteAddress::Inet6(address) = address {
        Some((*address).into())
    } else {
        None
    }
}

fn index(interface: &str) -> io::Result<u32> {
    crate::link::index(interface).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        return message.to_io();
    }
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tun::{OffloadMax, OpenError, Options, Tun};

    #[tokio::test]
    async fn an_interface_is_configured_listed_and_cleared() {
        let name = format!("gn{}", std::process::id());
        let options = Options {
            name: &name,
            offload: OffloadMax::Off,
            multi_queue: false,
            exclusive: false,
        };
        let _tun = match Tun::open(&options) {
            Err(OpenError::Denied | OpenError::NoDevice) => {
                println!("SKIPPED: no right to make a TUN");
                return;
            }
            opened => opened.unwrap(),
        };
        let netlink = Netlink::open().unwrap();
        netlink.set_mtu(&name, 1380).await.unwrap();
        netlink.set_up(&name, true).await.unwrap();
        assert_eq!(crate::link::mtu(&name).unwrap(), 1380);
        assert!(crate::link::is_up(&name).unwrap());
        assert!(netlink.running().await.unwrap().contains(&name));
        let ours: Network = Network {
            address: "198.51.100.1".parse().unwrap(),
            bits: 24,
        };
        netlink.add_address(&name, ours).await.unwrap();
        netlink.add_address(&name, ours).await.unwrap();
        let listed =
            |all: Vec<Address>| all.iter().any(|a| a.interface == name && a.network == ours);
        assert!(listed(netlink.addresses().await.unwrap()));
        for destination in ["203.0.113.0", "fd12:3456::"] {
            let destination = Network {
                address: destination.parse().unwrap(),
                bits: 32,
            };
            netlink
                .add_route(&name, destination, Some(1300), None)
                .await
                .unwrap();
            let routes = netlink.routes().await.unwrap();
            let ours = |r: &&Route| r.interface == name && r.destination == destination;
            assert_eq!(routes.iter().filter(ours).count(), 1);
            assert!(netlink.remove_route(&name, destination).await.unwrap());
            assert!(!netlink.remove_route(&name, destination).await.unwrap());
            // Of an interface that is not there, and of this one.
            let absent = format!("{name}x");
            let is_unreachable = async |interface: &str| {
                let routes = netlink.unreachable_routes(interface).await.unwrap();
                routes.contains(&destination)
            };
            for interface in [&absent, &name, &name] {
                let added = netlink.add_unreachable_route(interface, destination).await;
                added.unwrap();
                assert!(is_unreachable(interface).await);
            }
            netlink.remove_orphaned_routes().await.unwrap();
            assert!(!is_unreachable(&absent).await);
            assert!(is_unreachable(&name).await);
            let remove = async || netlink.remove_unreachable_route(&name, destination).await;
            assert!(remove().await.unwrap());
            assert!(!remove().await.unwrap());
            assert!(!is_unreachable(&name).await);
        }
        assert!(netlink.remove_address(&name, ours).await.unwrap());
        assert!(!netlink.remove_address(&name, ours).await.unwrap());
        assert!(!listed(netlink.addresses().await.unwrap()));
        netlink.set_up(&name, false).await.unwrap();
        assert!(!netlink.running().await.unwrap().contains(&name));
        let absent = netlink.set_up("absent0", true).await.unwrap_err();
        assert_eq!(absent.raw_os_error(), Some(libc::ENODEV));
    }
}
