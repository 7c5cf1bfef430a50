//! No key outlives its use in the memory of `ginnel tun`, which a core dump would hold.
//!
//! The test computes every secret of the session from the key logs of both sides, and looks for
//! each in all memory that the process may write, before and after it has lost its use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use blake2::{Blake2s256, Digest as _};

use super::{
    pair::Pair,
    world::{Program, SHORT, file_with, inner, key_log, wg_line, within},
};

type Key = [u8; 32];

/// The secrets of a session, by name (whitepaper 5.4).
type Secrets = BTreeMap<&'static str, Key>;

#[test]
fn keys_of_a_removed_peer_and_a_replaced_private_key_leave_memory() {
    let preshared = wg_line(&["genpsk"], "");
    let keeper = Program::GinnelWithKeyLog;
    for initiator in 0..2 {
        let Some(pair) = Pair::new(keeper, keeper, Some(&preshared), false) else {
            return;
        };
        let [one, other] = &pair.world.spaces;
        let space = &pair.world.spaces[initiator];
        assert_eq!(space.ping(inner(1 - initiator, false), 5), 5);
        one.transfer(other, inner(1, true), 4_000_000);
        let tunnels = [&pair.ours, &pair.theirs];
        let logs = [initiator, 1 - initiator].map(|side| last_of(&tunnels[side].interface));
        let secrets = secrets_of(&logs[0], &logs[1], initiator == 0);
        let before = found(pair.ours.child.id(), &secrets);
        for name in ["session key 1", "session key 2", "preshared", "our private"] {
            assert!(before.contains_key(name), "{name} is in use: {before:?}");
        }
        pair.ours.remove_peer(&pair.theirs);
        let fresh = file_with(&wg_line(&["genkey"], ""));
        pair.ours.set(&["private-key", &fresh]);
        // The thread that was sealing lets go of the session when its batch has ended.
        let mut after = BTreeMap::new();
        within(SHORT, "the process rests", || {
            let again = found(pair.ours.child.id(), &secrets);
            let rests = again == after;
            after = again;
            rests
        });
        assert!(after.is_empty(), "initiator {initiator}: {after:#?}");
    }
}

/// Returns the newest entry of a key log: its keys by their names there.
fn last_of(interface: &str) -> BTreeMap<String, Key> {
    let text = fs::read_to_string(key_log(interface)).expect("it is there");
    let lines = text.lines().map(|line| {
        let (name, key) = line.split_once(" = ").expect("a key log");
        let key = STANDARD.decode(key).expect("base64");
        (name.to_owned(), key.try_into().expect("32 bytes"))
    });
    lines.collect()
}

/// Computes what both sides compute; `initiates` tells whether the initiator is the one whose
/// memory is searched.
fn secrets_of(
    initiator: &BTreeMap<String, Key>,
    responder: &BTreeMap<String, Key>,
    initiates: bool,
) -> Secrets {
    let [static_i, static_r] =
        [initiator, responder].map(|log| pair_of(&log["LOCAL_STATIC_PRIVATE_KEY"]));
    let [ephemeral_i, ephemeral_r] =
        [initiator, responder].map(|log| pair_of(&log["LOCAL_EPHEMERAL_PRIVATE_KEY"]));
    let preshared = initiator["PRESHARED_KEY"];
    let es = secret(&ephemeral_i.0, &static_r.1);
    let ss = secret(&static_i.0, &static_r.1);
    let ee = secret(&ephemeral_i.0, &ephemeral_r.1);
    let se = secret(&static_i.0, &ephemeral_r.1);
    let start: Key = Blake2s256::digest(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s").into();
    let [c1] = kdf(&start, &ephemeral_i.1);
    let [c2, key_of_static] = kdf(&c1, &es);
    let [c3, key_of_timestamp] = kdf(&c2, &ss);
    let [c4] = kdf(&c3, &ephemeral_r.1);
    let [c5] = kdf(&c4, &ee);
    let [c6] = kdf(&c5, &se);
    let [c7, _, key_of_nothing] = kdf(&c6, &preshared);
    let [session_1, session_2] = kdf(&c7, &[]);
    let (ours, log) = if initiates {
        (ephemeral_i.0, initiator)
    } else {
        (ephemeral_r.0, responder)
    };
    BTreeMap::from([
        ("session key 1", session_1),
        ("session key 2", session_2),
        ("preshared", preshared),
        ("our private", log["LOCAL_STATIC_PRIVATE_KEY"]),
        ("our ephemeral", ours),
        ("ephemeral-static agreement", es),
        ("static-static agreement", ss),
        ("ephemeral-ephemeral agreement", ee),
        ("static-ephemeral agreement", se),
        ("chaining key 2", c2),
        ("chaining key 3", c3),
        ("chaining key 4", c4),
        ("chaining key 5", c5),
        ("chaining key 6", c6),
        ("chaining key 7", c7),
        ("key of the static key", key_of_static),
        ("key of the timestamp", key_of_timestamp),
        ("key of nothing", key_of_nothing),
    ])
}

/// Returns where in a process each secret stands: as it is, in hexadecimal, or in base64.
fn found(pid: u32, secrets: &Secrets) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let forms: Vec<_> = secrets
        .iter()
        .flat_map(|(name, key)| forms(name, key))
        .collect();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().expect("a range");
        let (start, end) = range.split_once('-').expect("a range");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hex"));
        let mut bytes = vec![0; usize::try_from(end - start).expect("64 bits")];
        // Some mappings cannot be read, such as those of devices; a core has none of them either.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        let what = line.split_whitespace().nth(5).unwrap_or("anonymous");
        for (name, form, needle) in &forms {
            let searched = bytes.windows(8).enumerate();
            let hits = searched
                .filter(|(at, head)| head == &&needle[..8] && bytes[*at..].starts_with(needle));
            for (at, _) in hits {
                let place = format!("{form} in {what} {range} at {at:#x}");
                found.entry(*name).or_default().insert(place);
            }
        }
    }
    found
}

fn forms(name: &'static str, key: &Key) -> [(&'static str, &'static str, Vec<u8>); 3] {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        (name, "as it is", key.to_vec()),
        (name, "hexadecimal", hex.into_bytes()),
        (name, "base64", STANDARD.encode(key).into_bytes()),
    ]
}

fn pair_of(private: &Key) -> (Key, Key) {
    let key = PrivateKey::from_private_key(&X25519, private).expect("32 bytes");
    let public = key.compute_public_key().expect("it has one");
    (*private, public.as_ref().try_into().expect("32 bytes"))
}

fn secret(private: &Key, public: &Key) -> Key {
    let key = PrivateKey::from_private_key(&X25519, private).expect("32 bytes");
    let public = UnparsedPublicKey::new(&X25519, public);
    let agreed = agree(&key, public, (), |secret| {
        Ok(secret.try_into().expect("32 bytes"))
    });
    agreed.expect("not of low order")
}

/// HKDF of the whitepaper (5.4, KDF).
fn kdf<const N: usize>(key: &Key, input: &[u8]) -> [Key; N] {
    let extracted = hmac(key, &[input]);
    let mut last: Vec<u8> = Vec::new();
    let mut number = 0;
    [(); N].map(|()| {
        number += 1;
        let output = hmac(&extracted, &[&last, &[number]]);
        last = output.to_vec();
        output
    })
}

fn hmac(key: &Key, parts: &[&[u8]]) -> Key {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = parts
        .iter()
        .fold(Blake2s256::new_with_prefix(padded(0x36)), |state, part| {
            state.chain_update(part)
        });
    let outer = Blake2s256::new_with_prefix(padded(0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}
