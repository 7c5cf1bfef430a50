//! Who this process is, and the starting of others.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, Stdio},
};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::geteuid,
};

/// Returns the effective user id.
#[must_use]
pub fn euid() -> u32 {
    geteuid().as_raw()
}

/// Returns the name of this machine.
pub fn host_name() -> io::Result<String> {
    let name = nix::unistd::gethostname().map_err(io::Error::from)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Raises the limit of open descriptors to the most that this process may have; returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Starts `command` in a session of its own (setsid(2)), so that neither the terminal nor its
/// signals reach it.
///
/// Each of `descriptors` is open in the child under the number beside it and closed here; numbers
/// must be 3 or more and ascend. Standard input is `/dev/null`; the caller chooses the others.
pub fn spawn_detached(
    command: &mut Command,
    descriptors: Vec<(OwnedFd, RawFd)>,
) -> io::Result<Child> {
    // Out of the way of the numbers they move to, so that no move overwrites another's source.
    let moved = descriptors
        .into_iter()
        .map(|(descriptor, number)| Ok((duplicate_above(&descriptor, ABOVE)?, number)))
        .collect::<io::Result<Vec<_>>>()?;
    let moves: Vec<_> = moved
        .iter()
        .map(|(descriptor, number)| (descriptor.as_raw_fd(), *number))
        .collect();
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec the closure only makes system calls that are safe in a signal
    // handler (setsid, dup2) and reads memory that it owns; it does not allocate.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            for (from, to) in &moves {
                if libc::dup2(*from, *to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let child = command.spawn();
    drop(moved);
    child
}

/// Adopts the descriptor `number` that the parent left open for us; it will not pass to children.
///
/// `None` if it is not open. Call it once for a number, and only for one that the parent named.
#[must_use]
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    if number <= 2 {
        return None;
    }
    // SAFETY: fcntl on any number is safe; a closed one answers EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if flags < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and by this function's contract nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Replaces this process's standard output and error by `/dev/null`.
pub fn silence() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    for number in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both descriptors are open or become so; dup2 has no other precondition.
        if unsafe { libc::dup2(null.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn duplicate_above(descriptor: &OwnedFd, least: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: fcntl on an open descriptor that we borrow.
    let copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made `copy` for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Descriptors on their way to a child are parked from here on.
const ABOVE: RawFd = 100;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_detached_child_leads_its_own_session_and_has_what_it_was_given() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "read line <&3; echo \"$line $$ $(ps -o sid= -p $$)\" >&3",
        ]);
        let mut child = spawn_detached(&mut command, vec![(theirs.into(), 3)]).unwrap();
        ours.write_all(b"hello\n").unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words[0], "hello");
        assert_eq!(words[1], words[2], "the child must lead its session");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_inherited() {
        assert!(inherited(4_000).is_none());
        assert!(inherited(1).is_none());
    }
}
