//! The primitives of the whitepaper's section 5.4, each behind one small function.

use aws_lc_rs::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    agreement::{PrivateKey, UnparsedPublicKey, X25519, agree},
};
use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac, consts::U16},
};
use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{Aead, KeyInit, Payload},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::key::{KEY, PublicKey};

/// Length of an authentication tag.
pub(crate) const TAG: usize = 16;
/// Length of mac1, mac2 and a cookie.
pub(crate) const MAC: usize = 16;
/// Length of the nonce of a cookie reply.
pub(crate) const COOKIE_NONCE: usize = 24;

/// 32 bytes of key material that are zeroized when they go out of scope.
pub(crate) type Secret = Zeroizing<[u8; KEY]>;

/// A private key, ready for agreements, with its public half.
pub(crate) struct KeyPair {
    private: PrivateKey,
    pub(crate) public: PublicKey,
}

impl KeyPair {
    pub(crate) fn new(secret: &[u8; KEY]) -> Self {
        let private = PrivateKey::from_private_key(&X25519, secret)
            .expect("every string of 32 bytes is an X25519 private key");
        let public = private
            .compute_public_key()
            .expect("X25519 has a public key for every private key");
        let public = PublicKey(public.as_ref().try_into().expect("32 bytes"));
        Self { private, public }
    }

    /// Agrees on a secret; `None` when it is all zero, for then the public key is of low order.
    pub(crate) fn agree(&self, public: &[u8; KEY]) -> Option<Secret> {
        let public = UnparsedPublicKey::new(&X25519, public);
        let secret = agree(&self.private, public, (), |secret| {
            let mut copy = Secret::default();
            copy.copy_from_slice(secret);
            Ok(copy)
        });
        secret
            .ok()
            .filter(|secret| bool::from(!secret.ct_eq(&[0; KEY])))
    }
}

/// Prepares a key for [`seal`] and [`open`]; the cipher's copy is cleansed when it is freed.
pub(crate) fn aead_key(key: &[u8; KEY]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has 32 bytes");
    LessSafeKey::new(key)
}

/// Seals `text` in place and returns its tag (ChaCha20-Poly1305, RFC 8439).
pub(crate) fn seal(key: &LessSafeKey, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG] {
    let tag = key
        .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), text)
        .expect("a datagram is shorter than the cipher's limit of 2^38 bytes");
    tag.as_ref().try_into().expect("a tag has 16 bytes")
}

/// Opens `sealed`, text and tag, in place and returns the text; `None` when the tag is wrong.
pub(crate) fn open<'a>(
    key: &LessSafeKey,
    counter: u64,
    aad: &[u8],
    sealed: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    key.open_in_place(nonce(counter), Aad::from(aad), sealed)
        .ok()
}

/// Seals a cookie (XChaCha20-Poly1305).
pub(crate) fn seal_cookie(
    key: &[u8; KEY],
    nonce: &[u8; COOKIE_NONCE],
    aad: &[u8],
    cookie: &[u8],
) -> Vec<u8> {
    XChaCha20Poly1305::new(key.into())
        .encrypt(nonce.into(), Payload { msg: cookie, aad })
        .expect("a cookie is shorter than the cipher's limit")
}

/// Opens a sealed cookie; `None` when the tag is wrong.
pub(crate) fn open_cookie(
    key: &[u8; KEY],
    nonce: &[u8; COOKIE_NONCE],
    aad: &[u8],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    XChaCha20Poly1305::new(key.into())
        .decrypt(nonce.into(), Payload { msg: sealed, aad })
        .ok()
}

/// HASH: BLAKE2s-256 over the concatenation of `parts`.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; KEY] {
    let mut state = Blake2s256::new();
    for part in parts {
        Digest::update(&mut state, part);
    }
    state.finalize().into()
}

/// MAC: keyed BLAKE2s-128 over the concatenation of `parts`; keys have 16 or 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    let mut state = <Blake2sMac<U16> as KeyInit>::new_from_slice(key)
        .expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        Mac::update(&mut state, part);
    }
    state.finalize().into_bytes().into()
}

/// Compares in constant time.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// HKDF of the whitepaper with one output.
pub(crate) fn kdf1(key: &[u8; KEY], input: &[u8]) -> Secret {
    let extracted = hmac(key, &[input]);
    hmac(&extracted, &[&[1]])
}

/// HKDF of the whitepaper with two outputs.
pub(crate) fn kdf2(key: &[u8; KEY], input: &[u8]) -> (Secret, Secret) {
    let extracted = hmac(key, &[input]);
    let first = hmac(&extracted, &[&[1]]);
    let second = hmac(&extracted, &[first.as_slice(), &[2]]);
    (first, second)
}

/// HKDF of the whitepaper with three outputs.
pub(crate) fn kdf3(key: &[u8; KEY], input: &[u8]) -> (Secret, Secret, Secret) {
    let extracted = hmac(key, &[input]);
    let first = hmac(&extracted, &[&[1]]);
    let second = hmac(&extracted, &[first.as_slice(), &[2]]);
    let third = hmac(&extracted, &[second.as_slice(), &[3]]);
    (first, second, third)
}

/// HMAC (RFC 2104) with BLAKE2s-256, whose block has 64 bytes.
fn hmac(key: &[u8; KEY], parts: &[&[u8]]) -> Secret {
    let mut inner = Zeroizing::new([0x36; HMAC_BLOCK]);
    let mut outer = Zeroizing::new([0x5c; HMAC_BLOCK]);
    for (index, byte) in key.iter().enumerate() {
        inner[index] ^= byte;
        outer[index] ^= byte;
    }
    let mut state = Blake2s256::new();
    Digest::update(&mut state, inner.as_slice());
    for part in parts {
        Digest::update(&mut state, part);
    }
    let digest = Secret::new(state.finalize().into());
    Secret::new(hash(&[outer.as_slice(), digest.as_slice()]))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Overwrites the stack that the calls before this one have used: moved values and the cipher leave
/// copies of keys there, which nothing else erases in a thread that then waits.
///
/// The device does so itself after handshakes; a thread that opens or seals does it once for what
/// it has handled together.
#[inline(never)]
pub fn scrub_stack() {
    std::hint::black_box(&mut [0_u64; SCRUBBED / 8]);
}

const HMAC_BLOCK: usize = 64;
/// Bytes of stack; a handshake takes less.
const SCRUBBED: usize = 12 << 10;

#[cfg(test)]
mod tests;
