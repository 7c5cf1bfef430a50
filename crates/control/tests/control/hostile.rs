//! Hostile text at every place of the API that takes text: refused, or kept as it is and quoted
//! wherever it comes out again.

use axum::http::{Method, StatusCode};
use model::{
    api::{Enrolled, ErrorBody, Page, Peer, Rule},
    key::PublicKey,
    name::is_deceptive,
    policy::Role,
    ssh::{IssuedCertificate, Serial},
    token::{Kind, Token},
};
use serde_json::{Value, json};

use crate::{page::hostile, world::World};

/// An Ed25519 public key.
const SSH_KEY: &str = "ssh-ed25519 \
                       AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// Stands for the text.
const TEXT: &str = "@";

/// Whose token a request carries.
#[derive(Clone, Copy)]
enum Asker {
    Operator,
    Node,
    Join,
    Login,
    EnrolGateway,
}

/// What becomes of a text that could deceive a reader.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Door {
    /// It is refused.
    Shut,
    /// It is kept, because it is what a program or a person typed.
    Open,
}

struct Place {
    asker: Asker,
    method: Method,
    path: String,
    body: Value,
    door: Door,
}

struct Scene {
    world: World,
    operator: Token,
    node: Token,
    join: Token,
    login: Token,
    gateway: Token,
    places: Vec<Place>,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        let operator = world.login().await.session_token;
        let web: Enrolled = world.join(&operator, None, "web", 1).await;
        let granted = async |kind| {
            let created = world.token_with(&operator, kind, None, 1_000, 3600);
            created.await.token
        };
        let body = json!({"public_key": SSH_KEY});
        let path = "/v1/ssh/user-certificate";
        let issued: IssuedCertificate = world.post(path, &operator, &body).await.parse();
        let user = world.invite(&operator, None, "alice", Role::Guest).await;
        let body = json!({"name": "phone", "public_key": PublicKey([30; 32])});
        let peer: Peer = world.post("/v1/peers", &operator, &body).await.parse();
        let ids = [web.id.0, user.user.id.0, peer.id.0];
        Self {
            places: places(ids, issued.serial),
            node: web.node_token,
            join: granted(Kind::Join).await,
            login: granted(Kind::Login).await,
            gateway: granted(Kind::Gateway).await,
            operator,
            world,
        }
    }

    fn token(&self, asker: Asker) -> &Token {
        match asker {
            Asker::Operator => &self.operator,
            Asker::Node => &self.node,
            Asker::Join => &self.join,
            Asker::Login => &self.login,
            Asker::EnrolGateway => &self.gateway,
        }
    }

    async fn ask(&self, place: &Place, text: &str) -> (StatusCode, String) {
        let body = place.body.to_string();
        let quoted = Value::from(text).to_string();
        let inner = &quoted[1..quoted.len() - 1];
        let body = Some(body.replace(TEXT, inner));
        let bearer = self.token(place.asker).emit();
        let method = place.method.clone();
        let reply = self
            .world
            .request(method, &place.path, Some(&bearer), body)
            .await;
        (reply.status, reply.text())
    }
}

impl Place {
    fn new(asker: Asker, method: Method, path: &str, body: Value) -> Self {
        Self {
            asker,
            method,
            path: path.to_owned(),
            body,
            door: Door::Shut,
        }
    }

    fn post(path: &str, body: Value) -> Self {
        Self::new(Asker::Operator, Method::POST, path, body)
    }

    fn patch(path: &str, body: Value) -> Self {
        Self::new(Asker::Operator, Method::PATCH, path, body)
    }
}

/// Returns every place that takes a text, with the ids of a node, a person and a plain client.
fn places(ids: [i64; 3], serial: Serial) -> Vec<Place> {
    let mut places = of_people(ids);
    places.extend(of_things(ids));
    places.extend(of_policy());
    places.extend(of_provider());
    places.extend(of_enrolment());
    places.extend(of_ssh(serial));
    places
}

fn of_people([node, user, _]: [i64; 3]) -> Vec<Place> {
    let (user, node) = (format!("/v1/users/{user}"), format!("/v1/nodes/{node}"));
    let in_org = json!({"org": TEXT, "name": "x", "role": "guest"});
    vec![
        Place::post("/v1/orgs", json!({"name": TEXT})),
        Place::post("/v1/users", json!({"name": TEXT, "role": "guest"})),
        Place::post("/v1/users", json!({"name": "x", "role": TEXT})),
        Place::post("/v1/users", in_org),
        Place::patch(&user, json!({"name": TEXT})),
        Place::patch(&node, json!({"name": TEXT})),
        Place::patch(&node, json!({"tags": [TEXT]})),
        Place::post("/v1/tokens", json!({"kind": TEXT})),
        Place::post("/v1/tokens", json!({"kind": "join", "org": TEXT})),
        Place::post("/v1/tokens", json!({"kind": "login", "user": TEXT})),
    ]
}

fn of_things([node, _, peer]: [i64; 3]) -> Vec<Place> {
    let service = |name: &str, target: &str| {
        let body = json!({"name": name, "port": 80, "node": node, "target": target});
        Place::post("/v1/services", body)
    };
    let site = |name: &str, prefix: &str| {
        let body = json!({"name": name, "node": node, "prefixes": [prefix]});
        Place::post("/v1/sites", body)
    };
    let plain = |name: &str, key: &str| {
        let body = json!({"name": name, "public_key": key});
        Place::post("/v1/peers", body)
    };
    let export = format!("/v1/peers/{peer}/export");
    vec![
        service(TEXT, "a.example:1"),
        service("x", TEXT),
        site(TEXT, "10.0.0.0/8"),
        site("x", TEXT),
        plain(TEXT, &PublicKey([101; 32]).to_string()),
        plain("x", TEXT),
        Place::post(&export, json!({"public_key": TEXT})),
    ]
}

fn of_policy() -> Vec<Place> {
    let question = |from: &str, to: &str| {
        let body = json!({"questions": [{"from": from, "to": to}]});
        Place::post("/v1/policy/questions", body)
    };
    let mut places = vec![question(TEXT, "*"), question("*", TEXT)];
    for field in ["from", "to", "traffic", "comment"] {
        let mut body = json!({"from": ["*"], "to": ["*"], "traffic": ["all"], "comment": ""});
        let is_list = body[field].is_array();
        body[field] = if is_list { json!([TEXT]) } else { json!(TEXT) };
        places.push(Place::post("/v1/rules", body));
    }
    places
}

fn of_provider() -> Vec<Place> {
    let fields = [
        ("issuer", json!(TEXT)),
        ("issuer", json!(format!("https://localhost:1/{TEXT}"))),
        ("client_id", json!(TEXT)),
        ("scopes", json!([TEXT])),
        ("groups_claim", json!(TEXT)),
        ("roles", json!({ TEXT: "guest" })),
    ];
    let place = |(field, value): (&str, Value)| {
        let mut body = json!({
            "issuer": "https://localhost:1", "client_id": "x", "scopes": [],
            "groups_claim": "groups", "roles": {},
        });
        body[field] = value;
        Place::new(Asker::Operator, Method::PUT, "/v1/oidc/provider", body)
    };
    fields.map(place).into()
}

fn of_enrolment() -> Vec<Place> {
    let key = PublicKey([100; 32]).to_string();
    let enrol = |asker, path: &str, name: &str, key: &str| {
        let body = json!({"name": name, "public_key": key});
        Place::new(asker, Method::POST, path, body)
    };
    let gateway = |name: &str, endpoint: &str| {
        let body = json!({"name": name, "public_key": key, "endpoint": endpoint});
        Place::new(Asker::EnrolGateway, Method::POST, "/v1/gateways", body)
    };
    vec![
        enrol(Asker::Join, "/v1/join", TEXT, &key),
        enrol(Asker::Join, "/v1/join", "x", TEXT),
        enrol(Asker::Login, "/v1/login", TEXT, &key),
        gateway(TEXT, "a.example:1"),
        gateway("x", TEXT),
        gateway("x", &format!("{TEXT}:1")),
    ]
}

fn of_ssh(serial: Serial) -> Vec<Place> {
    let session = |account: &str, command: &str| {
        let body = json!({
            "serial": serial, "account": account, "source": "fd00::1", "terminal": false,
            "command": command,
        });
        Place::new(Asker::Node, Method::POST, "/v1/ssh/sessions", body)
    };
    let refusal = json!({"source": "fd00::1", "reason": "expired", "account": TEXT});
    vec![
        Place::post("/v1/ssh/user-certificate", json!({"public_key": TEXT})),
        Place::post("/v1/ssh/revocations", json!({"user": TEXT})),
        Place::new(Asker::Node, Method::POST, "/v1/ssh/refusals", refusal),
        session(TEXT, "true"),
        // Whatever was typed is what the record has to say.
        Place {
            door: Door::Open,
            ..session("root", TEXT)
        },
    ]
}

#[tokio::test]
async fn hostile_text_is_refused_or_comes_out_as_it_went_in() {
    let scene = Scene::new().await;
    let (world, operator) = (&scene.world, &scene.operator);
    for text in hostile() {
        for place in &scene.places {
            let (status, reply) = scene.ask(place, &text).await;
            let what = format!(
                "{} {} {}: {text:?}: {reply}",
                place.method, place.path, place.body
            );
            let is_plain = !text.chars().any(is_deceptive);
            // That no provider answers is found last.
            let is_in = status.is_success() || status == StatusCode::BAD_GATEWAY;
            if is_in {
                assert!(is_plain || place.door == Door::Open, "{what}");
            } else {
                assert!(status.is_client_error(), "{status} {what}");
                let error: ErrorBody = serde_json::from_str(&reply).expect(&what);
                assert_eq!(error.code.status(), status.as_u16(), "{what}");
            }
        }
    }
    let rules: Page<Rule> = world.get("/v1/rules", operator).await.parse();
    for text in hostile().iter().filter(|text| text.len() <= 255) {
        let is_kept = rules.items.iter().any(|rule| rule.comment == *text);
        assert_eq!(is_kept, !text.chars().any(is_deceptive), "{text:?}");
    }
    let audit = world.get("/v1/audit", operator).await.json();
    for row in audit["items"].as_array().expect("a list") {
        let subject = row["subject"].as_str().expect("text");
        assert!(!subject.chars().any(is_deceptive), "{row}");
    }
}
