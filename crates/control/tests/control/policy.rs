//! Rules: what they do to maps, who may change them, and what is answered about them.

use std::time::Duration;

use axum::http::StatusCode;
use model::{
    api::{Answer, Answers, Enrolled, ErrorCode, NewService, Node, Rule, Verdict},
    map::NetworkMap,
    policy::{Wanted, decide},
    token::Token,
};
use serde_json::{Value, json};

use crate::world::{Reply, World, label};

/// An administrator's laptop and three machines in one organisation.
struct Stage {
    world: World,
    admin: Token,
    laptop: Enrolled,
    web: Enrolled,
    db: Enrolled,
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let login = world.login().await;
        let admin = login.session_token;
        let web = world.join(&admin, None, "web", 1).await;
        let db = world.join(&admin, None, "db", 2).await;
        Self {
            world,
            admin,
            laptop: login.device,
            web,
            db,
        }
    }

    async fn add(&self, rule: Value) -> Rule {
        let reply = self.world.post("/v1/rules", &self.admin, &rule).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
        reply.parse()
    }

    async fn patch(&self, path: &str, body: &Value) -> Reply {
        self.world.patch(path, &self.admin, body).await
    }

    /// Removes every rule that there is from the beginning.
    async fn without_rules(self) -> Self {
        let page = self.world.get("/v1/rules", &self.admin).await.json();
        for rule in page["items"].as_array().expect("a list") {
            let path = format!("/v1/rules/{}", rule["id"]);
            let status = self.world.delete(&path, &self.admin).await.status;
            assert_eq!(status, StatusCode::NO_CONTENT);
        }
        self
    }

    /// Decides by the map of `asker`, as the data plane does.
    async fn may(&self, asker: &Enrolled, from: &Enrolled, to: &Enrolled, wanted: Wanted) -> bool {
        let map: NetworkMap = self.world.get("/v1/map", &asker.node_token).await.parse();
        let org = map.orgs.values().next().expect("the own organisation");
        let rules = org.rules.as_ref().expect("a map has rules");
        let (from, to) = (&org.nodes[&from.id], &org.nodes[&to.id]);
        decide(
            rules,
            &from.may_reach,
            to.reached_by.iter().copied(),
            wanted,
        )
        .is_some()
    }

    async fn ask(&self, from: &str, to: &str, wanted: Option<&str>) -> Answer {
        let question = json!({"questions": [{"from": from, "to": to, "wanted": wanted}]});
        let path = "/v1/policy/questions";
        let reply = self.world.post(path, &self.admin, &question).await;
        let answers: Answers = reply.parse();
        answers.answers.into_iter().next().expect("an answer")
    }
}

#[tokio::test]
async fn a_new_organisation_lets_everybody_reach_machines_and_nobody_reach_devices() {
    let stage = Stage::new().await;
    let Stage {
        laptop, web, db, ..
    } = &stage;
    assert!(stage.may(web, laptop, web, Wanted::Tcp(22)).await);
    assert!(stage.may(web, db, web, Wanted::Udp(53)).await);
    assert!(!stage.may(web, web, laptop, Wanted::Tcp(22)).await);
    assert!(!stage.may(web, web, laptop, Wanted::Ping).await);
    stage.world.add_org(&stage.admin, "other").await;
    let page = stage.world.get("/v1/rules?org=other", &stage.admin).await;
    let rules = page.json()["items"].clone();
    assert_eq!(rules.as_array().map(Vec::len), Some(1), "{rules}");
    assert_eq!(rules[0]["to"], json!(["machines"]));
}

#[tokio::test]
async fn a_rule_is_in_every_map_at_once_and_gone_with_its_removal() {
    let stage = Stage::new().await.without_rules().await;
    let Stage {
        laptop, web, db, ..
    } = &stage;
    assert!(!stage.may(db, laptop, web, Wanted::Tcp(443)).await);
    let rule = stage
        .add(json!({"from": ["user:admin"], "to": ["tag:shop"], "traffic": ["443"]}))
        .await;
    assert!(!stage.may(db, laptop, web, Wanted::Tcp(443)).await);
    let path = format!("/v1/nodes/{}", web.id);
    let reply = stage.patch(&path, &json!({"tags": ["shop", "edge"]})).await;
    assert_eq!(reply.parse::<Node>().tags, [label("edge"), label("shop")]);
    for asker in [laptop, web, db] {
        assert!(stage.may(asker, laptop, web, Wanted::Tcp(443)).await);
        assert!(!stage.may(asker, laptop, web, Wanted::Tcp(22)).await);
        assert!(!stage.may(asker, laptop, db, Wanted::Tcp(443)).await);
        assert!(!stage.may(asker, db, web, Wanted::Tcp(443)).await);
    }
    let path = format!("/v1/rules/{}", rule.id);
    let reply = stage.patch(&path, &json!({"traffic": ["22"]})).await;
    assert_eq!(reply.parse::<Rule>().from, rule.from, "it stays");
    assert!(stage.may(db, laptop, web, Wanted::Tcp(22)).await);
    assert!(!stage.may(db, laptop, web, Wanted::Tcp(443)).await);
    assert_eq!(
        stage.world.delete(&path, &stage.admin).await.status,
        StatusCode::NO_CONTENT
    );
    assert!(!stage.may(db, laptop, web, Wanted::Tcp(22)).await);
    let audit = stage.world.get("/v1/audit", &stage.admin).await.text();
    for action in [
        "rule_added",
        "rule_changed",
        "rule_removed",
        "tags edge,shop",
    ] {
        assert!(audit.contains(action), "{action} in {audit}");
    }
}

#[tokio::test]
async fn a_service_is_reached_at_its_port_alone() {
    let stage = Stage::new().await.without_rules().await;
    let Stage { laptop, db, .. } = &stage;
    let request = NewService {
        name: label("postgres"),
        node: None,
        port: 5432,
        target: None,
    };
    let reply = stage
        .world
        .post("/v1/services", &db.node_token, &request)
        .await;
    assert_eq!(reply.status, StatusCode::CREATED);
    stage
        .add(json!({"from": ["*"], "to": ["service:postgres"]}))
        .await;
    assert!(stage.may(db, laptop, db, Wanted::Tcp(5432)).await);
    assert!(!stage.may(db, laptop, db, Wanted::Tcp(22)).await);
    assert!(!stage.may(db, laptop, db, Wanted::Udp(5432)).await);
    let answer = stage.ask("laptop", "service:postgres", None).await;
    assert_eq!(answer.verdict, Verdict::Allowed);
    let example = answer.example.expect("a pair");
    assert_eq!(example.wanted, Wanted::Tcp(5432));
}

#[tokio::test]
async fn questions_are_answered_with_the_rule_or_a_pair_that_is_refused() {
    let stage = Stage::new().await.without_rules().await;
    let first = stage
        .add(json!({"from": ["role:admin"], "to": ["node:web"], "traffic": ["80-90", "53/udp"]}))
        .await;
    let second = stage
        .add(json!({"from": ["*"], "to": ["node:web"], "traffic": ["ping"]}))
        .await;
    let cases = [
        (
            "laptop",
            "web",
            Some("85"),
            Verdict::Allowed,
            Some(first.id),
        ),
        (
            "laptop",
            "web",
            Some("53/udp"),
            Verdict::Allowed,
            Some(first.id),
        ),
        ("laptop", "web", Some("91"), Verdict::Refused, None),
        // By the person's name, as no node has it.
        ("admin", "web", None, Verdict::Allowed, Some(first.id)),
        ("db", "web", None, Verdict::Allowed, Some(second.id)),
        ("db", "web", Some("85"), Verdict::Refused, None),
        ("*", "web", Some("85"), Verdict::Partly, None),
        ("*", "machines", Some("ping"), Verdict::Partly, None),
        ("user:nobody", "web", None, Verdict::NobodySends, None),
        ("db", "tag:none", None, Verdict::NobodyReached, None),
        ("db", "service:none", None, Verdict::NobodyReached, None),
    ];
    for (from, to, wanted, verdict, rule) in cases {
        let answer = stage.ask(from, to, wanted).await;
        assert_eq!(answer.verdict, verdict, "{from} {to} {wanted:?}");
        let found = answer.example.and_then(|example| example.rule);
        assert_eq!(found, rule, "{from} {to} {wanted:?}");
    }
    // A node may ask about its own organisation.
    let question = json!({"questions": [{"from": "db", "to": "web"}]});
    let path = "/v1/policy/questions";
    let reply = stage
        .world
        .post(path, &stage.db.node_token, &question)
        .await;
    assert_eq!(reply.parse::<Answers>().answers.len(), 1);
    let foreign = json!({"org": "elsewhere", "questions": []});
    let reply = stage.world.post(path, &stage.db.node_token, &foreign).await;
    reply.is(ErrorCode::NotFound);
    let many = json!({"questions": vec![json!({"from": "db", "to": "web"}); 51]});
    let reply = stage.world.post(path, &stage.admin, &many).await;
    reply.is(ErrorCode::TooLarge);
}

#[tokio::test]
async fn rules_without_meaning_are_refused_and_nothing_changes() {
    let stage = Stage::new().await;
    let before = stage.world.get("/v1/map", &stage.web.node_token).await;
    let long = vec!["*"; 65];
    let faults = [
        json!({"from": [], "to": ["*"]}),
        json!({"from": ["*"], "to": []}),
        json!({"from": ["*"], "to": ["*"], "traffic": []}),
        json!({"from": long, "to": ["*"]}),
        json!({"from": ["service:web"], "to": ["*"]}),
        json!({"from": ["everybody"], "to": ["*"]}),
        json!({"from": ["*"], "to": ["*"], "traffic": ["0/tcp"]}),
        json!({"from": ["*"], "to": ["*"], "traffic": ["90-80"]}),
        json!({"from": ["*"], "to": ["*"], "comment": "a\u{1b}[2J"}),
        json!({"from": ["*"], "to": ["*"], "comment": "x".repeat(256)}),
        json!({"from": ["*"], "to": ["tag:a,b"]}),
    ];
    for fault in faults {
        let reply = stage.world.post("/v1/rules", &stage.admin, &fault).await;
        reply.is(ErrorCode::MalformedRequest);
    }
    let path = format!("/v1/nodes/{}", stage.web.id);
    let nothing = stage.patch(&path, &json!({})).await;
    nothing.is(ErrorCode::MalformedRequest);
    let tags: Vec<_> = (0..33).map(|number| format!("t{number}")).collect();
    let many = stage.patch(&path, &json!({"tags": tags})).await;
    many.is(ErrorCode::LimitReached);
    let after = stage.world.get("/v1/map", &stage.web.node_token).await;
    assert_eq!(before.text(), after.text());
}

#[tokio::test]
async fn a_gateway_learns_a_node_by_its_key_with_its_rules() {
    let stage = Stage::new().await;
    let gateway = stage.world.gateway(&stage.admin, "edge", 9).await;
    let key = model::key::PublicKey([1; 32])
        .to_string()
        .replace('=', "%3D");
    let path = format!("/v1/nodes/by-key/{key}");
    let found = stage.world.get(&path, &gateway.node_token).await.json();
    let map: NetworkMap = stage
        .world
        .get("/v1/map", &gateway.node_token)
        .await
        .parse();
    let org = map.orgs.values().next().expect("an organisation");
    let in_map = serde_json::to_value(&org.nodes[&stage.web.id]).expect("plain data");
    assert_eq!(found["node"], in_map);
    assert!(!in_map["reached_by"].as_array().expect("a list").is_empty());
}

#[tokio::test]
async fn a_node_that_is_removed_comes_back_without_its_tags() {
    let stage = Stage::new().await;
    let path = format!("/v1/nodes/{}", stage.web.id);
    stage.patch(&path, &json!({"tags": ["shop"]})).await;
    stage.world.delete(&path, &stage.admin).await;
    stage.world.pass(Duration::from_secs(1).as_secs());
    let again = stage.world.join(&stage.admin, None, "web", 1).await;
    assert_eq!(again.id, stage.web.id);
    let node: Node = stage.world.get(&path, &stage.admin).await.parse();
    assert!(node.tags.is_empty(), "{:?}", node.tags);
}
