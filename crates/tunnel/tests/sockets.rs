//! Two programs with a tunnel between them over loopback, with no root and no interface.

use std::{
    io,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use model::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::{Code, CongestionControl, Network, TcpListener, Tunnel, UdpSocket};
use wireguard::StaticSecret;

/// More than a handshake, a retransmission and a slow machine need together.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Opens two networks that are each other's peer: 10.0.0.1 and 10.0.0.2.
fn pair() -> (Tunnel, Tunnel) {
    let keys = [secret(), secret()];
    let ports = [free_port(), free_port()];
    let open = |own: usize, other: usize| {
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\nAddress = 10.0.0.{}/24\n\
             [Peer]\nPublicKey = {}\nEndpoint = 127.0.0.1:{}\nAllowedIPs = 10.0.0.{}/32\n",
            STANDARD.encode(keys[own]),
            ports[own],
            own + 1,
            STANDARD.encode(StaticSecret::new(keys[other]).public_key().0),
            ports[other],
            other + 1,
        );
        let config = Config::parse(text.as_bytes()).expect("a configuration");
        let network = Network::open(&config).expect("loopback has ports");
        let tunnel = network.tunnel().clone();
        tokio::spawn(network.run());
        tunnel
    };
    (open(0, 1), open(1, 0))
}

fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    os::random::fill(&mut secret);
    secret
}

fn free_port() -> u16 {
    let socket = StdUdpSocket::bind(("127.0.0.1", 0)).expect("loopback has ports");
    socket.local_addr().expect("it is bound").port()
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

#[tokio::test]
async fn a_listener_accepts_what_the_other_program_dials() {
    let (client, server) = pair();
    let listener = TcpListener::bind(&server, at("10.0.0.2:80")).expect("a free port");
    let serve = tokio::spawn(async move {
        let mut stream = listener.accept().await.expect("a connection");
        let mut request = String::new();
        stream
            .read_to_string(&mut request)
            .await
            .expect("to its end");
        stream
            .write_all(request.to_uppercase().as_bytes())
            .await
            .expect("room");
        stream.shutdown().await.expect("half-closed");
        stream.remote()
    });
    let mut stream = client.dial("10.0.0.2", 80, TIMEOUT).await.expect("reached");
    let bbr = CongestionControl::Bbr;
    stream.set_congestion_control(bbr).expect("still connected");
    stream.write_all(b"ginnel").await.expect("room");
    stream.shutdown().await.expect("half-closed");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .expect("to its end");
    assert_eq!(answer, "GINNEL");
    assert_eq!(serve.await.expect("no panic"), stream.local());
}

#[tokio::test]
async fn a_dropped_listener_refuses() {
    let (client, server) = pair();
    let listener = TcpListener::bind(&server, at("10.0.0.2:80")).expect("a free port");
    drop(client.dial("10.0.0.2", 80, TIMEOUT).await.expect("reached"));
    drop(listener);
    let refused = client.dial("10.0.0.2", 80, TIMEOUT).await;
    assert_eq!(
        refused.err().map(|failure| failure.code),
        Some(Code::ConnectionRefused)
    );
    // The port is free again.
    TcpListener::bind(&server, at("10.0.0.2:80")).expect("a free port");
}

#[tokio::test]
async fn an_accept_that_was_given_up_loses_no_connection() {
    let (client, server) = pair();
    let listener = TcpListener::bind(&server, at("10.0.0.2:80")).expect("a free port");
    tokio::select! {
        biased;
        _ = listener.accept() => panic!("nobody has dialled"),
        () = tokio::task::yield_now() => {}
    }
    let _stream = client.dial("10.0.0.2", 80, TIMEOUT).await.expect("reached");
    let accepted = tokio::time::timeout(TIMEOUT, listener.accept()).await;
    accepted.expect("in time").expect("a connection");
}

#[tokio::test]
async fn a_listener_has_an_address_of_the_node_and_a_port() {
    let (_client, server) = pair();
    let check = |local: &str, expected: io::ErrorKind| {
        let refused = TcpListener::bind(&server, at(local)).err();
        assert_eq!(refused.map(|error| error.kind()), Some(expected), "{local}");
    };
    let _first = TcpListener::bind(&server, at("10.0.0.2:80")).expect("a free port");
    check("10.0.0.2:80", io::ErrorKind::AddrInUse);
    check("10.0.0.2:0", io::ErrorKind::InvalidInput);
    check("10.0.0.1:80", io::ErrorKind::AddrNotAvailable);
    check("127.0.0.1:80", io::ErrorKind::AddrNotAvailable);
}

#[tokio::test]
async fn datagrams_go_both_ways() {
    let (client, server) = pair();
    let echo = UdpSocket::bind(&server, at("10.0.0.2:53")).expect("a free port");
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        loop {
            let (length, source) = echo.recv_from(&mut buffer).await;
            echo.send_to(&buffer[..length], source).expect("a route");
        }
    });
    let socket = UdpSocket::bind(&client, at("10.0.0.1:0")).expect("a free port");
    socket
        .send_to(b"ginnel", at("10.0.0.2:53"))
        .expect("staged for the handshake");
    let mut buffer = [0; 2_048];
    let answer = tokio::time::timeout(TIMEOUT, socket.recv_from(&mut buffer)).await;
    assert_eq!(answer.expect("in time"), (6, at("10.0.0.2:53")));
    assert_eq!(&buffer[..6], b"ginnel");
}
