//! Options of the system's TCP connections.

use std::{io, os::fd::BorrowedFd};

use socket2::SockRef;

/// Chooses the congestion control of a connection by the kernel's name for it, such as `cubic`;
/// fails for one that this kernel does not have or that only root may choose.
pub fn set_congestion_control(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_congestion(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn a_kernel_takes_what_it_has_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_congestion_control(stream.as_fd(), "reno").unwrap();
        let name = SockRef::from(&stream).tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno"), "{name:?}");
        assert!(set_congestion_control(stream.as_fd(), "no-such-thing").is_err());
    }
}
