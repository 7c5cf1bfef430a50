//! SSH: who gets which certificate, what is refused, rotation, revocation, what lies on disk.

use axum::http::Method;
use model::{
    api::{Enrolled, ErrorCode, LoggedIn, Page},
    id::NodeId,
    map::NetworkMap,
    ssh::{
        Authority, AuthorityView, Certificate as Listed, CertificateKind, IssuedCertificate,
        KeyState, PublicKeyText, Revoked, SignatureText, Statement,
    },
    token::{Kind, Token},
};
use serde_json::{Value, json};
use ssh_key::Certificate;

use crate::world::World;

/// The Ed25519 key whose seed is all ones, in the form of a request.
fn key() -> PublicKeyText {
    PublicKeyText([1; 32])
}

async fn certify(world: &World, session: &Token, ttl: u64) -> IssuedCertificate {
    let body = json!({ "public_key": key(), "ttl_seconds": ttl });
    let reply = world.post("/v1/ssh/user-certificate", session, &body).await;
    reply.parse()
}

async fn certify_host(world: &World, node: &Token) -> IssuedCertificate {
    let body = json!({ "public_key": key() });
    let reply = world.post("/v1/ssh/host-certificate", node, &body).await;
    reply.parse()
}

async fn view(world: &World, session: &Token) -> AuthorityView {
    world.get("/v1/ssh/authority", session).await.parse()
}

async fn rotate(world: &World, session: &Token, now: bool) -> AuthorityView {
    let reply = world
        .post("/v1/ssh/rotation", session, &json!({ "now": now }))
        .await;
    reply.parse()
}

async fn published(world: &World, node: &Token) -> Authority {
    let map: NetworkMap = world.get("/v1/map", node).await.parse();
    let org = map.orgs.into_values().next().expect("the own organisation");
    org.ssh.expect("an authority")
}

fn read(issued: &IssuedCertificate) -> Certificate {
    Certificate::from_openssh(issued.certificate.as_str()).expect("a certificate")
}

/// Tells whether a trusted key signed the certificate and it is valid at `second`.
fn is_valid(issued: &IssuedCertificate, trusted: &[PublicKeyText], second: u64) -> bool {
    let fingerprints: Vec<_> = trusted
        .iter()
        .map(|key| {
            let key = ssh_key::PublicKey::from_openssh(&key.to_string()).expect("a key");
            key.fingerprint(ssh_key::HashAlg::Sha256)
        })
        .collect();
    read(issued).validate_at(second, &fingerprints).is_ok()
}

fn now(world: &World) -> u64 {
    world.clock.load(std::sync::atomic::Ordering::Relaxed)
}

fn states(view: &AuthorityView, kind: CertificateKind) -> Vec<KeyState> {
    let of_kind = view.keys.iter().filter(|key| key.kind == kind);
    of_kind.map(|key| key.state).collect()
}

/// The subjects of the audit's rows of one action.
async fn audited(world: &World, session: &Token, action: &str) -> Vec<String> {
    let page = world.get("/v1/audit", session).await.json();
    let rows = page["items"].as_array().expect("rows").iter();
    rows.filter(|row| row["action"] == action)
        .map(|row| row["subject"].as_str().expect("text").to_owned())
        .collect()
}

struct Scene {
    world: World,
    login: LoggedIn,
    web: Enrolled,
}

async fn scene() -> Scene {
    scene_in(World::new().await).await
}

async fn scene_in(world: World) -> Scene {
    let login = world.login().await;
    let web = world.join(&login.session_token, None, "web", 1).await;
    Scene { world, login, web }
}

#[tokio::test]
async fn a_user_certificate_says_who_from_where_and_for_how_long() {
    let Scene { world, login, .. } = scene().await;
    let issued = certify(&world, &login.session_token, 600).await;
    let certificate = read(&issued);
    let begin = now(&world);
    assert!(certificate.cert_type().is_user());
    assert_eq!(certificate.serial(), issued.serial.0);
    assert_eq!(certificate.valid_principals(), ["root", "admin"]);
    assert_eq!(certificate.valid_after(), begin - 30);
    assert_eq!(certificate.valid_before(), begin + 600);
    let options: Vec<_> = certificate.critical_options().iter().collect();
    let source = format!("{}/128", login.device.address);
    assert_eq!(options, [(&"source-address".to_owned(), &source)]);
    let extensions: Vec<_> = certificate.extensions().keys().collect();
    assert_eq!(
        extensions,
        [
            "permit-X11-forwarding",
            "permit-agent-forwarding",
            "permit-port-forwarding",
            "permit-pty"
        ]
    );
    let key_id = certificate.key_id();
    assert!(
        key_id.starts_with("user=admin;org=default;node=laptop;request="),
        "{key_id}"
    );
    assert!(is_valid(&issued, &issued.keys.user, begin));
    assert!(
        !is_valid(&issued, &issued.keys.host, begin),
        "the host CA signs no users"
    );
    assert!(!is_valid(&issued, &issued.keys.user, begin + 600));
    let rows = audited(&world, &login.session_token, "ssh_user_certified").await;
    assert_eq!(rows, [format!("serial:{} {key_id}", issued.serial)]);
}

#[tokio::test]
async fn a_host_certificate_names_the_node_in_every_form() {
    let Scene { world, login, web } = scene().await;
    let issued = certify_host(&world, &web.node_token).await;
    let certificate = read(&issued);
    assert!(certificate.cert_type().is_host());
    let address = web.address.to_string();
    let names = ["web", "web.internal", "web.default.internal", &address];
    assert_eq!(certificate.valid_principals(), names);
    assert!(certificate.critical_options().is_empty());
    assert!(certificate.extensions().is_empty());
    assert!(is_valid(&issued, &issued.keys.host, now(&world)));
    assert!(!is_valid(&issued, &issued.keys.user, now(&world)));
    let rows = audited(&world, &login.session_token, "ssh_host_certified").await;
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn serials_grow_and_are_never_given_twice() {
    let Scene {
        mut world,
        login,
        web,
    } = scene().await;
    let first = certify(&world, &login.session_token, 60).await.serial;
    let second = certify_host(&world, &web.node_token).await.serial;
    world.pass(40 * 24 * 60 * 60 / 2);
    world.restart().await;
    let third = certify(&world, &login.session_token, 60).await.serial;
    assert_eq!((first.0, second.0, third.0), (1, 2, 3));
}

#[tokio::test]
async fn every_refusal_is_written_into_the_audit_with_its_reason() {
    let Scene { world, login, .. } = scene().await;
    let session = &login.session_token;
    let mut refused = Vec::new();
    let requests = [
        (
            json!({ "public_key": key(), "ttl_seconds": 59 }),
            ErrorCode::TtlOutOfRange,
        ),
        (
            json!({ "public_key": key(), "ttl_seconds": 86_401 }),
            ErrorCode::TtlOutOfRange,
        ),
        (
            json!({ "public_key": key(), "principals": ["postgres"] }),
            ErrorCode::NotPermitted,
        ),
    ];
    for (body, code) in requests {
        let reply = world.post("/v1/ssh/user-certificate", session, &body).await;
        reply.is(code);
        refused.push(reply.refused().2);
    }
    assert_eq!(
        audited(&world, session, "ssh_certificate_refused").await,
        refused
    );
    assert!(
        refused[2].contains("root and admin, not postgres"),
        "{}",
        refused[2]
    );
}

#[tokio::test]
async fn a_request_that_is_no_key_or_too_large_never_reaches_the_authority() {
    let Scene { world, login, .. } = scene().await;
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ==";
    for body in [
        json!({}),
        json!({ "public_key": "" }),
        json!({ "public_key": rsa }),
        json!({ "public_key": key(), "principals": ["a b"] }),
        json!({ "public_key": key(), "principals": vec!["a"; 17] }),
        json!({ "public_key": key(), "ttl_seconds": -1 }),
    ] {
        let session = &login.session_token;
        let reply = world.post("/v1/ssh/user-certificate", session, &body).await;
        reply.is(ErrorCode::MalformedRequest);
    }
}

#[tokio::test]
async fn one_principal_of_several_can_be_asked_for() {
    let Scene { world, login, .. } = scene().await;
    let body = json!({ "public_key": key(), "principals": ["admin"] });
    let session = &login.session_token;
    let reply = world.post("/v1/ssh/user-certificate", session, &body).await;
    let issued: IssuedCertificate = reply.parse();
    assert_eq!(read(&issued).valid_principals(), ["admin"]);
}

#[tokio::test]
async fn a_node_has_at_most_a_thousand_certificates_that_have_not_ended() {
    let Scene { world, login, web } = scene().await;
    for _ in 0..1_000 {
        certify_host(&world, &web.node_token).await;
    }
    let body = json!({ "public_key": key() });
    let token = &web.node_token;
    let reply = world.post("/v1/ssh/host-certificate", token, &body).await;
    reply.is(ErrorCode::LimitReached);
    let late = "/v1/audit?after=1000";
    let rows = world.get(late, &login.session_token).await.text();
    assert!(rows.contains("ssh_certificate_refused"), "{rows}");
    assert!(rows.contains("`web` has 1000 certificates"), "{rows}");
}

#[tokio::test]
async fn the_map_publishes_a_statement_that_the_pinned_key_signed() {
    let Scene { world, login, web } = scene().await;
    let authority = published(&world, &web.node_token).await;
    let prefix = web
        .map
        .orgs
        .into_values()
        .next()
        .expect("an organisation")
        .prefix;
    let message = Statement::message(prefix, 1, &authority.statement.keys);
    assert!(is_signed(
        authority.signing_key,
        &message,
        authority.statement.signature
    ));
    let mut forged = authority.statement.keys.clone();
    forged.user[0] = key();
    let message = Statement::message(prefix, 1, &forged);
    assert!(!is_signed(
        authority.signing_key,
        &message,
        authority.statement.signature
    ));
    rotate(&world, &login.session_token, false).await;
    let after = published(&world, &web.node_token).await;
    assert_eq!(
        after.signing_key, authority.signing_key,
        "what nodes pinned stays"
    );
    assert_eq!(after.statement.version, 2);
    let message = Statement::message(prefix, 2, &after.statement.keys);
    assert!(is_signed(
        after.signing_key,
        &message,
        after.statement.signature
    ));
}

fn is_signed(key: PublicKeyText, message: &[u8], signature: SignatureText) -> bool {
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, key.0);
    key.verify(message, &signature.0).is_ok()
}

#[tokio::test]
async fn a_rotation_overlaps_so_that_no_certificate_ends_early() {
    use KeyState::{Current, Next, Retired};
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    let trusted = async || published(&world, &web.node_token).await.statement.keys.user;
    let before = certify(&world, session, 86_400).await;
    assert_eq!(
        states(&view(&world, session).await, CertificateKind::User),
        [Current]
    );
    // The next key is trusted before it signs anything.
    let next = rotate(&world, session, false).await;
    assert_eq!(states(&next, CertificateKind::User), [Current, Next]);
    assert_eq!(states(&next, CertificateKind::Host), [Current, Next]);
    let between = certify(&world, session, 60).await;
    assert_eq!(between.keys.user[0], before.keys.user[0]);
    // Then it signs, and the old one is trusted until its last certificate has ended.
    let rotated = rotate(&world, session, false).await;
    assert_eq!(states(&rotated, CertificateKind::User), [Current, Retired]);
    let after = certify(&world, session, 60).await;
    assert_eq!(after.keys.user[0], between.keys.user[1]);
    for issued in [&before, &after] {
        assert!(is_valid(issued, &trusted().await, now(&world)));
    }
    let first = std::slice::from_ref(&after.keys.user[0]);
    assert!(
        !is_valid(&before, first, now(&world)),
        "the old key signed it"
    );
    world.pass(86_400 + 31);
    let late = rotate(&world, session, false).await;
    assert_eq!(states(&late, CertificateKind::User), [Current, Next]);
    assert_eq!(
        states(&late, CertificateKind::Host),
        [Current, Next, Retired]
    );
}

#[tokio::test]
async fn retired_keys_are_deleted_when_the_server_starts_after_their_time() {
    let Scene {
        mut world,
        login,
        web,
    } = scene().await;
    for _ in 0..2 {
        rotate(&world, &login.session_token, false).await;
    }
    world.pass(8 * 86_400);
    world.restart().await;
    let authority = published(&world, &web.node_token).await;
    assert_eq!(authority.statement.keys.user.len(), 1);
    assert_eq!(authority.statement.keys.host.len(), 1);
    assert_eq!(authority.statement.version, 4);
}

#[tokio::test]
async fn rotations_in_a_hurry_are_refused_before_a_statement_grows_too_large() {
    let Scene { world, login, .. } = scene().await;
    let session = &login.session_token;
    let mut rotations = 0;
    let refused = loop {
        let reply = world.post("/v1/ssh/rotation", session, &json!({})).await;
        if !reply.status.is_success() {
            break reply;
        }
        rotations += 1;
        assert!(rotations < 20, "there is a bound");
    };
    refused.is(ErrorCode::LimitReached);
    assert!(view(&world, session).await.keys.len() <= 8);
    let replaced = rotate(&world, session, true).await;
    assert_eq!(replaced.keys.len(), 2);
}

#[tokio::test]
async fn replacing_the_keys_at_once_ends_every_certificate() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    let before = certify(&world, session, 600).await;
    let host = certify_host(&world, &web.node_token).await;
    rotate(&world, session, true).await;
    let authority = published(&world, &web.node_token).await;
    assert!(!is_valid(
        &before,
        &authority.statement.keys.user,
        now(&world)
    ));
    assert!(!is_valid(
        &host,
        &authority.statement.keys.host,
        now(&world)
    ));
    let after = certify(&world, session, 600).await;
    assert!(is_valid(
        &after,
        &authority.statement.keys.user,
        now(&world)
    ));
    assert!(
        authority.revoked.is_empty(),
        "no serial need be listed: {authority:?}"
    );
}

#[tokio::test]
async fn a_serial_a_person_and_a_node_are_revoked_until_their_certificates_end() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    let one = certify(&world, session, 600).await.serial;
    let two = certify(&world, session, 1_200).await.serial;
    let host = certify_host(&world, &web.node_token).await.serial;
    let revoke = async |body: Value| {
        let reply = world.post("/v1/ssh/revocations", session, &body).await;
        reply.parse::<Revoked>().certificates
    };
    let listed = async || {
        let authority = published(&world, &web.node_token).await;
        authority.revoked.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(revoke(json!({ "serial": one })).await, 1);
    assert_eq!(listed().await, [one]);
    assert_eq!(
        revoke(json!({ "user": login.user })).await,
        1,
        "the first is revoked already"
    );
    assert_eq!(listed().await, [one, two]);
    assert_eq!(revoke(json!({ "node": web.id })).await, 1);
    assert_eq!(listed().await, [one, two, host]);
    assert_eq!(view(&world, session).await.revoked, 3);
    assert_eq!(revoke(json!({ "node": NodeId(99) })).await, 0);
    for serial in [one.0, 99, u64::MAX] {
        let body = json!({ "serial": serial });
        let reply = world.post("/v1/ssh/revocations", session, &body).await;
        reply.is(ErrorCode::NotFound);
    }
    world.pass(601);
    assert_eq!(
        view(&world, session).await.revoked,
        2,
        "what ended need not be listed"
    );
    let rows = audited(&world, session, "ssh_certificates_revoked").await;
    assert_eq!(rows[0], format!("serial:{one} certificates:1"));
}

/// A session may outlive its certificate by far; what is taken back reaches it all the same.
#[tokio::test]
async fn what_began_with_a_certificate_that_has_ended_can_be_ended() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    let one = certify(&world, session, 60).await.serial;
    let two = certify(&world, session, 60).await.serial;
    world.pass(3_600);
    let revoke = async |body: Value| {
        let reply = world.post("/v1/ssh/revocations", session, &body).await;
        reply.parse::<Revoked>().certificates
    };
    assert_eq!(revoke(json!({ "serial": one })).await, 1);
    let authority = published(&world, &web.node_token).await;
    assert!(authority.revoked.contains(&one) && !authority.revoked.contains(&two));
    assert!(authority.cut.is_empty(), "{authority:?}");
    for body in [
        json!({ "user": login.user }),
        json!({ "node": login.device.id }),
    ] {
        let address = login.device.address;
        let serial = certify(&world, session, 60).await.serial;
        world.pass(61);
        assert_eq!(revoke(body.clone()).await, 0, "none could be used any more");
        let authority = published(&world, &web.node_token).await;
        assert_eq!(authority.cut, [(address, serial)].into(), "{body}");
        assert!(
            certify(&world, session, 60).await.serial > serial,
            "the next one counts"
        );
        world.pass(61);
    }
    // The node goes, and with it what would have to be listed.
    let path = format!("/v1/nodes/{}", login.device.id);
    let other = world.login().await;
    world.delete(&path, &other.session_token).await;
    assert!(published(&world, &web.node_token).await.cut.is_empty());
}

#[tokio::test]
async fn a_refused_login_is_in_the_audit_and_a_node_cannot_fill_it() {
    let Scene { world, login, web } = scene().await;
    let body = json!({
        "account": "root", "source": "fd00::7", "reason": "expired", "serial": 9,
        "key_id": "user=ann", "untold": 3
    });
    let tell = async || world.post("/v1/ssh/refusals", &web.node_token, &body).await;
    assert_eq!(tell().await.status.as_u16(), 204);
    let rows = audited(&world, &login.session_token, "ssh_login_refused").await;
    let expected = "reason:expired source:fd00::7 account:root serial:9 key_id:user=ann untold:3";
    assert_eq!(rows, [expected]);
    let mut told = 1;
    let refused = loop {
        let reply = tell().await;
        if !reply.status.is_success() {
            break reply;
        }
        told += 1;
        assert!(told < 1_000, "there is a bound");
    };
    refused.is(ErrorCode::LimitReached);
    world.pass(60);
    assert_eq!(tell().await.status.as_u16(), 204);
    for (name, value) in [
        ("account", json!("a b")),
        ("source", json!("x")),
        ("reason", json!("bored")),
        ("key_id", json!("a\nb")),
    ] {
        let mut body = body.clone();
        body[name] = value;
        let reply = world.post("/v1/ssh/refusals", &web.node_token, &body).await;
        reply.is(ErrorCode::MalformedRequest);
    }
}

#[tokio::test]
async fn a_refusal_for_its_time_names_the_newest_certificate_of_the_source() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    let tell = async |source: String, reason: &str| {
        let body = json!({ "source": source, "reason": reason, "clock": 5 });
        let reply = world.post("/v1/ssh/refusals", &web.node_token, &body).await;
        assert_eq!(reply.status.as_u16(), 204);
        let rows = audited(&world, session, "ssh_login_refused").await;
        rows.last().expect("a row").clone()
    };
    let source = login.device.address.to_string();
    let (reason, begin) = ("expired_or_not_yet_valid", now(&world));
    let bare = format!("reason:{reason} source:{source} clock:5");
    assert_eq!(tell(source.clone(), reason).await, bare);
    certify(&world, session, 600).await;
    let newest = certify(&world, session, 900).await.serial;
    let (after, before) = (begin - 30, begin + 900);
    let dates = format!("newest_valid_after:{after} newest_valid_before:{before}");
    let full = format!("{bare} newest_serial:{newest} {dates}");
    assert_eq!(tell(source.clone(), reason).await, full);
    let other = tell(web.address.to_string(), reason).await;
    assert!(!other.contains("newest"), "it has none: {other}");
    let said = tell(source, "wrong_principal").await;
    assert!(!said.contains("newest"), "{said}");
}

#[tokio::test]
async fn a_removed_node_and_a_renamed_one_lose_their_certificates() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    let peer = world.join(session, None, "peer", 2).await;
    let host = certify_host(&world, &web.node_token).await.serial;
    let body = json!({ "name": "www" }).to_string();
    let path = format!("/v1/nodes/{}", web.id);
    let bearer = session.emit();
    let renamed = world.request(Method::PATCH, &path, Some(&bearer), Some(body));
    assert!(renamed.await.status.is_success());
    let revoked = published(&world, &peer.node_token).await.revoked;
    assert_eq!(revoked.into_iter().collect::<Vec<_>>(), [host]);
    let renewed = certify_host(&world, &web.node_token).await;
    assert_eq!(read(&renewed).valid_principals()[0], "www");
    world.delete(&path, session).await;
    let revoked = published(&world, &peer.node_token).await.revoked;
    assert_eq!(
        revoked.into_iter().collect::<Vec<_>>(),
        [host, renewed.serial]
    );
    let body = json!({ "public_key": key() });
    let token = &web.node_token;
    let reply = world.post("/v1/ssh/host-certificate", token, &body).await;
    reply.is(ErrorCode::NodeRemoved);
}

#[tokio::test]
async fn organisations_trust_their_own_keys_only() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    world.add_org(session, "other").await;
    let foreign = world.join(session, Some("other"), "web", 3).await;
    let own = published(&world, &web.node_token).await;
    let other = published(&world, &foreign.node_token).await;
    assert_ne!(own.signing_key, other.signing_key);
    let issued = certify_host(&world, &foreign.node_token).await;
    assert!(is_valid(&issued, &other.statement.keys.host, now(&world)));
    assert!(!is_valid(&issued, &own.statement.keys.host, now(&world)));
    rotate(&world, session, false).await;
    assert_eq!(published(&world, &foreign.node_token).await, other);
    let path = "/v1/ssh/authority?org=default";
    world
        .get(path, &foreign.node_token)
        .await
        .is(ErrorCode::NotFound);
}

#[tokio::test]
async fn the_recording_policy_is_published() {
    let Scene { world, login, web } = scene().await;
    let bearer = login.session_token.emit();
    for policy in ["pty", "all", "off"] {
        let body = Some(json!({ "recording": policy }).to_string());
        let path = "/v1/ssh/recording";
        let reply = world.request(Method::PUT, path, Some(&bearer), body).await;
        assert!(reply.status.is_success(), "{}", reply.text());
        let authority = published(&world, &web.node_token).await;
        assert_eq!(authority.recording.to_string(), policy);
    }
}

#[tokio::test]
async fn certificates_are_listed_with_who_asked() {
    let Scene { world, login, web } = scene().await;
    let session = &login.session_token;
    certify(&world, session, 600).await;
    certify_host(&world, &web.node_token).await;
    let page: Page<Listed> = world.get("/v1/ssh/certificates", session).await.parse();
    let [user, host] = page.items.as_slice() else {
        panic!("two certificates: {page:?}");
    };
    assert_eq!(
        (user.kind, user.user),
        (CertificateKind::User, Some(login.user))
    );
    assert_eq!((host.kind, host.node), (CertificateKind::Host, web.id));
    assert_eq!(user.revoked, None);
}

#[tokio::test]
async fn an_authority_survives_a_restart_and_no_seed_lies_open() {
    let Scene {
        mut world,
        login,
        web,
    } = scene().await;
    let before = published(&world, &web.node_token).await;
    world.restart().await;
    assert_eq!(published(&world, &web.node_token).await, before);
    let issued = certify(&world, &login.session_token, 60).await;
    assert!(is_valid(&issued, &before.statement.keys.user, now(&world)));
}

#[tokio::test]
async fn a_lost_or_foreign_master_key_is_named() {
    let Scene { world, .. } = scene().await;
    let path = world.data.path().join("master.key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    world.server.close().await;
    std::fs::remove_file(&path).unwrap();
    let error = control::Server::open(world.config())
        .await
        .err()
        .expect("no master key");
    assert!(
        format!("{error:#}").contains("master.key` is missing"),
        "{error:#}"
    );
    for content in ["", "zz", "00"] {
        std::fs::write(&path, content).unwrap();
        let error = control::Server::open(world.config())
            .await
            .err()
            .expect("no key");
        assert!(format!("{error:#}").contains("holds no key"), "{error:#}");
    }
    std::fs::write(&path, "00".repeat(32)).unwrap();
    let error = control::Server::open(world.config())
        .await
        .err()
        .expect("the key of another database");
    let error = format!("{error:#}");
    assert!(error.contains("is not the one of its database"), "{error}");
}

#[tokio::test]
async fn only_the_right_token_is_certified() {
    let Scene { world, login, web } = scene().await;
    let body = json!({ "public_key": key() });
    let join = world.token(&login.session_token, Kind::Join, None).await;
    for (path, token) in [
        ("/v1/ssh/user-certificate", &web.node_token),
        ("/v1/ssh/user-certificate", &login.device.node_token),
        ("/v1/ssh/user-certificate", &join),
        ("/v1/ssh/host-certificate", &login.session_token),
        ("/v1/ssh/host-certificate", &join),
    ] {
        world
            .post(path, token, &body)
            .await
            .is(ErrorCode::WrongTokenKind);
    }
}

#[tokio::test]
async fn an_organisation_from_before_ssh_gets_its_authority_at_the_next_start() {
    use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
    let Scene { mut world, web, .. } = scene_in(World::in_file().await).await;
    world.server.close().await;
    let options = SqliteConnectOptions::new().filename(world.data.path().join("ginnel.db"));
    let mut database = options.connect().await.unwrap();
    let undo = "DROP TABLE ssh_key; DROP TABLE ssh_authority; DROP TABLE ssh_certificate;
                DELETE FROM _sqlx_migrations WHERE version = 2;";
    sqlx::raw_sql(undo).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    std::fs::remove_file(world.data.path().join("master.key")).unwrap();
    world.server = control::Server::open(world.config())
        .await
        .expect("an old database opens");
    let authority = published(&world, &web.node_token).await;
    assert_eq!(authority.statement.keys.user.len(), 1);
    world.restart().await;
    assert_eq!(published(&world, &web.node_token).await, authority);
}
