//! What the protocol adds to the cipher for each packet, in instructions that valgrind counts.
//!
//! Both sides run in one process and so by the same code of the cipher, which valgrind's processor
//! without AVX-512 chooses. Counts of two lengths are subtracted, so that only packets count.

use std::{
    process::Command,
    time::{Instant, UNIX_EPOCH},
};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wireguard::{Device, HEADER, OVERHEAD, PeerId, Prefix, Received, Seal, StaticSecret, padded};

use super::{
    flood::SystemRandom,
    world::{find, lacks, now},
};

/// What is done to each packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Work {
    RawSeal,
    RawSealOpen,
    Seal,
    SealOpen,
}

impl Work {
    const ALL: [Self; 4] = [Self::RawSeal, Self::RawSealOpen, Self::Seal, Self::SealOpen];

    fn run(self, packets: u64) {
        match self {
            Self::RawSeal => raw(packets, false),
            Self::RawSealOpen => raw(packets, true),
            Self::Seal => protocol(packets, false),
            Self::SealOpen => protocol(packets, true),
        }
    }

    /// Returns the instructions for a packet.
    fn instructions(self) -> u64 {
        (self.collected(MANY) - self.collected(FEW)) / (MANY - FEW)
    }

    /// Runs this program again under valgrind, for nothing but this work.
    fn collected(self, packets: u64) -> u64 {
        let program = std::env::current_exe().expect("it runs");
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(program)
            .args(["--exact", COUNTED, "--test-threads", "1"])
            .env(WORK, format!("{self:?} {packets}"))
            .output()
            .expect("valgrind runs");
        let said = super::world::text(&output);
        assert!(output.status.success(), "{said}");
        let count = said
            .lines()
            .find_map(|line| line.split("Collected : ").nth(1))
            .and_then(|count| count.trim().parse().ok());
        count.unwrap_or_else(|| panic!("no count: {said}"))
    }
}

/// Seals, and opens, by the cipher alone.
fn raw(packets: u64, open: bool) {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes");
    let key = LessSafeKey::new(key);
    let mut text = packet();
    text.resize(LENGTH + 16, 0);
    for counter in 0..packets {
        let nonce = || {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_le_bytes());
            Nonce::assume_unique_for_key(nonce)
        };
        let (plain, tag) = text.split_at_mut(LENGTH);
        let sealed = key.seal_in_place_separate_tag(nonce(), Aad::empty(), plain);
        tag.copy_from_slice(sealed.expect("short").as_ref());
        if open {
            let opened = key.open_in_place(nonce(), Aad::empty(), &mut text);
            assert_eq!(opened.expect("untouched").len(), LENGTH);
        }
    }
}

/// Seals, and opens, by two devices that have a session.
fn protocol(packets: u64, open: bool) {
    let now = now();
    let mut devices = [1, 2].map(|byte| {
        let mut device = Device::new(now, UNIX_EPOCH, Box::new(SystemRandom));
        device.set_private_key(now, Some(StaticSecret::new([byte; 32])));
        device
    });
    let keys = devices.each_ref().map(|device| device.public_key());
    let anyone = Prefix::new([0, 0, 0, 0].into(), 0).expect("the shortest");
    let source = ([192, 0, 2, 1], 51820).into();
    let peers: [PeerId; 2] = std::array::from_fn(|number| {
        let key = keys[1 - number].expect("it has a private key");
        let peer = devices[number].add_peer(now, key).expect("a good key");
        devices[number].allow(peer, anyone);
        devices[number].set_endpoint(peer, Some(source));
        peer
    });
    let [one, other] = &mut devices;
    one.initiate(now, peers[0]);
    for _ in 0..2 {
        carry(now, one, other);
        carry(now, other, one);
    }
    let mut slot = vec![0; padded(LENGTH) + OVERHEAD];
    slot[HEADER..HEADER + LENGTH].copy_from_slice(&packet());
    let head: [u8; 20] = *packet().first_chunk().expect("longer");
    for _ in 0..packets {
        let Seal::Sealed { length, .. } = one.seal(now, &mut slot, LENGTH) else {
            panic!("they have a session");
        };
        if open {
            let received = other.handle_datagram(now, source, &mut slot[..length]);
            assert!(matches!(received, Received::Packet { .. }), "{received:?}");
        } else {
            // A packet again, as far as anybody looks.
            slot[HEADER..HEADER + head.len()].copy_from_slice(&head);
        }
    }
}

fn carry(now: Instant, from: &mut Device, to: &mut Device) {
    while let Some(mut sent) = from.poll_transmit() {
        to.handle_datagram(now, sent.destination, &mut sent.datagram);
    }
}

/// An IPv4 packet as large as usual inside a tunnel.
fn packet() -> Vec<u8> {
    let mut packet = vec![7; LENGTH];
    let [high, low] = u16::try_from(LENGTH).expect("small").to_be_bytes();
    let head = [
        0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    packet[..head.len()].copy_from_slice(&head);
    packet
}

#[test]
fn what_is_counted_works() {
    let Ok(work) = std::env::var(WORK) else {
        Work::ALL.iter().for_each(|work| work.run(3));
        return;
    };
    let (name, packets) = work.split_once(' ').expect("two words");
    let work = Work::ALL.iter().find(|work| format!("{work:?}") == name);
    let packets = packets.parse().expect("a number");
    work.expect("one of them").run(packets);
}

#[test]
fn sealing_and_opening_add_at_most_a_tenth_to_the_cipher() {
    if find("valgrind").is_none() {
        return lacks("INTEROP", "`valgrind` is not installed");
    }
    let [raw_seal, raw_both, seal, both] = Work::ALL.map(Work::instructions);
    for (what, raw, ours) in [
        ("seal", raw_seal, seal),
        ("open", raw_both - raw_seal, both - seal),
    ] {
        let promille = ours * 1_000 / raw;
        println!("{what}: {ours} instructions a packet, the cipher alone {raw}: {promille} ‰");
        assert!(
            promille <= 1_100,
            "{what}: {ours} instructions a packet, the cipher alone {raw}"
        );
        assert!(promille >= 1_000, "the cipher is in both: {ours}, {raw}");
    }
}

const COUNTED: &str = "instructions::what_is_counted_works";
const WORK: &str = "GINNEL_TEST_WORK";
const LENGTH: usize = 1_420;
const FEW: u64 = 500;
const MANY: u64 = 2_500;
