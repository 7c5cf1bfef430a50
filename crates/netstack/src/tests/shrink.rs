//! A failing run of the simulator becomes a short script that reads like a packet trace.

use std::{collections::BTreeMap, fmt::Write as _, panic, time::Duration};

use super::{
    pair::{Fate, Link, Pair},
    transfer::transfer,
};
use crate::{CongestionControl, Limits};

/// One run of the simulator: repeated, it does the same.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) link: Link,
    pub(super) lengths: [usize; 2],
    pub(super) v6: bool,
    /// How often of a thousand times a reader pauses.
    pub(super) pauses: u64,
    pub(super) control: CongestionControl,
    pub(super) run: usize,
    /// What the link does to which packet, instead of what its probabilities would.
    pub(super) script: Option<BTreeMap<u64, Fate>>,
}

/// With a loss of 15 % each way and the backoff, luck may take minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// Attempts after which a script counts as short enough.
const ATTEMPTS_MAX: usize = 2_000;

impl Case {
    fn pair(&self) -> Pair {
        let patient = Limits {
            connect_timeout: PATIENCE,
            user_timeout: PATIENCE,
            ..Limits::default()
        };
        let mut pair = Pair::with_limits(self.seed, self.link, patient);
        pair.run = self.run;
        for stack in &mut pair.stacks {
            stack.set_default_congestion_control(self.control);
        }
        pair.script.clone_from(&self.script);
        pair
    }

    /// Transfers everything; panics where something went wrong.
    pub(super) fn transfer(&self) -> Duration {
        transfer(&mut self.pair(), self.lengths, self.v6, self.pauses)
    }

    /// The same, and what happened to every packet, also when it went wrong.
    fn trace(&self) -> (BTreeMap<u64, Fate>, String) {
        let mut pair = self.pair();
        pair.trace = Some(String::new());
        let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            transfer(&mut pair, self.lengths, self.v6, self.pauses);
        }));
        let mut trace = pair.trace.take().unwrap_or_default();
        if outcome.is_err() {
            trace += "here it failed\n";
        }
        (pair.fates, trace)
    }
}

/// Returns the smallest case found for which `fails` still holds.
///
/// First what the link does becomes a script, and then everything goes that is not needed: halves,
/// quarters and so on of the script, bytes, and what makes the run complicated.
fn shrink(case: &Case, fails: impl Fn(&Case) -> bool) -> Case {
    let mut best = case.clone();
    let mut attempts = 0;
    let mut attempt = |best: &mut Case, change: &dyn Fn(&mut Case)| {
        let mut candidate = best.clone();
        change(&mut candidate);
        attempts += 1;
        let better = attempts <= ATTEMPTS_MAX && fails(&candidate);
        if better {
            *best = candidate;
        }
        better
    };
    let (fates, _) = case.trace();
    if !attempt(&mut best, &|case| case.script = Some(fates.clone())) {
        return best;
    }
    attempt(&mut best, &|case| case.run = 1);
    attempt(&mut best, &|case| case.pauses = 0);
    attempt(&mut best, &|case| case.link.rate = None);
    attempt(&mut best, &|case| case.link.tick = Duration::ZERO);
    attempt(&mut best, &|case| case.link.bare = false);
    for side in [0, 1] {
        attempt(&mut best, &|case| case.lengths[side] = 0);
        while best.lengths[side] > 0 && attempt(&mut best, &|case| case.lengths[side] /= 2) {}
    }
    let script = |case: &Case| case.script.clone().unwrap_or_default();
    let mut size = script(&best).len();
    while size > 0 {
        let mut at = 0;
        while at < script(&best).len() {
            let gone: Vec<_> = script(&best).into_keys().skip(at).take(size).collect();
            let without = |case: &mut Case| {
                if let Some(script) = &mut case.script {
                    script.retain(|number, _| !gone.contains(number));
                }
            };
            if !attempt(&mut best, &without) {
                at += size;
            }
        }
        size /= 2;
    }
    best
}

/// Tells what went wrong in `case`, as briefly as it can be told.
pub(super) fn report(case: &Case) -> String {
    let failed = |case: &Case| panic::catch_unwind(|| case.transfer()).is_err();
    let short = shrink(case, failed);
    let mut text = format!("{case:?}\nshrunk to {short:?}\n");
    let (_, trace) = short.trace();
    write!(text, "{trace}").unwrap();
    text
}

#[test]
fn a_failure_shrinks_to_the_packets_that_it_takes_and_reads_like_a_trace() {
    let case = |seed| Case {
        seed,
        link: Link {
            loss: 150,
            duplication: 100,
            jitter: Duration::from_millis(5),
            ..Link::default()
        },
        lengths: [50_000, 10_000],
        v6: true,
        pauses: 500,
        control: CongestionControl::Cubic,
        run: 45,
        script: None,
    };
    // Pretend that it is a fault when a transfer takes three seconds.
    let slow = |case: &Case| case.transfer() >= Duration::from_secs(3);
    let case = (0..100).map(case).find(slow).unwrap();
    let short = shrink(&case, slow);
    assert!(slow(&short));
    let (fates, trace) = short.trace();
    assert!(fates.len() <= 4, "{fates:?}\n{trace}");
    let losses = fates.values().filter(|fate| fate.lost).count();
    assert!(losses > 0, "{fates:?}");
    let lost = trace.lines().filter(|line| line.ends_with("lost"));
    assert_eq!(lost.count(), losses, "{trace}");
    let first = trace.lines().next().unwrap();
    assert!(first.starts_with("0.000000 A > SYN seq 0"), "{first}");
}
