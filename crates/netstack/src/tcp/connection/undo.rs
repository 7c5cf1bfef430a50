//! Reductions that proved needless are taken back: Eifel (RFC 3522, RFC 4015), F-RTO (RFC 5682)
//! and what DSACKs tell (RFC 2883, RFC 3708).

use std::time::{Duration, Instant};

use packet::tcp::Header;

use super::{Connection, Recovery, Seq};
use crate::tcp::{congestion::Reduction, scoreboard::Delivered};

/// Retransmissions that wait for a DSACK; beyond so many a reduction is no longer taken back.
const RETRANSMISSIONS_MAX: usize = 256;

/// What is needed to take a reduction back.
#[derive(Debug)]
pub(super) struct Undo {
    before: Reduction,
    /// The timestamp of the first retransmission while its acknowledgement is awaited: an echo of
    /// an earlier one proves it needless.
    stamp: Option<u32>,
    /// Retransmissions in the order of time that no DSACK has reported yet, at most
    /// [`RETRANSMISSIONS_MAX`]. When the last one goes, all of them were needless.
    unreported: Vec<(Seq, Seq)>,
    retransmissions: usize,
    /// What was retransmitted has left the network when this is acknowledged.
    end: Option<Seq>,
}

/// How far F-RTO has come after a timeout (RFC 5682, 3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Forward {
    /// Step 2: the first acknowledgement.
    First,
    /// Step 3: the second; until then new data goes out instead of what counts as lost.
    Second {
        sent: Seq,
    },
    Over,
}

impl Undo {
    pub(super) fn new(before: Reduction) -> Box<Self> {
        Box::new(Self {
            before,
            stamp: None,
            unreported: Vec::new(),
            retransmissions: 0,
            end: None,
        })
    }
}

/// Returns the range that an acknowledgement reports as arrived twice (RFC 2883, 4): it lies below
/// the acknowledgement or within the second block.
pub(super) fn duplicate(header: &Header) -> Option<(Seq, Seq)> {
    let mut blocks = header.options.sack.as_slice().iter();
    let mut block = || blocks.next().map(|&(left, right)| (Seq(left), Seq(right)));
    let (left, right) = block()?;
    let below = !right.after(Seq(header.acknowledgement));
    let within = block().is_some_and(|(l, r)| !left.before(l) && !right.after(r));
    (left.before(right) && (below || within)).then_some((left, right))
}

impl Connection {
    /// Counts a retransmission of what counted as lost.
    pub(super) fn count_retransmission(&mut self, now: Instant, (start, end): (Seq, Seq)) {
        let stamp = self.stamp(now);
        let Some(undo) = &mut self.undo else { return };
        // Only the oldest: the echo of an acknowledgement beyond belongs to whatever came last.
        if undo.retransmissions == 0 && start == self.snd_una && self.stamps.is_some() {
            undo.stamp = Some(stamp);
        }
        if undo.retransmissions >= RETRANSMISSIONS_MAX {
            self.undo = None;
            return;
        }
        undo.retransmissions += 1;
        undo.unreported.push((start, end));
    }

    /// The first acknowledgement of new data after a retransmission: did it answer the original
    /// (RFC 3522, 3.2)?
    pub(super) fn detect_by_timestamp(&mut self, now: Instant, header: &Header) {
        let Some(stamp) = self.undo.as_mut().and_then(|undo| undo.stamp.take()) else {
            return;
        };
        let Some(stamps) = header.options.timestamps else {
            return;
        };
        // Beside a DSACK the echo is that of the first arrival, whose acknowledgement was lost; the
        // DSACK decides (RFC 3522, 3.2, step 5).
        let early = Seq(stamps.echo).before(Seq(stamp)) && duplicate(header).is_none();
        if self.recovery == Recovery::Open || !early {
            return;
        }
        if matches!(self.recovery, Recovery::Loss { .. }) {
            // The RTO follows what it was too short for (RFC 4015, 3.2, step ADJ).
            let millis = self.stamp(now).wrapping_sub(stamps.echo);
            self.rtt
                .handle_needless_timeout(Duration::from_millis(millis.into()));
        }
        self.take_back(now);
    }

    /// Takes notice of what arrived twice.
    pub(super) fn detect_by_duplicate(&mut self, now: Instant, header: &Header) {
        let Some((left, right)) = duplicate(header).filter(|_| self.sack) else {
            return;
        };
        self.scoreboard.handle_duplicate(self.snd_una, self.snd_nxt);
        let Some(undo) = &mut self.undo else { return };
        // What was retransmitted twice has to be reported twice.
        let mut at = left;
        undo.unreported.retain(|&(start, end)| {
            let reported = !start.before(at) && !end.after(right);
            if reported {
                at = end;
            }
            !reported
        });
        if undo.retransmissions > 0 && undo.unreported.is_empty() {
            self.take_back(now);
        }
    }

    /// F-RTO, for peers without timestamps: after a timeout two segments of new data go out, and
    /// if the next acknowledgement covers what was sent once, nothing was lost (RFC 5682, 3.1).
    pub(super) fn detect_by_forwarding(
        &mut self,
        now: Instant,
        delivered: &Delivered,
        advanced: bool,
    ) {
        let Recovery::Loss { point, forward } = self.recovery else {
            return;
        };
        let next = match forward {
            Forward::First if advanced && self.snd_una.before(point) && self.can_forward() => {
                Forward::Second { sent: self.snd_nxt }
            }
            Forward::Second { .. } if delivered.once.is_some_and(|once| once.before(point)) => {
                self.take_back(now);
                return;
            }
            Forward::First | Forward::Second { .. } | Forward::Over => Forward::Over,
        };
        self.recovery = Recovery::Loss {
            point,
            forward: next,
        };
    }

    /// Whether new data can go out at once, so that there will be a second acknowledgement.
    fn can_forward(&self) -> bool {
        let mss = self.segment_size();
        let window = (self.snd_una + self.snd_wnd).since(self.snd_nxt);
        self.owes_new() && self.unsent() >= mss && window >= mss
    }

    /// Whether new data goes out instead of what counts as lost.
    pub(super) fn forwards(&self) -> bool {
        match self.recovery {
            Recovery::Loss {
                forward: Forward::Second { sent },
                ..
            } => self.snd_nxt - sent < 2 * self.segment_size() && self.can_forward(),
            Recovery::Loss { .. } | Recovery::Open | Recovery::Fast { .. } => false,
        }
    }

    /// Whether what counts as lost waits for the second acknowledgement of F-RTO.
    pub(super) fn awaits_verdict(&self) -> bool {
        matches!(
            self.recovery,
            Recovery::Loss {
                forward: Forward::Second { .. },
                ..
            }
        )
    }

    /// Ends recovery as if nothing had been lost; what really was is found again by RACK.
    fn take_back(&mut self, now: Instant) {
        if let Some(undo) = self.undo.take() {
            let flight = self.flight(now);
            self.congestion.undo(flight, undo.before);
        }
        if self.recovery != Recovery::Open {
            if matches!(self.recovery, Recovery::Fast { .. }) {
                self.scoreboard.handle_reordering();
            }
            self.scoreboard.forgive();
            self.recovery = Recovery::Open;
            self.duplicate_acks = 0;
        }
    }

    /// Forgets a reduction when nothing can tell any more that it was needless.
    pub(super) fn forget_undo(&mut self) {
        let (open, snd_nxt) = (self.recovery == Recovery::Open, self.snd_nxt);
        if let Some(undo) = self.undo.as_mut().filter(|_| open) {
            let end = *undo.end.get_or_insert(snd_nxt);
            if self.snd_una.after(end) {
                self.undo = None;
            }
        }
    }
}
