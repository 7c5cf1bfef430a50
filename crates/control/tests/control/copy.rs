//! Rows move from one store to another and back, and nothing is lost, doubled or given again.

use std::path::Path;

use control::{Database, Place, Server};
use model::{
    policy::Role,
    token::{Kind, Token},
};
use serde_json::json;

use crate::world::{World, fresh_database};

#[tokio::test]
async fn everything_arrives_and_comes_back() {
    let mut world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "acme").await;
    world
        .invite(&admin, Some("acme"), "alice", Role::Developer)
        .await;
    let web = world.join(&admin, None, "web", 1).await;
    let gone = rule(&world, &admin).await;
    world.delete(&format!("/v1/rules/{gone}"), &admin).await;
    world.gateway(&admin, "edge", 3).await;
    world.token(&admin, Kind::Join, None).await;
    let site = json!({
        "name": "paris", "node": web.id, "prefixes": ["192.168.1.0/24"],
        "aliases": ["192.168.1.0/24=10.99.1.0/24"]
    });
    world.post("/v1/sites", &admin, &site).await;
    let paths = [
        "/v1/nodes",
        "/v1/sites",
        "/v1/orgs",
        "/v1/users",
        "/v1/tokens",
        "/v1/audit",
        "/v1/audit/chain",
        "/v1/ssh/certificates",
    ];
    let mut before = Vec::new();
    for path in paths {
        before.push(world.get(path, &admin).await.json());
    }
    let map = world.get("/v1/map", &web.node_token).await.json();
    world.server.close().await;

    let folder = tempfile::tempdir().unwrap();
    let other = match fresh_database().await {
        Database::File => Place::Folder(folder.path().to_owned()),
        Database::Postgres(url) => Place::Postgres(url),
    };
    let file = tempfile::tempdir().unwrap();
    // From the store of the tests to a file, from there to another of the first kind, and back.
    let first = place(&world);
    let hops = [first, Place::Folder(file.path().to_owned()), other];
    let mut rows = Vec::new();
    for hop in hops.windows(2) {
        rows.push(control::copy(&hop[0], &hop[1]).await.expect("it is copied"));
    }
    assert_eq!(rows[0], rows[1]);
    assert!(rows[0] > 20, "{rows:?}");

    let mut config = world.config();
    config.database = match &hops[2] {
        Place::Folder(folder) => {
            let database = world.data.path().join("ginnel.db");
            std::fs::copy(folder.join("ginnel.db"), database).unwrap();
            Database::File
        }
        Place::Postgres(url) => Database::Postgres(url.clone()),
    };
    world.server = Server::open(config).await.expect("it opens");
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(world.get(path, &admin).await.json(), before, "{path}");
    }
    assert_eq!(world.get("/v1/map", &web.node_token).await.json(), map);
    // The id of what is gone is given to nothing else.
    let next = rule(&world, &admin).await;
    assert!(next > gone, "{next} {gone}");
    world.join(&admin, None, "next", 4).await;
}

#[tokio::test]
async fn only_an_empty_target_is_written_to() {
    let (world, other) = (World::new().await, World::new().await);
    world.login().await;
    other.login().await;
    world.server.close().await;
    other.server.close().await;
    let refused = control::copy(&place(&world), &place(&other)).await;
    let text = format!("{:#}", refused.expect_err("it is refused"));
    assert!(text.contains("holds an installation already"), "{text}");
    let again = Server::open(other.config()).await.expect("it is as it was");
    assert!(again.bootstrap().await.unwrap().is_none());
}

#[tokio::test]
async fn a_source_that_holds_nothing_is_refused() {
    let (empty, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = |path: &Path| Place::Folder(path.to_owned());
    let refused = control::copy(&folder(empty.path()), &folder(target.path())).await;
    let text = format!("{:#}", refused.expect_err("it is refused"));
    assert!(text.contains("there is no database"), "{text}");
    assert!(!target.path().join("ginnel.db").exists());
}

/// Adds a rule and returns its id.
async fn rule(world: &World, admin: &Token) -> i64 {
    let rule = json!({"from": ["role:developer"], "to": ["machines"]});
    let rule = world.post("/v1/rules", admin, &rule).await.json();
    rule["id"].as_i64().expect("an id")
}

fn place(world: &World) -> Place {
    match world.config().database {
        Database::File => Place::Folder(world.data.path().to_owned()),
        Database::Postgres(url) => Place::Postgres(url),
    }
}
