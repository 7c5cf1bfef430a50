//! Ten thousand strangers begin handshakes with a gateway and never go on.

use std::{
    fs,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use wireguard::{Device, PublicKey, Random, StaticSecret};

use crate::world::{World, echoes, note, now, serve_echo, wait_for};

const STRANGERS: usize = 10_000;

/// Initiations in one go; a pause follows, so that the socket's buffer takes them all.
const BURST: usize = 50;

const PAUSE: Duration = Duration::from_millis(2);

/// Bytes of memory that the flood may cost, generously: 10,000 sessions would take more.
const GROWTH_MAX: u64 = 16 << 20;

#[test]
fn ten_thousand_half_open_handshakes_take_no_memory_and_keep_nobody_out() {
    let (world, _laptop) = World::with_laptop();
    let server = world.server.as_ref().expect("it runs").pid();
    let initiations = initiations(gateway_key(&world));
    let before = resident(server);
    let (all, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&world.wireguard, &initiations, &all, &done));
        let _shed = world.machine("shed", "echo", 7000, serve_echo());
        let (_forward, local) = world.forward("laptop", "shed", 7000);
        wait_for("a node that joined meanwhile", || echoes(local, b"x"));
        wait_for("all strangers", || all.load(Ordering::Relaxed));
        assert!(echoes(local, b"y"));
        let growth = resident(server).saturating_sub(before);
        done.store(true, Ordering::Relaxed);
        let answers = flood.join().expect("no panic");
        note(&format!("{growth} bytes more, {answers} answers"));
        assert!(growth <= GROWTH_MAX, "{growth} bytes");
        // Under load strangers get cookies: so they did arrive.
        assert!(answers > 0, "the flood did not reach the gateway");
    });
}

/// Sends the initiations again and again until `done`; returns how many answers came.
fn flood(to: &str, initiations: &[Vec<u8>], all: &AtomicBool, done: &AtomicBool) -> usize {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(to).expect("an address of loopback");
    socket.set_nonblocking(true).expect("a socket");
    let mut answers = 0;
    let mut buffer = [0; 2_048];
    loop {
        for burst in initiations.chunks(BURST) {
            if done.load(Ordering::Relaxed) {
                return answers;
            }
            for initiation in burst {
                // A full queue is as good as a sent datagram here.
                drop(socket.send(initiation));
            }
            while socket.recv(&mut buffer).is_ok() {
                answers += 1;
            }
            thread::sleep(PAUSE);
        }
        all.store(true, Ordering::Relaxed);
    }
}

/// Initiations of strangers whose mac1 is right.
fn initiations(gateway: PublicKey) -> Vec<Vec<u8>> {
    (0..STRANGERS).map(|_| initiation(gateway)).collect()
}

fn initiation(gateway: PublicKey) -> Vec<u8> {
    let at = now();
    let mut device = Device::new(at, os::clock::wall(), Box::new(SystemRandom));
    device.set_private_key(at, Some(StaticSecret::new(os::random::bytes())));
    let peer = device.add_peer(at, gateway).expect("a good key");
    device.set_endpoint(peer, Some(([192, 0, 2, 1], 1).into()));
    device.initiate(at, peer);
    device.poll_transmit().expect("an initiation").datagram
}

struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}

fn gateway_key(world: &World) -> PublicKey {
    let status = world.json("laptop", &["status"]);
    let key = &status["node"]["peers"][0]["public_key"];
    let key = key.as_str().unwrap_or_else(|| panic!("{status}"));
    let key: model::key::PublicKey = key.parse().expect("a key");
    PublicKey(key.0)
}

/// Returns the memory that a process really has, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    let kibibytes: u64 = kibibytes.and_then(|it| it.parse().ok()).expect("a number");
    kibibytes * 1024
}
