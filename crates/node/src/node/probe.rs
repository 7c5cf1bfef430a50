//! Probes of the way back, which a host of a LAN gets from the machine.

use std::time::Instant;

use model::id::SiteId;

use super::{Event, Node};
use crate::probe::{Answer, Probe};

impl Node {
    /// Asks a host of a LAN as if another site did; false when none is routed to here, or too much
    /// waits for the machine. [`Event::HostReturned`] follows if its answer comes back. Ask again
    /// when it does not, at most for ten seconds.
    pub fn probe_return(&mut self, now: Instant, probe: Probe) -> bool {
        let Some(source) = self.routed.foreigner() else {
            return false;
        };
        let packet = self.probes.ask(now, source, probe);
        self.push_incoming(packet).is_ok()
    }

    /// Takes a packet of the machine that is about a probe.
    pub(super) fn take_probed(&mut self, now: Instant, packet: &[u8]) -> bool {
        match self.probes.take(now, packet) {
            None => return false,
            Some(Answer::Other) => {}
            Some(Answer::Host(host, reset)) => {
                self.events.push_back(Event::HostReturned { host });
                // A host that does not hear it gives up by itself.
                let _told = reset.map(|reset| self.push_incoming(reset));
            }
        }
        true
    }

    /// Tells whether the machine routes the addresses of some other site to here, so that hosts
    /// can be asked.
    #[must_use]
    pub fn can_probe(&self) -> bool {
        self.routed.foreigner().is_some()
    }

    /// Tells whether what the hosts of a site behind the node answer to other sites comes back to
    /// it. By this a site that leaves its mode to the node is served, from now on: what goes on
    /// already is not disturbed.
    pub fn set_returning(&mut self, site: SiteId, returning: bool) {
        self.routed.set_returning(site, returning);
    }
}
