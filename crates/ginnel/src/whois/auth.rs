//! `/auth`: may the client of this connection in, and who is she? As nginx's `auth_request` asks.
//!
//! ```text
//!   person ── tunnel ── node ── 127.0.0.1 ── nginx ── the application, told X-Ginnel-User
//!                         ▲                    │
//!                         └── ginnel whois ◄── GET /auth?address=..&port=..: 200, 401, 403
//! ```
//! Nothing that the client sent is looked at: nginx says in the query between which ends the
//! connection stands.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use http_body_util::Full;
use hyper::{
    Method, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, HeaderName, HeaderValue, WWW_AUTHENTICATE},
};
use model::{policy::Role, whois::Whois};
use tokio::net::TcpListener;

use super::TIMEOUT;
use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Request, Sought},
    },
    local_http::{self, plain, set},
};

/// What a web server wants to know.
#[derive(Debug)]
struct Question {
    sought: Sought,
    /// Who may in; everybody if empty.
    roles: Vec<Role>,
}

/// Most parameters of a query: each once, and each role.
const PARAMETERS_MAX: usize = 4 + Role::ALL.len();

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, client: Client) -> Infallible {
    let answer = move |request: hyper::Request<Incoming>| {
        let client = client.clone();
        async move { answer(&client, &request).await }
    };
    local_http::serve(listener, answer).await
}

async fn answer(client: &Client, request: &hyper::Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = match (request.uri().path(), request.method()) {
        ("/auth", &Method::GET | &Method::HEAD) => {
            let query = request.uri().query().unwrap_or_default();
            auth(client, query).await
        }
        ("/auth", _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            set(&mut response, ALLOW, "GET, HEAD");
            response
        }
        (_, _) => plain(StatusCode::NOT_FOUND, "see /auth\n"),
    };
    set(&mut response, CACHE_CONTROL, "no-store");
    response
}

async fn auth(client: &Client, query: &str) -> Response<Full<Bytes>> {
    const USAGE: &str = "/auth?address=..&port=..&server_address=..&server_port=..[&role=..]\n";
    let Some(question) = question(query) else {
        return plain(StatusCode::BAD_REQUEST, USAGE);
    };
    // A node that does not run publishes nothing, and `ginnel up` shall find the place free.
    let request = Request::Whois(question.sought);
    match client.ask_if_running(&request, TIMEOUT).await {
        Ok(Some((Answer::Whois(found), _))) => verdict(found, &question.roles),
        Ok(Some((answer, _))) => unanswered(&client::unexpected(&answer)),
        Ok(None) => unanswered(&anyhow::anyhow!("local agent: none runs")),
        Err(error) => unanswered(&error),
    }
}

fn unanswered(error: &anyhow::Error) -> Response<Full<Bytes>> {
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n"))
}

/// Parses a query; `None` when anything lacks, is there twice, or is unknown.
fn question(query: &str) -> Option<Question> {
    let mut once = BTreeMap::new();
    let mut roles = Vec::new();
    for (count, (name, value)) in url::form_urlencoded::parse(query.as_bytes()).enumerate() {
        if count == PARAMETERS_MAX {
            return None;
        }
        if name == "role" {
            roles.push(value.parse().ok()?);
        } else if once.insert(name, value).is_some() {
            return None;
        }
    }
    let mut end = |address, port| {
        let address = once.remove(address)?.parse::<IpAddr>().ok()?;
        let port = once.remove(port)?.parse().ok()?;
        Some(SocketAddr::new(address, port))
    };
    let client = end("address", "port")?;
    let server = end("server_address", "server_port")?;
    let sought = Sought::Connection { client, server };
    once.is_empty().then_some(Question { sought, roles })
}

/// Lets people in who have one of `roles`, and says who they are.
fn verdict(found: Option<Whois>, roles: &[Role]) -> Response<Full<Bytes>> {
    let Some(found) = found else {
        let text = "nobody of the organisation has that address or connection\n";
        let mut response = plain(StatusCode::UNAUTHORIZED, text);
        // A 401 has a challenge (RFC 9110, 15.5.2); nobody can answer this one but by a tunnel.
        set(&mut response, WWW_AUTHENTICATE, "Ginnel");
        return response;
    };
    let (Some(user), Some(role)) = (&found.user, found.role) else {
        return plain(StatusCode::FORBIDDEN, "no person's device\n");
    };
    if !roles.is_empty() && !roles.contains(&role) {
        return plain(StatusCode::FORBIDDEN, "not with this role\n");
    }
    let mut response = plain(StatusCode::OK, "");
    for (name, value) in [
        ("x-ginnel-user", user.as_str()),
        ("x-ginnel-role", role.name()),
        ("x-ginnel-node", found.node.as_str()),
        ("x-ginnel-org", found.org.as_str()),
    ] {
        let value = HeaderValue::from_str(value).expect("labels and roles are ASCII");
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: &str = "address=fd00::7&port=40000&server_address=::1&server_port=80";

    #[test]
    fn a_question_names_both_ends_and_roles() {
        let asked = question(&format!("{ENDS}&role=admin&role=developer")).unwrap();
        assert_eq!(asked.roles, [Role::Admin, Role::Developer]);
        let Sought::Connection { client, server } = asked.sought else {
            panic!("{asked:?}");
        };
        assert_eq!(client, "[fd00::7]:40000".parse().unwrap());
        assert_eq!(server, "[::1]:80".parse().unwrap());
        let escaped = question(&ENDS.replace(':', "%3A")).unwrap();
        assert!(escaped.roles.is_empty());
    }

    #[test]
    fn what_lacks_repeats_or_means_nothing_is_no_question() {
        let many = "&role=admin".repeat(4);
        for query in [
            "",
            "address=fd00::7",
            "address=fd00::7&port=40000&server_address=::1",
            "address=fd00::7&port=40000&server_address=::1&server_port=",
            "address=unix:&port=0&server_address=unix:&server_port=0",
            "address=db&port=40000&server_address=::1&server_port=80",
            "address=fd00::7&port=65536&server_address=::1&server_port=80",
            &format!("{ENDS}&address=fd00::8"),
            &format!("{ENDS}&port=1"),
            &format!("{ENDS}&role=root"),
            &format!("{ENDS}&user=admin"),
            &format!("{ENDS}{many}"),
        ] {
            assert!(question(query).is_none(), "{query}");
        }
    }

    #[test]
    fn only_people_with_a_wanted_role_are_let_in_and_named() {
        let found = |user: Option<(&str, Role)>| Whois {
            address: "fd00::7".parse().unwrap(),
            org: "acme".parse().unwrap(),
            node: "desk".parse().unwrap(),
            site: None,
            user: user.map(|(name, _)| name.parse().unwrap()),
            role: user.map(|(_, role)| role),
        };
        let alice = || Some(found(Some(("alice", Role::Developer))));
        for (found, roles, status) in [
            (None, &[][..], 401),
            (Some(found(None)), &[], 403),
            (alice(), &[Role::Admin], 403),
            (alice(), &[Role::Admin, Role::Developer], 200),
            (alice(), &[], 200),
        ] {
            let response = verdict(found, roles);
            assert_eq!(response.status(), status);
            let header = |name| response.headers().get(name).map(HeaderValue::as_bytes);
            let named = (status == 200).then_some(&b"alice"[..]);
            assert_eq!(header("x-ginnel-user"), named);
            assert_eq!(header("www-authenticate").is_some(), status == 401);
        }
    }
}
