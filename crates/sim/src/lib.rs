//! A simulated world of real nodes: virtual time, a pretended internet, a stub of the control
//! plane, and a reference that knows which packets may arrive.
//!
//! A [`World`] is made from one seed and does the same on every run. What breaks a promise panics
//! with the seed and the script of everything that happened, so that `SIM_SEED=N` repeats it.

mod control;
mod host;
mod internet;
mod ledger;
mod nat;
mod programme;
mod seed;
mod transfer;
mod world;

pub use host::HostId;
pub use internet::Conditions;
pub use programme::{Programme, Transition};
pub use seed::{Seed, seeds};
pub use world::{Kind, World};

/// Returns the instant at which every simulated world begins.
///
/// Instants cannot be made, only read; a world looks at differences alone, so it does not matter
/// which one this is.
#[must_use]
pub fn beginning() -> std::time::Instant {
    static BEGINNING: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *BEGINNING.get_or_init(read)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one base of virtual time; nothing depends on its value"
)]
fn read() -> std::time::Instant {
    std::time::Instant::now()
}
