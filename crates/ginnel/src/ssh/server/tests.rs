//! The server before anybody has come in: whatever bytes come, it ends that connection and serves
//! the next. And who comes in: many at a time, but nobody without the key of his certificate.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use russh::{
    ChannelMsg, Sig, client,
    keys::{
        PrivateKeyWithHashAlg, PublicKeyOrCertificate,
        ssh_key::{
            certificate::{Builder, CertType},
            private::{Ed25519Keypair, KeypairData},
        },
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::cert;

mod bound;

/// Inputs of each kind; each is one byte string from a seed of its own.
const INPUTS: u64 = 300;

/// The longest that one connection may take to end once its peer has gone.
const END_MAX: Duration = Duration::from_secs(60);

struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

fn server() -> Server {
    trusting(|| Err("nobody is trusted".to_owned()))
}

fn trusting(authority: impl Fn() -> Result<Authority, String> + Send + Sync + 'static) -> Server {
    let identity = Identity {
        key: cert::make_key().unwrap(),
        certificate: None,
    };
    let organisation = Organisation {
        authority: Arc::new(move |_| {
            let known = authority().map(Arc::new);
            Box::pin(async { known })
        }),
        refused: Arc::new(|_| ()),
        archive: None,
    };
    Server::new(identity, organisation).unwrap()
}

fn connect(server: &Server) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    connect_from(server, 1)
}

/// Connects from the address that ends in `source`.
fn connect_from(server: &Server, source: u16) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let local: SocketAddr = "[fd00::1]:22".parse().unwrap();
    let remote = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, source], 50_000));
    (near, tokio::spawn(server.serve(far, remote, local)))
}

/// Sends `bytes`, goes away, and waits until the server has ended the connection.
async fn check(server: &Server, bytes: &[u8], what: &str) {
    let (mut near, serving) = connect(server);
    // The server may have had enough before.
    drop(near.write_all(bytes).await);
    drop(near.shutdown().await);
    let mut said = Vec::new();
    let read = time::timeout(END_MAX, near.read_to_end(&mut said)).await;
    assert!(read.is_ok(), "{what}: the connection stays open");
    let ended = time::timeout(END_MAX, serving).await;
    let ended = ended.unwrap_or_else(|_| panic!("{what}: the server does not end"));
    assert!(ended.is_ok(), "{what}: {ended:?}");
}

/// What a client says first: its version and its KEXINIT.
async fn first_words() -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(256 * 1024);
    let config = Arc::new(client::Config::default());
    let client = tokio::spawn(client::connect_stream(config, near, Anybody));
    far.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    let mut words = Vec::new();
    while words.last() != Some(&b'\n') {
        words.push(far.read_u8().await.unwrap());
    }
    let length = far.read_u32().await.unwrap();
    words.extend(length.to_be_bytes());
    let mut packet = vec![0; length as usize];
    far.read_exact(&mut packet).await.unwrap();
    words.extend(packet);
    client.abort();
    words
}

/// The next of a sequence that a seed fixes (xorshift).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn bytes(state: &mut u64) -> Vec<u8> {
    let length = next(state) % 600;
    (0..length).map(|_| next(state).to_le_bytes()[0]).collect()
}

fn block_on(future: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(future);
}

#[test]
fn noise_ends_its_own_connection_and_no_other() {
    block_on(async {
        let server = server();
        for seed in 1..=INPUTS {
            let mut state = seed;
            let noise = bytes(&mut state);
            check(&server, &noise, &format!("noise {seed}")).await;
            let after_version = [b"SSH-2.0-x\r\n".as_slice(), &noise].concat();
            check(
                &server,
                &after_version,
                &format!("noise {seed} after a version"),
            )
            .await;
        }
        let words = first_words().await;
        let (mut near, _serving) = connect(&server);
        near.write_all(&words).await.unwrap();
        let mut version = [0; 8];
        near.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"SSH-2.0-", "the next one is served");
    });
}

#[test]
fn a_changed_beginning_ends_its_own_connection() {
    block_on(async {
        let (server, words) = (server(), first_words().await);
        for seed in 1..=INPUTS {
            let (mut state, mut changed) = (seed, words.clone());
            for _ in 0..=next(&mut state) % 4 {
                let at = usize::try_from(next(&mut state)).unwrap() % changed.len();
                changed[at] = next(&mut state).to_le_bytes()[0];
            }
            let cut = usize::try_from(next(&mut state)).unwrap() % (2 * changed.len());
            changed.truncate(cut);
            changed.extend(bytes(&mut state));
            check(&server, &changed, &format!("seed {seed}")).await;
        }
    });
}

/// Lengths beyond what a packet may have (RFC 4253, 6.1) must not be believed.
#[test]
fn a_length_that_no_packet_has_allocates_nothing_and_ends_the_connection() {
    block_on(async {
        let server = server();
        for length in [0, 1, 35_001, 1 << 24, i32::MAX as u32, u32::MAX] {
            let mut bytes = b"SSH-2.0-x\r\n".to_vec();
            bytes.extend(length.to_be_bytes());
            bytes.extend([0; 64]);
            check(&server, &bytes, &format!("length {length}")).await;
        }
        let endless = [b"SSH-2.0-".as_slice(), &[b'x'; 100_000]].concat();
        check(&server, &endless, "a version without end").await;
    });
}

fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "").unwrap()
}

/// The authority whose key is `key(1)`.
fn authority() -> Authority {
    Authority {
        user_ca: vec![key(1).public_key().key_data().clone()],
        revoked: BTreeSet::new(),
        ..Authority::default()
    }
}

/// A certificate of `key(9)` for the account of this process.
fn certificate() -> Certificate {
    certificate_of(&key(9), &key(1))
}

fn certificate_of(subject: &PrivateKey, signer: &PrivateKey) -> Certificate {
    let subject = subject.public_key().key_data().clone();
    let now = os::clock::wall().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    let mut builder = Builder::new([7; 16], subject, now - 60, now + 3_600).unwrap();
    builder.cert_type(CertType::User).unwrap();
    let own = Account::own().unwrap().unwrap().name;
    builder.valid_principal(own).unwrap();
    let forwarding = builder.extension("permit-port-forwarding", "");
    forwarding.unwrap();
    builder.sign(signer).unwrap()
}

/// Shows the certificate and signs by `signer`; the connection stays as long as what is returned.
async fn log_in(server: &Server, signer: PrivateKey) -> Option<client::Handle<Anybody>> {
    log_in_from(server, 1, signer).await
}

async fn log_in_from(
    server: &Server,
    source: u16,
    signer: PrivateKey,
) -> Option<client::Handle<Anybody>> {
    log_in_by(server, source, signer, Anybody).await
}

async fn log_in_by<H>(
    server: &Server,
    source: u16,
    signer: PrivateKey,
    handler: H,
) -> Option<client::Handle<H>>
where
    H: client::Handler<Error = russh::Error> + Send + 'static,
{
    let (near, _serving) = connect_from(server, source);
    let config = Arc::new(client::Config::default());
    let connected = client::connect_stream(config, near, handler).await;
    let mut client = connected.ok()?;
    let own = Account::own().unwrap().unwrap().name;
    let answer = client.authenticate_openssh_cert(own, Arc::new(signer), certificate());
    answer.await.ok()?.success().then_some(client)
}

/// CVE-2024-45337: the key that is proven is the one that counts, not one that was shown.
#[test]
fn a_certificate_is_worth_nothing_without_its_key() {
    block_on(async {
        let server = trusting(|| Ok(authority()));
        assert!(log_in(&server, key(8)).await.is_none());
        assert!(log_in(&server, key(9)).await.is_some());
    });
}

/// Of one connection nothing is kept that was shown and not proven.
#[test]
fn what_was_shown_without_proof_helps_no_other_key() {
    block_on(async {
        let server = trusting(|| Ok(authority()));
        let (near, _serving) = connect(&server);
        let config = Arc::new(client::Config::default());
        let mut client = client::connect_stream(config, near, Anybody).await.unwrap();
        let own = || Account::own().unwrap().unwrap().name;
        let (good, mine) = (certificate(), Arc::new(key(8)));
        let mut shown = vec![good.clone()];
        // The second is proven, and nobody trusts who signed it.
        shown.push(certificate_of(&key(8), &key(2)));
        for shown in shown {
            let answer = client.authenticate_openssh_cert(own(), Arc::clone(&mine), shown);
            assert!(!answer.await.unwrap().success());
        }
        let bare = PrivateKeyWithHashAlg::new(mine, None);
        let answer = client.authenticate_publickey(own(), bare).await;
        assert!(!answer.unwrap().success());
        let answer = client.authenticate_openssh_cert(own(), Arc::new(key(9)), good);
        assert!(answer.await.unwrap().success(), "it was open all the time");
    });
}

/// RFC 4254, 6.9, which OpenSSH's client never sends.
#[test]
fn a_signal_reaches_the_program_of_its_session() {
    block_on(async {
        let server = trusting(|| Ok(authority()));
        let client = log_in(&server, key(9)).await.unwrap();
        let mut session = client.channel_open_session().await.unwrap();
        let program = "trap 'exit 42' USR1; echo ready; while :; do sleep 0.1; done";
        session.exec(true, program).await.unwrap();
        let status = async {
            while let Some(message) = session.wait().await {
                if matches!(&message, ChannelMsg::Data { data } if data.starts_with(b"ready")) {
                    session.signal(Sig::USR1).await.unwrap();
                }
                if let ChannelMsg::ExitStatus { exit_status } = message {
                    return exit_status;
                }
            }
            panic!("it ends without a status");
        };
        assert_eq!(time::timeout(END_MAX, status).await.expect("it ends"), 42);
    });
}

#[test]
fn nobody_comes_in_while_the_authority_is_not_known() {
    static KNOWN: AtomicBool = AtomicBool::new(false);
    block_on(async {
        let server = trusting(|| match KNOWN.load(Ordering::Relaxed) {
            true => Ok(authority()),
            false => Err("no answer".to_owned()),
        });
        for known in [false, true, false] {
            KNOWN.store(known, Ordering::Relaxed);
            assert_eq!(log_in(&server, key(9)).await.is_some(), known);
        }
    });
}

/// The bound on connections holds and has room for all that fit.
#[test]
fn as_many_are_inside_as_there_is_room_for() {
    block_on(async {
        let server = Arc::new(trusting(|| Ok(authority())));
        let mut inside = Vec::new();
        for _ in 0..CONNECTIONS_MAX / waiting::PLACES_MAX {
            inside.extend(together(&server, waiting::PLACES_MAX).await);
        }
        assert_eq!(inside.len(), CONNECTIONS_MAX);
        assert!(log_in(&server, key(9)).await.is_none(), "it is full");
        drop(inside);
        let all = u32::try_from(CONNECTIONS_MAX).unwrap();
        let room = server.shared.places.acquire_many(all);
        drop(time::timeout(END_MAX, room).await.unwrap().unwrap());
        assert!(log_in(&server, key(9)).await.is_some(), "they have gone");
    });
}

/// Logs in from one address so many times at once, and returns those that are inside.
async fn together(server: &Arc<Server>, count: usize) -> Vec<client::Handle<Anybody>> {
    let attempts: Vec<_> = (0..count)
        .map(|_| {
            let server = Arc::clone(server);
            tokio::spawn(async move { log_in(&server, key(9)).await })
        })
        .collect();
    let mut inside = Vec::new();
    for attempt in attempts {
        inside.extend(attempt.await.unwrap());
    }
    inside
}

#[test]
fn who_tries_too_often_is_cut_off() {
    block_on(async {
        let server = trusting(|| Ok(authority()));
        let (near, serving) = connect(&server);
        let config = Arc::new(client::Config::default());
        let mut client = client::connect_stream(config, near, Anybody).await.unwrap();
        let mut tried = 0;
        while let Ok(answer) = client.authenticate_password("root", "secret").await {
            let client::AuthResult::Failure {
                remaining_methods, ..
            } = answer
            else {
                panic!("a password lets nobody in");
            };
            // How the client says that the connection has ended.
            if remaining_methods == MethodSet::empty() {
                break;
            }
            tried += 1;
            assert!(tried <= ATTEMPTS_MAX, "there is a bound");
        }
        assert!(tried > 0);
        assert!(serving.await.is_ok(), "the server has ended it");
    });
}

/// One source that fills every place, in each state before a login, is in nobody's way.
#[test]
fn a_flood_from_one_source_keeps_nobody_else_out() {
    block_on(async {
        let (server, words) = (trusting(|| Ok(authority())), first_words().await);
        let (mut near, mut serving) = (Vec::new(), Vec::new());
        for count in 0..waiting::PLACES_MAX * 2 {
            let (mut stream, served) = connect_from(&server, 1);
            let say = [&[], &words[..4], &words[..40], &words[..]][count % 4];
            // Beyond the bound it is closed at once.
            drop(stream.write_all(say).await);
            near.push(stream);
            serving.push(served);
        }
        assert!(log_in(&server, key(9)).await.is_none(), "its own attempts");
        for source in 2..10 {
            assert!(log_in_from(&server, source, key(9)).await.is_some());
        }
        drop(near);
        for served in serving {
            let ended = time::timeout(END_MAX, served).await;
            assert!(ended.expect("it ends").is_ok());
        }
        assert!(log_in(&server, key(9)).await.is_some(), "it has gone");
    });
}

/// Everybody at once, each from an address of his own; who is turned away tries again. The count is
/// `SSH_STORM`.
#[test]
fn in_a_storm_of_logins_everybody_comes_in() {
    let count = std::env::var("SSH_STORM").ok();
    let count = count.map_or(400, |count| count.parse().unwrap());
    block_on(async {
        let server = Arc::new(trusting(|| Ok(authority())));
        let logins: Vec<_> = (1..=count)
            .map(|source| {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let mut turned_away = 0_u64;
                    while log_in_from(&server, source, key(9)).await.is_none() {
                        turned_away += 1;
                        time::sleep(Duration::from_millis(100)).await;
                    }
                    turned_away
                })
            })
            .collect();
        let mut turned_away = 0;
        for login in logins {
            turned_away += login.await.unwrap();
        }
        eprintln!("{count} logins at once; turned away and tried again: {turned_away}");
    });
}

/// CVE-2023-48795: with strict key exchange, which both sides offer here, a message that is no part
/// of the exchange ends the connection, so nobody can shift the sequence numbers.
#[test]
fn a_message_inside_the_key_exchange_ends_the_connection() {
    block_on(async {
        let server = server();
        let words = first_words().await;
        assert!(find(&words, b"kex-strict-c-v00@openssh.com"));
        let (mut near, serving) = connect(&server);
        // SSH_MSG_IGNORE with an empty string, and its padding (RFC 4253, 6 and 11.2).
        let ignore = [&[0, 0, 0, 12, 6, 2, 0, 0, 0, 0][..], &[0; 6]].concat();
        near.write_all(&[words, ignore].concat()).await.unwrap();
        let mut said = Vec::new();
        let read = time::timeout(END_MAX, near.read_to_end(&mut said)).await;
        // It has ended although we have not gone.
        drop(read.expect("the connection ends"));
        assert!(find(&said, b"kex-strict-s-v00@openssh.com"));
        let ended = time::timeout(END_MAX, serving).await;
        assert!(ended.unwrap().is_ok());
    });
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}
