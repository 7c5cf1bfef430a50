//! The state directory of an enrolled node: who it is, its key, its last map.

use std::{
    io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use model::{
    api::{Enrolled, LoggedIn, Timestamp},
    id::{NodeId, UserId},
    key::SecretKey,
    map::NetworkMap,
    name::Label,
    token::Token,
};
use os::file::{Lock, LockError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    authority::Pin,
    cli::Global,
    remedy::{Advise as _, advise},
    state,
};

/// The directory that holds what a node must remember, all of it with mode 0600.
#[derive(Clone, Debug)]
pub(crate) struct State {
    directory: PathBuf,
}

/// Who this node is, as its server told it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Enrolment {
    /// URL of the server.
    pub(crate) url: String,
    /// Id of the node.
    pub(crate) id: NodeId,
    /// Its name.
    pub(crate) name: Label,
    /// Its organisation; a gateway belongs to none.
    pub(crate) org: Option<Label>,
    /// Its address; a gateway has one in each organisation.
    pub(crate) address: Option<Ipv6Addr>,
    /// Its credential, which also pins the server.
    pub(crate) token: Token,
}

/// Who has signed in on this device.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Session {
    /// The person.
    pub(crate) user: UserId,
    /// The person's name.
    pub(crate) name: Label,
    /// The person's credential.
    pub(crate) token: Token,
    /// When it ends.
    pub(crate) expires: Timestamp,
}

const ENROLMENT: &str = "node.json";
const SESSION: &str = "session.json";
const MAP: &str = "map.json";
const PRIVATE_KEY: &str = "private.key";
/// The key that shall replace it; there only while the server may not know it yet.
const NEXT_KEY: &str = "private.key.next";
/// Whom the organisation lets sign the statement of its CA keys, and its last version.
pub(crate) const SSH_AUTHORITY: &str = "ssh_authority.json";
/// The key that `ginnel cert` makes.
pub(crate) const SSH_KEY: &str = "ssh_user";
/// Its certificate, where OpenSSH looks for it.
pub(crate) const SSH_CERTIFICATE: &str = "ssh_user-cert.pub";
/// Whom the organisation trusts to certify hosts.
pub(crate) const SSH_KNOWN_HOSTS: &str = "ssh_known_hosts";
/// Every file that [`State::clear`] removes: all that enrolling made.
const FILES: [&str; 12] = [
    ENROLMENT,
    SESSION,
    MAP,
    PRIVATE_KEY,
    NEXT_KEY,
    "endpoints.json",
    "sources.json",
    "timestamp.json",
    SSH_AUTHORITY,
    SSH_KEY,
    SSH_CERTIFICATE,
    SSH_KNOWN_HOSTS,
];

const NOT_ENROLLED: &str = "enrol it: `ginnel login URL --token T` for a person's device, \
                            `ginnel join URL --token T` for a machine";

impl State {
    /// Finds the directory: `--state`, or the user's own, or the system's for root.
    pub(crate) fn locate(global: &Global) -> Result<Self> {
        Ok(Self::at(state::directory(global)?))
    }

    /// Finds the same directory from anywhere, for files that other programs read.
    pub(crate) fn absolute(self) -> Result<Self> {
        let directory = std::path::absolute(&self.directory);
        let directory = directory
            .with_context(|| format!("find `{}` from anywhere", self.directory.display()))
            .remedy("name the whole path: --state DIR")?;
        Ok(Self { directory })
    }

    /// Takes `directory`, which need not exist yet.
    pub(crate) fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Reads who this node is.
    pub(crate) fn enrolment(&self) -> Result<Enrolment> {
        self.read(ENROLMENT)?
            .with_context(|| {
                format!(
                    "this machine is not enrolled: `{}` holds no node",
                    self.directory.display()
                )
            })
            .remedy(NOT_ENROLLED)
    }

    /// Tells whether the directory holds a node.
    pub(crate) fn is_enrolled(&self) -> bool {
        self.directory.join(ENROLMENT).exists()
    }

    /// Reads who has signed in; `None` on a machine that joined by a token.
    pub(crate) fn session(&self) -> Result<Option<Session>> {
        self.read(SESSION)
    }

    /// Reads the last map.
    pub(crate) fn map(&self) -> Result<Option<NetworkMap>> {
        self.read(MAP)
    }

    /// Reads the private key; `None` before the first enrolment.
    pub(crate) fn private_key(&self) -> Result<Option<SecretKey>> {
        self.read_key(PRIVATE_KEY)
    }

    /// Reads the key that shall replace it; `None` when none shall.
    pub(crate) fn next_key(&self) -> Result<Option<SecretKey>> {
        self.read_key(NEXT_KEY)
    }

    fn read_key(&self, name: &str) -> Result<Option<SecretKey>> {
        let path = self.directory.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .with_context(|| format!("read the private key in `{}`", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
        }
    }

    /// Reads the private key, or makes one and keeps it.
    pub(crate) fn private_key_or_new(&self) -> Result<SecretKey> {
        self.key_or_new(PRIVATE_KEY)
    }

    /// Reads the key that shall replace the private key, or makes one and keeps it.
    pub(crate) fn next_key_or_new(&self) -> Result<SecretKey> {
        self.key_or_new(NEXT_KEY)
    }

    /// Keeps the next key as the private key. What is written first makes every crash harmless:
    /// until the next key is gone, it is told to the server once more.
    pub(crate) fn keep_next_key(&self, key: &SecretKey) -> Result<()> {
        let text = zeroize::Zeroizing::new(key.to_base64());
        self.write_bytes(PRIVATE_KEY, text.as_bytes())?;
        let path = self.directory.join(NEXT_KEY);
        std::fs::remove_file(&path).with_context(|| format!("remove `{}`", path.display()))
    }

    fn key_or_new(&self, name: &str) -> Result<SecretKey> {
        if let Some(key) = self.read_key(name)? {
            return Ok(key);
        }
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        os::random::fill(&mut *bytes);
        let key = SecretKey::new(*bytes);
        let text = zeroize::Zeroizing::new(key.to_base64());
        self.write_bytes(name, text.as_bytes())?;
        Ok(key)
    }

    /// Keeps what the server said when this node was enrolled. The map comes first: a node that
    /// knows who it is can always start.
    pub(crate) fn keep_enrolled(&self, url: &str, enrolled: &Enrolled) -> Result<()> {
        self.keep_map(&enrolled.map)?;
        if let Some(pin) = Pin::of(&enrolled.map) {
            self.write(SSH_AUTHORITY, &pin)?;
        }
        self.keep_enrolment(&Enrolment {
            url: url.to_owned(),
            id: enrolled.id,
            name: enrolled.name.clone(),
            org: Some(enrolled.org.clone()),
            address: Some(enrolled.address),
            token: enrolled.node_token.clone(),
        })
    }

    /// Keeps who this node is.
    pub(crate) fn keep_enrolment(&self, enrolment: &Enrolment) -> Result<()> {
        self.write(ENROLMENT, enrolment)
    }

    /// Keeps who has signed in.
    pub(crate) fn keep_session(&self, answer: &LoggedIn) -> Result<()> {
        let session = Session {
            user: answer.user,
            name: answer.user_name.clone(),
            token: answer.session_token.clone(),
            expires: answer.session_expires,
        };
        self.write(SESSION, &session)
    }

    /// Keeps the last map, from which the node starts when the server is away.
    pub(crate) fn keep_map(&self, map: &NetworkMap) -> Result<()> {
        self.write(MAP, map)
    }

    /// Keeps a second process of the same kind away while this one lives.
    pub(crate) fn lock(&self, kind: &str) -> Result<Lock> {
        self.make_directory()?;
        let path = self.directory.join(format!("{kind}.lock"));
        Lock::acquire(&path).map_err(|error| match error {
            LockError::Held { pid: holder } => {
                let holder = holder.map_or_else(String::new, |pid| format!(", process {pid}"));
                advise(
                    format_args!("another {kind} uses `{}`{holder}", self.directory.display()),
                    "stop it, or name another directory",
                )
            }
            LockError::Io(error) => {
                anyhow::Error::from(error).context(format!("lock `{}`", path.display()))
            }
        })
    }

    /// Reads a small file of another part, such as the gateway's endpoints.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.directory.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("read `{}`", path.display()))
                .remedy("the file is damaged: restore it, or remove it and enrol again"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
        }
    }

    /// Writes a small file of another part, atomically.
    pub(crate) fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = zeroize::Zeroizing::new(serde_json::to_vec(value)?);
        self.write_bytes(name, &bytes)
    }

    /// Forgets the node: its name, its key, its map and its session.
    pub(crate) fn clear(&self) -> Result<()> {
        for name in FILES {
            let path = self.directory.join(name);
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("remove `{}`", path.display()));
                }
            }
        }
        Ok(())
    }

    /// Returns the directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes the directory, for its owner alone.
    pub(crate) fn make_directory(&self) -> Result<()> {
        os::file::create_private_directory(&self.directory)
            .with_context(|| format!("create `{}`", self.directory.display()))
            .remedy("name a directory that you may write to")
    }

    fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.make_directory()?;
        let path = self.directory.join(name);
        os::file::write_private(&path, bytes).with_context(|| format!("write `{}`", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_forgotten_on_clear() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let state = State::at(directory.path().join("state"));
        let key = state.private_key_or_new().expect("a key");
        assert_eq!(state.private_key_or_new().expect("the same key"), key);
        state.clear().expect("nothing in the way");
        assert_eq!(state.private_key().expect("readable"), None);
    }

    #[test]
    fn a_machine_without_a_node_says_how_to_enrol() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let error = State::at(directory.path()).enrolment().unwrap_err();
        assert!(format!("{error:#}").contains("not enrolled"));
        assert_eq!(crate::remedy::remedy_of(&error), Some(NOT_ENROLLED));
    }
}
