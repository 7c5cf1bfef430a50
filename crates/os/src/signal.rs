//! Signals as something to read, for event loops without tokio.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use nix::sys::{
    signal::{SigSet, Signal as Number},
    signalfd::{SfdFlags, SignalFd},
};

/// The signals that ask this process to end: SIGTERM, SIGINT and SIGHUP.
///
/// They are blocked in the thread that makes this value, and in threads it starts later; make it
/// before any other thread.
#[derive(Debug)]
pub struct Termination {
    descriptor: SignalFd,
}

impl Termination {
    /// Starts listening; from now on these signals no longer end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for number in [Number::SIGTERM, Number::SIGINT, Number::SIGHUP] {
            set.add(number);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let descriptor = SignalFd::with_flags(&set, flags)?;
        Ok(Self { descriptor })
    }

    /// Tells whether one of the signals came since the last call; does not block.
    pub fn arrived(&self) -> io::Result<bool> {
        Ok(self.descriptor.read_signal()?.is_some())
    }
}

impl AsRawFd for Termination {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_fd().as_raw_fd()
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
