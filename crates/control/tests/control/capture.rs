//! Captures of nodes elsewhere: asked for by who may, told to the node by its map, passed on as
//! they come, ended for a reason, and audited.

use axum::{
    body::Body,
    http::{Method, Request, header},
    response::Response,
};
use http_body_util::BodyExt as _;
use model::{
    api::{
        CAPTURE_COMPLETE, CAPTURE_END_TRAILER, CAPTURE_ID_HEADER, Enrolled, ErrorCode, LoggedIn,
        SentBlocks,
    },
    map::NetworkMap,
    policy::Role,
    token::Token,
};
use serde_json::{Value, json};

use crate::world::{Reply, World};

/// A world with a node and its administrator.
struct Scene {
    world: World,
    operator: LoggedIn,
    admin: LoggedIn,
    web: Enrolled,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        let operator = world.login().await;
        let session = &operator.session_token;
        let web = world.join(session, None, "web", 1).await;
        let admin = world.person(session, None, "ann", Role::Admin, 2).await;
        Self {
            world,
            operator,
            admin,
            web,
        }
    }

    /// Asks for a capture of `web` by the session of its administrator.
    async fn begin(&self, wanted: Value) -> (i64, Response) {
        let reply = self
            .world
            .capture(&self.admin.session_token, &self.web, &wanted)
            .await;
        assert_eq!(reply.status(), 200);
        let id = reply.headers()[CAPTURE_ID_HEADER].to_str();
        (id.expect("a number").parse().expect("a number"), reply)
    }

    async fn map(&self) -> NetworkMap {
        self.world
            .get("/v1/map", &self.web.node_token)
            .await
            .parse()
    }

    async fn send(&self, id: i64, blocks: &[u8]) -> Reply {
        let request = Request::post(format!("/v1/captures/{id}/blocks"))
            .header(header::AUTHORIZATION, bearer(&self.web.node_token))
            .body(Body::from(blocks.to_owned()));
        self.world.send(request.expect("a request")).await
    }

    /// Waits until the capture is forgotten; up to then the node is told to end it.
    async fn takes_no_more(&self, id: i64) {
        loop {
            let reply = self.send(id, b"late").await;
            if reply.status != 200 {
                return reply.is(ErrorCode::NotFound);
            }
            assert!(reply.parse::<SentBlocks>().end);
            tokio::task::yield_now().await;
        }
    }

    async fn end(&self, id: i64, token: &Token, body: Value) -> Reply {
        let path = format!("/v1/captures/{id}/end");
        self.world.post(&path, token, &body).await
    }

    /// Returns the rows of the audit about captures, without times.
    async fn audit(&self) -> Vec<(String, String, String)> {
        let page = self.world.get("/v1/audit", &self.operator.session_token);
        let page = page.await.json();
        let rows = page["items"].as_array().expect("rows").iter();
        rows.filter(|row| {
            row["action"]
                .as_str()
                .expect("text")
                .starts_with("capture_")
        })
        .map(|row| ["actor", "action", "subject"].map(|key| row[key].to_string()))
        .map(|[actor, action, subject]| (actor, action, subject))
        .collect()
    }

    /// Waits for the row that says how a capture ended.
    async fn audited_end(&self) -> String {
        loop {
            let rows = self.audit().await;
            if let Some((_, _, subject)) = rows.iter().find(|row| row.1.contains("ended")) {
                return subject.clone();
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_the_node_sends_comes_to_who_asked_and_both_ends_are_audited() {
    let scene = Scene::new().await;
    let before = scene.map().await;
    assert_eq!(before.own.capture, None);
    let wanted = json!({"inner": true, "outer": false, "filter": "tcp port 22"});
    let (id, reply) = scene.begin(wanted).await;
    let map = scene.map().await;
    assert!(map.serial > before.serial, "the node is told at once");
    let asked = map.own.capture.expect("it is asked for");
    assert_eq!(
        (asked.id.0, asked.by.as_str(), asked.keys),
        (id, "ann", false)
    );
    let file = tokio::spawn(reply.into_body().collect());
    for piece in ["one ", "", "two"] {
        let sent: SentBlocks = scene.send(id, piece.as_bytes()).await.parse();
        assert_eq!((sent.taken, sent.end), (true, false));
    }
    assert_eq!(
        scene
            .end(id, &scene.admin.session_token, json!({}))
            .await
            .status,
        204
    );
    let sent: SentBlocks = scene.send(id, b" end").await.parse();
    assert_eq!(
        (sent.taken, sent.end),
        (true, true),
        "what was begun is still taken"
    );
    assert_eq!(
        scene.end(id, &scene.web.node_token, json!({})).await.status,
        204
    );
    let file = file.await.expect("no panic").expect("a whole reply");
    assert_eq!(
        file.trailers().expect("why")[CAPTURE_END_TRAILER],
        CAPTURE_COMPLETE
    );
    assert_eq!(file.to_bytes(), "one two end");
    let subject = scene.audited_end().await;
    assert!(subject.contains("bytes:11 end:complete"), "{subject}");
    let begun = &scene.audit().await[0];
    assert_eq!(begun.0, format!("\"user:{}\"", scene.admin.user));
    assert!(
        begun
            .2
            .contains("web interface:inner keys:false filter:tcp port 22"),
        "{begun:?}"
    );
    assert_eq!(scene.map().await.own.capture, None);
    scene.takes_no_more(id).await;
}

#[tokio::test]
async fn only_the_node_that_was_asked_sends_and_one_capture_of_it_runs() {
    let scene = Scene::new().await;
    let peer = scene
        .world
        .join(&scene.operator.session_token, None, "peer", 3)
        .await;
    let (id, _reply) = scene.begin(json!({"inner": true, "outer": false})).await;
    let path = format!("/v1/captures/{id}/blocks");
    let foreign = scene.world.post(&path, &peer.node_token, &json!({})).await;
    foreign.is(ErrorCode::NotFound);
    let foreign = scene.end(id, &peer.node_token, json!({})).await;
    foreign.is(ErrorCode::NotFound);
    let map: NetworkMap = scene.world.get("/v1/map", &peer.node_token).await.parse();
    assert_eq!(map.own.capture, None, "nobody else is told");
    let wanted = json!({"inner": true, "outer": false});
    let path = format!("/v1/nodes/{}/capture/keys", scene.web.id);
    let again = scene
        .world
        .post(&path, &scene.admin.session_token, &wanted)
        .await;
    again.is(ErrorCode::LimitReached);
}

#[tokio::test]
async fn what_has_no_bound_or_no_place_is_refused() {
    let scene = Scene::new().await;
    let gateway = scene
        .world
        .gateway(&scene.operator.session_token, "edge", 9)
        .await;
    let path = format!("/v1/nodes/{}/capture/keys", gateway.id);
    let wanted = json!({"inner": false, "outer": true});
    let refused = scene
        .world
        .post(&path, &scene.operator.session_token, &wanted)
        .await;
    refused.is(ErrorCode::MalformedRequest);
    let path = format!("/v1/nodes/{}/capture", scene.web.id);
    for (key, value) in [
        ("seconds_max", json!(3_601)),
        ("bytes_max", json!(1_000_000_001_u64)),
        ("filter", json!("x".repeat(1_001))),
        ("filter", json!("tcp\nport 1")),
    ] {
        let mut wanted = json!({"inner": true, "outer": false});
        wanted[key] = value;
        let refused = scene
            .world
            .post(&path, &scene.admin.session_token, &wanted)
            .await;
        refused.is(ErrorCode::MalformedRequest);
    }
    assert!(scene.audit().await.is_empty());
}

#[tokio::test]
async fn a_capture_ends_when_the_role_is_taken_away() {
    let scene = Scene::new().await;
    let (id, reply) = scene.begin(json!({"inner": true, "outer": false})).await;
    scene.send(id, b"seen").await.parse::<SentBlocks>();
    let path = format!("/v1/users/{}", scene.admin.user);
    let role = json!({"role": "developer"});
    scene
        .world
        .patch(&path, &scene.operator.session_token, &role)
        .await
        .json();
    let file = reply.into_body().collect().await.expect("a reply");
    let why = &file.trailers().expect("why")[CAPTURE_END_TRAILER];
    assert!(
        why.to_str()
            .expect("text")
            .contains("not permitted any more"),
        "{why:?}"
    );
    let subject = scene.audited_end().await;
    assert!(subject.contains("end:not_permitted"), "{subject}");
    scene.takes_no_more(id).await;
}

#[tokio::test]
async fn a_capture_ends_when_the_node_is_silent_says_no_or_sends_too_much() {
    let scene = Scene::new().await;
    let wanted = json!({"inner": true, "outer": false, "bytes_max": 10});
    let (id, reply) = scene.begin(wanted).await;
    let sent: SentBlocks = scene.send(id, b"more than ten").await.parse();
    assert!(sent.end);
    let file = reply.into_body().collect().await.expect("a reply");
    let why = &file.trailers().expect("why")[CAPTURE_END_TRAILER];
    assert_eq!(why, "the node sent more than was asked for");
    assert_eq!(file.to_bytes(), "");

    let scene = Scene::new().await;
    let (id, reply) = scene.begin(json!({"inner": true, "outer": false})).await;
    let reason = json!({"reason": "filter: h\u{f6}st is no word"});
    scene.end(id, &scene.web.node_token, reason).await;
    let file = reply.into_body().collect().await.expect("a reply");
    let why = &file.trailers().expect("why")[CAPTURE_END_TRAILER];
    assert_eq!(why, "filter: h?st is no word");

    let scene = Scene::new().await;
    let (_, reply) = scene.begin(json!({"inner": true, "outer": false})).await;
    let file = reply.into_body().collect().await.expect("a reply");
    let why = &file.trailers().expect("why")[CAPTURE_END_TRAILER];
    assert_eq!(why, "the node does not answer");
}

#[tokio::test]
async fn a_capture_ends_with_its_reader_and_with_the_server() {
    let scene = Scene::new().await;
    let (_, reply) = scene.begin(json!({"inner": true, "outer": false})).await;
    drop(reply);
    let subject = scene.audited_end().await;
    assert!(subject.contains("bytes:0 end:reader_gone"), "{subject}");

    let mut scene = Scene::new().await;
    let (_, reply) = scene.begin(json!({"inner": true, "outer": false})).await;
    scene.world.restart().await;
    let file = reply.into_body().collect().await.expect("a reply");
    let why = &file.trailers().expect("why")[CAPTURE_END_TRAILER];
    assert_eq!(why, "the server ended");
    let subject = scene.audited_end().await;
    assert!(subject.contains("end:server_stops"), "{subject}");
}

fn bearer(token: &Token) -> String {
    format!("Bearer {}", token.emit().as_str())
}

impl World {
    /// Asks for a capture of `node`, whose reply goes on as long as it runs.
    pub(crate) async fn capture(&self, token: &Token, node: &Enrolled, wanted: &Value) -> Response {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/nodes/{}/capture", node.id))
            .header(header::AUTHORIZATION, bearer(token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(wanted.to_string()));
        self.call(request.expect("a request")).await
    }
}
