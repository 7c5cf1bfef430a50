//! People: invitations, roles, and that nothing of hers works once one is removed.

use axum::http::{Method, StatusCode};
use model::{
    api::{CreatedToken, ErrorCode, NewToken, User, WhoAmI},
    key::PublicKey,
    map::NetworkMap,
    policy::Role,
    token::{Kind, Token},
};
use serde_json::json;

use crate::world::{World, enrol_request, label};

#[tokio::test]
async fn an_invitation_signs_one_device_of_the_person_in_with_her_role() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let invited = world.invite(&admin, None, "alice", Role::Developer).await;
    assert_eq!(invited.token.kind(), Kind::Login);
    let request = enrol_request("alices-laptop", 7);
    let login = world.post("/v1/login", &invited.token, &request).await;
    let session = login.parse::<model::api::LoggedIn>().session_token;
    let whoami: WhoAmI = world.get("/v1/whoami", &session).await.parse();
    assert_eq!(whoami.user_name, Some(label("alice")));
    assert_eq!(whoami.role, Some(Role::Developer));
    let again = world
        .post("/v1/login", &invited.token, &enrol_request("other", 8))
        .await;
    again.is(ErrorCode::TokenUsed);
    // A developer invites nobody.
    let body = json!({"name": "bob", "role": "admin"});
    let refused = world.post("/v1/users", &session, &body).await;
    refused.is(ErrorCode::NotPermitted);
    assert!(refused.refused().2.contains("the role developer"));
}

#[tokio::test]
async fn a_removed_person_loses_sessions_devices_certificates_and_invitations() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let alice = world
        .person(&admin, None, "alice", Role::Developer, 7)
        .await;
    let further = NewToken {
        kind: Kind::Login,
        org: None,
        user: Some(label("alice")),
        uses_max: Some(2),
        ttl_seconds: None,
        approval: false,
    };
    let further: CreatedToken = world.post("/v1/tokens", &admin, &further).await.parse();
    let phone = enrol_request("phone", 8);
    let phone = world.post("/v1/login", &further.token, &phone).await;
    let phone: model::api::LoggedIn = phone.parse();
    assert_eq!(phone.user, alice.user);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
    let certified = world
        .post(
            "/v1/ssh/user-certificate",
            &alice.session_token,
            &json!({"public_key": key}),
        )
        .await;
    assert_eq!(certified.status, StatusCode::OK, "{}", certified.text());

    let path = format!("/v1/users/{}", alice.user);
    let removed = world.delete(&path, &admin).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{}", removed.text());
    for token in [
        &alice.session_token,
        &alice.device.node_token,
        &phone.session_token,
        &phone.device.node_token,
    ] {
        world
            .get("/v1/whoami", token)
            .await
            .is(ErrorCode::NodeRemoved);
    }
    let late = world
        .post("/v1/login", &further.token, &enrol_request("late", 9))
        .await;
    late.is(ErrorCode::TokenRevoked);
    let authority = world.get("/v1/ssh/authority", &admin).await.json();
    assert_eq!(authority["revoked"], 1);
    let map = world.get("/v1/nodes", &admin).await.text();
    assert!(!map.contains("phone") && !map.contains("alice"), "{map}");
    let audit = world.get("/v1/audit", &admin).await.text();
    assert!(audit.contains("user_removed"), "{audit}");
    world.get(&path, &admin).await.is(ErrorCode::NotFound);
    // The name is free for another.
    let other = world.invite(&admin, None, "alice", Role::Guest).await;
    assert_ne!(other.user.id, alice.user);
}

#[tokio::test]
async fn an_administrator_of_one_organisation_is_nobody_in_another() {
    let world = World::new().await;
    let operator = world.login().await.session_token;
    world.add_org(&operator, "other").await;
    let other = Some("other");
    let eve = world.person(&operator, other, "eve", Role::Admin, 7).await;
    let eve = eve.session_token;
    let bob = world.invite(&operator, None, "bob", Role::Guest).await;
    let web = world.join(&operator, None, "web", 1).await;
    // The same name is another person there.
    let own_bob = world.invite(&eve, None, "bob", Role::Guest).await;
    assert_eq!(own_bob.user.org, label("other"));
    for path in [
        format!("/v1/users/{}", bob.user.id),
        format!("/v1/nodes/{}", web.id),
        "/v1/users?org=default".to_owned(),
        "/v1/audit?org=default".to_owned(),
        "/v1/rules?org=default".to_owned(),
        "/v1/ssh/certificates?org=default".to_owned(),
        "/v1/orgs/default".to_owned(),
    ] {
        world.get(&path, &eve).await.is(ErrorCode::NotFound);
    }
    for path in [
        "/v1/users",
        "/v1/nodes",
        "/v1/audit",
        "/v1/rules",
        "/v1/tokens",
        "/v1/orgs",
    ] {
        let text = world.get(path, &eve).await.text();
        assert!(!text.contains("default"), "{path}: {text}");
    }
    let revoked = json!({"user": bob.user.id});
    let reply = world.post("/v1/ssh/revocations", &eve, &revoked).await;
    assert_eq!(reply.json()["certificates"], 0);
    for (path, body) in [
        ("/v1/orgs", json!({"name": "third"})),
        ("/v1/tokens", json!({"kind": "gateway"})),
    ] {
        world
            .post(path, &eve, &body)
            .await
            .is(ErrorCode::NotPermitted);
    }
    let foreign = json!({"kind": "join", "org": "default"});
    let reply = world.post("/v1/tokens", &eve, &foreign).await;
    reply.is(ErrorCode::NotFound);
    let login = json!({"kind": "login", "user": "admin"});
    let reply = world.post("/v1/tokens", &eve, &login).await;
    reply.is(ErrorCode::NotFound);
}

#[tokio::test]
async fn only_an_operator_acts_on_an_operator_and_the_last_one_stays() {
    let world = World::new().await;
    let login = world.login().await;
    let operator = login.session_token;
    let boss = world.person(&operator, None, "boss", Role::Admin, 7).await;
    let boss = boss.session_token;
    let path = format!("/v1/users/{}", login.user);
    world.delete(&path, &boss).await.is(ErrorCode::NotPermitted);
    let change = json!({"role": "guest"});
    let reply = world.patch(&path, &boss, &change).await;
    reply.is(ErrorCode::NotPermitted);
    // Signing in as the operator would be the same.
    let token = json!({"kind": "login", "user": "admin"});
    let reply = world.post("/v1/tokens", &boss, &token).await;
    reply.is(ErrorCode::NotPermitted);
    world
        .delete(&path, &operator)
        .await
        .is(ErrorCode::LastOperator);
    let reply = world.patch(&path, &operator, &change).await;
    reply.is(ErrorCode::MalformedRequest);
    let users = world.get("/v1/users", &operator).await.text();
    assert!(users.contains("\"operator\":true"), "{users}");
}

#[tokio::test]
async fn an_operator_is_never_taken_for_somebody_else_of_her_name() {
    let world = World::new().await;
    let operator = world.login().await.session_token;
    world.add_org(&operator, "other").await;
    world.add_org(&operator, "third").await;
    let other = world
        .invite(&operator, Some("other"), "admin", Role::Guest)
        .await;
    let login = |org: &str| json!({"kind": "login", "org": org});
    let reply = world.post("/v1/tokens", &operator, &login("other")).await;
    reply.is(ErrorCode::NameTaken);
    for _ in 0..2 {
        let token: CreatedToken = world
            .post("/v1/tokens", &operator, &login("third"))
            .await
            .parse();
        assert_eq!(token.entry.org, Some(label("third")));
    }
    let users = world.get("/v1/users", &operator).await.json();
    let users = users["items"].as_array().expect("a list");
    let operators = users.iter().filter(|user| user["operator"] == true);
    assert_eq!(operators.count(), 2, "{users:?}");
    assert!(!other.user.operator);
}

#[tokio::test]
async fn a_change_of_role_holds_at_once_for_open_sessions_and_rules() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let alice = world.person(&admin, None, "alice", Role::Guest, 7).await;
    let rule = json!({"from": ["role:developer"], "to": ["machines"], "traffic": ["22"]});
    world.post("/v1/rules", &admin, &rule).await;
    let may = async || {
        let question = json!({"questions": [{"from": "alice", "to": "tag:x", "wanted": "22"}]});
        let web = json!({"tags": ["x"]});
        let nodes = world.get("/v1/nodes?name=web", &admin).await.json();
        let path = format!("/v1/nodes/{}", nodes["items"][0]["id"]);
        world.patch(&path, &admin, &web).await;
        let reply = world.post("/v1/policy/questions", &admin, &question).await;
        reply.json()["answers"][0]["verdict"].clone()
    };
    world.join(&admin, None, "web", 1).await;
    world.delete("/v1/rules/1", &admin).await;
    assert_eq!(may().await, "refused");
    world
        .get("/v1/nodes", &alice.session_token)
        .await
        .is(ErrorCode::NotPermitted);
    let path = format!("/v1/users/{}", alice.user);
    let body = json!({"role": "developer"});
    let user: User = world.patch(&path, &admin, &body).await.parse();
    assert_eq!(user.role, Role::Developer);
    assert_eq!(may().await, "allowed");
    let nodes = world.get("/v1/nodes", &alice.session_token).await;
    assert_eq!(nodes.status, StatusCode::OK);
}

#[tokio::test]
async fn maps_say_whose_device_a_node_is_and_guests_and_gateways_are_not_told() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    world
        .person(&admin, Some("other"), "eve", Role::Admin, 5)
        .await;
    let web = world.join(&admin, None, "web", 1).await;
    let gateway = world.gateway(&admin, "edge", 9).await;
    let alice = world
        .person(&admin, None, "alice", Role::Developer, 7)
        .await;
    let bob = world.person(&admin, None, "bob", Role::Guest, 8).await;
    let owners = async |token: &Token| {
        let map: NetworkMap = world.get("/v1/map", token).await.parse();
        let nodes = map
            .orgs
            .into_values()
            .flat_map(|org| org.nodes.into_values());
        let owners = nodes.filter_map(|node| node.owner);
        owners
            .map(|owner| format!("{} {}", owner.name, owner.role.name()))
            .collect::<Vec<_>>()
    };
    let everybody = ["admin admin", "alice developer", "bob guest"];
    assert_eq!(owners(&web.node_token).await, everybody);
    assert_eq!(owners(&alice.device.node_token).await, everybody);
    assert_eq!(owners(&bob.device.node_token).await, ["bob guest"]);
    assert!(owners(&gateway.node_token).await.is_empty());
    let key = PublicKey([7; 32]).to_string().replace('+', "%2B");
    let key = key.replace('/', "%2F");
    let path = format!("/v1/nodes/by-key/{key}");
    let met = world.get(&path, &gateway.node_token).await;
    assert_eq!(met.status, StatusCode::OK);
    assert!(!met.text().contains("owner"), "{}", met.text());

    let path = format!("/v1/users/{}", alice.user);
    world.patch(&path, &admin, &json!({"role": "admin"})).await;
    let changed = ["admin admin", "alice admin", "bob guest"];
    assert_eq!(owners(&web.node_token).await, changed);
    world.delete(&path, &admin).await;
    assert_eq!(owners(&web.node_token).await, ["admin admin", "bob guest"]);
}

#[tokio::test]
async fn people_without_meaning_are_refused() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.invite(&admin, None, "alice", Role::Guest).await;
    let post = async |body| world.post("/v1/users", &admin, &body).await;
    post(json!({"name": "alice", "role": "guest"}))
        .await
        .is(ErrorCode::NameTaken);
    post(json!({"name": "root", "role": "guest"}))
        .await
        .is(ErrorCode::NameReserved);
    post(json!({"name": "bob", "role": "owner"}))
        .await
        .is(ErrorCode::MalformedRequest);
    post(json!({"name": "bob; rm", "role": "guest"}))
        .await
        .is(ErrorCode::MalformedRequest);
    post(json!({"name": "bob", "role": "guest", "ttl_seconds": 0}))
        .await
        .is(ErrorCode::TtlOutOfRange);
    let users = world.get("/v1/users", &admin).await.json();
    assert_eq!(users["items"].as_array().map(Vec::len), Some(2), "{users}");
}

/// What the schema of people was before there were roles, with somebody in two organisations.
#[tokio::test]
async fn a_person_from_before_roles_keeps_every_device_and_session() {
    let mut world = World::in_file().await;
    let login = world.login().await;
    let admin = login.session_token.clone();
    world.add_org(&admin, "other").await;
    let token = world.token(&admin, Kind::Login, Some("other")).await;
    let there = world
        .post("/v1/login", &token, &enrol_request("there", 9))
        .await;
    let there: model::api::LoggedIn = there.parse();
    world.server.close().await;
    crate::disk::back_to_schema_3(world.data.path()).await;
    world.restart().await;
    for session in [&admin, &there.session_token] {
        let whoami: WhoAmI = world.get("/v1/whoami", session).await.parse();
        assert_eq!(whoami.user_name, Some(label("admin")));
        assert_eq!(whoami.role, Some(Role::Admin));
        // An operator still, everywhere.
        let orgs = world.get("/v1/orgs", session).await.json();
        assert_eq!(orgs["items"].as_array().map(Vec::len), Some(2), "{orgs}");
    }
    let nodes = world.get("/v1/nodes", &admin).await.json();
    for node in nodes["items"].as_array().expect("a list") {
        assert!(node["user"].is_i64(), "{node}");
    }
    let bearer: &Token = &login.device.node_token;
    let map = world
        .request(Method::GET, "/v1/map", Some(&bearer.emit()), None)
        .await;
    assert_eq!(map.status, StatusCode::OK);
}
