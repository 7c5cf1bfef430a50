//! Nodes, a link between them, and a clock that only the world moves.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use model::{
    address::{Kind, OrgPrefix},
    id::{NodeId, OrgId},
    key::{PublicKey, SecretKey},
    map::{self, NetworkMap, Own, Role, State},
    name::Label,
};
use node::{Attachment, Event, Node, Outcome};
use packet::{ecn::Ecn, ip};
use wireguard::{HEADER, Random, StaticSecret};

use super::parallel;

pub(crate) const LATENCY: Duration = Duration::from_millis(10);
pub(crate) const GATEWAY: u8 = 200;

/// Hosts on one network, by their last address byte.
pub(crate) struct World {
    base: Instant,
    pub(crate) now: Instant,
    pub(crate) hosts: BTreeMap<u8, Host>,
    /// Datagrams under way, in order of arrival.
    link: VecDeque<Flight>,
    /// What routers make of the ECN field of datagrams.
    pub(crate) routers: fn(Ecn) -> Ecn,
    /// Hosts whose datagrams are lost, both ways.
    pub(crate) cut: Vec<u8>,
    /// The longest datagram in bytes that passes in one piece.
    pub(crate) carries: usize,
    /// The same of the path of one host.
    pub(crate) narrow: BTreeMap<u8, usize>,
    /// Whether longer ones pass in several.
    pub(crate) fragments: bool,
    buffer: Vec<u8>,
    /// The next datagram is opened and sealed outside of its node.
    apart: bool,
}

/// A node and what came out of it.
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) events: Vec<Event>,
    /// What its TUN interface was given.
    pub(crate) packets: Vec<Vec<u8>>,
}

/// What control would know.
#[derive(Clone)]
pub(crate) struct Installation {
    pub(crate) serial: u64,
    pub(crate) orgs: BTreeMap<OrgId, map::Org>,
}

pub(crate) struct Seeded(pub(crate) u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = word.to_be_bytes()[0];
        }
    }
}

pub(crate) fn secret(host: u8) -> SecretKey {
    SecretKey::new([host; 32])
}

pub(crate) fn public_key(host: u8) -> PublicKey {
    PublicKey(StaticSecret::new([host; 32]).public_key().0)
}

pub(crate) fn endpoint(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], 51820))
}

pub(crate) fn label(text: &str) -> Label {
    text.parse().expect("a well-formed label")
}

pub(crate) fn prefix(org: u8) -> OrgPrefix {
    OrgPrefix::new([org; 5])
}

/// Address of the node on `host`; the tens of a host are its organisation.
pub(crate) fn address(host: u8) -> Ipv6Addr {
    prefix(host / 10).address(Kind::Node, host.into())
}

pub(crate) fn ip(host: u8) -> IpAddr {
    IpAddr::V6(address(host))
}

impl Installation {
    /// `acme` with `laptop` (11), `db` (12), `web` (13); `umbrella` with the same names (21..23).
    pub(crate) fn new() -> Self {
        let orgs = [(1, "acme"), (2, "umbrella")]
            .into_iter()
            .map(|(org, name)| {
                let nodes = [(1, "laptop"), (2, "db"), (3, "web")];
                let nodes = nodes.map(|(node, name)| member(org * 10 + node, name));
                let gateway = map::Gateway {
                    id: NodeId(GATEWAY.into()),
                    name: label("gate"),
                    public_key: public_key(GATEWAY),
                    endpoint: endpoint(GATEWAY).to_string(),
                };
                let org_map = map::Org {
                    name: label(name),
                    prefix: prefix(org),
                    gateway: Some(gateway),
                    nodes: nodes.into(),
                    services: BTreeMap::new(),
                    sites: BTreeMap::new(),
                    rules: None,
                    ssh: None,
                };
                (OrgId(org.into()), org_map)
            });
        let orgs = orgs.collect();
        Self { serial: 1, orgs }
    }

    pub(crate) fn org(&mut self, org: u8) -> &mut map::Org {
        self.serial += 1;
        self.orgs
            .get_mut(&OrgId(org.into()))
            .expect("a known organisation")
    }

    pub(crate) fn remove(&mut self, host: u8) {
        let removed = self.org(host / 10).nodes.remove(&NodeId(host.into()));
        assert!(removed.is_some());
    }

    pub(crate) fn publish(&mut self, host: u8, name: &str, port: u16) {
        let service = map::Service {
            node: NodeId(host.into()),
            port,
            target: Some(format!("127.0.0.1:{port}")),
        };
        let services = &mut self.org(host / 10).services;
        services.entry(label(name)).or_default().push(service);
    }

    pub(crate) fn map_of(&self, host: u8) -> NetworkMap {
        let org = OrgId((host / 10).into());
        let (role, name, orgs) = if host == GATEWAY {
            (Role::Gateway, label("gate"), self.orgs.clone())
        } else {
            let own = self.orgs[&org].clone();
            let name = own
                .nodes
                .get(&NodeId(host.into()))
                .map(|node| node.name.clone());
            let name = name.unwrap_or_else(|| label("nobody"));
            (Role::Client, name, BTreeMap::from([(org, own)]))
        };
        NetworkMap {
            serial: self.serial,
            own: Own {
                id: NodeId(host.into()),
                name,
                role,
                state: State::Active,
                capture: None,
            },
            orgs,
        }
    }
}

pub(crate) fn member(host: u8, name: &str) -> (NodeId, map::Node) {
    let node = map::Node {
        name: label(name),
        public_key: public_key(host),
        address: address(host),
        owner: None,
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    (NodeId(host.into()), node)
}

pub(crate) fn netstack(host: u8) -> Attachment {
    Attachment::Netstack {
        mtu: 1420,
        seed: [host; 32],
    }
}

impl World {
    pub(crate) fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        let now = Instant::now();
        Self {
            base: now,
            now,
            hosts: BTreeMap::new(),
            link: VecDeque::new(),
            routers: |ecn| ecn,
            cut: Vec::new(),
            carries: usize::MAX,
            narrow: BTreeMap::new(),
            apart: false,
            fragments: true,
            buffer: vec![0; Node::DATAGRAM_MAX],
        }
    }

    /// The gateway and clients with stacks, all with their maps, and every tunnel up.
    pub(crate) fn standing(installation: &Installation, clients: &[u8]) -> Self {
        let mut world = Self::new();
        world.add(GATEWAY, netstack(GATEWAY));
        for &client in clients {
            world.add(client, netstack(client));
        }
        world.publish(installation);
        world.run(Duration::from_secs(1));
        world
    }

    pub(crate) fn add(&mut self, host: u8, attachment: Attachment) {
        // A machine that starts again draws other randomness.
        let seconds = self.now.saturating_duration_since(self.base).as_secs();
        let random = Box::new(Seeded(u64::from(host) << 32 | seconds));
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let mut node = Node::new(self.now, wall, random, &secret(host), attachment);
        node.set_deferred_agreements(true);
        let host_state = Host {
            node,
            events: Vec::new(),
            packets: Vec::new(),
        };
        self.hosts.insert(host, host_state);
    }

    /// Gives every host its map.
    pub(crate) fn publish(&mut self, installation: &Installation) {
        let hosts: Vec<_> = self.hosts.keys().copied().collect();
        for host in hosts {
            let map = installation.map_of(host);
            let now = self.now;
            let node = self.node(host);
            let difference = node.map().map(|known| map.difference(known));
            if !difference.is_some_and(|difference| node.apply_difference(now, &difference)) {
                node.apply(now, &map);
            }
        }
    }

    pub(crate) fn node(&mut self, host: u8) -> &mut Node {
        &mut self.hosts.get_mut(&host).expect("a known host").node
    }

    pub(crate) fn stack(&mut self, host: u8) -> &mut netstack::Stack {
        self.node(host).stack().expect("a node with a stack")
    }

    /// Takes the events of a host that `wanted` maps to something.
    pub(crate) fn take<T>(&mut self, host: u8, wanted: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        let events = std::mem::take(&mut self.hosts.get_mut(&host).expect("a known host").events);
        events.iter().filter_map(wanted).collect()
    }

    /// Lets a host with a TUN interface send a raw packet.
    pub(crate) fn send_packet(&mut self, host: u8, packet: &[u8]) {
        // Room for a translation, padding and a tag.
        let mut slot = vec![0; HEADER + packet.len() + 128];
        slot[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        let now = self.now;
        self.apart = !self.apart;
        let apart = self.apart;
        let node = self.node(host);
        let outcome = if apart && !node.is_captured() {
            parallel::handle_packet(node, now, &mut slot, packet.len())
        } else {
            node.handle_packet(now, &mut slot, packet.len())
        };
        if let Outcome::Send {
            destination,
            ecn,
            datagram,
        } = outcome
        {
            let datagram = datagram.to_vec();
            self.transmit(host, destination, ecn, datagram, false);
        }
        self.drain(host);
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Goes to the next thing that happens, at most to `end`; false when there.
    pub(crate) fn step(&mut self, end: Instant) -> bool {
        let hosts: Vec<_> = self.hosts.keys().copied().collect();
        for &host in &hosts {
            self.drain(host);
        }
        let timeouts = self
            .hosts
            .values()
            .filter_map(|host| host.node.poll_timeout());
        let arrival = self.link.front().map(|flight| flight.at);
        let next = timeouts.chain(arrival).min().unwrap_or(end);
        if next > end || (next == end && self.now == end) {
            self.now = end;
            return false;
        }
        self.now = next.max(self.now);
        let now = self.now;
        for host in hosts {
            let node = self.node(host);
            if node.poll_timeout().is_some_and(|timeout| timeout <= now) {
                node.handle_timeout(now);
            }
            self.drain(host);
        }
        while self.link.front().is_some_and(|flight| flight.at <= now) {
            let flight = self.link.pop_front().expect("just seen");
            self.receive(flight);
        }
        true
    }

    fn receive(&mut self, flight: Flight) {
        let now = self.now;
        let Flight {
            from,
            to,
            ecn,
            mut datagram,
            ..
        } = flight;
        let Some(host) = self.hosts.get_mut(&to) else {
            return;
        };
        let source = endpoint(from);
        self.apart = !self.apart;
        let outcome = if self.apart && !host.node.is_captured() {
            parallel::handle_datagram(&mut host.node, now, source, ecn, &mut datagram)
        } else {
            host.node.handle_datagram(now, source, ecn, &mut datagram)
        };
        match outcome {
            Outcome::Nothing | Outcome::Refused => {}
            Outcome::Packet(packet) => host.packets.push(packet.to_vec()),
            Outcome::Send {
                destination,
                ecn,
                datagram,
            } => {
                let datagram = datagram.to_vec();
                self.transmit(to, destination, ecn, datagram, false);
            }
        }
        self.drain(to);
    }

    pub(crate) fn drain(&mut self, host: u8) {
        let now = self.now;
        let node = self.node(host);
        while let Some(mut agreement) = node.poll_agreement() {
            agreement.compute();
            while let Some(mut next) = node.handle_agreement(now, agreement) {
                next.compute();
                agreement = next;
            }
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(run) = self.node(host).poll_transmit_run(now, 65_000, &mut buffer) {
            for datagram in buffer[..run.length].chunks(run.segment) {
                let datagram = datagram.to_vec();
                self.transmit(host, run.destination, run.ecn, datagram, run.whole);
            }
        }
        self.buffer = buffer;
        let host = self.hosts.get_mut(&host).expect("a known host");
        while let Some(packet) = host.node.poll_packet() {
            host.packets.push(packet);
        }
        while let Some(event) = host.node.poll_event(now) {
            host.events.push(event);
        }
    }

    fn transmit(
        &mut self,
        from: u8,
        destination: SocketAddr,
        ecn: Ecn,
        datagram: Vec<u8>,
        whole: bool,
    ) {
        let IpAddr::V4(address) = destination.ip() else {
            panic!("the network has IPv4 only");
        };
        let to = address.octets()[3];
        let narrow = [from, to].map(|host| self.narrow.get(&host).copied());
        let carries = narrow.into_iter().flatten().chain([self.carries]).min();
        let carries = carries.expect("one at least");
        if datagram.len() > carries && (whole || !self.fragments) {
            return;
        }
        if !self.cut.contains(&from) && !self.cut.contains(&to) {
            self.link.push_back(Flight {
                at: self.now + LATENCY,
                from,
                to,
                ecn: (self.routers)(ecn),
                datagram,
            });
        }
    }
}

/// A datagram on its way.
struct Flight {
    /// When it arrives.
    at: Instant,
    from: u8,
    to: u8,
    ecn: Ecn,
    datagram: Vec<u8>,
}

/// A raw packet.
pub(crate) fn raw(source: IpAddr, destination: IpAddr, next_header: u8, body: &[u8]) -> Vec<u8> {
    let header = ip::Header {
        source,
        destination,
        next_header,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let at = ip::header_length(destination);
    let mut out = vec![0; at + body.len()];
    ip::emit_header(&header, body.len(), &mut out);
    out[at..].copy_from_slice(body);
    out
}
