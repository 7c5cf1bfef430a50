//! What an idle connection holds with its async handle and the task that waits for it.

use std::{
    fs,
    future::poll_fn,
    io,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use model::config::Config;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tunnel::{Network, TcpListener, TcpStream, Tunnel};
use wireguard::StaticSecret;

/// One end of a connection: in the stack, in its handle and among those who wait.
const BYTES_MAX: usize = 2_048;

/// Enough to make what the process holds anyway vanish.
const CONNECTIONS: usize = 5_000;

/// Only guards against hanging.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What goes each way before a connection is idle, so that its buffers have been in use.
const REQUEST: usize = 3_000;

/// Opens two networks that are each other's peer: 10.0.0.1 and 10.0.0.2.
fn pair() -> [Tunnel; 2] {
    let keys = [secret(), secret()];
    let ports = [free_port(), free_port()];
    [0, 1].map(|own| {
        let other = 1 - own;
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
    })
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

/// Returns the bytes of memory that the process has written to, wherever they are now.
fn memory_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells");
    let kibibytes = status.lines().filter_map(|line| {
        let amount = line
            .strip_prefix("RssAnon:")
            .or(line.strip_prefix("VmSwap:"))?;
        let amount = amount.trim().trim_end_matches(" kB");
        Some(amount.parse::<usize>().expect("a number"))
    });
    kibibytes.sum::<usize>() * 1_024
}

/// Sends back what comes, each connection in a task of its own.
async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let mut stream = listener.accept().await?;
        tokio::spawn(async move {
            let mut piece = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut piece).await {
                if stream.write_all(&piece[..length]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn converse(stream: &mut TcpStream) {
    let request = [7; REQUEST];
    stream.write_all(&request).await.expect("open");
    let mut response = [0; REQUEST];
    let read = tokio::time::timeout(TIMEOUT, stream.read_exact(&mut response));
    read.await.expect("in time").expect("open");
    assert_eq!(response, request);
}

/// Leaves the task of the test where a reader of the connection waits.
async fn wait_to_read(stream: &mut TcpStream) {
    poll_fn(|context| {
        let mut byte = [0];
        let read = Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut byte));
        assert!(read.is_pending(), "nothing is to be read");
        Poll::Ready(())
    })
    .await;
}

/// Waits until no buffer of either stack holds memory.
async fn calm(tunnels: &[Tunnel; 2]) {
    let calm = async {
        while tunnels.iter().any(|tunnel| {
            tunnel.with(|node, _| node.stack().expect("user mode").memory_bytes() > 0)
        }) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, calm).await.expect("in time");
}

#[tokio::test]
async fn an_idle_connection_holds_little_with_its_handle() {
    let tunnels = pair();
    let to: SocketAddr = "10.0.0.2:80".parse().expect("an address");
    let listener = TcpListener::bind(&tunnels[1], to).expect("a free port");
    tokio::spawn(serve(listener));
    let dial = || tunnels[0].dial("10.0.0.2", 80, TIMEOUT);
    // What both networks hold anyway, once they have moved something.
    let mut first = dial().await.expect("reached");
    converse(&mut first).await;
    calm(&tunnels).await;
    let mut idle = Vec::with_capacity(CONNECTIONS);
    let before = memory_bytes();
    for _ in 0..CONNECTIONS {
        let mut stream = dial().await.expect("reached");
        converse(&mut stream).await;
        wait_to_read(&mut stream).await;
        idle.push(stream);
    }
    calm(&tunnels).await;
    // Both ends are here.
    let each = (memory_bytes() - before) / (2 * CONNECTIONS);
    println!("{each} bytes for each of {} connections", 2 * CONNECTIONS);
    assert!(each <= BYTES_MAX, "{each} bytes");
    converse(&mut idle[0]).await;
    converse(&mut idle[CONNECTIONS - 1]).await;
}
