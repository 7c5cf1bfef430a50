//! The one place where the system's randomness is drawn (getrandom(2)).

use std::io;

/// Fills `bytes` with unpredictable bytes; waits only while the machine boots.
///
/// # Panics
///
/// If the kernel has no getrandom(2): without randomness no key may be made.
pub fn fill(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length describe the exclusively borrowed rest of `bytes`.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(filled) {
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(_) => {
                let error = io::Error::last_os_error();
                assert!(
                    error.kind() == io::ErrorKind::Interrupted,
                    "getrandom(2): {error}"
                );
            }
        }
    }
}

/// Returns `N` unpredictable bytes.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_alike() {
        assert_ne!(bytes::<32>(), bytes::<32>());
        let mut long = vec![0; 100_000];
        fill(&mut long);
        assert!(
            long.chunks(1000)
                .all(|chunk| chunk.iter().any(|byte| *byte != 0))
        );
    }
}
