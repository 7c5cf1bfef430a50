//! `ginnel cert`: a key made here, certified for a short time, for any SSH client.

mod agent;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use model::ssh::{
    IssuedCertificate, Principal, PublicKeyText, USER_TTL_SECONDS_MAX, USER_TTL_SECONDS_MIN,
    UserCertificateRequest,
};
use russh::keys::ssh_key::{
    Certificate, LineEnding, PrivateKey,
    private::{Ed25519Keypair, KeypairData},
    public::KeyData,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    admin::{self, time},
    cli::Global,
    enrolment::{SSH_CERTIFICATE, SSH_KEY, State},
    remedy::Advise as _,
    ssh_config, terminal,
};

/// Get a certificate for SSH
///
/// Makes a key on this device and has it certified for a short time. The certificate works from
/// this device's address in the network only, and for the accounts that your role permits. Any
/// OpenSSH client can use it: see `ginnel ssh-config`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Put key and certificate into the running ssh-agent, which forgets them when they end;
    /// nothing is written to disk
    #[arg(long, conflicts_with = "out")]
    agent: bool,

    /// Write the key to FILE and the certificate to FILE-cert.pub [default: the state directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// How long the certificate is valid, from 1m to 24h
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,

    /// Ask for this account only; may be given several times
    #[arg(long = "principal", value_name = "ACCOUNT")]
    principals: Vec<Principal>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel cert                       for the hosts of `ginnel ssh-config`
  ginnel cert --agent --ttl 8h      for every program that asks the agent
  ginnel cert --out ./key && ssh -i ./key root@db.internal";

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    issued: &'a IssuedCertificate,
    key: Option<&'a Path>,
    agent: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    // Whoever cannot be reached is asked before a certificate is spent on it.
    let agent = if args.agent {
        Some(agent::connect().await?)
    } else {
        None
    };
    let key = make_key()?;
    let request = UserCertificateRequest {
        public_key: public_key(&key)?,
        ttl_seconds: Some(args.ttl.as_secs()),
        principals: args.principals,
    };
    let client = admin::client(global)?;
    let issued = client.certify_user(&request).await?;
    let certificate = Certificate::from_openssh(issued.certificate.as_str())
        .context("read the server's certificate")?;
    ensure!(
        certificate.public_key() == &KeyData::from(key.public_key()),
        "the server certified another key"
    );
    ssh_config::keep_known_hosts(&state, &issued.keys)?;
    let out = if let Some(mut agent) = agent {
        agent::add(&mut agent, &key, &certificate, args.ttl).await?;
        None
    } else {
        let path = args.out.unwrap_or_else(|| state.path(SSH_KEY));
        keep(&state, &path, &key, &issued)?;
        Some(path)
    };
    if global.json {
        terminal::json(&Printed {
            issued: &issued,
            key: out.as_deref(),
            agent: args.agent,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<_> = issued.principals.iter().map(Principal::as_str).collect();
    let place = out.map_or_else(
        || "in the agent".to_owned(),
        |path| format!("in {}", path.display()),
    );
    terminal::line(format_args!(
        "certificate {} for {}, until {}, {place}",
        issued.serial,
        names.join(" and "),
        time(issued.valid_before)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes an Ed25519 key from the system's randomness.
pub(crate) fn make_key() -> Result<PrivateKey> {
    let mut seed = Zeroizing::new([0; 32]);
    os::random::fill(&mut *seed);
    let pair = Ed25519Keypair::from_seed(&seed);
    PrivateKey::new(KeypairData::Ed25519(pair), "ginnel").context("make a key")
}

/// Returns the public half of `key` as the API takes it.
pub(crate) fn public_key(key: &PrivateKey) -> Result<PublicKeyText> {
    let text = key.public_key().to_openssh().context("write the key")?;
    text.parse().context("read the key back")
}

/// Writes the certificate last, so that it never lies beside an older key.
fn keep(state: &State, path: &Path, key: &PrivateKey, issued: &IssuedCertificate) -> Result<()> {
    if path == state.path(SSH_KEY) {
        state.make_directory()?;
    }
    let write = |path: &Path, content: &[u8]| {
        os::file::write_private(path, content)
            .with_context(|| format!("write `{}`", path.display()))
            .remedy("name a file in a directory that you may write to: --out FILE")
    };
    let certificate_path = certificate_path(path);
    match std::fs::remove_file(&certificate_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("replace `{}`", certificate_path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let text = key.to_openssh(LineEnding::LF).context("write the key")?;
    write(path, text.as_bytes())?;
    write(
        &certificate_path,
        format!("{}\n", issued.certificate).as_bytes(),
    )
}

/// Returns where OpenSSH looks for the certificate of the key at `path`.
fn certificate_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SSH_CERTIFICATE.trim_start_matches(SSH_KEY));
    PathBuf::from(name)
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (USER_TTL_SECONDS_MIN..=USER_TTL_SECONDS_MAX).contains(&ttl.as_secs()) {
        Ok(ttl)
    } else {
        Err("a certificate is valid for 1m to 24h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_lies_where_openssh_looks_for_it() {
        let path = certificate_path(Path::new("/tmp/key"));
        assert_eq!(path, Path::new("/tmp/key-cert.pub"));
    }

    #[test]
    fn a_lifetime_is_a_minute_to_a_day() {
        for text in ["1m", "90s", "24h", "1day"] {
            assert!(parse_ttl(text).is_ok(), "{text}");
        }
        for text in ["", "59s", "25h", "-1h", "1", "forever"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
