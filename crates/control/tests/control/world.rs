//! A server of its own for each test, with a clock and a chance that the test controls.

use std::{
    collections::VecDeque,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
    response::Response,
};
use control::{CertificateSource, Config, Database, Random, Server};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use model::{
    api::{
        CreatedToken, CreatedUser, EnrolRequest, Enrolled, ErrorBody, ErrorCode, GatewayEnrolled,
        GatewayRequest, LoggedIn, NewOrg, NewToken, NewUser,
    },
    key::PublicKey,
    name::Label,
    policy::Role,
    token::{Kind, Token},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// A server, its directory and its clock.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) data: TempDir,
    database: Database,
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) random: Arc<Chance>,
}

/// Seeded randomness that can be made to repeat itself.
pub(crate) struct Chance {
    state: AtomicU64,
    /// While set, every draw gives these bytes over and over.
    pub(crate) stuck: Mutex<Option<u8>>,
    /// Each of the next draws gives one of these over and over.
    pub(crate) script: Mutex<VecDeque<u8>>,
}

/// A reply: its status and its body.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
}

/// 2026-01-01, when every world begins.
pub(crate) const BEGIN: u64 = 1_767_225_600;

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

impl World {
    pub(crate) async fn new() -> Self {
        Self::seeded(1).await
    }

    /// A world whose database is a file, whatever `CONTROL_POSTGRES` says.
    pub(crate) async fn in_file() -> Self {
        Self::on(Database::File, 1).await
    }

    pub(crate) async fn seeded(seed: u64) -> Self {
        Self::on(fresh_database().await, seed).await
    }

    async fn on(database: Database, seed: u64) -> Self {
        record_log();
        let data = tempfile::tempdir().expect("a temporary directory");
        let clock = Arc::new(AtomicU64::new(BEGIN));
        let random = Arc::new(Chance {
            state: AtomicU64::new(seed),
            stuck: Mutex::new(None),
            script: Mutex::new(VecDeque::new()),
        });
        let config = config(data.path(), &database, &clock, &random);
        let server = Server::open(config).await.expect("a new server opens");
        Self {
            server,
            data,
            database,
            clock,
            random,
        }
    }

    /// Ends the server and opens it again on the same directory.
    pub(crate) async fn restart(&mut self) {
        self.server.close().await;
        self.server = Server::open(self.config())
            .await
            .expect("the server opens again");
    }

    /// Opens another server on the same database, with a copy of the keys.
    pub(crate) async fn beside(&self) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        for name in ["ca.key", "ca.pem", "master.key"] {
            let copied = std::fs::copy(self.data.path().join(name), data.path().join(name));
            copied.expect("the first server has made it");
        }
        let (clock, random) = (self.clock.clone(), self.random.clone());
        let config = config(data.path(), &self.database, &clock, &random);
        let server = Server::open(config).await.expect("a further server opens");
        Self {
            server,
            data,
            database: self.database.clone(),
            clock,
            random,
        }
    }

    /// Returns the URL of its database.
    pub(crate) fn url(&self) -> String {
        match &self.database {
            Database::File => {
                let path = self.data.path().join("ginnel.db");
                format!("sqlite://{}", path.display())
            }
            Database::Postgres(url) => url.to_string(),
        }
    }

    pub(crate) fn config(&self) -> Config {
        config(self.data.path(), &self.database, &self.clock, &self.random)
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Signs the administrator in and returns the session.
    pub(crate) async fn login(&self) -> LoggedIn {
        let token = self
            .server
            .admin_token()
            .await
            .expect("a login token")
            .token;
        let reply = self
            .post("/v1/login", &token, &enrol_request("laptop", 200))
            .await;
        reply.parse()
    }

    /// Makes a token by the session of `admin`.
    pub(crate) async fn token(&self, admin: &Token, kind: Kind, org: Option<&str>) -> Token {
        self.token_with(admin, kind, org, 1, 3600).await.token
    }

    pub(crate) async fn token_with(
        &self,
        admin: &Token,
        kind: Kind,
        org: Option<&str>,
        uses_max: u32,
        ttl_seconds: u64,
    ) -> CreatedToken {
        let request = NewToken {
            kind,
            org: org.map(label),
            user: None,
            uses_max: Some(uses_max),
            ttl_seconds: Some(ttl_seconds),
            approval: false,
        };
        let reply = self.post("/v1/tokens", admin, &request).await;
        reply.parse()
    }

    /// Joins a machine by a token made for it.
    pub(crate) async fn join(
        &self,
        admin: &Token,
        org: Option<&str>,
        name: &str,
        key: u8,
    ) -> Enrolled {
        let token = self.token(admin, Kind::Join, org).await;
        let reply = self
            .post("/v1/join", &token, &enrol_request(name, key))
            .await;
        reply.parse()
    }

    /// Invites a person by the session of `admin`.
    pub(crate) async fn invite(
        &self,
        admin: &Token,
        org: Option<&str>,
        name: &str,
        role: Role,
    ) -> CreatedUser {
        let request = NewUser {
            org: org.map(label),
            name: label(name),
            role,
            ttl_seconds: None,
        };
        self.post("/v1/users", admin, &request).await.parse()
    }

    /// Invites a person and signs her in on a device that has her name.
    pub(crate) async fn person(
        &self,
        admin: &Token,
        org: Option<&str>,
        name: &str,
        role: Role,
        key: u8,
    ) -> LoggedIn {
        let invited = self.invite(admin, org, name, role).await;
        let request = enrol_request(name, key);
        self.post("/v1/login", &invited.token, &request)
            .await
            .parse()
    }

    pub(crate) async fn put(&self, path: &str, token: &Token, body: &impl Serialize) -> Reply {
        let body = serde_json::to_string(body).expect("plain data");
        self.request(Method::PUT, path, Some(&token.emit()), Some(body))
            .await
    }

    pub(crate) async fn patch(&self, path: &str, token: &Token, body: &impl Serialize) -> Reply {
        let body = serde_json::to_string(body).expect("plain data");
        self.request(Method::PATCH, path, Some(&token.emit()), Some(body))
            .await
    }

    pub(crate) async fn gateway(&self, admin: &Token, name: &str, key: u8) -> GatewayEnrolled {
        let token = self.token(admin, Kind::Gateway, None).await;
        let request = GatewayRequest {
            name: label(name),
            public_key: PublicKey([key; 32]),
            endpoint: format!("{name}.example:51820"),
        };
        self.post("/v1/gateways", &token, &request).await.parse()
    }

    pub(crate) async fn add_org(&self, admin: &Token, name: &str) {
        let reply = self
            .post("/v1/orgs", admin, &NewOrg { name: label(name) })
            .await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    }

    pub(crate) async fn get(&self, path: &str, token: &Token) -> Reply {
        get_of(&self.server, path, token).await
    }

    pub(crate) async fn delete(&self, path: &str, token: &Token) -> Reply {
        self.request(Method::DELETE, path, Some(token.emit().as_str()), None)
            .await
    }

    pub(crate) async fn post(&self, path: &str, token: &Token, body: &impl Serialize) -> Reply {
        post_to(&self.server, path, token, body).await
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: Option<String>,
    ) -> Reply {
        ask(&self.server, method, path, bearer, body).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        send_to(&self.server, request).await
    }

    /// Returns a reply whose body may still come.
    pub(crate) async fn call(&self, request: Request<Body>) -> Response {
        call(&self.server, request).await
    }
}

/// Asks a server that is on its own.
pub(crate) async fn get_of(server: &Server, path: &str, token: &Token) -> Reply {
    ask(server, Method::GET, path, Some(token.emit().as_str()), None).await
}

pub(crate) async fn post_to(
    server: &Server,
    path: &str,
    token: &Token,
    body: &impl Serialize,
) -> Reply {
    let body = serde_json::to_string(body).expect("plain data");
    let bearer = token.emit();
    ask(server, Method::POST, path, Some(&bearer), Some(body)).await
}

async fn ask(
    server: &Server,
    method: Method,
    path: &str,
    bearer: Option<&str>,
    body: Option<String>,
) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(bearer) = bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Body::from(body.unwrap_or_default());
    let request = request.body(body).expect("a well-formed request");
    send_to(server, request).await
}

async fn send_to(server: &Server, request: Request<Body>) -> Reply {
    let response = call(server, request).await;
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body");
    let body = body.to_bytes().to_vec();
    Reply { status, body }
}

async fn call(server: &Server, request: Request<Body>) -> Response {
    let router = TowerToHyperService::new(server.router());
    router.call(request).await.expect("a router always answers")
}

impl Reply {
    #[track_caller]
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> T {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
        serde_json::from_slice(&self.body).expect("a reply of the type")
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        self.parse()
    }

    #[track_caller]
    pub(crate) fn refused(&self) -> (u16, ErrorCode, String) {
        assert!(
            !self.status.is_success(),
            "{}: {}",
            self.status,
            self.text()
        );
        let body: ErrorBody = serde_json::from_slice(&self.body).expect("an error body");
        (self.status.as_u16(), body.code, body.message)
    }

    /// Asserts that the request was refused for this reason.
    #[track_caller]
    pub(crate) fn is(&self, code: ErrorCode) {
        let (status, found, message) = self.refused();
        assert_eq!((status, found), (code.status(), code), "{message}");
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Random for Chance {
    fn fill(&self, bytes: &mut [u8]) {
        let mut script = self.script.lock().expect("no test panics while it draws");
        if let Some(byte) = script.pop_front() {
            bytes.fill(byte);
            return;
        }
        if let Some(byte) = *self.stuck.lock().expect("no test panics while it draws") {
            bytes.fill(byte);
            return;
        }
        for byte in bytes {
            // SplitMix64 (Steele, Lea, Flood 2014), one byte a step.
            let step = 0x9e37_79b9_7f4a_7c15;
            let state = self.state.fetch_add(step, Ordering::Relaxed);
            let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (state ^ (state >> 31)).to_be_bytes()[0];
        }
    }
}

pub(crate) fn label(text: &str) -> Label {
    text.parse().expect("a well-formed label")
}

pub(crate) fn enrol_request(name: &str, key: u8) -> EnrolRequest {
    EnrolRequest {
        name: label(name),
        public_key: PublicKey([key; 32]),
    }
}

/// Returns everything that was logged so far by any test of this program, at TRACE.
pub(crate) fn log() -> String {
    String::from_utf8_lossy(&LOG.lock().expect("a writer does not panic")).into_owned()
}

/// Returns a new database of the PostgreSQL that `CONTROL_POSTGRES` names by a URL, or a file.
pub(crate) async fn fresh_database() -> Database {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Ok(url) = std::env::var("CONTROL_POSTGRES") else {
        return Database::File;
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("world_{}_{count}", std::process::id());
    let mut connection = PgConnection::connect(&url)
        .await
        .expect("PostgreSQL answers");
    let statement = format!("CREATE DATABASE {name} STRATEGY = FILE_COPY");
    let made = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection);
    made.await.expect("a superuser makes databases");
    connection.close().await.expect("it closes");
    let (path, parameters) = url.split_once('?').unwrap_or((&url, ""));
    let path = path.trim_end_matches('/');
    Database::Postgres(Zeroizing::new(format!("{path}/{name}?{parameters}")))
}

fn config(
    data: &Path,
    database: &Database,
    clock: &Arc<AtomicU64>,
    random: &Arc<Chance>,
) -> Config {
    let clock = clock.clone();
    Config {
        data: data.to_owned(),
        database: database.clone(),
        public: "vpn.example:443".to_owned(),
        certificate: CertificateSource::Own,
        provider_ca: Some(crate::provider::ca()),
        revalidation: control::REVALIDATION_INTERVAL,
        wall: Arc::new(move || now(&clock)),
        random: random.clone(),
    }
}

fn now(clock: &AtomicU64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed))
}

fn record_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(|| Recorder)
            .init();
    });
}

struct Recorder;

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock()
            .expect("a writer does not panic")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
