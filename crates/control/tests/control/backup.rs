//! A backup is a whole installation from one moment, and comes back as it was or not at all.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use control::{Database, Server};
use model::{policy::Role, token::Token};
use serde_json::{Value, json};

use crate::world::{BEGIN, World, fresh_database};

/// A backup in the clear.
async fn backup(world: &World) -> Vec<u8> {
    let mut text = Vec::new();
    let made = UNIX_EPOCH + Duration::from_secs(BEGIN);
    let config = world.config();
    let mut progress = |done, all| assert!(done <= all);
    let (data, database) = (world.data.path(), &config.database);
    let done = control::backup(data, database, made, &mut text, &mut progress);
    let contents = done.await.expect("a backup");
    assert!(contents.rows > 0);
    text
}

async fn restore(text: &[u8], data: &Path, database: &Database) -> anyhow::Result<()> {
    let now = UNIX_EPOCH + Duration::from_secs(BEGIN + 60);
    let mut text = text;
    control::restore(&mut text, data, database, now, &mut |_, _| ())
        .await
        .map(drop)
}

/// Restores it and continues with the server that comes of it.
async fn continued(world: &mut World, text: &[u8]) {
    world.server.close().await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let database = fresh_database().await;
    restore(text, folder.path(), &database)
        .await
        .expect("it comes back");
    let mut config = world.config();
    config.data = folder.path().to_owned();
    config.database = database;
    world.data = folder;
    world.server = Server::open(config).await.expect("it opens");
}

#[tokio::test]
async fn everything_comes_back_and_nothing_is_given_twice() {
    let mut world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "acme").await;
    world
        .invite(&admin, Some("acme"), "alice", Role::Developer)
        .await;
    let web = world.join(&admin, None, "web", 1).await;
    world.gateway(&admin, "edge", 3).await;
    let site = json!({
        "name": "paris", "node": web.id, "prefixes": ["192.168.1.0/24"],
        "aliases": ["192.168.1.0/24=10.99.1.0/24"]
    });
    world.post("/v1/sites", &admin, &site).await;
    let paths = [
        "/v1/nodes",
        "/v1/orgs",
        "/v1/users",
        "/v1/tokens",
        "/v1/sites",
    ];
    let mut before = Vec::new();
    for path in paths {
        before.push(world.get(path, &admin).await.json());
    }
    let statement = |map: &Value| map["orgs"][0]["ssh"].clone();
    let map = world.get("/v1/map", &web.node_token).await.json();
    let text = backup(&world).await;
    // What is given after it was made is lost, and its ids and serials are given to nobody else.
    let lost = world.join(&admin, None, "lost", 9).await;
    let later = world.get("/v1/map", &web.node_token).await.json();

    continued(&mut world, &text).await;
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(world.get(path, &admin).await.json(), before, "{path}");
    }
    let now = world.get("/v1/map", &web.node_token).await.json();
    assert_eq!(statement(&now), statement(&map));
    assert!(now["serial"].as_u64() > later["serial"].as_u64(), "{now}");
    let refused = world.get("/v1/map", &lost.node_token).await;
    refused.refused();
    let next = world.join(&admin, None, "next", 10).await;
    assert!(next.id > lost.id, "{} {}", next.id, lost.id);
    let audit = world.get("/v1/audit?what=restored", &admin).await.json();
    assert!(audit.to_string().contains("backup of"), "{audit}");
}

#[tokio::test]
async fn what_was_acknowledged_before_it_began_is_in_it_whatever_goes_on() {
    let mut world = World::new().await;
    let admin = world.login().await.session_token;
    let mut acknowledged = Vec::new();
    for _ in 0..20 {
        acknowledged.push(rule(&world, &admin).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let changes = async {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            rule(&world, &admin).await;
            count += 1;
        }
        count
    };
    let backups = async {
        let mut last = Vec::new();
        for _ in 0..3 {
            last = backup(&world).await;
        }
        stop.store(true, Ordering::Relaxed);
        last
    };
    let (count, text) = tokio::join!(changes, backups);
    assert!(count > 0, "it went on meanwhile");
    continued(&mut world, &text).await;
    let rules = world.get("/v1/rules", &admin).await.json();
    let rules = rules["items"].as_array().expect("a list");
    for id in acknowledged {
        assert!(rules.iter().any(|rule| rule["id"] == id), "{id}: {rules:?}");
    }
}

#[tokio::test]
async fn what_is_not_whole_or_not_ours_is_refused_and_leaves_nothing() {
    let world = World::new().await;
    world.login().await;
    let text = String::from_utf8(backup(&world).await).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let row = lines
        .iter()
        .position(|line| line.contains("{\"row\""))
        .unwrap();
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let without = [&lines[..row], &lines[row + 1..]].concat().concat();
    let end = lines.len() - 1;
    let cases = [
        (lines[..end].concat(), "its end is missing"),
        (text[..text.len() / 2].to_owned(), "its end is missing"),
        (text.clone() + lines[end], "something follows"),
        (without, "rows are missing"),
        (changed("\"schema\":", "\"schema\":9"), "a newer ginnel"),
        (changed("\"format\":1", "\"format\":2"), "a newer ginnel"),
        (
            changed("master.key", "../escaped"),
            "a file that no server has",
        ),
        (
            changed(
                "\"name\":\"org\"",
                "\"name\":\"org\\\"; DROP TABLE org; --\"",
            ),
            "no server writes",
        ),
        (
            changed("\"created\":", "\"created) --\":"),
            "no server writes",
        ),
        (
            changed("\"action\":\"installed\"", "\"action\":\"x\""),
            "did not arrive",
        ),
        ("{}\n".to_owned(), "no server writes"),
        (lines[1..].concat(), "no backup"),
        (String::new(), "its end is missing"),
    ];
    for (case, reason) in cases {
        let folder = tempfile::tempdir().unwrap();
        let refused = restore(case.as_bytes(), folder.path(), &Database::File).await;
        let refused = format!("{:#}", refused.expect_err(reason));
        assert!(refused.contains(reason), "{reason}: {refused}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{reason}");
        assert!(!folder.path().join("../escaped").exists());
    }
}

#[tokio::test]
async fn what_holds_an_installation_is_left_alone() {
    let (world, other) = (World::new().await, World::new().await);
    world.login().await;
    other.login().await;
    let text = backup(&world).await;
    let database = other.config().database;
    other.server.close().await;
    let refused = restore(&text, other.data.path(), &database).await;
    let refused = format!("{:#}", refused.expect_err("it is refused"));
    assert!(
        refused.contains("holds an installation already"),
        "{refused}"
    );
    if let Database::Postgres(_) = database {
        let empty = tempfile::tempdir().unwrap();
        let refused = restore(&text, empty.path(), &database).await;
        let refused = format!("{:#}", refused.expect_err("it is refused"));
        assert!(
            refused.contains("holds an installation already"),
            "{refused}"
        );
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    }
    let again = Server::open(other.config()).await.expect("it is as it was");
    assert!(again.bootstrap().await.unwrap().is_none());
}

/// As a server would have made it whose schema was the ninth, before there were these tables.
#[tokio::test]
async fn a_backup_of_an_older_schema_is_brought_up_to_date() {
    let mut world = World::new().await;
    let admin = world.login().await.session_token;
    let text = String::from_utf8(backup(&world).await).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut old = String::new();
    let mut is_later = false;
    for mut line in lines {
        if let Some(header) = line.get_mut("backup") {
            header["schema"] = json!(9);
        }
        is_later |= ["peer", "browser"].contains(&line["table"]["name"].as_str().unwrap_or(""));
        if !is_later {
            old += &format!("{line}\n");
        }
        is_later &= line.get("end").is_none();
    }
    assert!(old.len() < text.len(), "they are left out");
    continued(&mut world, old.as_bytes()).await;
    world.join(&admin, None, "web", 1).await;
}

/// Adds a rule and returns its id.
async fn rule(world: &World, admin: &Token) -> i64 {
    let rule = json!({"from": ["role:developer"], "to": ["machines"]});
    let rule = world.post("/v1/rules", admin, &rule).await.json();
    rule["id"].as_i64().expect("an id")
}
