//! The web page: HTML over the API, for people with a browser.
//!
//! A page asks the API as a client does, by a request through its router in this process, so that
//! the same rules decide and the same rows stand in the audit. What differs is the credential: a
//! browser is known by a cookie, and an inner request says by an extension, which cannot come from
//! outside, for whom it speaks.

use std::time::Duration;

use axum::{
    Extension, Router,
    body::{Body, Bytes, to_bytes},
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use maud::Markup;
use model::{
    api::{ErrorBody, ErrorCode},
    id::{BrowserId, UserId},
    name::Label,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use url::form_urlencoded;

use super::{
    RequestId,
    error::ApiError,
    permission::{self, Action, Reach, Who},
};
use crate::{
    Server,
    storage::{self, user::User},
};
use layout::Section;

mod audit;
pub(crate) mod cookie;
mod layout;
mod node;
mod peer;
mod policy;
mod sign_in;
mod site;
mod ssh;
mod user;

/// The largest form.
const FORM_BYTES_MAX: usize = 16 * 1024;

/// The largest reply of the API that a page is made of: a page of a list.
const REPLY_BYTES_MAX: usize = 4 << 20;

/// How long a page may take: it asks the API a few times, or an identity provider.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Items of one page of a list.
const ITEMS_MAX: &str = "100";

/// What a browser may load and do (Content Security Policy Level 3): its own scripts and styles,
/// no inline ones, no frames.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// Says inside the process for whom a request speaks.
#[derive(Clone, Copy)]
pub(crate) struct Person(pub(crate) UserId);

/// The router of the API, without its state.
#[derive(Clone)]
struct Api(Router);

/// A signed-in browser's request.
struct Visit {
    server: Server,
    api: Router,
    user: User,
    org: Label,
    browser: BrowserId,
    /// When the browser has to sign in again, in seconds since the Unix epoch.
    expires: i64,
    /// What every form carries.
    proof: String,
}

/// A form that one of our pages gave to this browser.
struct Form(Vec<(String, String)>);

/// Why there is no page.
#[derive(Debug)]
enum Fault {
    /// Nobody has signed in, or does so no more.
    SignedOut,
    /// The API refused.
    Refused(ErrorBody),
    /// The page itself refuses.
    Own(ApiError),
}

/// Returns the routes of the page, which ask `api`.
pub(super) fn routes(server: &Server, api: Router) -> Router<Server> {
    Router::new()
        .route("/", get(async || Redirect::to("/ui")))
        .route("/ui", get(sign_in::home))
        .route("/ui/page.css", get(layout::style))
        .route("/ui/page.js", get(layout::script))
        .route("/ui/qrcode.mjs", get(layout::qr_code))
        .route("/ui/sign-in", get(sign_in::form))
        .route("/ui/sign-in/token", post(sign_in::by_token))
        .route("/ui/sign-in/provider", post(sign_in::by_provider))
        .route(crate::oidc::PAGE_CALLBACK_PATH, get(sign_in::callback))
        .route("/ui/sign-out", post(sign_in::sign_out))
        .route("/ui/nodes", get(node::list).post(node::invite))
        .route("/ui/nodes/{node}", post(node::set))
        .route("/ui/nodes/{node}/approval", post(node::approve))
        .route("/ui/nodes/{node}/expiry", post(node::expire))
        .route("/ui/nodes/{node}/remove", post(node::remove))
        .route("/ui/users", get(user::list).post(user::add))
        .route("/ui/users/{user}", post(user::set))
        .route("/ui/users/{user}/token", post(user::token))
        .route("/ui/users/{user}/remove", post(user::remove))
        .route("/ui/sites", get(site::list).post(site::add))
        .route("/ui/sites/{site}/remove", post(site::remove))
        .route("/ui/policy", get(policy::list).post(policy::add))
        .route("/ui/policy/{rule}/remove", post(policy::remove))
        .route("/ui/peers", get(peer::list).post(peer::add))
        .route("/ui/peers/{peer}/export", post(peer::export))
        .route("/ui/peers/{peer}/remove", post(peer::remove))
        .route("/ui/certificates", get(ssh::list))
        .route("/ui/certificates/{serial}/revoke", post(ssh::revoke))
        .route("/ui/audit", get(audit::list))
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(Extension(Api(api)))
        .layer(middleware::from_fn_with_state(server.clone(), dress))
        .with_state(server.clone())
}

/// Gives every page its headers, and an error its page.
async fn dress(State(server): State<Server>, request: Request, next: Next) -> Response {
    let request_id = request.extensions().get::<RequestId>();
    let request_id = request_id.map_or_else(String::new, |id| id.0.clone());
    let run = async { Ok(timeout(PAGE_TIMEOUT, next.run(request)).await) };
    let answered: Result<_, ApiError> = server.inner.store.while_it_answers(run).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => ApiError::unavailable(None).into_response(),
        Err(error) => error.into_response(),
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = refusal(&error.log(&request_id));
    }
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Writes the page of an error.
fn refusal(error: &ErrorBody) -> Response {
    let status = StatusCode::from_u16(error.code.status()).expect("codes have valid statuses");
    (status, Html(layout::refusal(error).into_string())).into_response()
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Self::SignedOut => Redirect::to("/ui/sign-in").into_response(),
            Self::Refused(error) if error.code == ErrorCode::TokenRequired => {
                Self::SignedOut.into_response()
            }
            Self::Refused(error) => refusal(&error),
            Self::Own(error) => error.into_response(),
        }
    }
}

impl<E: Into<ApiError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Own(error.into())
    }
}

impl FromRequestParts<Server> for Visit {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, Fault> {
        let Some(Api(api)) = parts.extensions.get::<Api>().cloned() else {
            let cause = anyhow::anyhow!("a page has no API to ask");
            return Err(ApiError::internal(cause).into());
        };
        let secret = cookie::value(&parts.headers, cookie::SESSION);
        let secret = secret.ok_or(Fault::SignedOut)?;
        let (hash, now) = (cookie::hash(secret), server.now());
        let mut read = server.inner.store.read().await?;
        let browser = storage::browser::browser_with_hash(&mut read, now, hash).await?;
        let browser = browser.ok_or(Fault::SignedOut)?;
        let user = storage::user::user(&mut read, browser.user).await?;
        let user = user.filter(|user| user.removed.is_none());
        let user = user.ok_or(Fault::SignedOut)?;
        let org = storage::org::org(&mut read, user.org).await?;
        Ok(Self {
            server: server.clone(),
            api,
            org: org.ok_or(Fault::SignedOut)?.name,
            user,
            browser: browser.id,
            expires: browser.expires,
            proof: cookie::proof(secret),
        })
    }
}

impl FromRequest<Server> for Form {
    type Rejection = Fault;

    async fn from_request(request: Request, server: &Server) -> Result<Self, Fault> {
        let secret = secret(request.headers()).map(str::to_owned);
        let body = Bytes::from_request(request, server).await;
        let body = body.map_err(|rejection| {
            let code = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
                _ => ErrorCode::MalformedRequest,
            };
            ApiError::new(code, rejection.body_text())
        })?;
        let form = Self(form_urlencoded::parse(&body).into_owned().collect());
        let proof = form.text("proof");
        if secret.is_some_and(|secret| cookie::is_proof(&secret, proof)) {
            return Ok(form);
        }
        let message = "the form is not one that this page gave to your browser, or it is too old: \
                       go back, load the page again and repeat";
        Err(ApiError::new(ErrorCode::NotPermitted, message).into())
    }
}

/// Returns what the forms of a browser are proved by.
fn secret(headers: &HeaderMap) -> Option<&str> {
    cookie::value(headers, cookie::SESSION).or_else(|| cookie::value(headers, cookie::VISITOR))
}

impl Form {
    /// Returns a field without the blanks around it; an absent one is empty.
    fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map_or("", |(_, value)| value.trim())
    }

    /// Returns a field that has something in it.
    fn some(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    /// Tells whether the form has a field, empty or not.
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    /// Returns the seconds of a field that counts days; `None` when it is empty.
    fn days(&self, name: &str) -> Result<Option<u64>, Fault> {
        let days = self.some(name).map(str::parse::<u64>).transpose();
        let days = days.map_err(|_| {
            let message = format!("`{name}` is a whole number, or empty");
            ApiError::new(ErrorCode::MalformedRequest, message)
        })?;
        Ok(days.map(|days| days.saturating_mul(24 * 60 * 60)))
    }

    /// Returns the items of a field, which blanks or commas separate.
    fn items(&self, name: &str) -> Vec<&str> {
        let items = self.text(name).split([',', ' ', '\t', '\r', '\n']);
        items.filter(|item| !item.is_empty()).collect()
    }
}

impl Visit {
    /// Reads from the API.
    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Fault> {
        let path = format!("{path}?{}", self::query(query));
        let body = self.ask(Method::GET, &path, Body::empty()).await?;
        let read = serde_json::from_slice(&body);
        read.map_err(|error| ApiError::internal(error.into()).into())
    }

    /// Has the API change something, and reads its reply.
    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Fault> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::internal(error.into()))?;
        let body = self.ask(method, path, Body::from(body)).await?;
        let read = serde_json::from_slice(&body);
        read.map_err(|error| ApiError::internal(error.into()).into())
    }

    /// Has the API remove something.
    async fn delete(&self, path: &str) -> Result<(), Fault> {
        self.ask(Method::DELETE, path, Body::empty()).await?;
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: Body) -> Result<Bytes, Fault> {
        let internal = |error: anyhow::Error| Fault::from(ApiError::internal(error));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .extension(Person(self.user.id))
            .body(body)
            .map_err(|_| {
                let message = "the page was asked for with more than fits a request";
                ApiError::new(ErrorCode::MalformedRequest, message)
            })?;
        let answered = TowerToHyperService::new(self.api.clone()).call(request);
        let response = match answered.await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        let body = to_bytes(response.into_body(), REPLY_BYTES_MAX).await;
        let body = body.map_err(|error| internal(error.into()))?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(error) => Err(Fault::Refused(error)),
            Err(error) => Err(internal(error.into())),
        }
    }

    /// Tells whether the API lets this person do something at all.
    fn may(&self, action: Action) -> bool {
        let who = Who::of(None, None, Some(&self.user));
        permission::reach(action, who) != Reach::Nothing
    }

    /// Writes a page.
    fn page(&self, section: Section, main: &Markup) -> Response {
        Html(layout::page(self, section, main).into_string()).into_response()
    }
}

/// Writes a query; what is empty is left out.
fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        text.append_pair(name, value);
    }
    text.finish()
}

/// Leads a browser to a page after a change.
fn then(path: &str) -> Response {
    Redirect::to(path).into_response()
}
