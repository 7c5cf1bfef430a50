//! The HTTP client that talks to identity providers: HTTPS only, bounded, without redirects.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use data_encoding::BASE64;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use model::api::Secret;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::TlsConnector;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

/// How long a whole request may take; the API's own bound is 15 seconds, for one that makes two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest reply: keys and metadata of known providers are below 20 KiB.
const REPLY_BYTES_MAX: usize = 256 * 1024;

/// Requests on their way at once, over all providers; further ones wait.
const REQUESTS_MAX: usize = 32;

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// The client.
pub(super) struct Http {
    connector: TlsConnector,
    busy: Semaphore,
}

/// Why a request got no reply, named after the hop that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("DNS: `{host}` has no address")]
    Dns { host: String, source: io::Error },
    #[error("TCP: {host} does not answer")]
    Connect { host: String, source: io::Error },
    #[error("TLS: {host} does not prove who it is: {source}")]
    Tls { host: String, source: io::Error },
    #[error("HTTP: the connection to {host} broke")]
    Broken {
        host: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("HTTP: {host} took too long")]
    Slow { host: String },
}

/// How the client proves to the provider who it is (RFC 6749, 2.3.1).
pub(super) enum Authentication<'a> {
    /// By what the form holds.
    Form,
    /// By id and secret in the header.
    Basic { id: &'a str, secret: &'a Secret },
    /// By an access token (RFC 6750, 2.1).
    Bearer(&'a Secret),
}

impl Http {
    /// Makes a client that trusts the system's authorities and those in `ca`.
    pub(super) fn new(ca: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if let Some(path) = ca {
            let read = || format!("read the authorities in `{}`", path.display());
            for certificate in CertificateDer::pem_file_iter(path).with_context(read)? {
                roots
                    .add(certificate.with_context(read)?)
                    .with_context(read)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut configuration = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose TLS versions")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            connector: TlsConnector::from(Arc::new(configuration)),
            busy: Semaphore::new(REQUESTS_MAX),
        })
    }

    /// Fetches what is at `url`.
    pub(super) async fn get(
        &self,
        url: &Url,
        authentication: Authentication<'_>,
    ) -> Result<(StatusCode, Bytes), Fault> {
        self.exchange(Method::GET, url, authentication, None).await
    }

    /// Sends a form to `url`.
    pub(super) async fn post(
        &self,
        url: &Url,
        authentication: Authentication<'_>,
        form: &[(&str, &str)],
    ) -> Result<(StatusCode, Bytes), Fault> {
        let body = encoded(form);
        self.exchange(Method::POST, url, authentication, Some(body))
            .await
    }

    async fn exchange(
        &self,
        method: Method,
        url: &Url,
        authentication: Authentication<'_>,
        form: Option<String>,
    ) -> Result<(StatusCode, Bytes), Fault> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let slow = || Fault::Slow { host: host.clone() };
        let exchanged = async {
            let _permit = self.busy.acquire().await.map_err(|_| slow())?;
            let stream = connect(url, &host).await?;
            let tls = |source| Fault::Tls {
                host: host.clone(),
                source,
            };
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|error| tls(io::Error::other(error)))?;
            let stream = self.connector.connect(name, stream).await.map_err(tls)?;
            let broken = |source| Fault::Broken {
                host: host.clone(),
                source,
            };
            let request = request(method, url, &authentication, form)
                .map_err(|error| broken(error.into()))?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| broken(error.into()))?;
            let answered = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = Limited::new(response.into_body(), REPLY_BYTES_MAX);
                Ok((status, body.collect().await?.to_bytes()))
            };
            // The connection moves the bytes; its own error comes out of the answer.
            let mut answered = std::pin::pin!(answered);
            let mut connection = std::pin::pin!(connection);
            let answer = tokio::select! {
                answer = &mut answered => answer,
                _ = &mut connection => answered.await,
            };
            answer.map_err(broken)
        };
        timeout(REQUEST_TIMEOUT, exchanged)
            .await
            .unwrap_or_else(|_| Err(slow()))
    }
}

fn encoded(form: &[(&str, &str)]) -> String {
    let mut encoder = form_urlencoded::Serializer::new(String::new());
    encoder.extend_pairs(form).finish()
}

async fn connect(url: &Url, host: &str) -> Result<TcpStream, Fault> {
    let dns = |source| Fault::Dns {
        host: host.to_owned(),
        source,
    };
    let port = url.port_or_known_default().unwrap_or(443);
    let addresses = tokio::net::lookup_host((host.trim_matches(['[', ']']), port));
    let addresses = addresses.await.map_err(dns)?.take(ADDRESSES_MAX);
    let mut failed = dns(io::ErrorKind::NotFound.into());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => {
                failed = Fault::Connect {
                    host: host.to_owned(),
                    source,
                }
            }
        }
    }
    Err(failed)
}

fn request(
    method: Method,
    url: &Url,
    authentication: &Authentication<'_>,
    form: Option<String>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/json");
    let authorization = match authentication {
        Authentication::Form => None,
        Authentication::Basic { id, secret } => {
            // Both are form-encoded first (RFC 6749, 2.3.1).
            let encoded = |text: &str| -> String {
                form_urlencoded::byte_serialize(text.as_bytes()).collect()
            };
            let pair = format!("{}:{}", encoded(id), encoded(secret.expose()));
            let pair = Zeroizing::new(pair);
            Some(format!("Basic {}", BASE64.encode(pair.as_bytes())))
        }
        Authentication::Bearer(token) => Some(format!("Bearer {}", token.expose())),
    };
    if let Some(text) = authorization {
        let mut value = HeaderValue::from_str(&Zeroizing::new(text))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    if form.is_some() {
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    request.body(Full::new(Bytes::from(form.unwrap_or_default())))
}
