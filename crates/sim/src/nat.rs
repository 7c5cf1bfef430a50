//! A NAT with endpoint-independent mapping and address and port-dependent filtering (RFC 4787):
//! the kind behind which a client must make itself heard before it hears anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::seed::Seed;

/// How long a mapping lives without packets from inside; many routers keep UDP for 30 s.
const MAPPING_TIMEOUT: Duration = Duration::from_secs(30);

/// One NAT.
#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) address: IpAddr,
    mappings: BTreeMap<SocketAddr, Mapping>,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    heard: Instant,
    remotes: BTreeSet<SocketAddr>,
}

impl Nat {
    pub(crate) fn new(address: IpAddr) -> Self {
        Self {
            address,
            mappings: BTreeMap::new(),
        }
    }

    /// Translates the source of a datagram that leaves.
    pub(crate) fn leave(
        &mut self,
        now: Instant,
        seed: &mut Seed,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> SocketAddr {
        self.expire(now);
        if !self.mappings.contains_key(&source) {
            let port = self.free_port(seed);
            let remotes = BTreeSet::new();
            let mapping = Mapping {
                port,
                heard: now,
                remotes,
            };
            self.mappings.insert(source, mapping);
        }
        let mapping = self
            .mappings
            .get_mut(&source)
            .expect("it was just inserted");
        mapping.heard = now;
        mapping.remotes.insert(destination);
        SocketAddr::new(self.address, mapping.port)
    }

    /// Translates the destination of a datagram that enters; `None` when it is filtered.
    pub(crate) fn enter(
        &mut self,
        now: Instant,
        source: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        self.expire(now);
        let found = self
            .mappings
            .iter()
            .find(|(_, mapping)| mapping.port == port);
        let (inside, mapping) = found?;
        mapping.remotes.contains(&source).then_some(*inside)
    }

    /// Forgets every mapping, as after a restart; the next ones have other ports.
    pub(crate) fn rebind(&mut self) {
        self.mappings.clear();
    }

    fn expire(&mut self, now: Instant) {
        self.mappings
            .retain(|_, mapping| now < mapping.heard + MAPPING_TIMEOUT);
    }

    fn free_port(&self, seed: &mut Seed) -> u16 {
        loop {
            let port = 1_024 + u16::try_from(seed.below(60_000)).expect("below 60,000");
            if self.mappings.values().all(|mapping| mapping.port != port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beginning;

    const INSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    #[test]
    fn who_was_not_spoken_to_is_not_heard() {
        let (now, mut seed) = (beginning(), Seed::new(1));
        let mut nat = Nat::new([203, 0, 113, 1].into());
        let (one, other) = (([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 1).into());
        let outside = nat.leave(now, &mut seed, INSIDE, one);
        assert_eq!(nat.enter(now, one, outside.port()), Some(INSIDE));
        assert_eq!(nat.enter(now, other, outside.port()), None);
        assert_eq!(nat.leave(now, &mut seed, INSIDE, other), outside);
        assert_eq!(nat.enter(now, other, outside.port()), Some(INSIDE));
    }

    #[test]
    fn a_mapping_ends_with_silence_and_with_a_rebinding() {
        let (now, mut seed) = (beginning(), Seed::new(1));
        let mut nat = Nat::new([203, 0, 113, 1].into());
        let remote = ([192, 0, 2, 1], 1).into();
        let port = nat.leave(now, &mut seed, INSIDE, remote).port();
        assert_eq!(nat.enter(now + MAPPING_TIMEOUT, remote, port), None);
        let port = nat.leave(now, &mut seed, INSIDE, remote).port();
        nat.rebind();
        assert_eq!(nat.enter(now, remote, port), None);
    }
}
