//! A login that a node refuses is in the audit of the organisation, with the reason.

use std::{fs, process::Stdio, sync::Arc};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use russh::{
    client,
    keys::{
        Certificate, PrivateKey, PublicKeyOrCertificate,
        ssh_key::{
            certificate::{Builder, CertType},
            private::{Ed25519Keypair, KeypairData},
        },
    },
};

use crate::{
    ssh::world,
    world::{World, finish, wait_for},
};

struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// What is shown to the server.
enum Shown {
    Certificate(Box<Certificate>),
    Key,
    Password,
}

fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "").expect("a key")
}

/// The key with which the organisation certifies users, as the server's operator could read it.
fn authority(world: &World) -> PrivateKey {
    let script = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute(\"select org, \
                  hex(sealed) from ssh_key where usage='user' and state='current'\").fetchone())";
    let mut python = std::process::Command::new("python3");
    let row = finish(
        python
            .args(["-c", script])
            .arg(world.path("data/ginnel.db")),
    );
    let row = row.stdout.replace(['(', ')', '\'', ','], " ");
    let mut words = row.split_whitespace();
    let org = words.next().expect("an organisation");
    let sealed = HEX.decode(words.next().expect("a seed").as_bytes());
    let sealed = sealed.expect("hex");
    let master = fs::read(world.path("data/master.key")).expect("a key");
    let master = HEX.decode(master.trim_ascii()).expect("hex");
    let master = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &master).expect("a key"));
    let (nonce, body) = sealed.split_at(12);
    let nonce = Nonce::try_assume_unique_for_key(nonce).expect("a nonce");
    let mut body = body.to_vec();
    let bound = Aad::from(format!("ginnel ssh {org} user").into_bytes());
    let seed = master
        .open_in_place(nonce, bound, &mut body)
        .expect("sealed");
    let seed: [u8; 32] = (&*seed).try_into().expect("32 bytes");
    let pair = Ed25519Keypair::from_seed(&seed);
    PrivateKey::new(KeypairData::Ed25519(pair), "").expect("a key")
}

fn ecdsa(world: &World) -> PrivateKey {
    let path = world.path("ecdsa");
    let mut keygen = std::process::Command::new("ssh-keygen");
    let made = finish(
        keygen
            .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
            .arg(&path),
    );
    assert_eq!(made.code, Some(0), "{made:?}");
    PrivateKey::read_openssh_file(&path).expect("a key")
}

fn now() -> u64 {
    let now = os::clock::wall().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A certificate of the test's key for root that would be accepted, unless it is changed.
fn certificate(
    signer: &PrivateKey,
    kind: CertType,
    (after, before): (u64, u64),
    change: impl FnOnce(&mut Builder),
) -> Certificate {
    let subject = key(5).public_key().key_data().clone();
    let mut builder = Builder::new([7; 16], subject, after, before).expect("times");
    builder.cert_type(kind).expect("once");
    builder.serial(1_000_000).expect("once");
    builder.key_id("forged").expect("once");
    change(&mut builder);
    builder.sign(signer).expect("a certificate")
}

fn named(builder: &mut Builder, principal: &str) {
    builder.valid_principal(principal).expect("a name");
}

fn option(builder: &mut Builder, name: &str, value: &str) {
    builder.critical_option(name, value).expect("once");
}

/// The certificate with another key ID, which nobody has signed.
fn changed(certificate: &Certificate) -> Certificate {
    let mut bytes = certificate.to_bytes().expect("a certificate");
    let key_id = b"forged";
    let at = bytes
        .windows(key_id.len())
        .position(|part| part == key_id)
        .expect("it has that key ID");
    bytes[at] ^= 1;
    Certificate::from_bytes(&bytes).expect("a certificate")
}

/// Tries to log in to `shed` as root.
fn attempt(world: &World, shown: Shown) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let dial = world.ginnel("laptop", &["dial", "shed", "22"]);
        let mut dial = tokio::process::Command::from(dial)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start");
        let stream = tokio::io::join(
            dial.stdout.take().expect("piped"),
            dial.stdin.take().expect("piped"),
        );
        let config = Arc::new(client::Config::default());
        let mut handle = client::connect_stream(config, stream, Anybody)
            .await
            .expect("keys");
        let none = handle.authenticate_none("root").await.expect("an answer");
        assert!(!none.success());
        let key = Arc::new(key(5));
        let answer = match shown {
            Shown::Certificate(certificate) => {
                handle
                    .authenticate_openssh_cert("root", key, *certificate)
                    .await
            }
            Shown::Key => {
                let key = russh::keys::PrivateKeyWithHashAlg::new(key, None);
                handle.authenticate_publickey("root", key).await
            }
            Shown::Password => handle.authenticate_password("root", "secret").await,
        };
        answer.is_ok_and(|answer| answer.success())
    })
}

/// What the audit says of refused logins, oldest first.
fn audited(world: &World) -> Vec<String> {
    let rows = world.json("laptop", &["audit", "list"]);
    let rows = rows.as_array().expect("a list").iter();
    let rows = rows.filter(|row| row["action"] == "ssh_login_refused");
    rows.filter_map(|row| Some(row["subject"].as_str()?.to_owned()))
        .collect()
}

/// What is shown, and why it is refused.
fn cases(world: &World, ca: &PrivateKey) -> Vec<(Shown, &'static str)> {
    let (hour, now) = (3_600, now());
    let times = (now - 60, now + hour);
    let root = |builder: &mut Builder| named(builder, "root");
    let user = |change: fn(&mut Builder)| certificate(ca, CertType::User, times, change);
    let dated = |times| certificate(ca, CertType::User, times, root);
    let by = |signer: &PrivateKey, kind| certificate(signer, kind, times, root);
    let somebody = user(|builder| named(builder, "somebody"));
    let elsewhere = user(|builder| {
        named(builder, "root");
        option(builder, "source-address", "fd00::1/128");
    });
    let unknown = user(|builder| {
        named(builder, "root");
        option(builder, "verify-required", "");
    });
    let certificates = [
        (
            dated((now - 2 * hour, now - hour)),
            "outside_validity_period",
        ),
        (
            dated((now + hour, now + 2 * hour)),
            "outside_validity_period",
        ),
        (changed(&dated(times)), "wrong_signature"),
        (by(&key(6), CertType::User), "wrong_authority"),
        (by(ca, CertType::Host), "host_certificate"),
        (by(&ecdsa(world), CertType::User), "weak_signature"),
        (somebody, "wrong_principal"),
        (elsewhere, "wrong_source"),
        (unknown, "unknown_critical_option"),
    ];
    let certificates = certificates.into_iter();
    let certificates = certificates.map(|(shown, why)| (Shown::Certificate(Box::new(shown)), why));
    let others = [(Shown::Key, "raw_key"), (Shown::Password, "password")];
    certificates.chain(others).collect()
}

#[test]
fn every_refusal_has_its_reason_in_the_audit() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let ca = authority(&world);
    let times = (now() - 60, now() + 3_600);
    let good = certificate(&ca, CertType::User, times, |builder| {
        named(builder, "root");
    });
    let let_in = attempt(&world, Shown::Certificate(Box::new(good)));
    assert!(let_in, "it is the organisation's key");
    for (count, (shown, reason)) in cases(&world, &ca).into_iter().enumerate() {
        assert!(!attempt(&world, shown), "{reason}");
        wait_for(reason, || audited(&world).len() == count + 1);
        let said = audited(&world).pop().expect("a row");
        assert!(
            said.starts_with(&format!("reason:{reason} source:fd")),
            "{said}"
        );
        assert!(said.contains(" account:root"), "{said}");
        let shows = !matches!(
            reason,
            "outside_validity_period" | "wrong_signature" | "raw_key" | "password"
        );
        assert_eq!(
            said.contains(" serial:1000000 key_id:forged"),
            shows,
            "{said}"
        );
    }
}

#[test]
fn a_revoked_serial_has_its_reason_in_the_audit_and_a_login_leaves_no_refusal() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let path = world.path("mine").to_str().expect("UTF-8").to_owned();
    let line = ["cert", "--out", &path, "--principal", "root"];
    let serial = world.json("laptop", &line)["serial"].to_string();
    world.run("laptop", &["ssh-ca", "revoke", "--serial", &serial]);
    let config = format!(
        "ProxyCommand={} --state {} dial shed 22",
        env!("CARGO_BIN_EXE_ginnel"),
        world.path("laptop").display()
    );
    let mut ssh = std::process::Command::new("ssh");
    ssh.args([
        "-F",
        "/dev/null",
        "-o",
        "BatchMode=yes",
        "-i",
        &path,
        "-o",
        &config,
    ]);
    ssh.args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ]);
    ssh.args(["-o", "IdentitiesOnly=yes", "root@shed", "true"]);
    ssh.env_remove("SSH_AUTH_SOCK");
    let mut ended = finish(&mut ssh);
    // The node learns of the revocation by its map.
    wait_for("a refusal", || {
        ended = finish(&mut ssh);
        ended.code == Some(255)
    });
    assert!(
        ended.stderr.contains("Permission denied (publickey)"),
        "{ended:?}"
    );
    let sign = "reason:revoked source:fd";
    wait_for("the audit", || {
        let rows = audited(&world);
        rows.iter()
            .any(|row| row.starts_with(sign) && row.contains(&format!(" serial:{serial} ")))
    });
    // OpenSSH showed the bare key as well, also when it was let in with the certificate.
    let rows = audited(&world);
    assert!(
        rows.iter().all(|row| row.starts_with("reason:revoked")),
        "{rows:?}"
    );
}
