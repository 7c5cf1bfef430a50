//! The way in: a key in memory, certified for this login, and a host that the organisation
//! certifies.

use std::{str::FromStr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use model::ssh::{Principal, UserCertificateRequest};
use os::account::Account;
use russh::keys::{Certificate, ssh_key::public::KeyData};
use tokio::sync::watch;

use super::client::{Connection, Credentials, Offers, Transport, Trust};
use crate::{
    admin,
    agent::{Client, client::Pipe, protocol::Failure},
    cert,
    cli::Global,
    remedy::Advise as _,
};

/// Long enough to log in with clocks that differ.
const TTL: Duration = Duration::from_secs(5 * 60);

/// An account at a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    /// Without one it is the name of the own account.
    pub(super) user: Option<Principal>,
    /// Its name or address.
    pub(super) host: String,
}

/// Why a text names no account at a node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum MalformedTarget {
    #[error("write [USER@]HOST, such as root@db")]
    Host,
    #[error(transparent)]
    User(#[from] model::ssh::MalformedPrincipal),
}

/// How to get there.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Way {
    /// The port of its SSH server
    #[arg(short = 'P', long, default_value_t = 22,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: u16,

    /// Give up after this many seconds without a connection
    #[arg(long, default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(1..=300))]
    pub(super) timeout: u16,
}

/// Logs in at `target`, where the server may open what is offered.
pub(super) async fn log_in(
    target: &Target,
    way: Way,
    offers: Offers,
    global: &Global,
) -> Result<Connection> {
    let user = target.user.clone().map_or_else(own_name, Ok)?;
    let client = Client::of(global)?;
    let timeout = Duration::from_secs(way.timeout.into());
    // The control plane and the node are asked at once, so that a login costs one round of each.
    let (told, trust) = watch::channel(None);
    let certified = async {
        let (credentials, trust) = certify(&user, &target.host, global).await?;
        told.send_replace(Some(trust));
        Ok::<_, anyhow::Error>(credentials)
    };
    let opened = async {
        let pipe = client.dial(&target.host, way.port, timeout).await?;
        let Pipe { stream, .. } = pipe.map_err(Failure::into_error)?;
        Transport::open(stream, trust, offers).await
    };
    let (credentials, transport) = tokio::try_join!(certified, opened)?;
    transport.log_in(user.as_str(), credentials).await
}

/// Makes a key in memory and has it certified; also tells whom the organisation trusts.
async fn certify(user: &Principal, host: &str, global: &Global) -> Result<(Credentials, Trust)> {
    let key = cert::make_key()?;
    let request = UserCertificateRequest {
        public_key: cert::public_key(&key)?,
        ttl_seconds: Some(TTL.as_secs()),
        principals: vec![user.clone()],
    };
    let issued = admin::client(global)?.certify_user(&request).await?;
    let certificate = Certificate::from_openssh(issued.certificate.as_str())
        .context("read the server's certificate")?;
    ensure!(
        certificate.public_key() == &KeyData::from(key.public_key()),
        "the server certified another key"
    );
    let trust = Trust::new(host, &issued.keys);
    Ok((Credentials { key, certificate }, trust))
}

fn own_name() -> Result<Principal> {
    let account = Account::own().context("find the own account")?;
    let account = account
        .context("the user database does not know this process's user")
        .remedy("name the account: USER@HOST")?;
    let name = account.name.parse();
    name.context("the name of the own account")
        .remedy("name the account: USER@HOST")
}

impl FromStr for Target {
    type Err = MalformedTarget;

    fn from_str(text: &str) -> Result<Self, MalformedTarget> {
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user.parse()?), host),
            None => (None, text),
        };
        if host.is_empty() {
            return Err(MalformedTarget::Host);
        }
        let host = host.to_owned();
        Ok(Self { user, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_stands_before_the_last_at_sign() {
        let parse = |text: &str| {
            text.parse::<Target>()
                .ok()
                .map(|target| (target.user.map(|user| user.to_string()), target.host))
        };
        let named = |user: &str| Some((Some(user.to_owned()), "db".to_owned()));
        assert_eq!(parse("db"), Some((None, "db".to_owned())));
        assert_eq!(parse("root@db"), named("root"));
        assert_eq!(parse("me@example.org@db"), named("me@example.org"));
        for text in ["", "@db", "root@", "-oProxyCommand=x@db", "a b@db"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
