//! The client against the real server over TLS, and against what is not a server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use control::{CertificateSource, Config, Random, Server};
use model::token::{Kind, SECRET_LENGTH};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _, net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout,
};

use super::*;

/// A server on a port of its own.
struct Running {
    server: Server,
    url: String,
    port: u16,
    stop: oneshot::Sender<()>,
    served: JoinHandle<anyhow::Result<()>>,
    _data: TempDir,
}

struct SystemRandom;

/// How soon a change must reach who waits for it; 100 ms on a quiet machine.
const WAKE_MAX: Duration = Duration::from_secs(1);

/// As long as a wait may be.
const WAIT: Duration = Duration::from_secs(MAP_WAIT_SECONDS_MAX);

#[tokio::test]
async fn a_node_is_enrolled_over_pinned_tls() {
    let (running, admin, web) = Running::with_a_node().await;
    let whoami = admin.whoami().await.unwrap();
    assert_eq!(whoami.user_name, Some(label("admin")));
    let node = running.client(&web.node_token);
    let request = NewService {
        name: label("web"),
        node: None,
        port: 8080,
        target: None,
    };
    let service = node.add_service(&request).await.unwrap();
    let shown = admin.services(&ListQuery::default()).await.unwrap().items;
    assert_eq!(
        (shown[0].id, &shown[0].node_name),
        (service.id, &label("web"))
    );
    assert_eq!(node.map().await.unwrap().orgs.len(), 1);
    running.end().await;
}

#[tokio::test]
async fn a_removed_node_is_told_so_and_the_gateway_learns_it_at_once() {
    let (running, admin, web) = Running::with_a_node().await;
    let node = running.client(&web.node_token);
    let token = admin
        .add_token(&request_of(Kind::Gateway))
        .await
        .unwrap()
        .token;
    let request = GatewayRequest {
        name: label("edge"),
        public_key: PublicKey([9; 32]),
        endpoint: "edge.example:51820".to_owned(),
    };
    let edge = running
        .client(&token)
        .enrol_gateway(&request)
        .await
        .unwrap();
    let gateway = running.client(&edge.node_token);
    let found = gateway.node_by_key(PublicKey([2; 32])).await.unwrap();
    assert_eq!(found.expect("the node is known").id, web.id);
    assert_eq!(
        gateway.node_by_key(PublicKey([0xff; 32])).await.unwrap(),
        None
    );

    let query = ListQuery {
        name: Some(label("web")),
        ..ListQuery::default()
    };
    assert_eq!(admin.nodes(&query).await.unwrap().items[0].id, web.id);
    let waiting = gateway.clone();
    let mut map = gateway.map().await.unwrap();
    let serial = map.serial;
    let waiting = tokio::spawn(async move { waiting.map_after(serial, WAIT).await });
    admin.remove_node(web.id).await.unwrap();
    let told = timeout(WAKE_MAX, waiting)
        .await
        .expect("removal wakes")
        .unwrap()
        .unwrap();
    let Told::Difference(difference) = told else {
        panic!("the gateway has a map: {told:?}");
    };
    assert!(map.apply(&difference));
    assert!(
        map.orgs
            .values()
            .all(|org| !org.nodes.contains_key(&web.id))
    );
    let error = node.map().await.expect_err("a removed node gets no map");
    assert_eq!(error.code(), Some(ErrorCode::NodeRemoved));
    assert!(
        error
            .to_string()
            .starts_with("sign-in: this node was removed"),
        "{error}"
    );
    running.end().await;
}

#[tokio::test]
async fn a_server_with_another_authority_is_refused() {
    let running = Running::start(Duration::ZERO).await;
    let token = Token::new(Kind::Join, [1; SECRET_LENGTH], Some(Pin([7; 32])));
    let client = Client::with_token(&running.url, token).unwrap();
    let error = client
        .join(&enrol_request("web", 1))
        .await
        .expect_err("the pin differs");
    let expected = format!(
        "TLS: 127.0.0.1:{} is not the server that made the token",
        running.port
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.remedy().starts_with("check the URL"), "{error:?}");
    running.end().await;
}

#[tokio::test]
async fn a_server_is_not_trusted_without_a_pin_or_a_public_authority() {
    let running = Running::start(Duration::ZERO).await;
    let error = match Client::new(&running.url, None, None) {
        Ok(client) => client
            .whoami()
            .await
            .expect_err("its authority is not public"),
        Err(error) => error,
    };
    assert!(
        error.remedy().contains("carries the server's pin"),
        "{error:?}"
    );
    running.end().await;
}

#[tokio::test]
async fn a_certificate_for_other_names_and_times_is_refused() {
    let running = Running::start(Duration::ZERO).await;
    let url = format!("https://127.0.0.2:{}", running.port);
    let client = Client::new(&url, running.server.pin(), None).unwrap();
    let error = client
        .whoami()
        .await
        .expect_err("127.0.0.2 is not in the certificate");
    assert!(
        error.to_string().contains("is not for `127.0.0.2`"),
        "{error}"
    );
    running.end().await;

    let behind = Running::start(Duration::from_secs(400 * 24 * 60 * 60)).await;
    let client = Client::new(&behind.url, behind.server.pin(), None).unwrap();
    let error = client.whoami().await.expect_err("it ended long ago");
    assert!(error.remedy().contains("this machine's clock"), "{error:?}");
    behind.end().await;
}

#[tokio::test]
async fn what_does_not_answer_is_named_by_its_hop() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let fails = async |url: String| {
        let client = Client::new(&url, Some(Pin([1; 32])), None).unwrap();
        client
            .whoami()
            .await
            .expect_err("there is no server")
            .to_string()
    };
    let chatter = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    });
    let error = fails(format!("https://{address}")).await;
    assert!(
        error.starts_with("TLS: ") && error.contains("does not speak TLS"),
        "{error}"
    );
    chatter.await.unwrap();
    let error = fails(format!("https://{address}")).await;
    assert!(
        error.starts_with(&format!("TCP: {address} does not answer")),
        "{error}"
    );
    let error = fails("https://nobody.invalid".to_owned()).await;
    assert!(
        error.starts_with("DNS: `nobody.invalid` has no address"),
        "{error}"
    );
    for url in [
        "",
        "vpn.example",
        "http://a",
        "https://",
        "https://a:b",
        "https://a/b",
        "ftp://a",
    ] {
        let error = Client::new(url, Some(Pin([1; 32])), None)
            .err()
            .expect("no URL");
        assert!(matches!(error, Error::Url(_)), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_server_ends_though_nodes_wait_for_maps() {
    let running = Running::start(Duration::ZERO).await;
    let bootstrap = running.server.bootstrap().await.unwrap().unwrap().token;
    let laptop = running
        .client(&bootstrap)
        .login(&enrol_request("laptop", 1))
        .await
        .unwrap();
    let node = running.client(&laptop.device.node_token);
    let serial = laptop.device.map.serial;
    let mut waiting = tokio::spawn(async move { node.map_after(serial, WAIT).await });
    let early = timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "it waits");
    running.end().await;
    assert_eq!(waiting.await.unwrap().unwrap(), Told::Same);
}

#[test]
fn a_url_is_host_and_port() {
    let check = |url, expected: Option<(&str, u16)>| {
        let expected = expected.map(|(host, port)| (host.to_owned(), port));
        assert_eq!(parse_url(url), expected, "{url}");
    };
    check("https://vpn.example", Some(("vpn.example", 443)));
    check("https://vpn.example/", Some(("vpn.example", 443)));
    check("https://vpn.example:8443", Some(("vpn.example", 8443)));
    check("https://[::1]:8443/", Some(("::1", 8443)));
    check("https://[::1]", Some(("::1", 443)));
    check("https://::1", None);
    check("https://user@vpn.example", None);
    check("https://vpn.example/v1", None);
    check("https://vpn.example:0x1", None);
}

impl Running {
    /// Starts a server whose clock is `behind`.
    async fn start(behind: Duration) -> Self {
        let data = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 0)))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let public = format!("127.0.0.1:{port}");
        let config = Config {
            data: data.path().to_owned(),
            database: control::Database::File,
            public,
            certificate: CertificateSource::Own,
            provider_ca: None,
            revalidation: control::REVALIDATION_INTERVAL,
            wall: Arc::new(move || now() - behind),
            random: Arc::new(SystemRandom),
        };
        let server = Server::open(config).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        let served = tokio::spawn(async move {
            let shutdown = async {
                stopped.await.ok();
            };
            serving.serve(listener, shutdown).await
        });
        Self {
            url: server.url(),
            server,
            port,
            stop,
            served,
            _data: data,
        }
    }

    /// Starts a server with an administrator's laptop and a machine `web`.
    async fn with_a_node() -> (Self, Client, Enrolled) {
        let running = Self::start(Duration::ZERO).await;
        let bootstrap = running.server.bootstrap().await.unwrap().unwrap().token;
        let client = running.client(&bootstrap);
        let laptop = client.login(&enrol_request("laptop", 1)).await.unwrap();
        let admin = running.client(&laptop.session_token);
        let join = admin.add_token(&request_of(Kind::Join)).await.unwrap();
        let client = running.client(&join.token);
        let web = client.join(&enrol_request("web", 2)).await.unwrap();
        (running, admin, web)
    }

    fn client(&self, token: &Token) -> Client {
        Client::with_token(&self.url, token.clone()).unwrap()
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        let served = timeout(Duration::from_secs(5), self.served).await;
        served.expect("it ends in time").unwrap().unwrap();
        self.server.close().await;
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).unwrap();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "TLS compares with the real clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn label(text: &str) -> Label {
    text.parse().unwrap()
}

fn enrol_request(name: &str, key: u8) -> EnrolRequest {
    EnrolRequest {
        name: label(name),
        public_key: PublicKey([key; 32]),
    }
}

fn request_of(kind: Kind) -> NewToken {
    NewToken {
        kind,
        org: None,
        user: None,
        uses_max: None,
        ttl_seconds: None,
        approval: false,
    }
}
