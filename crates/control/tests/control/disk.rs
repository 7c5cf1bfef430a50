//! What is on disk: whole after a crash, readable by its owner alone, without any secret.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use axum::http::StatusCode;
use control::{CertificateSource, Server};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use model::{
    map::NetworkMap,
    token::{Kind, Token},
};
use sqlx::{
    AnyConnection, AssertSqlSafe, ConnectOptions as _, Connection as _,
    sqlite::SqliteConnectOptions,
};
use tokio::time::timeout;

use crate::world::{World, enrol_request, log};

#[tokio::test]
async fn a_newer_database_is_refused_and_left_alone() {
    let world = World::in_file().await;
    world.login().await;
    world.server.close().await;
    let mut database = database(&world).await;
    let known: i64 = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&mut database)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999, 'future', 1, x'00', 0)",
    )
    .execute(&mut database)
    .await
    .unwrap();
    database.close().await.unwrap();
    let error = Server::open(world.config())
        .await
        .err()
        .expect("a newer database is refused");
    let error = format!("{error:#}");
    let versions = format!("written by a newer ginnel (schema 999, this one knows {known})");
    assert!(error.contains(&versions), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let world = World::in_file().await;
    world.server.close().await;
    let path = world.data.path().join("ginnel.db");
    fs::remove_file(path.with_extension("db-wal")).ok();
    fs::write(
        &path,
        "not a database, but long enough to look at".repeat(100),
    )
    .unwrap();
    let error = Server::open(world.config())
        .await
        .err()
        .expect("garbage is refused");
    assert!(format!("{error:#}").contains("open database"), "{error:#}");
}

#[tokio::test]
async fn only_the_owner_reads_the_state() {
    let world = World::in_file().await;
    world.login().await;
    let mut names = Vec::new();
    for entry in fs::read_dir(world.data.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "ca.key",
            "ca.pem",
            "ginnel.db",
            "ginnel.db-shm",
            "ginnel.db-wal",
            "master.key"
        ]
    );
}

#[tokio::test]
async fn no_secret_is_in_the_database_or_in_the_log() {
    let world = World::in_file().await;
    let bootstrap = world.server.bootstrap().await.unwrap().unwrap().token;
    let laptop = world
        .post("/v1/login", &bootstrap, &enrol_request("laptop", 1))
        .await;
    let laptop: model::api::LoggedIn = laptop.parse();
    let admin = laptop.session_token;
    let join = world.token(&admin, Kind::Join, None).await;
    let web = world
        .post("/v1/join", &join, &enrol_request("web", 2))
        .await;
    let web: model::api::Enrolled = web.parse();
    let gateway = world.gateway(&admin, "edge", 3).await;
    // Refusals, too, must not repeat what they were given.
    world
        .post("/v1/join", &join, &enrol_request("db", 4))
        .await
        .refused();
    world.get("/v1/nodes", &join).await.refused();
    let damaged = &bootstrap.emit()[..60];
    let path = format!("/v1/nodes?name={damaged}");
    world
        .request(axum::http::Method::GET, &path, Some(damaged), None)
        .await
        .refused();
    let secrets = [
        &bootstrap,
        &admin,
        &join,
        &laptop.device.node_token,
        &web.node_token,
        &gateway.node_token,
    ];
    let files: Vec<Vec<u8>> = fs::read_dir(world.data.path())
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(
        files.iter().any(|file| holds(file, b"laptop")),
        "the search finds what is there"
    );
    let log = log();
    assert!(log.contains("user_logged_in"), "the log was recorded");
    for secret in secrets {
        for form in forms(secret) {
            assert!(
                !files.iter().any(|file| holds(file, &form)),
                "{secret:?} is on disk"
            );
            assert!(!holds(log.as_bytes(), &form), "{secret:?} is in the log");
        }
    }
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let mut world = World::new().await;
    let pin = world.server.pin();
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let before: NetworkMap = world.get("/v1/map", &web.node_token).await.parse();
    world.restart().await;
    assert_eq!(world.server.pin(), pin);
    let after: NetworkMap = world.get("/v1/map", &web.node_token).await.parse();
    assert_eq!(before, after);
    assert_eq!(world.get("/v1/nodes", &admin).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_change_that_was_cut_short_is_whole_or_not_there() {
    let mut world = World::new().await;
    let admin = world.login().await.session_token;
    let token = world.token_with(&admin, Kind::Join, None, 200, 3600).await;
    for micros in (0..4_000).step_by(100) {
        let key = u8::try_from(micros / 100).unwrap();
        let request = enrol_request(&format!("n{micros}"), key);
        let join = world.post("/v1/join", &token.token, &request);
        // The client hangs up at some moment of its request.
        drop(timeout(Duration::from_micros(micros), join).await);
    }
    world.restart().await;
    let nodes = world.get("/v1/nodes", &admin).await.json();
    let joined = nodes["items"].as_array().unwrap().len() - 1;
    let entry = world
        .get(&format!("/v1/tokens/{}", token.entry.id), &admin)
        .await
        .json();
    assert_eq!(entry["uses"], joined, "uses and nodes agree");
    let audit = world.get("/v1/audit", &admin).await.json();
    let rows = audit["items"].as_array().unwrap().iter();
    let rows = rows.filter(|row| row["action"] == "node_joined").count();
    assert_eq!(rows, joined, "audit and nodes agree");
}

#[tokio::test]
async fn the_schema_refuses_what_the_code_must_not_do() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.join(&admin, None, "web", 1).await;
    let mut database = database(&world).await;
    for statement in [
        "UPDATE node SET name = 'laptop'",
        "UPDATE node SET address = (SELECT address FROM node WHERE id = 1)",
        "UPDATE node SET public_key = (SELECT public_key FROM node WHERE id = 1)",
        "UPDATE node SET org = NULL",
        "UPDATE node SET role = 'root'",
        "UPDATE node SET expired = 1, expires = NULL",
        "UPDATE node SET pending = 1, role = 'gateway'",
        "UPDATE token SET approval = 1 WHERE kind = 'node'",
        "UPDATE token SET uses = 99 WHERE kind = 'join'",
        "UPDATE token SET expires = NULL WHERE kind = 'join'",
        "UPDATE token SET expires = created + 40000000 WHERE kind = 'join'",
        "UPDATE token SET kind = 'session' WHERE kind = 'node'",
        "UPDATE org SET prefix = NULL",
        "INSERT INTO installation (id, serial, created) VALUES (2, 1, 1)",
        "DELETE FROM org",
        "UPDATE audit SET subject = 'nobody'",
        "DELETE FROM audit",
    ] {
        let refused = sqlx::query(statement).execute(&mut database).await;
        assert!(refused.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn a_lost_authority_is_not_replaced_in_silence() {
    let world = World::new().await;
    world.server.close().await;
    let key = world.data.path().join("ca.key");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let error = Server::open(world.config())
        .await
        .err()
        .expect("a lost key is refused");
    assert!(
        format!("{error:#}").contains("restore it from a backup"),
        "{error:#}"
    );

    // Another installation's authority is not taken for this one's.
    let other = World::new().await;
    for name in ["ca.key", "ca.pem"] {
        fs::copy(other.data.path().join(name), world.data.path().join(name)).unwrap();
    }
    let error = Server::open(world.config())
        .await
        .err()
        .expect("a foreign key is refused");
    assert!(
        format!("{error:#}").contains("not the one of its database"),
        "{error:#}"
    );
    assert!(!kept.is_empty());
}

#[tokio::test]
async fn with_an_operators_certificate_tokens_carry_no_pin() {
    let world = World::new().await;
    world.server.close().await;
    let made = rcgen::generate_simple_self_signed(vec!["vpn.example".to_owned()]).unwrap();
    let (chain, key) = (
        world.data.path().join("a.pem"),
        world.data.path().join("a.key"),
    );
    fs::write(&chain, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let open = async |chain: &Path, key: &Path| {
        let mut config = world.config();
        config.certificate = CertificateSource::Files {
            chain: chain.to_owned(),
            key: key.to_owned(),
        };
        Server::open(config).await
    };
    let server = open(&chain, &key).await.unwrap();
    assert_eq!(server.pin(), None);
    assert_eq!(server.bootstrap().await.unwrap().unwrap().token.pin(), None);
    server.close().await;

    let error = open(&chain, &world.data.path().join("ca.key"))
        .await
        .err()
        .unwrap();
    assert!(
        format!("{error:#}").contains("with the private key"),
        "{error:#}"
    );
    let error = open(&world.data.path().join("absent"), &key)
        .await
        .err()
        .unwrap();
    assert!(
        format!("{error:#}").contains("read the certificate"),
        "{error:#}"
    );
}

#[tokio::test]
async fn a_public_endpoint_needs_a_port() {
    let world = World::new().await;
    world.server.close().await;
    for public in [
        "vpn.example",
        "https://vpn.example:443",
        ":443",
        "vpn.example:99999",
    ] {
        let mut config = world.config();
        config.public = public.to_owned();
        let error = Server::open(config).await.err().expect("it is refused");
        assert!(error.to_string().contains("HOST:PORT"), "{error}");
    }
}

pub(crate) async fn database(world: &World) -> AnyConnection {
    AnyConnection::connect(&world.url())
        .await
        .expect("the database opens")
}

/// Returns the forms in which a secret could have slipped out.
fn forms(token: &Token) -> Vec<Vec<u8>> {
    let secret = token.expose();
    let upper = BASE32_NOPAD.encode(secret);
    vec![
        secret.to_vec(),
        upper.to_lowercase().into_bytes(),
        upper.into_bytes(),
        HEXLOWER.encode(secret).into_bytes(),
        format!("{secret:?}").into_bytes(),
    ]
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Turns a closed database back into what it was before people had roles.
pub(crate) async fn back_to_schema_3(data: &Path) {
    let options = SqliteConnectOptions::new()
        .filename(data.join("ginnel.db"))
        .foreign_keys(false)
        .pragma("legacy_alter_table", "ON");
    let mut database = options.connect().await.expect("the database opens");
    let statements = "
        CREATE UNIQUE INDEX node_builtin ON node (builtin) WHERE builtin = 1 AND removed IS NULL;
        DROP INDEX org_serial;
        DROP INDEX node_expires;
        DROP INDEX ssh_certificate_org;
        ALTER TABLE node DROP COLUMN expired;
        ALTER TABLE node DROP COLUMN expires;
        ALTER TABLE node DROP COLUMN pending;
        DROP TRIGGER audit_update;
        DROP TRIGGER audit_delete;
        ALTER TABLE audit DROP COLUMN previous;
        ALTER TABLE audit DROP COLUMN hash;
        ALTER TABLE installation DROP COLUMN audit_past_id;
        ALTER TABLE installation DROP COLUMN audit_past;
        ALTER TABLE installation DROP COLUMN audit_last_id;
        ALTER TABLE installation DROP COLUMN audit_last;
        DROP TABLE oidc_session;
        DROP TABLE oidc_identity;
        DROP TABLE oidc_role;
        DROP TABLE oidc_provider;
        DROP TABLE user_group;
        CREATE TABLE person (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
            role TEXT NOT NULL CHECK (role IN ('admin')), created INTEGER NOT NULL);
        INSERT INTO person (name, role, created)
            SELECT name, 'admin', MIN(created) FROM \"user\" GROUP BY name ORDER BY MIN(id);
        UPDATE node SET \"user\" = (SELECT p.id FROM person p JOIN \"user\" u ON u.name = p.name
            WHERE u.id = node.\"user\");
        CREATE TABLE ticket (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
            hash BLOB NOT NULL UNIQUE, org INTEGER REFERENCES org (id),
            node INTEGER REFERENCES node (id), \"user\" INTEGER REFERENCES \"user\" (id),
            uses INTEGER NOT NULL, uses_max INTEGER, created INTEGER NOT NULL, expires INTEGER,
            revoked INTEGER);
        INSERT INTO ticket SELECT id, CASE kind WHEN 'login' THEN 'admin' ELSE kind END, hash, org,
            node, (SELECT p.id FROM person p JOIN \"user\" u ON u.name = p.name
                   WHERE u.id = token.\"user\"),
            uses, uses_max, created, expires, revoked FROM token;
        DROP TABLE browser;
        DROP TABLE peer;
        DROP TABLE site;
        DROP TABLE ssh_session_piece;
        DROP TABLE ssh_session;
        DROP TABLE ssh_cut;
        DROP TABLE token;
        ALTER TABLE ticket RENAME TO token;
        CREATE INDEX token_node ON token (node) WHERE node IS NOT NULL;
        DROP TABLE \"user\";
        ALTER TABLE person RENAME TO \"user\";
        DELETE FROM _sqlx_migrations WHERE version > 3";
    for statement in statements.split(';') {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut database)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    database.close().await.expect("the database closes");
}
