//! Requests over HTTPS, each on a connection of its own, as `ginnel` makes them.

use std::{net::SocketAddr, sync::Arc};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server, as one token sees it.
#[derive(Clone)]
pub(crate) struct Client {
    server: SocketAddr,
    connector: TlsConnector,
    bearer: String,
}

impl Client {
    pub(crate) fn new(server: SocketAddr, authority: &RootCertStore, token: &str) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut configuration = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has both versions")
            .with_root_certificates(authority.clone())
            .with_no_client_auth();
        // `ginnel` begins each session anew.
        configuration.resumption = rustls::client::Resumption::disabled();
        Self {
            server,
            connector: Arc::new(configuration).into(),
            bearer: format!("Bearer {token}"),
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.ask(Method::GET, path, Bytes::new()).await;
        parse(status, &body)
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        self.send(Method::PATCH, path, body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> T {
        let body = serde_json::to_vec(body).expect("plain data");
        let (status, body) = self.ask(method, path, body.into()).await;
        parse(status, &body)
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, body: Bytes) -> (StatusCode, Bytes) {
        let stream = TcpStream::connect(self.server).await.expect("a connection");
        let name = ServerName::from(self.server.ip());
        let stream = self.connector.connect(name, stream).await.expect("TLS");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.server.to_string())
            .header(AUTHORIZATION, &self.bearer)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("a well-formed request");
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.expect("HTTP");
        let answer = async {
            let response = sender.send_request(request).await.expect("an answer");
            let status = response.status();
            let body = response.into_body().collect().await.expect("a whole body");
            (status, body.to_bytes())
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}

fn parse<T: DeserializeOwned>(status: StatusCode, body: &Bytes) -> T {
    let text = String::from_utf8_lossy(body);
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_slice(body).expect("a reply of the type")
}
