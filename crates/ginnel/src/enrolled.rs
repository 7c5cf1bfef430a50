//! The life of an enrolled node: it follows its map, finds its peers, serves what it publishes.
//!
//! ```text
//!   Source ──map──► Node ──event──► here: resolve an endpoint, ask for an unknown initiator,
//!     ▲                             connect to a published target or to a host of a site, keep
//!     │                             endpoints on disk
//!     └── server, or this process
//! ```
//! Everything works by the last map; the source only brings a newer one.

mod capture;
mod carrier;
mod contact;
mod kept;
mod key;
mod lan;
mod led;
mod publish;
mod record;
mod refusal;
mod report;
mod return_path;
mod site;
mod source;
mod ssh;

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use model::{
    key::SecretKey,
    map::{Difference, NetworkMap, Role, Told},
};
use node::{Event, Node};
use tokio::{
    sync::{Notify, mpsc},
    time,
};

pub(crate) use self::{
    capture::Asked, contact::Contact, key::NodeKey, led::Led, return_path::Sites, source::Source,
};
use self::{kept::Kept, publish::Publisher, site::Way};
use crate::{api::Client, authority::Pinned, enrolment::State, offload, remedy::advise};
use tunnel::{self, Endpoints, Membership, Resolver, Tunnel, Wanted};

/// MTU inside the network: what an ordinary path carries; of another one senders are told.
const MTU: usize = wireguard::MTU_DEFAULT;

/// An enrolled node with its tunnel.
pub(crate) struct Enrolled {
    tunnel: Tunnel,
    events: mpsc::Receiver<Event>,
    kept: Kept,
    state: State,
    source: Source,
    contact: Contact,
    role: Role,
    endpoints: Endpoints,
    publisher: Publisher,
    way: Way,
    sites: Sites,
    /// Tells that something has changed about sites with several nodes.
    carried: Arc<Notify>,
    authority: Pinned,
    asked: Asked,
}

impl Enrolled {
    /// Starts the node from what its state directory holds, in user mode unless an interface is
    /// wanted.
    pub(crate) async fn open(
        state: State,
        key: &SecretKey,
        source: Source,
        listen: SocketAddr,
        interface: Option<&Wanted>,
    ) -> Result<Self> {
        let kept = if source.is_here() { None } else { state.map()? };
        let map = match kept {
            // It may have been approved meanwhile.
            Some(map) if !map.own.state.is_active() => source.first().await.unwrap_or(map),
            Some(map) if !map.orgs.is_empty() => map,
            Some(_) | None => source.first().await?,
        };
        let authority = Pinned::open(state.clone())?;
        if authority.learn(&map) {
            authority.keep();
        }
        let attachment = tunnel::Attachment::make(interface, memberships(&map)).await?;
        let now = os::clock::Clock::start().now();
        let random = Box::new(tunnel::OsRandom);
        let inside = inside(&attachment);
        let mut node = Node::new(now, os::clock::wall(), random, key, inside);
        let role = map.own.role;
        node.apply(now, &map);
        if let Some(floor) = kept::timestamp(&state)? {
            node.raise_timestamp_floor(floor);
        }
        let resolver = resolver(&map);
        let known = kept::endpoints(&state)?;
        let offload = offload::max()?;
        let (tunnel, events) = Tunnel::start(node, attachment, resolver, listen, None, offload)?;
        tunnel.restore(&known);
        let mut publisher = Publisher::new();
        publisher.listen(&tunnel);
        Ok(Self {
            tunnel,
            events,
            kept: Kept::new(state.clone(), role == Role::Gateway),
            state,
            source,
            contact: Contact::new(),
            role,
            endpoints: Endpoints::default(),
            publisher,
            way: Way::new(),
            sites: Sites::default(),
            carried: Arc::default(),
            authority,
            asked: Asked::default(),
        })
    }

    /// Returns the tunnel, for sockets of this process.
    pub(crate) fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Returns how it stands with the server.
    pub(crate) fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Returns the captures that others ask this node for.
    pub(crate) fn asked(&self) -> Asked {
        self.asked.clone()
    }

    /// Lets others ask for captures that give this node's key away: it is replaced afterwards.
    pub(crate) fn replace_key_after_captures(&self, key: NodeKey) {
        self.asked.set_key(key);
    }

    /// Returns the connections that are led from published ports to programs.
    pub(crate) fn led(&self) -> Led {
        self.publisher.led()
    }

    /// Returns how it stands with the sites behind the node.
    pub(crate) fn sites(&self) -> Sites {
        self.sites.clone()
    }

    /// Lives as [`Self::run`] does and serves SSH at the node's address meanwhile.
    pub(crate) async fn run_with_ssh(self, client: Arc<Client>) -> Result<()> {
        let serving = ssh::serve(self.tunnel.clone(), self.authority.clone(), client);
        tokio::select! {
            ended = self.run() => ended,
            never = serving => match never {},
        }
    }

    /// Lives until the node is removed from the network or the process ends.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut updates = self.source.updates(self.serial(), self.contact.clone());
        let mut returned = self.contact.returned();
        let mut keep = time::interval(kept::PAUSE);
        let mut dirty = false;
        let tunnel = self.tunnel.clone();
        let interface_ended = tunnel.interface_ended();
        tokio::pin!(interface_ended);
        let sites = self.sites.clone();
        let watching = sites.watch(&tunnel);
        tokio::pin!(watching);
        let (source, is_gateway) = (self.source.clone(), self.role == Role::Gateway);
        let reporting = report::report(&tunnel, &source);
        tokio::pin!(reporting);
        let carried = Arc::clone(&self.carried);
        let carrying = watch_carriers(self.role, &tunnel, &source, &carried);
        tokio::pin!(carrying);
        loop {
            tokio::select! {
                error = &mut interface_ended => return Err(error),
                never = &mut watching => match never {},
                never = &mut reporting, if is_gateway => match never {},
                never = &mut carrying => match never {},
                event = self.events.recv() => match event {
                    Some(event) => {
                        let moved = self.handle(event);
                        dirty |= moved;
                        if moved && self.role == Role::Client {
                            route_sites(&self.tunnel).await;
                        }
                    }
                    None => return Ok(()),
                },
                told = updates.recv() => match told {
                    Some(Told::Map(map)) => self.apply(&map).await?,
                    Some(Told::Difference(difference)) => {
                        if !self.apply_difference(&difference).await? {
                            // No map has this serial: the next one comes whole.
                            updates = self.source.updates(0, self.contact.clone());
                        }
                    }
                    Some(Told::Same) => {}
                    Some(Told::Removed) => return Err(self.leave()),
                    None => return Ok(()),
                },
                Ok(()) = returned.changed(), if !is_gateway => {
                    if let Some(since) = *returned.borrow_and_update() {
                        self.tunnel.with(|node, now| node.initiate_again(now, since));
                    }
                }
                () = self.tunnel.doubted() => {
                    self.endpoints.refresh(&self.tunnel);
                    if self.role == Role::Client {
                        // A peer may be found in a prefix that is routed, or was by a killed node.
                        route_sites(&self.tunnel).await;
                    }
                }
                _ = keep.tick(), if dirty => {
                    let pause = self.kept.keep(&self.tunnel);
                    dirty = pause.is_none();
                    keep.reset_after(pause.unwrap_or(kept::PAUSE));
                }
            }
        }
    }

    /// Takes an event; true when something changed that is kept on disk.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::ResolveEndpoint {
                public_key,
                endpoint,
            } => {
                self.endpoints.learn(&self.tunnel, public_key, endpoint);
                false
            }
            Event::UnknownInitiator {
                public_key, ticket, ..
            } => {
                let ask = self.source.clone().node_by_key(public_key);
                let tunnel = self.tunnel.clone();
                tokio::spawn(async move {
                    let known = ask.await;
                    tunnel.with(|node, now| match known {
                        Some(found) => {
                            node.insert_node(now, found.org, found.id, &found.node);
                            node.answer_unknown(now, ticket);
                        }
                        None => node.forget_unknown(ticket),
                    });
                });
                false
            }
            Event::Stack(event) => {
                self.handle_stack(event);
                false
            }
            Event::HandshakeCompleted { .. } | Event::EndpointMoved { .. } => true,
            Event::SiteChanged { org, site, former } => {
                carrier::log(&self.tunnel, org, site, former.is_some());
                self.carried.notify_one();
                false
            }
            // Whoever asked the host has heard it.
            Event::HostReturned { .. } | Event::HandshakeAbandoned { .. } => false,
        }
    }

    fn handle_stack(&self, event: netstack::Event) {
        use netstack::Event;
        let tunnel = &self.tunnel;
        match event {
            Event::Accepted(listener) => {
                if tunnel.with(|node, _| node.listens_for_site(listener)) {
                    self.way.connect(tunnel, listener);
                } else {
                    self.publisher.accept(tunnel, listener);
                }
            }
            Event::FlowOpened(prefix) => self.way.carry(tunnel, prefix),
            Event::EchoRequested(prefix) => self.way.ask(tunnel, prefix),
            // Whoever has the socket waits for these.
            Event::Connected(_)
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Closed(..)
            | Event::UdpReadable(_)
            | Event::UdpFailed(..)
            | Event::FlowExpired(_)
            | Event::EchoReply { .. }
            | Event::EchoFailed { .. } => {}
        }
    }

    /// Returns the serial of its map; no map has zero.
    fn serial(&self) -> u64 {
        let serial = |node: &Node| node.map().map_or(0, |map| map.serial);
        self.tunnel.with(|node, _| serial(node))
    }

    /// Works by `map` at once and keeps it for the next start.
    async fn apply(&mut self, map: &NetworkMap) -> Result<()> {
        let is_new = self.authority.learn(map);
        self.tunnel.with(|node, now| node.apply(now, map));
        self.follow(is_new).await
    }

    /// Works by the map after `difference` at once and keeps it for the next start; false when the
    /// difference is to another map.
    async fn apply_difference(&mut self, difference: &Difference) -> Result<bool> {
        let authority = &self.authority;
        let is_new = self.tunnel.with(|node, now| {
            let fits = node.apply_difference(now, difference);
            let map = node.map().filter(|_| fits);
            map.map(|map| authority.learn(map))
        });
        match is_new {
            Some(is_new) => self.follow(is_new).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Lets everything else follow the map that the node works by, and keeps it, and whom it tells
    /// to trust if that is new.
    async fn follow(&mut self, is_new: bool) -> Result<()> {
        let here = self.source.is_here();
        let followed = self.tunnel.with(|node, _| {
            let map = node.map()?;
            // What is in the database of this process needs no copy, which would cost each change
            // as much as there are nodes.
            let own = map.own.clone();
            Some((map.serial, own, resolver(map), (!here).then(|| map.clone())))
        });
        let Some((serial, own, resolver, map)) = followed else {
            return Ok(());
        };
        self.tunnel.set_resolver(resolver);
        route_sites(&self.tunnel).await;
        self.sites.changed();
        self.carried.notify_one();
        self.publisher.listen(&self.tunnel);
        let node = (&self.tunnel, &self.source, own.id);
        self.asked.begin(own.capture.as_ref(), node);
        tracing::info!(serial, state = own.state.as_str(), "map applied");
        let Some(map) = map else {
            return Ok(());
        };
        let state = self.state.clone();
        let authority = is_new.then(|| self.authority.clone());
        // The disk is waited for elsewhere: the map already holds.
        let kept = tokio::task::spawn_blocking(move || {
            state.keep_map(&map)?;
            if let Some(authority) = authority {
                authority.keep();
            }
            anyhow::Ok(())
        });
        let kept = kept.await;
        if let Err(error) = kept.context("keep the map")? {
            tracing::warn!("{error:#}: a restart without the server begins with an older map");
        }
        Ok(())
    }

    /// Cuts every tunnel, forgets the map, and says why the node ends.
    fn leave(&mut self) -> anyhow::Error {
        let empty = self.tunnel.with(|node, now| {
            let mut map = node.map()?.clone();
            map.orgs.clear();
            node.apply(now, &map);
            Some(map)
        });
        if let Some(map) = empty.filter(|_| !self.source.is_here())
            && let Err(error) = self.state.keep_map(&map)
        {
            tracing::warn!("{error:#}");
        }
        removed(self.role)
    }
}

/// Does what a gateway, or a node of sites with several nodes, has to do beside the data plane.
async fn watch_carriers(
    role: Role,
    tunnel: &Tunnel,
    source: &Source,
    changed: &Notify,
) -> Infallible {
    match role {
        Role::Gateway => carrier::report(tunnel, source, changed).await,
        Role::Client => lan::watch(tunnel, changed).await,
    }
}

/// Says that the server does not know this node any more.
pub(crate) fn removed(role: Role) -> anyhow::Error {
    match role {
        Role::Client => advise(
            "sign-in: this node was removed from its organisation",
            "run `ginnel logout --force`, then enrol again with `ginnel join` or `ginnel login`",
        ),
        Role::Gateway => advise(
            "sign-in: this gateway was removed",
            "enrol it again with a new gateway token and another --state DIR",
        ),
    }
}

/// Lets the machine route the IPv4 addresses of other sites, if it can.
async fn route_sites(tunnel: &Tunnel) {
    if let Err(error) = tunnel.route_sites().await {
        tracing::warn!("{error:#}: hosts of other sites are not reached by IPv4");
    }
}

/// Lists the addresses of the map's own node.
fn memberships(map: &NetworkMap) -> Vec<Membership> {
    let own = |org: &model::map::Org| {
        let node = org.nodes.get(&map.own.id)?;
        let (address, prefix) = (node.address, org.prefix);
        Some(Membership { address, prefix })
    };
    map.orgs.values().filter_map(own).collect()
}

/// Says how the node itself is attached.
fn inside(attachment: &tunnel::Attachment) -> node::Attachment {
    match attachment {
        tunnel::Attachment::Interface(_) => node::Attachment::Tun,
        tunnel::Attachment::Stack => {
            let mut seed = [0; 32];
            os::random::fill(&mut seed);
            node::Attachment::Netstack { mtu: MTU, seed }
        }
    }
}

/// Asks the network's own resolver, and tries short names in the organisation's zone.
fn resolver(map: &NetworkMap) -> Resolver {
    const DNS: u16 = 53;
    let servers = map.orgs.values();
    Resolver {
        servers: servers
            .map(|org| SocketAddr::new(org.prefix.resolver().into(), DNS))
            .collect(),
        search: vec![model::name::ZONE.to_owned()],
    }
}
