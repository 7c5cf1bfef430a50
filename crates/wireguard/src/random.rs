//! Where unpredictable bytes come from.

/// A cryptographic random generator; the shell gives the system's, tests a seeded one.
pub trait Random {
    /// Fills `bytes`; never fails and never repeats itself.
    fn fill(&mut self, bytes: &mut [u8]);
}
