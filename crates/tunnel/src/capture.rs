//! A capture of what passes the tunnel, for whoever writes it to a file or a pipe.

use node::capture::{self, Buffer, Settings};

use crate::{Code, Failure, Tunnel};

/// A running capture; dropping it ends it.
///
/// It never holds the tunnel up: what is not taken in time is missing, and is counted in the last
/// blocks.
pub struct Capture {
    tunnel: Tunnel,
    /// Handed back and forth, so that the tunnel takes no memory while it is locked.
    buffer: Buffer,
    ended: bool,
}

impl Tunnel {
    /// Begins a capture, whose file says this tunnel's UDP port; one may run at a time.
    pub fn capture(&self, settings: Settings) -> Result<Capture, Failure> {
        let settings = Settings {
            port: self.port(),
            ..settings
        };
        let wall = os::clock::wall();
        if !self.with(|node, now| node.start_capture(now, wall, settings)) {
            return Err(Failure::new(
                Code::TooMany,
                "a capture of this node runs already",
                "wait until it ends, or end it",
            ));
        }
        Ok(Capture {
            tunnel: self.clone(),
            buffer: capture::buffer(),
            ended: false,
        })
    }
}

impl Capture {
    /// Waits for the next blocks; `None` when the capture has all that it should have.
    pub async fn next(&mut self) -> Option<&[u8]> {
        loop {
            let buffer = &mut self.buffer;
            let complete = self.tunnel.with(|node, _| {
                let running = node.capture()?;
                running.take(buffer);
                Some(running.is_complete())
            });
            if !self.buffer.is_empty() {
                return Some(&self.buffer);
            }
            if complete.unwrap_or(true) {
                return None;
            }
            self.tunnel.shared.captured.notified().await;
        }
    }

    /// Ends the capture and returns its last blocks.
    pub fn end(&mut self) -> &[u8] {
        self.buffer.clear();
        if !self.ended {
            self.ended = true;
            let ended = self.tunnel.with(|node, now| node.end_capture(now));
            if let Some(mut ended) = ended {
                ended.take(&mut self.buffer);
            }
        }
        &self.buffer
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}
