//! The TUN interface through which all programs of this machine reach the network.

mod fallback;
mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use model::{address::OrgPrefix, site::Ipv4Prefix};
use node::{Node, Reason};
use os::{
    link::{self, Watch},
    reactor::Watched,
    tun::{self, Offload, OffloadMax, OpenError, SuperPackets, Tun, VNET_HEADER},
};
use packet::{
    gso, spread,
    vnet::{self, Given},
};
use tokio::{sync::watch, time};
use wireguard::HEADER;

pub use self::{fallback::remove_left_routes, network::routes_are_free};
use crate::{Advised, advised::advise};

/// How the programs of this machine come into the tunnel: the one choice of the shell.
pub enum Attachment {
    /// By the commands of ginnel, over the node's own stack.
    Stack,
    /// By themselves.
    Interface(Box<Interface>),
}

/// Which interface somebody wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Without the right to make one it is an error; else the node goes on in user mode.
    pub required: bool,
    /// A site's prefix is routed even if a narrower route of this machine keeps a part of it.
    pub except_lan: bool,
    /// The most that may pass it as one.
    pub offload: OffloadMax,
}

/// An address of the node and the prefix of its organisation.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// The address.
    pub address: Ipv6Addr,
    /// All that is reached through the interface.
    pub prefix: OrgPrefix,
}

/// A configured interface; it goes with this value, or with the process however that ends. The
/// unreachable routes behind its own ones stay until [`Interface::release`].
pub struct Interface {
    name: String,
    /// At least one; the kernel chooses by the flow of a packet which of them has it.
    queues: Vec<Watched<Tun>>,
    super_packets: SuperPackets,
    memberships: Vec<Membership>,
    except_lan: bool,
    sites: Mutex<Sites>,
    /// Turns true when the interface was deleted.
    gone: watch::Sender<bool>,
}

/// How many packets the interface did not take, because its queue is full or it is down.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lost {
    queue_full: u64,
    interface_down: u64,
}

/// The IPv4 addresses of sites, as far as they are routed into the interface.
#[derive(Clone, Debug, Default)]
struct Sites {
    wanted: BTreeSet<Ipv4Prefix>,
    /// From where the machine itself speaks to them; `None` if they are for hosts behind it.
    source: Option<Ipv4Addr>,
    /// Where peers are.
    endpoints: Vec<Ipv4Addr>,
    routed: BTreeSet<Ipv4Prefix>,
    /// What was said already of those that are not.
    conflicts: BTreeMap<Ipv4Prefix, String>,
    /// Unreachable routes stand behind what is routed, and behind nothing else.
    is_settled: bool,
}

/// The name of the interface when nobody chooses another.
pub const NAME: &str = "ginnel0";

/// Queues of the interface, each with a task: who sends little waits for one batch of those who
/// send much and have another.
const QUEUES: usize = 8;

/// The MTU at the beginning: the largest that nodes look for. What a path carries less than that
/// senders are told (`node/path_mtu.rs`).
const MTU: usize = wireguard::MTU_DEFAULT;

/// The least that IPv6 works with (RFC 8200, 5).
const MTU_MIN: usize = 1280;

/// The system may take a moment to name what has changed.
const SETTLE: Duration = Duration::from_millis(50);

impl Attachment {
    /// Makes what is `wanted` for a node with these memberships.
    pub async fn make(
        wanted: Option<&Wanted>,
        memberships: Vec<Membership>,
    ) -> anyhow::Result<Self> {
        let Some(wanted) = wanted else {
            return Ok(Self::Stack);
        };
        let tun = match open(wanted) {
            Err(error @ (OpenError::Denied | OpenError::NoDevice)) if !wanted.required => {
                tracing::info!("user mode: {error}");
                return Ok(Self::Stack);
            }
            opened => opened.or_else(|error| explain(error, &wanted.name))?,
        };
        let made = tun.set_mtu(MTU);
        made.with_context(|| format!("TUN: set the MTU of `{}`", wanted.name))?;
        let interface = Interface {
            name: wanted.name.clone(),
            super_packets: SuperPackets::new(tun.offload()),
            queues: queues(tun)?,
            memberships,
            except_lan: wanted.except_lan,
            sites: Mutex::default(),
            gone: watch::Sender::new(false),
        };
        if let Err(error) = interface.configure().await {
            interface.release().await;
            return Err(error);
        }
        Ok(Self::Interface(Box::new(interface)))
    }

    /// Returns the interface, if there is one.
    pub(super) fn interface(&self) -> Option<&Interface> {
        match self {
            Self::Stack => None,
            Self::Interface(interface) => Some(interface),
        }
    }

    /// Returns how many queues the interface has.
    pub(super) fn queues(&self) -> usize {
        self.interface()
            .map_or(0, |interface| interface.queues.len())
    }
}

impl Interface {
    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells which packets may pass as one, and whether ginnel joins those that it writes.
    pub(super) fn offload(&self) -> (Offload, bool) {
        (
            self.super_packets.offload(),
            self.super_packets.are_joined(),
        )
    }

    /// Says what is in the way of the IPv4 addresses of sites that are not routed here.
    pub(super) fn conflicts(&self) -> Vec<String> {
        self.sites().conflicts.values().cloned().collect()
    }

    /// Reads a packet of a queue, if there is one, to behind the header of a datagram in `slot`,
    /// which has room for any. Returns its length and what the system says about it. Fails unless
    /// the interface is gone, which [`Interface::ended`] tells.
    pub(super) fn read(
        &self,
        queue: usize,
        slot: &mut [u8],
    ) -> io::Result<Option<(usize, Result<Given, gso::Malformed>)>> {
        let tun = &self.queues[queue];
        let front = if tun.get().offload().vnet_header {
            VNET_HEADER
        } else {
            0
        };
        match tun.try_read(|tun| tun.read(&mut slot[HEADER - front..])) {
            Ok(length) => {
                let given = match slot[..HEADER].last_chunk() {
                    Some(header) if front > 0 => vnet::parse(header),
                    _ => Ok(Given::Whole),
                };
                Ok(Some((length.saturating_sub(front), given)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if tun::is_gone(&error) => {
                self.notice(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Counts a packet of a queue that said to be a super-packet and is none.
    pub(super) fn note_malformed(&self, queue: usize) {
        if self.super_packets.note_malformed(self.queues[queue].get()) {
            let name = &self.name;
            tracing::warn!("{name}: TUN gives super-packets that are none, now asked for no more");
        }
    }

    /// Gives packets to the programs of this machine, in their order, and tells what it did not
    /// take.
    pub(super) fn write<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) -> Lost {
        let mut lost = Lost::default();
        let queue_of = |packet: &[u8]| self.queues[spread::place(packet, self.queues.len())].get();
        let given_up = self
            .super_packets
            .write(packets, queue_of, |error, packets| {
                self.notice(error);
                let packets = u64::try_from(packets).unwrap_or(u64::MAX);
                if error.kind() == io::ErrorKind::WouldBlock {
                    lost.queue_full += packets;
                } else {
                    lost.interface_down += packets;
                }
            });
        if let Some(error) = given_up {
            let name = &self.name;
            tracing::warn!("{name}: TUN refuses joined packets ({error}), now written singly");
        }
        lost
    }

    /// Lives as long as the interface works, and says why it does not any more.
    pub(super) async fn ended(&self) -> anyhow::Error {
        let watched = async {
            let watch = Watched::new(Watch::open()?)?;
            let mut usable = true;
            let mut mtu = MTU;
            loop {
                watch
                    .read(|watch| {
                        let changed = watch.drain();
                        changed
                            .then_some(())
                            .ok_or(io::ErrorKind::WouldBlock.into())
                    })
                    .await?;
                time::sleep(SETTLE).await;
                self.look(&mut usable, &mut mtu).await?;
            }
        };
        let mut gone = self.gone.subscribe();
        let deleted = gone.wait_for(|gone| *gone);
        let watched: anyhow::Result<()> = tokio::select! {
            ended = watched => ended,
            _ = deleted => Ok(()),
        };
        match watched {
            Err(error) if !*self.gone.borrow() => error,
            Ok(()) | Err(_) => advise(
                format!("TUN: interface `{}` was deleted", self.name),
                "start it again with `ginnel up`",
            ),
        }
    }

    /// Sees what has become of the interface. Taken down, or with a smaller MTU than IPv6 allows,
    /// it loses its addresses and routes; it gets them back when it can have them.
    async fn look(&self, usable: &mut bool, mtu: &mut usize) -> anyhow::Result<()> {
        if self.queues[0].get().name().is_err() {
            self.gone.send_replace(true);
            return Ok(());
        }
        let now = self.queues[0].get().mtu()?;
        if std::mem::replace(mtu, now) != now {
            tracing::info!(mtu = now, "{}: the MTU was changed", self.name);
        }
        let is_usable = now >= MTU_MIN && link::is_up(&self.name)?;
        let was_usable = std::mem::replace(usable, is_usable);
        // One that was down for a moment may be up again before anybody looks.
        if is_usable && !(was_usable && self.has_addresses()) {
            self.configure().await?;
        } else if was_usable && !is_usable {
            tracing::warn!(
                "{}: it is down, or its MTU is below {MTU_MIN}: no packet passes",
                self.name
            );
        }
        Ok(())
    }

    fn has_addresses(&self) -> bool {
        let mut addresses = self.memberships.iter().map(|own| own.address);
        addresses.all(|address| UdpSocket::bind((address, 0)).is_ok())
    }

    /// Routes the IPv4 addresses that are `wanted` into the interface, and no others any more, for
    /// hosts behind the machine, or for its own programs if there is a `source` to speak from; none
    /// by which a peer is reached, and none that something else on this machine has a route for,
    /// unless that one is narrower and excepted. Returns which are routed.
    pub(super) async fn route(
        &self,
        wanted: BTreeSet<Ipv4Prefix>,
        source: Option<Ipv4Addr>,
        endpoints: Vec<Ipv4Addr>,
    ) -> anyhow::Result<BTreeSet<Ipv4Prefix>> {
        let former = self.sites().clone();
        if wanted.is_empty() && former.wanted.is_empty() && former.is_settled {
            return Ok(wanted);
        }
        let forwarded = !former.wanted.is_empty() && former.source.is_none();
        if !wanted.is_empty() && source.is_none() && !forwarded {
            network::forward(&self.name);
        }
        let ways = network::Ways {
            name: &self.name,
            except_lan: self.except_lan,
            endpoints: &endpoints,
            source,
        };
        let routes = network::route(&ways, &former.routed, &wanted).await?;
        let stands = former.is_settled && former.routed == routes.routed;
        let is_settled = stands || self.settle(&routes.routed).await;
        for (prefix, conflict) in &routes.conflicts {
            if former.conflicts.get(prefix) != Some(conflict) {
                tracing::warn!("site: {conflict}; its devices are not reached by IPv4");
            }
        }
        let mut sites = self.sites();
        *sites = Sites {
            wanted,
            source,
            endpoints,
            routed: routes.routed,
            conflicts: routes.conflicts,
            is_settled,
        };
        Ok(sites.routed.clone())
    }

    /// Removes what stands behind routes that are no more, or that a killed process had; true if
    /// that is done.
    async fn settle(&self, sites: &BTreeSet<Ipv4Prefix>) -> bool {
        let orgs = self.memberships.iter();
        let orgs = orgs.map(|membership| network::org(membership.prefix));
        let sites = sites.iter().map(|prefix| network::site(*prefix));
        fallback::remove_but(&self.name, &orgs.chain(sites).collect()).await
    }

    /// Takes the routes away that would outlive the process.
    pub(super) async fn release(&self) {
        fallback::remove_but(&self.name, &BTreeSet::new()).await;
    }

    fn sites(&self) -> MutexGuard<'_, Sites> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn configure(&self) -> anyhow::Result<()> {
        network::configure(&self.name, &self.memberships).await?;
        // What was routed went when the interface was taken down.
        let former = {
            let mut sites = self.sites();
            sites.routed.clear();
            sites.is_settled = false;
            sites.clone()
        };
        // At first the node has not said what it wants, and what a killed process has left stays.
        if !former.wanted.is_empty() {
            self.route(former.wanted, former.source, former.endpoints)
                .await?;
        }
        Ok(())
    }

    /// Waits until programs of this machine have sent something by a queue.
    pub(super) async fn readable(&self, queue: usize) {
        let ready = self.queues[queue].readable().await;
        if ready.is_err() || *self.gone.borrow() {
            // Whoever awaits `ended` hears of it.
            std::future::pending::<()>().await;
        }
    }

    fn notice(&self, error: &io::Error) {
        if tun::is_gone(error) {
            self.gone.send_replace(true);
        } else if error.kind() != io::ErrorKind::WouldBlock {
            tracing::trace!(%error, "{}", self.name);
        }
    }
}

impl Lost {
    /// Tells whether there is something to count.
    pub(super) fn any(&self) -> bool {
        self.queue_full > 0 || self.interface_down > 0
    }

    /// Counts the packets.
    pub(super) fn count(&self, node: &mut Node) {
        node.discard(Reason::QueueFull, self.queue_full);
        node.discard(Reason::InterfaceDown, self.interface_down);
    }
}

/// Makes the interface with several queues. One that exists is taken if it was made for one, and
/// nobody holds it.
fn open(wanted: &Wanted) -> Result<Tun, OpenError> {
    let new = tun::Options {
        name: &wanted.name,
        offload: wanted.offload,
        multi_queue: true,
        exclusive: true,
    };
    match Tun::open(&new) {
        Err(OpenError::InUse) => Tun::open(&tun::Options {
            multi_queue: false,
            exclusive: false,
            ..new
        }),
        opened => opened,
    }
}

/// Opens all queues of the interface, of which `first` is one.
fn queues(first: Tun) -> anyhow::Result<Vec<Watched<Tun>>> {
    let mut queues = vec![first];
    if queues[0].is_multi_queue() {
        for number in 1..QUEUES {
            let another = queues[0].another_queue();
            let another = another.with_context(|| format!("TUN: open queue {}", number + 1));
            queues.push(another?);
        }
    }
    let queues = queues.into_iter().map(Watched::new);
    let queues: io::Result<_> = queues.collect();
    queues.context("TUN: register the interface")
}

fn explain(error: OpenError, name: &str) -> anyhow::Result<Tun> {
    let remedy = match &error {
        OpenError::Denied => {
            "run it as root or give the program the right: setcap cap_net_admin+ep on it; or \
             `ginnel up --user`, which needs no interface"
        }
        OpenError::NoDevice => {
            "load the driver: modprobe tun; or `ginnel up --user`, which needs no interface"
        }
        OpenError::InUse => "choose another name: --interface NAME; or `ginnel up --user`",
        OpenError::BadName => "choose another name: --interface NAME",
        OpenError::Io(_) => "see the kernel's log: dmesg; or `ginnel up --user`",
    };
    Err(error)
        .with_context(|| format!("TUN: make interface `{name}`"))
        .map_err(|error| Advised::new(error, remedy).into())
}
