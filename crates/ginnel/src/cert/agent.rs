//! Adding a key with its certificate to a running ssh-agent (draft-ietf-sshm-ssh-agent, 3.2).
//!
//! The agent's client of the SSH library cannot carry a certificate, and the message is short.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use russh::keys::ssh_key::{Certificate, PrivateKey, private::KeypairData};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use zeroize::Zeroizing;

use crate::remedy::{Advise as _, advise};

/// How long the agent may take: it may ask a person.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

const SSH_AGENT_SUCCESS: u8 = 6;
const SSH_AGENTC_ADD_ID_CONSTRAINED: u8 = 25;
const SSH_AGENT_CONSTRAIN_LIFETIME: u8 = 1;

const CERTIFICATE_ALGORITHM: &[u8] = b"ssh-ed25519-cert-v01@openssh.com";

const START_AN_AGENT: &str = "start one: `eval $(ssh-agent)`, or use `ginnel cert` without --agent";

/// Connects to the agent of this session.
pub(super) async fn connect() -> Result<UnixStream> {
    let path = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
    let path = path.map(PathBuf::from).ok_or_else(|| {
        advise(
            "ssh-agent: SSH_AUTH_SOCK is not set, so no agent runs",
            START_AN_AGENT,
        )
    })?;
    UnixStream::connect(&path)
        .await
        .with_context(|| format!("ssh-agent: connect to `{}`", path.display()))
        .remedy(START_AN_AGENT)
}

/// Adds a key with its certificate; the agent forgets both after `lifetime`.
pub(super) async fn add(
    agent: &mut (impl AsyncRead + AsyncWrite + Unpin),
    key: &PrivateKey,
    certificate: &Certificate,
    lifetime: Duration,
) -> Result<()> {
    let message = message(key, certificate, lifetime)?;
    let exchange = async {
        agent.write_all(&message).await?;
        let mut reply = [0; 5];
        agent.read_exact(&mut reply).await?;
        std::io::Result::Ok(reply)
    };
    let reply = timeout(AGENT_TIMEOUT, exchange)
        .await
        .context("ssh-agent: wait for its answer")?
        .context("ssh-agent: send it the key")?;
    if reply == [0, 0, 0, 1, SSH_AGENT_SUCCESS] {
        return Ok(());
    }
    Err(advise(
        "ssh-agent: it did not take the key",
        "it may be locked, or know no certificates: use OpenSSH's ssh-agent, or --out FILE",
    ))
}

fn message(
    key: &PrivateKey,
    certificate: &Certificate,
    lifetime: Duration,
) -> Result<Zeroizing<Vec<u8>>> {
    let KeypairData::Ed25519(pair) = key.key_data() else {
        anyhow::bail!("an agent is given Ed25519 keys only");
    };
    let secret = Zeroizing::new(pair.to_bytes());
    let lifetime = u32::try_from(lifetime.as_secs()).context("a lifetime of days at most")?;
    let blob = certificate.to_bytes().context("write the certificate")?;
    // Large enough that the vector never moves and leaves a copy of the key behind.
    let mut message = Zeroizing::new(Vec::with_capacity(blob.len() + 512));
    message.extend_from_slice(&[0; 4]);
    message.push(SSH_AGENTC_ADD_ID_CONSTRAINED);
    for string in [
        CERTIFICATE_ALGORITHM,
        &blob,
        pair.public.as_ref(),
        &*secret,
        certificate.key_id().as_bytes(),
    ] {
        let length = u32::try_from(string.len()).context("a string of some KiB at most")?;
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(string);
    }
    message.push(SSH_AGENT_CONSTRAIN_LIFETIME);
    message.extend_from_slice(&lifetime.to_be_bytes());
    let length = u32::try_from(message.len() - 4).context("a message of some KiB at most")?;
    message[..4].copy_from_slice(&length.to_be_bytes());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::{
        certificate::Builder,
        private::{Ed25519Keypair, KeypairData},
    };
    use tokio::io::duplex;

    use super::*;

    fn pair() -> (PrivateKey, Certificate) {
        let key = |byte| {
            let pair = Ed25519Keypair::from_seed(&[byte; 32]);
            PrivateKey::new(KeypairData::Ed25519(pair), "").expect("a key")
        };
        let (key, ca) = (key(1), key(2));
        let mut builder = Builder::new([0; 16], key.public_key(), 1, 2).expect("a builder");
        builder.valid_principal("root").expect("a principal");
        builder.key_id("user=admin").expect("a key ID");
        let certificate = builder.sign(&ca).expect("a certificate");
        (key, certificate)
    }

    #[test]
    fn the_message_is_key_certificate_and_lifetime() {
        let (key, certificate) = pair();
        let hour = Duration::from_secs(3600);
        let message = message(&key, &certificate, hour).expect("a message");
        assert_eq!(
            message[..4],
            u32::try_from(message.len() - 4).unwrap().to_be_bytes()
        );
        assert_eq!(message[4], 25);
        assert_eq!(message[5..9], [0, 0, 0, 32]);
        assert_eq!(&message[9..41], CERTIFICATE_ALGORITHM);
        assert_eq!(message[message.len() - 5..], [1, 0, 0, 14, 16]);
        assert!(message.len() < message.capacity(), "it never moved");
    }

    #[tokio::test]
    async fn an_agent_that_refuses_or_talks_nonsense_is_an_error() {
        let (key, certificate) = pair();
        let hour = Duration::from_secs(3600);
        for (reply, taken) in [
            (vec![0, 0, 0, 1, 6], true),
            (vec![0, 0, 0, 1, 5], false),
            // RUSTSEC-2026-0153 and -0154: a length that no frame has is not believed.
            (vec![255, 255, 255, 255, 6], false),
            (vec![255; 1 << 16], false),
            (vec![0, 0], false),
            (vec![], false),
        ] {
            let (mut ours, mut theirs) = duplex(1 << 16);
            theirs.write_all(&reply).await.expect("room");
            theirs.shutdown().await.expect("an end");
            let added = add(&mut ours, &key, &certificate, hour).await;
            assert_eq!(added.is_ok(), taken, "{reply:?}");
        }
    }
}
