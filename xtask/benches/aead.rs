//! Sealing and opening through a device, against the AEAD alone on the same bytes.

use std::{
    hint::black_box,
    io::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use packet::ip;
use wireguard::{Device, HEADER, OVERHEAD, Prefix, Random, Received, Seal, StaticSecret, padded};

/// How many packets one measurement takes; the best of [`ROUNDS`] counts, for it was disturbed
/// least.
const PACKETS: u32 = 20_000;
const ROUNDS: u32 = 15;

fn main() {
    for length in [64, 576, 1_408] {
        let mut pair = Pair::new();
        let seal = pair.seal(length);
        let open = pair.open(length);
        print(&format!("seal {length}"), seal, raw_seal(length));
        print(&format!("open {length}"), open, raw_open(length));
    }
}

fn print(case: &str, ours: Duration, baseline: Duration) {
    let nanos = |duration: Duration| duration.as_secs_f64() * 1e9 / f64::from(PACKETS);
    let (ours, baseline) = (nanos(ours), nanos(baseline));
    writeln!(std::io::stdout(), "{case}\t{ours:.1}\t{baseline:.1}").expect("somebody reads");
}

/// Measures `run` until it was undisturbed once; `prepare` is not measured.
fn best<T>(mut prepare: impl FnMut() -> T, mut run: impl FnMut(T) -> T) -> Duration {
    let rounds = (0..ROUNDS).map(|_| {
        let value = prepare();
        let start = now();
        let value = run(value);
        let duration = now() - start;
        black_box(value);
        duration
    });
    rounds.min().expect("more than no round")
}

fn raw_seal(length: usize) -> Duration {
    let key = raw_key();
    best(
        || vec![0; padded(length)],
        |mut slot| {
            for counter in 0..PACKETS {
                let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut slot);
                black_box(tag.expect("short enough").as_ref()[0]);
            }
            slot
        },
    )
}

fn raw_open(length: usize) -> Duration {
    let key = raw_key();
    let prepare = || {
        let seal = |counter| {
            let mut datagram = vec![0; padded(length)];
            let sealed = key.seal_in_place_append_tag(nonce(counter), Aad::empty(), &mut datagram);
            sealed.expect("short enough");
            datagram
        };
        (0..PACKETS).map(seal).collect::<Vec<_>>()
    };
    best(prepare, |mut datagrams| {
        for (counter, datagram) in (0..).zip(&mut datagrams) {
            let opened = key.open_in_place(nonce(counter), Aad::empty(), datagram);
            black_box(opened.expect("sealed above").len());
        }
        datagrams
    })
}

fn raw_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes"))
}

fn nonce(counter: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

struct Pair {
    a: Device,
    b: Device,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = now();
        let secrets = [1, 2].map(|byte| StaticSecret::new([byte; 32]));
        let publics = secrets.each_ref().map(StaticSecret::public_key);
        let [a, b] = secrets;
        let device = |secret, peer, inner| {
            let random = Box::new(Counter(0));
            let mut device = Device::new(now, SystemTime::UNIX_EPOCH, random);
            device.set_private_key(now, Some(secret));
            let peer = device.add_peer(now, peer).expect("room for one peer");
            device.set_endpoint(peer, Some(ANYWHERE));
            device.allow(peer, Prefix::new(inner, 128).expect("128 bits fit"));
            device
        };
        let a = device(a, publics[1], address(2));
        let b = device(b, publics[0], address(1));
        let mut pair = Self { a, b, now };
        let staged = pair.a.seal(now, &mut slot(64), 64);
        assert!(matches!(staged, Seal::Staged { .. }));
        for _ in 0..3 {
            while let Some(mut transmit) = pair.a.poll_transmit() {
                pair.b
                    .handle_datagram(now, ANYWHERE, &mut transmit.datagram);
            }
            while let Some(mut transmit) = pair.b.poll_transmit() {
                pair.a
                    .handle_datagram(now, ANYWHERE, &mut transmit.datagram);
            }
        }
        pair
    }

    fn seal(&mut self, length: usize) -> Duration {
        let (device, now) = (&mut self.a, self.now);
        best(
            || slot(length),
            |mut packet| {
                for _ in 0..PACKETS {
                    // Sealing destroys the header that is routed by.
                    emit(&mut packet, length);
                    black_box(device.seal(now, &mut packet, length));
                }
                packet
            },
        )
    }

    fn open(&mut self, length: usize) -> Duration {
        let (a, b, now) = (&mut self.a, &mut self.b, self.now);
        let prepare = || {
            let seal = |_| {
                let mut packet = slot(length);
                let sealed = a.seal(now, &mut packet, length);
                let Seal::Sealed { length, .. } = sealed else {
                    panic!("the session is gone: {sealed:?}");
                };
                packet.truncate(length);
                packet
            };
            (0..PACKETS).map(seal).collect::<Vec<_>>()
        };
        best(prepare, |mut datagrams| {
            for datagram in &mut datagrams {
                let received = b.handle_datagram(now, ANYWHERE, datagram);
                assert!(matches!(received, Received::Packet { .. }));
            }
            datagrams
        })
    }
}

struct Counter(u8);

impl Random for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(5).wrapping_add(77);
            *byte = self.0;
        }
    }
}

const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

fn slot(length: usize) -> Vec<u8> {
    let mut slot = vec![0; OVERHEAD + padded(length)];
    emit(&mut slot, length);
    slot
}

fn emit(slot: &mut [u8], length: usize) {
    let header = ip::Header {
        source: address(1),
        destination: address(2),
        next_header: 59,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    ip::emit_header(&header, length - ip::V6_HEADER, &mut slot[HEADER..]);
}

fn address(last: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into()
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}
