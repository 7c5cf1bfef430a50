//! A machine with one node on it.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use model::{
    id::{NodeId, OrgId},
    key::{PublicKey, SecretKey},
    map::NetworkMap,
};
use netstack::UdpId;
use node::{Attachment, Node};

use crate::{beginning, seed::Seed};

/// Names a host of a world.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HostId(pub(crate) usize);

/// The UDP port to which the packets of the ledger go.
pub(crate) const PORT: u16 = 9;

pub(crate) struct Host {
    /// `None` for the gateway, which belongs to nobody.
    pub(crate) membership: Option<Membership>,
    /// Whether its node has a stack inside; otherwise it has a TUN interface.
    pub(crate) user: bool,
    pub(crate) secret: SecretKey,
    pub(crate) public_key: PublicKey,
    /// Its address on the wire, behind its NAT if it has one.
    pub(crate) local: SocketAddr,
    pub(crate) nat: Option<usize>,
    /// `None` while it is not running.
    pub(crate) node: Option<Node>,
    pub(crate) socket: Option<UdpId>,
    pub(crate) disk: Disk,
    /// Whether its link is plugged in.
    pub(crate) connected: bool,
    /// Whether changes of the map reach it.
    pub(crate) controlled: bool,
    pub(crate) asleep: Option<Sleep>,
    /// How long its monotonic clock stood still altogether.
    pub(crate) stalled: Duration,
    /// By how many seconds its wall clock is wrong.
    pub(crate) clock_error: i64,
    /// When the gateway learnt that it was removed; before that, when control did.
    pub(crate) removed: Option<Removal>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Membership {
    pub(crate) org: OrgId,
    pub(crate) id: NodeId,
    pub(crate) address: Ipv6Addr,
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) map: Option<NetworkMap>,
    endpoints: Vec<(PublicKey, SocketAddr)>,
    floor: wireguard::Tai64n,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep {
    since: Instant,
    /// Whether the monotonic clock stands still meanwhile, as it does on Linux.
    clock_stops: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Removal {
    /// When the gateway applied it; `None` while it cannot hear of it.
    pub(crate) applied: Option<Instant>,
}

impl Host {
    pub(crate) fn new(seed: &mut Seed, user: bool, local: SocketAddr) -> Self {
        let secret = seed.bytes();
        let public_key = wireguard::StaticSecret::new(secret).public_key();
        Self {
            membership: None,
            user,
            secret: SecretKey::new(secret),
            public_key: PublicKey(public_key.0),
            local,
            nat: None,
            node: None,
            socket: None,
            disk: Disk::default(),
            connected: true,
            controlled: true,
            asleep: None,
            stalled: Duration::ZERO,
            clock_error: 0,
            removed: None,
        }
    }

    /// Returns what the host's monotonic clock shows at `now`.
    pub(crate) fn clock(&self, now: Instant) -> Instant {
        now - self.stalled
    }

    /// Returns what its wall clock shows at `now`.
    pub(crate) fn wall(&self, now: Instant) -> SystemTime {
        let right =
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + (now - beginning());
        let error = Duration::from_secs(self.clock_error.unsigned_abs());
        if self.clock_error < 0 {
            right - error
        } else {
            right + error
        }
    }

    /// Starts the node with what is on disk.
    pub(crate) fn start(&mut self, now: Instant, seed: &mut Seed) {
        let attachment = if self.user {
            Attachment::Netstack {
                mtu: 1_380,
                seed: seed.bytes(),
            }
        } else {
            Attachment::Tun
        };
        let clock = self.clock(now);
        let random = Box::new(seed.split());
        let mut node = Node::new(clock, self.wall(now), random, &self.secret, attachment);
        node.raise_timestamp_floor(self.disk.floor);
        if let Some(map) = &self.disk.map {
            node.apply(clock, map);
        }
        node.restore_endpoints(&self.disk.endpoints);
        // Beside an interface the stack is for hosts of sites alone.
        let stack = if self.user { node.stack() } else { None };
        self.socket = stack.and_then(|stack| {
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
            stack.bind(any).ok()
        });
        self.node = Some(node);
    }

    /// Keeps on disk what a node keeps.
    pub(crate) fn save(&mut self) {
        if let Some(node) = &self.node {
            self.disk.endpoints = node.endpoints();
            self.disk.floor = node.timestamp_floor();
        }
    }

    pub(crate) fn is_awake(&self) -> bool {
        self.node.is_some() && self.asleep.is_none()
    }

    /// Returns when it wants attention next, by the world's clock.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let node = self.node.as_ref().filter(|_| self.is_awake())?;
        node.poll_timeout().map(|deadline| deadline + self.stalled)
    }

    pub(crate) fn sleep(&mut self, now: Instant, clock_stops: bool) {
        self.asleep.get_or_insert(Sleep {
            since: now,
            clock_stops,
        });
    }

    pub(crate) fn wake(&mut self, now: Instant) {
        let Some(sleep) = self.asleep.take() else {
            return;
        };
        if sleep.clock_stops {
            self.stalled += now - sleep.since;
        }
        let (clock, wall) = (self.clock(now), self.wall(now));
        if let Some(node) = &mut self.node {
            node.set_wall_clock(clock, wall);
        }
    }
}
