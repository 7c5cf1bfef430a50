//! Sockets inside a WireGuard tunnel for async programs, with no root and no interface.
//!
//! A program of its own opens the [`Network`] of a plain configuration and has [`TcpStream`],
//! [`TcpListener`] and [`UdpSocket`] in it, with tokio's traits; `examples/` holds an HTTP client
//! and server. `ginnel` itself drives enrolled nodes through [`Tunnel`].
//!
//! ```text
//!   TcpStream, UdpSocket, ping  --lock-->  Core { Node, wakers }  --same turn-->  UDP (GSO)
//!   driver task: deadline --lock--> Core --> UDP, TUN, wakers
//!   lanes: UDP batch (GRO) --opened--lock--> Core --> stack; TUN; other peers --sealed--> UDP
//!   uplinks: TUN batch (GSO) --lock--> Core; --sealed--> UDP (GSO)
//!   handshakes: UDP of their own --mac1--lock--> Core; X25519 with the lock released
//! ```
//! Whoever changes the node sends what the change made, on its own thread and before it lets
//! the lock go, so nothing is queued between tasks.

mod advised;
mod capture;
mod connect;
mod core;
mod driver;
mod endpoint;
mod failure;
mod following;
mod handshakes;
mod interface;
mod lane;
mod listener;
mod network;
mod onward;
mod outbox;
mod record;
mod resolver;
mod site;
mod socket;
mod stream;
mod system;
mod udp;
mod uplink;

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZero, NonZeroU8},
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use model::{key::PublicKey, map::Role, status::Offload};
use netstack::{EchoFailure, ListenerId};
use node::{Node, On};
use os::{tun::OffloadMax, udp::Datagram};
use packet::icmp::Cause;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};
use wireguard::{Allowance, Gate};

pub use netstack::CongestionControl;

pub use self::{
    advised::Advised,
    capture::Capture,
    endpoint::Endpoints,
    failure::{Code, Failure},
    following::Following,
    interface::{
        Attachment, Interface, Membership, NAME as INTERFACE, Wanted, remove_left_routes,
        routes_are_free,
    },
    listener::TcpListener,
    network::{Network, OsRandom},
    record::{Record, RecordKind},
    resolver::{Resolver, ask_as_machine},
    site::{Flow, Held},
    stream::TcpStream,
    udp::UdpSocket,
};
use self::{
    core::{Core, Taken},
    lane::Lane,
    socket::Sockets,
    uplink::Uplink,
};

/// A tunnel. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct Tunnel {
    shared: Arc<Shared>,
    _driver: Arc<Driver>,
}

/// Where a peer was heard last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KnownEndpoint {
    /// Who.
    pub public_key: PublicKey,
    /// Where it is.
    pub endpoint: SocketAddr,
    /// At which of our addresses it called, if routing may choose another one: a NAT on its way
    /// lets nothing in from there.
    pub called: Option<IpAddr>,
}

struct Shared {
    core: Mutex<Core>,
    sockets: Sockets,
    attachment: Attachment,
    resolver: Mutex<Arc<Resolver>>,
    /// Tells the driver that its deadline or what it waits for has changed.
    kick: Notify,
    /// Tells those who wait for a session that one was made.
    session: Notify,
    /// Tells that key agreements wait to be computed.
    deferred: Notify,
    /// What handshakes may take while data flows.
    allowance: Mutex<Allowance>,
    /// Batches of data so far, if handshakes come apart from them.
    data: AtomicU64,
    /// A session waits for its successor.
    overdue: AtomicBool,
    /// Tells that some peer does not answer: its endpoint may have moved.
    doubt: Notify,
    /// A capture runs.
    is_captured: AtomicBool,
    /// Tells that a capture has something to take.
    captured: Notify,
}

/// The tasks that drive, which end with their owner.
struct Driver(Vec<JoinHandle<()>>);

/// Events that wait at most for whoever follows them.
const EVENTS_MAX: usize = 1_024;

/// The result of one echo request.
pub type Echo = Result<Duration, EchoFailure>;

/// What came back for one echo request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probed {
    /// Who answered.
    pub from: IpAddr,
    /// From the request to the answer.
    pub round_trip: Duration,
    /// Why the request went no further; `None` when this is the reply to it.
    pub cause: Option<Cause>,
}

/// Queues of data at a gateway, however many cores there are.
const QUEUES_MAX: u8 = 32;

/// The hop limit of what the node's own stack sends.
const HOP_LIMIT: u8 = 64;

impl Tunnel {
    /// Begins to drive `node`, made for that attachment, over fresh UDP sockets; needs a tokio
    /// runtime.
    ///
    /// The receiver yields what is not for sockets: endpoints to resolve, handshakes, accepted
    /// connections of published ports. No more passes as one than `offload` says, and what does not
    /// work here passes by itself. An event that finds [`EVENTS_MAX`] others is dropped.
    pub fn start(
        mut node: Node,
        attachment: Attachment,
        resolver: Resolver,
        listen: SocketAddr,
        mark: Option<u32>,
        offload: OffloadMax,
    ) -> anyhow::Result<(Self, mpsc::Receiver<node::Event>)> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        node.set_deferred_agreements(true);
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let forwards = forwards(&node);
        let queues = if forwards {
            let queues = u8::try_from(cores).unwrap_or(QUEUES_MAX).min(QUEUES_MAX);
            NonZeroU8::new(queues).unwrap_or(NonZeroU8::MIN)
        } else {
            NonZeroU8::MIN
        };
        let fixed = listen.ip().is_unspecified() && listen.port() != 0;
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(node, sender, fixed)),
            sockets: Sockets::bind(listen, mark, queues, offload > OffloadMax::Off)?,
            attachment,
            resolver: Mutex::new(Arc::new(resolver)),
            kick: Notify::new(),
            session: Notify::new(),
            deferred: Notify::new(),
            allowance: Mutex::new(Allowance::new(u32::try_from(cores).unwrap_or(1))),
            data: AtomicU64::new(0),
            overdue: AtomicBool::new(false),
            doubt: Notify::new(),
            is_captured: AtomicBool::new(false),
            captured: Notify::new(),
        });
        let mut tasks = vec![
            tokio::spawn(driver::drive(Arc::clone(&shared))),
            tokio::spawn(handshakes::listen(Arc::clone(&shared))),
            tokio::spawn(handshakes::agree(Arc::clone(&shared))),
        ];
        for queue in 0..shared.sockets.queues() {
            tasks.push(tokio::spawn(Lane::new(&shared, queue, forwards).run()));
        }
        for queue in 0..shared.attachment.queues() {
            tasks.push(tokio::spawn(Uplink::new(&shared, queue).run()));
        }
        let tunnel = Self {
            shared,
            _driver: Arc::new(Driver(tasks)),
        };
        Ok((tunnel, events))
    }

    /// Works on the node; what that makes it send is sent before this returns.
    pub fn with<T>(&self, work: impl FnOnce(&mut Node, Instant) -> T) -> T {
        let mut turn = self.turn();
        let now = turn.now;
        work(&mut turn.node, now)
    }

    /// Returns where every peer is that has an endpoint.
    pub fn endpoints(&self) -> Vec<KnownEndpoint> {
        self.turn().endpoints()
    }

    /// Takes over where peers were before a restart, and begins handshakes with them, so that
    /// traffic flows before they notice. Who is not in the map is called by nobody.
    pub fn restore(&self, known: &[KnownEndpoint]) {
        self.turn().restore(known);
    }

    /// Reads the tunnel's clock.
    pub fn now(&self) -> Instant {
        self.turn().now
    }

    /// Returns how names are resolved at present.
    pub fn resolver(&self) -> Arc<Resolver> {
        let resolver = self.shared.resolver.lock();
        Arc::clone(&resolver.unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces how names are resolved.
    pub fn set_resolver(&self, resolver: Resolver) {
        let mut current = self
            .shared
            .resolver
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(resolver);
    }

    /// Returns the next connection that waits at a published port.
    pub fn accept(&self, listener: ListenerId) -> Option<TcpStream> {
        let id = self.turn().stack().accept(listener)?;
        Some(TcpStream::from(stream::stack::TcpStream::new(self, id)))
    }

    /// Returns the UDP port that the tunnel is bound to.
    pub fn port(&self) -> u16 {
        self.shared.sockets.port()
    }

    /// Sends one echo request with `size` bytes and waits for its reply, at most
    /// `netstack::Limits::echo_timeout`.
    pub async fn ping(&self, remote: IpAddr, sequence: u16, size: u16) -> Result<Echo, Failure> {
        let probed = self.probe(remote, sequence, size, HOP_LIMIT).await?;
        Ok(match probed {
            None => Err(EchoFailure::TimedOut),
            Some(probed) => match probed.cause {
                Some(cause) => Err(EchoFailure::Icmp(cause)),
                None => Ok(probed.round_trip),
            },
        })
    }

    /// Does the same with a hop limit, so that a router on the way answers when it ends there;
    /// `None` when nobody has answered.
    pub async fn probe(
        &self,
        remote: IpAddr,
        sequence: u16,
        size: u16,
        hop_limit: u8,
    ) -> Result<Option<Probed>, Failure> {
        if self.interface().is_some() {
            return system::probe(self, remote, sequence, size, hop_limit).await;
        }
        let reply = {
            let mut turn = self.turn();
            let now = turn.now;
            let size = usize::from(size);
            let sent = turn
                .stack()
                .ping_within(now, remote, sequence, size, hop_limit);
            let id = sent.map_err(|error| {
                let remedy = "look at Address and MTU of the configuration and at --size";
                Failure::new(Code::Unreachable, format!("{remote}: {error}"), remedy)
            })?;
            let (sender, reply) = oneshot::channel();
            turn.echoes.insert(id, sender);
            reply
        };
        // The sender goes away only with the tunnel.
        Ok(reply.await.unwrap_or_default())
    }

    /// Returns the name of the interface; `None` in user mode.
    pub fn interface(&self) -> Option<&str> {
        self.shared.attachment.interface().map(|i| i.name())
    }

    /// Tells what passes as one, so that it costs less.
    pub fn offload(&self) -> Offload {
        let interface = self.shared.attachment.interface();
        let interface = interface.map(Interface::offload);
        Offload {
            tun: interface.map(|(offload, _)| offload.to_string()),
            joined: interface.map(|(_, joins)| joins),
            runs_sent: self.shared.sockets.sends_runs(),
            runs_received: self.shared.sockets.receives_runs(),
        }
    }

    /// Lets the machine route the IPv4 addresses of other sites as the node's map wants it, once
    /// it is known where peers are, so that no route takes their way. Call it again whenever the
    /// map or an endpoint has changed. Without an interface there is nothing to do.
    pub async fn route_sites(&self) -> anyhow::Result<()> {
        let Some(interface) = self.shared.attachment.interface() else {
            return Ok(());
        };
        let (wanted, source, endpoints) =
            self.with(|node, _| (node.site_routes(), node.site_source(), node.endpoints()));
        if endpoints.is_empty() {
            return Ok(());
        }
        let v4 = |(_, endpoint): (_, SocketAddr)| match endpoint.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let endpoints = endpoints.into_iter().filter_map(v4).collect();
        let routed = interface.route(wanted, source, endpoints).await?;
        self.with(|node, _| node.set_site_routes(routed));
        Ok(())
    }

    /// Leaves nothing of the interface behind on this machine once the process ends. One that does
    /// not get here leaves unreachable routes, so that nothing goes another way as it is.
    pub async fn release(&self) {
        if let Some(interface) = self.shared.attachment.interface() {
            interface.release().await;
        }
    }

    /// Lives as long as the interface works, and says why it does not any more.
    pub async fn interface_ended(&self) -> anyhow::Error {
        match self.shared.attachment.interface() {
            Some(interface) => interface.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until some peer does not answer although somebody wants it.
    pub async fn doubted(&self) {
        self.shared.doubt.notified().await;
    }

    fn turn(&self) -> Turn<'_> {
        self.shared.turn()
    }
}

impl Shared {
    fn turn(&self) -> Turn<'_> {
        // A panic elsewhere is a bug there; the state machine itself stays consistent.
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let now = core.clock.now();
        Turn {
            shared: self,
            core: Some(core),
            now,
        }
    }

    /// Writes packets to the interface; what it does not take is counted.
    fn write<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) {
        let Some(interface) = self.attachment.interface() else {
            return;
        };
        let lost = interface.write(packets);
        if lost.any() {
            lost.count(&mut self.turn().node);
        }
    }

    /// Returns what tells forged handshake messages without the lock, unless somebody wants to see
    /// them.
    fn gate(&self) -> Option<Gate> {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.node.gate()
    }
}

/// One turn: the locked core at one moment. When it ends, what the node has to send is sent.
struct Turn<'a> {
    shared: &'a Shared,
    /// There until the turn ends.
    core: Option<MutexGuard<'a, Core>>,
    now: Instant,
}

impl Deref for Turn<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.core.as_ref().expect("the turn has not ended")
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        self.core.as_mut().expect("the turn has not ended")
    }
}

impl Turn<'_> {
    /// See [`Core::handle_datagram`].
    fn take_datagram(&mut self, datagram: Datagram<'_>) -> Taken {
        let (now, shared) = (self.now, self.shared);
        self.handle_datagram(now, datagram, &shared.sockets)
    }

    /// See [`Core::handle_packet`].
    fn handle_packet(&mut self, slot: &mut [u8], length: usize) {
        let (now, shared) = (self.now, self.shared);
        Core::handle_packet(self, now, slot, length, &shared.sockets);
    }

    /// See [`Core::pass_on`].
    fn pass_on(&mut self, on: On, datagram: &mut [u8]) {
        let (now, shared) = (self.now, self.shared);
        Core::pass_on(self, now, on, datagram, &shared.sockets);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = self.now;
        let shared = self.shared;
        let after = self.finish(now, &shared.sockets, &shared.attachment);
        let overdue = self.node.is_overdue(now);
        shared.overdue.store(overdue, Ordering::Relaxed);
        let is_captured = self.node.is_captured();
        shared.is_captured.store(is_captured, Ordering::Relaxed);
        // Whoever is woken wants the lock.
        self.core = None;
        if after.kick {
            shared.kick.notify_one();
        }
        if after.deferred {
            shared.deferred.notify_one();
        }
        if after.session {
            shared.session.notify_waiters();
        }
        if after.captured {
            shared.captured.notify_one();
        }
        for waker in after.wakers {
            waker.wake();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Tells whether a node forwards between peers, which pays to be done on several cores: all that
/// another node receives comes by one session mostly.
fn forwards(node: &Node) -> bool {
    node.map().is_some_and(|map| map.own.role == Role::Gateway)
}

/// Says how a remote address is written with its port.
fn at(remote: SocketAddr) -> String {
    format!("{} port {}", remote.ip(), remote.port())
}
