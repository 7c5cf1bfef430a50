//! Sealed datagrams on their way to the kernel, gathered by destination, so that few calls send
//! them.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    net::{IpAddr, SocketAddr},
};

use os::udp::{self, Envelope, SendError, Socket, Sources};
use packet::ecn::Ecn;

use super::socket::Sockets;

/// Datagrams that the node has made and the kernel has not taken yet.
///
/// Bounded by its buffer: while it is full, nothing more is taken from the node, whose own
/// bounds then hold back whoever writes.
pub(super) struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    datagrams: Vec<Datagram>,
    /// In the order in which they are sent, which for each destination is that of its datagrams.
    parcels: Vec<Parcel>,
    /// Of `parcels`, how many the kernel has taken.
    sent: usize,
    /// The parcel that a datagram to this destination may join.
    latest: BTreeMap<SocketAddr, usize>,
    /// The socket towards it has no room: the driver waits until there is some.
    pub(super) blocked: Option<SocketAddr>,
    /// Our address that each peer last wrote to, from which answers go; `None` where routing
    /// always chooses.
    sources: Option<Sources>,
    /// Datagrams that the network did not take, since [`Outbox::take_lost`].
    lost: u64,
}

/// Where a datagram lies, and the place of its parcel.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Datagram {
    parcel: usize,
    start: usize,
    length: usize,
}

/// Datagrams to one destination, with one ECN field and of one length, the last one perhaps
/// shorter.
struct Parcel {
    destination: SocketAddr,
    ecn: Ecn,
    count: usize,
    length: usize,
    segment: usize,
    /// A shorter datagram ends a parcel (udp(7), `UDP_SEGMENT`), and so does one that is `whole`.
    ended: bool,
    /// Nobody may fragment it; it is alone.
    whole: bool,
}

const BUFFER: usize = 256 * 1024;

/// What an initiation begins with (whitepaper 5.4.2).
const INITIATION_TYPE: u8 = 1;

/// No datagram is longer.
const DATAGRAM_MAX: usize = 65_535;

impl Outbox {
    /// Sends from where peers called if the sockets are `fixed`: bound to all addresses, and to a
    /// port that is known. Whoever draws a port calls others, and may move to another network.
    pub(super) fn new(fixed: bool) -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            used: 0,
            datagrams: Vec::new(),
            parcels: Vec::new(),
            sent: 0,
            latest: BTreeMap::new(),
            blocked: None,
            sources: fixed.then(Sources::default),
            lost: 0,
        }
    }

    /// Remembers that `peer` wrote to our address `local`, see [`Sources::note`].
    pub(super) fn note_source(&mut self, peer: SocketAddr, local: Option<IpAddr>, proven: bool) {
        if let Some(sources) = &mut self.sources {
            sources.note(peer, local, proven);
        }
    }

    /// Returns our address towards `peer`, if it must be a certain one.
    pub(super) fn source(&self, peer: SocketAddr) -> Option<IpAddr> {
        self.sources.as_ref()?.source(peer)
    }

    /// Forgets our address towards `peer`, which is no longer ours.
    pub(super) fn forget_source(&mut self, peer: SocketAddr) {
        if let Some(sources) = &mut self.sources {
            sources.forget(peer);
        }
    }

    /// Counts datagrams that were not sent.
    pub(super) fn note_lost(&mut self, error: SendError, to: SocketAddr, datagrams: usize) {
        self.lost += note_lost(error, to, datagrams);
    }

    /// Returns how many datagrams were lost since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    pub(super) fn has_room(&self) -> bool {
        self.buffer.len() - self.used >= DATAGRAM_MAX
    }

    /// Returns where the next datagram is to be written.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Takes a copy of a datagram; false when the buffer has no room for it.
    pub(super) fn copy(&mut self, destination: SocketAddr, ecn: Ecn, datagram: &[u8]) -> bool {
        let Some(room) = self.room().get_mut(..datagram.len()) else {
            return false;
        };
        room.copy_from_slice(datagram);
        self.push(destination, ecn, datagram.len());
        true
    }

    /// Takes the datagrams that were written to `room`.
    pub(super) fn push_run(&mut self, run: node::Run) {
        let mut left = run.length;
        while left > 0 {
            let length = left.min(run.segment);
            self.push_one(run.destination, run.ecn, length, run.whole);
            left -= length;
        }
    }

    /// Takes the datagram of `length` bytes that was written to `room`.
    fn push(&mut self, destination: SocketAddr, ecn: Ecn, length: usize) {
        self.push_one(destination, ecn, length, false);
    }

    fn push_one(&mut self, destination: SocketAddr, ecn: Ecn, length: usize, whole: bool) {
        if self.buffer.get(self.used) == Some(&INITIATION_TYPE)
            && let Some(sources) = &mut self.sources
        {
            sources.begin_handshake(destination);
        }
        let parcel = self.parcel_for(destination, ecn, length, whole);
        self.datagrams.push(Datagram {
            parcel,
            start: self.used,
            length,
        });
        self.used += length;
    }

    fn parcel_for(
        &mut self,
        destination: SocketAddr,
        ecn: Ecn,
        length: usize,
        whole: bool,
    ) -> usize {
        let newest = self.parcels.len().checked_sub(1);
        let newest = newest.filter(|place| self.parcels[*place].destination == destination);
        let known = newest.or_else(|| self.latest.get(&destination).copied());
        if let Some(place) = known.filter(|place| *place >= self.sent)
            && !whole
            && self.parcels[place].accepts(ecn, length)
        {
            self.parcels[place].add(length);
            return place;
        }
        self.parcels.push(Parcel {
            destination,
            ecn,
            count: 1,
            length,
            segment: length,
            ended: whole,
            whole,
        });
        let place = self.parcels.len() - 1;
        self.latest.insert(destination, place);
        place
    }

    /// Gives everything to the kernel, or stops as `blocked`.
    pub(super) fn send(&mut self, sockets: &Sockets) {
        // Those of one parcel come together, in their order.
        self.datagrams.sort_unstable();
        let sent = self.sent;
        let waiting = self.datagrams.iter().filter(|one| one.parcel >= sent);
        let slices: Vec<_> = waiting
            .map(|one| IoSlice::new(&self.buffer[one.start..one.start + one.length]))
            .collect();
        let mut rest = &slices[..];
        let sources = self.sources.as_ref();
        let parcels = self.parcels[sent..].iter().map(|parcel| {
            let (datagrams, others) = rest.split_at(parcel.count);
            rest = others;
            udp::Parcel {
                envelope: Envelope {
                    to: parcel.destination,
                    from: sources.and_then(|all| all.source(parcel.destination)),
                    ecn: parcel.ecn,
                },
                datagrams,
            }
        });
        let mut parcels: Vec<_> = parcels.collect();
        let mut place = 0;
        while let Some(first) = parcels.get(place) {
            let destination = first.envelope.to;
            let mut wholes = self.parcels[sent + place..].iter().map(|one| one.whole);
            let probes = wholes.next() == Some(true);
            let given = if probes {
                sockets.send_whole(first)
            } else {
                let end = wholes.position(|whole| whole);
                sockets.send(&parcels[place..end.map_or(parcels.len(), |end| place + 1 + end)])
            };
            place += match given {
                Ok(sent) => sent,
                Err(SendError::SourceGone) if first.envelope.from.is_some() => {
                    if let Some(sources) = &mut self.sources {
                        sources.forget(destination);
                    }
                    parcels[place].envelope.from = None;
                    0
                }
                // A probe that is too long for the first link has told what it was to tell.
                Err(_) if probes => 1,
                Err(SendError::WouldBlock) => {
                    self.blocked = Some(destination);
                    self.sent += place;
                    return;
                }
                Err(error) => {
                    let count = first.datagrams.len();
                    self.lost += note_lost(error, destination, count);
                    1
                }
            };
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.used = 0;
        self.sent = 0;
        self.datagrams.clear();
        self.parcels.clear();
        self.latest.clear();
    }
}

/// Notes datagrams that are as good as lost on the way: the network is away for now, or they are
/// too long for it. It is repaired as any loss is.
fn note_lost(error: SendError, to: SocketAddr, datagrams: usize) -> u64 {
    tracing::debug!(%error, %to, datagrams, "send");
    u64::try_from(datagrams).unwrap_or(u64::MAX)
}

impl Parcel {
    fn accepts(&self, ecn: Ecn, length: usize) -> bool {
        !self.ended
            && ecn == self.ecn
            && length <= self.segment
            && self.length + length <= Socket::PARCEL_BYTES_MAX
            && self.count < Socket::PARCEL_MAX
    }

    fn add(&mut self, length: usize) {
        self.ended = length < self.segment;
        self.length += length;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, num::NonZeroU8};

    use super::*;

    #[track_caller]
    fn check(datagrams: &[(u16, usize)], parcels: &[(u16, usize, usize)]) {
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut outbox = Outbox::new(true);
        for (port, length) in datagrams {
            assert!(outbox.has_room());
            outbox.push(address(*port), Ecn::NotEct, *length);
        }
        let made = outbox.parcels.iter();
        let made: Vec<_> = made
            .map(|parcel| (parcel.destination.port(), parcel.length, parcel.segment))
            .collect();
        assert_eq!(made, parcels);
    }

    #[test]
    fn a_parcel_has_one_destination_and_one_length_and_a_shorter_datagram_ends_it() {
        check(
            &[(1, 100), (1, 100), (1, 60), (1, 60)],
            &[(1, 260, 100), (1, 60, 60)],
        );
        check(
            &[(1, 100), (2, 100), (1, 100)],
            &[(1, 200, 100), (2, 100, 100)],
        );
        check(
            &[(1, 100), (2, 90), (1, 60), (2, 90), (1, 60), (2, 90)],
            &[(1, 160, 100), (2, 270, 90), (1, 60, 60)],
        );
        check(&[(1, 60), (1, 100)], &[(1, 60, 60), (1, 100, 100)]);
    }

    /// Sends numbered datagrams to two receivers in turn, and sees that each gets its own in order.
    #[tokio::test]
    async fn datagrams_of_one_destination_arrive_in_their_order() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let receivers = [bind(), bind()];
        let to = receivers
            .each_ref()
            .map(|receiver| receiver.local_addr().expect("bound"));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sockets = Sockets::bind(any, None, NonZeroU8::MIN, true).expect("a free port");
        let mut outbox = Outbox::new(true);
        let datagram = |number: u8| vec![number; if number % 5 == 4 { 60 } else { 100 }];
        for number in 0..100 {
            for destination in to {
                assert!(outbox.copy(destination, Ecn::NotEct, &datagram(number)));
            }
        }
        outbox.send(&sockets);
        // At first it is not known whether there is room.
        while outbox.blocked.is_some() {
            sockets.writable(outbox.blocked.take()).await;
            outbox.send(&sockets);
        }
        assert_eq!(outbox.used, 0);
        let mut buffer = [0; 200];
        for receiver in &receivers {
            for number in 0..100 {
                let length = receiver.recv(&mut buffer).expect("it was sent");
                assert_eq!(buffer[..length], datagram(number));
            }
        }
    }

    /// Sends one datagram, and returns which of our addresses it came from.
    async fn source(outbox: &mut Outbox, sockets: &Sockets, first: u8, peer: &UdpSocket) -> IpAddr {
        let to = peer.local_addr().expect("bound");
        assert!(outbox.copy(to, Ecn::NotEct, &[first; 148]));
        outbox.send(sockets);
        while outbox.blocked.is_some() {
            sockets.writable(outbox.blocked.take()).await;
            outbox.send(sockets);
        }
        let (_, from) = peer.recv_from(&mut [0; 148]).expect("it was sent");
        from.ip()
    }

    #[tokio::test]
    async fn a_peer_hears_from_the_address_that_it_called() {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let patience = Some(std::time::Duration::from_secs(60));
        peer.set_read_timeout(patience).expect("not zero");
        let sockets = Sockets::bind(([0, 0, 0, 0], 0).into(), None, NonZeroU8::MIN, true)
            .expect("a free port");
        let [chosen, called] = [1, 2].map(|last| IpAddr::from([127, 0, 0, last]));
        let mut outbox = Outbox::new(true);
        let data = 4;
        assert_eq!(source(&mut outbox, &sockets, data, &peer).await, chosen);

        let call = peer.send_to(&[data], (called, sockets.port()));
        assert_eq!(call.expect("it leaves"), 1);
        sockets.readable(0).await;
        let mut calls = Vec::new();
        let mut batch = udp::Batch::default();
        for socket in sockets.arriving(0) {
            if socket.receive(&mut batch).expect("it came") {
                calls.extend(batch.datagrams().map(|one| (one.source, one.local)));
            }
        }
        let [(caller, local)] = calls[..] else {
            panic!("{calls:?}");
        };
        outbox.note_source(caller, local, false);
        for first in [data, INITIATION_TYPE, data] {
            assert_eq!(source(&mut outbox, &sockets, first, &peer).await, called);
        }
        // Nobody has answered the first initiation.
        let second = source(&mut outbox, &sockets, INITIATION_TYPE, &peer).await;
        assert_eq!(second, chosen);

        let gone = IpAddr::from([192, 0, 2, 77]);
        outbox.note_source(caller, Some(gone), false);
        for _ in 0..2 {
            assert_eq!(source(&mut outbox, &sockets, data, &peer).await, chosen);
        }
        let mut roaming = Outbox::new(false);
        roaming.note_source(caller, local, true);
        assert_eq!(source(&mut roaming, &sockets, data, &peer).await, chosen);
    }

    #[tokio::test]
    async fn what_nobody_may_fragment_leaves_alone_and_in_its_turn() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let destination = receiver.local_addr().expect("bound");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sockets = Sockets::bind(any, None, NonZeroU8::MIN, true).expect("a free port");
        let mut outbox = Outbox::new(true);
        let wholes = [false, true, true, false, false, true];
        for (number, whole) in (0..).zip(wholes) {
            outbox.room()[..100].fill(number);
            outbox.push_run(node::Run {
                destination,
                ecn: Ecn::NotEct,
                length: 100,
                segment: 100,
                whole,
            });
        }
        let parcels = outbox.parcels.iter();
        let parcels: Vec<_> = parcels.map(|one| (one.count, one.whole)).collect();
        let (several, alone) = ((2, false), (1, true));
        assert_eq!(parcels, [(1, false), alone, alone, several, alone]);
        outbox.send(&sockets);
        while outbox.blocked.is_some() {
            sockets.writable(outbox.blocked.take()).await;
            outbox.send(&sockets);
        }
        for number in 0..6 {
            let mut buffer = [0; 200];
            let length = receiver.recv(&mut buffer).expect("it was sent");
            assert_eq!(buffer[..length], [number; 100]);
        }
    }

    #[tokio::test]
    async fn what_the_network_does_not_take_is_counted_and_holds_nothing_up() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let here = receiver.local_addr().expect("bound");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sockets = Sockets::bind(any, None, NonZeroU8::MIN, true).expect("a free port");
        // From the loopback's own address there is no way to others.
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 9));
        let mut outbox = Outbox::new(true);
        for to in [elsewhere, here, elsewhere, elsewhere] {
            assert!(outbox.copy(to, Ecn::NotEct, &[7; 100]));
        }
        outbox.send(&sockets);
        while outbox.blocked.is_some() {
            sockets.writable(outbox.blocked.take()).await;
            outbox.send(&sockets);
        }
        assert_eq!(receiver.recv(&mut [0; 200]).expect("it was sent"), 100);
        assert_eq!([outbox.take_lost(), outbox.take_lost()], [3, 0]);
    }

    #[test]
    fn a_full_outbox_says_that_it_takes_no_more() {
        let mut outbox = Outbox::new(true);
        let destination = SocketAddr::from(([192, 0, 2, 1], 1));
        let datagram = [0; DATAGRAM_MAX];
        let taken = (0..6).filter(|_| outbox.copy(destination, Ecn::NotEct, &datagram));
        assert_eq!(taken.count(), BUFFER / DATAGRAM_MAX);
        assert!(!outbox.has_room());
    }

    #[test]
    fn a_parcel_has_at_most_64_datagrams() {
        check(&[(1, 100); 65], &[(1, 6400, 100), (1, 100, 100)]);
    }
}
