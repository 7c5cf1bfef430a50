//! What `join`, `login` and `gateway` have in common: token, name and key of this machine.

use std::io::Read as _;

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

/// Parses the token of the command line, or of standard input for `-`.
pub(crate) fn token(text: &str) -> Result<Token> {
    let text = if text == "-" {
        Zeroizing::new(token_from_stdin()?)
    } else {
        Zeroizing::new(text.to_owned())
    };
    text.trim()
        .parse()
        .context("sign-in: read the token")
        .remedy("copy the whole token, from `ginnel-` to its last letter")
}

fn token_from_stdin() -> Result<String> {
    let mut text = String::new();
    let longest = token::TEXT_LENGTH_MAX as u64 + 2;
    std::io::stdin()
        .take(longest)
        .read_to_string(&mut text)
        .context("read the token from standard input")?;
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
