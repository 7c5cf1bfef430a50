//! The machine's randomness in the form that the control plane takes.

/// Draws from the system, every time anew.
pub(crate) struct OsRandom;

impl control::Random for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}
