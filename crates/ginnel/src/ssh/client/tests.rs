//! Our client at our server, in memory: who is believed, and how a command ends.

use std::{net::SocketAddr, sync::Arc};

use model::ssh::{CaKeys, PublicKeyText};
use os::account::Account;
use russh::keys::{
    Certificate, PrivateKey,
    ssh_key::{
        certificate::{Builder, CertType},
        private::{Ed25519Keypair, KeypairData},
    },
};

use super::*;
use crate::ssh::{Authority, Identity, Organisation, Server};

const USER_CA: u8 = 1;
const HOST_CA: u8 = 2;
const OTHER_CA: u8 = 3;

fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "").unwrap()
}

fn certify(subject: &PrivateKey, kind: CertType, name: &str, ca: u8) -> Certificate {
    let now = os::clock::wall().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    let public_key = subject.public_key().key_data().clone();
    let mut builder = Builder::new([7; 16], public_key, now - 60, now + 600).unwrap();
    builder.cert_type(kind).unwrap();
    builder.valid_principal(name).unwrap();
    builder.sign(&key(ca)).unwrap()
}

/// Whom the client trusts: what `HOST_CA` certifies.
fn keys() -> CaKeys {
    let text = |seed: u8| -> PublicKeyText {
        key(seed)
            .public_key()
            .to_openssh()
            .unwrap()
            .parse()
            .unwrap()
    };
    CaKeys {
        user: vec![text(USER_CA)],
        host: vec![text(HOST_CA)],
    }
}

/// Logs in to `host` at a server with `certificate`, by a certificate of `user_ca`.
async fn log_in(host: &str, certificate: Option<Certificate>, user_ca: u8) -> Result<Connection> {
    let authority = Arc::new(Authority {
        user_ca: vec![key(USER_CA).public_key().key_data().clone()],
        ..Authority::default()
    });
    let identity = Identity {
        key: key(9),
        certificate,
    };
    let lookup = move |_| -> crate::ssh::server::Answer {
        let authority = Arc::clone(&authority);
        Box::pin(async move { Ok(authority) })
    };
    let organisation = Organisation {
        authority: Arc::new(lookup),
        refused: Arc::new(|_| ()),
        archive: None,
    };
    let server = Server::new(identity, organisation).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let address: SocketAddr = "[fd00::1]:22".parse().unwrap();
    tokio::spawn(server.serve(far, address, address));
    let user = Account::own().unwrap().unwrap().name;
    let credentials = Credentials {
        key: key(5),
        certificate: certify(&key(5), CertType::User, &user, user_ca),
    };
    let (_, trust) = watch::channel(Some(Trust::new(host, &keys())));
    let transport = Transport::open(near, trust, Offers::default()).await?;
    transport.log_in(&user, credentials).await
}

#[track_caller]
fn check(host: &str, certificate: Option<Certificate>, user_ca: u8, refusal: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(log_in(host, certificate, user_ca));
    let said = result.err().map(|error| format!("{error:#}"));
    match (&said, refusal) {
        (None, None) => {}
        (Some(said), Some(expected)) => assert!(said.contains(expected), "{said}"),
        (None, Some(_)) | (Some(_), None) => panic!("{said:?}, expected {refusal:?}"),
    }
}

fn host_certificate(name: &str, ca: u8) -> Option<Certificate> {
    Some(certify(&key(9), CertType::Host, name, ca))
}

#[test]
fn a_host_that_the_organisation_certifies_is_believed_by_its_short_name_too() {
    let certificate = host_certificate("db.internal", HOST_CA);
    check("db.internal", certificate.clone(), USER_CA, None);
    check("db", certificate.clone(), USER_CA, None);
    check("DB.internal.", certificate, USER_CA, None);
}

#[test]
fn a_host_that_another_authority_certifies_is_not_believed() {
    let certificate = host_certificate("db.internal", OTHER_CA);
    check(
        "db",
        certificate,
        USER_CA,
        Some("it was signed by another CA"),
    );
    let certificate = host_certificate("db.internal", USER_CA);
    check(
        "db",
        certificate,
        USER_CA,
        Some("it was signed by another CA"),
    );
}

#[test]
fn another_host_of_the_organisation_is_not_believed() {
    let certificate = host_certificate("web.internal", HOST_CA);
    let refusal = "it is for `web.internal`, not for `db.internal`";
    check("db", certificate, USER_CA, Some(refusal));
}

#[test]
fn a_bare_host_key_is_never_believed() {
    check(
        "db",
        None,
        USER_CA,
        Some("it shows a key without a certificate"),
    );
}

#[test]
fn a_user_certificate_of_a_host_is_not_believed() {
    let certificate = certify(&key(9), CertType::User, "db", HOST_CA);
    check("db", Some(certificate), USER_CA, Some("not believed"));
}

#[test]
fn who_is_not_let_in_is_told_so() {
    let certificate = host_certificate("db", HOST_CA);
    check("db", certificate, OTHER_CA, Some("does not let us in as"));
}
