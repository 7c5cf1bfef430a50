//! Stories of nodes that fail and return, in virtual time; and any story at all.

use proptest::prelude::*;

use super::*;

/// What becomes of the probes to one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Up,
    /// Its machine has lost the LAN.
    Faulty,
    Down,
}

use State::{Down, Faulty, Up};

/// Nodes with the ids 1, 2, ..., the first one preferred.
struct Story {
    failover: Failover,
    now: Instant,
    states: Vec<State>,
    /// How often another node has become the carrier.
    moves: u32,
}

/// How long an answer takes.
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// So long at most a node is carrier that does not answer any more.
const OUT_WITHIN: Duration = Duration::from_millis(3_100);

impl Story {
    fn new(states: &[State]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
        let now = Instant::now();
        let ids = (1..).map(NodeId).take(states.len());
        Self {
            failover: Failover::new(now, ids).expect("some nodes"),
            now,
            states: states.to_vec(),
            moves: 0,
        }
    }

    fn state(&self, node: NodeId) -> State {
        self.states[usize::try_from(node.0).expect("a small id") - 1]
    }

    fn set(&mut self, node: i64, state: State) {
        self.states[usize::try_from(node).expect("a small id") - 1] = state;
    }

    fn carrier(&self) -> i64 {
        self.failover.carrier().0
    }

    fn health(&self, node: i64) -> Health {
        let mut members = self.failover.members();
        let found = members.find(|(id, _)| id.0 == node);
        found.expect("a member").1
    }

    /// Lives for a while; `watch` looks after each thing that happens.
    fn run_with(&mut self, duration: Duration, mut watch: impl FnMut(&Self, NodeId)) {
        let end = self.now + duration;
        let mut answers = VecDeque::<(Instant, Probe)>::new();
        loop {
            let due = self
                .failover
                .poll_timeout()
                .expect("there is always a probe");
            let next = answers.front().map_or(due, |(at, _)| due.min(*at));
            if next >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let before = self.failover.carrier();
            if due <= self.now {
                self.failover.handle_timeout(self.now);
            }
            while let Some(probe) = self.failover.poll_probe() {
                if self.state(probe.node) != Down {
                    answers.push_back((self.now + ROUND_TRIP, probe));
                }
            }
            while answers.front().is_some_and(|(at, _)| *at <= self.now) {
                let (_, probe) = answers.pop_front().expect("just seen");
                let fault = match self.state(probe.node) {
                    Up => None,
                    Faulty => Some(Health::NoLan),
                    Down => continue,
                };
                self.failover.handle_answer(self.now, probe, fault);
            }
            self.moves += u32::from(self.failover.carrier() != before);
            watch(self, before);
        }
    }

    fn run(&mut self, seconds: f64) {
        self.run_with(Duration::from_secs_f64(seconds), |_, _| ());
    }

    /// Lives until `node` carries; returns after how many seconds.
    fn until(&mut self, node: i64, bound: f64) -> f64 {
        let step = 0.05;
        let mut waited = 0.0;
        while self.carrier() != node {
            assert!(waited < bound, "{node} does not carry within {bound} s");
            self.run(step);
            waited += step;
        }
        waited
    }
}

#[test]
fn a_silent_carrier_is_replaced_within_the_bound_and_carries_again_after_the_hold() {
    let mut story = Story::new(&[Up, Up]);
    story.run(60.0);
    assert_eq!((story.carrier(), story.moves), (1, 0));
    story.set(1, Down);
    assert!(story.until(2, 3.2) > 1.9);
    assert_eq!(story.health(1), Health::Silent);
    story.set(1, Up);
    story.run(2.0);
    assert_eq!((story.carrier(), story.health(1)), (2, Health::Returning));
    let waited = story.until(1, 10.1);
    assert!(waited > 7.9, "{waited}");
    assert_eq!(story.health(1), Health::Healthy);
}

#[test]
fn a_node_that_falls_silent_again_at_the_end_of_its_hold_is_not_believed() {
    let mut story = Story::new(&[Up, Up]);
    story.run(5.0);
    story.set(1, Down);
    story.run(4.0);
    assert_eq!((story.carrier(), story.moves), (2, 1));
    story.set(1, Up);
    story.run(9.0);
    story.set(1, Down);
    story.run(5.0);
    assert_eq!((story.carrier(), story.moves), (2, 1));
}

#[test]
fn a_carrier_that_says_that_its_lan_is_lost_is_replaced_with_the_next_probe() {
    let mut story = Story::new(&[Up, Up]);
    story.run(10.0);
    story.set(1, Faulty);
    story.until(2, 1.2);
    assert_eq!(story.health(1), Health::NoLan);
}

#[test]
fn a_standby_that_is_out_moves_nothing_and_is_not_chosen() {
    let mut story = Story::new(&[Up, Up, Up]);
    story.run(10.0);
    story.set(2, Down);
    story.run(10.0);
    assert_eq!((story.carrier(), story.moves), (1, 0));
    story.set(1, Down);
    story.until(3, 3.2);
    // The second returns and is preferred to the third.
    story.set(2, Up);
    story.until(2, 11.2);
}

#[test]
fn while_all_are_out_nothing_moves_and_the_first_to_return_carries_at_once() {
    let mut story = Story::new(&[Up, Up]);
    story.run(10.0);
    story.set(1, Down);
    story.set(2, Faulty);
    story.run(30.0);
    assert_eq!((story.carrier(), story.moves), (1, 0));
    story.set(2, Up);
    story.until(2, 1.2);
}

#[test]
fn a_lost_probe_or_two_are_no_accident_and_a_stale_answer_says_nothing() {
    let mut story = Story::new(&[Up, Up]);
    story.run(10.0);
    for _ in 0..20 {
        story.set(1, Down);
        story.run(1.4);
        story.set(1, Up);
        story.run(2.0);
    }
    assert_eq!((story.carrier(), story.moves), (1, 0));
    story.set(1, Down);
    story.run(10.0);
    let old = Probe {
        node: NodeId(1),
        sequence: 3,
    };
    story.failover.handle_answer(story.now, old, None);
    assert_eq!(story.health(1), Health::Silent);
    let stranger = Probe {
        node: NodeId(9),
        sequence: 0,
    };
    story.failover.handle_answer(story.now, stranger, None);
}

#[test]
fn the_more_often_a_node_was_out_the_longer_it_is_waited_for_and_an_hour_forgives() {
    let mut story = Story::new(&[Up, Up]);
    story.run(10.0);
    for hold in [10, 20, 40, 80, 160, 300, 300] {
        story.set(1, Faulty);
        story.until(2, 1.2);
        story.set(1, Up);
        let waited = story.until(1, 310.0);
        let expected = f64::from(hold);
        assert!((waited - expected).abs() < 1.2, "{waited} for {hold}");
    }
    story.run(3_600.0);
    story.set(1, Faulty);
    story.until(2, 1.2);
    story.set(1, Up);
    story.until(1, 11.2);
}

#[test]
fn other_nodes_keep_what_is_known_of_those_that_stay() {
    let mut story = Story::new(&[Up, Up, Up]);
    story.run(10.0);
    let order = |ids: &[i64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    story.failover.apply(story.now, order(&[2, 1]).into_iter());
    assert_eq!(story.carrier(), 2, "the order has changed");
    assert_eq!(story.health(1), Health::Healthy);
    story.failover.apply(story.now, order(&[3, 1]).into_iter());
    assert_eq!(story.carrier(), 1, "nobody knows the third any more");
    story.run(1.0);
    assert_eq!(story.carrier(), 3);
    assert!(Failover::new(story.now, std::iter::empty()).is_none());
    let many = Failover::new(story.now, (0..9).map(NodeId)).expect("some");
    assert_eq!(many.members().count(), SITE_NODES_MAX);
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![3 => Just(Up), 1 => Just(Faulty), 2 => Just(Down)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens: there is one carrier, none that is dead for longer than the bound while
    /// another one is well, and none that works is left before the other one has held.
    #[test]
    fn a_dead_node_does_not_stay_and_a_live_one_is_not_left_before_the_hold(
        count in 2_usize..=SITE_NODES_MAX,
        events in proptest::collection::vec((0..SITE_NODES_MAX, state(), 1_u64..20_000), 1..60),
    ) {
        let mut story = Story::new(&vec![Up; count]);
        // Since when each has been as it is, and when it was last known to be out.
        let mut since = vec![story.now; count];
        let mut out = vec![None; count];
        for (node, state, millis) in events {
            let node = node % count;
            if story.states[node] != state {
                story.states[node] = state;
                since[node] = story.now;
            }
            let since = &since;
            story.run_with(Duration::from_millis(millis), |story, before| {
                let age = |then: Instant| story.now.saturating_duration_since(then);
                let place = |node: NodeId| usize::try_from(node.0).expect("small") - 1;
                let carrier = place(story.failover.carrier());
                let is_up = |node: usize| story.states[node] == Up && age(since[node]) > OUT_WITHIN;
                let dead = story.states[carrier] != Up && age(since[carrier]) > OUT_WITHIN;
                assert!(!(dead && (0..count).any(is_up)), "{carrier} is dead and carries");
                for member in story.failover.members.iter().filter(|member| member.is_out()) {
                    out[place(member.node)] = Some(story.now);
                }
                let before = place(before);
                if before != carrier && is_up(before) {
                    let held = out[carrier].is_none_or(|then| age(then) >= HOLD);
                    assert!(held, "{before} worked and was left for {carrier}");
                }
            });
        }
    }
}
