//! Reads a program for a state machine out of the bytes that a fuzzer invents.

use std::time::{Duration, Instant, SystemTime};

/// The bytes that are left; when there are none, every reading is zero.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads from the front of `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Tells whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Takes a big-endian number of two bytes.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Takes `length` bytes, or what is left.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes a span of time: mostly short ones, up to about three hours.
    pub fn duration(&mut self) -> Duration {
        let byte = self.byte();
        Duration::from_millis(u64::from(byte & 0x0f) << (byte >> 4))
            + Duration::from_secs(if byte == 0xff { 10_000 } else { 0 })
    }
}

/// The same instant in all runs of one process: state machines only look at differences.
#[must_use]
pub fn base() -> (Instant, SystemTime) {
    static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    (*BASE.get_or_init(Instant::now), wall)
}

/// A small generator (`SplitMix64`), for seeds and for the corpus.
#[derive(Clone, Debug)]
pub struct Generator(pub u64);

impl Generator {
    /// Draws a number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Draws a number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a length fits 64 bits");
        usize::try_from(self.next() % bound).expect("smaller than a length")
    }

    /// Draws bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

impl wireguard::Random for Generator {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next().to_be_bytes()[0];
        }
    }
}
