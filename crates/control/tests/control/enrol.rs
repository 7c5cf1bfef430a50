//! Enrolling, signing in, leaving, and coming back.

use axum::http::StatusCode;
use model::{
    api::{Enrolled, ErrorCode, NewOrg, NodeChange},
    key::PublicKey,
    map::NetworkMap,
    token::{Kind, Token},
};
use serde_json::json;

use crate::world::{World, enrol_request, label};

#[tokio::test]
async fn the_first_start_makes_one_admin_token() {
    let mut world = World::new().await;
    let first = world
        .server
        .bootstrap()
        .await
        .unwrap()
        .expect("a first token");
    assert_eq!(first.token.kind(), Kind::Login);
    assert_eq!(first.token.pin(), world.server.pin());
    assert!(first.token.pin().is_some());
    assert!(world.server.bootstrap().await.unwrap().is_none());
    world.restart().await;
    assert!(world.server.bootstrap().await.unwrap().is_none());

    let request = enrol_request("laptop", 1);
    let reply = world.post("/v1/login", &first.token, &request).await.json();
    assert_eq!(reply["user_name"], "admin");
    assert_eq!(reply["device"]["org"], "default");
    let again = world
        .post("/v1/login", &first.token, &enrol_request("phone", 2))
        .await;
    again.is(ErrorCode::TokenUsed);

    // A month later nobody is signed in, yet no stranger may take the server over.
    world.pass(40 * 24 * 60 * 60);
    assert!(world.server.bootstrap().await.unwrap().is_none());
}

#[tokio::test]
async fn a_bootstrap_token_that_ended_unused_is_replaced() {
    let world = World::new().await;
    let first = world
        .server
        .bootstrap()
        .await
        .unwrap()
        .expect("a first token");
    world.pass(24 * 60 * 60);
    let late = world
        .post("/v1/login", &first.token, &enrol_request("laptop", 1))
        .await;
    late.is(ErrorCode::TokenExpired);
    let second = world
        .server
        .bootstrap()
        .await
        .unwrap()
        .expect("a second token");
    let reply = world
        .post("/v1/login", &second.token, &enrol_request("laptop", 1))
        .await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn names_and_keys_are_unique_among_live_nodes() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let web = world.join(&admin, None, "web", 1).await;

    let token = world.token(&admin, Kind::Join, None).await;
    let taken = world
        .post("/v1/join", &token, &enrol_request("Web", 2))
        .await;
    taken.is(ErrorCode::NameTaken);
    let message = taken.refused().2;
    assert_eq!(message, "organisation `default` has a node `web` already");
    let taken = world
        .post("/v1/join", &token, &enrol_request("db", 1))
        .await;
    taken.is(ErrorCode::KeyTaken);
    let reserved = world
        .post("/v1/join", &token, &enrol_request("svc", 2))
        .await;
    reserved.is(ErrorCode::NameReserved);
    // What was refused has not used the token.
    let db: Enrolled = world
        .post("/v1/join", &token, &enrol_request("db", 2))
        .await
        .parse();
    assert_ne!(db.address, web.address);

    // The same name in another organisation is another name.
    let other = world.join(&admin, Some("other"), "web", 3).await;
    assert_ne!(other.address, web.address);

    let rename = NodeChange {
        name: Some(label("db")),
        tags: None,
    };
    let body = serde_json::to_string(&rename).unwrap();
    let path = format!("/v1/nodes/{}", web.id);
    let bearer = admin.emit();
    let method = axum::http::Method::PATCH;
    let reply = world
        .request(method, &path, Some(&bearer), Some(body))
        .await;
    reply.is(ErrorCode::NameTaken);
}

#[tokio::test]
async fn a_node_replaces_its_own_key_and_the_former_one_is_nobodys() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let db = world.join(&admin, None, "db", 2).await;
    let gateway = world.gateway(&admin, "edge", 3).await;
    let path = format!("/v1/nodes/{}/key", web.id);
    let put = async |token: &Token, key: PublicKey| {
        let body = json!({ "public_key": key }).to_string();
        let bearer = token.emit();
        let method = axum::http::Method::PUT;
        world
            .request(method, &path, Some(&bearer), Some(body))
            .await
    };
    let (old, new) = (PublicKey([1; 32]), PublicKey([7; 32]));
    put(&db.node_token, new).await.is(ErrorCode::NotFound);
    put(&web.node_token, PublicKey([2; 32]))
        .await
        .is(ErrorCode::KeyTaken);
    // A second request, after an answer that never arrived, changes nothing more.
    for _ in 0..2 {
        let status = put(&web.node_token, new).await.status;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
    let map: NetworkMap = world.get("/v1/map", &gateway.node_token).await.parse();
    let nodes = map.orgs.values().flat_map(|org| &org.nodes);
    let keys: Vec<_> = nodes.map(|(id, node)| (*id, node.public_key)).collect();
    assert!(keys.contains(&(web.id, new)), "{keys:?}");
    assert!(keys.iter().all(|(_, key)| *key != old), "{keys:?}");
    let known = async |key: PublicKey| {
        let key = key.to_string().replace('=', "%3D").replace('/', "%2F");
        let path = format!("/v1/nodes/by-key/{key}");
        world.get(&path, &gateway.node_token).await.status
    };
    assert_eq!(known(new).await, StatusCode::OK);
    assert_eq!(known(old).await, StatusCode::NOT_FOUND);
    let rows = world.get("/v1/audit", &admin).await.json();
    let rows = rows["items"].as_array().unwrap();
    let replaced = rows
        .iter()
        .filter(|row| row["action"] == "node_key_replaced");
    assert_eq!(replaced.count(), 1);
}

#[tokio::test]
async fn a_removed_node_is_refused_and_comes_back_under_its_address() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let path = format!("/v1/nodes/{}", web.id);
    assert_eq!(
        world.delete(&path, &admin).await.status,
        StatusCode::NO_CONTENT
    );
    world.delete(&path, &admin).await.is(ErrorCode::NotFound);
    world.get(&path, &admin).await.is(ErrorCode::NotFound);
    world
        .get("/v1/map", &web.node_token)
        .await
        .is(ErrorCode::NodeRemoved);
    world
        .get("/v1/whoami", &web.node_token)
        .await
        .is(ErrorCode::NodeRemoved);

    world.pass(29 * 24 * 60 * 60);
    let admin = world.server.admin_token().await.unwrap().token;
    let admin = world
        .post("/v1/login", &admin, &enrol_request("laptop", 200))
        .await
        .json();
    let admin = admin["session_token"].as_str().unwrap().parse().unwrap();
    let again = world.join(&admin, None, "www", 1).await;
    assert_eq!((again.id, again.address), (web.id, web.address));
    assert_eq!(
        world.get("/v1/map", &again.node_token).await.status,
        StatusCode::OK
    );
    // The old token stays revoked.
    world
        .get("/v1/map", &web.node_token)
        .await
        .is(ErrorCode::TokenRevoked);
}

#[tokio::test]
async fn an_address_is_not_given_again_for_thirty_days() {
    let mut world = World::new().await;
    let admin = world.login().await.session_token;
    let tokens = [
        world.token(&admin, Kind::Join, None).await,
        world
            .token_with(&admin, Kind::Join, None, 9, 365 * 24 * 60 * 60)
            .await
            .token,
    ];
    let stuck = |byte| *world.random.stuck.lock().unwrap() = byte;
    stuck(Some(7));
    let web: Enrolled = world
        .post("/v1/join", &tokens[0], &enrol_request("web", 1))
        .await
        .parse();
    stuck(None);
    world.delete(&format!("/v1/nodes/{}", web.id), &admin).await;

    // The source of randomness offers the same address again and nothing else: no node gets it.
    stuck(Some(7));
    let reply = world
        .post("/v1/join", &tokens[1], &enrol_request("db", 2))
        .await;
    reply.is(ErrorCode::Internal);
    assert!(
        !reply.text().contains("random addresses"),
        "the cause is for the log"
    );

    stuck(None);
    world.pass(31 * 24 * 60 * 60);
    world.restart().await;
    *world.random.stuck.lock().unwrap() = Some(7);
    let reply = world
        .post("/v1/join", &tokens[1], &enrol_request("db", 2))
        .await;
    *world.random.stuck.lock().unwrap() = None;
    // Node tokens collide, too, in such a world: the old one is gone with its node.
    let db: Enrolled = reply.parse();
    assert_eq!(db.address, web.address);
}

#[tokio::test]
async fn an_address_that_is_taken_is_drawn_again() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let tokens = [
        world.token(&admin, Kind::Join, None).await,
        world.token(&admin, Kind::Join, None).await,
    ];
    let script = |draws: &[u8]| world.random.script.lock().unwrap().extend(draws);
    script(&[7]);
    let web: Enrolled = world
        .post("/v1/join", &tokens[0], &enrol_request("web", 1))
        .await
        .parse();
    script(&[7, 7, 9]);
    let db: Enrolled = world
        .post("/v1/join", &tokens[1], &enrol_request("db", 2))
        .await
        .parse();
    let interface = |node: &Enrolled| node.address.octets()[8..].to_vec();
    assert_eq!(interface(&web), [7; 8]);
    assert_eq!(interface(&db), [9; 8]);
    assert_ne!(web.id, db.id);
}

#[tokio::test]
async fn a_prefix_that_is_taken_is_drawn_again_but_not_for_ever() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let script = |draws: &[u8]| world.random.script.lock().unwrap().extend(draws);
    script(&[5]);
    world.add_org(&admin, "one").await;
    script(&[5, 5, 6]);
    world.add_org(&admin, "two").await;
    let orgs = world.get("/v1/orgs", &admin).await.text();
    for prefix in ["fd05:505:505::/48", "fd06:606:606::/48"] {
        assert!(orgs.contains(prefix), "{orgs}");
    }

    let stuck = |byte| *world.random.stuck.lock().unwrap() = byte;
    stuck(Some(5));
    let three = NewOrg {
        name: label("three"),
    };
    let reply = world.post("/v1/orgs", &admin, &three).await;
    reply.is(ErrorCode::Internal);
    assert!(
        !reply.text().contains("random prefixes"),
        "the cause is for the log"
    );
    // The refusal holds nothing: the next one is made.
    stuck(None);
    world.add_org(&admin, "three").await;
}

#[tokio::test]
async fn a_person_signs_in_again_on_the_same_device_and_keeps_its_address() {
    let world = World::new().await;
    let first = world.login().await;
    let second = world.login().await;
    assert_eq!(first.device.address, second.device.address);
    assert_eq!(first.device.id, second.device.id);
    world
        .get("/v1/whoami", &first.session_token)
        .await
        .is(ErrorCode::TokenRevoked);
    let whoami = world.get("/v1/whoami", &second.session_token).await.json();
    assert_eq!(whoami["kind"], "session");
    assert_eq!(whoami["user_name"], "admin");
    assert_eq!(whoami["node_name"], "laptop");

    // A machine that shows the key of somebody's device is refused.
    let token = world.token(&second.session_token, Kind::Join, None).await;
    let reply = world
        .post("/v1/join", &token, &enrol_request("thief", 200))
        .await;
    reply.is(ErrorCode::KeyTaken);
}

#[tokio::test]
async fn logout_removes_the_device_and_the_session() {
    let world = World::new().await;
    let laptop = world.login().await;
    let session = &laptop.session_token;
    let web = world.join(session, None, "web", 1).await;
    assert_eq!(
        world.post("/v1/logout", &web.node_token, &()).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        world.post("/v1/logout", session, &()).await.status,
        StatusCode::NO_CONTENT
    );
    world
        .get("/v1/nodes", session)
        .await
        .is(ErrorCode::NodeRemoved);
    let device = &laptop.device.node_token;
    world
        .get("/v1/map", device)
        .await
        .is(ErrorCode::NodeRemoved);
    world
        .get("/v1/map", &web.node_token)
        .await
        .is(ErrorCode::NodeRemoved);
}

#[tokio::test]
async fn an_organisation_with_nodes_is_not_removed() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let token = world.token(&admin, Kind::Join, Some("other")).await;
    let web = world.join(&admin, Some("other"), "web", 1).await;
    world
        .delete("/v1/orgs/other", &admin)
        .await
        .is(ErrorCode::OrgNotEmpty);
    world.delete(&format!("/v1/nodes/{}", web.id), &admin).await;
    let gone = world.delete("/v1/orgs/other", &admin).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    world
        .get("/v1/orgs/other", &admin)
        .await
        .is(ErrorCode::NotFound);
    let late = world
        .post("/v1/join", &token, &enrol_request("db", 2))
        .await;
    late.is(ErrorCode::TokenRevoked);

    // The name is free again, the prefix is not.
    let old = web.address.octets()[..6].to_vec();
    world.add_org(&admin, "other").await;
    let db = world.join(&admin, Some("other"), "db", 3).await;
    assert_ne!(db.address.octets()[..6].to_vec(), old);
}

#[tokio::test]
async fn the_audit_names_who_did_what() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    world.delete(&format!("/v1/nodes/{}", web.id), &admin).await;
    let rows = world.get("/v1/audit", &admin).await.json();
    let rows: Vec<String> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{} {} {}", row["actor"], row["action"], row["subject"]))
        .map(|row| row.replace('"', ""))
        .collect();
    let tail = &rows[rows.len() - 4..];
    assert_eq!(tail[0], "user:1 user_logged_in node:1 laptop");
    assert_eq!(tail[1], "user:1 token_added token:4 join");
    assert_eq!(tail[2], "token:4 node_joined node:2 web");
    assert_eq!(tail[3], "user:1 node_removed node:2 web");
    let page = world.get("/v1/audit?limit=2&after=1", &admin).await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["next"], 3);
}
