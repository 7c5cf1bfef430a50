//! Handshake messages, which come by a socket and a thread of their own for each family, so that a
//! flood of them takes nothing from data.
//!
//! ```text
//! UDP ──► batch ──mac1?──► device ──► cookie replies, agreements to compute
//!              no lock    lock, a few at a time
//! ```

use std::{io, sync::Arc, thread, time::Duration};

use super::{
    tunnel::{Tunnel, Watchdog},
    wire::Sockets,
};
use os::{
    clock::{Clock, Effort},
    udp::{Batch, Datagram, Socket},
};
use wireguard::Discard;

/// The thread's state.
pub(crate) struct Handshakes {
    tunnel: Arc<Tunnel>,
    v6: bool,
}

impl Handshakes {
    pub(crate) fn new(tunnel: &Arc<Tunnel>, v6: bool) -> Self {
        Self {
            v6,
            tunnel: Arc::clone(tunnel),
        }
    }

    /// Runs as long as the process.
    pub(crate) fn run(self) {
        let _watchdog = Watchdog(Arc::clone(&self.tunnel));
        let (mut clock, mut effort) = (Clock::start(), Effort::default());
        let mut batch = Batch::default();
        let mut sockets = self.tunnel.sockets();
        loop {
            match self.wait(&sockets, &mut batch) {
                Ok(true) => {
                    self.handle(&mut batch);
                    self.tunnel.rest(clock.now(), &mut effort);
                }
                Ok(false) => {
                    let known = Arc::downgrade(&sockets);
                    drop(sockets);
                    sockets = self.tunnel.wait_for_sockets(&known);
                }
                Err(error) => {
                    tracing::debug!("UDP: receive handshakes: {error}");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Waits for messages; false when the socket is retired or absent.
    fn wait(&self, sockets: &Sockets, batch: &mut Batch) -> io::Result<bool> {
        match self.socket_of(sockets) {
            Some(socket) => {
                socket.wait_batch(batch)?;
                Ok(!socket.is_retired())
            }
            None => Ok(false),
        }
    }

    fn socket_of<'s>(&self, sockets: &'s Sockets) -> Option<&'s Socket> {
        let pair = sockets.handshakes.as_ref()?;
        let socket = if self.v6 { &pair.v6 } else { &pair.v4 };
        socket.as_ref()
    }

    fn handle(&self, batch: &mut Batch) {
        match batch.take_truncated() {
            0 => {}
            count => self.tunnel.turn_away(Discard::Length, count),
        }
        let gate = self.tunnel.gate();
        let mut admitted = Vec::new();
        for datagram in batch.datagrams() {
            match gate.admit(datagram.bytes) {
                Ok(()) => admitted.push(datagram),
                Err(discard) => {
                    self.tunnel.turn_away(discard, 1);
                    if self.tunnel.taps_datagrams() {
                        let (source, bytes) = (datagram.source, &*datagram.bytes);
                        self.tunnel.tap_turned_away(source, bytes, discard.into());
                    }
                }
            }
        }
        for few in admitted.chunks_mut(TOGETHER) {
            self.tunnel.with(|state, now| {
                for Datagram {
                    source,
                    local,
                    bytes,
                    ..
                } in few
                {
                    state.handle_message(now, (*source, *local), bytes);
                }
            });
        }
    }
}

/// So that data does not wait for long: a cookie reply takes some microseconds.
const TOGETHER: usize = 4;
/// After an error of the socket that may last.
const PAUSE: Duration = Duration::from_millis(10);
