//! What was received from peers and sent to them.

/// Datagrams that are authentic or were sealed, with all headers of WireGuard; only grows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
}

impl Traffic {
    pub(crate) fn note_received(&mut self, datagrams: usize, bytes: usize) {
        self.received_datagrams = self.received_datagrams.saturating_add(datagrams as u64);
        self.received_bytes = self.received_bytes.saturating_add(bytes as u64);
    }

    pub(crate) fn note_sent(&mut self, datagrams: usize, bytes: usize) {
        self.sent_datagrams = self.sent_datagrams.saturating_add(datagrams as u64);
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64);
    }

    /// Adds what another one has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        let add = u64::saturating_add;
        self.received_datagrams = add(self.received_datagrams, other.received_datagrams);
        self.received_bytes = add(self.received_bytes, other.received_bytes);
        self.sent_datagrams = add(self.sent_datagrams, other.sent_datagrams);
        self.sent_bytes = add(self.sent_bytes, other.sent_bytes);
    }
}
