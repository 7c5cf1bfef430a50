//! Numbers that nobody can guess, drawn from the seed by SipHash (RFC 6528, RFC 6056).

use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::SocketAddr,
    time::Duration,
};

use siphasher::sip::{SipHasher13, SipHasher24};

/// A key for hash tables that a peer cannot flood with collisions.
#[derive(Clone, Copy)]
pub(crate) struct TableKey(u64, u64);

/// The secrets of one stack.
pub(crate) struct Secret {
    sequence: (u64, u64),
    port: (u64, u64),
    cookie: (u64, u64),
    counter: u64,
}

impl Secret {
    pub(crate) fn new(seed: &[u8; 32]) -> (Self, TableKey) {
        let word = |at: usize| u64::from_le_bytes(seed[at..at + 8].try_into().expect("8 bytes"));
        let draw = |label: u64| {
            let mut hasher = SipHasher24::new_with_keys(word(0) ^ word(16), word(8) ^ word(24));
            hasher.write_u64(label);
            hasher.write(seed);
            hasher.finish()
        };
        let secret = Self {
            sequence: (draw(1), draw(2)),
            port: (draw(3), draw(4)),
            cookie: (draw(7), draw(8)),
            counter: 0,
        };
        (secret, TableKey(draw(5), draw(6)))
    }

    /// Returns the initial sequence number: a clock of 4 µs plus a keyed hash of the four-tuple.
    pub(crate) fn initial_sequence(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        uptime: Duration,
    ) -> u32 {
        let clock = uptime.as_micros() / 4;
        let clock = u32::try_from(clock & u128::from(u32::MAX)).expect("masked to 32 bits");
        clock.wrapping_add(self.keyed(self.sequence, local, remote, 0))
    }

    /// Returns an offset for the timestamps of a connection, the same for the same four-tuple, so
    /// that they only grow from one incarnation to the next (RFC 7323, 5.4; RFC 6191).
    pub(crate) fn timestamp_offset(&self, local: SocketAddr, remote: SocketAddr) -> u32 {
        self.keyed(self.sequence, local, remote, 1)
    }

    /// Returns where to begin the search for a port: a number that differs for every call.
    pub(crate) fn port_hint(&mut self, remote: SocketAddr) -> u16 {
        self.counter += 1;
        let [a, b, ..] = self
            .keyed(self.port, remote, remote, self.counter)
            .to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// Returns a keyed hash of what a SYN cookie stands for.
    pub(crate) fn cookie(&self, subject: &impl Hash) -> u32 {
        let mut hasher = SipHasher24::new_with_keys(self.cookie.0, self.cookie.1);
        subject.hash(&mut hasher);
        u32::try_from(hasher.finish() >> 32).expect("the upper half of 64 bits")
    }

    fn keyed(&self, key: (u64, u64), a: SocketAddr, b: SocketAddr, counter: u64) -> u32 {
        let mut hasher = SipHasher24::new_with_keys(key.0, key.1);
        (a, b, counter).hash(&mut hasher);
        u32::try_from(hasher.finish() >> 32).expect("the upper half of 64 bits")
    }
}

impl BuildHasher for TableKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}
