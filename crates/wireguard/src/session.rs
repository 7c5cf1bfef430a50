//! A session: a sealing half and an opening half, which threads may share (whitepaper 5.4.6).

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use aws_lc_rs::aead::LessSafeKey;

use crate::{
    constants::{
        HEADER, OVERHEAD, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, padded,
    },
    crypto::{self, TAG},
    details::SessionDetails,
    discard::Discard,
    message::emit_transport_header,
    noise::TransportKeys,
    replay::{Refused, ReplayWindow},
};

/// The half that seals: a key and a counter. No lock is taken.
pub struct Sealing {
    key: LessSafeKey,
    /// The other side's index.
    receiver: u32,
    /// The next nonce; at most `REJECT_AFTER_MESSAGES`.
    counter: AtomicU64,
    expires: Instant,
    retired: AtomicBool,
}

/// The half that opens: a key and the replay window.
pub struct Opening {
    key: LessSafeKey,
    /// Our index.
    index: u32,
    window: Mutex<ReplayWindow>,
    expires: Instant,
    retired: AtomicBool,
}

/// Opens datagrams of one session one after the other, with the replay window taken once for all
/// of them; nobody else opens by this half meanwhile.
pub struct Opener<'o> {
    key: &'o LessSafeKey,
    window: MutexGuard<'o, ReplayWindow>,
}

/// Nonces of one session that nobody else will use, in order; they may be used although the session
/// has ended meanwhile.
pub struct Nonces<S = Arc<Sealing>> {
    sealing: S,
    next: u64,
    end: u64,
}

/// Transport data whose tag and counter hold.
#[derive(Debug)]
pub struct Opened<'d> {
    /// The padded packet; empty for a keepalive.
    pub text: &'d mut [u8],
    /// Whether it is the newest of its session so far: only then may the endpoint move.
    pub newest: bool,
}

/// Both halves, and what decides about their end.
pub(crate) struct Session {
    pub(crate) sealing: Arc<Sealing>,
    pub(crate) opening: Arc<Opening>,
    pub(crate) initiator: bool,
    pub(crate) created: Instant,
}

impl Sealing {
    /// Takes `count` nonces at once; `None` when the session is retired, too old or used up.
    pub fn reserve(self: &Arc<Self>, now: Instant, count: u64) -> Option<Nonces> {
        Self::reserve_from(Arc::clone(self), now, count)
    }

    /// Does the same for whoever uses them while it has the session.
    pub(crate) fn reserve_from<S: Deref<Target = Self>>(
        sealing: S,
        now: Instant,
        count: u64,
    ) -> Option<Nonces<S>> {
        if now >= sealing.expires || sealing.retired.load(Ordering::Relaxed) {
            return None;
        }
        // A nonce must never repeat under one key, so the limit stands before the increment.
        let take = |next: u64| {
            let end = next.checked_add(count)?;
            (end <= REJECT_AFTER_MESSAGES).then_some(end)
        };
        let next = sealing
            .counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()?;
        Some(Nonces {
            sealing,
            next,
            end: next + count,
        })
    }

    /// Tells whether so many messages were sealed that a new handshake is due.
    #[must_use]
    pub fn wants_rekey(&self) -> bool {
        self.counter.load(Ordering::Relaxed) > REKEY_AFTER_MESSAGES
    }

    /// Returns the other side's index, which stands in every datagram of this half.
    #[must_use]
    pub fn receiver(&self) -> u32 {
        self.receiver
    }

    /// Opens in place what this half has sealed, for whoever has recorded it: the part of a
    /// datagram behind its header. Nothing is counted.
    pub fn reveal<'d>(&self, counter: u64, sealed: &'d mut [u8]) -> Option<&'d mut [u8]> {
        crypto::open(&self.key, counter, &[], sealed)
    }

    fn is_usable(&self, now: Instant) -> bool {
        now < self.expires
            && !self.retired.load(Ordering::Relaxed)
            && self.counter.load(Ordering::Relaxed) < REJECT_AFTER_MESSAGES
    }
}

impl<S: Deref<Target = Sealing>> Nonces<S> {
    /// Seals in place and returns the length of the datagram; `None` when all nonces are used.
    ///
    /// `slot` is `[16 bytes of room | packet of length bytes | room]`; the packet is padded to 16
    /// bytes, but not beyond `mtu`.
    ///
    /// # Panics
    /// When the slot has no room for padding and tag: `padded(length) + OVERHEAD` always is enough.
    pub fn seal(&mut self, slot: &mut [u8], length: usize, mtu: usize) -> Option<usize> {
        if self.next == self.end {
            return None;
        }
        let counter = self.next;
        self.next += 1;
        let text_end = HEADER + padded(length).min(mtu.max(length));
        let total = text_end + TAG;
        assert!(slot.len() >= total, "the slot has room for padding and tag");
        slot[HEADER + length..text_end].fill(0);
        emit_transport_header(slot, self.sealing.receiver, counter);
        let tag = crypto::seal(&self.sealing.key, counter, &[], &mut slot[HEADER..text_end]);
        slot[text_end..total].copy_from_slice(&tag);
        debug_assert!(total <= padded(length) + OVERHEAD);
        Some(total)
    }
}

impl Opening {
    /// Begins to open datagrams; fails when the session is retired or too old.
    pub fn begin(&self, now: Instant) -> Result<Opener<'_>, Discard> {
        if now >= self.expires || self.retired.load(Ordering::Relaxed) {
            return Err(Discard::SessionExpired);
        }
        // A poisoned window is still a window: `accept` does not panic half-way.
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Opener {
            key: &self.key,
            window,
        })
    }

    /// Opens one datagram, see [`Opener::open`].
    pub fn open<'d>(
        &self,
        now: Instant,
        counter: u64,
        sealed: &'d mut [u8],
    ) -> Result<Opened<'d>, Discard> {
        self.begin(now)?.open(counter, sealed)
    }

    /// Returns our index, which stands in every datagram for this half.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Opener<'_> {
    /// Opens the part of a datagram behind its header, in place.
    pub fn open<'d>(&mut self, counter: u64, sealed: &'d mut [u8]) -> Result<Opened<'d>, Discard> {
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(Discard::SessionExpired);
        }
        let text = crypto::open(self.key, counter, &[], sealed).ok_or(Discard::Tag)?;
        let accepted = self.window.accept(counter);
        let newest = accepted.map_err(|refused| match refused {
            Refused::Duplicate => Discard::Duplicate,
            Refused::TooOld => Discard::TooOld,
        })?;
        Ok(Opened { text, newest })
    }
}

impl Session {
    pub(crate) fn new(
        now: Instant,
        keys: &TransportKeys,
        index: u32,
        receiver: u32,
        initiator: bool,
    ) -> Self {
        let expires = now + REJECT_AFTER_TIME;
        let sealing = Sealing {
            key: crypto::aead_key(&keys.sending),
            receiver,
            counter: AtomicU64::new(0),
            expires,
            retired: AtomicBool::new(false),
        };
        let opening = Opening {
            key: crypto::aead_key(&keys.receiving),
            index,
            window: Mutex::default(),
            expires,
            retired: AtomicBool::new(false),
        };
        Self {
            sealing: Arc::new(sealing),
            opening: Arc::new(opening),
            initiator,
            created: now,
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.opening.index
    }

    pub(crate) fn details(&self, place: &'static str) -> SessionDetails {
        SessionDetails {
            place,
            local_index: self.opening.index,
            remote_index: self.sealing.receiver,
            initiator: self.initiator,
            created: self.created,
            expires: self.sealing.expires,
            sent_messages: self.sealing.counter.load(Ordering::Relaxed),
        }
    }

    /// Tells whether another packet may be sealed.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.sealing.is_usable(now)
    }

    /// Forces the sending counter, to reach its limits within a test.
    #[cfg(test)]
    pub(crate) fn force_counter(&self, counter: u64) {
        self.sealing.counter.store(counter, Ordering::Relaxed);
    }
}

/// Halves that other threads still hold refuse from now on; the keys are cleansed with the last.
impl Drop for Session {
    fn drop(&mut self) {
        self.sealing.retired.store(true, Ordering::Relaxed);
        self.opening.retired.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::Secret, tests::base};

    fn pair() -> (Session, Session) {
        let keys = |sending: u8, receiving: u8| TransportKeys {
            sending: Secret::new([sending; 32]),
            receiving: Secret::new([receiving; 32]),
        };
        (
            Session::new(base(), &keys(1, 2), 10, 20, true),
            Session::new(base(), &keys(2, 1), 20, 10, false),
        )
    }

    /// Opens a forged keepalive and tells why it was refused.
    fn refusal(opening: &Opening, counter: u64) -> Option<Discard> {
        opening.open(base(), counter, &mut [0; TAG]).err()
    }

    #[test]
    fn what_one_half_seals_the_other_opens_once() {
        let (a, b) = pair();
        let mut slot = [7; 128];
        let mut nonces = a.sealing.reserve(base(), 2).expect("a new session");
        let length = nonces.seal(&mut slot, 33, 1420).expect("two nonces");
        assert_eq!(length, 48 + OVERHEAD);
        assert_eq!(
            slot[..16],
            [4, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        let mut copy = slot;
        let mut recorded = slot;
        let revealed = a.sealing.reveal(0, &mut recorded[HEADER..length]);
        assert_eq!(revealed.expect("its own")[..33], [7; 33]);
        let mut recorded = slot;
        let other = a.sealing.reveal(1, &mut recorded[HEADER..length]);
        assert!(other.is_none());
        let opened = b.opening.open(base(), 0, &mut slot[HEADER..length]);
        let opened = opened.expect("a fresh datagram");
        assert!(opened.newest);
        assert_eq!(opened.text[..33], [7; 33]);
        assert_eq!(opened.text[33..], [0; 15]);
        let again = b.opening.open(base(), 0, &mut copy[HEADER..length]);
        assert_eq!(again.map(drop), Err(Discard::Duplicate));
        assert!(nonces.seal(&mut slot, 0, 1420).is_some());
        assert!(nonces.seal(&mut slot, 0, 1420).is_none());
    }

    #[test]
    fn the_message_limit_stands_before_the_increment() {
        let (a, b) = pair();
        a.force_counter(REJECT_AFTER_MESSAGES - 1);
        assert!(a.sealing.reserve(base(), 2).is_none());
        assert!(a.sealing.reserve(base(), 1).is_some());
        for _ in 0..3 {
            assert!(a.sealing.reserve(base(), 1).is_none());
            assert!(a.sealing.reserve(base(), u64::MAX).is_none());
        }
        assert!(a.sealing.wants_rekey());
        let refused = refusal(&b.opening, REJECT_AFTER_MESSAGES);
        assert_eq!(refused, Some(Discard::SessionExpired));
        let forged = refusal(&b.opening, REJECT_AFTER_MESSAGES - 1);
        assert_eq!(forged, Some(Discard::Tag));
    }

    #[test]
    fn padding_never_exceeds_the_mtu() {
        let (a, _) = pair();
        let mut slot = [0; 2048];
        for (length, expected) in [(0, 0), (1, 16), (16, 16), (1419, 1420), (1420, 1420)] {
            let mut nonces = a.sealing.reserve(base(), 1).expect("a new session");
            let total = nonces.seal(&mut slot, length, 1420);
            assert_eq!(total, Some(expected + OVERHEAD), "{length}");
        }
        let mut nonces = a.sealing.reserve(base(), 1).expect("a new session");
        assert_eq!(nonces.seal(&mut slot, 1501, 1420), Some(1501 + OVERHEAD));
    }

    #[test]
    fn threads_never_share_a_nonce_and_a_dropped_session_refuses() {
        let (a, b) = pair();
        let sealing = Arc::clone(&a.sealing);
        let counters = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut seen = Vec::new();
                        for count in (1..9).cycle().take(1_000) {
                            let nonces = sealing.reserve(base(), count).expect("usable");
                            seen.extend(nonces.next..nonces.end);
                        }
                        seen
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        let distinct: std::collections::BTreeSet<_> = counters.iter().collect();
        assert_eq!(distinct.len(), counters.len());
        drop(a);
        assert!(sealing.reserve(base(), 1).is_none());
        let opening = Arc::clone(&b.opening);
        assert_eq!(refusal(&opening, 0), Some(Discard::Tag));
        drop(b);
        assert_eq!(refusal(&opening, 0), Some(Discard::SessionExpired));
    }

    #[test]
    fn threads_that_open_the_same_datagrams_admit_each_counter_once() {
        const COUNT: usize = 2_000;
        let (a, b) = pair();
        let mut nonces = a.sealing.reserve(base(), COUNT as u64).expect("usable");
        let datagrams: Vec<_> = (0..COUNT)
            .map(|_| {
                let mut slot = [7; 16 + OVERHEAD];
                nonces.seal(&mut slot, 16, 1420).expect("a nonce for each");
                slot
            })
            .collect();
        let admitted: Vec<_> = (0..COUNT).map(|_| AtomicU64::new(0)).collect();
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (datagrams, admitted, start) = (&datagrams, &admitted, &start);
                let opening = &b.opening;
                scope.spawn(move || {
                    start.wait();
                    // Each begins elsewhere, so that counters come out of order too.
                    for step in 0..COUNT {
                        let counter = (step + thread * COUNT / 7) % COUNT;
                        let mut copy = datagrams[counter];
                        match opening.open(base(), counter as u64, &mut copy[HEADER..]) {
                            Ok(_) => {
                                admitted[counter].fetch_add(1, Ordering::Relaxed);
                            }
                            Err(discard) => assert_eq!(discard, Discard::Duplicate),
                        }
                    }
                });
            }
        });
        let counts: Vec<_> = admitted.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, vec![1; COUNT]);
    }
}
