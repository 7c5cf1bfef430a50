//! One HTTP client: CONNECT becomes a pipe, an http:// request is sent on (RFC 9110, 9112).

use std::{convert::Infallible, io};

use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1 as outgoing,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1 as incoming,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{DIAL_TIMEOUT, REQUEST_TIMEOUT};
use crate::{
    agent::{
        Client,
        client::Pipe,
        protocol::{Code, Failure},
    },
    remedy,
};

type Body = Either<Incoming, Full<Bytes>>;

/// Fields that belong to one connection and are not sent on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, client: Client) {
    let service = service_fn(|request| answer(request, client.clone()));
    let connection = incoming::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "http");
    }
}

async fn answer(request: Request<Incoming>, client: Client) -> Result<Response<Body>, Infallible> {
    let answered = if request.method() == Method::CONNECT {
        connect(request, &client).await
    } else {
        pass_on(request, &client).await
    };
    Ok(answered.unwrap_or_else(|refusal| refusal))
}

/// Opens a tunnel to the authority (RFC 9110, 9.3.6).
async fn connect(
    request: Request<Incoming>,
    client: &Client,
) -> Result<Response<Body>, Response<Body>> {
    let Some((host, Some(port))) = host_and_port(request.uri()) else {
        let text = "CONNECT needs HOST:PORT\n";
        return Err(say(StatusCode::BAD_REQUEST, text.to_owned()));
    };
    let pipe = dial(client, &host, port).await?;
    let client = client.clone();
    tokio::spawn(async move {
        let moved = match hyper::upgrade::on(request).await {
            Ok(upgraded) => join(upgraded, pipe, &client).await,
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = moved {
            tracing::debug!(%error, "connect");
        }
    });
    Ok(Response::new(Either::Right(Full::default())))
}

/// Moves bytes to the end of a tunnel; one that breaks off is a reset for the program here.
async fn join(
    upgraded: hyper::upgrade::Upgraded,
    mut pipe: Pipe,
    client: &Client,
) -> io::Result<()> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>();
    let parts = parts.map_err(|_| io::Error::other("the connection is not one of TCP"))?;
    let mut stream = parts.io.into_inner();
    pipe.stream.write_all(&parts.read_buf).await?;
    let moved = pipe.join(client, &mut stream).await;
    if moved.is_err() {
        drop(stream.set_zero_linger());
    }
    moved
}

/// Sends a request in absolute form on to its origin (RFC 9112, 3.2.2).
async fn pass_on(
    mut request: Request<Incoming>,
    client: &Client,
) -> Result<Response<Body>, Response<Body>> {
    let uri = request.uri().clone();
    let Some((host, port)) = host_and_port(&uri) else {
        let text = "this is a proxy: ask for an http:// address, or use CONNECT\n";
        return Err(say(StatusCode::BAD_REQUEST, text.to_owned()));
    };
    if uri.scheme_str() != Some("http") {
        let text = "only http:// is passed on; use CONNECT for the rest\n";
        return Err(say(StatusCode::BAD_REQUEST, text.to_owned()));
    }
    let pipe = dial(client, &host, port.unwrap_or(80)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().unwrap_or_default();
    strip(request.headers_mut());
    // The authority of the request line counts, whatever the field said (RFC 9112, 3.2.2).
    if let Some(value) = uri
        .authority()
        .and_then(|a| HeaderValue::from_str(a.as_str()).ok())
    {
        request.headers_mut().insert(header::HOST, value);
    }
    let gone = |error: hyper::Error| {
        let text = format!("remote port: {host} broke the exchange off: {error}\n");
        say(StatusCode::BAD_GATEWAY, text)
    };
    let io = TokioIo::new(pipe.stream);
    let (mut sender, connection) = outgoing::handshake(io).await.map_err(gone)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "http origin");
        }
    });
    let mut response = sender.send_request(request).await.map_err(gone)?;
    strip(response.headers_mut());
    Ok(response.map(Either::Left))
}

async fn dial(client: &Client, host: &str, port: u16) -> Result<Pipe, Response<Body>> {
    match client.dial(host, port, DIAL_TIMEOUT).await {
        Ok(Ok(pipe)) => Ok(pipe),
        Ok(Err(failure)) => {
            tracing::info!(%host, port, "{failure}");
            let Failure { code, remedy, .. } = &failure;
            Err(say(status(*code), format!("{failure}\n{remedy}\n")))
        }
        Err(error) => {
            let remedy = remedy::remedy_of(&error).unwrap_or_default();
            let text = format!("{error:#}\n{remedy}\n");
            Err(say(StatusCode::BAD_GATEWAY, text))
        }
    }
}

fn host_and_port(uri: &Uri) -> Option<(String, Option<u16>)> {
    let host = uri.host()?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Some((host.to_owned(), uri.port_u16())).filter(|(host, _)| !host.is_empty())
}

/// Removes the fields of this connection, those that `Connection` names among them.
fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION);
    let named = named.iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(','));
    let named: Vec<HeaderName> = named.filter_map(|name| name.trim().parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::HandshakeUnanswered | Code::RemoteSilent | Code::ResolverSilent => {
            StatusCode::GATEWAY_TIMEOUT
        }
        Code::TooMany
        | Code::Draining
        | Code::ConfigurationChanged
        | Code::KeyNotReplaced
        | Code::Misunderstood => StatusCode::SERVICE_UNAVAILABLE,
        Code::Prohibited => StatusCode::FORBIDDEN,
        Code::NameUnknown
        | Code::NameRefused
        | Code::EndpointUnknown
        | Code::NoRoute
        | Code::ConnectionRefused
        | Code::ConnectionReset
        | Code::Unreachable => StatusCode::BAD_GATEWAY,
    }
}

fn say(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(text)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_of_one_connection_are_not_sent_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "trailers"),
            ("accept", "*/*"),
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        strip(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept"]);
    }

    #[test]
    fn an_ipv6_host_loses_its_brackets() {
        let uri: Uri = "http://[fd00::1]:8080/x".parse().unwrap();
        assert_eq!(
            host_and_port(&uri),
            Some(("fd00::1".to_owned(), Some(8080)))
        );
        assert_eq!(host_and_port(&"/x".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn any_address_gives_a_host_that_fits_it_or_none(
            text in "(http://)?[a-z@%]{0,4}(\\[[0-9a-f:]{0,8}\\]?|[a-z0-9.-]{0,9})(:[0-9]{0,6})?/?"
        ) {
            let Ok(uri) = text.parse::<Uri>() else {
                return Ok(());
            };
            if let Some((host, port)) = host_and_port(&uri) {
                prop_assert!(!host.is_empty());
                prop_assert!(!(host.starts_with('[') && host.ends_with(']')), "{}", host);
                prop_assert!(text.contains(&host));
                if let Some(port) = port {
                    prop_assert_eq!(uri.port().map(|port| port.as_u16()), Some(port));
                }
            }
        }

        #[test]
        fn no_field_that_connection_names_is_left(
            named in "[ ,;a-zA-Z-]{0,40}",
            raw in proptest::collection::vec(32..=255_u8, 0..16),
        ) {
            let mut headers = HeaderMap::new();
            headers.insert("x-end-to-end", HeaderValue::from_static("1"));
            let raw = HeaderValue::from_bytes(&raw);
            for value in [HeaderValue::from_str(&named).ok(), raw.ok()] {
                headers.extend(value.map(|value| (header::CONNECTION, value)));
            }
            let names: Vec<HeaderName> = named
                .split(',')
                .filter_map(|name| name.trim().parse().ok())
                .collect();
            for name in &names {
                headers.insert(name, HeaderValue::from_static("1"));
            }
            strip(&mut headers);
            for name in names.iter().map(HeaderName::as_str).chain(HOP_BY_HOP) {
                prop_assert!(!headers.contains_key(name), "{}", name);
            }
            prop_assert!(headers.contains_key("x-end-to-end"));
        }
    }
}
