//! The WireGuard peers that a map or a configuration asks for, and their difference to those
//! there are: a peer that is in both is not touched.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Instant,
};

use model::{
    config::Config,
    endpoint::Endpoint,
    id::NodeId,
    key::{PublicKey, SecretKey},
    map::{NetworkMap, Node, Org, Role},
    name::Label,
    status::HEARD_MAX,
};
use wireguard::{AddPeerError, Device, PeerId, Prefix, PresharedKey};

use crate::{carrier::Carriers, site};

/// A peer as it should be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) name: Option<Label>,
    pub(crate) allowed: BTreeSet<Prefix>,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) keepalive: Option<NonZeroU16>,
    pub(crate) preshared_key: Option<SecretKey>,
}

/// All peers as they should be.
pub(crate) type Plan = BTreeMap<PublicKey, Wanted>;

/// A peer as it is.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) wanted: Wanted,
    /// Whether its endpoint is a name that waits for the shell.
    pub(crate) unresolved: bool,
    /// Initiations sent since the last completed handshake.
    pub(crate) attempts: u32,
    /// From where it was heard and since when, the latest first; at most [`HEARD_MAX`].
    pub(crate) heard: VecDeque<(Instant, SocketAddr)>,
}

/// The peers of the device.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    peers: BTreeMap<PublicKey, Peer>,
    by_id: BTreeMap<PeerId, PublicKey>,
    /// Peers that the device refused at the last change, by why.
    refused: BTreeMap<PublicKey, AddPeerError>,
}

/// How often a client makes itself heard, so that NAT mappings on the way stay open: less than the
/// 30 s after which common routers forget a UDP mapping (RFC 4787, 4.3 asks for 120 s).
const CLIENT_KEEPALIVE: NonZeroU16 = NonZeroU16::new(25).expect("not zero");

impl Roster {
    /// Makes the device's peers those of `plan` and returns the names that have to be resolved.
    ///
    /// What vanished goes first: its keys are gone before anything else happens, and its addresses
    /// are free for a successor with another key.
    pub(crate) fn apply(
        &mut self,
        now: Instant,
        device: &mut Device,
        plan: &Plan,
    ) -> Vec<(PublicKey, Endpoint)> {
        let gone = |key: &&PublicKey| !plan.contains_key(key);
        let gone: Vec<_> = self.peers.keys().filter(gone).copied().collect();
        for key in gone {
            self.remove(device, &key);
        }
        self.disallow(device, plan);
        self.refused.clear();
        let mut names = Vec::new();
        for (key, wanted) in plan {
            names.extend(self.set(now, device, *key, wanted.clone()));
        }
        names
    }

    /// Tells whether a change from the first plan to the second touches peers that stand in
    /// neither, or peers that were refused: then the whole plan decides.
    pub(crate) fn has_others(&self, [former, plan]: &[Plan; 2]) -> bool {
        let new = plan.keys().filter(|key| !former.contains_key(key));
        !self.refused.is_empty() || new.into_iter().any(|key| self.peers.contains_key(key))
    }

    /// Changes the peers that stand in `former` to those of `plan` in the order of
    /// [`Self::apply`], for a gateway: its peers have no endpoint to resolve.
    pub(crate) fn apply_part(
        &mut self,
        now: Instant,
        device: &mut Device,
        former: &Plan,
        plan: &Plan,
    ) {
        for key in former.keys().filter(|key| !plan.contains_key(key)) {
            self.remove(device, key);
        }
        self.disallow(device, plan);
        for (key, wanted) in plan {
            self.set(now, device, *key, wanted.clone());
        }
    }

    /// Takes from peers the prefixes that they do not have in `plan`.
    fn disallow(&self, device: &mut Device, plan: &Plan) {
        for (key, wanted) in plan {
            if let Some(peer) = self.peers.get(key) {
                for &prefix in peer.wanted.allowed.difference(&wanted.allowed) {
                    device.disallow(peer.id, prefix);
                }
            }
        }
    }

    /// Adds or changes one peer and returns its endpoint when that has to be resolved.
    pub(crate) fn set(
        &mut self,
        now: Instant,
        device: &mut Device,
        key: PublicKey,
        wanted: Wanted,
    ) -> Option<(PublicKey, Endpoint)> {
        let (id, former) = match self.peers.get(&key) {
            Some(peer) if peer.wanted == wanted => return None,
            Some(peer) => (peer.id, peer.wanted.clone()),
            None => (self.add(now, device, key)?, Wanted::default()),
        };
        for &prefix in former.allowed.difference(&wanted.allowed) {
            device.disallow(id, prefix);
        }
        for &prefix in wanted.allowed.difference(&former.allowed) {
            device.allow(id, prefix);
        }
        if wanted.preshared_key != former.preshared_key {
            let secret = wanted.preshared_key.as_ref();
            let secret = secret.map(|secret| PresharedKey::new(*secret.expose()));
            device.set_preshared_key(id, secret);
        }
        let moved = wanted.endpoint != former.endpoint;
        let address = wanted.endpoint.as_ref().and_then(Endpoint::socket_address);
        if moved && (address.is_some() || wanted.endpoint.is_none()) {
            // Only a change of the plan counts: a peer that roamed stays where it was heard.
            device.set_endpoint(id, address);
        }
        if wanted.keepalive != former.keepalive {
            device.set_persistent_keepalive(now, id, wanted.keepalive);
        }
        if moved && address.is_some() && wanted.keepalive.is_some() {
            // Who keeps alive wants to be reachable before it has anything to send.
            device.initiate(now, id);
        }
        let name = wanted
            .endpoint
            .clone()
            .filter(|_| moved && address.is_none());
        let unresolved = if moved {
            name.is_some()
        } else {
            self.peers.get(&key).is_some_and(|peer| peer.unresolved)
        };
        let before = self.peers.remove(&key);
        let (attempts, heard) = before
            .map(|peer| (peer.attempts, peer.heard))
            .unwrap_or_default();
        let peer = Peer {
            id,
            wanted,
            unresolved,
            attempts,
            heard,
        };
        self.by_id.insert(id, key);
        self.peers.insert(key, peer);
        name.map(|name| (key, name))
    }

    fn add(&mut self, now: Instant, device: &mut Device, key: PublicKey) -> Option<PeerId> {
        match device.add_peer(now, wireguard::PublicKey(key.0)) {
            Ok(id) | Err(AddPeerError::Exists(id)) => Some(id),
            Err(error @ (AddPeerError::OwnKey | AddPeerError::LowOrder | AddPeerError::Full)) => {
                self.refused.insert(key, error);
                None
            }
        }
    }

    /// Removes one peer; its session keys are gone when this returns.
    pub(crate) fn remove(&mut self, device: &mut Device, key: &PublicKey) {
        if let Some(peer) = self.peers.remove(key) {
            self.by_id.remove(&peer.id);
            device.remove_peer(peer.id);
        }
    }

    /// Takes the address that the name of an endpoint stands for.
    pub(crate) fn set_endpoint(
        &mut self,
        device: &mut Device,
        key: &PublicKey,
        endpoint: SocketAddr,
    ) -> Option<PeerId> {
        let peer = self.peers.get_mut(key)?;
        peer.unresolved = false;
        device.set_endpoint(peer.id, Some(endpoint));
        Some(peer.id)
    }

    /// Remembers that a peer was heard from another address than before.
    pub(crate) fn note_heard(&mut self, now: Instant, id: PeerId, endpoint: SocketAddr) {
        if let Some((_, peer)) = self.by_id_mut(id) {
            peer.heard.push_front((now, endpoint));
            peer.heard.truncate(HEARD_MAX);
        }
    }

    pub(crate) fn key(&self, id: PeerId) -> Option<PublicKey> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    /// Finds a peer by the name of the node behind it; names of several organisations may agree,
    /// then it is the first.
    pub(crate) fn named(&self, name: &str) -> Option<PublicKey> {
        let named = |peer: &Peer| {
            peer.wanted
                .name
                .as_ref()
                .is_some_and(|own| own.as_str() == name)
        };
        let found = self.peers.iter().find(|(_, peer)| named(peer));
        found.map(|(key, _)| *key)
    }

    pub(crate) fn by_id_mut(&mut self, id: PeerId) -> Option<(PublicKey, &mut Peer)> {
        let key = *self.by_id.get(&id)?;
        let peer = self.peers.get_mut(&key)?;
        Some((key, peer))
    }

    pub(crate) fn refused(&self) -> &BTreeMap<PublicKey, AddPeerError> {
        &self.refused
    }
}

/// Returns the peers of a map: for a client its gateways, for a gateway the nodes of all
/// organisations.
pub(crate) fn plan_of_map(map: &NetworkMap, carriers: &Carriers) -> Plan {
    match map.own.role {
        Role::Gateway => plan_of_gateway(map.own.id, map.orgs.values(), carriers),
        Role::Client => {
            let mut plan = Plan::new();
            for org in map.orgs.values() {
                plan_gateway(&mut plan, org);
            }
            plan
        }
    }
}

/// Returns the peers of a gateway in some organisations.
pub(crate) fn plan_of_gateway<'a>(
    own: NodeId,
    orgs: impl Iterator<Item = &'a Org>,
    carriers: &Carriers,
) -> Plan {
    let mut plan = Plan::new();
    for org in orgs {
        for (id, node) in org.nodes.iter().filter(|(id, _)| **id != own) {
            plan_node(&mut plan, org, (*id, node), carriers);
        }
    }
    plan
}

fn plan_gateway(plan: &mut Plan, org: &Org) {
    let Some(gateway) = &org.gateway else {
        return;
    };
    let wanted = plan.entry(gateway.public_key).or_default();
    wanted.name = Some(gateway.name.clone());
    wanted.endpoint = gateway.endpoint.parse().ok();
    wanted.keepalive = Some(CLIENT_KEEPALIVE);
    let network = IpAddr::V6(org.prefix.network());
    let prefix = Prefix::new(network, model::address::ORG_PREFIX_BITS);
    wanted.allowed.extend(prefix);
}

/// Adds the peer of one node, unless its address lies outside its organisation or is the
/// resolver's, or its key stands for another node already: isolation rests on all three.
fn plan_node(plan: &mut Plan, org: &Org, (id, node): (NodeId, &Node), carriers: &Carriers) {
    if let Some((key, wanted)) = wanted_node(org, id, node, carriers) {
        plan.entry(key).or_insert(wanted);
    }
}

/// Returns how a gateway wants the peer of `node`; `None` when the node cannot be one. Of the
/// nodes of a site only the one that carries it speaks for its hosts.
pub(crate) fn wanted_node(
    org: &Org,
    id: NodeId,
    node: &Node,
    carriers: &Carriers,
) -> Option<(PublicKey, Wanted)> {
    let usable = org.prefix.contains(node.address) && node.address != org.prefix.resolver();
    usable.then(|| {
        let mut allowed = BTreeSet::from([Prefix::host(IpAddr::V6(node.address))]);
        let sites = site::prefixes(org, |site_id, site| {
            carriers.carrier(org.prefix, site_id, site) == id
        });
        allowed.extend(sites.filter_map(|(address, length)| Prefix::new(address, length)));
        let wanted = Wanted {
            name: Some(node.name.clone()),
            allowed,
            ..Wanted::default()
        };
        (node.public_key, wanted)
    })
}

/// Returns the peers of a configuration. A prefix of several peers belongs to the last (wg(8)).
pub(crate) fn plan_of_config(config: &Config) -> Plan {
    let mut owners = BTreeMap::new();
    let mut plan = Plan::new();
    for peer in &config.peers {
        for allowed in &peer.allowed_ips {
            if let Some(prefix) = Prefix::new(allowed.address, allowed.bits) {
                owners.insert(prefix, peer.public_key);
            }
        }
        let wanted = Wanted {
            endpoint: peer.endpoint.clone(),
            keepalive: peer.persistent_keepalive,
            preshared_key: peer.preshared_key.clone(),
            ..Wanted::default()
        };
        plan.insert(peer.public_key, wanted);
    }
    for (prefix, key) in owners {
        plan.entry(key).or_default().allowed.insert(prefix);
    }
    plan
}
