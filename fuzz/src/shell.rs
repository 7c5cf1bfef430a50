//! SSH: certificates, the answers of an ssh-agent, and the server before anybody has come in.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use russh::{
    client,
    keys::{
        Certificate, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate,
        ssh_key::{
            certificate::{Builder, CertType},
            private::{Ed25519Keypair, KeypairData},
        },
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    task::JoinHandle,
    time,
};

use crate::{
    cert,
    input::Input,
    ssh::{
        acceptance::{Asked, Authority, accept},
        server::{Identity, Organisation, Server},
    },
};

const NOW: u64 = 1_800_000_000;
const USER: &str = "ann";
const SOURCE: &str = "fd00::7";

/// Before this, in virtual time, a connection without a login has ended (the grace and a margin).
const END_MAX: Duration = Duration::from_secs(70);

/// What the server says to somebody who has not come in: version, KEXINIT, a reply, rejections.
const SAID_MAX: usize = 64 * 1024;

fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "").expect("a key")
}

fn authority() -> Authority {
    Authority {
        user_ca: vec![key(1).public_key().key_data().clone()],
        host_ca: vec![key(3).public_key().key_data().clone()],
        revoked: BTreeSet::from([666]),
        ..Authority::default()
    }
}

/// Certificates of the CA, of which nothing may be changed; the first two let in.
#[must_use]
pub fn certificates() -> Vec<Vec<u8>> {
    let made = |kind, serial, change: &dyn Fn(&mut Builder)| {
        let subject = key(9).public_key().key_data().clone();
        let mut builder = Builder::new([7; 16], subject, NOW - 60, NOW + 3_600).expect("times");
        builder.serial(serial).expect("once");
        builder.key_id("user=ann").expect("once");
        builder.cert_type(kind).expect("once");
        builder.valid_principal(USER).expect("a name");
        change(&mut builder);
        let certificate = builder.sign(&key(1)).expect("a certificate");
        certificate.to_bytes().expect("a certificate")
    };
    let option = |name: &'static str, value: &'static str| {
        move |builder: &mut Builder| {
            builder.critical_option(name, value).expect("once");
        }
    };
    vec![
        made(CertType::User, 5, &|builder| {
            builder.extension("permit-pty", "").expect("once");
        }),
        made(CertType::User, 6, &option("source-address", "fd00::/64")),
        made(CertType::User, 666, &|_| ()),
        made(CertType::Host, 7, &|_| ()),
        made(CertType::User, 8, &option("source-address", "10.0.0.0/8")),
        made(CertType::User, 9, &option("verify-required", "")),
    ]
}

/// A certificate lets in only if the CA has signed exactly it.
pub fn acceptance(data: &[u8]) {
    static GOOD: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| certificates()[..2].to_vec());
    let Ok(certificate) = Certificate::from_bytes(data) else {
        return;
    };
    let asked = Asked {
        user: USER,
        source: SOURCE.parse().expect("an address"),
        now: NOW,
    };
    let accepted = accept(&certificate, asked, &authority()).is_ok();
    let bytes = certificate.to_bytes().expect("it was parsed");
    assert_eq!(accepted, GOOD.contains(&bytes));
}

/// An agent's answer is success or it is not, however much it sends.
pub fn agent(data: &[u8]) {
    let bytes = &certificates()[0];
    let certificate = Certificate::from_bytes(bytes).expect("our own");
    let taken = block_on(async {
        let (mut near, mut far) = tokio::io::duplex(4 * 1024);
        let answering = async {
            // The client may have heard enough.
            drop(far.write_all(data).await);
            drop(far.shutdown().await);
            let mut asked = Vec::new();
            drop(far.read_to_end(&mut asked).await);
        };
        let adding = async {
            let hour = Duration::from_secs(3_600);
            let added = cert::add(&mut near, &key(9), &certificate, hour).await;
            drop(near);
            added
        };
        tokio::join!(adding, answering).0.is_ok()
    });
    assert_eq!(taken, data.starts_with(&[0, 0, 0, 1, 6]));
}

/// Whatever a peer sends, and although it stays: the connection ends by the server's grace time.
pub fn bytes(data: &[u8]) {
    block_on(async {
        let (mut near, serving) = connect();
        let talking = async {
            // The server may have had enough before.
            drop(near.write_all(data).await);
            let mut said = Vec::new();
            drop(near.read_to_end(&mut said).await);
            assert!(said.len() <= SAID_MAX, "{} bytes to a stranger", said.len());
        };
        let ended = time::timeout(END_MAX, talking).await;
        assert!(ended.is_ok(), "the connection stays open");
        let ended = time::timeout(END_MAX, serving).await;
        ended.expect("the server ends").expect("without a panic");
    });
}

/// Behind the key exchange: names, passwords, keys and certificates of a stranger let nobody in.
pub fn logins(data: &[u8]) {
    block_on(async {
        let (near, serving) = connect();
        let config = Arc::new(client::Config::default());
        let connected = client::connect_stream(config, near, Anybody).await;
        let mut client = connected.expect("both are ours");
        let mut input = Input::new(data);
        while !input.is_empty() {
            let kind = input.byte();
            let length = usize::from(input.number());
            let rest = input.bytes(length);
            let text = String::from_utf8_lossy(rest).into_owned();
            let me = Arc::new(key(9));
            let answer = match kind % 4 {
                0 => client.authenticate_none(text).await,
                1 => client.authenticate_password(USER, text).await,
                2 => {
                    let key = PrivateKeyWithHashAlg::new(me, None);
                    client.authenticate_publickey(text, key).await
                }
                _ => match Certificate::from_bytes(rest) {
                    Ok(shown) => client.authenticate_openssh_cert(USER, me, shown).await,
                    Err(_) => continue,
                },
            };
            match answer {
                Ok(answer) => assert!(!answer.success(), "somebody came in"),
                Err(_) => break,
            }
        }
        drop(client);
        let ended = time::timeout(END_MAX, serving).await;
        ended.expect("the server ends").expect("without a panic");
    });
}

struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Nobody has the account that its certificates name.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let identity = Identity {
            key: key(4),
            certificate: None,
        };
        let organisation = Organisation {
            authority: Arc::new(|_| Box::pin(async { Ok(Arc::new(authority())) })),
            refused: Arc::new(|_| ()),
            archive: None,
        };
        Server::new(identity, organisation).expect("this account has a name")
    })
}

fn connect() -> (DuplexStream, JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let address: SocketAddr = "[fd00::7]:22".parse().expect("an address");
    (near, tokio::spawn(server().serve(far, address, address)))
}

/// In virtual time, which passes when everybody waits.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(future)
}

/// A version, a KEXINIT that the server can take, and the key of a Diffie-Hellman exchange.
#[must_use]
pub fn beginning() -> Vec<u8> {
    let lists = [
        "curve25519-sha256,kex-strict-c-v00@openssh.com",
        "ssh-ed25519",
        "aes256-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "none",
        "none",
        "",
        "",
    ];
    let mut kexinit = vec![20];
    kexinit.extend([3; 16]);
    for list in lists {
        kexinit.extend(string(list.as_bytes()));
    }
    kexinit.extend([0; 5]);
    let exchange = [&[30], string(&[9; 32]).as_slice()].concat();
    let mut bytes = b"SSH-2.0-x\r\n".to_vec();
    bytes.extend(packet(&kexinit));
    bytes.extend(packet(&exchange));
    bytes.extend(packet(&[21]));
    bytes
}

/// Programs of [`logins`]: each kind of attempt, and all of them.
#[must_use]
pub fn attempts() -> Vec<Vec<u8>> {
    let attempt = |kind: u8, bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("it is short");
        [&[kind][..], &length.to_be_bytes(), bytes].concat()
    };
    let mut all = vec![
        attempt(0, b"root"),
        attempt(1, b"secret"),
        attempt(2, b"a\0\xff"),
    ];
    all.extend(certificates().iter().map(|bytes| attempt(3, bytes)));
    all.push(all[..5].concat());
    all
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("it is short");
    [&length.to_be_bytes(), bytes].concat()
}

/// RFC 4253, 6, before there are keys.
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (payload.len() + 5) % 8 + 4;
    let padding = padding - usize::from(padding > 11) * 8;
    let length = u32::try_from(payload.len() + padding + 1).expect("it is short");
    let padding_length = u8::try_from(padding).expect("it is short");
    let head = [&length.to_be_bytes()[..], &[padding_length]].concat();
    [head, payload.to_vec(), vec![0; padding]].concat()
}
