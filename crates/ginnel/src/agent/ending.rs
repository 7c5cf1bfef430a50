//! How connections of commands ended that were broken off, kept until their commands ask.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::protocol::{Code, Failure};

/// The connections of one agent.
#[derive(Default)]
pub(super) struct Endings {
    begun: AtomicU64,
    /// At most [`BROKEN_MAX`]; at the bound the oldest goes and counts as an ordinary end.
    broken: Mutex<VecDeque<(u64, Failure)>>,
}

/// As many as may break at once: a command asks as soon as its pipe has ended.
const BROKEN_MAX: usize = 8_192;

impl Endings {
    /// Returns the number of a connection that begins.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps why a connection was broken off. Call it before its pipe ends.
    pub(super) fn keep(&self, connection: u64, failure: Failure) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() >= BROKEN_MAX {
            broken.pop_front();
        }
        broken.push_back((connection, failure));
    }

    /// Takes why a connection was broken off; `None` when it was not.
    pub(super) fn take(&self, connection: u64) -> Option<Failure> {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let index = broken.iter().position(|(kept, _)| *kept == connection)?;
        broken.remove(index).map(|(_, failure)| failure)
    }
}

/// Says what broke an open connection to `host` off.
pub(super) fn broken_off(host: &str, port: u16, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::TimedOut {
        return Failure::new(
            Code::RemoteSilent,
            format!("{host} port {port} has stopped to answer"),
            "see whether that machine still runs and both ends are still online",
        );
    }
    if error.kind() == io::ErrorKind::HostUnreachable {
        return Failure::new(
            Code::Unreachable,
            format!("{host} port {port}: {error}"),
            "a router behind the tunnel refuses: see its routes and firewall",
        );
    }
    Failure::new(
        Code::ConnectionReset,
        format!("{host} port {port} closed the connection by reset"),
        "see the log of the program at that port",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_told_once_and_the_oldest_is_forgotten_at_the_bound() {
        let endings = Endings::default();
        let reset = || broken_off("db", 5432, &io::ErrorKind::ConnectionReset.into());
        let first = endings.begin();
        endings.keep(first, reset());
        assert!(endings.take(first).is_some());
        assert!(endings.take(first).is_none());
        endings.keep(first, reset());
        let mut last = first;
        for _ in 0..BROKEN_MAX {
            last = endings.begin();
            endings.keep(last, reset());
        }
        assert!(endings.take(first).is_none());
        assert!(endings.take(last).is_some());
    }
}
