//! Tokens: used once, expired, revoked, of another kind, of another server, and raced for.

use axum::http::{Method, StatusCode};
use model::{
    api::{Enrolled, ErrorCode, TokenEntry},
    token::{Kind, SECRET_LENGTH, Token},
};
use serde_json::json;
use tokio::task::JoinSet;

use crate::world::{World, enrol_request};

/// Races of the default run; `TOKEN_RACES` asks for more.
const RACES: u32 = 10;

const RACERS: u8 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_one_time_token_lets_one_of_a_hundred_in() {
    let races = std::env::var("TOKEN_RACES").map_or(RACES, |races| races.parse().unwrap());
    let world = std::sync::Arc::new(World::new().await);
    let admin = world.login().await.session_token;
    for race in 0..races {
        let token = world.token(&admin, Kind::Join, None).await;
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (world, token) = (world.clone(), token.clone());
            racers.spawn(async move {
                let request = enrol_request(&format!("race-{race}-{racer}"), racer);
                world.post("/v1/join", &token, &request).await
            });
        }
        let mut winners = Vec::new();
        while let Some(reply) = racers.join_next().await {
            let reply = reply.unwrap();
            if reply.status == StatusCode::OK {
                winners.push(reply.parse::<Enrolled>());
            } else {
                reply.is(ErrorCode::TokenUsed);
            }
        }
        assert_eq!(winners.len(), 1, "race {race}");
        let path = format!("/v1/nodes/{}", winners[0].id);
        assert_eq!(
            world.delete(&path, &admin).await.status,
            StatusCode::NO_CONTENT
        );
    }
}

#[tokio::test]
async fn a_token_of_three_uses_lets_three_in() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let token = world.token_with(&admin, Kind::Join, None, 3, 60).await;
    for key in 1..=3 {
        let request = enrol_request(&format!("n{key}"), key);
        let reply = world.post("/v1/join", &token.token, &request).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    let reply = world
        .post("/v1/join", &token.token, &enrol_request("n4", 4))
        .await;
    reply.is(ErrorCode::TokenUsed);
}

#[tokio::test]
async fn a_token_that_does_not_work_says_why() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let request = enrol_request("web", 1);
    let body = serde_json::to_string(&request).unwrap();
    let join = async |bearer: Option<&str>| {
        world
            .request(Method::POST, "/v1/join", bearer, Some(body.clone()))
            .await
    };

    let token = world.token_with(&admin, Kind::Join, None, 1, 60).await;
    world.pass(60);
    join(Some(&token.token.emit()))
        .await
        .is(ErrorCode::TokenExpired);

    let token = world.token_with(&admin, Kind::Join, None, 1, 60).await;
    let path = format!("/v1/tokens/{}", token.entry.id);
    assert_eq!(
        world.delete(&path, &admin).await.status,
        StatusCode::NO_CONTENT
    );
    join(Some(&token.token.emit()))
        .await
        .is(ErrorCode::TokenRevoked);
    world.delete(&path, &admin).await.is(ErrorCode::NotFound);

    join(None).await.is(ErrorCode::TokenRequired);
    let stranger = Token::new(Kind::Join, [9; SECRET_LENGTH], None);
    join(Some(&stranger.emit()))
        .await
        .is(ErrorCode::TokenUnknown);
    for garbage in [
        "",
        "x",
        "ginnel-join-",
        "ginnel-join-aaaa",
        "ginnel-root-aaaa",
        "🦀",
    ] {
        join(Some(garbage)).await.is(ErrorCode::TokenUnknown);
    }

    // A secret does not change its kind by its text.
    let gateway = world.token(&admin, Kind::Gateway, None).await;
    let disguised = Token::new(Kind::Join, *gateway.expose(), None);
    join(Some(&disguised.emit()))
        .await
        .is(ErrorCode::TokenUnknown);

    let wrong = join(Some(&gateway.emit())).await;
    wrong.is(ErrorCode::WrongTokenKind);
    assert_eq!(
        wrong.refused().2,
        "this is a gateway token; `join` needs a join token"
    );
}

#[tokio::test]
async fn a_token_leads_into_its_own_organisation_only() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let web = world.join(&admin, Some("other"), "web", 1).await;
    assert_eq!(web.org.as_str(), "other");
    let map = world.get("/v1/map", &web.node_token).await.json();
    let orgs: Vec<_> = map["orgs"].as_object().unwrap().values().collect();
    assert_eq!(orgs.len(), 1);
    assert_eq!(orgs[0]["name"], "other");
    let body = json!({"kind": "join", "org": "nowhere"});
    world
        .post("/v1/tokens", &admin, &body)
        .await
        .is(ErrorCode::NotFound);
}

#[tokio::test]
async fn a_token_always_ends_within_a_year() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let add = async |body| world.post("/v1/tokens", &admin, &body).await;
    let reply = add(json!({"kind": "join"})).await.json();
    let entry = &reply["entry"];
    let lifetime = entry["expires"].as_i64().unwrap() - entry["created"].as_i64().unwrap();
    assert_eq!(lifetime, 3600);
    for ttl in [0_u64, 365 * 24 * 60 * 60 + 1, u64::MAX] {
        add(json!({"kind": "join", "ttl_seconds": ttl}))
            .await
            .is(ErrorCode::TtlOutOfRange);
    }
    add(json!({"kind": "join", "uses_max": 0}))
        .await
        .is(ErrorCode::MalformedRequest);
    for kind in ["session", "node", "root"] {
        add(json!({"kind": kind}))
            .await
            .is(ErrorCode::MalformedRequest);
    }
    let body = json!({"kind": "gateway", "org": "default"});
    add(body).await.is(ErrorCode::MalformedRequest);
}

#[tokio::test]
async fn the_list_shows_tokens_that_work_and_never_a_secret() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let join = world.token_with(&admin, Kind::Join, None, 5, 60).await;
    let used = world.token(&admin, Kind::Join, None).await;
    world
        .post("/v1/join", &used, &enrol_request("web", 1))
        .await
        .json();
    let reply = world.get("/v1/tokens", &admin).await;
    assert!(!reply.text().contains("ginnel-"));
    let items = reply.json()["items"].clone();
    let items: Vec<TokenEntry> = serde_json::from_value(items).unwrap();
    let kinds: Vec<_> = items.iter().map(|entry| (entry.id, entry.kind)).collect();
    assert_eq!(kinds[1], (join.entry.id, Kind::Join));
    assert_eq!(kinds[0].1, Kind::Session);
    assert_eq!(kinds.len(), 2);
    world.pass(60);
    let reply = world.get("/v1/tokens", &admin).await.json();
    assert_eq!(reply["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_session_ends_after_a_month() {
    let world = World::new().await;
    let laptop = world.login().await;
    world.pass(30 * 24 * 60 * 60);
    world
        .get("/v1/nodes", &laptop.session_token)
        .await
        .is(ErrorCode::TokenExpired);
    // The device stays a node of the network until it is removed.
    let map = world.get("/v1/map", &laptop.device.node_token).await;
    assert_eq!(map.status, StatusCode::OK);
}
