//! Which tunnel an agent holds: that of a plain configuration or of an enrolled node.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use model::config::Config;

use super::{enrolled, plain};
use crate::{
    cli::Global,
    enrolled::{Asked, Contact, Led, NodeKey, Sites},
    enrolment::State,
    remedy::{Advise as _, advise},
    state,
};
use tunnel::{Tunnel, Wanted};

/// A profile. One agent at most runs for each.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    kind: Kind,
    /// Directory of sockets and locks.
    run: PathBuf,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A wg-quick file.
    Plain(Box<Plain>),
    /// The state directory of an enrolled node.
    Enrolled(PathBuf),
}

#[derive(Clone, Debug)]
struct Plain {
    path: PathBuf,
    config: Config,
    fingerprint: u64,
}

/// What an agent works with: the tunnel, and what has to run beside it.
pub(crate) struct Opened {
    /// The tunnel.
    pub(crate) tunnel: Tunnel,
    /// The node's key; `None` when it stands in a configuration, whose owner replaces it.
    pub(crate) key: Option<NodeKey>,
    /// How it stands with the server at that URL; `None` with a plain configuration.
    pub(crate) control: Option<(String, Contact)>,
    /// The connections that are led from published ports to programs.
    pub(crate) led: Led,
    /// Captures that others ask this node for.
    pub(crate) asked: Asked,
    /// How it stands with the sites behind the node.
    pub(crate) sites: Sites,
    /// Ends with the agent: keeps endpoints resolved, follows the map, accepts for services.
    pub(crate) background: Background,
}

/// Work that goes on until the agent ends; an error ends the agent.
pub(crate) type Background =
    std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'static>>;

/// A path in a socket address has at most 107 bytes (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

impl Profile {
    /// Reads which profile the command line names.
    pub(crate) fn of(global: &Global) -> anyhow::Result<Self> {
        let kind = match &global.config {
            Some(path) => Kind::Plain(Box::new(Plain::read(path)?)),
            None => Kind::Enrolled(state::directory(global)?),
        };
        let profile = Self {
            kind,
            run: state::run_directory(global)?,
        };
        let length = profile.socket().as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(advise(
                format!("`{}` is too long for a socket", profile.socket().display()),
                "name a shorter directory: --state DIR or XDG_RUNTIME_DIR=DIR",
            ));
        }
        Ok(profile)
    }

    /// Returns the path of the agent's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join(format!("{}.sock", self.name()))
    }

    /// Returns the path of the lock that the agent holds while it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run.join(format!("{}.lock", self.name()))
    }

    /// Returns the path of the agent's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.run.join(format!("{}.log", self.name()))
    }

    /// Returns a digest that changes when the configuration is edited.
    pub(crate) fn fingerprint(&self) -> String {
        match &self.kind {
            Kind::Plain(plain) => format!("{:016x}", plain.fingerprint),
            // The agent of an enrolled node follows its map by itself.
            Kind::Enrolled(_) => String::new(),
        }
    }

    /// Returns how long an agent of this profile stays without work.
    pub(crate) fn idle_default(&self) -> Duration {
        match self.kind {
            // It is quick to start and somebody else may want the key.
            Kind::Plain(_) => Duration::from_secs(30),
            Kind::Enrolled(_) => Duration::from_secs(600),
        }
    }

    /// Returns the flags with which another process finds this profile.
    pub(crate) fn flags(&self, global: &Global) -> Vec<std::ffi::OsString> {
        let mut flags = Vec::new();
        if let Some(state) = &global.state {
            flags.extend(["--state".into(), state.into()]);
        }
        if let Kind::Plain(plain) = &self.kind {
            flags.extend(["--config".into(), plain.path.clone().into()]);
        }
        flags
    }

    /// Opens the tunnel, in user mode unless an interface is wanted; `ssh`: serves that too.
    pub(crate) async fn open(
        &self,
        interface: Option<&Wanted>,
        ssh: bool,
    ) -> anyhow::Result<Opened> {
        match &self.kind {
            Kind::Plain(_) if interface.is_some_and(|wanted| wanted.required) => Err(advise(
                "TUN: a plain configuration runs in user mode only",
                "leave --tun out; for an interface use wg-quick(8) with `ginnel tun`",
            )),
            Kind::Plain(_) if ssh => Err(advise(
                "SSH: a plain configuration has no authority that certifies users",
                "leave --ssh out",
            )),
            Kind::Plain(plain) => plain::open(&plain.config),
            Kind::Enrolled(state) => enrolled::open(State::at(state), interface, ssh).await,
        }
    }

    /// A short name, safe as a file name and unique for this user.
    fn name(&self) -> String {
        match &self.kind {
            Kind::Plain(plain) => {
                // 16 bytes of the public key: short enough for a socket path, never the same for
                // two keys that exist.
                let key = plain::public_key(&plain.config);
                format!(
                    "plain-{}",
                    data_encoding::BASE32_NOPAD
                        .encode(&key.0[..16])
                        .to_lowercase()
                )
            }
            Kind::Enrolled(state) => {
                format!("node-{:016x}", digest(state.as_os_str().as_encoded_bytes()))
            }
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Plain(plain) => write!(f, "{}", plain.path.display()),
            Kind::Enrolled(state) => write!(f, "{}", state.display()),
        }
    }
}

impl Plain {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path).context("find the configuration")?;
        let text = fs::read(&path)
            .with_context(|| format!("configuration: read `{}`", path.display()))
            .remedy("give the path of a WireGuard configuration that you may read")?;
        let config = Config::parse(&text)
            .with_context(|| format!("configuration: `{}`", path.display()))
            .remedy("correct that line; the format is that of wg-quick(8)")?;
        Ok(Self {
            fingerprint: digest(&text),
            path,
            config,
        })
    }
}

/// Tells texts apart; it guards nothing (FNV-1a, 64 bits).
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
