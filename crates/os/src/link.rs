//! One network interface by its name: MTU and state, and word of their changes.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// The longest name of an interface in bytes (IFNAMSIZ without its final zero).
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Returns the index of the interface `name`, if there is one.
#[must_use]
pub fn index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Returns the MTU of the interface in bytes.
pub fn mtu(name: &str) -> io::Result<usize> {
    let mut request = request(name)?;
    control(libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU has written this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(io::Error::other)
}

/// Sets the MTU of the interface in bytes.
pub fn set_mtu(name: &str, mtu: usize) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu =
        i32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    control(libc::SIOCSIFMTU, &mut request)
}

/// Sets how many packets wait for a reader of the TUN before the kernel drops.
pub fn set_queue_length(name: &str, packets: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_metric = packets.into();
    control(libc::SIOCSIFTXQLEN, &mut request)
}

/// Tells whether the interface is administratively up.
pub fn is_up(name: &str) -> io::Result<bool> {
    Ok(flags(name)? & IFF_UP != 0)
}

/// Takes the interface up or down.
pub fn set_up(name: &str, up: bool) -> io::Result<()> {
    let flags = flags(name)?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = if up { flags | IFF_UP } else { flags & !IFF_UP };
    control(libc::SIOCSIFFLAGS, &mut request)
}

/// Becomes readable whenever some interface of this namespace has changed.
#[derive(Debug)]
pub struct Watch {
    descriptor: OwnedFd,
}

impl Watch {
    /// Starts watching; does not block.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes numbers only.
        let number = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made `number` for us alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        // SAFETY: all zeros is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("16");
        address.nl_groups = u32::try_from(libc::RTMGRP_LINK).expect("1");
        let length = socklen::<libc::sockaddr_nl>();
        // SAFETY: the pointer and length describe `address`, which lives through the call.
        let bound = unsafe { libc::bind(number, std::ptr::from_ref(&address).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { descriptor })
    }

    /// Forgets the changes so far; true if there were any. Look at the interface afterwards.
    pub fn drain(&self) -> bool {
        let mut changed = false;
        let mut scratch = [0_u8; 8192];
        // Bounded: what is left makes the next wait return at once.
        for _ in 0..MESSAGES_MAX {
            // SAFETY: the pointer and length describe `scratch`.
            let length = unsafe {
                libc::recv(
                    self.descriptor.as_raw_fd(),
                    scratch.as_mut_ptr().cast(),
                    scratch.len(),
                    0,
                )
            };
            if length < 0 {
                // An overrun (ENOBUFS) means that there were more changes than fit.
                return changed || io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
            }
            changed = true;
        }
        changed
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_fd().as_raw_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Makes an interface request for `name`.
pub(crate) fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(['\0', '/']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeros is a valid ifreq: an array of bytes and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Reads the name out of an interface request.
pub(crate) fn name_in(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| byte.to_ne_bytes()[0])
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("addresses and options are small")
}

fn flags(name: &str) -> io::Result<i16> {
    let mut request = request(name)?;
    control(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has written this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

fn control(code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // Any socket will do; a datagram socket needs no privilege.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: all codes passed here take a pointer to an ifreq, borrowed exclusively.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), code, std::ptr::from_mut(request)) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const IFF_UP: i16 = 1;
const MESSAGES_MAX: usize = 256;
const _: () = assert!(libc::IFF_UP == 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_an_index_and_an_mtu() {
        assert_eq!(index("lo"), Some(1));
        assert!(mtu("lo").unwrap() >= 1280);
    }

    #[test]
    fn a_name_that_cannot_be_one_is_invalid_and_another_is_absent() {
        for name in ["", "a-name-that-is-too-long", "a/b"] {
            assert_eq!(mtu(name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        let error = mtu("absent0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(index("absent0"), None);
    }
}
