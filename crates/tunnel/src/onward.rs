//! Packets on their way to peers: sealed where they lie, without the node, and sent in runs.
//!
//! ```text
//! packets ──node: which way, how?──► groups ──sealed in place──► runs ──► UDP
//!                   lock
//! ```

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use node::On;
use os::udp::{Envelope, Parcel, SendError, Socket};
use packet::ecn::Ecn;
use smallvec::SmallVec;
use wireguard::{HEADER, Nonces, OVERHEAD, PeerId, Sealing, padded, scrub_stack};

use super::{Shared, Turn};

/// What becomes of packets that are handled together. The datagrams in whose place they lie are
/// given to each step, in the same order.
#[derive(Default)]
pub(super) struct Onward {
    /// One for each datagram.
    legs: Vec<Leg>,
    groups: Vec<Group>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug)]
enum Leg {
    /// It goes no further.
    Ended,
    /// It is for the interface, and has so many bytes.
    Interface(usize),
    /// It is to be sealed for the peer of a group.
    Waiting { group: usize, on: On },
    /// Its datagram has so many bytes.
    Sealed { group: usize, length: usize },
}

/// Packets that go to one peer, one behind the other.
struct Group {
    to: PeerId,
    ecn: Ecn,
    endpoint: SocketAddr,
    /// There until all is sealed, as are the nonces: no key waits for room to send.
    sealing: Option<Arc<Sealing>>,
    /// One for each packet, once all are known.
    nonces: Option<Nonces>,
    /// No packet is padded beyond.
    mtu: usize,
    /// Our address that they leave from; otherwise routing chooses.
    from: Option<IpAddr>,
    datagrams: u64,
    /// Of all, when they are sealed.
    bytes: usize,
}

impl Onward {
    /// Takes a datagram whose packet goes no further.
    pub(super) fn end(&mut self) {
        self.legs.push(Leg::Ended);
    }

    /// Takes a packet of `length` bytes for the interface.
    pub(super) fn take_in(&mut self, length: usize) {
        self.legs.push(Leg::Interface(length));
    }

    /// Takes a packet for a peer, or lets the node see to it; it lies behind the header in
    /// `datagram`.
    pub(super) fn take(&mut self, turn: &mut Turn<'_>, on: On, datagram: &mut [u8]) {
        let leg = match self.group(turn, on) {
            Some(group) => {
                self.groups[group].add(on.length, datagram.len());
                Leg::Waiting { group, on }
            }
            None => {
                turn.pass_on(on, datagram);
                Leg::Ended
            }
        };
        self.legs.push(leg);
    }

    /// Takes the nonces of all that is to be sealed, and tells the node so.
    ///
    /// What others seal for the same peer meanwhile may leave before it, with later nonces: all
    /// that they send while this thread stands still. The window of the peer decides how long that
    /// may be (8,128 datagrams with Linux, 1,024 with boringtun); what comes later is lost.
    pub(super) fn reserve<'d>(
        &mut self,
        turn: &mut Turn<'_>,
        datagrams: impl Iterator<Item = &'d mut [u8]>,
    ) {
        let now = turn.now;
        let mut used_up = false;
        for group in &mut self.groups {
            let sealing = group.sealing.take();
            group.nonces = sealing.and_then(|sealing| sealing.reserve(now, group.datagrams));
            if group.nonces.is_none() {
                used_up = true;
                continue;
            }
            let count = usize::try_from(group.datagrams).unwrap_or(usize::MAX);
            turn.node.note_sealed(now, group.to, count, group.bytes);
        }
        if !used_up {
            return;
        }
        for (datagram, leg) in datagrams.zip(&mut self.legs) {
            if let Leg::Waiting { group, on } = *leg
                && self.groups[group].nonces.is_none()
            {
                turn.pass_on(on, datagram);
                *leg = Leg::Ended;
            }
        }
    }

    /// Seals what is for peers, each packet where it lies.
    pub(super) fn seal<'d>(&mut self, datagrams: impl Iterator<Item = &'d mut [u8]>) {
        for (datagram, leg) in datagrams.zip(&mut self.legs) {
            let Leg::Waiting { group, on } = *leg else {
                continue;
            };
            let Group { mtu, nonces, .. } = &mut self.groups[group];
            let mtu = (*mtu).min(datagram.len() - OVERHEAD);
            let nonces = nonces.as_mut();
            *leg = match nonces.and_then(|nonces| nonces.seal(datagram, on.length, mtu)) {
                Some(length) => Leg::Sealed { group, length },
                None => Leg::Ended,
            };
        }
        for group in &mut self.groups {
            group.nonces = None;
        }
        if !self.groups.is_empty() {
            scrub_stack();
        }
    }

    /// Yields the packets that are for the interface.
    pub(super) fn packets<'d>(
        &self,
        datagrams: impl Iterator<Item = &'d [u8]>,
    ) -> impl Iterator<Item = &'d [u8]> {
        datagrams
            .zip(&self.legs)
            .filter_map(|(datagram, leg)| match *leg {
                Leg::Interface(length) => datagram.get(HEADER..HEADER + length),
                Leg::Ended | Leg::Waiting { .. } | Leg::Sealed { .. } => None,
            })
    }

    /// Tells whether there may be packets for the interface.
    pub(super) fn has_packets(&self) -> bool {
        let is_in = |leg: &Leg| matches!(leg, Leg::Interface(_));
        self.legs.iter().any(is_in)
    }

    /// Sends what was sealed. A full queue is waited for, while the kernel drops what comes.
    pub(super) async fn send<'d>(
        &self,
        shared: &Shared,
        datagrams: impl Iterator<Item = &'d [u8]> + Clone,
    ) {
        let mut load = Load::default();
        for place in 0..self.groups.len() {
            let mut cut = Cut::default();
            for (datagram, leg) in datagrams.clone().zip(&self.legs) {
                let Leg::Sealed { group, length } = *leg else {
                    continue;
                };
                if group != place {
                    continue;
                }
                if load.is_full() {
                    self.send_load(shared, &load).await;
                    load.clear();
                    cut = Cut::default();
                }
                let begins = cut.begins(length).then_some(place);
                load.push(&datagram[..length], begins);
            }
        }
        self.send_load(shared, &load).await;
    }

    /// Forgets all packets.
    pub(super) fn clear(&mut self) {
        self.legs.clear();
        self.groups.clear();
    }

    /// Returns the group that a packet joins; `None` when the node must see to it.
    fn group(&mut self, turn: &Turn<'_>, on: On) -> Option<usize> {
        let latest = self.groups.iter().rposition(|group| group.to == on.to);
        if let Some(latest) = latest.filter(|latest| self.groups[*latest].ecn == on.ecn) {
            return Some(latest);
        }
        let path = turn.node.path_to(turn.now, on.to)?;
        self.groups.push(Group {
            to: on.to,
            ecn: on.ecn,
            endpoint: path.endpoint,
            sealing: Some(path.sealing),
            nonces: None,
            mtu: path.mtu,
            from: turn.source(path.endpoint),
            datagrams: 0,
            bytes: 0,
        });
        Some(self.groups.len() - 1)
    }

    async fn send_load(&self, shared: &Shared, load: &Load<'_>) {
        let mut start = 0;
        let parcels = load.parcels.iter().map(|(place, end)| {
            let group = &self.groups[*place];
            let datagrams = &load.slices[start..*end];
            start = *end;
            Parcel {
                envelope: Envelope {
                    to: group.endpoint,
                    from: group.from,
                    ecn: group.ecn,
                },
                datagrams,
            }
        });
        let mut parcels: SmallVec<[_; Load::PARCELS_MAX]> = parcels.collect();
        let mut rest = &mut parcels[..];
        while let Some(first) = rest.first_mut() {
            let Envelope { to, from, .. } = first.envelope;
            let done = match shared.sockets.send(rest) {
                Ok(count) => count,
                Err(SendError::WouldBlock) => {
                    shared.sockets.writable(Some(to)).await;
                    0
                }
                Err(SendError::SourceGone) if from.is_some() => {
                    shared.turn().forget_source(to);
                    rest[0].envelope.from = None;
                    0
                }
                Err(error) => {
                    let lost = rest[0].datagrams.len();
                    shared.turn().note_lost(error, to, lost);
                    1
                }
            };
            rest = &mut rest[done..];
        }
    }
}

impl Group {
    /// Counts a packet of `length` bytes that lies in a datagram of `room` bytes.
    fn add(&mut self, length: usize, room: usize) {
        self.datagrams += 1;
        // No further than it came, where it is sealed.
        let padded = padded(length).min(self.mtu.min(room - OVERHEAD).max(length));
        self.bytes += padded + OVERHEAD;
    }
}

/// What a few calls send; on the stack, so that no memory is asked for.
#[derive(Default)]
struct Load<'d> {
    slices: SmallVec<[IoSlice<'d>; Load::SLICES_MAX]>,
    /// The group of each parcel, and where its datagrams end.
    parcels: SmallVec<[(usize, usize); Load::PARCELS_MAX]>,
}

impl<'d> Load<'d> {
    const SLICES_MAX: usize = 128;
    const PARCELS_MAX: usize = 64;

    /// Tells whether there is no room for a datagram that begins a parcel.
    fn is_full(&self) -> bool {
        self.slices.len() == Self::SLICES_MAX || self.parcels.len() == Self::PARCELS_MAX
    }

    /// Appends a datagram to the latest parcel, or to a new one of a group.
    fn push(&mut self, datagram: &'d [u8], begins: Option<usize>) {
        if let Some(group) = begins {
            self.parcels.push((group, self.slices.len()));
        }
        self.slices.push(IoSlice::new(datagram));
        if let Some((_, end)) = self.parcels.last_mut() {
            *end = self.slices.len();
        }
    }

    fn clear(&mut self) {
        self.slices.clear();
        self.parcels.clear();
    }
}

/// Datagrams that leave together: all have one length, and the last may be shorter.
#[derive(Default)]
struct Cut {
    count: usize,
    bytes: usize,
    segment: usize,
    ended: bool,
}

impl Cut {
    /// Takes a datagram, and tells whether it is the first of the next ones that leave together.
    fn begins(&mut self, length: usize) -> bool {
        let joins = self.count > 0
            && !self.ended
            && length <= self.segment
            && self.count < Socket::PARCEL_MAX
            && self.bytes + length <= Socket::PARCEL_BYTES_MAX;
        if !joins {
            *self = Self {
                segment: length,
                ..Self::default()
            };
        }
        self.ended = length < self.segment;
        self.count += 1;
        self.bytes += length;
        !joins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs datagrams of these groups and lengths, and returns of each load its parcels: group,
    /// datagrams, bytes.
    #[track_caller]
    fn check(datagrams: &[(usize, usize)], expected: &[&[(usize, usize, usize)]]) {
        let bytes = [0; 2_000];
        let mut loads = Vec::new();
        let mut load = Load::default();
        let mut take = |load: &mut Load<'_>| {
            let mut start = 0;
            let parcels = load.parcels.iter().map(|(group, end)| {
                let slices = &load.slices[start..*end];
                start = *end;
                let bytes = slices.iter().map(|slice| slice.len()).sum();
                (*group, slices.len(), bytes)
            });
            loads.push(parcels.collect::<Vec<_>>());
            load.clear();
        };
        let mut latest = None;
        let mut cut = Cut::default();
        for (group, length) in datagrams {
            if latest.replace(*group) != Some(*group) {
                cut = Cut::default();
            }
            if load.is_full() {
                take(&mut load);
                cut = Cut::default();
            }
            let begins = cut.begins(*length).then_some(*group);
            load.push(&bytes[..*length], begins);
        }
        take(&mut load);
        assert_eq!(loads, expected);
    }

    #[test]
    fn a_parcel_has_one_length_and_a_shorter_datagram_ends_it() {
        let (full, half) = ((0, 1_452), (0, 726));
        check(&[full, full, half, half], &[&[(0, 3, 3_630), (0, 1, 726)]]);
        check(&[half, full], &[&[(0, 1, 726), (0, 1, 1_452)]]);
        check(&[full, (1, 1_452)], &[&[(0, 1, 1_452), (1, 1, 1_452)]]);
        check(&[], &[&[]]);
    }

    #[test]
    fn a_parcel_and_a_load_have_their_bounds() {
        check(&[(0, 96); 65], &[&[(0, 64, 6_144), (0, 1, 96)]]);
        // As many bytes as one call takes.
        check(&[(0, 1_452); 46], &[&[(0, 45, 65_340), (0, 1, 1_452)]]);
        let full = (0, 64, 6_144);
        check(&[(0, 96); 129], &[&[full, full], &[(0, 1, 96)]]);
        let singles: Vec<_> = (0..65).map(|group| (group, 96)).collect();
        let first: Vec<_> = (0..64).map(|group| (group, 1, 96)).collect();
        check(&singles, &[&first, &[(64, 1, 96)]]);
    }
}
