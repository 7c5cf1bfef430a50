//! The node's own SSH server at port 22 of its address, by what the map says of the authority.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use model::{
    address::OrgPrefix,
    ssh::{self, HOST_TTL_SECONDS, HostCertificateRequest, Recording, Statement},
};
use russh::keys::{
    Certificate,
    ssh_key::public::{Ed25519PublicKey, KeyData},
};
use tokio::time;
use tunnel::{TcpListener, Tunnel};

use crate::{
    api::Client,
    cert,
    remedy::Advise as _,
    ssh::{Authority, Identity, Lookup, Server},
};

const PORT: u16 = 22;

/// A key and its certificate serve so long, then both are made anew.
const RENEWAL: Duration = Duration::from_secs(HOST_TTL_SECONDS / 2);

/// The wait after a failure: the server is away, or another program has the port.
const BACK_OFF: Duration = Duration::from_secs(5);

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves SSH at the node's own address; until it has a certificate nobody is served.
pub(super) async fn serve(tunnel: Tunnel, client: Arc<Client>) -> Infallible {
    loop {
        match open(&tunnel, &client).await {
            Ok((listener, server)) => {
                // Connections that are open stay with the server that accepted them.
                let serving = accept(&listener, &server);
                match time::timeout(RENEWAL, serving).await {
                    Ok(never) => match never {},
                    Err(_) => tracing::info!("ssh: a new host key"),
                }
            }
            Err(error) => {
                tracing::warn!("ssh: {error:#}");
                time::sleep(BACK_OFF).await;
            }
        }
    }
}

async fn open(tunnel: &Tunnel, client: &Client) -> Result<(TcpListener, Server)> {
    let addresses = tunnel.with(|node, _| node.addresses());
    let own = addresses.first().context("this node has no address")?;
    let local = SocketAddr::new(*own, PORT);
    // First, so that no certificate is signed for a port that another program has.
    let listener = TcpListener::bind(tunnel, local)
        .with_context(|| format!("listen at {local}"))
        .remedy("stop what serves that port, or leave --ssh out")?;
    let key = cert::make_key()?;
    let public_key = cert::public_key(&key)?;
    let issued = client
        .certify_host(&HostCertificateRequest { public_key })
        .await?;
    let certificate = Certificate::from_openssh(issued.certificate.as_str())
        .context("read the server's certificate")?;
    let identity = Identity {
        key,
        certificate: Some(certificate),
    };
    let inside = tunnel.clone();
    let lookup: Lookup = Arc::new(move || {
        let known = known(&inside);
        Box::pin(async move { known.map(Arc::new) })
    });
    let server = Server::new(identity, lookup)?;
    tracing::info!(%local, "ssh: serving");
    Ok((listener, server))
}

async fn accept(listener: &TcpListener, server: &Server) -> Infallible {
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let (remote, local) = (stream.remote(), stream.local());
                tokio::spawn(server.serve(stream, remote, local));
            }
            Err(error) => {
                tracing::warn!(%error, "ssh: accept");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Returns whom the map trusts now.
fn known(tunnel: &Tunnel) -> Result<Authority, String> {
    let found = tunnel.with(|node, _| {
        let org = node.map()?.own_org()?;
        Some((org.prefix, org.ssh.clone()?))
    });
    let (prefix, authority) = found.ok_or("the map names no authority")?;
    verified(prefix, &authority)
}

/// Takes the keys of a statement that is signed as the organisation's.
fn verified(org: OrgPrefix, authority: &ssh::Authority) -> Result<Authority, String> {
    let Statement {
        version,
        keys,
        signature,
    } = &authority.statement;
    let message = Statement::message(org, *version, keys);
    UnparsedPublicKey::new(&ED25519, authority.signing_key.0)
        .verify(&message, &signature.0)
        .map_err(|_| "the statement of the CA keys is not signed by the organisation")?;
    match authority.recording {
        Recording::Off => {}
        Recording::Pty | Recording::All => {
            return Err("sessions have to be recorded, which this server cannot".to_owned());
        }
    }
    let key = |key: &ssh::PublicKeyText| KeyData::from(Ed25519PublicKey(key.0));
    Ok(Authority {
        user_ca: keys.user.iter().map(key).collect(),
        host_ca: keys.host.iter().map(key).collect(),
        revoked: authority.revoked.iter().map(|serial| serial.0).collect(),
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use model::ssh::{CaKeys, PublicKeyText, SignatureText};

    use super::*;

    fn signed() -> (OrgPrefix, ssh::Authority) {
        let org: OrgPrefix = "fd00:1:2::/48".parse().unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let keys = CaKeys {
            user: vec![PublicKeyText([2; 32])],
            host: vec![PublicKeyText([3; 32])],
        };
        let signature = pair.sign(&Statement::message(org, 4, &keys));
        let authority = ssh::Authority {
            signing_key: PublicKeyText(pair.public_key().as_ref().try_into().unwrap()),
            statement: Statement {
                version: 4,
                keys,
                signature: SignatureText(signature.as_ref().try_into().unwrap()),
            },
            revoked: [ssh::Serial(5)].into(),
            recording: Recording::Off,
        };
        (org, authority)
    }

    #[test]
    fn keys_count_as_long_as_their_statement_is_signed() {
        let (org, authority) = signed();
        let known = verified(org, &authority).unwrap();
        assert_eq!((known.user_ca.len(), known.host_ca.len()), (1, 1));
        assert!(known.revoked.contains(&5));
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut OrgPrefix, &mut ssh::Authority), refusal: &str) {
        let (mut org, mut authority) = signed();
        change(&mut org, &mut authority);
        let said = verified(org, &authority).unwrap_err();
        assert!(said.contains(refusal), "{said}");
    }

    #[test]
    fn a_changed_statement_lets_nobody_in() {
        const REFUSAL: &str = "not signed by the organisation";
        let other = PublicKeyText([9; 32]);
        check(|_, known| known.statement.keys.user.push(other), REFUSAL);
        check(|_, known| known.statement.version += 1, REFUSAL);
        check(|_, known| known.signing_key = other, REFUSAL);
        let elsewhere = "fd00:1:3::/48".parse().unwrap();
        check(|org, _| *org = elsewhere, REFUSAL);
    }

    #[test]
    fn who_must_record_and_cannot_lets_nobody_in() {
        check(|_, known| known.recording = Recording::Pty, "recorded");
        check(|_, known| known.recording = Recording::All, "recorded");
    }
}
