//! The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (whitepaper 5.4.1 to 5.4.5).

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    crypto::{self, KeyPair, Secret, TAG},
    key::{KEY, PresharedKey, PublicKey, StaticSecret},
    message::{
        INITIATION, INITIATION_EPHEMERAL, INITIATION_STATIC, INITIATION_TIMESTAMP, INITIATION_TYPE,
        RESPONSE, RESPONSE_EMPTY, RESPONSE_EPHEMERAL, RESPONSE_RECEIVER, RESPONSE_TYPE, SENDER,
        field, index, put,
    },
    tai64n::{TAI64N, Tai64n},
};

/// Our static key pair.
pub(crate) struct Identity {
    pub(crate) secret: StaticSecret,
    pub(crate) pair: KeyPair,
}

/// An initiation that waits for its response.
pub(crate) struct Pending {
    /// Our sender index, by which the response finds us.
    pub(crate) index: u32,
    transcript: Transcript,
    ephemeral: KeyPair,
}

/// An initiation whose encrypted static key was opened; the initiator has not proven it yet.
pub(crate) struct Claim {
    pub(crate) public_key: PublicKey,
    transcript: Transcript,
}

/// An initiation that is proven to come from the owner of its static key.
pub(crate) struct Proven {
    pub(crate) timestamp: Tai64n,
    /// The initiator's index.
    pub(crate) sender: u32,
    transcript: Transcript,
    ephemeral: [u8; KEY],
}

/// The two keys of a session (whitepaper 5.4.5).
pub(crate) struct TransportKeys {
    pub(crate) sending: Secret,
    pub(crate) receiving: Secret,
}

/// Hash and chaining key after what both sides have seen so far.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Transcript {
    hash: [u8; KEY],
    chaining_key: Secret,
}

impl Identity {
    pub(crate) fn new(secret: StaticSecret) -> Self {
        let pair = KeyPair::new(secret.expose());
        Self { secret, pair }
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.pair.public
    }
}

/// Writes an initiation without its macs; `None` when the responder's key is of low order.
pub(crate) fn initiate(
    identity: &Identity,
    responder: &PublicKey,
    static_static: &Secret,
    ephemeral: &Secret,
    index: u32,
    timestamp: Tai64n,
) -> Option<([u8; INITIATION], Pending)> {
    let ephemeral = KeyPair::new(ephemeral);
    let mut transcript = Transcript::new(responder);
    let mut message = [0; INITIATION];
    put(&mut message, 0, &INITIATION_TYPE);
    put(&mut message, SENDER, &index.to_le_bytes());
    put(&mut message, INITIATION_EPHEMERAL, &ephemeral.public.0);
    transcript.mix_ephemeral(&ephemeral.public.0);
    let key = transcript.mix_key(&*ephemeral.agree(&responder.0)?);
    let text = identity.public_key().0;
    transcript.seal(&key, &text, &mut message[INITIATION_STATIC..]);
    let key = transcript.mix_key(&**static_static);
    transcript.seal(&key, &timestamp.0, &mut message[INITIATION_TIMESTAMP..]);
    let pending = Pending {
        index,
        transcript,
        ephemeral,
    };
    Some((message, pending))
}

/// Opens the timestamp of an initiation that `identity` itself has written with `ephemeral`.
pub(crate) fn own_timestamp(
    identity: &Identity,
    responder: &PublicKey,
    static_static: &Secret,
    ephemeral: &Secret,
    message: &[u8; INITIATION],
) -> Option<Tai64n> {
    let ephemeral = KeyPair::new(ephemeral);
    let mut transcript = Transcript::new(responder);
    transcript.mix_ephemeral(&ephemeral.public.0);
    let key = transcript.mix_key(&*ephemeral.agree(&responder.0)?);
    let mut sealed: [u8; KEY + TAG] = *field(message, INITIATION_STATIC);
    let own: [u8; KEY] = transcript.open(&key, &mut sealed)?;
    if own != identity.public_key().0 {
        return None;
    }
    let key = transcript.mix_key(&**static_static);
    let mut sealed: [u8; TAI64N + TAG] = *field(message, INITIATION_TIMESTAMP);
    transcript.open(&key, &mut sealed).map(Tai64n)
}

impl Claim {
    /// Opens the static key of an initiation: one key agreement.
    pub(crate) fn open(identity: &Identity, message: &[u8; INITIATION]) -> Option<Self> {
        let ephemeral: &[u8; KEY] = field(message, INITIATION_EPHEMERAL);
        let mut transcript = Transcript::new(&identity.public_key());
        transcript.mix_ephemeral(ephemeral);
        let key = transcript.mix_key(&*identity.pair.agree(ephemeral)?);
        let mut sealed: [u8; KEY + TAG] = *field(message, INITIATION_STATIC);
        let public_key = transcript.open(&key, &mut sealed)?;
        Some(Self {
            public_key: PublicKey(public_key),
            transcript,
        })
    }

    /// Opens the timestamp, which only the owner of the static key can have sealed.
    pub(crate) fn prove(
        &self,
        static_static: &Secret,
        message: &[u8; INITIATION],
    ) -> Option<Proven> {
        let mut transcript = self.transcript.clone();
        let key = transcript.mix_key(&**static_static);
        let mut sealed: [u8; TAI64N + TAG] = *field(message, INITIATION_TIMESTAMP);
        let timestamp = transcript.open(&key, &mut sealed)?;
        Some(Proven {
            timestamp: Tai64n(timestamp),
            sender: index(message, SENDER),
            transcript,
            ephemeral: *field(message, INITIATION_EPHEMERAL),
        })
    }
}

impl Proven {
    /// Writes the response without its macs; `None` when the initiator's ephemeral is of low order.
    pub(crate) fn respond(
        mut self,
        initiator: &PublicKey,
        preshared: Option<&PresharedKey>,
        ephemeral: &Secret,
        index: u32,
    ) -> Option<([u8; RESPONSE], TransportKeys)> {
        let ephemeral = KeyPair::new(ephemeral);
        let mut message = [0; RESPONSE];
        put(&mut message, 0, &RESPONSE_TYPE);
        put(&mut message, SENDER, &index.to_le_bytes());
        put(&mut message, RESPONSE_RECEIVER, &self.sender.to_le_bytes());
        put(&mut message, RESPONSE_EPHEMERAL, &ephemeral.public.0);
        let transcript = &mut self.transcript;
        transcript.mix_ephemeral(&ephemeral.public.0);
        transcript.mix(&*ephemeral.agree(&self.ephemeral)?);
        transcript.mix(&*ephemeral.agree(&initiator.0)?);
        let key = transcript.mix_preshared(preshared);
        transcript.seal(&key, &[], &mut message[RESPONSE_EMPTY..]);
        let (receiving, sending) = crypto::kdf2(&transcript.chaining_key, &[]);
        let keys = TransportKeys { sending, receiving };
        Some((message, keys))
    }
}

impl Pending {
    /// Opens the response; a forged one leaves the pending initiation as it is.
    pub(crate) fn complete(
        &self,
        identity: &Identity,
        preshared: Option<&PresharedKey>,
        message: &[u8; RESPONSE],
    ) -> Option<TransportKeys> {
        let ephemeral: &[u8; KEY] = field(message, RESPONSE_EPHEMERAL);
        let mut transcript = self.transcript.clone();
        transcript.mix_ephemeral(ephemeral);
        transcript.mix(&*self.ephemeral.agree(ephemeral)?);
        transcript.mix(&*identity.pair.agree(ephemeral)?);
        let key = transcript.mix_preshared(preshared);
        let mut sealed: [u8; TAG] = *field(message, RESPONSE_EMPTY);
        let _: [u8; 0] = transcript.open(&key, &mut sealed)?;
        let (sending, receiving) = crypto::kdf2(&transcript.chaining_key, &[]);
        Some(TransportKeys { sending, receiving })
    }
}

impl Transcript {
    fn new(responder: &PublicKey) -> Self {
        let chaining_key = crypto::hash(&[CONSTRUCTION]);
        let hash = crypto::hash(&[&chaining_key, IDENTIFIER]);
        Self {
            hash: crypto::hash(&[&hash, &responder.0]),
            chaining_key: Secret::new(chaining_key),
        }
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = crypto::hash(&[&self.hash, bytes]);
    }

    fn mix(&mut self, input: &[u8]) {
        self.chaining_key = crypto::kdf1(&self.chaining_key, input);
    }

    fn mix_ephemeral(&mut self, public: &[u8; KEY]) {
        self.mix(public);
        self.mix_hash(public);
    }

    fn mix_key(&mut self, input: &[u8]) -> Secret {
        let (chaining_key, key) = crypto::kdf2(&self.chaining_key, input);
        self.chaining_key = chaining_key;
        key
    }

    fn mix_preshared(&mut self, preshared: Option<&PresharedKey>) -> Secret {
        let input = preshared.map_or(&[0; KEY], PresharedKey::expose);
        let (chaining_key, temporary, key) = crypto::kdf3(&self.chaining_key, input);
        self.chaining_key = chaining_key;
        self.mix_hash(&*temporary);
        key
    }

    /// Seals `text` to the front of `out` and mixes what it wrote.
    fn seal(&mut self, key: &Secret, text: &[u8], out: &mut [u8]) {
        let (out, _) = out.split_at_mut(text.len() + TAG);
        let (body, tag) = out.split_at_mut(text.len());
        body.copy_from_slice(text);
        tag.copy_from_slice(&crypto::seal(&crypto::aead_key(key), 0, &self.hash, body));
        self.mix_hash(out);
    }

    fn open<const N: usize>(&mut self, key: &Secret, sealed: &mut [u8]) -> Option<[u8; N]> {
        let hash = crypto::hash(&[&self.hash, sealed]);
        let text = crypto::open(&crypto::aead_key(key), 0, &self.hash, sealed)?;
        self.hash = hash;
        (&*text).try_into().ok()
    }
}

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

#[cfg(test)]
mod tests;
