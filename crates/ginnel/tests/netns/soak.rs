//! A gateway's long day: peers come, go, roam, flap and shake hands beside one that is left alone.
//!
//! ```text
//!   space 0            space 1               apart
//!   steady ────veth─── hub ──────────veth─── restless
//!   10.88.0.1          10.88.0.2             10.88.0.3
//! ```
//! `SOAK_SECONDS` (default 60) is how long; a session is renewed after 120 s, so only longer runs
//! see the steady peer's own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use os::{
    poll::{Interest, wait_for},
    udp::{Batch, Envelope, Options, Socket},
};

use super::{
    trouble::joined,
    world::{Apart, LONG, Program, SHORT, Space, Tunnel, inner, now, socket_path, unique, within},
};

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    resident_kib: u64,
    peak_kib: u64,
    threads: u64,
    descriptors: usize,
}

impl Held {
    fn by(tunnel: &Tunnel) -> Self {
        let process = format!("/proc/{}", tunnel.child.id());
        let status = fs::read_to_string(format!("{process}/status")).expect("it lives");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).expect("a number")
        };
        let descriptors = fs::read_dir(format!("{process}/fd")).expect("we may");
        Self {
            resident_kib: number("VmRSS:"),
            peak_kib: number("VmHWM:"),
            threads: number("Threads:"),
            descriptors: descriptors.count(),
        }
    }

    #[track_caller]
    fn assert_no_more_than(self, before: Self) {
        let (now, grown) = (self, before.resident_kib + GROWTH_KIB_MAX);
        assert!(now.resident_kib <= grown, "{before:?}, then {now:?}");
        assert!(now.peak_kib <= PEAK_KIB_MAX, "{now:?}");
        assert_eq!(now.threads, before.threads);
        assert_eq!(now.descriptors, before.descriptors);
    }
}

/// Sends numbered datagrams to an echo at the hub and counts those that come back.
fn lost_of_steady([here, there]: &[Space; 2], seconds: u64) -> (u32, u32) {
    let options = Options {
        buffer_bytes: 4 << 20,
        ..Options::default()
    };
    let bind = |space: &Space, address: IpAddr| {
        let bound = space.enter(|| Socket::bind((address, 0).into(), &options));
        bound.expect("our address")
    };
    let echo = bind(there, inner(1, false));
    let socket = bind(here, inner(0, false));
    let to = echo.local_address();
    let (done, back) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let each = |from: SocketAddr, bytes: &[u8]| {
                echo.send(&Envelope::to(from), bytes).expect("room");
            };
            receive(&echo, &done, each);
        });
        scope.spawn(|| {
            let mut next = 0;
            receive(&socket, &done, |_, bytes| {
                let number = u32::from_le_bytes(*bytes.first_chunk().expect("ours"));
                assert!(number >= next, "{number} came after {next}");
                next = number + 1;
                back.fetch_add(1, Ordering::Relaxed);
            });
        });
        let end = now() + Duration::from_secs(seconds);
        let mut sent = 0_u32;
        while now() < end {
            let mut bytes = vec![7; [20, 200, 1392][usize::try_from(sent % 3).expect("small")]];
            bytes[..4].copy_from_slice(&sent.to_le_bytes());
            socket.send(&Envelope::to(to), &bytes).expect("room");
            sent += 1;
            thread::sleep(Duration::from_millis(4));
        }
        let patience = now() + SHORT;
        while back.load(Ordering::Relaxed) < sent && now() < patience {
            thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        (sent, back.load(Ordering::Relaxed))
    })
}

fn receive(socket: &Socket, done: &AtomicBool, mut each: impl FnMut(SocketAddr, &[u8])) {
    let mut batch = Batch::default();
    while !done.load(Ordering::Relaxed) {
        wait_for(socket.as_fd(), Interest::READ, Duration::from_millis(50)).expect("ours");
        if socket.recv_batch(&mut batch).is_ok() {
            for datagram in batch.datagrams() {
                each(datagram.source, datagram.bytes);
            }
        }
    }
}

/// Adds a hundred peers a second and removes each a second later; returns how many.
fn churn(hub: &Tunnel, done: &AtomicBool) -> u32 {
    let mut client = UnixStream::connect(socket_path(&hub.interface)).expect("it listens");
    let mut reader = BufReader::new(client.try_clone().expect("a second handle"));
    let mut count = 0_u32;
    let key = |number: u32| {
        let digits: String = number
            .to_be_bytes()
            .map(|byte| format!("{byte:02x}"))
            .concat();
        format!("public_key={digits}{}", "5a".repeat(28))
    };
    while !done.load(Ordering::Relaxed) {
        let [_, b, c, d] = count.to_be_bytes();
        let mut request = format!(
            "set=1\n{}\nallowed_ip=10.{}.{c}.{d}/32\nallowed_ip=fd77::{c:x}:{d:x}/128\n",
            key(count),
            100 + b % 100
        );
        // Some call: one that answers nothing, one that is not there, one at no route.
        let endpoints = ["10.99.0.1:9", "10.99.0.200:9", "203.0.113.1:9"];
        if let Some(endpoint) = endpoints.get(usize::try_from(count % 8).expect("small")) {
            request += &format!("endpoint={endpoint}\npersistent_keepalive_interval=1\n");
        }
        if let Some(old) = count.checked_sub(100) {
            request += &format!("{}\nremove=true\n", key(old));
        }
        client.write_all(request.as_bytes()).expect("it reads");
        client.write_all(b"\n").expect("it reads");
        let mut answer = String::new();
        while !answer.ends_with("\n\n") {
            assert!(reader.read_line(&mut answer).expect("it answers") > 0);
        }
        assert_eq!(answer, "errno=0\n\n");
        count += 1;
        thread::sleep(Duration::from_millis(9));
    }
    count
}

/// A peer of the hub that is never at rest.
struct Restless<'a> {
    space: &'a Space,
    link: String,
    tunnel: Tunnel,
    hub: &'a Tunnel,
}

impl<'a> Restless<'a> {
    fn beside(hub: &'a Tunnel, hub_space: &Space, space: &'a Space) -> Option<Self> {
        let (link, other) = (unique("w"), unique("w"));
        hub_space.ip(&[
            "link",
            "add",
            &other,
            "type",
            "veth",
            "peer",
            "name",
            &link,
            "netns",
            &space.name,
        ]);
        hub_space.add_address(&other, [10, 98, 0, 2].into());
        hub_space.ip(&["link", "set", &other, "up"]);
        space.ip(&["link", "set", &link, "up"]);
        space.add_address(&link, ADDRESSES[0].into());
        let tunnel = Tunnel::start(space, Program::Ginnel)?;
        let key = super::world::file_with(&tunnel.private_key);
        tunnel.set(&["private-key", &key]);
        space.add_address(&tunnel.interface, INNER.into());
        space.ip(&["link", "set", &tunnel.interface, "up"]);
        let allowed = IpAddr::from(INNER).to_string();
        hub.set(&["peer", &tunnel.public_key, "allowed-ips", &allowed]);
        let restless = Self {
            space,
            link,
            tunnel,
            hub,
        };
        restless.meet();
        Some(restless)
    }

    /// Begins anew with the hub, which costs a handshake.
    fn meet(&self) {
        let hub = &self.hub.public_key;
        self.tunnel.set(&["peer", hub, "remove"]);
        let allowed = inner(1, false).to_string();
        self.tunnel.set(&[
            "peer",
            hub,
            "endpoint",
            "10.98.0.2:51820",
            "allowed-ips",
            &allowed,
        ]);
    }

    fn ping(&self) -> bool {
        self.space.ping(inner(1, false), 1) == 1
    }

    /// One trouble after the other; returns how many handshakes the hub had with it.
    fn run(&self, done: &AtomicBool) -> u32 {
        let mut handshakes = 0;
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            round += 1;
            // The kernel removes secondary addresses with their primary one, so first the old goes.
            self.space.ip(&["address", "flush", "dev", &self.link]);
            self.space
                .add_address(&self.link, ADDRESSES[round % 2].into());
            self.ping();
            for interface in [&self.link, &self.tunnel.interface] {
                self.space.ip(&["link", "set", interface, "down"]);
                self.ping();
                self.space.ip(&["link", "set", interface, "up"]);
            }
            self.tunnel.set(&["listen-port", "0"]);
            self.meet();
            within(LONG, "the restless peer is heard again", || self.ping());
            handshakes += 1;
        }
        handshakes
    }
}

#[test]
fn a_peer_that_is_left_alone_loses_no_packet_beside_those_that_are_not() {
    let seconds = std::env::var("SOAK_SECONDS")
        .map_or(60, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let Some((world, [steady, hub])) = joined() else {
        return;
    };
    let Apart(space) = &Apart::new();
    let Some(restless) = Restless::beside(&hub, &world.spaces[1], space) else {
        return;
    };
    within(LONG, "the restless peer is heard", || restless.ping());
    let first = steady.latest_handshake();
    let done = AtomicBool::new(false);
    let (sent, back, churned, handshakes) = thread::scope(|scope| {
        let _end = SetOnDrop(&done);
        let churning = scope.spawn(|| churn(&hub, &done));
        let moving = scope.spawn(|| restless.run(&done));
        // What is allocated once is by then.
        lost_of_steady(&world.spaces, seconds.min(10));
        let before = [Held::by(&hub), Held::by(&steady)];
        let (sent, back) = lost_of_steady(&world.spaces, seconds);
        let after = [Held::by(&hub), Held::by(&steady)];
        done.store(true, Ordering::Relaxed);
        let churned = churning.join().expect("no panic");
        let handshakes = moving.join().expect("no panic");
        println!("held before and after: {before:?} {after:?}");
        after[0].assert_no_more_than(before[0]);
        after[1].assert_no_more_than(before[1]);
        (sent, back, churned, handshakes)
    });
    println!("{sent} sent, {back} back, {churned} peers churned, {handshakes} handshakes");
    assert_eq!(back, sent, "no packet of an untouched peer is lost");
    assert!(churned > 0 && handshakes > 0);
    if seconds > 150 {
        let renewed = steady.latest_handshake();
        assert!(renewed > first, "the steady peer's session was renewed");
    }
}

/// Whatever happens, the troubles must end, or their scope never does.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const INNER: [u8; 4] = [10, 88, 0, 3];
/// Between which the restless peer roams.
const ADDRESSES: [[u8; 4]; 2] = [[10, 98, 0, 1], [10, 98, 0, 77]];
/// What may be held once more by allocators.
const GROWTH_KIB_MAX: u64 = 4 * 1024;
/// The goal for a loaded tunnel.
const PEAK_KIB_MAX: u64 = 40 * 1024;
