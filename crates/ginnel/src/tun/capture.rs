//! `ginnel capture --tun NAME`, in the process of the interface: a thread of its own writes to the
//! command what the taps have put into the queue, and so holds nobody up.

use std::{
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use node::capture::{self, Buffer, Capture, Settings};
use os::{
    clock,
    poll::{self, Interest},
};
use packet::pcap_filter::Filter;
use wireguard::{KeyLog, PeerId};

use super::{
    tunnel::{Tunnel, Watchdog},
    uapi::{Errno, Wanted, emit_errno},
};

/// Begins what is wanted, and writes it to `stream` until it has all or its reader has had enough.
pub(super) fn begin(
    tunnel: &Arc<Tunnel>,
    wanted: &Wanted,
    stream: UnixStream,
) -> Result<(), Errno> {
    let filter = wanted.filter.as_deref().map(Filter::parse).transpose();
    let filter = filter.map_err(|_| Errno::INVALID)?;
    let settings = Settings {
        application: format!("ginnel {}", env!("CARGO_PKG_VERSION")),
        inner: wanted.inner,
        outer: wanted.outer,
        filter,
        keys: wanted.keys,
        // Known with the device.
        port: 0,
        packets_max: wanted.packets_max,
        bytes_max: wanted.bytes_max,
    };
    tunnel.begin_capture(settings)?;
    let running = Running {
        tunnel: Arc::clone(tunnel),
        stream,
        buffer: capture::buffer(),
        ended: false,
    };
    // Only now: whoever is refused is served further by a thread that never waits for it.
    running.stream.set_nonblocking(false)?;
    let thread = thread::Builder::new().name("capture".to_owned());
    thread.spawn(move || running.run())?;
    Ok(())
}

impl Tunnel {
    fn begin_capture(&self, settings: Settings) -> Result<(), Errno> {
        let wall = clock::wall();
        self.with(|state, now| {
            if state.capture.is_some() {
                return Err(Errno::BUSY);
            }
            let settings = Settings {
                port: state.wire.port(),
                ..settings
            };
            let taps_datagrams = settings.outer;
            let mut capture = Capture::new(now, wall, settings);
            if capture.has_keys() {
                // Answers to initiations are computed after these were shown.
                if let Some(key) = state.device.private_key() {
                    capture.write_identity(&KeyLog::of_identity(key));
                }
                state.device.set_key_log(true);
            }
            state.capture = Some(Box::new(capture));
            self.captures.store(true, Ordering::Relaxed);
            self.taps_datagrams.store(taps_datagrams, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Begins a handshake with each peer whose keys are wanted, because those of older sessions are
    /// gone; a few at a time, as each costs a key agreement.
    fn renew_sessions(&self) {
        let mut last: Option<PeerId> = None;
        loop {
            let more = self.with(|state, now| {
                let peers = state.device.peers_after(last).take(RENEWED_TOGETHER);
                let few: Vec<_> = peers.map(|peer| (peer.id, peer.endpoint)).collect();
                for (peer, endpoint) in &few {
                    let capture = state.capture.as_ref();
                    let wants = |endpoint| capture.is_some_and(|c| c.wants_keys(endpoint, true));
                    if endpoint.is_some_and(wants) {
                        state.device.initiate(now, *peer);
                    }
                }
                last = few.last().map(|(peer, _)| *peer);
                last.is_some()
            });
            if !more {
                return;
            }
        }
    }

    /// Takes what was written since; true when nothing more will be.
    fn take_captured(&self, emptied: &mut Buffer) -> bool {
        self.with(|state, _| match &mut state.capture {
            Some(capture) => {
                capture.take(emptied);
                capture.is_complete()
            }
            None => true,
        })
    }

    /// Ends the capture, and takes its last blocks.
    fn end_capture(&self, emptied: &mut Buffer) {
        self.captures.store(false, Ordering::Relaxed);
        self.taps_datagrams.store(false, Ordering::Relaxed);
        let ended = self.with(|state, now| {
            let mut capture = state.capture.take()?;
            state.device.set_key_log(state.key_log.is_some());
            capture.finish(now);
            Some(capture)
        });
        match ended {
            Some(mut capture) => capture.take(emptied),
            None => emptied.clear(),
        }
    }
}

/// A capture and who reads it; dropping it ends it.
struct Running {
    tunnel: Arc<Tunnel>,
    stream: UnixStream,
    buffer: Buffer,
    ended: bool,
}

impl Running {
    fn run(mut self) {
        let _watchdog = Watchdog(Arc::clone(&self.tunnel));
        let written = self.write();
        self.end();
        let written = written.and_then(|()| self.stream.write_all(&self.buffer));
        if let Err(error) = written {
            tracing::debug!(%error, "a capture ended with its reader");
        }
    }

    fn write(&mut self) -> io::Result<()> {
        self.stream.write_all(emit_errno(Errno::NONE).as_bytes())?;
        self.tunnel.renew_sessions();
        loop {
            let complete = self.tunnel.take_captured(&mut self.buffer);
            self.stream.write_all(&self.buffer)?;
            if complete || self.has_enough()? {
                return Ok(());
            }
        }
    }

    fn end(&mut self) {
        self.buffer.clear();
        if !self.ended {
            self.ended = true;
            self.tunnel.end_capture(&mut self.buffer);
        }
    }

    /// Pauses, and tells whether the reader has said that it has had enough.
    fn has_enough(&mut self) -> io::Result<bool> {
        let said = poll::wait_for(self.stream.as_fd(), Interest::READ, PAUSE)?;
        Ok(said && self.stream.read(&mut [0])? == 0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// What comes meanwhile is written together: so soon whoever looks on sees a packet.
const PAUSE: Duration = Duration::from_millis(20);

/// Handshakes that are begun in one go: data waits about a millisecond for them.
const RENEWED_TOGETHER: usize = 8;
