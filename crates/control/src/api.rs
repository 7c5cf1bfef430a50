//! The API under `/v1`: one file per noun, one permission decision, one form of error.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use model::{
    api::{CAPTURE_BLOCKS_BYTES_MAX, ErrorCode, MAP_WAIT_SECONDS_MAX, PAGE_ITEMS_MAX, Page},
    name::Label,
    token::Token,
};
use tokio::time::{sleep_until, timeout};
use utoipa::OpenApi as _;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt as _},
    routes,
};

use crate::{
    Server,
    storage::{self, org::Org},
};
use error::ApiError;
use permission::{Access, Action};

mod audit;
mod capture;
mod enrol;
pub(crate) mod error;
mod extract;
mod health;
mod map;
mod node;
mod oidc;
mod org;
mod page;
mod peer;
pub(crate) mod permission;
mod policy;
mod service;
mod session;
mod site;
pub(crate) mod ssh;
mod token;
mod user;

/// The largest request body, apart from a piece of a record; the largest request is a service with
/// its target.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// How long a request may take, apart from waiting for a map.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "ginnel",
    description = "The control plane of a private network. Requests carry a token as \
                   `Authorization: Bearer TOKEN`; errors carry a stable `code`.",
    license(name = "Apache-2.0 OR MIT")
))]
struct Description;

/// The description of the API, for `GET /v1/openapi.json`.
#[derive(Clone)]
struct Described(std::sync::Arc<str>);

/// Builds the router of every route of the API, and of the web page, which asks the API.
pub(crate) fn router(server: Server) -> Router {
    let (router, description) = routes().split_for_parts();
    let description = serde_json::to_string(&description).expect("a description is plain data");
    let api = router
        .route_layer(middleware::from_fn_with_state(server.clone(), authorise))
        .fallback(async || ApiError::not_found())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(Extension(Described(description.into())))
        .layer(middleware::from_fn_with_state(server.clone(), finish))
        .with_state(server.clone());
    let pages = page::routes(&server, api.clone())
        .layer(middleware::from_fn_with_state(server.clone(), finish))
        .with_state(server);
    api.merge(pages)
}

/// Returns every route with its description; none answers before its rule lets it.
fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(health::health))
        .routes(routes!(health::description))
        .routes(routes!(user::whoami))
        .routes(routes!(user::list, user::add))
        .routes(routes!(user::show, user::set, user::remove))
        .routes(routes!(enrol::join))
        .routes(routes!(enrol::login))
        .routes(routes!(enrol::gateway))
        .routes(routes!(enrol::logout))
        .routes(routes!(map::map))
        .routes(routes!(map::node_by_key))
        .routes(routes!(map::report_tunnels).layer(DefaultBodyLimit::max(map::REPORT_BYTES_MAX)))
        .routes(routes!(org::list, org::add))
        .routes(routes!(org::show, org::remove))
        .routes(routes!(node::list))
        .routes(routes!(node::show, node::set, node::remove))
        .routes(routes!(node::approve))
        .routes(routes!(node::expire))
        .routes(routes!(node::replace_key))
        .routes(routes!(token::list, token::add))
        .routes(routes!(token::show, token::remove))
        .routes(routes!(service::list, service::add))
        .routes(routes!(service::show, service::remove))
        .routes(routes!(peer::list, peer::add))
        .routes(routes!(peer::show, peer::remove))
        .routes(routes!(peer::export))
        .routes(routes!(site::list, site::add))
        .routes(routes!(site::show, site::set, site::remove))
        .routes(routes!(site::report))
        .routes(routes!(policy::list, policy::add))
        .routes(routes!(policy::show, policy::set, policy::remove))
        .routes(routes!(policy::answer))
        .routes(routes!(ssh::user_certificate))
        .routes(routes!(ssh::host_certificate))
        .routes(routes!(ssh::certificates))
        .routes(routes!(ssh::authority))
        .routes(routes!(ssh::rotate))
        .routes(routes!(ssh::revoke))
        .routes(routes!(ssh::record))
        .routes(routes!(ssh::refusal))
        .routes(routes!(session::list, session::begin))
        .routes(routes!(session::show, session::remove))
        .routes(
            routes!(session::read, session::append)
                .layer(DefaultBodyLimit::max(session::BODY_BYTES_MAX)),
        )
        .routes(routes!(session::end))
        .routes(routes!(capture::begin))
        .routes(routes!(capture::begin_with_keys))
        .routes(routes!(capture::send).layer(DefaultBodyLimit::max(CAPTURE_BLOCKS_BYTES_MAX)))
        .routes(routes!(capture::end))
        .routes(routes!(oidc::provider, oidc::set, oidc::remove))
        .routes(routes!(oidc::begin))
        .routes(routes!(oidc::sign_in))
        .routes(routes!(oidc::back_channel_logout))
        .routes(routes!(audit::list))
        .routes(routes!(audit::chain))
}

/// Finds the request in the log, and from a certificate back to it.
#[derive(Clone, Debug)]
struct RequestId(String);

/// Gives the request its id, and an error its body and its log.
async fn finish(State(server): State<Server>, mut request: Request, next: Next) -> Response {
    let number = server.inner.requests.fetch_add(1, Ordering::Relaxed);
    let request_id = format!("{:08x}-{number}", server.inner.run);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    request
        .extensions_mut()
        .insert(RequestId(request_id.clone()));
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = error.respond(&request_id);
    }
    tracing::debug!(request_id, %method, path, status = response.status().as_u16(), "answered");
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", value);
    }
    // Replies carry tokens and maps: no cache may keep them.
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Finds the route's rule and the asker, and lets the request in or not.
async fn authorise(
    State(server): State<Server>,
    path: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(action) = permission::action(request.method(), path.as_str()) else {
        let message = "this path does not take the method";
        return ApiError::new(ErrorCode::MethodNotAllowed, message).into_response();
    };
    let person = request.extensions().get::<page::Person>().copied();
    let store = &server.inner.store;
    if action == Action::ReadMap
        && let Some(mut deadline) = map::deadline(&request)
    {
        // Nodes hear as soon as the database answers again, and none asks again until then.
        if store.is_silent() {
            tokio::select! {
                () = store.answers() => {}
                () = sleep_until(deadline.0) => {}
            }
            deadline = map::Deadline::now();
        }
        request.extensions_mut().insert(deadline);
    }
    // Boxed, as what runs below, so that a node that waits for its map does not hold the room of
    // every stage.
    let access = Box::pin(authenticate(&server, action, person, request.headers()));
    let access = match store.while_it_answers(access).await {
        Ok(access) => access,
        Err(error) => return error.into_response(),
    };
    request.extensions_mut().insert(access);
    // A change that has begun runs to its end and is published, though the client may be gone,
    // unless the database falls silent: then it is undone, as long as that did not hear its end.
    let is_change = request.method() != Method::GET;
    let owner = server.clone();
    let run = async {
        if action == Action::ReadMap {
            return next.run(request).await;
        }
        let Ok(_permit) = server.inner.busy.acquire().await else {
            return ApiError::unavailable(None).into_response();
        };
        if !is_change {
            return next.run(request).await;
        }
        let change = async move {
            let change = async { Ok::<_, ApiError>(next.run(request).await) };
            owner.inner.store.while_it_answers(change).await
        };
        match tokio::spawn(change).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => error.into_response(),
            Err(error) => ApiError::internal(error.into()).into_response(),
        }
    };
    let time_max = if action == Action::ReadMap {
        REQUEST_TIMEOUT + Duration::from_secs(MAP_WAIT_SECONDS_MAX)
    } else {
        REQUEST_TIMEOUT
    };
    let run = Box::pin(async { Ok(timeout(time_max, run).await) });
    // Whoever waits for a map goes on waiting.
    let answered: Result<_, ApiError> = if action == Action::ReadMap {
        run.await
    } else {
        store.while_it_answers(run).await
    };
    match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => ApiError::unavailable(None).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Reads who makes a request and decides by the rule of its route.
async fn authenticate(
    server: &Server,
    action: Action,
    person: Option<page::Person>,
    headers: &HeaderMap,
) -> Result<Access, ApiError> {
    if let Some(person) = person {
        let mut read = server.inner.store.read().await?;
        let user = storage::user::user(&mut read, person.0).await?;
        let user = user.filter(|user| user.removed.is_none());
        return Access::new(action, None, None, user);
    }
    let Some(text) = headers.get(header::AUTHORIZATION) else {
        return Access::new(action, None, None, None);
    };
    let malformed = |message: &str| ApiError::new(ErrorCode::TokenUnknown, message);
    let token: Token = text
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Bearer "))
        .ok_or_else(|| malformed("the `Authorization` header has the form `Bearer TOKEN`"))?
        .parse()
        .map_err(|error: model::token::MalformedToken| malformed(&error.to_string()))?;
    let mut read = server.inner.store.read().await?;
    let (row, node) = identify(&mut read, &token, action, server.now()).await?;
    let user = person_of(&mut read, &row).await?;
    Access::new(action, Some(row), node, user)
}

/// Returns the row and the node of a token that is valid now, for one who would do `action`.
pub(crate) async fn identify(
    connection: &mut storage::Connection,
    token: &Token,
    action: Action,
    now: i64,
) -> Result<(storage::token::Token, Option<storage::node::Node>), ApiError> {
    let row = storage::token::token_with_hash(connection, crate::secret::hash(token))
        .await?
        .filter(|row| row.kind == token.kind())
        .ok_or_else(|| {
            ApiError::new(
                ErrorCode::TokenUnknown,
                "this server does not know the token; it may be of another server",
            )
        })?;
    let node = usable_node(connection, &row, action, now).await?;
    Ok((row, node))
}

/// Returns the node of a token that can be used now for `action`.
async fn usable_node(
    connection: &mut storage::Connection,
    row: &storage::token::Token,
    action: Action,
    now: i64,
) -> Result<Option<storage::node::Node>, ApiError> {
    let node = match row.node {
        Some(id) => storage::node::node(connection, id).await?,
        None => None,
    };
    if node.as_ref().is_some_and(|node| node.removed.is_some()) {
        let message = "this node was removed from the network";
        return Err(ApiError::new(ErrorCode::NodeRemoved, message));
    }
    usable(row, now)?;
    if let Some(node) = &node {
        permission::admits(action, node.state_at(now))?;
    }
    Ok(node)
}

/// Returns the person of a token, unless she was removed.
async fn person_of(
    connection: &mut storage::Connection,
    row: &storage::token::Token,
) -> Result<Option<storage::user::User>, ApiError> {
    let user = match row.user {
        Some(user) => storage::user::user(connection, user).await?,
        None => None,
    };
    Ok(user.filter(|user| user.removed.is_none()))
}

/// Says why a token cannot be used now.
pub(crate) fn usable(row: &storage::token::Token, now: i64) -> Result<(), ApiError> {
    let refuse = |code, message: &str| Err(ApiError::new(code, message));
    if row.revoked.is_some() {
        return refuse(ErrorCode::TokenRevoked, "the token was revoked");
    }
    if row.uses_max.is_some_and(|uses_max| row.uses >= uses_max) {
        return refuse(
            ErrorCode::TokenUsed,
            "the token has been used as often as it may",
        );
    }
    if row.expires.is_some_and(|expires| expires <= now) {
        return refuse(ErrorCode::TokenExpired, "the token has expired");
    }
    Ok(())
}

/// Returns the organisation of a name, if the asker may know it.
async fn org_named(
    connection: &mut storage::Connection,
    access: &Access,
    name: &Label,
) -> Result<Org, ApiError> {
    let org = storage::org::org_named(connection, name).await?;
    let org = org.ok_or_else(|| {
        ApiError::new(
            ErrorCode::NotFound,
            format!("there is no organisation `{name}`"),
        )
    })?;
    access.visible_org(Some(org.id)).map_err(|_| {
        ApiError::new(
            ErrorCode::NotFound,
            format!("there is no organisation `{name}`"),
        )
    })?;
    Ok(org)
}

/// Returns the organisation that a request names, else the asker's own.
async fn org_or_own(
    connection: &mut storage::Connection,
    access: &Access,
    name: Option<&Label>,
) -> Result<Org, ApiError> {
    if let Some(name) = name {
        return org_named(connection, access, name).await;
    }
    let own = access.org().ok_or_else(ApiError::not_found)?;
    let org = storage::org::org(connection, own).await?;
    org.ok_or_else(ApiError::not_found)
}

/// Returns the organisation that limits a list; `None` is all.
async fn org_of_list(
    connection: &mut storage::Connection,
    access: &Access,
    asked: Option<&Label>,
) -> Result<Option<storage::OrgId>, ApiError> {
    match asked {
        Some(name) => Ok(Some(org_named(connection, access, name).await?.id)),
        None => access.visible_org(None),
    }
}

/// Returns how many rows to read for a page: one more than it holds tells whether it is the last.
fn rows_of_page(limit: Option<u32>) -> u32 {
    limit.unwrap_or(PAGE_ITEMS_MAX).clamp(1, PAGE_ITEMS_MAX) + 1
}

/// Makes a page of rows that were read by [`rows_of_page`].
fn page<T>(mut items: Vec<T>, limit: Option<u32>, id: impl Fn(&T) -> i64) -> Page<T> {
    let items_max = usize::try_from(rows_of_page(limit) - 1).expect("a page fits in memory");
    let more = items.len() > items_max;
    items.truncate(items_max);
    let next = items.last().filter(|_| more).map(id);
    Page { items, next }
}

/// Parses `HOST:PORT`, whose host is a name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn parse_endpoint(text: &str) -> Result<&str, ApiError> {
    let refuse = || {
        ApiError::new(
            ErrorCode::MalformedRequest,
            "an endpoint has the form HOST:PORT, with an IPv6 address in brackets",
        )
    };
    if text.len() > model::api::ENDPOINT_LENGTH_MAX {
        return Err(refuse());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
        None => host.split('.').all(|label| label.parse::<Label>().is_ok()),
    };
    if is_port && is_host {
        Ok(text)
    } else {
        Err(refuse())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_has_a_rule_and_every_rule_a_route() {
        let description = serde_json::to_value(routes().into_openapi()).expect("plain data");
        let paths = description["paths"]
            .as_object()
            .expect("an object of paths");
        let routes: BTreeSet<String> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("an object of methods").keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let rules: BTreeSet<String> = permission::RULES
            .iter()
            .map(|rule| format!("{} {}", rule.method, rule.path))
            .collect();
        assert_eq!(routes, rules);
        assert_eq!(rules.len(), permission::RULES.len(), "a rule stands twice");
    }

    #[test]
    fn an_endpoint_is_host_and_port() {
        for text in [
            "a.example:1",
            "10.0.0.1:65535",
            "[::1]:443",
            "localhost:8443",
        ] {
            assert!(parse_endpoint(text).is_ok(), "{text}");
        }
        let long = format!("{}:1", "a.".repeat(200));
        for text in [
            "", ":", "a", "a:", ":1", "a:0", "a:65536", "::1:443", "[::1]", "[::1:443", "a b:1",
            "$(id):1", "a/b:1", "user@a:1", &long,
        ] {
            assert!(parse_endpoint(text).is_err(), "{text}");
        }
    }
}
