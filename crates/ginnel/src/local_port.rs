//! TCP ports of this machine at which commands listen.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted; the kernel takes the smaller of this and
/// `net.core.somaxconn`. Beyond it a kernel answers with SYN cookies and loses the third segment of
/// a handshake, so that a program which opens a thousand at once sees some of them reset.
const BACKLOG: u32 = 4_096;

/// Listens at `address`; port zero lets the system choose.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A forward that starts again need not wait for TIME-WAIT (RFC 9293, 3.6.1).
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_thousand_connections_wait_to_be_accepted() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
        let most: usize = most.trim().parse().unwrap_or_default();
        let count = most.min(1_000);
        os::process::raise_descriptor_limit().expect("up to the hard limit");
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        // Where none is accepted, a SYN beyond the backlog is not answered.
        let patience = Duration::from_secs(20);
        let open: Vec<_> = (0..count)
            .map(|_| TcpStream::connect_timeout(&address, patience).expect("it has a place"))
            .collect();
        assert_eq!(open.len(), count);
    }
}
