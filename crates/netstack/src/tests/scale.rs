//! Many connections: what an event costs, what an idle connection holds, and where bounds are.

use std::{net::SocketAddr, time::Duration};

use super::pair::{A, B, Link, Pair, address};
use crate::{
    CloseReason, ConnectError, ConnectionId, Event, Limits, ListenError, Received, RecvError,
    SendError, State,
};

fn open(pair: &mut Pair, count: usize) -> Vec<[ConnectionId; 2]> {
    let (listener, remote) = pair.listen(true);
    let mut open = Vec::new();
    while open.len() < count {
        let now = pair.now;
        let mut actives: Vec<_> = (0..500)
            .map(|_| pair.stacks[A].connect(now, remote).unwrap())
            .collect();
        pair.run_for(Duration::from_millis(100));
        // Accepted in the order in which they came.
        while let Some(passive) = pair.stacks[B].accept(listener) {
            open.push([actives.remove(0), passive]);
        }
    }
    open
}

#[test]
fn ten_thousand_idle_connections_cost_an_active_one_nothing() {
    let cost = |idle: usize| {
        let mut pair = Pair::new(1, Link::default());
        let ids = open(&mut pair, idle.max(1));
        pair.run_for(Duration::from_secs(2));
        assert!(pair.is_silent(), "idle connections hold no timer");
        assert_eq!(
            pair.stacks[A].memory_bytes() + pair.stacks[B].memory_bytes(),
            0
        );
        let before = pair.stacks[A].operations() + pair.stacks[B].operations();
        let [a, b] = ids[0];
        let mut received = 0;
        for _ in 0..100 {
            pair.stacks[A].send(pair.now, a, &[7; 10_000]).unwrap();
            pair.run_for(Duration::from_millis(100));
            while let Received::Bytes(length) =
                pair.stacks[B].recv(pair.now, b, &mut [0; 10_000]).unwrap()
            {
                received += length;
            }
        }
        assert_eq!(received, 1_000_000);
        pair.stacks[A].operations() + pair.stacks[B].operations() - before
    };
    let alone = cost(1);
    let crowded = cost(10_000);
    assert!(
        crowded <= alone + alone / 10,
        "{crowded} operations beside 10,000, {alone} alone"
    );
}

#[test]
fn a_connection_is_small() {
    let size = size_of::<crate::tcp::connection::Connection>();
    // With everything around it 1,024: see `tests/idle.rs`.
    assert!(size <= 832, "{size}");
}

#[test]
fn a_stale_id_is_an_error_and_never_another_connection() {
    let mut pair = Pair::new(1, Link::default());
    let ids = pair.connect(true);
    pair.stacks[A].abort(pair.now, ids[A]);
    pair.stacks[A].release(pair.now, ids[A]);
    pair.run_for(Duration::from_secs(1));
    let remote = SocketAddr::new(address(B, true), 80);
    let next = pair.stacks[A].connect(pair.now, remote).unwrap();
    assert_ne!(next, ids[A]);
    let now = pair.now;
    let stack = &mut pair.stacks[A];
    assert_eq!(stack.send(now, ids[A], b"x"), Err(SendError::Stale));
    assert_eq!(stack.recv(now, ids[A], &mut [0]), Err(RecvError::Stale));
    assert_eq!((stack.state(ids[A]), stack.local(ids[A])), (None, None));
    stack.abort(now, ids[A]);
    stack.release(now, ids[A]);
    assert_eq!(stack.state(next), Some(State::SynSent));
    // The peer was reset.
    let closed = Event::Closed(ids[B], CloseReason::Reset);
    assert!(pair.events(B).contains(&closed));
}

#[test]
fn tables_are_bounded() {
    let limits = Limits {
        connections_max: 10,
        listeners_max: 1,
        ..Limits::default()
    };
    let mut pair = Pair::with_limits(1, Link::default(), limits);
    let (_, remote) = pair.listen(true);
    let local = SocketAddr::new(address(B, true), 81);
    assert_eq!(pair.stacks[B].listen(local, 1), Err(ListenError::TooMany));
    for _ in 0..10 {
        pair.stacks[A].connect(pair.now, remote).unwrap();
    }
    assert_eq!(
        pair.stacks[A].connect(pair.now, remote),
        Err(ConnectError::TooMany)
    );
}

#[test]
fn time_wait_makes_room_for_new_connections() {
    let limits = Limits {
        connections_max: 10,
        time_wait_max: 5,
        ..Limits::default()
    };
    let mut pair = Pair::with_limits(1, Link::default(), limits);
    let (listener, remote) = pair.listen(true);
    for _ in 0..100 {
        let a = pair.stacks[A].connect(pair.now, remote).unwrap();
        pair.run_for(Duration::from_millis(100));
        let b = pair.stacks[B].accept(listener).unwrap();
        pair.stacks[A].release(pair.now, a);
        pair.stacks[B].release(pair.now, b);
        pair.run_for(Duration::from_millis(200));
        assert!(pair.stacks[A].connections() <= 5);
    }
}

#[test]
fn a_backlog_that_nobody_empties_refuses_more() {
    let mut pair = Pair::new(1, Link::default());
    let local = SocketAddr::new(address(B, true), 80);
    let listener = pair.stacks[B].listen(local, 3).unwrap();
    for _ in 0..10 {
        pair.stacks[A].connect(pair.now, local).unwrap();
        pair.run_for(Duration::from_millis(50));
    }
    assert_eq!(pair.discards.get(&crate::Discard::TcpBacklogFull), Some(&7));
    assert_eq!(pair.events(B), [Event::Accepted(listener)]);
    // A listener that goes takes along what waits.
    pair.stacks[B].release_listener(pair.now, listener);
    pair.run_for(Duration::from_millis(50));
    assert_eq!(pair.stacks[B].connections(), 0);
}

#[test]
fn at_the_memory_budget_windows_close_and_everything_still_arrives() {
    let limits = Limits {
        memory_bytes_max: 64 << 10,
        ..Limits::default()
    };
    let mut pair = Pair::with_limits(1, Link::default(), limits);
    let ids = open(&mut pair, 10);
    let mut sent = vec![0; ids.len()];
    let mut received = vec![0; ids.len()];
    for round in 0..4_000 {
        for (index, [a, b]) in ids.iter().enumerate() {
            let want = 50_000 - sent[index];
            sent[index] += pair.stacks[A].send(pair.now, *a, &vec![1; want]).unwrap();
            // Nobody reads at first.
            if round > 300
                && let Received::Bytes(length) =
                    pair.stacks[B].recv(pair.now, *b, &mut [0; 2_000]).unwrap()
            {
                received[index] += length;
            }
        }
        pair.run_for(Duration::from_millis(20));
        let held = pair.stacks[B].memory_bytes();
        assert!(held <= (64 << 10) + ids.len() * 3 * 4_096, "{held}");
        if received.iter().all(|&length| length == 50_000) {
            return;
        }
    }
    panic!("stalled: {sent:?} {received:?}");
}

#[test]
fn a_peer_that_vanishes_ends_the_connection() {
    let mut pair = Pair::new(1, Link::default());
    let ids = pair.connect(true);
    pair.link.loss = 1_000;
    pair.stacks[A].send(pair.now, ids[A], b"hello?").unwrap();
    pair.run_for(Duration::from_secs(121));
    let reason = pair.stacks[A].close_reason(ids[A]);
    assert_eq!(reason, Some(CloseReason::TimedOut));
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.stacks[A].poll_timeout(), None);
}
