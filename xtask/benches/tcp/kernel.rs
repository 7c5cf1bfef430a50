//! The kernel's TCP in a namespace of its own, behind a TUN whose other side is ours.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{Backlog, listen, setsockopt, sockopt::TcpCongestion},
};
use os::{
    clock::Clock,
    tun::{OffloadMax, Options, Tun},
};

use crate::{MTU, ours};

/// Bytes that one call moves.
const CHUNK: usize = 256 << 10;

/// A namespace with a TUN as its only way out; gone when dropped.
pub(crate) struct Host {
    namespace: String,
    address: &'static str,
}

/// What programs in a namespace do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// The client sends.
    Up,
    /// The server sends.
    Down,
}

impl Host {
    /// Makes a host with `address` and returns the other side of its TUN.
    ///
    /// With `large`, packets have a virtio_net_hdr and may be super-packets.
    pub(crate) fn new(name: &str, address: &'static str, large: bool) -> Result<(Self, File)> {
        let namespace = format!("ginnel-tcp-{name}-{}", std::process::id());
        let interface = format!("gbt{name}");
        ip(&format!("netns add {namespace}"))?;
        let host = Self { namespace, address };
        let tun = Tun::open(&Options {
            name: &interface,
            offload: if large {
                OffloadMax::All
            } else {
                OffloadMax::Off
            },
            multi_queue: false,
            exclusive: false,
        })
        .context("open a TUN")?;
        ensure!(tun.offload().tcp == large, "the TUN takes no super-packets");
        let namespace = &host.namespace;
        ip(&format!("link set {interface} netns {namespace}"))?;
        for line in [
            format!("link set {interface} mtu {MTU} txqueuelen 10000 up"),
            format!("address add {address}/32 dev {interface}"),
            format!("route add default dev {interface}"),
        ] {
            ip(&format!("-n {namespace} {line}"))?;
        }
        host.inside(|| {
            // What one run has learnt about the path must not help the next.
            std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1").context("write a sysctl")
        })?;
        Ok((host, File::from(tun.into_descriptor())))
    }

    /// Runs `work` on a thread that is inside.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                work()
            });
            inside.join().expect("`work` does not panic")
        })
    }

    fn enter(&self) -> Result<()> {
        let file = File::open(format!("/run/netns/{}", self.namespace));
        let file = file.context("open the namespace")?;
        setns(file, CloneFlags::CLONE_NEWNET).context("enter the namespace")
    }

    /// Listens at `port` and serves: counts what comes, or sends with `algorithm`.
    ///
    /// The threads end when their connections do.
    pub(crate) fn serve(
        &self,
        port: u16,
        direction: Direction,
        algorithm: &'static str,
    ) -> Result<Arc<AtomicU64>> {
        let address = self.address;
        let listener = self.inside(|| {
            let listener = TcpListener::bind((address, port)).context("listen")?;
            set_algorithm(&listener, algorithm)?;
            Ok(listener)
        })?;
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let counter = Arc::clone(&counter);
                thread::Builder::new()
                    .stack_size(CHUNK * 2)
                    .spawn(move || match direction {
                        Direction::Up => drain(&stream, &counter),
                        Direction::Down => fill(&stream),
                    })
                    .expect("a thread for each connection");
            }
        });
        Ok(received)
    }

    /// Answers each connection at `port`, once it has been read to its end.
    pub(crate) fn answer(&self, port: u16, stop: &Arc<AtomicBool>) -> Result<()> {
        let address = self.address;
        let listener = self.inside(|| TcpListener::bind((address, port)).context("listen"))?;
        let stop = Arc::clone(stop);
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                thread::spawn(move || {
                    let mut request = Vec::new();
                    if stream.read_to_end(&mut request).is_ok() {
                        drop(stream.write_all(&request));
                    }
                });
            }
        });
        Ok(())
    }

    /// Exchanges as many octets, and as many at a time, as [`ours::exchange`] does.
    pub(crate) fn exchange(
        &self,
        server: SocketAddr,
        algorithm: &'static str,
        stop: &AtomicBool,
    ) -> Result<Vec<f64>> {
        let client = || -> Result<Vec<f64>> {
            self.enter()?;
            let mut took = Vec::new();
            let mut clock = Clock::start();
            while !stop.load(Ordering::Relaxed) {
                let began = clock.now();
                let mut stream = TcpStream::connect(server).context("connect")?;
                set_algorithm(&stream, algorithm)?;
                stream.write_all(&[0x67; ours::EXCHANGED]).context("send")?;
                stream.shutdown(Shutdown::Write).context("finish")?;
                let mut response = Vec::new();
                stream.read_to_end(&mut response).context("receive")?;
                took.push((clock.now() - began).as_secs_f64() * 1e3);
            }
            Ok(took)
        };
        thread::scope(|scope| {
            let clients = (0..ours::EXCHANGES).map(|_| scope.spawn(client));
            let clients: Vec<_> = clients.collect();
            let mut took = Vec::new();
            for client in clients {
                took.extend(client.join().expect("it does not panic")?);
            }
            Ok(took)
        })
    }

    /// Holds the connections that come to `port` until the listener is dropped.
    ///
    /// Nobody accepts them: what is in the queue of a listener is established, and takes none of
    /// the descriptors, of which a process may have fewer than this needs.
    pub(crate) fn hold(&self, port: u16) -> Result<TcpListener> {
        let address = self.address;
        self.inside(|| {
            // The bound of every such queue, in this namespace.
            std::fs::write("/proc/sys/net/core/somaxconn", "65535").context("write a sysctl")?;
            let listener = TcpListener::bind((address, port)).context("listen")?;
            // The standard library asks for a short one.
            listen(&listener, Backlog::MAXALLOWABLE).context("lengthen the queue")?;
            Ok(listener)
        })
    }

    /// Opens `streams` connections to `server` and sends or receives with `algorithm`; returns what
    /// counts the received bytes.
    pub(crate) fn dial(
        &self,
        server: SocketAddr,
        streams: usize,
        direction: Direction,
        algorithm: &'static str,
    ) -> Result<Arc<AtomicU64>> {
        let received = Arc::new(AtomicU64::new(0));
        for _ in 0..streams {
            let stream = self.inside(|| {
                let stream = TcpStream::connect(server).context("connect")?;
                set_algorithm(&stream, algorithm)?;
                Ok(stream)
            })?;
            let counter = Arc::clone(&received);
            thread::spawn(move || match direction {
                Direction::Up => fill(&stream),
                Direction::Down => drain(&stream, &counter),
            });
        }
        Ok(received)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What lingers in it ends with its interface.
        drop(ip(&format!("netns delete {}", self.namespace)));
    }
}

fn set_algorithm(socket: &impl std::os::fd::AsFd, algorithm: &str) -> Result<()> {
    let algorithm = algorithm.to_owned().into();
    setsockopt(socket, TcpCongestion, &algorithm).context("choose the congestion control")
}

fn drain(mut stream: &TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn fill(mut stream: &TcpStream) {
    let chunk = vec![0x67; CHUNK];
    // The other side may vanish without a word.
    drop(stream.set_write_timeout(Some(Duration::from_secs(60))));
    while stream.write(&chunk).is_ok() {}
}

fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip").args(line.split(' ')).output();
    let output = output.context("run ip: install iproute2")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {line}: {text}");
    Ok(())
}
