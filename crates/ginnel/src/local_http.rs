//! A bounded HTTP/1 server for programs near by, which have small questions.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};

/// Connections at once; more wait in the queue of the listener.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection lasts: Prometheus keeps its own from one scrape to the next, and begins a
/// new one when that is gone.
const CONNECTION_MAX: Duration = Duration::from_secs(300);

/// How long a request may take to come.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Bytes of a request before its body; a longer one is refused (RFC 6585, 5).
const HEAD_MAX: usize = 16 * 1024;

/// A pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers every request, whose body is not read, until it is dropped.
pub(crate) async fn serve<F, R>(listener: TcpListener, answer: F) -> Infallible
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send,
{
    let answer = Arc::new(answer);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let served = answer_all(stream, &*answer);
                    if time::timeout(CONNECTION_MAX, served).await.is_err() {
                        tracing::debug!("HTTP: a connection was open for too long");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "HTTP: accept a connection");
                time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer_all<F, R>(stream: TcpStream, answer: &F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let response = answer(request);
        async { Ok::<_, Infallible>(response.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "HTTP");
    }
}

/// Makes a response of text.
pub(crate) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.into()));
    *response.status_mut() = status;
    set(&mut response, CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

/// Gives a response a header.
pub(crate) fn set(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &'static str) {
    let value = HeaderValue::from_static(value);
    response.headers_mut().insert(name, value);
}
