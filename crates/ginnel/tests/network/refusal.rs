//! A login that a node refuses is in the audit of the organisation, with the reason.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Arc,
};

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
    outliving::endpoints,
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
    let mut python = Command::new("python3");
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

/// Stops the server, changes its store as whoever can write there could, starts it again, and lets
/// it tell the nodes.
fn change_store(world: &mut World, statements: &str) {
    wait_for("the endpoints on disk", || {
        endpoints(world, "data/gateway").len() == 2
    });
    world.server = None;
    let script = "import sqlite3,sys; store=sqlite3.connect(sys.argv[1]); \
                  store.executescript(sys.argv[2]); store.commit()";
    let mut python = Command::new("python3");
    let path = world.path("data/ginnel.db");
    let ended = finish(python.args(["-c", script]).arg(path).arg(statements));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    world.restart_server();
    wait_for("the way through its gateway", || {
        world.try_run("laptop", &["ping", "shed", "-c", "1"]).code == Some(0)
    });
    // A change that every node is told of, and with it what the store says now.
    let rules = ["off", "pty", "off"];
    for rule in rules {
        world.run("laptop", &["ssh-ca", "record", rule]);
    }
}

/// A certificate of the test's key that an RSA key has signed with this algorithm.
fn by_rsa(world: &World, algorithm: &str) -> Certificate {
    let path = world.path(algorithm);
    let mut keygen = Command::new("ssh-keygen");
    let made = finish(
        keygen
            .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
            .arg(&path),
    );
    assert_eq!(made.code, Some(0), "{made:?}");
    let subject = world.path("subject.pub");
    let text = key(5).public_key().to_openssh().expect("a key");
    fs::write(&subject, text).expect("a file");
    let line = [
        "-q", "-t", algorithm, "-I", "forged", "-n", "root", "-z", "1000000",
    ];
    let mut keygen = Command::new("ssh-keygen");
    let signed = finish(keygen.args(line).arg("-s").arg(&path).arg(&subject));
    assert_eq!(signed.code, Some(0), "{signed:?}");
    Certificate::read_file(&world.path("subject-cert.pub")).expect("a certificate")
}

fn ecdsa(world: &World) -> PrivateKey {
    let path = world.path("ecdsa");
    let mut keygen = Command::new("ssh-keygen");
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
            "expired_or_not_yet_valid",
        ),
        (
            dated((now + hour, now + 2 * hour)),
            "expired_or_not_yet_valid",
        ),
        (changed(&dated(times)), "wrong_signature"),
        (by(&key(6), CertType::User), "wrong_authority"),
        (by(ca, CertType::Host), "host_certificate"),
        (by(&ecdsa(world), CertType::User), "weak_signature"),
        // The transport verifies before we are asked, and knows no RSA.
        (by_rsa(world, "ssh-rsa"), "wrong_signature"),
        (by_rsa(world, "rsa-sha2-512"), "wrong_signature"),
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
        let timely = reason == "expired_or_not_yet_valid";
        assert_eq!(said.contains(" clock:"), timely, "{said}");
        let shows = !matches!(
            reason,
            "expired_or_not_yet_valid" | "wrong_signature" | "raw_key" | "password"
        );
        assert_eq!(
            said.contains(" serial:1000000 key_id:forged"),
            shows,
            "{said}"
        );
    }
}

/// Whoever writes into the control plane's store, or brings an old one back, brings no CA in: the
/// nodes have pinned the key that signs the answer, and the version that they saw last.
#[test]
fn a_forged_and_a_stale_answer_about_the_authority_let_nobody_in() {
    let Some((mut world, _laptop, _shed)) = world() else {
        return;
    };
    let (ca, thief) = (authority(&world), key(6));
    let by = |signer: &PrivateKey| {
        let times = (now() - 60, now() + 3_600);
        let root = |builder: &mut Builder| named(builder, "root");
        let certificate = certificate(signer, CertType::User, times, root);
        Shown::Certificate(Box::new(certificate))
    };
    assert!(attempt(&world, by(&ca)));
    let kept = "CREATE TABLE kept_key AS SELECT * FROM ssh_key; \
                CREATE TABLE kept_authority AS SELECT * FROM ssh_authority;";
    let back = "DELETE FROM ssh_key; INSERT INTO ssh_key SELECT * FROM kept_key; \
                DELETE FROM ssh_authority; INSERT INTO ssh_authority SELECT * FROM kept_authority;";
    let public = thief.public_key().key_data();
    let public = HEX.encode(&public.ed25519().expect("Ed25519").0);
    let forged = format!("UPDATE ssh_key SET public_key = x'{public}' WHERE usage = 'user';");
    change_store(&mut world, &format!("{kept}{forged}"));
    is_not_believed(&world, || by(&ca), "is not signed by the organisation");
    assert!(!attempt(&world, by(&thief)), "its own CA");
    change_store(&mut world, back);
    wait_for("the true answer", || attempt(&world, by(&ca)));

    world.run("laptop", &["ssh-ca", "rotate"]);
    let next = || world.run("shed", &["resolve", "_sshca.internal", "TXT"]);
    wait_for("the next version", || next().contains("version=2"));
    assert!(attempt(&world, by(&ca)), "keys overlap");
    change_store(&mut world, back);
    is_not_believed(
        &world,
        || by(&ca),
        "has version 1, and version 2 was seen before",
    );
}

/// Waits until a good certificate opens nothing, the node says why, and the audit has it.
fn is_not_believed(world: &World, good: impl Fn() -> Shown, why: &str) {
    let before = audited(world).len();
    wait_for("a refusal", || !attempt(world, good()));
    wait_for(why, || world.logs().contains(why));
    let sign = "reason:no_authority source:fd";
    wait_for("the audit", || {
        let rows = audited(world);
        rows.len() > before && rows[before..].iter().all(|row| row.starts_with(sign))
    });
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
    let mut ssh = Command::new("ssh");
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
