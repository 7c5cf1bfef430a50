//! Keys: a static key pair, its public half, and the preshared key of two peers.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto;

/// Length of every key.
pub const KEY: usize = 32;

/// A peer's static public key: its identity inside the tunnel.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PublicKey(pub [u8; KEY]);

/// A static private key (X25519), clamped (RFC 7748, 5); zeroized on drop and never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct StaticSecret([u8; KEY]);

/// A symmetric key that two peers share besides their key pairs; zeroized, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY]);

impl PublicKey {
    /// Tells whether the point is of low order, so that every agreement with it yields zero.
    ///
    /// The list holds the encodings of all points of order 1, 2, 4 and 8 on the curve and on its
    /// twist; X25519 ignores the highest bit (RFC 7748, 5 and 6.1).
    #[must_use]
    pub fn is_low_order(&self) -> bool {
        let mut key = self.0;
        key[KEY - 1] &= 0x7f;
        LOW_ORDER.contains(&key)
    }
}

impl StaticSecret {
    /// Takes the bytes of a private key and clamps them.
    #[must_use]
    pub fn new(mut bytes: [u8; KEY]) -> Self {
        bytes[0] &= 248;
        bytes[KEY - 1] = (bytes[KEY - 1] & 127) | 64;
        let secret = Self(bytes);
        bytes.zeroize();
        secret
    }

    /// Shows the bytes to code that computes with them or keeps them with mode 0600.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY] {
        &self.0
    }

    /// Computes the public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        crypto::KeyPair::new(&self.0).public
    }
}

impl PresharedKey {
    /// Takes the bytes; 32 zeros mean the same as no preshared key.
    #[must_use]
    pub fn new(bytes: [u8; KEY]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes to code that computes with them or keeps them with mode 0600.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY] {
        &self.0
    }
}

impl PartialEq for StaticSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for StaticSecret {}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for StaticSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticSecret(..)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

pub(crate) const LOW_ORDER: [[u8; KEY]; 7] = [
    small(0),
    small(1),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    near_p(0xec),
    near_p(0xed),
    near_p(0xee),
];

const fn small(value: u8) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[0] = value;
    key
}

/// The encoding of p - 1, p or p + 1 with p = 2^255 - 19.
const fn near_p(lowest: u8) -> [u8; KEY] {
    let mut key = [0xff; KEY];
    key[0] = lowest;
    key[KEY - 1] = 0x7f;
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_clamped_and_never_printed() {
        let mut bytes = [0xff; KEY];
        let secret = StaticSecret::new(bytes);
        bytes[0] = 0xf8;
        bytes[KEY - 1] = 0x7f;
        assert_eq!(secret.expose(), &bytes);
        assert_eq!(format!("{secret:?}"), "StaticSecret(..)");
        assert_eq!(
            format!("{:?}", PresharedKey::new([7; KEY])),
            "PresharedKey(..)"
        );
        let text = PublicKey([1; KEY]).to_string();
        assert_eq!(text, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    }

    #[test]
    fn every_listed_point_agrees_to_nothing_and_other_points_agree() {
        let pair = crypto::KeyPair::new(StaticSecret::new([9; KEY]).expose());
        for mut point in LOW_ORDER {
            assert!(PublicKey(point).is_low_order());
            assert!(pair.agree(&point).is_none());
            point[31] |= 0x80;
            assert!(PublicKey(point).is_low_order());
            assert!(pair.agree(&point).is_none());
        }
        let other = StaticSecret::new([7; KEY]).public_key();
        assert!(!other.is_low_order());
        assert!(pair.agree(&other.0).is_some());
    }
}
