//! Waiting for several descriptors at once, for event loops without tokio (ppoll(2), epoll(7)).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::epoll::{self, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// What to wait for, or what came.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Interest {
    /// There is something to read, or the other end is gone.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ready {
    /// Reading will not block.
    pub readable: bool,
    /// Writing will not block.
    pub writable: bool,
    /// The device or the other end is gone; reading and writing tell more.
    pub closed: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self {
        readable: true,
        writable: false,
    };
    /// Writing only.
    pub const WRITE: Self = Self {
        readable: false,
        writable: true,
    };
}

/// A set of descriptors, filled anew for each wait; keeps its memory.
#[derive(Debug, Default)]
pub struct Poll {
    entries: Vec<libc::pollfd>,
}

impl Poll {
    /// Forgets all descriptors.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds a descriptor and returns its place in [`Poll::ready`].
    ///
    /// It must stay open until the wait is over, which holds when it outlives the turn of the
    /// event loop; a closed one is reported as `closed`.
    pub fn add(&mut self, descriptor: BorrowedFd<'_>, interest: Interest) -> usize {
        let mut events = 0;
        if interest.readable {
            events |= libc::POLLIN;
        }
        if interest.writable {
            events |= libc::POLLOUT;
        }
        self.entries.push(libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events,
            revents: 0,
        });
        self.entries.len() - 1
    }

    /// Waits until one is ready or `timeout` is over (`None`: without bound); false on timeout.
    ///
    /// A signal ends the wait too, as if the time were over.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let count = libc::nfds_t::try_from(self.entries.len()).expect("fewer than 2^32");
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the pointer and count describe `entries`, which is borrowed exclusively; the
        // timeout is null or points to a value that lives through the call.
        let ready =
            unsafe { libc::ppoll(self.entries.as_mut_ptr(), count, timeout, std::ptr::null()) };
        if ready >= 0 {
            return Ok(ready > 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted {
            for entry in &mut self.entries {
                entry.revents = 0;
            }
            return Ok(false);
        }
        Err(error)
    }

    /// Tells what the descriptor that was added as number `place` is ready for.
    #[must_use]
    pub fn ready(&self, place: usize) -> Ready {
        let Some(entry) = self.entries.get(place) else {
            return Ready::default();
        };
        let any = |events: i16| entry.revents & events != 0;
        Ready {
            readable: any(libc::POLLIN),
            writable: any(libc::POLLOUT),
            closed: any(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL),
        }
    }
}

/// Descriptors that one thread reads from, always the same; how many they are costs nothing.
#[derive(Debug)]
pub struct Readers {
    epoll: epoll::Epoll,
    events: Vec<EpollEvent>,
}

impl Readers {
    /// Numbers the descriptors as they come; each must stay open for as long as this waits.
    pub fn new<'d>(descriptors: impl IntoIterator<Item = BorrowedFd<'d>>) -> io::Result<Self> {
        let epoll = epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut events = Vec::new();
        for (place, descriptor) in (0..).zip(descriptors) {
            epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, place))?;
            events.push(EpollEvent::empty());
        }
        Ok(Self { epoll, events })
    }

    /// Waits until some are readable or gone and returns how many; none after a signal.
    pub fn wait(&mut self) -> io::Result<usize> {
        match self.epoll.wait(&mut self.events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => Ok(0),
            waited => Ok(waited?),
        }
    }

    /// Returns the number of the descriptor that was found as `found`, in the order in which they
    /// became ready.
    #[must_use]
    pub fn place(&self, found: usize) -> usize {
        let event = self.events.get(found).map_or(0, EpollEvent::data);
        usize::try_from(event).expect("counted from zero")
    }
}

/// Waits for one descriptor; false on timeout.
pub fn wait_for(
    descriptor: BorrowedFd<'_>,
    interest: Interest,
    timeout: Duration,
) -> io::Result<bool> {
    let mut poll = Poll::default();
    poll.add(descriptor, interest);
    poll.wait(Some(timeout))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn only_the_descriptor_that_has_something_is_readable() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let (_other_writer, idle) = UnixStream::pair().unwrap();
        let mut poll = Poll::default();
        let first = poll.add(reader.as_fd(), Interest::READ);
        let second = poll.add(idle.as_fd(), Interest::READ);
        assert!(!poll.wait(Some(Duration::ZERO)).unwrap());
        writer.write_all(b"x").unwrap();
        assert!(poll.wait(None).unwrap());
        assert!(poll.ready(first).readable);
        assert_eq!(poll.ready(second), Ready::default());
    }

    #[test]
    fn readers_are_found_until_they_are_read_and_none_before_the_others() {
        let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
        let mut readers = Readers::new(pairs.iter().map(|(_, reader)| reader.as_fd())).unwrap();
        for place in [2, 0] {
            (&pairs[place].0).write_all(b"x").unwrap();
        }
        assert_eq!(readers.wait().unwrap(), 2);
        assert_eq!([0, 1].map(|found| readers.place(found)), [2, 0]);
        (&pairs[2].1).read_exact(&mut [0]).unwrap();
        assert_eq!(readers.wait().unwrap(), 1);
        assert_eq!(readers.place(0), 0);
    }
}
