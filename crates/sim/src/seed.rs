//! Chance: everything random in a world follows from one number.

use std::{env, ops::Range, time::Duration};

/// A generator (`SplitMix64`): fast, small, and good enough to shuffle a world.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// Begins the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws a number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Draws a number below `bound`.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a length fits 64 bits");
        usize::try_from(self.number() % bound).expect("smaller than a length")
    }

    /// Decides with a probability of `percent` in a hundred.
    pub fn happens(&mut self, percent: u8) -> bool {
        self.number() % 100 < u64::from(percent)
    }

    /// Draws a span of time below `bound`, in microseconds.
    pub fn duration(&mut self, bound: Duration) -> Duration {
        let micros = u64::try_from(bound.as_micros()).expect("a delay fits 64 bits");
        Duration::from_micros(self.number() % micros.max(1))
    }

    /// Draws 32 bytes.
    pub fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        wireguard::Random::fill(self, &mut bytes);
        bytes
    }

    /// Splits off an independent sequence.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self(self.number())
    }
}

impl wireguard::Random for Seed {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.number().to_be_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Returns the seeds that a test runs: `runs`, times `SIM_RUNS` in percent when that is set, or
/// the one in `SIM_SEED`.
#[must_use]
pub fn seeds(runs: u64) -> Range<u64> {
    let number = |name| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    if let Some(seed) = number("SIM_SEED") {
        return seed..seed + 1;
    }
    let percent = number("SIM_RUNS").unwrap_or(100);
    0..(runs * percent).div_ceil(100)
}
