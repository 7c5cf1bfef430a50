//! A self-test of runs over the loopback interface: some kernels refuse them, some mangle them.

use std::{io, net::Ipv4Addr, os::fd::AsFd as _, sync::atomic::Ordering, time::Duration};

use super::{Arrival, Batch, Envelope, Options, Socket};
use crate::poll::{Interest, wait_for};

/// What this kernel does with datagrams that pass as one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Runs {
    /// A run that is sent arrives as the datagrams that it was made of (UDP_SEGMENT).
    pub sent: bool,
    /// Several datagrams are received as one (UDP_GRO).
    pub joined: bool,
}

/// Tries runs over loopback, which takes less than a millisecond; fails when that cannot be used.
///
/// What a network card makes of them is another matter, and is found out when they are sent.
pub fn probe() -> io::Result<Runs> {
    let bind = || Socket::bind((Ipv4Addr::LOCALHOST, 0).into(), &Options::default());
    probe_with(&bind()?, &bind()?)
}

pub(super) fn probe_with(sender: &Socket, receiver: &Socket) -> io::Result<Runs> {
    let mut runs = Runs {
        sent: true,
        joined: false,
    };
    let mut batch = Batch::default();
    // Some kernels mangle those whose last datagram is full, others those where it is short.
    for last in [SEGMENT, SEGMENT / 2] {
        let length = SEGMENT * (COUNT - 1) + last;
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
        let to = receiver.local_address();
        let sent = sender.send_run(&Envelope::to(to), &bytes, SEGMENT);
        sent.map_err(io::Error::other)?;
        let mut arrived = Vec::new();
        while arrived.len() < COUNT {
            if !wait_for(receiver.as_fd(), Interest::READ, PATIENCE)? {
                break;
            }
            receiver.recv_batch(&mut batch)?;
            let is_run = |arrival: Arrival<'_>| arrival.bytes.len() > arrival.segment;
            runs.joined |= batch.arrivals().any(is_run);
            arrived.extend(batch.datagrams().map(|one| one.bytes.to_vec()));
        }
        let refused = sender.refusals.load(Ordering::Relaxed) > 0;
        runs.sent &= !refused && arrived.iter().eq(bytes.chunks(SEGMENT));
    }
    Ok(runs)
}

const SEGMENT: usize = 1_000;
const COUNT: usize = 4;
/// Loopback delivers before the call that sends returns.
const PATIENCE: Duration = Duration::from_millis(100);
