//! The handshake against `snow`, another implementation of Noise, in both roles.

use snow::{Builder, TransportState};

use super::*;
use crate::{
    random::Random,
    tests::{Seeded, wall},
};

/// How many handshakes in each role: `SNOW_HANDSHAKES`, or what a quick run affords.
fn rounds() -> u64 {
    let given = std::env::var("SNOW_HANDSHAKES").ok();
    given.map_or(300, |text| {
        text.parse().expect("SNOW_HANDSHAKES is a number")
    })
}

/// Everything that one random handshake is made from.
struct Round {
    ours: Identity,
    theirs: StaticSecret,
    preshared: PresharedKey,
    ephemeral: Secret,
}

impl Round {
    fn new(seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let mut bytes = || {
            let mut bytes = [0; KEY];
            random.fill(&mut bytes);
            bytes
        };
        // Each second round is without a preshared key, which means 32 zeros.
        let preshared = if seed.is_multiple_of(2) {
            [0; KEY]
        } else {
            bytes()
        };
        Self {
            ours: Identity::new(StaticSecret::new(bytes())),
            theirs: StaticSecret::new(bytes()),
            preshared: PresharedKey::new(preshared),
            ephemeral: Secret::new(bytes()),
        }
    }

    fn their_public(&self) -> PublicKey {
        self.theirs.public_key()
    }

    fn static_static(&self) -> Secret {
        self.ours
            .pair
            .agree(&self.their_public().0)
            .expect("not of low order")
    }

    fn snow(&self) -> Builder<'_> {
        let name = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
        Builder::new(name.parse().expect("snow knows it"))
            .prologue(IDENTIFIER)
            .and_then(|builder| builder.local_private_key(self.theirs.expose()))
            .and_then(|builder| builder.psk(2, self.preshared.expose()))
            .expect("each is set once")
    }

    /// Sends a text each way with the keys of both implementations.
    fn exchange(&self, keys: &TransportKeys, snow: &mut TransportState) {
        let mut buffer = [0; 64];
        let mut text = *b"thirty-two bytes of transport data................";
        let length = text.len() - TAG;
        let tag = crypto::seal(
            &crypto::aead_key(&keys.sending),
            0,
            &[],
            &mut text[..length],
        );
        text[length..].copy_from_slice(&tag);
        let opened = snow
            .read_message(&text, &mut buffer)
            .expect("snow opens ours");
        assert_eq!(
            &buffer[..opened],
            &b"thirty-two bytes of transport data................"[..length]
        );
        let sealed = snow
            .write_message(b"back", &mut buffer)
            .expect("snow seals");
        let key = crypto::aead_key(&keys.receiving);
        let opened = crypto::open(&key, 0, &[], &mut buffer[..sealed]).expect("we open snow's");
        assert_eq!(opened, b"back");
    }
}

#[test]
fn snow_answers_what_we_initiate() {
    for seed in 0..rounds() {
        let round = Round::new(seed);
        let timestamp = Tai64n::new(wall());
        let (message, pending) = initiate(
            &round.ours,
            &round.their_public(),
            &round.static_static(),
            &round.ephemeral,
            7,
            timestamp,
        )
        .expect("not of low order");
        let mut snow = round.snow().build_responder().expect("all keys are set");
        let mut buffer = [0; 256];
        let noise = &message[INITIATION_EPHEMERAL..INITIATION - 32];
        let read = snow
            .read_message(noise, &mut buffer)
            .expect("snow opens ours");
        assert_eq!(buffer[..read], timestamp.0, "seed {seed}");
        assert_eq!(
            snow.get_remote_static(),
            Some(&round.ours.public_key().0[..])
        );
        let mut response = [0; RESPONSE];
        let room = &mut response[RESPONSE_EPHEMERAL..];
        assert_eq!(
            snow.write_message(&[], room).expect("snow answers"),
            KEY + TAG
        );
        let keys = pending.complete(&round.ours, Some(&round.preshared), &response);
        let keys = keys.expect("snow's answer is right");
        let mut snow = snow
            .into_transport_mode()
            .expect("both messages are through");
        round.exchange(&keys, &mut snow);
    }
}

#[test]
fn we_answer_what_snow_initiates() {
    for seed in 0..rounds() {
        let round = Round::new(seed);
        let builder = round.snow();
        let ours = round.ours.public_key();
        let builder = builder.remote_public_key(&ours.0).expect("set once");
        let mut snow = builder.build_initiator().expect("all keys are set");
        let timestamp = Tai64n::new(wall());
        let mut message = [0; INITIATION];
        let room = &mut message[INITIATION_EPHEMERAL..];
        snow.write_message(&timestamp.0, room)
            .expect("snow initiates");
        put(&mut message, SENDER, &[1, 2, 3, 4]);
        let claim = Claim::open(&round.ours, &message).expect("snow's initiation is right");
        assert_eq!(claim.public_key, round.their_public(), "seed {seed}");
        let proven = claim
            .prove(&round.static_static(), &message)
            .expect("proven");
        assert_eq!(proven.timestamp, timestamp);
        let (response, keys) = proven
            .respond(
                &round.their_public(),
                Some(&round.preshared).filter(|_| seed % 2 == 1),
                &round.ephemeral,
                9,
            )
            .expect("not of low order");
        assert_eq!(response[..12], [2, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3, 4]);
        let noise = &response[RESPONSE_EPHEMERAL..RESPONSE - 32];
        let read = snow
            .read_message(noise, &mut [0; 64])
            .expect("snow opens ours");
        assert_eq!(read, 0);
        let mut snow = snow
            .into_transport_mode()
            .expect("both messages are through");
        round.exchange(&keys, &mut snow);
    }
}

#[test]
fn an_initiation_for_another_responder_does_not_open() {
    let round = Round::new(1);
    let (message, _) = initiate(
        &round.ours,
        &round.their_public(),
        &round.static_static(),
        &round.ephemeral,
        7,
        Tai64n::default(),
    )
    .expect("not of low order");
    assert!(Claim::open(&round.ours, &message).is_none());
    let theirs = Identity::new(round.theirs.clone());
    let claim = Claim::open(&theirs, &message).expect("for them");
    assert!(
        claim.prove(&Secret::new([1; KEY]), &message).is_none(),
        "needs the static secret"
    );
}
