//! The key under which secrets lie in the database, so that a copy of the database alone has none.

use std::path::Path;

use anyhow::Context as _;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::{Random, ca::write_private};

/// The key, which lies beside the database.
pub(crate) struct MasterKey(LessSafeKey);

const MASTER_KEY_FILE: &str = "master.key";

const NONCE_LENGTH: usize = 12;
const TAG_LENGTH: usize = 16;

/// By how many bytes what is sealed is longer.
pub(crate) const SEAL_LENGTH: usize = NONCE_LENGTH + TAG_LENGTH;

impl MasterKey {
    /// Reads the key from `data`, or makes it if nothing was sealed yet.
    pub(crate) fn load(data: &Path, random: &dyn Random, in_use: bool) -> anyhow::Result<Self> {
        let path = data.join(MASTER_KEY_FILE);
        if !path.exists() {
            anyhow::ensure!(
                !in_use,
                "the master key `{}` is missing, and the secrets in the database are sealed with \
                 it; copy it from another server of this database, or restore it from a backup",
                path.display()
            );
            let mut key = Zeroizing::new([0; 32]);
            random.fill(&mut *key);
            let text = Zeroizing::new(HEXLOWER.encode(&*key));
            write_private(&path, text.as_bytes())?;
        }
        let text = std::fs::read(&path).with_context(|| format!("read `{}`", path.display()))?;
        let text = Zeroizing::new(text);
        let key = HEXLOWER.decode(text.trim_ascii()).map(Zeroizing::new);
        let key = key
            .ok()
            .and_then(|key| UnboundKey::new(&AES_256_GCM, &key).ok());
        let key = key.with_context(|| format!("`{}` holds no key in hex", path.display()))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals a secret so that it opens for the same `purpose` only.
    pub(crate) fn seal(&self, random: &dyn Random, purpose: &[u8], secret: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LENGTH];
        random.fill(&mut nonce);
        let mut sealed = Vec::with_capacity(secret.len() + SEAL_LENGTH);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(secret);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let body = &mut sealed[NONCE_LENGTH..];
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(purpose), body)
            .expect("a secret is shorter than AES-GCM's limit");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens what [`MasterKey::seal`] made; `None` if another key or purpose sealed it.
    pub(crate) fn open(&self, purpose: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LENGTH)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .0
            .open_in_place(nonce, Aad::from(purpose), &mut body)
            .ok()?
            .len();
        body.truncate(length);
        Some(body)
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sevens;

    impl Random for Sevens {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    #[test]
    fn what_is_sealed_opens_for_its_purpose_only() {
        let data = tempfile::tempdir().unwrap();
        let key = MasterKey::load(data.path(), &Sevens, false).unwrap();
        let sealed = key.seal(&Sevens, b"one", b"secret");
        assert_eq!(sealed.len(), 6 + SEAL_LENGTH);
        assert_eq!(key.open(b"one", &sealed).unwrap().as_slice(), b"secret");
        assert!(key.open(b"two", &sealed).is_none());
        for length in 0..sealed.len() {
            assert!(key.open(b"one", &sealed[..length]).is_none());
        }
        let again = MasterKey::load(data.path(), &Sevens, true).unwrap();
        assert!(again.open(b"one", &sealed).is_some());
    }
}
