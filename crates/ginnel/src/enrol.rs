//! What `join`, `login` and `gateway` have in common: token, name and key of this machine.

use std::{fs::File, io::Read, path::PathBuf};

use anyhow::{Context as _, Result};
use model::{
    key::{PublicKey, SecretKey},
    name::Label,
    token::{self, Token},
};
use zeroize::Zeroizing;

use crate::{
    enrolment::State,
    remedy::{Advise as _, advise},
};

/// Refuses to enrol over a node that this directory already holds.
pub(crate) fn refuse_second(state: &State) -> Result<()> {
    if !state.is_enrolled() {
        return Ok(());
    }
    let enrolment = state.enrolment()?;
    Err(advise(
        format_args!(
            "this machine is already enrolled as `{}` at {}",
            enrolment.name, enrolment.url
        ),
        "run `ginnel logout` first, or keep a second node with --state DIR",
    ))
}

/// Where the token is.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenSource {
    /// The token; `-` reads it from standard input. Every user of this machine sees a command line
    #[arg(long, env = "GINNEL_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// A file that holds the token; it counts before --token and GINNEL_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Demands one of the flags of [`TokenSource`].
pub(crate) fn token_required() -> clap::ArgGroup {
    clap::ArgGroup::new("source")
        .args(["token", "token_file"])
        .required(true)
        .multiple(true)
}

impl TokenSource {
    /// Tells whether there is a token.
    pub(crate) fn is_given(&self) -> bool {
        self.token.is_some() || self.token_file.is_some()
    }

    /// Reads and parses the token.
    pub(crate) fn read(&self) -> Result<Token> {
        let text = match (&self.token_file, self.token.as_deref()) {
            (Some(path), _) => {
                let what = || format!("sign-in: read the token from `{}`", path.display());
                let file = File::open(path).with_context(what);
                let file = file.remedy("see that the file is there and that you may read it")?;
                read_text(file).with_context(what)?
            }
            (None, Some("-")) => {
                read_text(std::io::stdin()).context("read the token from standard input")?
            }
            (None, Some(text)) => Zeroizing::new(text.to_owned()),
            (None, None) => {
                return Err(advise(
                    "sign-in: there is no token",
                    "give it with --token-file FILE, by the environment variable GINNEL_TOKEN, \
                     or with --token; `ginnel token add` makes one",
                ));
            }
        };
        text.trim()
            .parse()
            .context("sign-in: read the token")
            .remedy("copy the whole token, from `ginnel-` to its last letter")
    }
}

fn read_text(from: impl Read) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let longest = token::TEXT_LENGTH_MAX as u64 + 2;
    from.take(longest).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns the name that was asked for, or the host's name where that is a DNS label.
pub(crate) fn name(asked: Option<Label>) -> Result<Label> {
    if let Some(name) = asked {
        return Ok(name);
    }
    let host = os::process::host_name().context("find this machine's name")?;
    let first = host.split('.').next().unwrap_or_default();
    first
        .parse()
        .with_context(|| format!("use the host name `{host}`"))
        .remedy("give a name with --name")
}

/// Computes the public key that belongs to `key`.
pub(crate) fn public_key(key: &SecretKey) -> PublicKey {
    PublicKey(wireguard::StaticSecret::new(*key.expose()).public_key().0)
}
