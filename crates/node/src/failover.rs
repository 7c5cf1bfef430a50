//! Which of several nodes carries a site: the first that leads there, found out by probes.
//!
//! ```text
//!   Untried ──answer──► Healthy ◄──── held long enough ─── Returning
//!      └── silent, or "no way to the LAN" ──► out ──answer──►──┘
//! ```
//! A carrier that is out is replaced at once. One that works is left only for a node that is
//! preferred and has been well for long, and for the longer the more often it was out lately: so
//! nothing flaps.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use model::{
    id::NodeId,
    site::{Health, SITE_NODES_MAX},
};

/// How often a node is probed while it answers.
const INTERVAL: Duration = Duration::from_secs(1);

/// How soon it is probed again once it has left a probe without an answer for [`INTERVAL`].
const RETRY: Duration = Duration::from_millis(500);

/// So many probes in a row without an answer are no accident. With the pauses between them a node
/// is out 2 to 3 seconds after its last answer.
const MISSES_MAX: u16 = 3;

/// How long a node that was out has to be well before a carrier that works is left for it; each
/// further time in the last [`MEMORY`] doubles it, up to the greatest.
const HOLD: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(300);
const MEMORY: Duration = Duration::from_secs(3_600);

/// So many times are remembered: more make the hold no longer.
const OUTS_MAX: usize = 6;

/// The nodes of one site.
#[derive(Debug)]
pub(crate) struct Failover {
    /// The preferred one first; 1 to [`SITE_NODES_MAX`].
    members: Vec<Member>,
    carrier: NodeId,
}

/// What is known about one node.
#[derive(Debug)]
struct Member {
    node: NodeId,
    health: Health,
    /// Of the newest probe.
    sequence: u16,
    /// Probes since the last answer.
    unanswered: u16,
    /// When something is to be done about it: the next probe, or that the last one was in vain.
    due: Instant,
    /// Whether a probe is to be sent now.
    probes: bool,
    /// Since when it is [`Health::Returning`].
    since: Instant,
    /// When it went out, the oldest first; at most [`OUTS_MAX`].
    outs: VecDeque<Instant>,
}

/// A probe that is to be sent to a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Probe {
    pub(crate) node: NodeId,
    /// Says which probe an answer belongs to.
    pub(crate) sequence: u16,
}

impl Failover {
    /// Begins with the preferred node; `None` without any. Of too many the last are left out.
    pub(crate) fn new(now: Instant, nodes: impl Iterator<Item = NodeId>) -> Option<Self> {
        let mut members = Vec::<Member>::new();
        for node in nodes.take(SITE_NODES_MAX) {
            if members.iter().all(|member| member.node != node) {
                members.push(Member::new(now, node));
            }
        }
        let carrier = members.first()?.node;
        Some(Self { members, carrier })
    }

    /// Takes over other nodes or another order; what is known of those that stay is kept.
    pub(crate) fn apply(&mut self, now: Instant, nodes: impl Iterator<Item = NodeId>) {
        let Some(Self { members, carrier }) = Self::new(now, nodes) else {
            return;
        };
        let former = std::mem::replace(&mut self.members, members);
        for known in former {
            if let Some(member) = self.member_mut(known.node) {
                *member = known;
            }
        }
        if self
            .members
            .iter()
            .all(|member| member.node != self.carrier)
        {
            let mut members = self.members.iter();
            let best = members.find(|member| member.health == Health::Healthy);
            self.carrier = best.map_or(carrier, |best| best.node);
        }
        self.choose();
    }

    /// Returns the one node that carries the site.
    pub(crate) fn carrier(&self) -> NodeId {
        self.carrier
    }

    /// Lists the nodes, the preferred one first.
    pub(crate) fn members(&self) -> impl Iterator<Item = (NodeId, Health)> {
        self.members
            .iter()
            .map(|member| (member.node, member.health))
    }

    /// Returns when [`Self::handle_timeout`] is next wanted.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.members.iter().map(Member::poll_timeout);
        due.min()
    }

    /// Does what is due; [`Self::poll_probe`] follows.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for member in &mut self.members {
            member.handle_timeout(now);
        }
        self.choose();
    }

    /// Returns the next probe that is to be sent now.
    pub(crate) fn poll_probe(&mut self) -> Option<Probe> {
        let member = self.members.iter_mut().find(|member| member.probes)?;
        member.probes = false;
        Some(Probe {
            node: member.node,
            sequence: member.sequence,
        })
    }

    /// Takes what a node says to a probe: that it leads to the LAN, or why not. Whether the node
    /// has said it was settled before.
    pub(crate) fn handle_answer(&mut self, now: Instant, probe: Probe, fault: Option<Health>) {
        let Some(member) = self.member_mut(probe.node) else {
            return;
        };
        if member.sequence.wrapping_sub(probe.sequence) >= MISSES_MAX {
            // Too old to say anything about now.
            return;
        }
        member.handle_answer(now, fault);
        self.choose();
    }

    /// Leaves a carrier that is out for the best that there is, and one that works only for a node
    /// that is preferred to it and well.
    fn choose(&mut self) {
        let well = |member: &Member| member.health == Health::Healthy;
        let best = self.members.iter().position(well);
        let place = |node| self.members.iter().position(|member| member.node == node);
        let carrier = place(self.carrier).unwrap_or_default();
        let next = if self.members[carrier].is_out() {
            let returning = |member: &Member| member.health == Health::Returning;
            best.or_else(|| self.members.iter().position(returning))
        } else {
            best.filter(|best| *best < carrier)
        };
        if let Some(next) = next {
            self.carrier = self.members[next].node;
        }
    }

    fn member_mut(&mut self, node: NodeId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.node == node)
    }
}

impl Member {
    fn new(now: Instant, node: NodeId) -> Self {
        Self {
            node,
            health: Health::Untried,
            sequence: 0,
            unanswered: 0,
            due: now,
            probes: false,
            since: now,
            outs: VecDeque::new(),
        }
    }

    fn is_out(&self) -> bool {
        match self.health {
            Health::Silent | Health::NoLan | Health::NotForwarding => true,
            Health::Untried | Health::Healthy | Health::Returning => false,
        }
    }

    /// Returns when a node that has returned has been well for long enough, unless a probe has been
    /// in vain meanwhile.
    fn held(&self) -> Option<Instant> {
        let is_well = self.health == Health::Returning && self.unanswered < 2;
        is_well.then(|| self.since + self.hold())
    }

    fn poll_timeout(&self) -> Instant {
        self.held().map_or(self.due, |held| self.due.min(held))
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.due <= now {
            if self.unanswered >= MISSES_MAX {
                self.leave(now, Health::Silent);
            }
            self.sequence = self.sequence.wrapping_add(1);
            // One more than matters would overflow some day.
            self.unanswered = (self.unanswered + 1).min(MISSES_MAX);
            self.probes = true;
            let waits_longer = self.unanswered == 1 || self.health == Health::Silent;
            self.due = now + if waits_longer { INTERVAL } else { RETRY };
        }
        if self.held().is_some_and(|held| held <= now) {
            self.health = Health::Healthy;
        }
    }

    fn handle_answer(&mut self, now: Instant, fault: Option<Health>) {
        self.unanswered = 0;
        self.due = self.due.max(now + RETRY);
        match fault {
            Some(fault) => self.leave(now, fault),
            None if self.is_out() => {
                self.health = Health::Returning;
                self.since = now;
            }
            None if self.health == Health::Untried => self.health = Health::Healthy,
            None => {}
        }
    }

    /// Takes note that the node is out, and why.
    fn leave(&mut self, now: Instant, why: Health) {
        if !self.is_out() {
            self.outs
                .retain(|at| now.saturating_duration_since(*at) < MEMORY);
            if self.outs.len() == OUTS_MAX {
                self.outs.pop_front();
            }
            self.outs.push_back(now);
        }
        self.health = why;
    }

    /// Returns how long it has to be well after it was out.
    fn hold(&self) -> Duration {
        let doubled = u32::try_from(self.outs.len().saturating_sub(1)).unwrap_or(u32::MAX);
        (HOLD * 2_u32.saturating_pow(doubled)).min(HOLD_MAX)
    }
}

#[cfg(test)]
mod tests;
