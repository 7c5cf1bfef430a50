//! When a command that stays shall end: SIGINT or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Waits until the process is asked to end.
pub(crate) async fn wait() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // Without signal handlers the default action ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
