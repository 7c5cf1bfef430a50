//! A path that damages datagrams: cut off, prolonged, changed, joined with others of other sizes.
//!
//! ```text
//!   a tunnel, or nodes ── relay: copies that ── a tunnel, or the gateway
//!                         are no good, beside
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use os::{
    poll::{Interest, wait_for},
    udp::{Batch, Envelope, Options, Socket},
};

use super::{
    attachment::{At, Network},
    trouble::joined,
    world::{SHORT, Space, inner, outer, within},
};

/// Passes datagrams between those who call it and one address, as a NAT does.
struct Relay<'s> {
    space: &'s Space,
    front: Socket,
    to: SocketAddr,
}

impl<'s> Relay<'s> {
    fn new(space: &'s Space, at: SocketAddr, to: SocketAddr) -> Self {
        Self {
            space,
            front: bind(space, at),
            to,
        }
    }

    /// Passes every datagram on, each in a train with copies that are no good.
    fn run(&self, done: &AtomicBool) {
        let mut callers: Vec<(SocketAddr, Socket)> = Vec::new();
        let mut batch = Batch::default();
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            wait_for(self.front.as_fd(), Interest::READ, Duration::from_millis(1)).expect("ours");
            if self.front.recv_batch(&mut batch).is_ok() {
                for datagram in batch.datagrams() {
                    let known = callers.iter().position(|(at, _)| *at == datagram.source);
                    let place = known.unwrap_or_else(|| {
                        let any = (Ipv4Addr::UNSPECIFIED, 0).into();
                        callers.push((datagram.source, bind(self.space, any)));
                        callers.len() - 1
                    });
                    pass(&callers[place].1, self.to, datagram.bytes, &mut round);
                }
            }
            for (caller, socket) in &callers {
                if socket.recv_batch(&mut batch).is_ok() {
                    for datagram in batch.datagrams() {
                        pass(&self.front, *caller, datagram.bytes, &mut round);
                    }
                }
            }
        }
    }
}

fn bind(space: &Space, at: SocketAddr) -> Socket {
    let options = Options {
        buffer_bytes: 4 << 20,
        ..Options::default()
    };
    let bound = space.enter(|| Socket::bind(at, &options));
    bound.expect("a free port")
}

fn pass(by: &Socket, to: SocketAddr, datagram: &[u8], round: &mut usize) {
    *round += 1;
    for train in trains(datagram, *round) {
        let segment = train[0].len();
        let bytes = train.concat();
        by.send_run(&Envelope::to(to), &bytes, segment)
            .expect("room");
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

/// Sends datagrams there and back while `relay` runs, the largest of `full` bytes; all arrive.
fn all_arrive(relay: &Relay<'_>, [here, there]: [&Space; 2], [from, to]: [IpAddr; 2], full: usize) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| relay.run(&done));
        let _end = SetOnDrop(&done);
        within(SHORT, "the first ping", || here.ping(to, 1) == 1);
        assert_eq!(here.ping(to, 2), 2);
        let bind = |space: &Space, address| space.enter(move || UdpSocket::bind((address, 0)));
        let echo = bind(there, to).expect("inner address is there");
        let socket = bind(here, from).expect("inner address is there");
        let mut buffer = [0; 2048];
        for one in [&echo, &socket] {
            one.set_read_timeout(Some(SHORT)).expect("a bound");
        }
        let to_echo = echo.local_addr().expect("bound");
        for round in 0..400_usize {
            // Several at once, of equal and of other sizes, so that the kernel joins them.
            let sizes = [full, full, full, round % full, full, 700, 700, 1];
            for (number, size) in sizes.into_iter().enumerate() {
                let bytes = vec![round.to_le_bytes()[number % 2]; size];
                socket.send_to(&bytes, to_echo).expect("room");
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
        here.transfer(there, to, 1_000_000);
    });
}

#[test]
fn damaged_copies_of_every_datagram_change_nothing() {
    let Some((world, [one, other])) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let to = (outer(1, false), 51820).into();
    let relay = Relay::new(here, (Ipv4Addr::LOCALHOST, 0).into(), to);
    let endpoint = relay.front.local_address().to_string();
    one.set(&["peer", &other.public_key, "endpoint", &endpoint]);
    let addresses = [inner(0, false), inner(1, false)];
    all_arrive(&relay, [here, there], addresses, 1392);
    assert_eq!(one.show_peer("endpoints"), endpoint);
}

#[test]
fn damaged_copies_of_every_datagram_change_nothing_between_nodes_and_a_gateway() {
    // Nodes are told to call the relay.
    let at = SocketAddr::from((outer(1, false), 51_830));
    let public = at.to_string();
    let network = Network::with(|server| {
        server.args(["--endpoint", &public]);
    });
    let Some(network) = network else { return };
    let to = (outer(1, false), 51_820).into();
    let relay = Relay::new(network.space(At::Server), at, to);
    let _alpha = network.start(At::Alpha, &["up"], "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up"], "ready on ginnel0");
    let spaces = [At::Alpha, At::Beta].map(|at| network.space(at));
    let addresses = ["alpha", "beta"].map(|name| network.address(name));
    all_arrive(&relay, spaces, addresses, 1_200);
}
