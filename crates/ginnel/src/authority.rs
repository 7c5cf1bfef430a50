//! The SSH authority of a node's organisation: what its map says, by the key that was pinned when
//! the node was enrolled.
//!
//! Whoever changes what the node gets, or sends it an old answer again, brings no CA key in: the
//! statement has to be signed by the pinned key, and its version never falls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use model::{
    address::OrgPrefix,
    map::NetworkMap,
    ssh::{Authority, PublicKeyText, Statement},
};
use serde::{Deserialize, Serialize};

use crate::enrolment::{SSH_AUTHORITY, State};

/// What a node remembers of its organisation's authority.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Pin {
    org: OrgPrefix,
    signing_key: PublicKeyText,
    /// The highest that was seen.
    version: u64,
}

/// The pin of a node that runs, and the file that keeps it. Clones share it.
#[derive(Clone)]
pub(crate) struct Pinned {
    state: State,
    pin: Arc<Mutex<Option<Pin>>>,
}

/// Why a statement of CA keys does not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the map names no authority")]
    Nothing,
    #[error("the statement of the CA keys is of another organisation than the one at enrolment")]
    OtherOrg,
    #[error("the statement of the CA keys is signed by another key than the one at enrolment")]
    OtherKey,
    #[error("the statement of the CA keys is not signed by the organisation")]
    Signature,
    #[error(
        "the statement of the CA keys has version {found}, and version {known} was seen before; \
         after a restored backup, rotate the keys until their version is higher"
    )]
    Older { found: u64, known: u64 },
}

impl Pin {
    /// Pins the authority that a map names; `None` while it names none.
    pub(crate) fn of(map: &NetworkMap) -> Option<Self> {
        let org = map.own_org()?;
        let authority = org.ssh.as_ref()?;
        Some(Self {
            org: org.prefix,
            signing_key: authority.signing_key,
            version: authority.statement.version,
        })
    }

    /// Passes if the keys of `authority` are the organisation's, and no older than those seen.
    fn verify(&self, org: OrgPrefix, authority: &Authority) -> Result<(), Refusal> {
        if self.org != org {
            return Err(Refusal::OtherOrg);
        }
        if self.signing_key != authority.signing_key {
            return Err(Refusal::OtherKey);
        }
        let Statement {
            version,
            keys,
            signature,
        } = &authority.statement;
        let message = Statement::message(org, *version, keys);
        UnparsedPublicKey::new(&ED25519, self.signing_key.0)
            .verify(&message, &signature.0)
            .map_err(|_| Refusal::Signature)?;
        if *version < self.version {
            return Err(Refusal::Older {
                found: *version,
                known: self.version,
            });
        }
        Ok(())
    }
}

impl Pinned {
    /// Reads what was pinned. A node that was enrolled before there were pins takes the first
    /// authority that it learns.
    pub(crate) fn open(state: State) -> Result<Self> {
        let pin = state.read(SSH_AUTHORITY)?;
        Ok(Self {
            state,
            pin: Arc::new(Mutex::new(pin)),
        })
    }

    /// Takes note of the authority of a new map; true if that has to be kept.
    pub(crate) fn learn(&self, map: &NetworkMap) -> bool {
        let Some(found) = Pin::of(map) else {
            return false;
        };
        let mut pin = self.lock();
        let known = *pin;
        if known.is_none_or(|known| known.version < found.version)
            && let Some(org) = map.own_org()
            && let Some(authority) = &org.ssh
            && known.unwrap_or(found).verify(org.prefix, authority).is_ok()
        {
            *pin = Some(found);
            return true;
        }
        false
    }

    /// Keeps it for the next start and for commands, once the map itself is kept: whoever reads
    /// both must not find a map that is older.
    pub(crate) fn keep(&self) {
        let pin = *self.lock();
        if let Some(pin) = pin
            && let Err(error) = self.state.write(SSH_AUTHORITY, &pin)
        {
            tracing::warn!("{error:#}: an older answer could count again after a restart");
        }
    }

    /// Returns the authority of a map if it counts.
    pub(crate) fn verified<'a>(
        &self,
        map: Option<&'a NetworkMap>,
    ) -> Result<&'a Authority, Refusal> {
        let org = map.and_then(NetworkMap::own_org).ok_or(Refusal::Nothing)?;
        let authority = org.ssh.as_ref().ok_or(Refusal::Nothing)?;
        let pin = self.lock().ok_or(Refusal::Nothing)?;
        pin.verify(org.prefix, authority)?;
        Ok(authority)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pin>> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use model::ssh::{CaKeys, Recording, SignatureText};

    use super::*;

    const ORG: &str = "fd00:1:2::/48";

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn signed(version: u64) -> Authority {
        let keys = CaKeys {
            user: vec![PublicKeyText([2; 32])],
            host: vec![PublicKeyText([3; 32])],
        };
        let pair = pair(1);
        let signature = pair.sign(&Statement::message(ORG.parse().unwrap(), version, &keys));
        Authority {
            signing_key: PublicKeyText(pair.public_key().as_ref().try_into().unwrap()),
            statement: Statement {
                version,
                keys,
                signature: SignatureText(signature.as_ref().try_into().unwrap()),
            },
            revoked: [].into(),
            cut: [].into(),
            recording: Recording::Off,
        }
    }

    fn pin(version: u64) -> Pin {
        Pin {
            org: ORG.parse().unwrap(),
            signing_key: signed(1).signing_key,
            version,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Authority), expected: Result<(), Refusal>) {
        let mut authority = signed(4);
        change(&mut authority);
        let verified = pin(4).verify(ORG.parse().unwrap(), &authority);
        assert_eq!(verified, expected);
    }

    #[test]
    fn keys_count_as_long_as_the_pinned_key_signs_them() {
        check(|_| (), Ok(()));
        check(|now| *now = signed(5), Ok(()));
        let other = PublicKeyText([9; 32]);
        check(
            |now| now.statement.keys.user.push(other),
            Err(Refusal::Signature),
        );
        check(|now| now.statement.version += 1, Err(Refusal::Signature));
        check(|now| now.signing_key = other, Err(Refusal::OtherKey));
        let elsewhere = "fd00:1:3::/48".parse().unwrap();
        let verified = pin(4).verify(elsewhere, &signed(4));
        assert_eq!(verified, Err(Refusal::OtherOrg));
    }

    #[test]
    fn a_whole_answer_of_another_signer_does_not_count() {
        let key = pair(7);
        let mut forged = signed(5);
        forged.signing_key = PublicKeyText(key.public_key().as_ref().try_into().unwrap());
        let Statement { version, keys, .. } = &forged.statement;
        let signature = key.sign(&Statement::message(ORG.parse().unwrap(), *version, keys));
        forged.statement.signature = SignatureText(signature.as_ref().try_into().unwrap());
        check(|now| *now = forged, Err(Refusal::OtherKey));
    }

    #[test]
    fn an_older_statement_does_not_count_again() {
        let older = Refusal::Older { found: 3, known: 4 };
        check(|now| *now = signed(3), Err(older));
    }
}
