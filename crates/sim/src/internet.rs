//! The pretended internet: it delays, loses, duplicates and reorders datagrams.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::seed::Seed;

/// How the internet behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Conditions {
    /// How long every datagram travels at least.
    pub latency: Duration,
    /// How much longer it may travel; more than the gap between datagrams reorders them.
    pub jitter: Duration,
    /// How many in a hundred are lost.
    pub loss_percent: u8,
    /// How many in a hundred come twice.
    pub duplicate_percent: u8,
}

impl Conditions {
    /// Nothing goes wrong, 10 ms each way.
    pub const GOOD: Self = Self {
        latency: Duration::from_millis(10),
        jitter: Duration::ZERO,
        loss_percent: 0,
        duplicate_percent: 0,
    };

    /// How long any datagram of any world travels at most.
    pub(crate) const DELAY_MAX: Duration = Duration::from_millis(600);
}

/// A datagram on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

/// Everything on its way, by when it arrives.
#[derive(Debug)]
pub(crate) struct Internet {
    pub(crate) conditions: Conditions,
    /// The number keeps datagrams of one instant in their order. At [`FLIGHTS_MAX`] new ones are
    /// lost, as in a router.
    flights: BTreeMap<(Instant, u64), Flight>,
    sent: u64,
}

const FLIGHTS_MAX: usize = 65_536;

impl Internet {
    pub(crate) fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            flights: BTreeMap::new(),
            sent: 0,
        }
    }

    pub(crate) fn send(&mut self, now: Instant, seed: &mut Seed, flight: &Flight) {
        let copies = 1 + usize::from(seed.happens(self.conditions.duplicate_percent));
        for _ in 0..copies {
            let lost = seed.happens(self.conditions.loss_percent);
            let delay = self.conditions.latency + seed.duration(self.conditions.jitter);
            let delay = delay.min(Conditions::DELAY_MAX);
            self.sent += 1;
            if !lost && self.flights.len() < FLIGHTS_MAX {
                let copy = Flight {
                    payload: flight.payload.clone(),
                    ..*flight
                };
                self.flights.insert((now + delay, self.sent), copy);
            }
        }
    }

    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.flights.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn arrive(&mut self, now: Instant) -> Option<Flight> {
        let entry = self
            .flights
            .first_entry()
            .filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }
}
