//! The SSH authority of each organisation: keys that lie sealed, certificates, rotation.
//!
//! A seed leaves the store only to sign, under a master key that lies beside the database, so
//! that a copy of the database alone signs nothing.

use anyhow::Context as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use model::{
    id::OrgId,
    ssh::{
        BACKDATE_SECONDS, CA_KEYS_MAX, CaKeys, CertificateKind, CertificateText, HOST_TTL_SECONDS,
        KeyState, Principal, PublicKeyText, Serial, SignatureText, Statement, USER_TTL_SECONDS_MAX,
    },
};
use ssh_key::{
    Algorithm,
    certificate::{Builder, CertType},
    public::{Ed25519PublicKey, KeyData},
};
use zeroize::Zeroizing;

use crate::{
    Random, Server,
    storage::{
        self, Change, Touched,
        audit::{Actor, Entry},
        ssh::{Content, Key, Usage},
    },
};

/// A key that signs, for as long as one request needs it.
struct Signer {
    pair: Ed25519KeyPair,
    public_key: PublicKeyText,
}

/// Why a rotation cannot go on.
pub(crate) enum RotationRefused {
    /// Too many retired keys are still trusted; until then.
    StillTrusted(i64),
    Failed(anyhow::Error),
    Storage(storage::Error),
}

const SEED_LENGTH: usize = 32;

/// Random bytes of a certificate that nobody can foresee (PROTOCOL.certkeys asks for 16 or 32).
const CERTIFICATE_NONCE_LENGTH: usize = 32;

/// What a user certificate permits. `permit-user-rc` is not among it: nothing of ours needs a
/// script that runs before the command.
const EXTENSIONS: [&str; 4] = [
    "permit-X11-forwarding",
    "permit-agent-forwarding",
    "permit-port-forwarding",
    "permit-pty",
];

const KINDS: [CertificateKind; 2] = [CertificateKind::User, CertificateKind::Host];

impl Signer {
    fn of_seed(seed: &[u8]) -> anyhow::Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|_| anyhow::anyhow!("a seed has 32 bytes"))?;
        let public_key = pair.public_key().as_ref();
        let public_key = public_key.try_into().context("read a public key")?;
        Ok(Self {
            pair,
            public_key: PublicKeyText(public_key),
        })
    }

    fn sign_bytes(&self, message: &[u8]) -> SignatureText {
        let signature = self.pair.sign(message);
        let bytes = signature.as_ref().try_into();
        SignatureText(bytes.expect("an Ed25519 signature has 64 bytes"))
    }

    /// Signs a certificate. A user certificate works from `source` only.
    fn certify(
        &self,
        random: &dyn Random,
        serial: Serial,
        content: &Content,
        source: Option<std::net::Ipv6Addr>,
    ) -> anyhow::Result<CertificateText> {
        let mut nonce = vec![0; CERTIFICATE_NONCE_LENGTH];
        random.fill(&mut nonce);
        let (after, before) = (
            u64::try_from(content.valid_after)?,
            u64::try_from(content.valid_before)?,
        );
        let mut builder = Builder::new(nonce, key_data(content.public_key), after, before)?;
        builder.serial(serial.0)?.key_id(content.key_id.as_str())?;
        match content.kind {
            CertificateKind::User => {
                builder.cert_type(CertType::User)?;
                for extension in EXTENSIONS {
                    builder.extension(extension, "")?;
                }
            }
            CertificateKind::Host => {
                builder.cert_type(CertType::Host)?;
            }
        }
        if let Some(source) = source {
            builder.critical_option("source-address", format!("{source}/128"))?;
        }
        for principal in &content.principals {
            builder.valid_principal(Principal::as_str(principal))?;
        }
        let certificate = builder.sign(self)?.to_openssh()?;
        certificate.parse().context("read the certificate back")
    }
}

impl signature::Signer<ssh_key::Signature> for Signer {
    fn try_sign(&self, message: &[u8]) -> Result<ssh_key::Signature, signature::Error> {
        let bytes = self.sign_bytes(message).0.to_vec();
        ssh_key::Signature::new(Algorithm::Ed25519, bytes).map_err(|_| signature::Error::new())
    }
}

impl From<&Signer> for KeyData {
    fn from(signer: &Signer) -> Self {
        key_data(signer.public_key)
    }
}

impl Server {
    /// Makes the authority of a new organisation.
    pub(crate) async fn insert_ssh_authority(
        &self,
        change: &mut Change,
        org: OrgId,
    ) -> anyhow::Result<()> {
        self.insert_ssh_key(change, org, Usage::Statement, KeyState::Current)
            .await?;
        for kind in KINDS {
            let usage = Usage::Certificate(kind);
            self.insert_ssh_key(change, org, usage, KeyState::Current)
                .await?;
        }
        self.state_keys(change, org).await
    }

    /// Makes the authority of every organisation that is older than SSH.
    pub(crate) async fn insert_missing_ssh_authorities(&self) -> anyhow::Result<()> {
        let mut read = self.inner.store.read().await?;
        let orgs = storage::ssh::orgs_without(&mut read).await?;
        drop(read);
        for org in orgs {
            let mut change = self.change().await?;
            self.insert_ssh_authority(&mut change, org).await?;
            let entry = Entry {
                actor: Actor::Server,
                action: "ssh_authority_made",
                subject: format!("org:{org}"),
                org: Some(org),
            };
            change.commit(entry, Touched::Org(org)).await?;
        }
        Ok(())
    }

    /// Finds out whether the master key of this directory is the one of the database.
    pub(crate) async fn verify_master_key(&self) -> anyhow::Result<()> {
        let mut read = self.inner.store.read().await?;
        let Some((org, key)) = storage::ssh::first_key(&mut read).await? else {
            return Ok(());
        };
        let purpose = bound_to(org, key.usage);
        let opened = self.inner.master_key.open(&purpose, &key.sealed);
        anyhow::ensure!(
            opened.is_some(),
            "the master key (`master.key`) in the data directory is not the one of its database; \
             copy it from another server of this database, or restore both from one backup"
        );
        Ok(())
    }

    /// Deletes retired keys whose certificates have all ended.
    pub(crate) async fn delete_past_ssh_keys(&self) -> anyhow::Result<()> {
        let now = self.now();
        let mut read = self.inner.store.read().await?;
        let orgs = storage::ssh::orgs_with_past_keys(&mut read, now).await?;
        drop(read);
        for org in orgs {
            let mut change = self.change().await?;
            self.delete_past_keys_of(&mut change, org).await?;
            self.state_keys(&mut change, org).await?;
            let entry = Entry {
                actor: Actor::Server,
                action: "ssh_keys_deleted",
                subject: format!("org:{org}"),
                org: Some(org),
            };
            let committed = change.commit(entry, Touched::Org(org)).await?;
            self.inner.publisher.publish(committed);
        }
        Ok(())
    }

    /// Takes the next step of a rotation: makes next keys, or lets them sign. With `at_once`, new
    /// keys sign and no other is trusted.
    pub(crate) async fn rotate_ssh_keys(
        &self,
        change: &mut Change,
        org: OrgId,
        at_once: bool,
    ) -> Result<&'static str, RotationRefused> {
        self.delete_past_keys_of(change, org).await?;
        let keys = storage::ssh::keys_of(change.connection(), org).await?;
        let certifying = keys.iter().filter(|key| key.usage != Usage::Statement);
        let mut action = "ssh_next_keys_made";
        if at_once {
            for key in certifying {
                storage::ssh::delete_key(change.connection(), key.id).await?;
            }
            let now = change.now();
            storage::ssh::end_certificates(change.connection(), now, org).await?;
            action = "ssh_keys_replaced";
        } else if keys.iter().any(|key| key.state == KeyState::Next) {
            // Retiring first: an organisation has one current key of a kind at every moment.
            let (now, mut certifying) = (change.now(), certifying.collect::<Vec<_>>());
            certifying.sort_by_key(|key| key.state);
            for key in certifying {
                let connection = change.connection();
                match key.state {
                    KeyState::Current => {
                        let until = Some(now + ttl_max(key.usage));
                        let retired = KeyState::Retired;
                        storage::ssh::update_key(connection, key.id, retired, until).await?;
                    }
                    KeyState::Next => {
                        let current = KeyState::Current;
                        storage::ssh::update_key(connection, key.id, current, None).await?;
                    }
                    KeyState::Retired => {}
                }
            }
            action = "ssh_keys_rotated";
        } else {
            room_for_next(&keys)?;
        }
        let state = match action {
            "ssh_keys_replaced" => Some(KeyState::Current),
            "ssh_next_keys_made" => Some(KeyState::Next),
            _ => None,
        };
        if let Some(state) = state {
            for kind in KINDS {
                self.insert_ssh_key(change, org, Usage::Certificate(kind), state)
                    .await?;
            }
        }
        self.state_keys(change, org)
            .await
            .map_err(RotationRefused::Failed)?;
        Ok(action)
    }

    /// Signs what `content` says and returns it with the keys that the organisation trusts.
    pub(crate) async fn certify(
        &self,
        change: &mut Change,
        content: &Content,
        source: Option<std::net::Ipv6Addr>,
    ) -> anyhow::Result<(Serial, CertificateText, CaKeys)> {
        let org = content.org;
        let keys = storage::ssh::keys_of(change.connection(), org).await?;
        let usage = Usage::Certificate(content.kind);
        let signer = self.signer(org, &keys, usage)?;
        let serial = storage::ssh::insert_certificate(change.connection(), content).await?;
        let random = &*self.inner.random;
        let certificate = signer.certify(random, serial, content, source)?;
        Ok((serial, certificate, storage::ssh::ca_keys(&keys)))
    }

    async fn insert_ssh_key(
        &self,
        change: &mut Change,
        org: OrgId,
        usage: Usage,
        state: KeyState,
    ) -> Result<(), storage::Error> {
        let random = &*self.inner.random;
        let mut seed = Zeroizing::new([0; SEED_LENGTH]);
        random.fill(&mut *seed);
        let signer = Signer::of_seed(&*seed).expect("a seed of 32 bytes is a key");
        let purpose = bound_to(org, usage);
        let sealed = self.inner.master_key.seal(random, &purpose, &*seed);
        let sealed = sealed.try_into().expect("a sealed seed has one length");
        let (now, public_key) = (change.now(), signer.public_key);
        let connection = change.connection();
        storage::ssh::insert_key(connection, now, org, usage, state, public_key, sealed).await
    }

    async fn delete_past_keys_of(
        &self,
        change: &mut Change,
        org: OrgId,
    ) -> Result<(), storage::Error> {
        let now = change.now();
        for key in storage::ssh::keys_of(change.connection(), org).await? {
            if key.trusted_until.is_some_and(|until| until <= now) {
                storage::ssh::delete_key(change.connection(), key.id).await?;
            }
        }
        Ok(())
    }

    /// Signs the statement of the keys as they are now, under the next version.
    async fn state_keys(&self, change: &mut Change, org: OrgId) -> anyhow::Result<()> {
        let connection = change.connection();
        let row = storage::org::org(connection, org).await?;
        let prefix = row.context("read the organisation")?.prefix;
        let known = storage::ssh::authority(connection, org).await?;
        let version = known.map_or(0, |authority| authority.version) + 1;
        let keys = storage::ssh::keys_of(connection, org).await?;
        let signer = self.signer(org, &keys, Usage::Statement)?;
        let message = Statement::message(prefix, version, &storage::ssh::ca_keys(&keys));
        let signature = signer.sign_bytes(&message);
        storage::ssh::upsert_authority(change.connection(), org, version, signature).await?;
        Ok(())
    }

    fn signer(&self, org: OrgId, keys: &[Key], usage: Usage) -> anyhow::Result<Signer> {
        let key = keys
            .iter()
            .find(|key| key.usage == usage && key.state == KeyState::Current)
            .context("the organisation has no SSH authority")?;
        let seed = self
            .inner
            .master_key
            .open(&bound_to(org, usage), &key.sealed);
        let seed =
            seed.context("open a sealed SSH key: the master key is not the one of this database")?;
        let signer = Signer::of_seed(&seed)?;
        anyhow::ensure!(
            signer.public_key == key.public_key,
            "a sealed SSH key is not the one of its row"
        );
        Ok(signer)
    }
}

impl From<storage::Error> for RotationRefused {
    fn from(error: storage::Error) -> Self {
        Self::Storage(error)
    }
}

/// Refuses a further key while those that were retired fill the room.
fn room_for_next(keys: &[Key]) -> Result<(), RotationRefused> {
    for kind in KINDS {
        let same = || {
            let usage = Usage::Certificate(kind);
            keys.iter().filter(move |key| key.usage == usage)
        };
        if same().count() >= CA_KEYS_MAX {
            let until = same().filter_map(|key| key.trusted_until).min();
            return Err(RotationRefused::StillTrusted(until.unwrap_or_default()));
        }
    }
    Ok(())
}

/// How long the last certificate of a key may live on.
fn ttl_max(usage: Usage) -> i64 {
    let seconds = match usage {
        Usage::Certificate(CertificateKind::User) => USER_TTL_SECONDS_MAX,
        Usage::Certificate(CertificateKind::Host) | Usage::Statement => HOST_TTL_SECONDS,
    };
    i64::try_from(seconds + BACKDATE_SECONDS).expect("days in seconds fit")
}

/// What the seal of a key covers beside its seed.
fn bound_to(org: OrgId, usage: Usage) -> Vec<u8> {
    format!("ginnel ssh {org} {}", usage.as_str()).into_bytes()
}

fn key_data(key: PublicKeyText) -> KeyData {
    KeyData::Ed25519(Ed25519PublicKey(key.0))
}
