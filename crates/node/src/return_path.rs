//! Whether answers of a LAN's hosts to other sites come back: what witnesses say, and when what
//! they say changes how the site is served.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use model::status::ReturnPath;

/// A host that answers the node's own machine, and what it does when another site seems to ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Witness {
    /// Whether it is a router that the machine itself uses: its own answers pass no other.
    pub is_router: bool,
    /// Whether its answer came back.
    pub returned: bool,
}

/// How a site is served: changed by what was found several times in a row, and the more often it
/// was changed lately the more slowly, so that it does not flap.
#[derive(Debug, Default)]
pub struct Decision {
    /// What holds; `None` before anything was found.
    held: Option<ReturnPath>,
    /// How often in a row something else was found.
    contrary: u32,
    /// How often in a row the same was found, or nothing.
    agreeing: u32,
    /// When it was changed; at most [`CHANGES_MAX`].
    changes: VecDeque<Instant>,
}

/// Contrary findings for a first change; each change in the last [`MEMORY`] doubles them.
const CONTRARY_MIN: u32 = 2;
const CHANGES_MAX: usize = 4;
const MEMORY: Duration = Duration::from_secs(3_600);

/// How long after a contrary finding it is looked again, and at first; twice as long after each
/// that agrees, up to the greatest.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(32);

impl Witness {
    /// Returns what witnesses of one LAN say together.
    ///
    /// One host whose answers get lost decides: by masquerade it is reached too, and all that the
    /// others lose is whose address they see.
    #[must_use]
    pub fn weigh(witnesses: &[Self]) -> ReturnPath {
        let any = |is_router, returned| {
            witnesses.contains(&Self {
                is_router,
                returned,
            })
        };
        match (any(false, false), any(false, true)) {
            (true, _) if any(true, true) => ReturnPath::Triangle,
            (true, _) => ReturnPath::Missing,
            (false, true) => ReturnPath::Present,
            (false, false) if any(true, false) => ReturnPath::Missing,
            // That the router finds back does not show what it does with packets of others.
            (false, false) => ReturnPath::NoWitness,
        }
    }
}

impl Decision {
    /// Takes what was found just now; returns after which time to look again.
    pub fn learn(&mut self, now: Instant, found: ReturnPath) -> Duration {
        let held = self.return_path();
        if !(is_evidence(held) && is_evidence(found)) {
            // Hosts that sleep say nothing against what holds.
            if found != ReturnPath::NoWitness || !is_evidence(held) {
                self.held = Some(found);
            }
            return self.agree(self.return_path() == held);
        }
        if (found == ReturnPath::Present) == (held == ReturnPath::Present) {
            self.held = Some(found);
            return self.agree(true);
        }
        self.agreeing = 0;
        self.contrary += 1;
        let lately = |at: &Instant| now.saturating_duration_since(*at) < MEMORY;
        self.changes.retain(lately);
        let doubled = u32::try_from(self.changes.len()).unwrap_or(u32::MAX);
        if self.contrary >= CONTRARY_MIN << doubled {
            self.contrary = 0;
            self.held = Some(found);
            if self.changes.len() == CHANGES_MAX {
                self.changes.pop_front();
            }
            self.changes.push_back(now);
        }
        LOOK_AGAIN
    }

    /// Notes whether the same was found as before; returns after which time to look again.
    fn agree(&mut self, same: bool) -> Duration {
        self.contrary = 0;
        self.agreeing = if same {
            self.agreeing.saturating_add(1)
        } else {
            0
        };
        LOOK_AGAIN_MAX.min(LOOK_AGAIN * 2_u32.saturating_pow(self.agreeing.min(8)))
    }

    /// Forgets that the same was found before, because something has changed: it is looked soon.
    pub fn doubt(&mut self) {
        self.agreeing = 0;
    }

    /// Returns what holds.
    #[must_use]
    pub fn return_path(&self) -> ReturnPath {
        self.held.unwrap_or(ReturnPath::Undecided)
    }
}

/// Tells whether hosts have said it, so that others may say something else; the rest is known.
fn is_evidence(found: ReturnPath) -> bool {
    match found {
        ReturnPath::Missing | ReturnPath::Triangle | ReturnPath::Present => true,
        ReturnPath::Undecided
        | ReturnPath::NotWanted
        | ReturnPath::NoInterface
        | ReturnPath::NoAddress
        | ReturnPath::NoOtherSite
        | ReturnPath::NotForwarding
        | ReturnPath::NoWitness => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ReturnPath::{Missing, NoWitness, NotForwarding, Present, Triangle};

    #[test]
    fn witnesses_tell_a_missing_route_from_a_router_that_drops() {
        let device = |returned| Witness {
            is_router: false,
            returned,
        };
        let router = |returned| Witness {
            is_router: true,
            returned,
        };
        for (witnesses, expected) in [
            (&[][..], NoWitness),
            (&[router(true)], NoWitness),
            (&[router(false)], Missing),
            (&[device(false)], Missing),
            (&[device(false), router(false)], Missing),
            (&[device(false), router(true)], Triangle),
            (&[device(true), device(false), router(true)], Triangle),
            (&[device(true)], Present),
            // It knows its way to hosts of the LAN by itself.
            (&[device(true), router(false)], Present),
        ] {
            assert_eq!(Witness::weigh(witnesses), expected, "{witnesses:?}");
        }
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        Instant::now()
    }

    /// Finds the same until it holds; returns how often that was.
    fn turn(decision: &mut Decision, now: &mut Instant, found: ReturnPath) -> u32 {
        for count in 1..=100 {
            *now += decision.learn(*now, found);
            if decision.return_path() == found {
                return count;
            }
        }
        panic!("it never holds");
    }

    #[test]
    fn the_first_finding_holds_at_once_and_a_single_contrary_one_does_not() {
        let mut now = start();
        let mut decision = Decision::default();
        assert_eq!(decision.return_path(), ReturnPath::Undecided);
        assert_eq!(turn(&mut decision, &mut now, Present), 1);
        for _ in 0..50 {
            decision.learn(now, Missing);
            assert_eq!(decision.return_path(), Present);
            decision.learn(now, Present);
        }
        decision.learn(now, NoWitness);
        assert_eq!(decision.return_path(), Present, "everybody sleeps");
        // What the machine knows by itself needs no witness.
        decision.learn(now, NotForwarding);
        assert_eq!(decision.return_path(), NotForwarding);
        assert_eq!(turn(&mut decision, &mut now, Present), 1);
    }

    #[test]
    fn the_more_often_it_changes_the_more_it_takes_up_to_a_bound_and_an_hour_forgives() {
        let mut now = start();
        let mut decision = Decision::default();
        turn(&mut decision, &mut now, Present);
        let mut taken = Vec::new();
        for found in [Missing, Present].into_iter().cycle().take(8) {
            taken.push(turn(&mut decision, &mut now, found));
        }
        assert_eq!(taken, [2, 4, 8, 16, 32, 32, 32, 32]);
        now += MEMORY;
        assert_eq!(turn(&mut decision, &mut now, Missing), 2);
    }

    #[test]
    fn it_is_looked_more_rarely_while_nothing_changes_and_soon_after_a_contrary_finding() {
        let now = start();
        let mut decision = Decision::default();
        let seconds = |wait: Duration| wait.as_secs();
        let waits: Vec<_> = (0..7)
            .map(|_| seconds(decision.learn(now, Missing)))
            .collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 32, 32]);
        // Another reason for the same is taken at once.
        decision.learn(now, Triangle);
        assert_eq!(decision.return_path(), Triangle);
        assert_eq!(decision.learn(now, Present), LOOK_AGAIN);
    }
}
