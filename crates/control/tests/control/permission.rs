//! Every route with every kind of token, on things of the own and of another organisation.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use axum::{
    body::Body,
    http::{Method, Request, header},
    response::Response,
};
use model::{
    api::{CAPTURE_ID_HEADER, Enrolled, ErrorCode, NewService, Page, Peer, Rule, Service, Site},
    id::{NodeId, RuleId, SessionId, SiteId, UserId},
    key::PublicKey,
    policy::Role,
    ssh::{BegunSession, IssuedCertificate, Serial},
    token::{Kind, Token},
};
use serde_json::{Value, json};

use crate::{
    provider::{CLIENT, Provider, SECRET},
    world::{BEGIN, World, label},
};

mod fault;

/// A world with one of everything; the requests are about the node `web` of `default`.
struct Stage {
    world: World,
    askers: Vec<(&'static str, Option<Token>)>,
    web: Enrolled,
    service: Service,
    site: SiteId,
    plain: NodeId,
    token: i64,
    rule: RuleId,
    serial: Serial,
    session: SessionId,
    user: UserId,
}

/// An Ed25519 public key.
const SSH_KEY: &str = "ssh-ed25519 \
                       AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

#[tokio::test]
async fn only_who_may_gets_through() {
    let mut stage = Stage::new().await;
    let names: Vec<_> = stage.askers.iter().map(|(name, _)| *name).collect();
    let mut table = format!("{:34}{}\n", "", columns(&names));
    for (method, path) in routes(&stage).await {
        let mut cells = Vec::new();
        for index in 0..stage.askers.len() {
            let status = stage.ask(&method, &path, index).await;
            cells.push(status.to_string());
            if method != Method::GET && status < 300 {
                stage = Stage::new().await;
            }
        }
        assert!(
            cells.iter().any(|cell| cell.starts_with('2')),
            "{method} {path}: nobody may"
        );
        let cells: Vec<_> = cells.iter().map(String::as_str).collect();
        writeln!(
            table,
            "{:34}{}",
            format!("{method} {path}"),
            columns(&cells)
        )
        .unwrap();
    }
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn what_is_not_a_route_answers_nobody() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let bearer = admin.emit();
    for path in [
        "/ui/",
        "/v1",
        "/v1/",
        "/v2/nodes",
        "/v1/nodes/",
        "/v1//nodes",
        "/v1/../etc",
    ] {
        let reply = world.request(Method::GET, path, Some(&bearer), None).await;
        reply.is(ErrorCode::NotFound);
    }
    for method in [Method::PUT, Method::PATCH, Method::HEAD, Method::TRACE] {
        let reply = world
            .request(method, "/v1/nodes", Some(&bearer), None)
            .await;
        assert_eq!(reply.status.as_u16(), 405);
    }
    for id in ["x", "-1", "0", "99", "9223372036854775808"] {
        world
            .get(&format!("/v1/nodes/{id}"), &admin)
            .await
            .is(ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn a_request_without_meaning_is_refused_with_a_sentence() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let bearer = admin.emit();
    let post = async |body: &str| {
        let body = Some(body.to_owned());
        world
            .request(Method::POST, "/v1/orgs", Some(&bearer), body)
            .await
    };
    for body in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"name":1}"#,
        r#"{"name":"a b"}"#,
        "\u{0}",
    ] {
        post(body).await.is(ErrorCode::MalformedRequest);
    }
    assert!(
        post(r#"{"name":"a b"}"#)
            .await
            .refused()
            .2
            .contains("1 to 63 letters")
    );
    post(&format!(r#"{{"name":"{}"}}"#, "a".repeat(1 << 20)))
        .await
        .is(ErrorCode::TooLarge);
    for query in ["limit=x", "after=x", "org=a%20b", "org=%00"] {
        let reply = world.get(&format!("/v1/nodes?{query}"), &admin).await;
        reply.is(ErrorCode::MalformedRequest);
    }
    let page = world.get("/v1/nodes?limit=0", &admin).await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let session = world.login().await.session_token;
        world.add_org(&session, "other").await;
        world.add_org(&session, "empty").await;
        let web = world.join(&session, None, "web", 1).await;
        let peer = world.join(&session, None, "peer", 2).await;
        let foreign = world.join(&session, Some("other"), "web", 3).await;
        let stranger = world
            .person(&session, Some("other"), "stranger", Role::Admin, 20)
            .await;
        let gone = world.join(&session, Some("other"), "gone", 4).await;
        let path = format!("/v1/nodes/{}", gone.id);
        world.delete(&path, &session).await;
        let gateway = world.gateway(&session, "edge", 5).await;
        let service = published(&world, &web).await;
        let site = site_behind(&world, &session, &web).await;
        let plain = plain_client(&world, &session).await;
        let token = world
            .token_with(&session, Kind::Join, None, 1, 60)
            .await
            .entry
            .id
            .0;
        let body = Some(settings().to_string());
        let (path, bearer) = ("/v1/oidc/provider", session.emit());
        let set = world.request(Method::PUT, path, Some(&bearer), body).await;
        set.json();
        let rules = world.get("/v1/rules?org=default", &session).await;
        let rule = rules.parse::<Page<Rule>>().items[0].id;
        let (serial, begun) = recorded_session(&world, &session, &web).await;
        let [admin, developer, guest] = one_of_each_role(&world, &session).await;
        let user = world.invite(&session, None, "newcomer", Role::Guest).await;
        let login = world.server.admin_token().await;
        let askers = vec![
            ("anyone", None),
            ("login", Some(login.expect("a login token").token)),
            (
                "join",
                Some(world.token(&session, Kind::Join, Some("other")).await),
            ),
            (
                "enrol-gw",
                Some(world.token(&session, Kind::Gateway, None).await),
            ),
            ("operator", Some(session)),
            ("admin", Some(admin)),
            ("develop.", Some(developer)),
            ("guest", Some(guest)),
            ("stranger", Some(stranger.session_token)),
            ("itself", Some(web.node_token.clone())),
            ("peer", Some(peer.node_token)),
            ("foreign", Some(foreign.node_token)),
            ("gateway", Some(gateway.node_token)),
            ("removed", Some(gone.node_token)),
        ];
        Self {
            world,
            askers,
            web,
            service,
            site,
            plain,
            token,
            rule,
            serial,
            session: begun,
            user: user.user.id,
        }
    }

    /// Returns a path about the things of this stage.
    fn concrete(&self, method: &Method, path: &str) -> String {
        let key = PublicKey([1; 32]).to_string().replace('=', "%3D");
        let org = if *method == Method::DELETE {
            "empty"
        } else {
            "default"
        };
        path.replace("{org}", org)
            .replace("{node}", &self.web.id.to_string())
            .replace("{service}", &self.service.id.to_string())
            .replace("{site}", &self.site.to_string())
            .replace("{peer}", &self.plain.to_string())
            .replace("{token}", &self.token.to_string())
            .replace("{rule}", &self.rule.to_string())
            .replace("{session}", &self.session.to_string())
            .replace("{user}", &self.user.to_string())
            .replace("{key}", &key)
    }

    async fn ask(&self, method: &Method, path: &str, index: usize) -> u16 {
        let concrete = self.concrete(method, path);
        let key = PublicKey([100; 32]);
        let bearer = self.askers[index].1.as_ref().map(Token::emit);
        let bearer = bearer.as_ref().map(|text| text.as_str());
        if path.contains("/capture") {
            return self.ask_about_capture(&concrete, bearer).await;
        }
        if path == "/v1/oidc/logout/{org}" {
            return self.log_out_by_provider(&concrete, bearer).await;
        }
        let body = match path {
            "/v1/oidc/provider" => settings(),
            "/v1/oidc/sign-ins" => json!({"org": "default", "public_key": key}),
            "/v1/oidc/sessions" => json!({"attempt": self.attempt().await, "name": "new"}),
            "/v1/join" | "/v1/login" => json!({"name": "new", "public_key": key}),
            "/v1/gateways" => json!({"name": "new", "public_key": key, "endpoint": "a:1"}),
            "/v1/tokens" => json!({"kind": "join"}),
            "/v1/ssh/user-certificate" | "/v1/ssh/host-certificate" => {
                json!({"public_key": SSH_KEY})
            }
            "/v1/ssh/rotation" => json!({}),
            "/v1/ssh/revocations" => json!({"node": self.web.id}),
            "/v1/ssh/sessions" => json!({
                "serial": self.serial, "account": "root", "source": "fd00::1", "terminal": true
            }),
            "/v1/ssh/sessions/{session}/pieces" => json!({"number": 0, "text": "x"}),
            "/v1/ssh/sessions/{session}/end" => json!({"status": 0}),
            "/v1/ssh/refusals" => json!({"source": "fd00::1", "reason": "expired"}),
            "/v1/tunnels" => json!({"tunnels": []}),
            "/v1/ssh/recording" => json!({"recording": "all"}),
            "/v1/users" => json!({"name": "new", "role": "guest"}),
            "/v1/users/{user}" => json!({"role": "developer"}),
            "/v1/rules" => json!({"from": ["*"], "to": ["*"]}),
            "/v1/rules/{rule}" => json!({"traffic": ["22"]}),
            "/v1/policy/questions" => json!({"questions": [{"from": "*", "to": "*"}]}),
            "/v1/nodes/{node}/expiry" => json!({"ttl_seconds": 60}),
            "/v1/nodes/{node}/key" => json!({"public_key": key}),
            "/v1/services" => json!({"name": "new", "port": 81, "node": self.web.id}),
            "/v1/sites" => {
                json!({"name": "new", "node": self.web.id, "prefixes": ["10.0.0.0/8"]})
            }
            "/v1/sites/{site}" => json!({"nodes": [self.web.id]}),
            "/v1/sites/{site}/health" => {
                json!({"nodes": [{"node": self.web.id, "carries": true, "health": "healthy"}]})
            }
            "/v1/peers/{peer}/export" => json!({"public_key": key}),
            _ => json!({"name": "new"}),
        };
        let body = (*method != Method::GET).then(|| body.to_string());
        let reply = self
            .world
            .request(method.clone(), &concrete, bearer, body)
            .await;
        reply.status.as_u16()
    }
}

impl Stage {
    /// Begins a sign-in with a device code, which the provider takes for granted.
    async fn attempt(&self) -> Value {
        let body = json!({"org": "default", "public_key": PublicKey([101; 32])}).to_string();
        let path = "/v1/oidc/sign-ins";
        let begun = self
            .world
            .request(Method::POST, path, None, Some(body))
            .await;
        begun.json()["attempt"].clone()
    }

    async fn ask_about_capture(&self, path: &str, bearer: Option<&str>) -> u16 {
        if !path.starts_with("/v1/captures/") {
            return self.capture(path, bearer).await;
        }
        let (id, _file) = self.running_capture().await;
        let path = path.replace("{capture}", &id);
        let body = Some("{}".to_owned());
        let reply = self.world.request(Method::POST, &path, bearer, body);
        reply.await.status.as_u16()
    }

    /// Asks for a capture, whose file nobody waits for.
    async fn capture(&self, path: &str, bearer: Option<&str>) -> u16 {
        let mut request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        if let Some(bearer) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let body = json!({"inner": false, "outer": true}).to_string();
        let request = request.body(Body::from(body)).expect("a request");
        self.world.call(request).await.status().as_u16()
    }

    /// Lets the operator capture `web`, once the capture before has ended.
    async fn running_capture(&self) -> (String, Response) {
        let wanted = json!({"inner": true, "outer": false});
        let operator = self.askers.iter().find(|(name, _)| *name == "operator");
        let token = operator.and_then(|(_, token)| token.as_ref());
        loop {
            let token = token.expect("an operator has a token");
            let reply = self.world.capture(token, &self.web, &wanted).await;
            if let Some(id) = reply.headers().get(CAPTURE_ID_HEADER) {
                return (id.to_str().expect("a number").to_owned(), reply);
            }
            assert_eq!(reply.status().as_u16(), ErrorCode::LimitReached.status());
            tokio::task::yield_now().await;
        }
    }

    async fn log_out_by_provider(&self, path: &str, bearer: Option<&str>) -> u16 {
        let form = "application/x-www-form-urlencoded";
        let mut request = Request::post(path).header(header::CONTENT_TYPE, form);
        if let Some(bearer) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let token = provider().logout_token("nobody");
        let request = request.body(Body::from(format!("logout_token={token}")));
        let reply = self.world.send(request.expect("a request")).await;
        reply.status.as_u16()
    }
}

/// The provider of every stage, whose clock stands still as theirs do.
fn provider() -> &'static Provider {
    static PROVIDER: OnceLock<Provider> = OnceLock::new();
    PROVIDER.get_or_init(|| Provider::new(&Arc::new(AtomicU64::new(BEGIN))))
}

fn settings() -> Value {
    json!({
        "issuer": provider().issuer, "client_id": CLIENT, "client_secret": SECRET,
        "groups_claim": "groups"
    })
}

/// Publishes a service at `web`.
async fn published(world: &World, web: &Enrolled) -> Service {
    let request = NewService {
        name: label("web"),
        node: None,
        port: 80,
        target: None,
    };
    let reply = world.post("/v1/services", &web.node_token, &request).await;
    reply.parse()
}

/// Adds a site behind `web`.
async fn site_behind(world: &World, session: &Token, web: &Enrolled) -> SiteId {
    let body = json!({"name": "paris", "node": web.id, "prefixes": ["192.168.1.0/24"]});
    let reply = world.post("/v1/sites", session, &body).await;
    reply.parse::<Site>().id
}

/// Adds a plain WireGuard client that has made its key.
async fn plain_client(world: &World, session: &Token) -> NodeId {
    let body = json!({"name": "phone", "public_key": PublicKey([30; 32])});
    let reply = world.post("/v1/peers", session, &body).await;
    reply.parse::<Peer>().id
}

/// Begins the record of a session at `web` by a certificate of whoever has `token`.
async fn recorded_session(world: &World, token: &Token, web: &Enrolled) -> (Serial, SessionId) {
    let body = json!({"public_key": SSH_KEY});
    let path = "/v1/ssh/user-certificate";
    let issued: IssuedCertificate = world.post(path, token, &body).await.parse();
    let body = json!({
        "serial": issued.serial, "account": "root", "source": "fd00::1", "terminal": true
    });
    let begun = world.post("/v1/ssh/sessions", &web.node_token, &body).await;
    (issued.serial, begun.parse::<BegunSession>().id)
}

/// Signs in one person of each role in the first organisation.
async fn one_of_each_role(world: &World, session: &Token) -> [Token; 3] {
    let [first, second, third] = Role::ALL.map(|role| (role, format!("the-{role}")));
    let sign_in = async |(role, name): (Role, String), key| {
        let person = world.person(session, None, &name, role, key).await;
        person.session_token
    };
    [
        sign_in(first, 10).await,
        sign_in(second, 11).await,
        sign_in(third, 12).await,
    ]
}

/// Returns every route that the API describes.
async fn routes(stage: &Stage) -> Vec<(Method, String)> {
    let get = Method::GET;
    let reply = stage
        .world
        .request(get, "/v1/openapi.json", None, None)
        .await;
    let Value::Object(paths) = reply.json()["paths"].clone() else {
        panic!("the description has paths");
    };
    let mut routes = Vec::new();
    for (path, item) in paths {
        for method in item.as_object().expect("methods").keys() {
            let method = method.to_uppercase().parse().expect("a method");
            routes.push((method, path.clone()));
        }
    }
    routes
}

fn columns(cells: &[&str]) -> String {
    let line: String = cells.iter().map(|cell| format!("{cell:9}")).collect();
    line.trim_end().to_owned()
}
