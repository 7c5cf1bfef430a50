//! Cookie replies under a flood of initiations from strangers (whitepaper section 5.3).

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use os::udp::{Batch, Envelope, Options, Socket};
use wireguard::{Device, Random, StaticSecret};

use super::{
    pair::Pair,
    world::{LONG, Program, inner, now, outer, wg_line, within},
};

pub(crate) struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}

/// While space `victim` is flooded, the other side still shakes hands with it, by a cookie.
pub(crate) fn a_peer_comes_through(program: Program, victim: usize) {
    let Some(pair) = Pair::with(program, None, false) else {
        return;
    };
    let victim_key = [&pair.ours, &pair.theirs][victim].public_key.clone();
    let initiations: Vec<_> = (0..STRANGERS).map(|_| initiation(&victim_key)).collect();
    let to = SocketAddr::from((outer(victim, false), 51820));
    let from = outer(1 - victim, false);
    let flooder = &pair.world.spaces[1 - victim];
    let socket = flooder.enter(|| Socket::bind((from, 0).into(), &Options::default()));
    let socket = socket.expect("a free port");
    let done = AtomicBool::new(false);
    let cookies = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| flood(&socket, to, &initiations, &done, &cookies));
        // Whatever happens, the flood must end, or the scope never does.
        let _end = SetOnDrop(&done);
        within(LONG, "a stranger got a cookie", || {
            cookies.load(Ordering::Relaxed) > 0
        });
        within(LONG, "the peer comes through", || {
            flooder.ping(inner(victim, false), 1) == 1
        });
    });
    assert!(pair.ours.latest_handshake() > 0);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn flood(
    socket: &Socket,
    to: SocketAddr,
    initiations: &[Vec<u8>],
    done: &AtomicBool,
    cookies: &AtomicU32,
) {
    let mut batch = Batch::default();
    let all = initiations.concat();
    while !done.load(Ordering::Relaxed) {
        for run in all.chunks(64 * wireguard::INITIATION) {
            // A full queue is as good as a sent datagram here.
            socket
                .send_run(&Envelope::to(to), run, wireguard::INITIATION)
                .ok();
        }
        while socket.recv_batch(&mut batch).is_ok() {
            let replies = batch
                .datagrams()
                .filter(|datagram| datagram.bytes.len() == wireguard::COOKIE_REPLY)
                .count();
            cookies.fetch_add(u32::try_from(replies).expect("few"), Ordering::Relaxed);
        }
        thread::sleep(PAUSE);
    }
}

/// Makes an initiation of a stranger, whose mac1 is right.
fn initiation(public_key: &str) -> Vec<u8> {
    let secret = StaticSecret::new(os::random::bytes());
    let mut device = Device::new(now(), os::clock::wall(), Box::new(SystemRandom));
    let at = now();
    device.set_private_key(at, Some(secret));
    let key = base64_key(public_key);
    let peer = device
        .add_peer(at, wireguard::PublicKey(key))
        .expect("a good key");
    device.set_endpoint(peer, Some(([192, 0, 2, 1], 1).into()));
    device.initiate(at, peer);
    device.poll_transmit().expect("an initiation").datagram
}

fn base64_key(text: &str) -> [u8; 32] {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    bytes.expect("wg prints keys").try_into().expect("32 bytes")
}

/// More than wireguard-go's queue (1,024) and than our load limit.
const STRANGERS: usize = 2048;
/// Leaves the machine some time for the handshake itself.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

#[test]
fn an_initiation_of_a_stranger_has_its_length() {
    if super::world::find("wg").is_none() {
        return super::world::lacks("INTEROP", "`wg` is not installed");
    }
    let key = wg_line(&["pubkey"], &wg_line(&["genkey"], ""));
    assert_eq!(initiation(&key).len(), wireguard::INITIATION);
}
