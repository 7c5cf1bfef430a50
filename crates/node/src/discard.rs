//! Why a packet was not delivered, and how often: each under exactly one reason.

use std::collections::BTreeMap;

/// Why a packet was not delivered: the reasons of all layers.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Discard {
    /// The tunnel refused it.
    WireGuard(wireguard::Discard),
    /// The stack refused it.
    Netstack(netstack::Discard),
    /// It has nowhere to go.
    Node(Reason),
}

/// Why a packet has nowhere to go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// It is not an IP packet.
    NotIp,
    /// No node has its destination.
    NoPeer,
    /// Its destination lies outside the organisation of its source.
    OtherOrg,
    /// Its source belongs to no organisation that this gateway serves.
    NotServed,
    /// No rule of the policy allows it.
    Policy,
    /// Its hop limit was reached.
    HopLimit,
    /// It is larger than the tunnel carries; its sender is told.
    TooBig,
    /// It is for this node, which has neither a TUN interface nor a stack to take it.
    NoAttachment,
    /// It did not fit the buffer that the caller gave.
    NoRoom,
    /// It had to wait and its queue was full.
    QueueFull,
    /// The TUN interface did not take it: it is down or gone.
    InterfaceDown,
    /// The network did not take a datagram, of data or of a handshake: there is no route or no
    /// memory for it, or it is too long.
    NotSent,
}

/// How often each reason occurred.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counters {
    wireguard: [u64; wireguard::Discard::ALL.len()],
    netstack: [u64; netstack::Discard::ALL.len()],
    node: [u64; Reason::ALL.len()],
}

impl Discard {
    /// Returns every reason of every layer.
    pub fn all() -> impl Iterator<Item = Self> {
        let wireguard = wireguard::Discard::ALL.iter().copied().map(Self::WireGuard);
        let netstack = netstack::Discard::ALL.iter().copied().map(Self::Netstack);
        let node = Reason::ALL.iter().copied().map(Self::Node);
        wireguard.chain(netstack).chain(node)
    }

    /// Returns its stable name, `LAYER.REASON`, as status and metrics show it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::WireGuard(discard) => format!("wireguard.{}", discard.name()),
            Self::Netstack(discard) => format!("netstack.{}", discard.name()),
            Self::Node(reason) => format!("node.{}", reason.name()),
        }
    }
}

impl From<wireguard::Discard> for Discard {
    fn from(discard: wireguard::Discard) -> Self {
        Self::WireGuard(discard)
    }
}

impl From<netstack::Discard> for Discard {
    fn from(discard: netstack::Discard) -> Self {
        Self::Netstack(discard)
    }
}

impl From<Reason> for Discard {
    fn from(reason: Reason) -> Self {
        Self::Node(reason)
    }
}

impl Reason {
    /// All variants in order: `ALL[reason as usize] == reason`.
    pub const ALL: [Self; 12] = [
        Self::NotIp,
        Self::NoPeer,
        Self::OtherOrg,
        Self::NotServed,
        Self::Policy,
        Self::HopLimit,
        Self::TooBig,
        Self::NoAttachment,
        Self::NoRoom,
        Self::QueueFull,
        Self::InterfaceDown,
        Self::NotSent,
    ];

    /// Returns its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NoPeer => "no_peer",
            Self::OtherOrg => "other_org",
            Self::NotServed => "not_served",
            Self::Policy => "policy",
            Self::HopLimit => "hop_limit",
            Self::TooBig => "too_big",
            Self::NoAttachment => "no_attachment",
            Self::NoRoom => "no_room",
            Self::QueueFull => "queue_full",
            Self::InterfaceDown => "interface_down",
            Self::NotSent => "not_sent",
        }
    }
}

impl Counters {
    /// Returns how often `discard` occurred.
    #[must_use]
    pub fn count(&self, discard: Discard) -> u64 {
        match discard {
            Discard::WireGuard(discard) => self.wireguard[discard.index()],
            Discard::Netstack(discard) => self.netstack[discard as usize],
            Discard::Node(reason) => self.node[reason as usize],
        }
    }

    /// Returns the sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        Discard::all().map(|discard| self.count(discard)).sum()
    }

    /// Returns the reasons that occurred, by name.
    #[must_use]
    pub fn occurred(&self) -> BTreeMap<String, u64> {
        let counted = Discard::all().map(|discard| (discard.name(), self.count(discard)));
        counted.filter(|&(_, count)| count > 0).collect()
    }

    pub(crate) fn add(&mut self, discard: impl Into<Discard>, count: u64) {
        let counter = match discard.into() {
            Discard::WireGuard(discard) => &mut self.wireguard[discard.index()],
            Discard::Netstack(discard) => &mut self.netstack[discard as usize],
            Discard::Node(reason) => &mut self.node[reason as usize],
        };
        *counter = counter.saturating_add(count);
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            wireguard: [0; wireguard::Discard::ALL.len()],
            netstack: [0; netstack::Discard::ALL.len()],
            node: [0; Reason::ALL.len()],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let mut counters = Counters::default();
        let mut names = BTreeSet::new();
        for (index, discard) in (1..).zip(Discard::all()) {
            counters.add(discard, index);
            assert!(names.insert(discard.name()), "{}", discard.name());
        }
        for (index, discard) in (1..).zip(Discard::all()) {
            assert_eq!(counters.count(discard), index);
        }
        assert_eq!(counters.occurred().len(), names.len());
    }
}
