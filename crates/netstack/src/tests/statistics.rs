//! What a connection tells about itself.

use std::time::Duration;

use super::{
    pair::{A, B, Link, Pair},
    recovery::{Path, RTT},
    scenario::{MSS, Wire},
};
use crate::{Received, State};

#[test]
fn a_new_connection_has_measured_nothing() {
    let wire = Wire::opening();
    let told = wire.stack.statistics(wire.id).unwrap();
    assert_eq!((told.state, told.smoothed_rtt), (State::SynSent, None));
    assert_eq!((told.ssthresh, told.pacing_rate), (None, None));
    assert_eq!(told.retransmission_timeout, Duration::from_secs(1));
    assert_eq!((told.local, told.remote), (wire.local, wire.remote));
}

#[test]
fn octets_count_once_and_retransmissions_each_time() {
    let mut path = Path::flight(true, 5);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(0, echo, &[(1, 10)]);
    assert_eq!(path.sent()[0], 0);
    let told = |path: &Path| path.wire.stack.statistics(path.wire.id).unwrap();
    let now = told(&path);
    assert_eq!((now.retransmissions, now.acknowledged), (1, 0));
    assert_eq!(now.smoothed_rtt, Some(RTT));
    assert!(now.ssthresh.is_some_and(|ssthresh| ssthresh < 10 * 1_380));
    assert_eq!(now.segment_size, 1_368);
    assert_eq!(now.send_queue, 15 * 1_368);
    path.wire.wait(RTT);
    let echo = path.echo;
    path.ack(10, echo, &[]);
    let now = told(&path);
    assert_eq!((now.acknowledged, now.send_queue), (10 * 1_368, 5 * 1_368));
    assert!(
        now.pacing_rate
            .is_some_and(|rate| rate > u64::from(now.cwnd))
    );
}

#[test]
fn both_ends_of_a_transfer_tell_the_same() {
    let mut pair = Pair::new(1, Link::default());
    let ids = pair.connect(true);
    pair.stacks[A]
        .send(pair.now, ids[A], &[7; 5 * MSS])
        .unwrap();
    pair.run_for(Duration::from_secs(1));
    let mut buffer = [0; 1_000];
    let received = pair.stacks[B].recv(pair.now, ids[B], &mut buffer);
    assert_eq!(received, Ok(Received::Bytes(1_000)));
    let [a, b] = [A, B].map(|side| pair.stacks[side].statistics(ids[side]).unwrap());
    assert_eq!((a.acknowledged, b.received), (5 * 1_380, 5 * 1_380));
    assert_eq!((a.in_flight, a.send_queue), (0, 0));
    assert_eq!(b.receive_queue, 5 * 1_380 - 1_000);
    assert_eq!((a.local, a.remote), (b.remote, b.local));
    let all: Vec<_> = pair.stacks[A].all_statistics().collect();
    assert_eq!(all, [a]);
}
