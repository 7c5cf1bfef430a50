//! A UDP socket of the node's own stack.

use std::{
    future::poll_fn,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
};

use netstack::{BindError, SendToError, UdpId};

use crate::Tunnel;

/// A UDP socket with a port of its own. Dropping it gives the port back.
pub(super) struct UdpSocket {
    tunnel: Tunnel,
    id: UdpId,
}

impl UdpSocket {
    /// Makes a socket that can talk to `remote`, at a port that the stack draws.
    pub(super) fn towards(tunnel: &Tunnel, remote: IpAddr) -> Result<Self, BindError> {
        let local = match remote {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        Self::bind(tunnel, SocketAddr::new(local, 0))
    }

    /// Makes a socket at `local`.
    pub(super) fn bind(tunnel: &Tunnel, local: SocketAddr) -> Result<Self, BindError> {
        let mut turn = tunnel.turn();
        let id = turn.stack().bind(local)?;
        turn.datagrams.insert(id, None);
        drop(turn);
        Ok(Self {
            tunnel: tunnel.clone(),
            id,
        })
    }

    /// Sends one datagram now, or not at all.
    pub(super) fn send_to(&self, payload: &[u8], remote: SocketAddr) -> Result<(), SendToError> {
        self.tunnel.turn().stack().send_to(self.id, remote, payload)
    }

    /// Waits for the next datagram: its length and who sent it.
    pub(super) async fn recv_from(&self, buffer: &mut [u8]) -> (usize, SocketAddr) {
        poll_fn(|context| {
            let mut turn = self.tunnel.turn();
            match turn.stack().recv_from(self.id, buffer) {
                Some((length, source, _)) => Poll::Ready((length, source)),
                None => {
                    turn.datagrams
                        .insert(self.id, Some(context.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let mut turn = self.tunnel.turn();
        turn.datagrams.remove(&self.id);
        turn.stack().release_udp(self.id);
    }
}
