//! The audit: filters, and a chain that shows what was altered, cut out or cut off.

use control::{AuditFault, AuditVerifier};
use model::{
    api::{AuditChain, AuditEntry, LoggedIn, Page},
    policy::Role,
    token::Token,
};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::{
    disk::database,
    world::{World, enrol_request},
};

#[tokio::test]
async fn each_row_is_chained_to_the_one_before() {
    let (world, admin) = scene().await;
    assert_eq!(verify(&world, &admin).await, Ok(()));
    let rows = entries(&world, &admin).await;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let all: Vec<i64> = (1..).take(rows.len()).collect();
    assert_eq!(ids, all, "none is left out");
}

#[tokio::test]
async fn a_row_that_was_altered_is_named() {
    for (column, value) in [
        ("time", "time + 1"),
        ("actor", "'server'"),
        ("action", "'nothing'"),
        ("subject", "subject || 'x'"),
        ("org", "NULL"),
        ("id", "id + 1000"),
    ] {
        let (world, admin) = scene().await;
        let id = node_joined(&world, &admin).await;
        tamper(
            &world,
            &format!("UPDATE audit SET {column} = {value} WHERE id = {id}"),
        )
        .await;
        let fault = if column == "id" {
            AuditFault::Missing {
                after: id - 1,
                before: id + 1,
            }
        } else {
            AuditFault::Altered(id)
        };
        assert_eq!(verify(&world, &admin).await, Err(fault), "{column}");
    }
}

#[tokio::test]
async fn rows_that_are_missing_show() {
    let (world, admin) = scene().await;
    let id = node_joined(&world, &admin).await;
    tamper(&world, &format!("DELETE FROM audit WHERE id = {id}")).await;
    let gap = AuditFault::Missing {
        after: id - 1,
        before: id + 1,
    };
    assert_eq!(verify(&world, &admin).await, Err(gap));

    let (world, admin) = scene().await;
    tamper(&world, "DELETE FROM audit WHERE id = 1").await;
    let begin = AuditFault::Missing {
        after: 0,
        before: 2,
    };
    assert_eq!(verify(&world, &admin).await, Err(begin));

    let (world, admin) = scene().await;
    let last = entries(&world, &admin).await.len();
    let last = i64::try_from(last).unwrap();
    tamper(&world, &format!("DELETE FROM audit WHERE id = {last}")).await;
    let end = AuditFault::Cut(last - 1);
    assert_eq!(verify(&world, &admin).await, Err(end));
}

#[tokio::test]
async fn rows_that_are_older_than_the_chain_are_chained_once() {
    let (mut world, admin) = scene().await;
    let rows = entries(&world, &admin).await;
    tamper(&world, "UPDATE audit SET previous = NULL, hash = NULL").await;
    let unchained = AuditFault::Unchained(1);
    world.restart().await;
    assert_eq!(
        verify(&world, &admin).await,
        Err(unchained),
        "not a second time"
    );
    tamper(
        &world,
        "UPDATE installation SET audit_past_id = NULL, audit_past = NULL, audit_last_id = NULL,
                                 audit_last = NULL",
    )
    .await;
    world.restart().await;
    assert_eq!(entries(&world, &admin).await, rows);
    assert_eq!(verify(&world, &admin).await, Ok(()));
}

#[tokio::test]
async fn a_chain_is_whole_without_the_rows_that_were_too_old() {
    let (mut world, _) = scene().await;
    world.pass(399 * 24 * 60 * 60);
    let admin = login(&world, "desk", 201).await;
    world.join(&admin, None, "late", 9).await;
    world.pass(2 * 24 * 60 * 60);
    world.restart().await;
    let admin = login(&world, "desk-2", 202).await;
    let rows = entries(&world, &admin).await;
    assert!(rows[0].id > 1, "{rows:?}");
    assert!(rows.iter().any(|row| row.action == "past_deleted"));
    assert_eq!(verify(&world, &admin).await, Ok(()));
}

#[tokio::test]
async fn one_asks_for_who_did_what_since_when() {
    let (world, admin) = scene().await;
    let begin = world.clock.load(std::sync::atomic::Ordering::Relaxed);
    world.pass(60);
    world.join(&admin, None, "db", 7).await;
    let asked = async |query: &str| -> Vec<String> {
        let path = format!("/v1/audit?{query}");
        let page: Page<AuditEntry> = world.get(&path, &admin).await.parse();
        let rows = page.items.into_iter();
        rows.map(|row| format!("{} {}", row.actor, row.action))
            .collect()
    };
    let since = begin + 1;
    let late = asked(&format!("since={since}")).await;
    assert_eq!(late.len(), 2, "{late:?}");
    assert!(late[1].ends_with("node_joined"), "{late:?}");
    let joined = asked("action=node_joined").await;
    assert_eq!(joined.len(), 2, "{joined:?}");
    assert!(joined.iter().all(|row| row.ends_with("node_joined")));
    // The person's id and her name mean the same.
    let by_name = asked("actor=admin&action=token_added").await;
    assert_eq!(by_name, asked("actor=user%3A1&action=token_added").await);
    assert!(by_name.len() > 1, "{by_name:?}");
    assert_eq!(asked("actor=nobody").await, Vec::<String>::new());
    let hostile = asked("actor=%27%20OR%201%3D1%20--").await;
    assert_eq!(hostile, Vec::<String>::new());
}

#[tokio::test]
async fn an_administrator_is_given_no_hash() {
    let (world, admin) = scene().await;
    world.add_org(&admin, "acme").await;
    let invited = world
        .invite(&admin, Some("acme"), "alice", Role::Admin)
        .await;
    let reply = world
        .post("/v1/login", &invited.token, &enrol_request("alices", 77))
        .await;
    let alice: LoggedIn = reply.parse();
    let page = world.get("/v1/audit", &alice.session_token).await;
    let page: Page<AuditEntry> = page.parse();
    assert!(!page.items.is_empty());
    assert!(page.items.iter().all(|row| row.link.is_none()), "{page:?}");
}

/// A world in which something happened, and the session of its operator.
async fn scene() -> (World, Token) {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.join(&admin, None, "web", 1).await;
    world.add_org(&admin, "other").await;
    (world, admin)
}

async fn login(world: &World, name: &str, key: u8) -> Token {
    let token = world.server.admin_token().await.expect("a token").token;
    let reply = world
        .post("/v1/login", &token, &enrol_request(name, key))
        .await;
    let login: LoggedIn = reply.parse();
    login.session_token
}

async fn entries(world: &World, admin: &Token) -> Vec<AuditEntry> {
    let page: Page<AuditEntry> = world.get("/v1/audit", admin).await.parse();
    assert_eq!(page.next, None, "one page holds all");
    page.items
}

pub(crate) async fn verify(world: &World, admin: &Token) -> Result<(), AuditFault> {
    let chain: AuditChain = world.get("/v1/audit/chain", admin).await.parse();
    let mut verifier = AuditVerifier::new(&chain);
    for entry in entries(world, admin).await {
        verifier.follow(&entry)?;
    }
    verifier.finish(&chain)
}

async fn node_joined(world: &World, admin: &Token) -> i64 {
    let rows = entries(world, admin).await;
    let row = rows.iter().find(|row| row.action == "node_joined");
    row.expect("a node joined").id
}

/// Changes the database as somebody who may do everything there.
async fn tamper(world: &World, statement: &str) {
    let mut database = database(world).await;
    let triggers = if world.url().starts_with("sqlite") {
        [
            "DROP TRIGGER IF EXISTS audit_update",
            "DROP TRIGGER IF EXISTS audit_delete",
        ]
    } else {
        [
            "DROP TRIGGER IF EXISTS audit_change ON audit",
            "DROP TRIGGER IF EXISTS audit_truncate ON audit",
        ]
    };
    for statement in triggers.into_iter().chain([statement]) {
        let done = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut database);
        done.await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    database.close().await.expect("it closes");
}
