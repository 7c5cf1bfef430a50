//! Control messages beside a datagram: its local address, the size of its segments, and its ECN
//! field (cmsg(3)).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    os::fd::AsRawFd as _,
    ptr,
};

use packet::ecn::Ecn;

use super::Envelope;
use crate::link::socklen;

/// Room for all control messages that are asked for or sent.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; ROOM]);

/// What came beside a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside {
    /// The address it was sent to, if it is one to answer from.
    pub(super) local: Option<IpAddr>,
    /// The size of each segment but the last, if several were joined.
    pub(super) segment: Option<usize>,
    pub(super) ecn: Ecn,
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; ROOM]);
}

/// Asks the kernel for the local address and the ECN field of each datagram, and if it is to `join`
/// for joined datagrams, all of which have the same.
///
/// Failure is harmless: an older kernel gives single datagrams.
pub(super) fn request_all(socket: &socket2::Socket, v6: bool, join: bool) {
    let (level, option) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    };
    set_option(socket, level, option, 1).ok();
    let field = if v6 {
        libc::IPV6_RECVTCLASS
    } else {
        libc::IP_RECVTOS
    };
    set_option(socket, level, field, 1).ok();
    if join {
        set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1).ok();
    }
}

/// Lets routers and this machine fragment what is too long for the path, or forbids it to both,
/// whatever this machine believes about the path.
pub(super) fn allow_fragments(socket: &socket2::Socket, v6: bool, allowed: bool) -> io::Result<()> {
    let (level, option, dont, probe) = if v6 {
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
            libc::IPV6_PMTUDISC_PROBE,
        )
    } else {
        (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
            libc::IP_PMTUDISC_PROBE,
        )
    };
    set_option(socket, level, option, if allowed { dont } else { probe })
}

/// Sets an option that takes a number.
pub(crate) fn set_option(
    socket: &socket2::Socket,
    level: i32,
    option: i32,
    value: i32,
) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which lives through the call.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&value).cast(),
            socklen::<i32>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the kernel choose among the sockets of a port: datagrams that begin with the byte `first`
/// go to the first `shares` of them, by the four bytes behind the first four, all others to the one
/// after these (socket(7), SO_ATTACH_REUSEPORT_CBPF).
pub(super) fn steer(socket: &socket2::Socket, first: u8, shares: NonZeroU8) -> io::Result<()> {
    let shares = u32::from(shares.get());
    let instruction = |code: u32, jump_false, operand| libc::sock_filter {
        code: u16::try_from(code).expect("codes of classic BPF are small"),
        jt: 0,
        jf: jump_false,
        k: operand,
    };
    // The packet begins behind the UDP header, and reads zeros behind its end; the answer is a
    // socket's place.
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 3, first.into()),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 4),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, shares),
        instruction(libc::BPF_RET | libc::BPF_A, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, shares),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("few"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `program` points to its instructions, which live through the call; the kernel keeps
    // a copy.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            ptr::from_ref(&program).cast(),
            socklen::<libc::sock_fprog>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads the control messages that the kernel put beside a datagram.
///
/// # Safety
///
/// `header` was filled by recvmsg(2) or recvmmsg(2), and its control buffer is still there.
pub(super) unsafe fn parse(header: &libc::msghdr) -> Beside {
    let mut beside = Beside::default();
    // SAFETY: the kernel wrote a well-formed list of `msg_controllen` bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: `next` points to a control message inside the buffer; the data of each kind
        // has the size that the kernel's interface gives it. Reads are unaligned to be safe.
        unsafe {
            let data = libc::CMSG_DATA(next);
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = ptr::read_unaligned(data.cast::<libc::c_int>());
                    beside.segment = usize::try_from(size).ok().filter(|size| *size > 0);
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    beside.ecn = Ecn::of_traffic_class(ptr::read_unaligned(data));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    let class = ptr::read_unaligned(data.cast::<libc::c_int>());
                    let class = u8::try_from(class & 0xff).expect("masked to 8 bits");
                    beside.ecn = Ecn::of_traffic_class(class);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in_pktinfo>());
                    let address = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                    beside.local = usable(address.into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in6_pktinfo>());
                    beside.local = usable(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    beside
}

/// Writes the control messages for sending and sets the header's control fields.
///
/// The header keeps a pointer into `control`, which must live and stay in place until it was sent.
pub(super) fn emit(
    header: &mut libc::msghdr,
    control: &mut Control,
    &Envelope { to, from, ecn }: &Envelope,
    segment: Option<u16>,
) {
    if from.is_none() && segment.is_none() && ecn == Ecn::NotEct {
        header.msg_control = ptr::null_mut();
        header.msg_controllen = 0;
        return;
    }
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = ROOM;
    // SAFETY: the buffer is aligned, zeroed where lengths are read, and `ROOM` holds one address,
    // one size and one field, as the assertion below shows; `push` writes inside it.
    unsafe {
        let mut used = 0;
        let mut next = libc::CMSG_FIRSTHDR(header);
        if let Some(segment) = segment {
            used += push(next, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
            next = control.0.as_mut_ptr().add(used).cast();
        }
        match from {
            Some(IpAddr::V4(from)) => {
                let mut info: libc::in_pktinfo = std::mem::zeroed();
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(from.octets());
                used += push(next, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(from)) => {
                let mut info: libc::in6_pktinfo = std::mem::zeroed();
                info.ipi6_addr.s6_addr = from.octets();
                used += push(next, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        if ecn != Ecn::NotEct {
            let next = control.0.as_mut_ptr().add(used).cast();
            let (level, kind) = if to.is_ipv6() {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            } else {
                (libc::IPPROTO_IP, libc::IP_TOS)
            };
            used += push(next, level, kind, libc::c_int::from(ecn.bits()));
        }
        header.msg_controllen = used;
    }
}

/// Writes one control message and returns its length with padding.
///
/// # Safety
///
/// `at` is aligned and has room for `CMSG_SPACE(size_of::<T>())` bytes.
unsafe fn push<T>(at: *mut libc::cmsghdr, level: i32, kind: i32, value: T) -> usize {
    let size = socklen::<T>();
    // SAFETY: by this function's contract.
    unsafe {
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = wide(libc::CMSG_LEN(size));
        ptr::write_unaligned(libc::CMSG_DATA(at).cast(), value);
        wide(libc::CMSG_SPACE(size))
    }
}

fn usable(address: IpAddr) -> Option<IpAddr> {
    (!address.is_unspecified() && !address.is_multicast()).then_some(address)
}

fn wide(length: libc::c_uint) -> usize {
    usize::try_from(length).expect("32 bits fit")
}

const ROOM: usize = 128;
// SAFETY: CMSG_SPACE only computes.
const _: () =
    assert!(ROOM >= unsafe { libc::CMSG_SPACE(20) as usize + 2 * libc::CMSG_SPACE(4) as usize });
