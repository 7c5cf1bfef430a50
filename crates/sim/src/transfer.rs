//! A stream of bytes from one node in user mode to another.

use std::net::SocketAddr;

use netstack::{ConnectionId, ListenerId, Received, Stack};

use crate::{host::HostId, world::World};

/// A stream that is sent, and what has come of it.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) from: HostId,
    pub(crate) to: HostId,
    pub(crate) remote: SocketAddr,
    total: u64,
    sent: u64,
    received: u64,
    outgoing: Option<ConnectionId>,
    incoming: Option<ConnectionId>,
    /// Whether the receiver has seen the end.
    pub(crate) ended: bool,
}

impl Transfer {
    pub(crate) fn new(from: HostId, to: HostId, remote: SocketAddr, total: u64) -> Self {
        Self {
            from,
            to,
            remote,
            total,
            sent: 0,
            received: 0,
            outgoing: None,
            incoming: None,
            ended: false,
        }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Sends what there is room for; true when something was done.
    fn send(&mut self, now: std::time::Instant, stack: &mut Stack) -> Result<bool, String> {
        let id = match self.outgoing {
            Some(id) => id,
            None => {
                let id = stack.connect(now, self.remote);
                *self
                    .outgoing
                    .insert(id.map_err(|error| format!("connect: {error}"))?)
            }
        };
        let mut busy = false;
        while self.sent < self.total {
            let length = (self.total - self.sent).min(CHUNK);
            let bytes: Vec<u8> = (self.sent..self.sent + length).map(pattern).collect();
            let taken = stack
                .send(now, id, &bytes)
                .map_err(|error| format!("send: {error}"))?;
            if taken == 0 {
                return Ok(busy);
            }
            busy = true;
            self.sent += u64::try_from(taken).expect("a length fits 64 bits");
            if self.sent == self.total {
                stack.shutdown(now, id);
            }
        }
        Ok(busy)
    }

    fn receive(&mut self, now: std::time::Instant, stack: &mut Stack) -> Result<bool, String> {
        let Some(id) = self.incoming.filter(|_| !self.ended) else {
            return Ok(false);
        };
        let mut buffer = [0; 16_384];
        let mut busy = false;
        loop {
            match stack.recv(now, id, &mut buffer) {
                Ok(Received::Bytes(length)) => {
                    busy = true;
                    for byte in &buffer[..length] {
                        if *byte != pattern(self.received) {
                            return Err(format!("byte {} of a stream is wrong", self.received));
                        }
                        self.received += 1;
                    }
                }
                Ok(Received::WouldBlock) => return Ok(busy),
                Ok(Received::End) if self.received == self.total => {
                    self.ended = true;
                    stack.release(now, id);
                    return Ok(true);
                }
                Ok(Received::End) => {
                    return Err(format!("a stream ended after {} bytes", self.received));
                }
                Err(error) => return Err(format!("receive: {error}")),
            }
        }
    }
}

impl World {
    /// Moves the streams of `host` on; true when something was done.
    pub(crate) fn pump_transfers(&mut self, host: HostId) -> Result<bool, String> {
        let now = self.hosts[host.0].clock(self.now);
        let Some(node) = &mut self.hosts[host.0].node else {
            return Ok(false);
        };
        let Some(stack) = node.stack() else {
            return Ok(false);
        };
        let mut busy = false;
        for transfer in self.transfers.iter_mut().filter(|transfer| !transfer.ended) {
            if transfer.from == host {
                busy |= transfer.send(now, stack)?;
            }
            if transfer.to == host {
                busy |= transfer.receive(now, stack)?;
            }
        }
        Ok(busy)
    }

    /// Takes what a published listener of `host` has accepted.
    pub(crate) fn accept(&mut self, host: HostId, listener: ListenerId) {
        let Some(node) = &mut self.hosts[host.0].node else {
            return;
        };
        let port = node.published(listener).map(|published| published.port);
        let Some(stack) = node.stack() else {
            return;
        };
        while let Some(id) = stack.accept(listener) {
            let waits = |transfer: &&mut Transfer| {
                transfer.to == host
                    && transfer.incoming.is_none()
                    && Some(transfer.remote.port()) == port
            };
            if let Some(transfer) = self.transfers.iter_mut().find(waits) {
                transfer.incoming = Some(id);
            }
        }
    }
}

const CHUNK: u64 = 65_536;

/// A byte of every stream, by its place.
fn pattern(offset: u64) -> u8 {
    offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}
