//! Signing in by an identity provider: in a browser that comes back to this device (RFC 8252), or
//! with a code that is typed elsewhere (RFC 8628).

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::{
    api::{
        AuthorizationResponse, BegunSignIn, LoggedIn, NewSignIn, OIDC_CALLBACK_PATH, Secret, SignIn,
    },
    key::PublicKey,
    name::Label,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use url::form_urlencoded;

use crate::{
    api::Client,
    remedy::{Advise as _, advise},
    terminal,
};

/// Who signs in where.
pub(crate) struct Attempt<'a> {
    pub(crate) client: &'a Client,
    pub(crate) org: Label,
    /// The device's name.
    pub(crate) name: Label,
    pub(crate) public_key: PublicKey,
}

/// What the browser brought: the query of its request.
type Query = Vec<(String, String)>;

/// How long a sign-in may take; the server ends it no later.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How long a browser may take for its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of browsers at once; more find the queue of the listener.
const CONNECTIONS_MAX: usize = 8;

/// The longest text of the provider's that is shown.
const TEXT_LETTERS_MAX: usize = 200;

const TOO_LATE: &str = "sign-in: nobody signed in within 10 minutes";

const AGAIN: &str = "run `ginnel login` again";

/// Signs in by a browser, which comes back to a port of 127.0.0.1.
pub(crate) async fn in_browser(attempt: Attempt<'_>) -> Result<LoggedIn> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("sign-in: listen at 127.0.0.1 for the browser")
        .remedy("sign in with --device instead")?;
    let port = listener.local_addr().context("sign-in")?.port();
    let begun = begin(&attempt, Some(port)).await?;
    terminal::note("sign in with a browser on this machine, or use --device:");
    terminal::note(format_args!("  {}", begun.url));
    open_browser(&begun.url);
    let state = state_of(&begun.url);
    let answered = timeout(SIGN_IN_TIMEOUT, answer(&listener, &state)).await;
    let answer = answered.map_err(|_| advise(TOO_LATE, AGAIN))??;
    let signed_in = end(&attempt, begun.attempt, Some(answer)).await?;
    signed_in
        .ok()
        .context("sign-in: the server still waits for the browser")
        .remedy(AGAIN)
}

/// Signs in with a code that the person types into any browser.
pub(crate) async fn with_device_code(attempt: Attempt<'_>) -> Result<LoggedIn> {
    let begun = begin(&attempt, None).await?;
    let code = begun.user_code.as_deref().unwrap_or_default();
    terminal::note("sign in with any browser at");
    terminal::note(format_args!("  {}", begun.url));
    terminal::note(format_args!("and give it the code {code}"));
    let asked = async {
        let mut interval = begun.interval_seconds;
        loop {
            sleep(Duration::from_secs(interval.clamp(1, 60))).await;
            match end(&attempt, begun.attempt.clone(), None).await? {
                Ok(signed_in) => return Ok(signed_in),
                Err(seconds) => interval = seconds,
            }
        }
    };
    let asked = timeout(SIGN_IN_TIMEOUT, asked).await;
    asked.unwrap_or_else(|_| Err(advise(TOO_LATE, AGAIN)))
}

async fn begin(attempt: &Attempt<'_>, redirect_port: Option<u16>) -> Result<BegunSignIn> {
    let request = NewSignIn {
        org: attempt.org.clone(),
        public_key: attempt.public_key,
        redirect_port,
    };
    Ok(attempt.client.begin_sign_in(&request).await?)
}

/// Asks for the session; the inner error says after how many seconds to ask again.
async fn end(
    attempt: &Attempt<'_>,
    sealed: Secret,
    answer: Option<AuthorizationResponse>,
) -> Result<Result<LoggedIn, u64>> {
    let request = SignIn {
        attempt: sealed,
        name: attempt.name.clone(),
        answer,
    };
    Ok(attempt.client.end_sign_in(&request).await?)
}

/// Waits for the browser to come back with the state of this sign-in.
async fn answer(listener: &TcpListener, state: &str) -> Result<AuthorizationResponse> {
    let (sender, mut queries) = mpsc::channel::<Query>(CONNECTIONS_MAX);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, sender.clone(), state.to_owned()));
                }
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
            Some(query) = queries.recv() => {
                let answer = read(&query)?;
                // The browser is still reading the page.
                drop(timeout(Duration::from_secs(1), async {
                    while connections.join_next().await.is_some() {}
                }).await);
                return Ok(answer);
            }
        }
    }
}

/// Serves one connection of a browser.
async fn serve(stream: TcpStream, sender: mpsc::Sender<Query>, state: String) {
    let respond = service_fn(move |request: Request<Incoming>| {
        let (reply, query) = respond(&request, &state);
        let sender = sender.clone();
        async move {
            if let Some(query) = query {
                // Only the first answer is waited for.
                drop(sender.try_send(query));
            }
            Ok::<_, Infallible>(reply)
        }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), respond);
    // The browser may go away at any time.
    drop(served.await);
}

/// Returns the page for a request, and its query if it is the answer to this sign-in: any page of
/// any site can make the browser send others.
fn respond<B>(request: &Request<B>, state: &str) -> (Response<Full<Bytes>>, Option<Query>) {
    let query = request.uri().query().unwrap_or_default();
    let query: Query = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let is_callback = request.method() == Method::GET && request.uri().path() == OIDC_CALLBACK_PATH;
    let is_ours = is_callback && value(&query, "state") == Some(state);
    let (status, text) = if is_ours {
        (
            StatusCode::OK,
            "ginnel goes on in the terminal. You can close this page.",
        )
    } else {
        (
            StatusCode::NOT_FOUND,
            "This is not the sign-in that ginnel waits for.",
        )
    };
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>ginnel</title><p>{text}</p></html>"
    );
    let reply = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "text/html; charset=utf-8")
        .header(CONTENT_SECURITY_POLICY, "default-src 'none'")
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::from(page)))
        .expect("headers of constants are well-formed");
    (reply, is_ours.then_some(query))
}

/// Reads an authorization response (RFC 6749, 4.1.2).
fn read(query: &Query) -> Result<AuthorizationResponse> {
    if let Some(error) = value(query, "error") {
        let description = value(query, "error_description").unwrap_or_default();
        let text: String = format!("{error} {description}")
            .chars()
            .filter(|letter| letter.is_ascii_graphic() || *letter == ' ')
            .take(TEXT_LETTERS_MAX)
            .collect();
        let text = format!(
            "sign-in: the identity provider refuses: {}",
            text.trim_end()
        );
        return Err(advise(text, AGAIN));
    }
    let code = value(query, "code")
        .context("sign-in: the browser brought no code")
        .remedy(AGAIN)?;
    Ok(AuthorizationResponse {
        code: Secret::new(code),
        state: value(query, "state").unwrap_or_default().to_owned(),
        iss: value(query, "iss").map(str::to_owned),
    })
}

fn value<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    let found = query.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

/// Returns the state in an authorization URL.
fn state_of(url: &str) -> String {
    let query = url
        .split_once('?')
        .map(|(_, query)| query)
        .unwrap_or_default();
    let query: Query = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    value(&query, "state").unwrap_or_default().to_owned()
}

/// Opens the person's browser if this is a desktop; the URL is printed in any case.
fn open_browser(url: &str) {
    let is_desktop = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if !is_desktop || !url.starts_with("https://") {
        return;
    }
    let opened = std::process::Command::new("xdg-open")
        .arg(url)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    if let Err(error) = opened {
        tracing::debug!(%error, "no browser was opened");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn respond_to(target: &str) -> (u16, Option<Query>) {
        let request = Request::get(target).body(()).expect("a request");
        let (reply, query) = respond(&request, "s&1");
        (reply.status().as_u16(), query)
    }

    #[test]
    fn only_the_answer_to_this_sign_in_is_taken() {
        for target in [
            "/",
            "/callback",
            "/callback?code=c",
            "/callback?code=c&state=other",
            "/callback/?code=c&state=s%261",
            "/favicon.ico",
        ] {
            assert_eq!(respond_to(target), (404, None), "{target}");
        }
        let (status, query) = respond_to("/callback?code=a%2Bb&state=s%261&iss=https%3A%2F%2Fid");
        assert_eq!(status, 200);
        let answer = read(&query.expect("it is ours")).expect("an answer");
        assert_eq!(answer.code.expose(), "a+b");
        assert_eq!(answer.iss.as_deref(), Some("https://id"));
    }

    #[test]
    fn a_refusal_of_the_provider_is_shown_without_control_characters() {
        let (_, query) =
            respond_to("/callback?error=access_denied&state=s%261&error_description=%1b[31m");
        let error = read(&query.expect("it is ours")).unwrap_err();
        let expected = "sign-in: the identity provider refuses: access_denied [31m";
        assert_eq!(format!("{error:#}"), expected);
    }

    #[test]
    fn the_state_is_read_from_the_url() {
        assert_eq!(state_of("https://id/a?x=1&state=a%20b&y"), "a b");
        assert_eq!(state_of("https://id/a"), "");
    }
}
