//! The world: hosts, internet, control and the reference, driven in virtual time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use model::id::OrgId;
use node::{Event, Node, Outcome};
use packet::{ecn::Ecn, ip, udp};

use crate::{
    beginning,
    control::Control,
    host::{Host, HostId, Membership, PORT, Removal},
    internet::{Conditions, Flight, Internet},
    ledger::{Forbidden, Ledger},
    nat::Nat,
    seed::Seed,
    transfer::Transfer,
};

/// How a node is attached to its machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// With a TUN interface, at a public address.
    Tun,
    /// With a TUN interface, behind a NAT of its own.
    TunBehindNat,
    /// With a stack inside the program, behind a NAT of its own.
    UserBehindNat,
}

/// A world of one gateway and the nodes of some organisations.
pub struct World {
    number: u64,
    pub(crate) now: Instant,
    seed: Seed,
    pub(crate) hosts: Vec<Host>,
    pub(crate) transfers: Vec<Transfer>,
    internet: Internet,
    nats: Vec<Nat>,
    control: Control,
    /// Whether changes of the map are published.
    announcing: bool,
    ledger: Ledger,
    /// Datagrams that an attacker has recorded, at most [`RECORDS_MAX`].
    records: Vec<(SocketAddr, Vec<u8>)>,
    attacked: bool,
    script: Vec<(Duration, String)>,
    buffer: Vec<u8>,
}

const GATEWAY: HostId = HostId(0);
/// The gateway's endpoint is a name, so that its resolution is part of every world.
const ENDPOINT: &str = "gateway.example:51820";
const GATEWAY_ADDRESS: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)), 51_820);
const RECORDS_MAX: usize = 64;
/// More than a host ever does at one instant.
const TURNS_MAX: usize = 10_000;
/// A node that lost its session silently notices after `KEEPALIVE_TIMEOUT` and `REKEY_TIMEOUT`
/// (15 s); the handshake then takes one or two attempts of `REKEY_TIMEOUT` and jitter.
const SETTLE_SECONDS: u64 = 40;
/// Who records a datagram that is then lost, and sends it from elsewhere, moves an endpoint to
/// there (known limitations of WireGuard: roaming is not confirmed). The client finds back when it
/// has asked three times in vain and looks the gateway's name up again.
const SETTLE_ATTACKED_SECONDS: u64 = 15 + 3 * 6 + SETTLE_SECONDS;

impl World {
    /// Makes the world of `seed`: a running gateway, no organisation, good weather.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let number = seed;
        let mut seed = Seed::new(seed);
        let gateway = Host::new(&mut seed, true, GATEWAY_ADDRESS);
        let control = Control::new(gateway.public_key, ENDPOINT);
        let mut world = Self {
            number,
            now: beginning(),
            seed,
            hosts: vec![gateway],
            transfers: Vec::new(),
            internet: Internet::new(Conditions::GOOD),
            nats: Vec::new(),
            control,
            announcing: true,
            ledger: Ledger::default(),
            records: Vec::new(),
            attacked: false,
            script: Vec::new(),
            buffer: vec![0; Node::DATAGRAM_MAX],
        };
        world.start(GATEWAY);
        world
    }

    /// Returns the gateway.
    #[must_use]
    pub fn gateway(&self) -> HostId {
        GATEWAY
    }

    /// Returns the world's own chance, for choices of a scenario.
    pub fn chance(&mut self) -> &mut Seed {
        &mut self.seed
    }

    /// Adds an organisation.
    pub fn add_org(&mut self) -> OrgId {
        let org = self.control.add_org();
        self.apply_maps();
        org
    }

    /// Enrols a node and starts it.
    pub fn join(&mut self, org: OrgId, kind: Kind) -> HostId {
        let index = self.hosts.len();
        let last = u8::try_from(index).expect("a world has few hosts");
        let (user, behind_nat) = match kind {
            Kind::Tun => (false, false),
            Kind::TunBehindNat => (false, true),
            Kind::UserBehindNat => (true, true),
        };
        let address = if behind_nat {
            [192, 168, 1, last]
        } else {
            [192, 0, 2, last]
        };
        let mut host = Host::new(&mut self.seed, user, (address, 40_000).into());
        if behind_nat {
            host.nat = Some(self.nats.len());
            self.nats.push(Nat::new([203, 0, 113, last].into()));
        }
        let (id, node) = self.control.add_node(&mut self.seed, org, host.public_key);
        host.membership = Some(Membership {
            org,
            id,
            address: node.address,
        });
        host.disk.map = self.control.map_of_client(org, id);
        self.hosts.push(host);
        let host = HostId(index);
        self.note(&format!("{host:?} joins {org} as {kind:?}"));
        self.apply_maps();
        self.start(host);
        host
    }

    /// Removes a node from its organisation; it knows nothing of it and goes on trying.
    pub fn remove(&mut self, host: HostId) {
        let Some(Membership { org, id, .. }) = self.hosts[host.0].membership else {
            return;
        };
        self.note(&format!("{host:?} is removed"));
        self.hosts[host.0]
            .removed
            .get_or_insert(Removal { applied: None });
        self.control.remove_node(org, id);
        self.apply_maps();
    }

    /// Tells whether the node was removed.
    #[must_use]
    pub fn is_removed(&self, host: HostId) -> bool {
        self.hosts[host.0].removed.is_some()
    }

    /// Returns the organisation of a node.
    #[must_use]
    pub fn org(&self, host: HostId) -> Option<OrgId> {
        self.hosts[host.0]
            .membership
            .map(|membership| membership.org)
    }

    /// Returns every host but the gateway.
    pub fn clients(&self) -> impl Iterator<Item = HostId> + use<> {
        (1..self.hosts.len()).map(HostId)
    }

    /// Returns the members of an organisation that were not removed.
    #[must_use]
    pub fn members(&self, org: OrgId) -> Vec<HostId> {
        let members = self.clients().filter(|host| self.org(*host) == Some(org));
        members.filter(|host| !self.is_removed(*host)).collect()
    }

    /// Changes the weather.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.note(&format!("{conditions:?}"));
        self.internet.conditions = conditions;
    }

    /// Kills the node with everything that is not on disk.
    pub fn kill(&mut self, host: HostId) {
        self.note(&format!("{host:?} is killed"));
        self.hosts[host.0].node = None;
        self.hosts[host.0].asleep = None;
    }

    /// Starts the node with what is on disk, unless it runs. A client gets another port.
    pub fn start(&mut self, id: HostId) {
        if self.hosts[id.0].node.is_some() {
            return;
        }
        self.note(&format!("{id:?} starts"));
        let port = 40_000 + u16::try_from(self.seed.below(20_000)).expect("below 20,000");
        let host = &mut self.hosts[id.0];
        if id != GATEWAY {
            host.local.set_port(port);
        }
        host.start(self.now, &mut self.seed);
        self.apply_maps();
        self.turn(id);
    }

    /// Lets the host sleep: it hears nothing and does nothing.
    pub fn sleep(&mut self, host: HostId, clock_stops: bool) {
        self.note(&format!(
            "{host:?} falls asleep, its clock stops: {clock_stops}"
        ));
        self.hosts[host.0].sleep(self.now, clock_stops);
    }

    /// Wakes the host.
    pub fn wake(&mut self, host: HostId) {
        self.note(&format!("{host:?} wakes"));
        self.hosts[host.0].wake(self.now);
        self.time_out(host);
    }

    /// Moves the host to another network: other address, other NAT.
    pub fn roam(&mut self, host: HostId) {
        self.note(&format!("{host:?} roams"));
        let [a, b] = [self.seed.below(250), self.seed.below(250)];
        let [a, b] = [a, b].map(|byte| u8::try_from(byte + 1).expect("at most 250"));
        match self.hosts[host.0].nat {
            Some(_) => {
                self.hosts[host.0].nat = Some(self.nats.len());
                let number = self.nats.len().to_be_bytes();
                self.nats
                    .push(Nat::new([100, 64 + a % 64, number[6], number[7]].into()));
                self.hosts[host.0].local.set_ip([10, a, b, 2].into());
            }
            None => self.hosts[host.0]
                .local
                .set_ip([172, 16 + a % 16, b, a].into()),
        }
    }

    /// Lets the NAT of the host forget its mappings.
    pub fn rebind(&mut self, host: HostId) {
        self.note(&format!("the NAT of {host:?} restarts"));
        if let Some(nat) = self.hosts[host.0].nat {
            self.nats[nat].rebind();
        }
    }

    /// Sets the host's wall clock wrong by so many seconds.
    pub fn set_clock_error(&mut self, host: HostId, seconds: i64) {
        self.note(&format!(
            "the wall clock of {host:?} is wrong by {seconds} s"
        ));
        let now = self.now;
        let host = &mut self.hosts[host.0];
        host.clock_error = seconds;
        let (clock, wall) = (host.clock(now), host.wall(now));
        // One that sleeps learns it when it wakes.
        if let Some(node) = host.node.as_mut().filter(|_| host.asleep.is_none()) {
            node.set_wall_clock(clock, wall);
        }
    }

    /// Plugs the host's link in or out.
    pub fn set_connected(&mut self, host: HostId, connected: bool) {
        self.note(&format!("{host:?} connected: {connected}"));
        self.hosts[host.0].connected = connected;
    }

    /// Lets changes of the map reach the host, or not.
    pub fn set_controlled(&mut self, host: HostId, controlled: bool) {
        self.note(&format!("control reaches {host:?}: {controlled}"));
        self.hosts[host.0].controlled = controlled;
        self.apply_maps();
    }

    /// Lets control publish changes of the map, or only answer questions.
    pub fn set_announcing(&mut self, announcing: bool) {
        self.note(&format!("control publishes changes: {announcing}"));
        self.announcing = announcing;
        self.apply_maps();
    }

    /// Begins a handshake from `host` at once: a client's with the gateway, the gateway's with
    /// every client.
    pub fn initiate(&mut self, host: HostId) {
        let keys: Vec<_> = match host {
            GATEWAY => self.hosts[1..]
                .iter()
                .map(|client| client.public_key)
                .collect(),
            HostId(_) => vec![self.hosts[GATEWAY.0].public_key],
        };
        if !self.hosts[host.0].is_awake() {
            return;
        }
        let clock = self.hosts[host.0].clock(self.now);
        if let Some(node) = &mut self.hosts[host.0].node {
            for key in keys {
                node.initiate(clock, &key);
            }
        }
        self.turn(host);
    }

    /// Begins a stream of `total` bytes between two nodes in user mode.
    ///
    /// # Panics
    /// When `to` belongs to nobody.
    pub fn transfer(&mut self, from: HostId, to: HostId, total: u64) -> usize {
        self.note(&format!("{from:?} begins to send {total} bytes to {to:?}"));
        let number = self.transfers.len();
        let port = 8_000 + u16::try_from(number).expect("a world has few streams");
        let member = self.hosts[to.0]
            .membership
            .expect("streams go between nodes");
        self.control.publish(member.org, member.id, port);
        self.apply_maps();
        let remote = SocketAddr::new(member.address.into(), port);
        self.transfers.push(Transfer::new(from, to, remote, total));
        self.turn(from);
        number
    }

    /// Tells how many bytes of a stream have come, and whether its end has.
    #[must_use]
    pub fn progress(&self, transfer: usize) -> (u64, bool) {
        let transfer = &self.transfers[transfer];
        (transfer.received(), transfer.ended)
    }

    /// Lets time pass.
    pub fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let deadlines = self.hosts.iter().filter_map(Host::deadline);
            let next = deadlines.chain(self.internet.next_arrival()).min();
            match next.filter(|next| *next <= until) {
                Some(next) => self.now = next.max(self.now),
                None => break,
            }
            while let Some(flight) = self.internet.arrive(self.now) {
                self.arrive(flight);
            }
            for index in 0..self.hosts.len() {
                if self.hosts[index]
                    .deadline()
                    .is_some_and(|deadline| deadline <= self.now)
                {
                    self.time_out(HostId(index));
                }
            }
        }
        self.now = until;
    }

    /// Sends a packet of the ledger and returns its number.
    pub fn send(&mut self, from: HostId, to: HostId) -> u64 {
        let forbidden = if self.is_cut(from) || self.is_cut(to) {
            Some(Forbidden::Removed)
        } else if self.org(from) != self.org(to) {
            Some(Forbidden::OtherOrg)
        } else {
            None
        };
        let clock = self.hosts[from.0].clock(self.now);
        let id = self.ledger.send(clock, from, to, forbidden);
        if let Some(member) = self.hosts[from.0].membership {
            self.emit(from, member.address.into(), to, id);
        }
        id
    }

    /// Sends a packet that bears the address of `pretended` as its source.
    pub fn forge(&mut self, from: HostId, pretended: HostId, to: HostId) -> u64 {
        let clock = self.hosts[from.0].clock(self.now);
        let id = self.ledger.send(clock, from, to, Some(Forbidden::Forged));
        let pretended = self.hosts[pretended.0].membership;
        if let Some(member) = pretended.filter(|_| !self.hosts[from.0].user) {
            self.emit(from, member.address.into(), to, id);
        }
        id
    }

    /// Sends a datagram that was on the wire before once more, from a stranger's address.
    pub fn replay(&mut self) {
        if self.records.is_empty() {
            return;
        }
        let nth = self.seed.below(self.records.len());
        let (destination, payload) = self.records[nth].clone();
        self.note(&format!(
            "an attacker replays {} bytes to {destination}",
            payload.len()
        ));
        self.attacked = true;
        let source = SocketAddr::from(([198, 18, 0, 1], 666));
        let flight = Flight {
            source,
            destination,
            payload,
        };
        self.internet.send(self.now, &mut self.seed, &flight);
    }

    /// Tells whether a packet has come out.
    #[must_use]
    pub fn has_arrived(&self, id: u64) -> bool {
        self.ledger.has_arrived(id)
    }

    /// Returns the number of the next packet, for [`World::arrived_since`].
    #[must_use]
    pub fn next_packet(&self) -> u64 {
        self.ledger.next()
    }

    /// Returns how many of the packets since number `id` have come out, and how many there are.
    #[must_use]
    pub fn arrived_since(&self, id: u64) -> (usize, usize) {
        self.ledger.arrived_since(id)
    }

    /// Sends a packet from `from` to `to` every 100 ms until one has come out, and returns how
    /// long that took; `None` after `within`.
    pub fn reach(&mut self, from: HostId, to: HostId, within: Duration) -> Option<Duration> {
        let start = self.now;
        let first = self.ledger.next();
        while self.now < start + within {
            self.send(from, to);
            for _ in 0..10 {
                self.wait(Duration::from_millis(10));
                if (first..self.ledger.next()).any(|id| self.has_arrived(id)) {
                    return Some(self.now - start);
                }
            }
        }
        None
    }

    /// Makes the world good and demands that every node reaches every other of its organisation.
    pub fn settle(&mut self) {
        self.note("everything is made good");
        self.internet.conditions = Conditions::GOOD;
        for index in 0..self.hosts.len() {
            let host = &mut self.hosts[index];
            host.connected = true;
            host.controlled = true;
            let wakes = host.asleep.is_some();
            if wakes {
                self.wake(HostId(index));
            }
            self.start(HostId(index));
        }
        self.apply_maps();
        let mut missing = self.pairs();
        let attacked = std::mem::replace(&mut self.attacked, false);
        let bound = if attacked {
            SETTLE_ATTACKED_SECONDS
        } else {
            SETTLE_SECONDS
        };
        for _ in 0..bound {
            let sent: Vec<_> = missing
                .iter()
                .map(|&(from, to)| ((from, to), self.send(from, to)))
                .collect();
            self.wait(Duration::from_secs(1));
            for (pair, id) in sent {
                if self.has_arrived(id) {
                    missing.remove(&pair);
                }
            }
            if missing.is_empty() {
                return;
            }
        }
        self.fail(&format!(
            "after {bound} good seconds these do not reach: {missing:?}"
        ));
    }

    /// Panics with the seed and the script of the world.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&self, what: &str) -> ! {
        let mut script = String::new();
        for (at, event) in &self.script {
            script += &format!("{:>10.3}  {event}\n", at.as_secs_f64());
        }
        let now = (self.now - beginning()).as_secs_f64();
        panic!(
            "\n{script}{now:>10.3}  {what}\n\nrepeat it with SIM_SEED={}\n",
            self.number
        );
    }

    /// Adds a line to the script that a failure prints.
    pub fn note(&mut self, event: &str) {
        self.script.push((self.now - beginning(), event.to_owned()));
    }

    fn pairs(&self) -> BTreeSet<(HostId, HostId)> {
        let mut pairs = BTreeSet::new();
        for from in self.clients() {
            for to in self.clients() {
                let member = from != to && self.org(from) == self.org(to);
                if member && !self.is_removed(from) && !self.is_removed(to) {
                    pairs.insert((from, to));
                }
            }
        }
        pairs
    }

    /// Tells whether the gateway knows that the node was removed.
    fn is_cut(&self, host: HostId) -> bool {
        self.cut(host).is_some()
    }

    fn cut(&self, host: HostId) -> Option<Instant> {
        self.hosts[host.0]
            .removed
            .and_then(|removal| removal.applied)
    }

    /// Brings the newest map to every host that control reaches.
    fn apply_maps(&mut self) {
        if !self.announcing {
            return;
        }
        for index in 0..self.hosts.len() {
            let host = &mut self.hosts[index];
            if !host.controlled {
                continue;
            }
            let map = match host.membership {
                Some(Membership { org, id, .. }) => self.control.map_of_client(org, id),
                None => Some(self.control.map_of_gateway()),
            };
            // A running node that was removed keeps its last map.
            let Some(map) = map.filter(|map| host.disk.map.as_ref() != Some(map)) else {
                continue;
            };
            let clock = host.clock(self.now);
            if let Some(node) = host.node.as_mut().filter(|_| host.asleep.is_none()) {
                let known = host.disk.map.as_ref();
                let difference = known.map(|known| map.difference(known));
                if !difference.is_some_and(|difference| node.apply_difference(clock, &difference)) {
                    node.apply(clock, &map);
                }
                assert_eq!(node.map(), Some(&map), "a difference made another map");
                host.disk.map = Some(map);
                if index == GATEWAY.0 {
                    self.cut_removed();
                }
                self.turn(HostId(index));
            }
        }
    }

    fn cut_removed(&mut self) {
        for host in &mut self.hosts {
            if let Some(removal) = &mut host.removed {
                removal.applied.get_or_insert(self.now);
            }
        }
    }

    /// Lets `from` send packet `id` to `to` through its TUN interface or its stack.
    fn emit(&mut self, from: HostId, source: IpAddr, to: HostId, id: u64) {
        let Some(member) = self.hosts[to.0].membership else {
            return;
        };
        let clock = self.hosts[from.0].clock(self.now);
        let host = &mut self.hosts[from.0];
        let Some(node) = host.node.as_mut().filter(|_| host.asleep.is_none()) else {
            return;
        };
        let destination = IpAddr::from(member.address);
        if let (Some(stack), Some(socket)) = (node.stack(), host.socket) {
            let remote = SocketAddr::new(destination, PORT);
            // A full queue is as good as a lost packet.
            let _sent = stack.send_to(socket, remote, &id.to_be_bytes()).is_ok();
        } else {
            let mut slot = packet(source, destination, id);
            let length = slot.len() - wireguard::OVERHEAD - 16;
            if let Outcome::Send {
                destination,
                datagram,
                ..
            } = node.handle_packet(clock, &mut slot, length)
            {
                let payload = datagram.to_vec();
                self.depart(from, destination, payload);
            }
        }
        self.turn(from);
    }

    fn depart(&mut self, from: HostId, destination: SocketAddr, payload: Vec<u8>) {
        let host = &self.hosts[from.0];
        if !host.connected {
            return;
        }
        let source = match host.nat {
            Some(nat) => self.nats[nat].leave(self.now, &mut self.seed, host.local, destination),
            None => host.local,
        };
        if self.records.len() < RECORDS_MAX {
            self.records.push((destination, payload.clone()));
        } else if self.seed.happens(5) {
            let nth = self.seed.below(RECORDS_MAX);
            self.records[nth] = (destination, payload.clone());
        }
        let flight = Flight {
            source,
            destination,
            payload,
        };
        self.internet.send(self.now, &mut self.seed, &flight);
    }

    fn arrive(&mut self, flight: Flight) {
        let Flight {
            source,
            destination,
            mut payload,
        } = flight;
        let nat = self
            .nats
            .iter()
            .position(|nat| nat.address == destination.ip());
        let inside = match nat {
            Some(nat) => self.nats[nat].enter(self.now, source, destination.port()),
            None => Some(destination),
        };
        let is_there =
            |host: &Host| Some(host.local) == inside && host.nat == nat && host.connected;
        let found = self.hosts.iter().position(is_there).map(HostId);
        let Some(id) = found.filter(|id| self.hosts[id.0].is_awake()) else {
            return;
        };
        let clock = self.hosts[id.0].clock(self.now);
        let Some(node) = &mut self.hosts[id.0].node else {
            return;
        };
        let mut delivered = None;
        let mut forwarded = None;
        match node.handle_datagram(clock, source, Ecn::NotEct, &mut payload) {
            Outcome::Nothing | Outcome::Refused => (),
            Outcome::Packet(packet) => delivered = Some(packet.to_vec()),
            Outcome::Send {
                destination,
                datagram,
                ..
            } => {
                forwarded = Some((destination, datagram.to_vec()));
            }
        }
        if let Some(packet) = delivered {
            self.take_packet(id, &packet);
        }
        if let Some((destination, datagram)) = forwarded {
            self.depart(id, destination, datagram);
        }
        self.turn(id);
    }

    /// Takes a packet that came out of a TUN interface.
    fn take_packet(&mut self, host: HostId, bytes: &[u8]) {
        let Ok(packet) = ip::parse(bytes) else {
            self.fail(&format!(
                "{host:?} was given something that is no IP packet"
            ));
        };
        let (source, destination) = (packet.header.source, packet.header.destination);
        if packet.header.next_header == ip::UDP {
            match udp::parse(source, destination, packet.payload) {
                Ok(datagram) => self.take_datagram(host, source, datagram.payload),
                Err(error) => self.fail(&format!("{host:?} was given a datagram: {error:?}")),
            }
        }
    }

    fn take_datagram(&mut self, host: HostId, source: IpAddr, payload: &[u8]) {
        let Some(id) = payload.first_chunk() else {
            self.fail(&format!(
                "{host:?} was given a datagram of {} bytes",
                payload.len()
            ));
        };
        let id = u64::from_be_bytes(*id);
        let hosts = &self.hosts;
        let cut = |host: HostId| hosts[host.0].removed.and_then(|removal| removal.applied);
        let (now, clock) = (self.now, |host: HostId| hosts[host.0].clock(self.now));
        let outcome = self.ledger.arrive(now, host, id, clock, cut);
        if let Err(what) = outcome {
            self.fail(&what);
        }
        let sender = self
            .ledger
            .sender(id)
            .and_then(|from| self.hosts[from.0].membership);
        if sender.is_none_or(|sender| IpAddr::from(sender.address) != source) {
            self.fail(&format!(
                "packet {id} arrived from {source}, which is not its sender"
            ));
        }
    }

    fn time_out(&mut self, id: HostId) {
        let clock = self.hosts[id.0].clock(self.now);
        if let Some(node) = self.hosts[id.0].node.as_mut() {
            node.handle_timeout(clock);
        }
        self.turn(id);
        if self.hosts[id.0]
            .deadline()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.fail(&format!(
                "{id:?} did what was due and still wants attention at once"
            ));
        }
    }

    /// Drains a host after an input.
    fn turn(&mut self, id: HostId) {
        for _ in 0..TURNS_MAX {
            let transferred = self.pump_transfers(id);
            let busy = match transferred {
                Ok(busy) => busy,
                Err(what) => self.fail(&what),
            };
            if !self.transmit(id) && !self.take_events(id) && !busy {
                self.hosts[id.0].save();
                return;
            }
        }
        self.fail(&format!("{id:?} is never done"));
    }

    fn transmit(&mut self, id: HostId) -> bool {
        let clock = self.hosts[id.0].clock(self.now);
        let host = &mut self.hosts[id.0];
        let Some(node) = host.node.as_mut().filter(|_| host.asleep.is_none()) else {
            return false;
        };
        let mut datagrams = Vec::new();
        while let Some((destination, length)) = node.poll_transmit(clock, &mut self.buffer) {
            datagrams.push((destination, self.buffer[..length].to_vec()));
        }
        let mut packets = Vec::new();
        while let Some(packet) = node.poll_packet() {
            packets.push(packet);
        }
        let busy = !datagrams.is_empty() || !packets.is_empty();
        for (destination, payload) in datagrams {
            self.depart(id, destination, payload);
        }
        for packet in packets {
            self.take_packet(id, &packet);
        }
        busy
    }

    fn take_events(&mut self, id: HostId) -> bool {
        let clock = self.hosts[id.0].clock(self.now);
        let host = &mut self.hosts[id.0];
        let event = host.node.as_mut().and_then(|node| node.poll_event(clock));
        let Some(event) = event else {
            return false;
        };
        match event {
            Event::Stack(netstack::Event::UdpReadable(socket)) => self.take_datagrams(id, socket),
            Event::Stack(netstack::Event::Accepted(listener)) => self.accept(id, listener),
            Event::Stack(netstack::Event::Closed(connection, reason)) => {
                self.note(&format!("{id:?} sees {connection:?} end: {reason}"));
            }
            Event::ResolveEndpoint {
                public_key,
                endpoint,
            } => {
                let gateway = self.hosts[GATEWAY.0].local;
                let node = self.hosts[id.0].node.as_mut();
                if let Some(node) = node.filter(|_| endpoint.to_string() == ENDPOINT) {
                    node.set_endpoint(clock, &public_key, gateway);
                }
            }
            Event::UnknownInitiator {
                public_key, ticket, ..
            } => {
                let known = self.control.node_by_key(&public_key);
                let known = known.filter(|_| self.hosts[id.0].controlled);
                if let Some(node) = self.hosts[id.0].node.as_mut() {
                    match known {
                        Some((org, member, entry)) => {
                            node.insert_node(clock, org, member, &entry);
                            node.answer_unknown(clock, ticket);
                        }
                        None => node.forget_unknown(ticket),
                    }
                }
            }
            Event::Stack(_)
            | Event::HostReturned { .. }
            | Event::HandshakeCompleted { .. }
            | Event::HandshakeAbandoned { .. }
            | Event::SiteChanged { .. }
            | Event::EndpointMoved { .. } => (),
        }
        true
    }

    fn take_datagrams(&mut self, id: HostId, socket: netstack::UdpId) {
        let mut received = Vec::new();
        let mut buffer = [0; 2_048];
        let stack = self.hosts[id.0].node.as_mut().and_then(Node::stack);
        if let Some(stack) = stack {
            while let Some((length, from, _)) = stack.recv_from(socket, &mut buffer) {
                received.push((from.ip(), buffer[..length].to_vec()));
            }
        }
        for (source, payload) in received {
            self.take_datagram(id, source, &payload);
        }
    }
}

/// Makes a UDP packet with room for the tunnel in front and behind.
fn packet(source: IpAddr, destination: IpAddr, id: u64) -> Vec<u8> {
    let payload = id.to_be_bytes();
    let datagram = udp::Datagram {
        source_port: PORT,
        destination_port: PORT,
        payload: &payload,
    };
    let length = udp::HEADER + payload.len();
    let header = ip::Header {
        source,
        destination,
        next_header: ip::UDP,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let mut slot = vec![0; wireguard::OVERHEAD + ip::V6_HEADER + length + 16];
    let front = &mut slot[wireguard::HEADER..];
    let header_length = ip::emit_header(&header, length, front);
    udp::emit(source, destination, &datagram, &mut front[header_length..]);
    slot
}
