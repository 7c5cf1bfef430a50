//! Random and mutated datagrams change nothing but counters.

use super::*;

/// How many datagrams: `MALFORMED_PACKETS`, or what a quick run affords.
fn count() -> u64 {
    let given = std::env::var("MALFORMED_PACKETS").ok();
    given.map_or(200_000, |text| {
        text.parse().expect("MALFORMED_PACKETS is a number")
    })
}

/// Genuine datagrams for B, none of which was delivered: what an attacker may have seen.
fn seen(pair: &mut Pair) -> Vec<Vec<u8>> {
    let mut seen: Vec<_> = [0, 40, 60, 400, 1400]
        .into_iter()
        .map(|length| match length {
            0 => {
                let mut slot = vec![0; KEEPALIVE];
                let peer = pair.peers[A];
                let _ = pair.devices[A].seal_to(pair.now, peer, &mut slot, 0);
                slot
            }
            _ => pair.seal(A, length),
        })
        .collect();
    let mut other = Pair::new();
    other.devices[B].set_load(Some(true));
    other.devices[A].set_load(Some(true));
    other.send(A, 60);
    other.pass(SECOND * 20);
    seen.extend(other.wire.into_iter().map(|sent| sent.bytes));
    seen
}

/// Changes a genuine datagram in one to three ways, at least one of which shows.
fn mutate(random: &mut Seeded, original: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(original);
    for _ in 0..=random.below(3) {
        match random.below(6) {
            0 | 1 => {
                let at = random.below(out.len().max(1));
                if let Some(byte) = out.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => out.truncate(random.below(out.len() + 1)),
            3 => out.resize(out.len() + random.below(64), 0xcc),
            4 => {
                let from = random.below(out.len().max(1));
                let to = (from + random.below(32)).min(out.len());
                if let Some(range) = out.get_mut(from..to) {
                    random.fill(range);
                }
            }
            _ => {
                if let Some(kind) = out.first_mut() {
                    *kind = u8::try_from(random.below(6)).unwrap();
                }
            }
        }
    }
    if out == original {
        out.push(0);
    }
}

#[test]
fn malformed_datagrams_change_nothing_but_counters() {
    let mut pair = Pair::connected();
    let genuine = seen(&mut pair);
    let endpoint = pair.endpoint(B);
    let source: SocketAddr = "203.0.113.7:7777".parse().unwrap();
    let mut random = Seeded::new(0xf100d);
    let mut bytes = Vec::new();
    let total = count();
    let mut refused = 0u64;
    for n in 0..total {
        if n % 4 == 0 {
            bytes.resize(random.below(256), 0);
            random.fill(&mut bytes);
            if let Some(kind) = bytes.get_mut(..4).filter(|_| n % 8 == 0) {
                kind.copy_from_slice(&[u8::try_from(random.below(5)).unwrap(), 0, 0, 0]);
            }
        } else {
            let original = &genuine[random.below(genuine.len())];
            mutate(&mut random, original, &mut bytes);
        }
        match pair.devices[B].handle_datagram(pair.now, source, &mut bytes) {
            Received::Discarded(discard) => {
                refused += 1;
                *pair.discards[B].entry(discard).or_default() += 1;
            }
            // Only what lies under no mac1 of its own may have been mutated: mac2 while idle.
            Received::Handled => {
                assert_eq!(bytes[0], 1, "seed 0xf100d, datagram {n}");
                pair.drive();
            }
            Received::Packet { .. } => panic!("seed 0xf100d, datagram {n} was delivered"),
        }
    }
    assert!(refused * 100 >= total * 99, "{refused} of {total}");
    assert_eq!(pair.endpoint(B), endpoint);
    assert_eq!(pair.delivered[B].len(), 0);
    assert!(pair.discards[B].len() >= 6, "{:?}", pair.discards[B]);
    pair.assert_alive();
}

#[test]
fn datagrams_of_every_length_are_refused_and_the_session_lives() {
    let mut pair = Pair::connected();
    for kind in 0..=5 {
        for length in (0..300).chain([1_500, 9_000, 65_507]) {
            let mut bytes = vec![0; length];
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            assert!(
                !pair.deliver(B, pair.addresses[A], bytes),
                "type {kind}, {length} bytes"
            );
        }
    }
    pair.drive();
    assert!(pair.wire.is_empty() && pair.events.iter().all(Vec::is_empty));
    pair.assert_alive();
}

#[test]
fn a_packet_of_the_largest_datagram_passes() {
    let mut pair = Pair::connected();
    pair.send(A, 65_507 - OVERHEAD - 3);
    assert_eq!(pair.delivered[B].len(), 1);
    assert_eq!(pair.wire[0].bytes.len(), 65_507 - 3);
}
