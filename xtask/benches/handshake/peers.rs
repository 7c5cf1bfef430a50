//! Peers by number: their keys, addresses and first messages.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use wireguard::{Device, Prefix, PublicKey, Random, StaticSecret};

/// A generator for benches: fast, and never the same twice (SplitMix64).
pub(crate) struct Splitmix(pub(crate) u64);

impl Random for Splitmix {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The private key of the responder.
pub(crate) const RESPONDER: [u8; 32] = [0x77; 32];

/// The private key of an initiator.
pub(crate) fn secret(number: u32) -> StaticSecret {
    let mut bytes = [0x42; 32];
    Splitmix(u64::from(number)).fill(&mut bytes);
    StaticSecret::new(bytes)
}

/// A public key that nobody has the secret of; keys of real peers are as scattered.
pub(crate) fn idle_key(number: u32) -> PublicKey {
    let mut bytes = [0; 32];
    Splitmix(u64::from(number) | 1 << 40).fill(&mut bytes);
    PublicKey(bytes)
}

/// The one address that a peer may use.
pub(crate) fn inner(number: u32) -> Prefix {
    let bits = (0xfd01 << 112) | u128::from(number);
    Prefix::host(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// Makes a device without peers.
pub(crate) fn device(now: Instant, secret: StaticSecret, seed: u64) -> Device {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut device = Device::new(now, wall, Box::new(Splitmix(seed)));
    device.set_private_key(now, Some(secret));
    device
}

/// Writes the initiation of one initiator to the responder.
pub(crate) fn initiation(now: Instant, number: u32, to: SocketAddr) -> Vec<u8> {
    let mut device = device(now, secret(number), u64::from(number) | 1 << 50);
    let key = StaticSecret::new(RESPONDER).public_key();
    let peer = device.add_peer(now, key).expect("room for one peer");
    device.set_endpoint(peer, Some(to));
    device.initiate(now, peer);
    device
        .poll_transmit()
        .expect("an initiation to a peer with an endpoint")
        .datagram
}

/// Reads the clock.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
