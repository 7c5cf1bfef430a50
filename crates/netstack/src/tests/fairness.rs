//! One greedy peer beside an honest one: memory and connections are shared by peer.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::pair::{A, B, Link, Pair, address, config};
use crate::{Config, ConnectError, ConnectionId, Limits, Prefix, Received};

/// What stack A has beside its own addresses, to be a second peer of B.
fn honest() -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 77).into()
}

/// Stack A as two peers: by the first address until `honest` becomes the only one.
struct Crowd {
    pair: Pair,
    listener: crate::ListenerId,
    remote: SocketAddr,
}

impl Crowd {
    fn new(limits: Limits) -> Self {
        // Only B is short of something.
        let b = Config {
            limits,
            ..config(B, 1)
        };
        let mut pair = Pair::with_configs(1, Link::default(), [config(A, 1), b]);
        let (listener, remote) = pair.listen(false);
        Self {
            pair,
            listener,
            remote,
        }
    }

    /// Connects from `source`, which stack A takes as its own; `None` when nobody answers.
    fn connect(&mut self, source: IpAddr) -> Option<[ConnectionId; 2]> {
        let now = self.pair.now;
        self.pair.stacks[A].set_addresses(&[source]);
        let a = self.pair.stacks[A].connect(now, self.remote).unwrap();
        self.pair.stacks[A].set_addresses(&[address(A, false), honest()]);
        self.pair.run_for(Duration::from_millis(50));
        let b = self.pair.stacks[B].accept(self.listener)?;
        Some([a, b])
    }
}

#[test]
fn a_peer_that_fills_its_share_of_memory_slows_no_other() {
    let limits = Limits {
        memory_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let mut crowd = Crowd::new(limits);
    // Nobody reads what the greedy peer sends by 100 connections.
    for _ in 0..100 {
        let [a, _] = crowd.connect(address(A, false)).unwrap();
        let now = crowd.pair.now;
        crowd.pair.stacks[A].send(now, a, &[1; 100_000]).unwrap();
    }
    crowd.pair.run_for(Duration::from_secs(5));
    let greedy = crowd.pair.stacks[B].memory_bytes();
    let floors = 100 * 2 * 4_096;
    assert!(greedy > 400 << 10, "{greedy}: the test shall be a test");
    assert!(greedy <= (512 << 10) + floors, "{greedy}");
    let [a, b] = crowd.connect(honest()).unwrap();
    let (mut sent, mut received) = (0, 0);
    let began = crowd.pair.now;
    while received < 2_000_000 {
        let now = crowd.pair.now;
        sent += crowd.pair.stacks[A]
            .send(now, a, &vec![2; (2_000_000 - sent).min(1 << 17)])
            .unwrap();
        crowd.pair.run_for(Duration::from_millis(10));
        let now = crowd.pair.now;
        while let Received::Bytes(length) =
            crowd.pair.stacks[B].recv(now, b, &mut [0; 65_536]).unwrap()
        {
            received += length;
        }
        // At 4 KiB for each round trip of 20 ms it would be ten seconds.
        assert!(now - began < Duration::from_secs(5), "{received}");
    }
}

#[test]
fn a_peer_cannot_take_all_connections() {
    let limits = Limits {
        connections_max: 40,
        ..Limits::default()
    };
    for shares in [false, true] {
        let mut crowd = Crowd::new(limits);
        let prefix = Prefix::new(honest(), 24).unwrap();
        if shares {
            crowd.pair.stacks[B].set_accounts(&[(prefix, 5)]);
        }
        let mut open = 0;
        while crowd.connect(address(A, false)).is_some() {
            open += 1;
        }
        assert_eq!(open, 20, "half of all");
        // Two addresses of one peer share its account.
        assert_eq!(crowd.connect(honest()).is_none(), shares);
        // Our own connections are nobody's greed.
        let now = crowd.pair.now;
        let elsewhere = SocketAddr::new(address(A, false), 9);
        let mut own = 0;
        let refused = loop {
            match crowd.pair.stacks[B].connect(now, elsewhere) {
                Ok(_) => own += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, ConnectError::TooMany);
        assert_eq!(own, if shares { 20 } else { 19 });
    }
}
