//! Nodes that wait for approval, and nodes whose time is over: who knows them, what they may do.

use std::time::Duration;

use axum::http::StatusCode;
use model::{
    api::{CreatedToken, Enrolled, ErrorCode, LoggedIn, Node, Page, Timestamp, TokenEntry},
    id::NodeId,
    key::PublicKey,
    map::{Difference, NetworkMap, State},
    policy::Role,
    token::Token,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};

use crate::world::{BEGIN, Reply, World, enrol_request};

/// An Ed25519 public key.
const SSH_KEY: &str = "ssh-ed25519 \
                       AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// An administrator, a machine that others know, and their gateway.
struct Stage {
    world: World,
    admin: Token,
    web: Follower,
    edge: Follower,
}

/// Somebody who is told differences.
struct Follower {
    token: Token,
    map: NetworkMap,
}

impl Follower {
    /// Takes what is new, and returns how it was told.
    async fn follow(&mut self, world: &World) -> StatusCode {
        let serial = self.map.serial;
        let path = format!("/v1/map?after={serial}&wait=0&differences=true");
        let reply = world.get(&path, &self.token).await;
        match reply.status {
            StatusCode::NO_CONTENT => {}
            StatusCode::IM_USED => {
                let difference: Difference = reply.parse();
                assert!(self.map.apply(&difference), "{difference:?}");
            }
            _ => self.map = reply.parse(),
        }
        let whole: NetworkMap = world.get("/v1/map", &self.token).await.parse();
        assert_eq!(self.map, whole);
        reply.status
    }

    fn knows(&self, node: NodeId) -> bool {
        let mut orgs = self.map.orgs.values();
        orgs.any(|org| org.nodes.contains_key(&node))
    }
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let admin = world.login().await.session_token;
        let edge = world.gateway(&admin, "edge", 9).await;
        let web = world.join(&admin, None, "web", 1).await;
        let follower = |token, map| Follower { token, map };
        let mut web = follower(web.node_token, web.map);
        let mut edge = follower(edge.node_token, edge.map);
        web.follow(&world).await;
        edge.follow(&world).await;
        Self {
            world,
            admin,
            web,
            edge,
        }
    }

    /// Makes a token by which machines wait, and joins `name`.
    async fn pending(&self, name: &str, key: u8) -> Enrolled {
        let body = json!({"kind": "join", "approval": true, "uses_max": 2});
        let made = self.world.post("/v1/tokens", &self.admin, &body).await;
        let made: CreatedToken = made.parse();
        assert!(made.entry.approval);
        let request = enrol_request(name, key);
        let reply = self.world.post("/v1/join", &made.token, &request).await;
        reply.parse()
    }

    /// Joins a machine with a service and a site.
    async fn serving(&self, name: &str, key: u8) -> Enrolled {
        let node = self.world.join(&self.admin, None, name, key).await;
        let service = json!({"name": "sql", "port": 5432});
        let added = self.world.post("/v1/services", &node.node_token, &service);
        assert_eq!(added.await.status, StatusCode::CREATED);
        let site = json!({"name": "paris", "node": node.id, "prefixes": ["192.168.1.0/24"]});
        let added = self.world.post("/v1/sites", &self.admin, &site).await;
        assert_eq!(added.status, StatusCode::CREATED, "{}", added.text());
        node
    }

    async fn approve(&self, node: NodeId, token: &Token) -> Reply {
        let path = format!("/v1/nodes/{node}/approval");
        self.world.post(&path, token, &json!({})).await
    }

    async fn expire(&self, node: NodeId, body: &Value) -> Reply {
        let path = format!("/v1/nodes/{node}/expiry");
        self.world.put(&path, &self.admin, body).await
    }

    async fn show(&self, node: NodeId) -> Node {
        let path = format!("/v1/nodes/{node}");
        self.world.get(&path, &self.admin).await.parse()
    }

    /// Asserts that everybody is told by a difference, and whether they know `node` then.
    #[track_caller]
    fn all_know(&self, node: NodeId, told: [StatusCode; 2], known: bool) {
        assert_eq!(told, [StatusCode::IM_USED; 2]);
        assert_eq!(self.web.knows(node), known);
        assert_eq!(self.edge.knows(node), known);
    }

    async fn follow(&mut self) -> [StatusCode; 2] {
        let web = self.web.follow(&self.world).await;
        [web, self.edge.follow(&self.world).await]
    }

    /// Asks as the gateway which client has a key.
    async fn by_key(&self, key: u8) -> StatusCode {
        let key = PublicKey([key; 32]).to_string();
        let key = key
            .replace('=', "%3D")
            .replace('/', "%2F")
            .replace('+', "%2B");
        let path = format!("/v1/nodes/by-key/{key}");
        self.world.get(&path, &self.edge.token).await.status
    }

    async fn certify(&self, token: &Token) -> Reply {
        let body = json!({"public_key": SSH_KEY});
        self.world
            .post("/v1/ssh/host-certificate", token, &body)
            .await
    }

    /// Returns what was done to a node itself, in order.
    async fn done_to(&self, node: NodeId) -> Vec<String> {
        let subject = format!("node:{node} ");
        let audit = self.audit().await.into_iter();
        let of_node = audit.filter(|row| row.contains(&subject));
        let actions = of_node.filter_map(|row| {
            let (_, action) = row.split_once(" node_")?;
            Some(action.split_once(' ')?.0.to_owned())
        });
        actions.collect()
    }

    /// Returns what the audit says, oldest first: who, what and of what.
    async fn audit(&self) -> Vec<String> {
        let page = self.world.get("/v1/audit", &self.admin).await.json();
        let rows = page["items"].as_array().expect("a list");
        let said = rows.iter().map(|row| {
            let part = |name: &str| row[name].as_str().expect("text").to_owned();
            format!("{} {} {}", part("actor"), part("action"), part("subject"))
        });
        said.collect()
    }
}

/// Asserts that a map holds its own node alone and says why.
#[track_caller]
fn is_alone(map: &NetworkMap, state: State) {
    assert_eq!(map.own.state, state);
    let org = map.own_org().expect("its own");
    assert_eq!(org.nodes.keys().collect::<Vec<_>>(), [&map.own.id]);
    assert_eq!((org.services.len(), org.sites.len()), (0, 0));
    assert_eq!(org.gateway, None);
    let ssh = org.ssh.as_ref().expect("what it pins");
    assert_eq!((ssh.revoked.len(), ssh.cut.len()), (0, 0));
}

#[tokio::test]
async fn a_machine_that_waits_is_in_nobodys_map_until_somebody_approves_it() {
    let mut stage = Stage::new().await;
    let db = stage.pending("db", 2).await;
    is_alone(&db.map, State::Pending);
    stage.follow().await;
    assert!(!stage.web.knows(db.id) && !stage.edge.knows(db.id));
    assert_eq!(stage.by_key(2).await, StatusCode::NOT_FOUND);
    assert_eq!(stage.show(db.id).await.state, State::Pending);
    let world = &stage.world;
    for path in [
        "/v1/nodes",
        "/v1/services",
        "/v1/rules",
        "/v1/ssh/authority",
    ] {
        let refused = world.get(path, &db.node_token).await;
        refused.is(ErrorCode::NodePending);
    }
    stage
        .certify(&db.node_token)
        .await
        .is(ErrorCode::NodePending);
    let itself = world.get("/v1/whoami", &db.node_token).await;
    assert_eq!(itself.json()["node_name"], "db");
    let dev = world
        .person(&stage.admin, None, "dev", Role::Developer, 30)
        .await;
    let refused = stage.approve(db.id, &dev.session_token).await;
    refused.is(ErrorCode::NotPermitted);

    let mut waits = Follower {
        token: db.node_token.clone(),
        map: db.map.clone(),
    };
    assert_eq!(waits.follow(&stage.world).await, StatusCode::OK);
    is_alone(&waits.map, State::Pending);
    stage.follow().await;
    let approved: Node = stage.approve(db.id, &stage.admin).await.parse();
    assert_eq!(approved.state, State::Active);
    let told = stage.follow().await;
    stage.all_know(db.id, told, true);
    assert_eq!(waits.follow(&stage.world).await, StatusCode::OK);
    let org = waits.map.own_org().expect("its own");
    assert!(org.gateway.is_some() && org.nodes.len() > 2);
    assert_eq!(waits.map.own.state, State::Active);
    assert_eq!(stage.by_key(2).await, StatusCode::OK);
    assert_eq!(stage.certify(&db.node_token).await.status, StatusCode::OK);
    // Again changes nothing.
    let serial = waits.map.serial;
    stage.approve(db.id, &stage.admin).await.parse::<Node>();
    waits.follow(&stage.world).await;
    assert_eq!(waits.map.serial, serial);
    let audit = stage.audit().await;
    let count = |end: &str| audit.iter().filter(|row| row.ends_with(end)).count();
    assert_eq!(count(&format!("node_joined node:{} db pending", db.id)), 1);
    assert_eq!(count(&format!("node_approved node:{} db", db.id)), 1);
    assert_eq!(
        count("ssh_certificate_refused this node waits for approval"),
        1
    );
}

#[tokio::test]
async fn who_waits_keeps_its_key_and_may_leave_and_whoever_comes_without_need_is_in_at_once() {
    let stage = Stage::new().await;
    let db = stage.pending("db", 2).await;
    let path = format!("/v1/nodes/{}/key", db.id);
    let body = json!({"public_key": PublicKey([3; 32])});
    let replaced = stage.world.put(&path, &db.node_token, &body).await;
    assert_eq!(replaced.status, StatusCode::NO_CONTENT);
    let nothing = json!({});
    let left = stage.world.post("/v1/logout", &db.node_token, &nothing);
    assert_eq!(left.await.status, StatusCode::NO_CONTENT);
    // The machine that was removed is known by its key, and its token decides anew.
    let again = stage.world.join(&stage.admin, None, "db", 3).await;
    assert_eq!((again.id, again.map.own.state), (db.id, State::Active));
    let tokens: Page<TokenEntry> = stage.world.get("/v1/tokens", &stage.admin).await.parse();
    assert_eq!(
        tokens.items.iter().filter(|token| token.approval).count(),
        1
    );
    for kind in ["gateway", "login"] {
        let body = json!({"kind": kind, "approval": true});
        let reply = stage.world.post("/v1/tokens", &stage.admin, &body).await;
        reply.is(ErrorCode::MalformedRequest);
    }
}

#[tokio::test]
async fn a_node_whose_time_is_over_is_out_and_comes_back_with_more_time() {
    let mut stage = Stage::new().await;
    let db = stage.serving("db", 2).await;
    let set: Node = stage
        .expire(db.id, &json!({"ttl_seconds": 60}))
        .await
        .parse();
    let end = i64::try_from(BEGIN).expect("a time") + 60;
    assert_eq!(
        (set.state, set.expires),
        (State::Active, Some(Timestamp(end)))
    );
    stage.world.pass(59);
    stage.world.server.expire_nodes().await.expect("a store");
    stage.follow().await;
    assert!(stage.web.knows(db.id) && stage.edge.knows(db.id));
    assert_eq!(stage.certify(&db.node_token).await.status, StatusCode::OK);

    stage.world.pass(1);
    // At once, though the maps go on without it a moment later.
    stage
        .certify(&db.node_token)
        .await
        .is(ErrorCode::NodeExpired);
    assert_eq!(stage.by_key(2).await, StatusCode::NOT_FOUND);
    stage.world.server.expire_nodes().await.expect("a store");
    stage.world.server.expire_nodes().await.expect("a store");
    let told = stage.follow().await;
    stage.all_know(db.id, told, false);
    let org = stage.web.map.own_org().expect("its own");
    assert_eq!((org.services.len(), org.sites.len()), (0, 0));
    let mut out = Follower {
        token: db.node_token.clone(),
        map: db.map.clone(),
    };
    out.follow(&stage.world).await;
    is_alone(&out.map, State::Expired);
    let listed = stage.world.get("/v1/nodes?name=db", &stage.admin).await;
    assert_eq!(listed.json()["items"][0]["state"], "expired");

    for body in [
        json!({}),
        json!({"ttl_seconds": 0}),
        json!({"ttl_seconds": 60}),
    ] {
        let node: Node = stage.expire(db.id, &body).await.parse();
        let known = body["ttl_seconds"] != 0;
        let expected = if known { State::Active } else { State::Expired };
        assert_eq!(node.state, expected, "{body}");
        let told = stage.follow().await;
        stage.all_know(db.id, told, known);
        out.follow(&stage.world).await;
        assert_eq!(out.map.own.state, expected);
    }
    let address = |map: &NetworkMap| map.own_org().map(|org| org.nodes[&db.id].address);
    assert_eq!(address(&out.map), Some(db.address));
    let org = stage.web.map.own_org().expect("its own");
    assert_eq!((org.services.len(), org.sites.len()), (1, 1));
    let changed = "expiry_changed";
    assert_eq!(
        stage.done_to(db.id).await,
        ["joined", changed, "expired", changed, "expired", changed]
    );
    let audit = stage.audit().await;
    assert!(
        audit
            .iter()
            .any(|row| row.starts_with("server node_expired")),
        "{audit:?}"
    );
}

#[tokio::test]
async fn an_end_without_meaning_is_refused() {
    let stage = Stage::new().await;
    let web = stage.web.map.own.id;
    let begin = i64::try_from(BEGIN).expect("a time");
    let year = 31_536_000;
    for (body, code) in [
        (json!({"expires": begin}), ErrorCode::TtlOutOfRange),
        (json!({"expires": -1}), ErrorCode::TtlOutOfRange),
        (json!({"expires": i64::MAX}), ErrorCode::TtlOutOfRange),
        (
            json!({"ttl_seconds": 10 * year + 1}),
            ErrorCode::TtlOutOfRange,
        ),
        (json!({"ttl_seconds": u64::MAX}), ErrorCode::TtlOutOfRange),
        (
            json!({"ttl_seconds": 1, "expires": begin + 1}),
            ErrorCode::MalformedRequest,
        ),
        (json!({"ttl_seconds": "soon"}), ErrorCode::MalformedRequest),
    ] {
        stage.expire(web, &body).await.is(code);
    }
    let edge = stage.expire(stage.edge.map.own.id, &json!({})).await;
    edge.is(ErrorCode::MalformedRequest);
    for body in [
        json!({"ttl_seconds": 10 * year}),
        json!({"expires": begin + 1}),
    ] {
        stage.expire(web, &body).await.parse::<Node>();
    }
    let world = &stage.world;
    world.add_org(&stage.admin, "other").await;
    let other = world
        .person(&stage.admin, Some("other"), "ann", Role::Admin, 20)
        .await;
    let reply = stage.approve(web, &other.session_token).await;
    reply.is(ErrorCode::NotFound);
    let path = format!("/v1/nodes/{web}/expiry");
    let reply = world.put(&path, &other.session_token, &json!({})).await;
    reply.is(ErrorCode::NotFound);
}

#[tokio::test]
async fn a_person_on_a_device_whose_time_is_over_does_nothing_and_signing_in_gives_no_time() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let dev = world
        .person(&stage.admin, None, "dev", Role::Admin, 30)
        .await;
    let device = dev.device.id;
    stage
        .expire(device, &json!({"ttl_seconds": 0}))
        .await
        .parse::<Node>();
    for path in ["/v1/nodes", "/v1/audit", "/v1/users"] {
        let refused = world.get(path, &dev.session_token).await;
        refused.is(ErrorCode::NodeExpired);
    }
    let body = json!({"public_key": SSH_KEY});
    let refused = world
        .post("/v1/ssh/user-certificate", &dev.session_token, &body)
        .await;
    refused.is(ErrorCode::NodeExpired);
    let login = json!({"kind": "login", "user": "dev"});
    let login: CreatedToken = world.post("/v1/tokens", &stage.admin, &login).await.parse();
    let again = world
        .post("/v1/login", &login.token, &enrol_request("dev", 30))
        .await;
    assert_eq!(again.json()["device"]["id"], device.0);
    assert_eq!(stage.show(device).await.state, State::Expired);
    let again: LoggedIn = again.parse();
    let refused = world.get("/v1/nodes", &again.session_token).await;
    refused.is(ErrorCode::NodeExpired);
}

/// The clock of the test jumps at once; what waits for the end sleeps for the second by its own.
#[tokio::test]
async fn a_server_that_serves_ends_by_itself_what_is_due() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let db = world.join(&stage.admin, None, "db", 2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = world.server.clone();
    let serving = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        server.serve(listener, stopped).await
    });
    let map: NetworkMap = world.get("/v1/map", &stage.web.token).await.parse();
    stage
        .expire(db.id, &json!({"ttl_seconds": 1}))
        .await
        .parse::<Node>();
    world.pass(1);
    let gone = async {
        let mut web = Follower {
            token: stage.web.token.clone(),
            map,
        };
        while web.knows(db.id) {
            let path = format!("/v1/map?after={}", web.map.serial);
            let reply = world.get(&path, &web.token).await;
            web.map = reply.parse();
        }
    };
    timeout(Duration::from_secs(20), gone)
        .await
        .expect("it goes");
    drop(stop);
    serving.await.expect("no panic").expect("it served");
}

#[tokio::test]
async fn what_was_due_while_no_server_ran_is_out_when_one_begins() {
    let mut stage = Stage::new().await;
    let ends = stage.world.join(&stage.admin, None, "db", 2).await.id;
    let waits = stage.pending("shed", 3).await.id;
    for id in [ends, waits] {
        stage
            .expire(id, &json!({"ttl_seconds": 5}))
            .await
            .parse::<Node>();
    }
    stage.world.pass(6);
    stage.world.restart().await;
    stage.follow().await;
    assert!(!stage.web.knows(ends));
    // Both ended in one change, and each is in the audit.
    let audit = stage.audit().await;
    let expired = audit.iter().filter(|row| row.contains("node_expired"));
    assert_eq!(expired.count(), 2, "{audit:?}");
    // More time alone lets nobody in who waits.
    let node: Node = stage.expire(waits, &json!({})).await.parse();
    assert_eq!(node.state, State::Pending);
    stage.follow().await;
    assert!(!stage.web.knows(waits));
}

#[tokio::test]
async fn a_site_goes_on_by_those_of_its_nodes_that_others_know() {
    let mut stage = Stage::new().await;
    let join = async |name, key| stage.world.join(&stage.admin, None, name, key).await;
    let (first, second) = (join("paris1", 11).await, join("paris2", 12).await);
    let body = json!({
        "name": "paris", "node": first.id, "standbys": [second.id],
        "prefixes": ["192.168.1.0/24"],
    });
    let added = stage.world.post("/v1/sites", &stage.admin, &body).await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.text());
    let mut leads = async |ended: Option<NodeId>| -> Vec<NodeId> {
        if let Some(node) = ended {
            let reply = stage.expire(node, &json!({"ttl_seconds": 0})).await;
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        }
        stage.follow().await;
        let mut sites = stage.edge.map.orgs.values().flat_map(|org| &org.sites);
        sites
            .next()
            .map_or(Vec::new(), |(_, site)| site.nodes().collect())
    };
    assert_eq!(leads(None).await, [first.id, second.id]);
    assert_eq!(leads(Some(first.id)).await, [second.id]);
    assert_eq!(leads(Some(second.id)).await, []);
}
