//! Records of sessions: written by their node in order, read by who may, bounded, and audited.

use model::{
    api::{ErrorCode, Page},
    ssh::{BegunSession, IssuedCertificate, Piece, Session},
    token::Token,
};
use serde_json::{Value, json};

use crate::world::World;

const KEY: &str = "ssh-ed25519 \
                   AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// A world with a person who may log in, and a node.
struct Scene {
    world: World,
    admin: Token,
    node: Token,
    serial: u64,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        let admin = world.login().await.session_token;
        let node = world.join(&admin, None, "web", 1).await.node_token;
        let body = json!({ "public_key": KEY, "ttl_seconds": 60 });
        let issued = world.post("/v1/ssh/user-certificate", &admin, &body).await;
        let serial = issued.parse::<IssuedCertificate>().serial.0;
        Self {
            world,
            admin,
            node,
            serial,
        }
    }

    fn body(&self) -> Value {
        json!({
            "serial": self.serial, "account": "root", "source": "fd00::7", "terminal": true,
            "command": "uptime"
        })
    }

    async fn begin(&self) -> i64 {
        let reply = self
            .world
            .post("/v1/ssh/sessions", &self.node, &self.body())
            .await;
        reply.parse::<BegunSession>().id.0
    }

    async fn append(&self, id: i64, number: u32, text: &str) -> crate::world::Reply {
        let body = json!({ "number": number, "text": text });
        let path = format!("/v1/ssh/sessions/{id}/pieces");
        self.world.post(&path, &self.node, &body).await
    }

    async fn end(&self, id: i64) -> crate::world::Reply {
        let path = format!("/v1/ssh/sessions/{id}/end");
        self.world
            .post(&path, &self.node, &json!({ "status": 3 }))
            .await
    }

    async fn text(&self, id: i64) -> String {
        let mut text = String::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/ssh/sessions/{id}/pieces{after}");
            let page: Page<Piece> = self.world.get(&path, &self.admin).await.parse();
            text.extend(page.items.into_iter().map(|piece| piece.text));
            match page.next {
                Some(next) => after = format!("?after={next}"),
                None => return text,
            }
        }
    }
}

#[tokio::test]
async fn a_record_is_what_was_appended_and_its_session_is_listed() {
    let scene = Scene::new().await;
    let id = scene.begin().await;
    let mut expected = String::new();
    for number in 0..40 {
        let text = format!("[{number}, \"o\", \"\\u001b\"]\n");
        expected.push_str(&text);
        assert_eq!(scene.append(id, number, &text).await.status.as_u16(), 204);
        // Its answer may have been lost.
        assert_eq!(scene.append(id, number, "other").await.status.as_u16(), 204);
    }
    scene
        .append(id, 41, "x")
        .await
        .is(ErrorCode::MalformedRequest);
    assert_eq!(scene.end(id).await.status.as_u16(), 204);
    scene
        .append(id, 40, "x")
        .await
        .is(ErrorCode::MalformedRequest);
    scene.end(id).await.is(ErrorCode::MalformedRequest);
    assert_eq!(scene.text(id).await, expected);
    let page: Page<Session> = scene
        .world
        .get("/v1/ssh/sessions", &scene.admin)
        .await
        .parse();
    let [session] = page.items.as_slice() else {
        panic!("one session: {page:?}");
    };
    assert_eq!((session.id.0, session.status), (id, Some(3)));
    assert_eq!(session.bytes, expected.len() as u64);
    assert_eq!(
        session
            .user_name
            .as_ref()
            .map(ToString::to_string)
            .as_deref(),
        Some("admin")
    );
    assert_eq!(session.command.as_deref(), Some("uptime"));
}

#[tokio::test]
async fn a_record_is_of_a_certificate_of_the_organisation_and_of_its_node_alone() {
    let scene = Scene::new().await;
    let mut body = scene.body();
    body["serial"] = json!(99);
    let begin =
        async |token: &Token, body: &Value| scene.world.post("/v1/ssh/sessions", token, body).await;
    begin(&scene.node, &body).await.is(ErrorCode::NotFound);
    scene.world.add_org(&scene.admin, "other").await;
    let foreign = scene
        .world
        .join(&scene.admin, Some("other"), "web", 3)
        .await;
    begin(&foreign.node_token, &scene.body())
        .await
        .is(ErrorCode::NotFound);
    begin(&scene.admin, &scene.body())
        .await
        .is(ErrorCode::WrongTokenKind);
    let id = scene.begin().await;
    let peer = scene
        .world
        .join(&scene.admin, None, "peer", 4)
        .await
        .node_token;
    for token in [&peer, &foreign.node_token] {
        let path = format!("/v1/ssh/sessions/{id}/pieces");
        let body = json!({ "number": 0, "text": "x" });
        scene
            .world
            .post(&path, token, &body)
            .await
            .is(ErrorCode::NotFound);
        scene
            .world
            .get(&path, token)
            .await
            .is(ErrorCode::WrongTokenKind);
    }
}

#[tokio::test]
async fn a_record_and_its_pieces_are_bounded() {
    let scene = Scene::new().await;
    let id = scene.begin().await;
    let escapes = "\"".repeat(64 * 1024);
    assert_eq!(scene.append(id, 0, &escapes).await.status.as_u16(), 204);
    let more = "a".repeat(64 * 1024 + 1);
    scene
        .append(id, 1, &more)
        .await
        .is(ErrorCode::MalformedRequest);
    let much = "a".repeat(256 * 1024);
    scene.append(id, 1, &much).await.is(ErrorCode::TooLarge);
    let piece = "a".repeat(64 * 1024);
    for number in 1..1_024 {
        assert_eq!(scene.append(id, number, &piece).await.status.as_u16(), 204);
    }
    scene
        .append(id, 1_024, "a")
        .await
        .is(ErrorCode::LimitReached);
    let mut body = scene.body();
    body["command"] = json!("a".repeat(1_025));
    let reply = scene
        .world
        .post("/v1/ssh/sessions", &scene.node, &body)
        .await;
    reply.is(ErrorCode::MalformedRequest);
}

#[tokio::test]
async fn reading_and_removing_a_record_is_audited_and_old_ones_go() {
    let mut scene = Scene::new().await;
    let id = scene.begin().await;
    scene.append(id, 0, "x").await;
    let removed = scene.begin().await;
    assert_eq!(scene.text(id).await, "x");
    let path = format!("/v1/ssh/sessions/{removed}");
    scene.world.delete(&path, &scene.admin).await;
    scene
        .world
        .get(&path, &scene.admin)
        .await
        .is(ErrorCode::NotFound);
    let audit = scene.world.get("/v1/audit", &scene.admin).await.text();
    for row in [
        format!(
            "session:{id} account:root serial:{} source:fd00::7",
            scene.serial
        ),
        format!("session:{id} from:0"),
        format!("session:{removed} web account:root"),
    ] {
        assert!(audit.contains(&row), "{row}: {audit}");
    }
    scene.world.pass(91 * 86_400);
    scene.world.restart().await;
    let admin = scene.world.login().await.session_token;
    let page: Page<Session> = scene.world.get("/v1/ssh/sessions", &admin).await.parse();
    assert!(page.items.is_empty(), "{page:?}");
}
