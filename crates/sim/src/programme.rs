//! Random programmes: transitions drawn from a seed, played on a world.

use std::time::Duration;

use crate::{
    host::HostId,
    internet::Conditions,
    seed::Seed,
    world::{Kind, World},
};

/// One thing that happens to a world.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transition {
    /// Packets between members of one organisation.
    Send,
    /// Packets between members of different organisations.
    SendAcross,
    /// Packets with somebody else's source address.
    Forge,
    /// Datagrams of before, sent again by an attacker.
    Replay,
    /// Time passes: moments, minutes, or longer than any session lives.
    Wait,
    /// The internet gets better or worse.
    Weather,
    /// A client moves to another network.
    Roam,
    /// A NAT restarts.
    Rebind,
    /// A node or the gateway is killed; it stays down or starts again at once.
    Kill,
    /// A node or the gateway starts again.
    Start,
    /// A wall clock is wrong from now on, or right again.
    Clock,
    /// A client falls asleep.
    Sleep,
    /// A client wakes.
    Wake,
    /// A node joins.
    Join,
    /// A node is removed.
    Remove,
    /// Control reaches a host no more, or again.
    Control,
    /// A link is plugged out, or in again.
    Connect,
    /// Both sides begin a handshake at once.
    Initiate,
    /// Everything is made good, and everyone must reach everyone of the own organisation.
    Settle,
}

impl Transition {
    /// How often each is drawn, in parts of the sum.
    const WEIGHTS: [(Self, usize); 19] = [
        (Self::Send, 12),
        (Self::SendAcross, 4),
        (Self::Forge, 3),
        (Self::Replay, 4),
        (Self::Wait, 12),
        (Self::Weather, 5),
        (Self::Roam, 4),
        (Self::Rebind, 4),
        (Self::Kill, 4),
        (Self::Start, 5),
        (Self::Clock, 3),
        (Self::Sleep, 3),
        (Self::Wake, 4),
        (Self::Join, 2),
        (Self::Remove, 2),
        (Self::Control, 3),
        (Self::Connect, 4),
        (Self::Initiate, 2),
        (Self::Settle, 1),
    ];

    fn draw(seed: &mut Seed) -> Self {
        let sum = Self::WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut left = seed.below(sum);
        for (transition, weight) in Self::WEIGHTS {
            if left < weight {
                return transition;
            }
            left -= weight;
        }
        Self::Settle
    }
}

/// A world under a random programme.
pub struct Programme {
    world: World,
    chance: Seed,
}

/// Nodes of one world, removed ones included; at the bound nobody joins any more.
const NODES_MAX: usize = 8;

impl Programme {
    /// Makes two organisations of two nodes each.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let mut chance = world.chance().split();
        for _ in 0..2 {
            let org = world.add_org();
            for _ in 0..2 {
                let kind = kind(&mut chance);
                world.join(org, kind);
            }
        }
        Self { world, chance }
    }

    /// Plays `transitions` of them, then demands that the world can be made good.
    pub fn play(&mut self, transitions: usize) {
        for _ in 0..transitions {
            let transition = Transition::draw(&mut self.chance);
            self.step(transition);
        }
        self.world.settle();
    }

    fn step(&mut self, transition: Transition) {
        let any = HostId(self.chance.below(self.world.clients().count() + 1));
        let client = self.client();
        let world = &mut self.world;
        match transition {
            Transition::Send => self.send(false),
            Transition::SendAcross => self.send(true),
            Transition::Forge => {
                let (pretended, to) = (self.client(), self.client());
                if client != pretended && client != to {
                    self.world.forge(client, pretended, to);
                }
            }
            Transition::Replay => world.replay(),
            Transition::Wait => {
                let bound = [1, 1, 10, 10, 60, 300][self.chance.below(6)];
                let duration = self.chance.duration(Duration::from_secs(bound));
                self.world.note(&format!("{duration:.1?} pass"));
                self.world.wait(duration);
            }
            Transition::Weather => world.set_conditions(weather(&mut self.chance)),
            Transition::Roam => world.roam(client),
            Transition::Rebind => world.rebind(client),
            Transition::Kill => {
                world.kill(any);
                if self.chance.happens(50) {
                    world.start(any);
                }
            }
            Transition::Start => world.start(any),
            Transition::Clock => {
                let years = 10 * 365 * 86_400;
                let errors = [0, 1, -1, 3_600, -3_600, years, -years];
                world.set_clock_error(any, errors[self.chance.below(errors.len())]);
            }
            Transition::Sleep => world.sleep(client, self.chance.happens(50)),
            Transition::Wake => world.wake(client),
            Transition::Join => {
                let org = world.org(client);
                if let Some(org) = org.filter(|_| world.clients().count() < NODES_MAX) {
                    world.join(org, kind(&mut self.chance));
                }
            }
            Transition::Remove => world.remove(client),
            Transition::Control => world.set_controlled(any, self.chance.happens(50)),
            Transition::Connect => world.set_connected(any, self.chance.happens(50)),
            Transition::Initiate => {
                world.initiate(world.gateway());
                world.initiate(client);
            }
            Transition::Settle => world.settle(),
        }
    }

    fn client(&mut self) -> HostId {
        HostId(1 + self.chance.below(self.world.clients().count()))
    }

    fn send(&mut self, across: bool) {
        for _ in 0..=self.chance.below(4) {
            let (from, to) = (self.client(), self.client());
            let same = self.world.org(from) == self.world.org(to);
            if from != to && same != across {
                self.world.send(from, to);
            }
        }
    }
}

fn kind(chance: &mut Seed) -> Kind {
    [Kind::Tun, Kind::TunBehindNat, Kind::UserBehindNat][chance.below(3)]
}

fn weather(chance: &mut Seed) -> Conditions {
    let millis = |bound: usize, chance: &mut Seed| {
        let millis = chance.below(bound);
        Duration::from_millis(u64::try_from(millis).expect("a small number"))
    };
    let percent = |bound: usize, chance: &mut Seed| {
        u8::try_from(chance.below(bound)).expect("below a hundred")
    };
    Conditions {
        latency: millis(200, chance),
        jitter: millis(300, chance),
        loss_percent: percent(40, chance),
        duplicate_percent: percent(30, chance),
    }
}
