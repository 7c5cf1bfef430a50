//! Schemathesis reads the description of the API, and asks every route what it describes and what
//! it does not.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env,
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{
    body::Body,
    http::{HeaderValue, Method, Request, StatusCode, header},
    response::Response,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use model::{
    api::{Enrolled, GatewayEnrolled, LoggedIn},
    key::PublicKey,
    token::{Kind, Token},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Mutex,
    task::{JoinHandle, spawn_blocking},
};

use crate::world::World;

/// What Schemathesis says to be let in; the front puts a token of the world in its place.
const LET_ME_IN: &str = "Bearer let-me-in";

/// Answers wait for another program, or for a change: they would take a minute each.
const WAITING: &str = "^/v1/(map|nodes/[^/]+/capture.*|captures/.*)$";

/// What has to hold of every answer. Left out is what compares an input with its description, which
/// does not say how a name is spelled, and what guesses which id of one answer is that of another.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      unsupported_method,allow_header_conformance,use_after_free";

/// Requests that a run makes at least; fewer would mean that it did not read the description.
const REQUESTS_MIN: usize = 2_000;

/// Whose token a route takes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Asker {
    Operator,
    Node,
    Gateway,
    Join,
    Login,
    EnrolGateway,
}

/// Stands before the router: gives each request the token of one who may make it, as Schemathesis
/// removes nodes, people and tokens, and those that it asks by too.
struct Front {
    world: World,
    tokens: Mutex<BTreeMap<Asker, Token>>,
    /// How many replies had each status.
    statuses: Mutex<BTreeMap<StatusCode, usize>>,
    keys: AtomicU32,
}

impl Asker {
    fn of(method: &Method, path: &str) -> Self {
        let parts: Vec<_> = path.split('/').skip(2).collect();
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["join"]) => Self::Join,
            ("POST", ["login"]) => Self::Login,
            ("POST", ["gateways"]) => Self::EnrolGateway,
            (_, ["nodes", "by-key", _] | ["tunnels"]) => Self::Gateway,
            ("PUT", ["nodes", _, "key"])
            | ("POST", ["ssh", "host-certificate" | "refusals"])
            | ("POST", ["ssh", "sessions", ..]) => Self::Node,
            _ => Self::Operator,
        }
    }
}

impl Front {
    async fn new() -> Self {
        Self {
            world: World::new().await,
            tokens: Mutex::new(BTreeMap::new()),
            statuses: Mutex::new(BTreeMap::new()),
            keys: AtomicU32::new(0),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response {
        let (mut parts, body) = request.into_parts();
        let asker = Asker::of(&parts.method, parts.uri.path());
        let given = parts.headers.get(header::AUTHORIZATION);
        let is_ours = given.is_some_and(|value| value == LET_ME_IN);
        if is_ours {
            let bearer = format!("Bearer {}", self.token(asker).await.emit().as_str());
            let value = HeaderValue::from_str(&bearer).expect("letters");
            parts.headers.insert(header::AUTHORIZATION, value);
        }
        let request = Request::from_parts(parts, Body::new(body));
        let response = self.world.call(request).await;
        let status = response.status();
        if is_ours && status == StatusCode::UNAUTHORIZED {
            self.tokens.lock().await.remove(&asker);
        }
        *self.statuses.lock().await.entry(status).or_default() += 1;
        response
    }

    /// Returns a token that works, as far as the front knows.
    async fn token(&self, asker: Asker) -> Token {
        let mut tokens = self.tokens.lock().await;
        if let Some(token) = tokens.get(&asker) {
            return token.clone();
        }
        let token = self.made(asker).await;
        tokens.insert(asker, token.clone());
        token
    }

    async fn made(&self, asker: Asker) -> Token {
        let world = &self.world;
        let operator = self.sign_in().await;
        let uses_max = 1_000_000;
        let granted = async |kind| {
            let created = world.token_with(&operator, kind, None, uses_max, 3600);
            created.await.token
        };
        let (name, key) = self.drawn();
        match asker {
            Asker::Operator => operator,
            Asker::Join => granted(Kind::Join).await,
            Asker::Login => granted(Kind::Login).await,
            Asker::EnrolGateway => granted(Kind::Gateway).await,
            Asker::Node => {
                let join = granted(Kind::Join).await;
                let request = json!({"name": name, "public_key": key});
                let reply = world.post("/v1/join", &join, &request).await;
                reply.parse::<Enrolled>().node_token
            }
            Asker::Gateway => {
                let enrol = granted(Kind::Gateway).await;
                let request = json!({"name": name, "public_key": key, "endpoint": "a.example:1"});
                let reply = world.post("/v1/gateways", &enrol, &request).await;
                reply.parse::<GatewayEnrolled>().node_token
            }
        }
    }

    async fn sign_in(&self) -> Token {
        let token = self.world.server.admin_token().await;
        let token = token.expect("a login token").token;
        let (name, key) = self.drawn();
        let request = json!({"name": name, "public_key": key});
        let reply = self.world.post("/v1/login", &token, &request).await;
        reply.parse::<LoggedIn>().session_token
    }

    /// Returns a name and a key that no other node has.
    fn drawn(&self) -> (String, PublicKey) {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        (format!("front-{number}"), PublicKey(key))
    }
}

/// Serves the front until the returned task is aborted.
async fn serve(front: Arc<Front>) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let front = front.clone();
            let answer = service_fn(move |request| {
                let front = front.clone();
                async move { Ok::<_, Infallible>(front.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer);
            // What Schemathesis breaks off is no matter.
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    (port, serving)
}

/// Tells whether the program is there; where the ring is required it has to be.
fn is_installed() -> bool {
    let found = Command::new("schemathesis")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let required = env::var_os("INTEROP").is_some_and(|value| value == "required");
    assert!(!required, "`schemathesis` is not installed");
    let mut errors = std::io::stderr();
    writeln!(errors, "skipped: `schemathesis` is not installed").expect("it is open");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_as_its_description_says() {
    if !is_installed() {
        return;
    }
    let front = Arc::new(Front::new().await);
    let (port, serving) = serve(front.clone()).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("schemathesis");
    command
        .current_dir(directory.path())
        .args(["run", "--no-color", "--workers", "1"])
        .args(["--generation-deterministic", "--max-examples", "10"])
        .args(["--no-shrink", "--continue-on-failure"])
        .args(["--suppress-health-check", "all", "--request-timeout", "60"])
        .args(["--exclude-path-regex", WAITING, "--checks", CHECKS])
        .args(["--header", &format!("Authorization: {LET_ME_IN}")])
        .arg(format!("http://127.0.0.1:{port}/v1/openapi.json"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let ended = spawn_blocking(move || command.output()).await;
    let ended = ended.expect("no panic").expect("start schemathesis");
    serving.abort();
    let statuses = front.statuses.lock().await;
    let (out, errors) = (
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
    );
    assert!(ended.status.success(), "{statuses:?}\n{out}\n{errors}");
    let count: usize = statuses.values().sum();
    assert!(count >= REQUESTS_MIN, "{statuses:?}\n{out}");
}
