//! An identity provider that says whatever a test wants, over HTTPS.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::{Request, Response, StatusCode, header};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use model::api::{AuthorizationResponse, Secret};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;
use url::{Url, form_urlencoded};

pub(crate) const CLIENT: &str = "ginnel";
pub(crate) const SECRET: &str = "pa:ss word%";
pub(crate) const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// A provider; it lives as long as the process of the tests.
#[derive(Clone)]
pub(crate) struct Provider {
    pub(crate) issuer: String,
    state: Arc<Mutex<State>>,
    clock: Arc<AtomicU64>,
}

/// What the provider says next, for a test to change.
pub(crate) struct State {
    /// Claims of every ID token in place of the right ones.
    pub(crate) claims: Value,
    /// What UserInfo says; 404 if null.
    pub(crate) userinfo: Value,
    /// The whole ID token, if not the one of the claims.
    pub(crate) id_token: Option<String>,
    /// The error that a refresh is answered with.
    pub(crate) refresh_error: Option<&'static str>,
    /// Answers 503 to everything.
    pub(crate) is_down: bool,
    /// Whether a refresh token comes with a session.
    pub(crate) refreshes: bool,
    /// How often a device is told to wait.
    pub(crate) pending: u32,
    /// The issuer that discovery names, if not the own.
    pub(crate) claimed_issuer: Option<String>,
    /// The refresh token that is valid now: each is used once.
    refresh_token: String,
    codes: BTreeMap<String, BTreeMap<String, String>>,
    serial: u32,
    key: (String, EncodingKey),
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

/// Returns the file with the authority that certifies every provider of the tests.
pub(crate) fn ca() -> PathBuf {
    authority().path.clone()
}

impl Provider {
    /// Starts a provider whose clock is `clock`.
    pub(crate) fn new(clock: &Arc<AtomicU64>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("it is bound").port();
        let provider = Self {
            issuer: format!("https://localhost:{port}"),
            state: Arc::new(Mutex::new(State {
                claims: json!({}),
                userinfo: Value::Null,
                id_token: None,
                refresh_error: None,
                is_down: false,
                refreshes: true,
                pending: 0,
                claimed_issuer: None,
                refresh_token: String::new(),
                codes: BTreeMap::new(),
                serial: 0,
                key: new_key("first"),
            })),
            clock: clock.clone(),
        };
        let (acceptor, served) = (acceptor(), provider.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(served.serve(listener, acceptor));
        });
        provider
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds it")
    }

    /// Signs by another key from now on.
    pub(crate) fn rotate(&self, id: &str) {
        self.state().key = new_key(id);
    }

    /// Does what a browser does in which the person signs in.
    pub(crate) fn authorize(&self, url: &str) -> AuthorizationResponse {
        let url = Url::parse(url).expect("a URL");
        let asked: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(asked["response_type"], "code");
        assert_eq!(asked["client_id"], CLIENT);
        assert_eq!(asked["code_challenge_method"], "S256");
        let state = asked["state"].clone();
        let mut own = self.state();
        own.serial += 1;
        let code = format!("code-{}", own.serial);
        own.codes.insert(code.clone(), asked);
        AuthorizationResponse {
            code: Secret::new(code),
            state,
            iss: Some(self.issuer.clone()),
        }
    }

    /// Signs claims by the key of now.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        sign(&self.state().key, claims)
    }

    /// Returns a logout token for a subject.
    pub(crate) fn logout_token(&self, subject: &str) -> String {
        self.sign(&json!({
            "iss": self.issuer, "aud": CLIENT, "iat": self.now(), "exp": self.now() + 60,
            "jti": "1", "sub": subject, "events": { EVENT: {} },
        }))
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    async fn serve(self, listener: std::net::TcpListener, acceptor: TlsAcceptor) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let (acceptor, own) = (acceptor.clone(), self.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let answer = hyper::service::service_fn(move |request| {
                    let own = own.clone();
                    async move { Ok::<_, Infallible>(own.answer(request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                // The client may go away at any time.
                drop(serving.await);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let form: BTreeMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
        if self.state().is_down {
            return reply(StatusCode::SERVICE_UNAVAILABLE, &json!({}));
        }
        let authorization = parts.headers.get(header::AUTHORIZATION);
        let authorization = authorization.map(|value| value.to_str().expect("ASCII"));
        let (status, value) = match parts.uri.path() {
            "/.well-known/openid-configuration" => (StatusCode::OK, self.metadata()),
            "/jwks" => (StatusCode::OK, self.keys()),
            "/userinfo" => {
                assert_eq!(authorization, Some("Bearer access"));
                let found = self.state().userinfo.clone();
                let status = if found.is_null() {
                    StatusCode::NOT_FOUND
                } else {
                    StatusCode::OK
                };
                (status, found)
            }
            "/device" | "/token" => {
                // Both halves are form-encoded (RFC 6749, 2.3.1).
                let right = BASE64.encode(b"ginnel:pa%3Ass+word%25");
                assert_eq!(authorization, Some(format!("Basic {right}").as_str()));
                if parts.uri.path() == "/token" {
                    self.token(&form)
                } else {
                    let url = format!("{}/enter", self.issuer);
                    let device = json!({
                        "device_code": "device", "user_code": "ABCD-EFGH",
                        "verification_uri": url, "expires_in": 300, "interval": 2,
                    });
                    (StatusCode::OK, device)
                }
            }
            _ => (StatusCode::NOT_FOUND, json!({})),
        };
        reply(status, &value)
    }

    fn metadata(&self) -> Value {
        let own = &self.issuer;
        let claimed = self.state().claimed_issuer.clone();
        json!({
            "issuer": claimed.unwrap_or_else(|| own.clone()),
            "authorization_endpoint": format!("{own}/authorize"),
            "token_endpoint": format!("{own}/token"),
            "jwks_uri": format!("{own}/jwks"),
            "userinfo_endpoint": format!("{own}/userinfo"),
            "device_authorization_endpoint": format!("{own}/device"),
            "authorization_response_iss_parameter_supported": true,
        })
    }

    fn keys(&self) -> Value {
        let state = self.state();
        let (id, key) = &state.key;
        let mut public = Jwk::from_encoding_key(key, Algorithm::ES256).expect("a key");
        public.common.key_id = Some(id.clone());
        json!({ "keys": [public, { "kty": "new", "kid": "of a kind nobody knows" }] })
    }

    fn token(&self, form: &BTreeMap<String, String>) -> (StatusCode, Value) {
        let denied = |error: &str| {
            let description = "why\u{1b}[31m";
            (
                StatusCode::BAD_REQUEST,
                json!({ "error": error, "error_description": description }),
            )
        };
        let mut state = self.state();
        let mut nonce = None;
        match form["grant_type"].as_str() {
            "authorization_code" => {
                let Some(asked) = state.codes.remove(&form["code"]) else {
                    return denied("invalid_grant");
                };
                let verifier = form["code_verifier"].as_bytes();
                let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier);
                assert_eq!(
                    asked["code_challenge"],
                    BASE64URL_NOPAD.encode(hash.as_ref())
                );
                assert_eq!(asked["redirect_uri"], form["redirect_uri"]);
                nonce = Some(asked["nonce"].clone());
            }
            "refresh_token" => {
                if let Some(error) = state.refresh_error {
                    return denied(error);
                }
                if form["refresh_token"] != state.refresh_token {
                    return denied("invalid_grant");
                }
            }
            "urn:ietf:params:oauth:grant-type:device_code" => {
                assert_eq!(form["device_code"], "device");
                if state.pending > 0 {
                    state.pending -= 1;
                    return denied("authorization_pending");
                }
            }
            other => panic!("grant type {other}"),
        }
        let mut claims = json!({
            "iss": self.issuer, "sub": "subject-1", "aud": CLIENT, "iat": self.now(),
            "exp": self.now() + 300, "nonce": nonce, "sid": "sid-1",
            "preferred_username": "alice", "groups": ["dev"],
        });
        for (name, value) in state.claims.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        let id_token = state.id_token.clone();
        let id_token = id_token.unwrap_or_else(|| sign(&state.key, &claims));
        let mut tokens = json!({
            "access_token": "access", "token_type": "Bearer", "id_token": id_token,
        });
        if state.refreshes {
            state.serial += 1;
            state.refresh_token = format!("refresh-{}", state.serial);
            tokens["refresh_token"] = json!(state.refresh_token);
        }
        (StatusCode::OK, tokens)
    }
}

fn sign((id, key): &(String, EncodingKey), claims: &Value) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.clone());
    encode(&header, claims, key).expect("a signature")
}

fn new_key(id: &str) -> (String, EncodingKey) {
    let pair = KeyPair::generate().expect("a key on P-256");
    (
        id.to_owned(),
        EncodingKey::from_ec_der(&pair.serialize_der()),
    )
}

fn reply(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(value.to_string())))
        .expect("a well-formed reply")
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ca.pem");
        std::fs::write(&path, issuer.pem()).expect("room for a file");
        Authority {
            issuer,
            path,
            _directory: directory,
        }
    })
}

fn acceptor() -> TlsAcceptor {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let leaf = params
        .signed_by(&key, &authority().issuer)
        .expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let configuration = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .expect("a certificate with its key");
    TlsAcceptor::from(Arc::new(configuration))
}
