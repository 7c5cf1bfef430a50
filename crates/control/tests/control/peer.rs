//! Plain WireGuard clients: what they do to maps, whose key is where, and how they go.

use axum::http::StatusCode;
use model::{
    api::{Enrolled, ErrorCode, KeyHolder, Page, Peer, PeerConfiguration, Timestamp},
    key::PublicKey,
    map::{NetworkMap, Node},
    policy::Role,
    token::{Kind, Token},
};
use serde_json::{Value, json};

use crate::world::{BEGIN, Reply, World, label};

/// An administrator, a machine, and the gateway that serves both.
struct Stage {
    world: World,
    admin: Token,
    machine: Enrolled,
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let admin = world.login().await.session_token;
        let machine = world.join(&admin, None, "machine", 1).await;
        Self {
            world,
            admin,
            machine,
        }
    }

    async fn try_add(&self, body: &Value) -> Reply {
        self.world.post("/v1/peers", &self.admin, body).await
    }

    async fn add(&self, body: &Value) -> Peer {
        let reply = self.try_add(body).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
        reply.parse()
    }

    async fn export(&self, peer: &Peer, body: &Value) -> Reply {
        let path = format!("/v1/peers/{}/export", peer.id);
        self.world.post(&path, &self.admin, body).await
    }

    async fn show(&self, peer: &Peer) -> Peer {
        let path = format!("/v1/peers/{}", peer.id);
        self.world.get(&path, &self.admin).await.parse()
    }

    /// How the machine's map has a peer.
    async fn mapped(&self, peer: &Peer) -> Option<Node> {
        let reply = self.world.get("/v1/map", &self.machine.node_token).await;
        let map: NetworkMap = reply.parse();
        let org = map.own_org().expect("the own organisation");
        org.nodes.get(&peer.id).cloned()
    }
}

fn key(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

#[tokio::test]
async fn a_key_is_the_devices_or_is_made_by_each_export_and_never_known_here() {
    let stage = Stage::new().await;
    let gateway = stage.world.gateway(&stage.admin, "edge", 9).await;
    let phone = stage.add(&json!({"name": "phone"})).await;
    assert_eq!(phone.key_holder, KeyHolder::Nobody);
    stage
        .export(&phone, &json!({}))
        .await
        .is(ErrorCode::MalformedRequest);
    for byte in [40, 41] {
        let reply = stage
            .export(&phone, &json!({"public_key": key(byte)}))
            .await;
        let configuration: PeerConfiguration = reply.parse();
        assert_eq!(configuration.address, phone.address);
        assert_eq!(configuration.gateway.id, gateway.id);
        let shown = stage.show(&phone).await;
        assert_eq!(shown.key_holder, KeyHolder::Configuration);
        assert!(!shown.stale);
        let mapped = stage.mapped(&phone).await.expect("a node");
        assert_eq!(mapped.public_key, key(byte));
        assert_eq!(mapped.may_reach.len(), 1, "the first rule is for everybody");
    }
    let router = stage
        .add(&json!({"name": "router", "public_key": key(50)}))
        .await;
    assert_eq!(router.key_holder, KeyHolder::Device);
    stage.export(&router, &json!({})).await.json();
    let mapped = stage.mapped(&router).await.expect("a node");
    assert_eq!(mapped.public_key, key(50));
    // Another gateway takes over, and what was exported names the former one.
    let path = format!("/v1/nodes/{}", gateway.id);
    stage.world.delete(&path, &stage.admin).await;
    stage.world.gateway(&stage.admin, "other", 10).await;
    assert!(stage.show(&phone).await.stale);
    stage.export(&phone, &json!({"public_key": key(42)})).await;
    assert!(!stage.show(&phone).await.stale);
    let audit = stage.world.get("/v1/audit", &stage.admin).await.text();
    for action in ["peer_added", "peer_exported"] {
        assert!(audit.contains(action), "{audit}");
    }
}

#[tokio::test]
async fn a_peer_without_meaning_is_refused() {
    let stage = Stage::new().await;
    let taken = [
        (json!({"name": "machine"}), ErrorCode::NameTaken),
        (json!({"name": "site"}), ErrorCode::NameReserved),
        (
            json!({"name": "a", "public_key": key(1)}),
            ErrorCode::KeyTaken,
        ),
        (json!({"name": "a", "user": "nobody"}), ErrorCode::NotFound),
        (json!({"name": "a", "org": "nowhere"}), ErrorCode::NotFound),
        (
            json!({"name": "a", "ttl_seconds": 0}),
            ErrorCode::TtlOutOfRange,
        ),
        (
            json!({"name": "a", "ttl_seconds": 31_536_001}),
            ErrorCode::TtlOutOfRange,
        ),
        (
            json!({"name": "a", "public_key": "x"}),
            ErrorCode::MalformedRequest,
        ),
    ];
    for (body, code) in taken {
        stage.try_add(&body).await.is(code);
    }
    let phone = stage.add(&json!({"name": "phone"})).await;
    let reply = stage.export(&phone, &json!({"public_key": key(40)})).await;
    reply.is(ErrorCode::NotFound);
    assert!(reply.refused().2.contains("no gateway"), "{}", reply.text());
    stage.world.gateway(&stage.admin, "edge", 9).await;
    let reply = stage.export(&phone, &json!({"public_key": key(1)})).await;
    reply.is(ErrorCode::KeyTaken);
    // A node that runs ginnel is no peer, and a peer of another organisation is none of hers.
    let path = format!("/v1/peers/{}", stage.machine.id);
    stage
        .world
        .get(&path, &stage.admin)
        .await
        .is(ErrorCode::NotFound);
    stage
        .world
        .delete(&path, &stage.admin)
        .await
        .is(ErrorCode::NotFound);
    stage.world.add_org(&stage.admin, "other").await;
    let world = &stage.world;
    let other = world
        .person(&stage.admin, Some("other"), "ann", Role::Admin, 20)
        .await;
    let path = format!("/v1/peers/{}", phone.id);
    world
        .get(&path, &other.session_token)
        .await
        .is(ErrorCode::NotFound);
    world
        .delete(&path, &other.session_token)
        .await
        .is(ErrorCode::NotFound);
}

#[tokio::test]
async fn a_peer_goes_when_it_is_removed_when_its_time_is_over_and_with_its_person() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let ann = world
        .invite(&stage.admin, None, "ann", Role::Developer)
        .await;
    let removed = stage.add(&json!({"name": "removed"})).await;
    let brief = stage
        .add(&json!({"name": "brief", "ttl_seconds": 60}))
        .await;
    let hers = stage.add(&json!({"name": "hers", "user": "ann"})).await;
    let stays = stage
        .add(&json!({"name": "stays", "ttl_seconds": 6000}))
        .await;
    assert_eq!(hers.user, Some(ann.user.id));
    let end = i64::try_from(BEGIN).expect("a time") + 60;
    assert_eq!(brief.expires, Some(Timestamp(end)));

    let path = format!("/v1/peers/{}", removed.id);
    let reply = world.delete(&path, &stage.admin).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    world.pass(59);
    world.server.remove_expired_peers().await.expect("a store");
    assert!(stage.mapped(&brief).await.is_some());
    world.pass(1);
    world.server.remove_expired_peers().await.expect("a store");
    let path = format!("/v1/users/{}", ann.user.id);
    world.delete(&path, &stage.admin).await;
    for gone in [&removed, &brief, &hers] {
        assert_eq!(stage.mapped(gone).await, None, "{}", gone.name);
    }
    let left: Page<Peer> = world.get("/v1/peers", &stage.admin).await.parse();
    let left: Vec<_> = left.items.iter().map(|peer| &peer.name).collect();
    assert_eq!(left, [&stays.name]);
    let audit = world.get("/v1/audit", &stage.admin).await.text();
    for action in ["peer_removed", "peer_expired"] {
        assert!(audit.contains(action), "{audit}");
    }
}

#[tokio::test]
async fn a_device_that_enrols_with_its_key_later_works_by_ginnel_from_then_on() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let plain = json!({"name": "tablet", "public_key": key(60), "user": "admin"});
    let peer = stage.add(&plain).await;
    let login = world.token(&stage.admin, Kind::Login, None).await;
    let request = json!({"name": "tablet", "public_key": key(60)});
    let reply = world.post("/v1/login", &login, &request).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let peers: Page<Peer> = world.get("/v1/peers", &stage.admin).await.parse();
    assert_eq!(peers.items, []);
    let mapped = stage.mapped(&peer).await.expect("it keeps its address");
    assert_eq!(
        (mapped.address, mapped.name),
        (peer.address, label("tablet"))
    );
}
