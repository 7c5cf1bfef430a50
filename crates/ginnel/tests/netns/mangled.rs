//! A path that damages datagrams: cut off, prolonged, changed, joined with others of other sizes.
//!
//! ```text
//!   space 0                                    space 1
//!   tunnel ── lo ── relay: copies that ─veth── tunnel
//!                   are no good, beside
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use os::{
    poll::{Interest, wait_for},
    udp::{Batch, Envelope, Options, Socket},
};

use super::{
    trouble::joined,
    world::{SHORT, Space, inner, outer},
};

/// A sender's side and a receiver's side of the relay.
struct Relay {
    inward: Socket,
    outward: Socket,
}

impl Relay {
    fn inside(space: &Space) -> Self {
        let options = Options {
            buffer_bytes: 4 << 20,
            ..Options::default()
        };
        let bind = |address: Ipv4Addr| {
            let bound = space.enter(|| Socket::bind((address, 0).into(), &options));
            bound.expect("a free port")
        };
        Self {
            inward: bind(Ipv4Addr::LOCALHOST),
            outward: bind(Ipv4Addr::UNSPECIFIED),
        }
    }

    /// Passes every datagram on, each in a train with copies that are no good.
    fn run(&self, done: &AtomicBool) {
        let here: SocketAddr = (Ipv4Addr::LOCALHOST, 51820).into();
        let there: SocketAddr = (outer(1, false), 51820).into();
        let mut batch = Batch::default();
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            for (from, by, to) in [
                (&self.inward, &self.outward, there),
                (&self.outward, &self.inward, here),
            ] {
                wait_for(from.as_fd(), Interest::READ, Duration::from_millis(1)).expect("ours");
                if from.recv_batch(&mut batch).is_err() {
                    continue;
                }
                for datagram in batch.datagrams() {
                    round += 1;
                    for train in trains(datagram.bytes, round) {
                        let segment = train[0].len();
                        let bytes = train.concat();
                        by.send_run(&Envelope::to(to), &bytes, segment)
                            .expect("room");
                    }
                }
            }
        }
    }
}

/// What is sent instead of `datagram`: itself once, and others around it. The datagrams of a train
/// have one length, and the last may be shorter.
fn trains(datagram: &[u8], round: usize) -> Vec<Vec<Vec<u8>>> {
    let length = datagram.len();
    let good = datagram.to_vec();
    let cut = datagram[..[0, 1, 15, 16, 31, 32, length / 2, length - 1][round % 8]].to_vec();
    let long = [datagram, &[0; 16][..1 + round % 16]].concat();
    let changed = |at: usize| {
        let mut copy = good.clone();
        copy[at] ^= 1;
        copy
    };
    let tag = changed(length - 1);
    let reserved = changed(1);
    let index = changed(4 + round % 4);
    match round % 4 {
        0 => vec![vec![tag, good, cut]],
        1 => vec![vec![reserved, index, good]],
        2 => vec![vec![long, good], vec![cut]],
        _ => vec![vec![cut], vec![tag.clone(), good, tag]],
    }
    .into_iter()
    .map(|train: Vec<Vec<u8>>| train.into_iter().filter(|one| !one.is_empty()).collect())
    .filter(|train: &Vec<Vec<u8>>| !train.is_empty())
    .collect()
}

/// Ends the relay whatever happens, or its scope never ends.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn damaged_copies_of_every_datagram_change_nothing() {
    let Some((world, [one, other])) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let relay = Relay::inside(here);
    let endpoint = relay.inward.local_address().to_string();
    one.set(&["peer", &other.public_key, "endpoint", &endpoint]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| relay.run(&done));
        let _end = SetOnDrop(&done);
        assert_eq!(here.ping(inner(1, false), 2), 2);
        let echo = there.enter(|| UdpSocket::bind((inner(1, false), 0)));
        let echo = echo.expect("inner address is there");
        let socket = here.enter(|| UdpSocket::bind((inner(0, false), 0)));
        let socket = socket.expect("inner address is there");
        let mut buffer = [0; 2048];
        for one in [&echo, &socket] {
            one.set_read_timeout(Some(SHORT)).expect("a bound");
        }
        let to = echo.local_addr().expect("bound");
        for round in 0..400_usize {
            // Several at once, of equal and of other sizes, so that the kernel joins them.
            let sizes = [1392, 1392, 1392, round % 1392, 1392, 700, 700, 1];
            for (number, size) in sizes.into_iter().enumerate() {
                let bytes = vec![round.to_le_bytes()[number % 2]; size];
                socket.send_to(&bytes, to).expect("room");
            }
            for (number, size) in sizes.into_iter().enumerate() {
                let (length, from) = echo.recv_from(&mut buffer).expect("all arrive, in order");
                let expected = vec![round.to_le_bytes()[number % 2]; size];
                assert!(buffer[..length] == expected, "round {round}, {length}");
                echo.send_to(&buffer[..length], from).expect("room");
            }
            for size in sizes {
                assert_eq!(socket.recv(&mut buffer).expect("all come back"), size);
            }
        }
        here.transfer(there, inner(1, true), 1_000_000);
    });
    assert_eq!(one.show_peer("endpoints"), endpoint);
}
