//! The sites behind this node: whether their hosts find back to other sites, which is tried out
//! again and again, and how they are served by it.
//!
//! ```text
//!   host ◄── ordinary connection ── this machine        does it answer at all?
//!   host ◄── SYN of another site ── the node            does that answer come back to the node?
//! ```

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    dhcp,
    id::SiteId,
    map,
    site::{Ipv4Prefix, Mode},
    status::{ReturnPath, Site, StaticRoute},
};
use node::{Decision, Witness};
use os::net::Netlink;
use tokio::{net::TcpStream, sync::Notify, task::JoinSet, time};
use tunnel::Tunnel;

/// How it stands with the sites behind the node. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Sites(Arc<Shared>);

#[derive(Default)]
struct Shared {
    told: Mutex<Vec<Site>>,
    /// Tells that the map or a route has changed.
    changed: Notify,
}

/// What is remembered of one site.
#[derive(Default)]
struct Known {
    decision: Decision,
    /// At which ports hosts have answered.
    ports: BTreeMap<Ipv4Addr, u16>,
}

/// The LAN of a site as this machine sees it.
#[derive(Debug, Default, Eq, PartialEq)]
struct Lan {
    /// The machine's own address and the interface that has it.
    own: Option<(Ipv4Addr, String)>,
    /// By which the machine itself reaches everything else.
    default_router: Option<Ipv4Addr>,
    /// Some hosts that the machine has spoken with, and whether they are routers of it.
    hosts: BTreeMap<Ipv4Addr, bool>,
}

/// Hosts of a LAN that are asked.
const HOSTS_MAX: usize = 8;

/// Ports that are tried until one answers, be it by a refusal: first one that nobody serves
/// (discard, RFC 863), then those that firewalls of hosts mostly leave open.
const PORTS: [u16; 4] = [9, 80, 443, 22];

/// How long a host of the LAN has to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// When nothing has to be tried out.
const IDLE: Duration = Duration::from_secs(60);

impl Sites {
    /// Shows how it stands.
    pub(crate) fn status(&self) -> Vec<Site> {
        self.told().clone()
    }

    /// Tells that the map, or what the machine routes, has changed.
    pub(super) fn changed(&self) {
        self.0.changed.notify_one();
    }

    /// Tries out and decides, as long as the node lives.
    pub(super) async fn watch(&self, tunnel: &Tunnel) -> Infallible {
        let mut known = BTreeMap::<SiteId, Known>::new();
        loop {
            let own = own(tunnel);
            known.retain(|id, _| own.contains_key(id));
            let mut told = Vec::new();
            let mut wait = IDLE;
            for (&id, site) in &own {
                let known = known.entry(id).or_default();
                let (shown, again) = look(tunnel, id, site, known).await;
                told.push(shown);
                wait = wait.min(again);
            }
            *self.told() = told;
            tokio::select! {
                () = time::sleep(wait) => {}
                () = self.0.changed.notified() => {
                    known.values_mut().for_each(|known| known.decision.doubt());
                }
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, Vec<Site>> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lists the sites behind the node.
pub(super) fn own(tunnel: &Tunnel) -> BTreeMap<SiteId, map::Site> {
    tunnel
        .with(|node, _| {
            let map = node.map()?;
            let sites = map.own_org()?.sites.iter();
            let own = sites.filter(|(_, site)| site.is_behind(map.own.id));
            Some(own.map(|(id, site)| (*id, site.clone())).collect())
        })
        .unwrap_or_default()
}

/// Looks at one site, and lets the node serve it by what was found; returns after which time to
/// look again.
async fn look(
    tunnel: &Tunnel,
    id: SiteId,
    site: &map::Site,
    known: &mut Known,
) -> (Site, Duration) {
    let lan = Lan::of(&site.prefixes).await;
    let lan = lan.unwrap_or_else(|error| {
        tracing::debug!(%error, "site: list the hosts of the LAN");
        Lan::default()
    });
    let found = find(tunnel, site, &lan, known).await;
    let before = known.decision.return_path();
    let again = known.decision.learn(tunnel.now(), found);
    let return_path = known.decision.return_path();
    if return_path != before {
        tracing::info!(site = %site.name, ?return_path, "site: way back of its devices");
    }
    let returns = return_path == ReturnPath::Present;
    tunnel.with(|node, _| node.set_returning(id, returns));
    let in_force = match site.mode {
        Mode::Routed if return_path != ReturnPath::NoInterface => Mode::Routed,
        Mode::Auto if returns => Mode::Routed,
        Mode::Masquerade | Mode::Routed | Mode::Auto => Mode::Masquerade,
    };
    let others = match site.mode {
        Mode::Masquerade => Vec::new(),
        Mode::Routed | Mode::Auto => tunnel
            .with(|node, _| node.site_routes())
            .into_iter()
            .collect(),
    };
    let routes = lan.routes(&others);
    let shown = Site {
        name: site.name.clone(),
        mode: site.mode,
        in_force,
        return_path,
        dhcp_option_121: lan.option(&routes),
        routes,
        // What the gateway says is newer when somebody asks.
        nodes: Vec::new(),
    };
    (shown, again)
}

/// Finds out whether hosts find back.
async fn find(tunnel: &Tunnel, site: &map::Site, lan: &Lan, known: &mut Known) -> ReturnPath {
    if site.mode == Mode::Masquerade {
        return ReturnPath::NotWanted;
    }
    if tunnel.interface().is_none() {
        return ReturnPath::NoInterface;
    }
    if !tunnel.with(|node, _| node.can_probe()) {
        return ReturnPath::NoOtherSite;
    }
    let Some((_, interface)) = &lan.own else {
        return ReturnPath::NoAddress;
    };
    if !forwards(interface) {
        return ReturnPath::NotForwarding;
    }
    known.ports.retain(|host, _| lan.hosts.contains_key(host));
    let mut asked = JoinSet::new();
    for (&host, &is_router) in &lan.hosts {
        let (tunnel, port) = (tunnel.clone(), known.ports.get(&host).copied());
        asked.spawn(async move {
            let port = answering(host, port).await?;
            let returned = tunnel.returns(SocketAddrV4::new(host, port)).await?;
            let witness = Witness {
                is_router,
                returned,
            };
            Some((host, port, witness))
        });
    }
    let mut witnesses = Vec::new();
    for (host, port, witness) in asked.join_all().await.into_iter().flatten() {
        known.ports.insert(host, port);
        witnesses.push(witness);
    }
    Witness::weigh(&witnesses)
}

/// Finds a port at which a host answers this machine, be it by a refusal; `former` first.
async fn answering(host: Ipv4Addr, former: Option<u16>) -> Option<u16> {
    for port in former.into_iter().chain(PORTS) {
        let connected = TcpStream::connect((host, port));
        match time::timeout(CONNECT_TIMEOUT, connected).await {
            Ok(Ok(_)) => return Some(port),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Some(port);
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    None
}

/// Tells whether the machine forwards what comes by an interface.
pub(super) fn forwards(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    // Whoever cannot look sees by the answers.
    fs::read_to_string(path).map_or(true, |text| text.trim() != "0")
}

impl Lan {
    /// Looks at the machine's addresses, routes and neighbours in `prefixes`.
    async fn of(prefixes: &[Ipv4Prefix]) -> io::Result<Self> {
        let netlink = Netlink::open()?;
        let within = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                let holds = prefixes.iter().any(|prefix| prefix.contains(address));
                holds.then_some(address)
            }
            IpAddr::V6(_) => None,
        };
        let mut lan = Self::default();
        let mut owned = Vec::new();
        for address in netlink.addresses().await? {
            if let Some(own) = within(address.network.address) {
                lan.own.get_or_insert((own, address.interface));
                owned.push(own);
            }
        }
        for route in netlink.routes().await? {
            let Some(router) = route.gateway.and_then(within) else {
                continue;
            };
            if route.destination.bits == 0 {
                lan.default_router.get_or_insert(router);
            }
            lan.hosts.insert(router, true);
        }
        let neighbours = netlink.neighbours().await?;
        let devices = neighbours.into_iter().filter_map(|it| within(it.address));
        for device in devices.filter(|device| !owned.contains(device)) {
            if lan.hosts.len() >= HOSTS_MAX {
                break;
            }
            lan.hosts.entry(device).or_insert(false);
        }
        Ok(lan)
    }

    /// Lists what a router of the LAN has to know to find `others`.
    fn routes(&self, others: &[Ipv4Prefix]) -> Vec<StaticRoute> {
        let Some((router, _)) = self.own else {
            return Vec::new();
        };
        let route = |&destination: &Ipv4Prefix| StaticRoute {
            destination,
            router,
        };
        others.iter().map(route).collect()
    }

    /// Writes the same for hosts that take their configuration by DHCP.
    fn option(&self, routes: &[StaticRoute]) -> Option<String> {
        let routes: Vec<_> = routes
            .iter()
            .map(|it| (it.destination, it.router))
            .collect();
        if routes.is_empty() {
            return None;
        }
        let option = dhcp::classless_static_routes(&routes, self.default_router)?;
        Some(data_encoding::HEXLOWER.encode(&option))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lan_without_a_route_is_told_which_and_as_dhcp_has_it() {
        let lan = Lan {
            own: Some((Ipv4Addr::new(192, 168, 200, 2), "eth0".to_owned())),
            default_router: Some(Ipv4Addr::new(192, 168, 200, 1)),
            hosts: BTreeMap::new(),
        };
        let other = "192.168.201.0/24".parse().unwrap();
        let routes = lan.routes(&[other]);
        assert_eq!(routes.len(), 1);
        assert_eq!(
            (routes[0].destination, routes[0].router),
            (other, Ipv4Addr::new(192, 168, 200, 2))
        );
        // 24 192.168.201 via 192.168.200.2, then 0 via 192.168.200.1.
        let option = lan.option(&routes);
        assert_eq!(option.as_deref(), Some("18c0a8c9c0a8c80200c0a8c801"));
        assert_eq!(lan.option(&[]), None);
        assert_eq!(Lan::default().routes(&[other]), []);
    }
}
