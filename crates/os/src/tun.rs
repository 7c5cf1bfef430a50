//! A TUN interface (Linux, networking/tuntap): IP packets in and out of the kernel.

mod super_packets;

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::Path,
};

use thiserror::Error;

use crate::link;

pub use self::super_packets::SuperPackets;

/// Bytes of the virtio_net_hdr before each packet when [`Tun::offload`] has it.
pub const VNET_HEADER: usize = 10;

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The interface's name, at most [`link::NAME_MAX`] bytes; a `%d` in it is numbered.
    pub name: &'a str,
    /// The most that is to be moved to the other side of segmentation and checksums.
    pub offload: OffloadMax,
    /// Further queues may be opened under the same name.
    pub multi_queue: bool,
    /// The interface is made now; one that exists is in use.
    pub exclusive: bool,
}

/// The most that is asked of the kernel; it may have less.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum OffloadMax {
    /// Each packet passes by itself, as it goes on the wire.
    Off,
    /// Checksums may be partial.
    Checksums,
    /// TCP segments may be large.
    Tcp,
    /// TCP segments and runs of UDP datagrams may be large.
    #[default]
    All,
}

/// Which packets larger than the MTU, or without checksum, pass through the TUN.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offload {
    /// Each packet has a virtio_net_hdr of [`VNET_HEADER`] bytes in front; checksums may be
    /// partial.
    pub vnet_header: bool,
    /// TCP segments of both families may be large.
    pub tcp: bool,
    /// UDP datagrams of both families may come as runs (USO, Linux 6.2).
    pub udp: bool,
}

/// Why there is no TUN.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No right to make interfaces (CAP_NET_ADMIN), or to open the device node.
    #[error("no permission to make a network interface")]
    Denied,
    /// /dev/net/tun is absent or its driver is not loaded.
    #[error("this system has no /dev/net/tun")]
    NoDevice,
    /// Another process holds the interface, or one of another kind has the name.
    #[error("the interface name is in use")]
    InUse,
    /// Empty, too long, or with bytes that no interface name has.
    #[error("an interface name has 1 to 15 bytes and no slash or space")]
    BadName,
    /// The system refused otherwise.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An open queue of a TUN interface; the interface goes with its last queue. It does not block.
#[derive(Debug)]
pub struct Tun {
    file: File,
    offload: Offload,
    multi_queue: bool,
}

impl Tun {
    /// Makes the interface, or opens one that exists and is persistent.
    pub fn open(options: &Options<'_>) -> Result<Self, OpenError> {
        if options.name.contains(char::is_whitespace) || [".", ".."].contains(&options.name) {
            return Err(OpenError::BadName);
        }
        let existed = link::index(options.name).is_some();
        let tun = Self::open_queue(options)?;
        if !existed {
            // Else any user could have a queue of it (drivers/net/tun.c, `tun_not_capable`).
            tun.set_owner(ROOT)?;
            if tun.is_shared()? {
                return Err(OpenError::InUse);
            }
        } else if options.multi_queue && !tun.is_persistent()? {
            // It lives by the queues of somebody else.
            return Err(OpenError::InUse);
        }
        Ok(tun)
    }

    fn open_queue(options: &Options<'_>) -> Result<Self, OpenError> {
        let request = link::request(options.name).map_err(|_| OpenError::BadName)?;
        let file = open_node()?;
        let header = options.offload > OffloadMax::Off;
        attach(&file, request, options, header)?;
        let offload = if header {
            negotiate(&file, options.offload)
        } else {
            Offload::default()
        };
        Ok(Self {
            file,
            offload,
            multi_queue: options.multi_queue,
        })
    }

    /// Takes over an open TUN, for instance from the process that made it, and lets no more pass as
    /// one than `max`.
    pub fn adopt(descriptor: OwnedFd, max: OffloadMax) -> io::Result<Self> {
        let file = File::from(descriptor);
        let mut request = link_request();
        interface(&file, &mut request)?;
        // SAFETY: TUNGETIFF has written this member of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a TUN without packet information",
            ));
        }
        set_nonblocking(&file)?;
        let offload = if flags & libc::IFF_VNET_HDR == 0 {
            Offload::default()
        } else {
            negotiate(&file, max)
        };
        Ok(Self {
            file,
            offload,
            multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
        })
    }

    /// Opens one more queue of the same interface, with the same offloads.
    pub fn another_queue(&self) -> Result<Self, OpenError> {
        Self::open_queue(&Options {
            name: &self.name()?,
            offload: self.offload.max(),
            multi_queue: true,
            exclusive: false,
        })
    }

    /// Tells whether [`Tun::another_queue`] can open one.
    #[must_use]
    pub fn is_multi_queue(&self) -> bool {
        self.multi_queue
    }

    /// Returns the interface's present name; fails once the interface is gone.
    pub fn name(&self) -> io::Result<String> {
        let mut request = link_request();
        interface(&self.file, &mut request)?;
        Ok(link::name_in(&request))
    }

    /// Tells which packets may pass.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Lets only this user, and who may configure the network, open queues of the interface.
    fn set_owner(&self, user: libc::uid_t) -> io::Result<()> {
        // SAFETY: TUNSETOWNER takes a number.
        let answer = unsafe {
            libc::ioctl(
                self.as_raw_fd(),
                libc::TUNSETOWNER,
                libc::c_ulong::from(user),
            )
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Tells whether somebody else has opened a queue before the interface had its owner, as far as
    /// the system shows it.
    fn is_shared(&self) -> io::Result<bool> {
        let name = self.name()?;
        let directory = Path::new("/sys/class/net").join(&name);
        let index = fs::read_to_string(directory.join("ifindex")).unwrap_or_default();
        // It may show the interfaces of another namespace.
        if index.trim().parse().ok() != link::index(&name) {
            return Ok(false);
        }
        let Ok(queues) = fs::read_dir(directory.join("queues")) else {
            return Ok(false);
        };
        let names = queues.flatten().map(|entry| entry.file_name());
        let sends = |name: &OsString| name.as_bytes().starts_with(b"tx-");
        Ok(names.filter(sends).count() > 1)
    }

    /// Tells whether the interface outlives its queues.
    fn is_persistent(&self) -> io::Result<bool> {
        let mut request = link_request();
        interface(&self.file, &mut request)?;
        // SAFETY: TUNGETIFF has written this member of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(flags & libc::IFF_PERSIST != 0)
    }

    /// Asks the kernel to let this pass all queues from now on; [`Tun::offload`] stays.
    fn set_offload(&self, offload: OffloadMax) -> io::Result<()> {
        set_offload(&self.file, offload)
    }

    /// Returns the MTU in bytes; `NotFound` while the interface is in another namespace.
    pub fn mtu(&self) -> io::Result<usize> {
        let name = self.name()?;
        link::mtu(&name).map_err(|error| match error.raw_os_error() {
            // Whoever asks the queue itself learns whether the interface is gone.
            Some(libc::ENODEV) => io::ErrorKind::NotFound.into(),
            Some(_) | None => error,
        })
    }

    /// Sets the MTU in bytes.
    pub fn set_mtu(&self, mtu: usize) -> io::Result<()> {
        link::set_mtu(&self.name()?, mtu)
    }

    /// Tells whether the interface is administratively up.
    pub fn is_up(&self) -> io::Result<bool> {
        link::is_up(&self.name()?)
    }

    /// Reads one packet; `WouldBlock` when there is none, an error for good when the interface is
    /// gone. `packet` must have room for 65,535 bytes and [`VNET_HEADER`] with offloads, else for
    /// the MTU: what does not fit is lost.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(packet)
    }

    /// Writes one packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }

    /// Writes one packet that lies in pieces.
    pub fn write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(pieces).map(drop)
    }

    /// Gives the descriptor away.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.file.into()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Tells whether an error of [`Tun::read`] or [`Tun::write`] means that the interface is gone.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    // EBADFD is what a queue answers whose interface was deleted (drivers/net/tun.c, `tun_get`).
    matches!(
        error.raw_os_error(),
        Some(libc::EBADFD | libc::ENODEV | libc::ENXIO)
    )
}

fn open_node() -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(NODE)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoDevice,
            Some(libc::EPERM | libc::EACCES) => OpenError::Denied,
            Some(_) | None => OpenError::Io(error),
        })
}

fn attach(
    file: &File,
    mut request: libc::ifreq,
    options: &Options<'_>,
    header: bool,
) -> Result<(), OpenError> {
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if header {
        flags |= libc::IFF_VNET_HDR;
    }
    if options.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if options.exclusive {
        flags |= libc::IFF_TUN_EXCL;
    }
    let flags = u16::try_from(flags).expect("all flags lie below 2^16");
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: TUNSETIFF takes a pointer to an ifreq, which lives through the call.
    let answer = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETIFF,
            std::ptr::from_mut(&mut request),
        )
    };
    if answer >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::Denied,
        Some(libc::EBUSY | libc::EEXIST) => OpenError::InUse,
        // An interface of another kind answers EINVAL, as does a bad name.
        Some(libc::EINVAL) if link::index(options.name).is_some() => OpenError::InUse,
        Some(libc::EINVAL) => OpenError::BadName,
        Some(_) | None => OpenError::Io(error),
    })
}

impl Offload {
    /// Returns what to ask for to get the same.
    #[must_use]
    pub fn max(self) -> OffloadMax {
        match (self.vnet_header, self.tcp, self.udp) {
            (false, _, _) => OffloadMax::Off,
            (true, false, _) => OffloadMax::Checksums,
            (true, true, false) => OffloadMax::Tcp,
            (true, true, true) => OffloadMax::All,
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.max() {
            OffloadMax::Off => "off",
            OffloadMax::Checksums => "checksums only",
            OffloadMax::Tcp => "TCP",
            OffloadMax::All => "TCP and UDP",
        })
    }
}

/// Asks for each offload that this kernel may have, the most first.
fn negotiate(file: &File, max: OffloadMax) -> Offload {
    let offers = [OffloadMax::All, OffloadMax::Tcp, OffloadMax::Checksums];
    let mut offers = offers.into_iter().filter(|offer| *offer <= max);
    let taken = offers.find(|offer| set_offload(file, *offer).is_ok());
    let taken = taken.unwrap_or_else(|| {
        // What was asked for before stays otherwise; without this the kernel has none anyway.
        set_offload(file, OffloadMax::Off).ok();
        OffloadMax::Off
    });
    Offload {
        vnet_header: true,
        tcp: taken >= OffloadMax::Tcp,
        udp: taken >= OffloadMax::All,
    }
}

fn set_offload(file: &File, offload: OffloadMax) -> io::Result<()> {
    let sums = libc::TUN_F_CSUM;
    let tcp = sums | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let features = libc::c_ulong::from(match offload {
        OffloadMax::Off => 0,
        OffloadMax::Checksums => sums,
        OffloadMax::Tcp => tcp,
        OffloadMax::All => tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6,
    });
    // SAFETY: TUNSETOFFLOAD takes a number.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, features) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn interface(file: &File, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: TUNGETIFF takes a pointer to an ifreq, borrowed exclusively.
    let answer = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNGETIFF,
            std::ptr::from_mut(request),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn link_request() -> libc::ifreq {
    link::request("x").expect("a valid name")
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

const NODE: &str = "/dev/net/tun";
const ROOT: libc::uid_t = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str) -> Options<'_> {
        Options {
            name,
            offload: OffloadMax::All,
            multi_queue: false,
            exclusive: false,
        }
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused_before_the_kernel_is_asked() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", ".."] {
            let error = Tun::open(&options(name)).unwrap_err();
            assert!(matches!(error, OpenError::BadName), "{name}: {error}");
        }
    }

    #[test]
    fn an_interface_has_its_name_and_mtu_and_is_taken_only_once() {
        let name = format!("gt{}", std::process::id());
        let tun = match Tun::open(&options(&name)) {
            Err(OpenError::Denied | OpenError::NoDevice) => {
                println!("SKIPPED: no right to make a TUN");
                return;
            }
            opened => opened.unwrap(),
        };
        assert_eq!(tun.name().unwrap(), name);
        tun.set_mtu(1300).unwrap();
        assert_eq!(tun.mtu().unwrap(), 1300);
        assert!(!tun.is_up().unwrap());
        assert!(matches!(
            Tun::open(&options(&name)).unwrap_err(),
            OpenError::InUse
        ));
        assert!(matches!(
            Tun::open(&options("lo")).unwrap_err(),
            OpenError::InUse
        ));
        let adopted = Tun::adopt(tun.into_descriptor(), OffloadMax::Checksums).unwrap();
        assert_eq!(adopted.offload().max(), OffloadMax::Checksums);
        assert!(adopted.offload().vnet_header);
        assert!(!adopted.is_multi_queue());
        drop(adopted);
        assert_eq!(link::index(&name), None);
    }
}
