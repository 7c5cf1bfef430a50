//! Connections that are led from published ports to programs, so that a program can ask who is at
//! the other end of one: it sees this process at its own end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::net::TcpStream;

/// The connections that are open, each by its two ends, with the address in the network that it
/// comes from.
///
/// Both ends, because the system may give one local port to connections to different programs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Led(Arc<Mutex<BTreeMap<(SocketAddr, SocketAddr), IpAddr>>>);

/// One connection while it is led. Drop it before the connection is closed, or its ends may be
/// another's already.
#[derive(Debug)]
pub(super) struct Entry {
    led: Led,
    ends: (SocketAddr, SocketAddr),
}

impl Led {
    /// Returns where the connection from `client` to `server` comes from, both as the program at
    /// `server` sees them; `None` when it is not one that is led.
    pub(crate) fn source(&self, client: SocketAddr, server: SocketAddr) -> Option<IpAddr> {
        let ends = (canonical(client), canonical(server));
        self.lock().get(&ends).copied()
    }

    /// Remembers that `program` is led to from `source`. There are as many as connections are led
    /// at a time. `None` when the connection has ended already.
    pub(super) fn insert(&self, program: &TcpStream, source: IpAddr) -> Option<Entry> {
        let client = canonical(program.local_addr().ok()?);
        let server = canonical(program.peer_addr().ok()?);
        let ends = (client, server);
        self.lock().insert(ends, source);
        Some(Entry {
            led: self.clone(),
            ends,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(SocketAddr, SocketAddr), IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.led.lock().remove(&self.ends);
    }
}

/// A program that listens for both families sees IPv4 addresses mapped (RFC 4291, 2.5.5.2).
fn canonical(end: SocketAddr) -> SocketAddr {
    SocketAddr::new(end.ip().to_canonical(), end.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_known_by_both_ends_and_only_while_it_is_led() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let program = TcpStream::connect(server).await.unwrap();
        let (_accepted, client) = listener.accept().await.unwrap();
        let led = Led::default();
        assert_eq!(led.source(client, server), None);

        let source = "fd00::1".parse().unwrap();
        let entry = led.insert(&program, source).unwrap();
        assert_eq!(led.source(client, server), Some(source));
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        assert_eq!(led.source(mapped(client), mapped(server)), Some(source));
        let elsewhere = other.local_addr().unwrap();
        assert_eq!(led.source(client, elsewhere), None);
        assert_eq!(led.source(server, client), None);

        drop(entry);
        assert_eq!(led.source(client, server), None);
    }
}
