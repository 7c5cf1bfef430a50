//! Our address towards each peer: the one that it called, which a NAT on its way expects answers
//! from.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// The addresses at which peers called a socket that is bound to all of them.
#[derive(Debug, Default)]
pub struct Sources {
    /// At most `SOURCES_MAX`; when another proven peer comes all are forgotten, and routing
    /// chooses until a peer calls again.
    sources: BTreeMap<SocketAddr, Source>,
    /// The one noted last, which is no longer doubted since.
    latest: Option<(SocketAddr, IpAddr)>,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    local: IpAddr,
    /// A handshake was begun from here, and nothing has come since.
    doubted: bool,
}

impl Sources {
    /// Returns our address towards `peer`, if it must be a certain one.
    #[must_use]
    pub fn source(&self, peer: SocketAddr) -> Option<IpAddr> {
        match self.latest {
            Some((latest, local)) if latest == peer => Some(local),
            _ => self.sources.get(&peer).map(|source| source.local),
        }
    }

    /// Remembers that `peer` wrote to our address `local`. Who is not `proven` to be a peer may be
    /// one of a flood, and makes no room for itself.
    pub fn note(&mut self, peer: SocketAddr, local: Option<IpAddr>, proven: bool) {
        let Some(local) = local else { return };
        if self.latest == Some((peer, local)) {
            return;
        }
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&peer) {
            if !proven {
                return;
            }
            self.sources.clear();
        }
        let doubted = false;
        self.sources.insert(peer, Source { local, doubted });
        self.latest = Some((peer, local));
    }

    /// Tells that a handshake with `peer` is about to begin. One that was not answered may be
    /// lost because of where it left from: routing chooses for the next, as in the kernel's
    /// WireGuard (drivers/net/wireguard/timers.c, `wg_expired_retransmit_handshake`).
    pub fn begin_handshake(&mut self, peer: SocketAddr) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        if source.doubted {
            self.sources.remove(&peer);
        } else {
            source.doubted = true;
        }
        // Else the next call of this peer would pass unseen.
        self.latest = None;
    }

    /// Lets routing choose our address towards `peer` anew.
    pub fn forget(&mut self, peer: SocketAddr) {
        self.sources.remove(&peer);
        self.latest = None;
    }

    /// Lets routing choose our address towards everyone anew.
    pub fn forget_all(&mut self) {
        self.sources.clear();
        self.latest = None;
    }
}

const SOURCES_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> SocketAddr {
        (IpAddr::from(number.to_be_bytes()), 51_820).into()
    }

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn a_peer_is_answered_from_where_it_called_last() {
        let mut sources = Sources::default();
        assert_eq!(sources.source(peer(1)), None);
        sources.note(peer(1), Some(ONE), false);
        sources.note(peer(2), Some(OTHER), true);
        sources.note(peer(2), None, true);
        assert_eq!(sources.source(peer(1)), Some(ONE));
        assert_eq!(sources.source(peer(2)), Some(OTHER));
        sources.note(peer(1), Some(OTHER), true);
        assert_eq!(sources.source(peer(1)), Some(OTHER));
        sources.forget(peer(1));
        assert_eq!(sources.source(peer(1)), None);
        sources.forget_all();
        assert_eq!(sources.source(peer(2)), None);
    }

    #[test]
    fn only_a_handshake_without_an_answer_lets_routing_choose_for_the_next() {
        let mut sources = Sources::default();
        for _ in 0..3 {
            sources.note(peer(1), Some(ONE), true);
            sources.begin_handshake(peer(1));
            assert_eq!(sources.source(peer(1)), Some(ONE));
        }
        sources.begin_handshake(peer(1));
        assert_eq!(sources.source(peer(1)), None);
        sources.begin_handshake(peer(1));
        assert_eq!(sources.source(peer(1)), None);
    }

    #[test]
    fn who_is_unproven_drives_nobody_out() {
        let mut sources = Sources::default();
        for number in 0..70_000 {
            sources.note(peer(number), Some(ONE), false);
        }
        assert_eq!(sources.sources.len(), SOURCES_MAX);
        assert_eq!(sources.source(peer(0)), Some(ONE));
        assert_eq!(sources.source(peer(69_999)), None);
        // Who is known may move all the same.
        sources.note(peer(0), Some(OTHER), false);
        assert_eq!(sources.source(peer(0)), Some(OTHER));
        sources.note(peer(69_999), Some(ONE), true);
        assert_eq!(sources.source(peer(69_999)), Some(ONE));
        assert_eq!(sources.sources.len(), 1);
    }
}
