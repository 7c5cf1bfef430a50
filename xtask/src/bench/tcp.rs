//! The user-mode TCP beside the kernel's, over a seeded relay.

use anyhow::{Result, ensure};

use crate::step;

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  tcp takes --seeds N, --seconds N and --only PREFIX of cases as often as wanted, or --soak SECONDS,
      which compares every byte over a bad link and measures nothing; it needs root and iproute2";

/// Runs the bench, which prints its table itself.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let bench = ["bench", "--quiet", "--package", "xtask", "--bench", "tcp"];
    let mut command = step::cargo(&bench);
    command.arg("--").args(arguments);
    ensure!(command.status()?.success(), "the bench failed");
    Ok(())
}
