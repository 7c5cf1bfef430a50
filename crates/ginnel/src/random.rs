//! The machine's randomness in the forms that the core and the control plane take.

/// Draws from the system, every time anew.
pub(crate) struct OsRandom;

impl wireguard::Random for OsRandom {
    fn fill(&mut self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}

impl control::Random for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        os::random::fill(bytes);
    }
}
