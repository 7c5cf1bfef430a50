//! Several servers on one PostgreSQL: what one changes, the others know and tell.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use axum::http::StatusCode;
use control::{Config, Database, Server};
use model::{
    api::{ErrorCode, Node, Page},
    key::PublicKey,
    map::NetworkMap,
    policy::Role,
    token::{Kind, Token},
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::world::{Reply, World, enrol_request};

/// How long to wait before something is taken for stuck.
const HANG_MAX: Duration = Duration::from_secs(60);

/// The lock of whoever works on the database.
const LOCK: i64 = 0x6769_6e6e_656c;

/// The lock of a change.
const CHANGE_LOCK: i64 = LOCK + 1;

/// The lock of the server that leads.
const LEAD_LOCK: i64 = LOCK + 2;

/// Returns two servers on one PostgreSQL; `None` where the tests run on files.
async fn two() -> Option<(World, World)> {
    let one = World::new().await;
    if matches!(one.config().database, Database::File) {
        return None;
    }
    let two = one.beside().await;
    Some((one, two))
}

async fn database(world: &World) -> PgConnection {
    PgConnection::connect(&world.url())
        .await
        .expect("it answers")
}

/// Asks for the map after the one that the node has, and waits for it.
fn wait_for_map(world: &World, token: &Token, map: &NetworkMap) -> JoinHandle<Reply> {
    let (server, token, after) = (world.server.clone(), token.clone(), map.serial);
    tokio::spawn(async move {
        let path = format!("/v1/map?after={after}");
        crate::world::get_of(&server, &path, &token).await
    })
}

async fn soon<T>(task: JoinHandle<T>) -> T {
    let ended = timeout(HANG_MAX, task).await.expect("it comes");
    ended.expect("no panic")
}

fn names(map: &NetworkMap) -> BTreeSet<String> {
    let nodes = map.orgs.values().flat_map(|org| org.nodes.values());
    nodes.map(|node| node.name.to_string()).collect()
}

#[tokio::test]
async fn a_change_at_one_server_wakes_who_waits_at_the_other() {
    let Some((one, two)) = two().await else {
        return;
    };
    let admin = one.login().await.session_token;
    for (number, (here, there)) in (0_u8..).zip([(&one, &two), (&two, &one)]) {
        let name = format!("web{number}");
        let web = there.join(&admin, None, &name, 10 + number).await;
        let waits = wait_for_map(there, &web.node_token, &web.map);
        here.join(&admin, None, &format!("db{number}"), 20 + number)
            .await;
        let map: NetworkMap = soon(waits).await.parse();
        assert!(names(&map).contains(&format!("db{number}")));
    }
}

#[tokio::test]
async fn a_change_is_seen_without_notifications_too() {
    let Some((one, two)) = two().await else {
        return;
    };
    let admin = one.login().await.session_token;
    let mut web = two.join(&admin, None, "web", 1).await;
    let mut cutter = database(&one).await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'ginnel listener'";
    let mut cuts = 0;
    for number in 0..5_u8 {
        let waits = wait_for_map(&two, &web.node_token, &web.map);
        cuts += sqlx::query_scalar::<_, i64>(cut)
            .fetch_one(&mut cutter)
            .await
            .unwrap();
        let name = format!("db{number}");
        one.join(&admin, None, &name, 20 + number).await;
        web.map = soon(waits).await.parse();
        assert!(names(&web.map).contains(&name));
    }
    assert!(cuts > 0, "nobody listened");
}

#[tokio::test]
async fn changes_at_several_servers_are_serial() {
    let Some((one, two)) = two().await else {
        return;
    };
    let three = one.beside().await;
    let admin = one.login().await.session_token;
    let token = one.token_with(&admin, Kind::Join, None, 40, 3600).await;
    let token = token.token;
    let mut joins = Vec::new();
    for number in 0..60_u8 {
        let world = [&one, &two, &three][usize::from(number) % 3];
        let (server, token) = (world.server.clone(), token.clone());
        joins.push(tokio::spawn(async move {
            let request = enrol_request(&format!("n{number}"), number + 1);
            crate::world::post_to(&server, "/v1/join", &token, &request).await
        }));
    }
    let mut joined = 0;
    for join in joins {
        let reply = soon(join).await;
        if reply.status.is_success() {
            joined += 1;
        } else {
            reply.is(ErrorCode::TokenUsed);
        }
    }
    // As often as the token may be used, whoever takes it.
    assert_eq!(joined, 40);
    let page: Page<Node> = two.get("/v1/nodes?limit=200", &admin).await.parse();
    let addresses: BTreeSet<_> = page.items.iter().filter_map(|node| node.address).collect();
    // The laptop of the administrator is one more.
    assert_eq!(addresses.len(), 41);
    for world in [&one, &two, &three] {
        assert_eq!(crate::audit::verify(world, &admin).await, Ok(()));
    }
}

#[tokio::test]
async fn a_change_that_hangs_elsewhere_is_waited_for_and_not_for_long() {
    let Some((one, two)) = two().await else {
        return;
    };
    let admin = one.login().await.session_token;
    let token = one.token_with(&admin, Kind::Join, None, 9, 3600).await;
    let mut hangs = database(&one).await;
    let mut change = hangs.begin().await.unwrap();
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CHANGE_LOCK);
    lock.execute(&mut *change).await.unwrap();
    let request = enrol_request("web", 1);
    let refused = two.post("/v1/join", &token.token, &request).await;
    refused.is(ErrorCode::Unavailable);
    // Reading goes on meanwhile.
    let listed = two.get("/v1/nodes", &admin).await;
    assert_eq!(listed.status, StatusCode::OK);
    change.rollback().await.unwrap();
    let joined = two.post("/v1/join", &token.token, &request).await;
    assert!(joined.status.is_success(), "{}", joined.text());
}

async fn refusal(config: Config) -> String {
    let opened = Server::open(config).await;
    format!("{:#}", opened.err().expect("it is refused"))
}

#[tokio::test]
async fn a_server_with_other_keys_than_those_of_the_database_is_refused() {
    let Some((one, two)) = two().await else {
        return;
    };
    one.login().await;
    two.server.close().await;
    let foreign = World::seeded(2).await;
    foreign.login().await;
    let config = |data: &Path| Config {
        data: data.to_owned(),
        ..one.config()
    };
    let empty = tempfile::tempdir().unwrap();
    let text = refusal(config(empty.path())).await;
    assert!(
        text.contains("`ca.key`") && text.contains("copy it from another server"),
        "{text}"
    );
    let copy = |from: &World, names: &[&str]| {
        for name in names {
            fs::copy(from.data.path().join(name), two.data.path().join(name)).unwrap();
        }
    };
    copy(&foreign, &["ca.key", "ca.pem"]);
    let text = refusal(config(two.data.path())).await;
    assert!(
        text.contains("the certificate authority in") && text.contains("copy `ca.key`"),
        "{text}"
    );
    copy(&one, &["ca.key", "ca.pem"]);
    copy(&foreign, &["master.key"]);
    let text = refusal(config(two.data.path())).await;
    assert!(
        text.contains("`master.key`") && text.contains("copy it from another server"),
        "{text}"
    );
    fs::remove_file(two.data.path().join("master.key")).unwrap();
    let text = refusal(config(two.data.path())).await;
    assert!(text.contains("master.key` is missing"), "{text}");
    copy(&one, &["master.key"]);
    let opened = Server::open(config(two.data.path())).await;
    opened.expect("its keys are right").close().await;
}

#[tokio::test]
async fn a_database_is_not_migrated_beneath_servers_nor_copied() {
    let Some((one, two)) = two().await else {
        return;
    };
    let place = control::Place::Postgres(one.url().into());
    let file = tempfile::tempdir().unwrap();
    let copied = control::copy(&place, &control::Place::Folder(file.path().to_owned())).await;
    let text = format!("{:#}", copied.expect_err("servers run"));
    assert!(text.contains("another server works on this"), "{text}");
    one.server.close().await;
    // As if this schema were the one before.
    let mut database = database(&one).await;
    let forget = "DELETE FROM _sqlx_migrations
        WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)";
    sqlx::query(forget).execute(&mut database).await.unwrap();
    let text = refusal(one.config()).await;
    assert!(
        text.contains("servers with an older schema work on this database"),
        "{text}"
    );
    two.server.close().await;
}

#[tokio::test]
async fn who_is_just_leaving_the_database_is_waited_for() {
    let world = World::new().await;
    if matches!(world.config().database, Database::File) {
        return;
    }
    world.server.close().await;
    let mut leaving = database(&world).await;
    let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK);
    lock.execute(&mut leaving).await.unwrap();
    let config = world.config();
    let opening = tokio::spawn(async move { Server::open(config).await });
    let asks = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%pg_try_advisory_lock_shared(%'
            AND pid <> pg_backend_pid()";
    let asked = async {
        while sqlx::query_scalar::<_, i64>(asks)
            .fetch_one(&mut leaving)
            .await
            .unwrap()
            == 0
        {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANG_MAX, asked)
        .await
        .expect("it asks for the lock");
    assert!(!opening.is_finished(), "it waits");
    leaving.close().await.unwrap();
    let opened = opening.await.expect("no panic");
    opened.expect("the database is free now").close().await;
}

#[tokio::test]
async fn a_server_does_not_write_to_a_database_that_was_migrated_beneath_it() {
    let Some((one, two)) = two().await else {
        return;
    };
    two.server.close().await;
    let admin = one.login().await.session_token;
    let mut database = database(&one).await;
    let newer = "INSERT INTO _sqlx_migrations
            (version, description, success, checksum, execution_time)
        VALUES (999, 'newer', TRUE, '', 0)";
    sqlx::query(newer).execute(&mut database).await.unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::query(cut).execute(&mut database).await.unwrap();
    let request = model::api::NewOrg {
        name: crate::world::label("late"),
    };
    let refused = one.post("/v1/orgs", &admin, &request).await;
    assert!(!refused.status.is_success(), "{}", refused.text());
    let found = "SELECT count(*) FROM org WHERE name = 'late'";
    let found: i64 = sqlx::query_scalar(found)
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(found, 0);
}

#[tokio::test]
async fn an_approval_and_an_end_at_one_server_are_noticed_by_the_other() {
    let Some((one, two)) = two().await else {
        return;
    };
    let admin = one.login().await.session_token;
    let mut web = two.join(&admin, None, "web", 1).await;
    let body = serde_json::json!({"kind": "join", "approval": true});
    let made: model::api::CreatedToken = one.post("/v1/tokens", &admin, &body).await.parse();
    let request = enrol_request("db", 2);
    let db: model::api::Enrolled = one.post("/v1/join", &made.token, &request).await.parse();
    let known = |map: &NetworkMap| names(map).contains("db");
    let waiting = wait_for_map(&two, &db.node_token, &db.map);
    let path = format!("/v1/nodes/{}/approval", db.id);
    let nothing = serde_json::json!({});
    one.post(&path, &admin, &nothing).await.parse::<Node>();
    let admitted: NetworkMap = soon(waiting).await.parse();
    assert!(admitted.own.state.is_active() && names(&admitted).contains("web"));
    while !known(&web.map) {
        let waits = wait_for_map(&two, &web.node_token, &web.map);
        web.map = soon(waits).await.parse();
    }
    // Only the other one serves, and so is awake when the time is over.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = two.server.clone();
    let serving = tokio::spawn(async move {
        let never = std::future::pending::<()>();
        server.serve(listener, never).await
    });
    let path = format!("/v1/nodes/{}/expiry", db.id);
    let soon_over = serde_json::json!({"ttl_seconds": 1});
    one.put(&path, &admin, &soon_over).await.parse::<Node>();
    one.pass(1);
    while known(&web.map) {
        let waits = wait_for_map(&one, &web.node_token, &web.map);
        web.map = soon(waits).await.parse();
    }
    serving.abort();
}

/// Returns the gateway that a map names.
fn gateway(map: &NetworkMap) -> Option<PublicKey> {
    let gateway = map.orgs.values().next()?.gateway.as_ref()?;
    Some(gateway.public_key)
}

#[tokio::test]
async fn the_gateway_of_another_server_takes_over_when_the_one_that_leads_ends() {
    let Some((one, two)) = two().await else {
        return;
    };
    let key = |byte| PublicKey([byte; 32]);
    let register = async |world: &World, byte| {
        let endpoint = format!("vpn{byte}.example:51820");
        let registered = world.server.register_builtin_gateway(key(byte), &endpoint);
        registered.await.expect("it is registered")
    };
    let first = register(&one, 101).await;
    let admin = one.login().await.session_token;
    let second = register(&two, 102).await;
    assert_ne!(first, second);
    let mut web = two.join(&admin, None, "web", 1).await;
    assert_eq!(gateway(&web.map), Some(key(101)));
    let used = format!("/v1/nodes/{first}");
    two.delete(&used, &admin).await.is(ErrorCode::NotPermitted);
    // The lead of the first is only sure once it holds the lock.
    let leads = "SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND CAST(objid AS BIGINT) = $1
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let mut database = database(&one).await;
    let held = async {
        loop {
            let count = sqlx::query_scalar::<_, i64>(leads).bind(LEAD_LOCK & 0xffff_ffff);
            if count.fetch_one(&mut database).await.unwrap() == 1 {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANG_MAX, held).await.expect("somebody leads");
    one.server.close().await;
    while gateway(&web.map) != Some(key(102)) {
        let waits = wait_for_map(&two, &web.node_token, &web.map);
        web.map = soon(waits).await.parse();
    }
    // It is that of a server that is no more now.
    let removed = two.delete(&used, &admin).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{}", removed.text());
}

#[tokio::test]
async fn a_server_that_starts_leaves_captures_at_the_others_alone() {
    let Some((one, two)) = two().await else {
        return;
    };
    let session = one.login().await.session_token;
    let admin = one.person(&session, None, "ann", Role::Admin, 2).await;
    let web = one.join(&session, None, "web", 1).await;
    let wanted = json!({"inner": true, "outer": false});
    let reply = one.capture(&admin.session_token, &web, &wanted).await;
    assert_eq!(reply.status(), StatusCode::OK);
    let ends = async |world: &World| {
        let audit = world.get("/v1/audit", &session).await.text();
        audit.matches("capture_ended").count()
    };
    let three = one.beside().await;
    assert_eq!(ends(&three).await, 0, "it runs");
    drop(reply);
    while ends(&three).await == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ends(&two).await, 1);
}
