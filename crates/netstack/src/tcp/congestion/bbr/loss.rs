//! Which losses are a sign of congestion.
//!
//! The draft takes a share of 2 % for too much in flight, whatever the cause, so a radio link that
//! loses 3 % by itself would stay nearly unused. Here the share counts that exceeds what the path
//! loses while it holds no queue of ours, and a round without a queue and without such an excess
//! lowers no bound. At most [`PATH_LOSS_MAX`] is taken for the path's own.

use std::time::Duration;

/// The share of loss in percent above which there is too much in flight (2.7).
const THRESHOLD: u64 = 2;
/// The largest share in percent that is taken for the path's own.
const PATH_LOSS_MAX: u64 = 10;
/// Above the smallest round-trip time by more than a quarter of it, and by more than this, there is
/// a queue; less is also what a busy machine adds.
const QUEUE_MIN: Duration = Duration::from_millis(5);

/// What the path of one connection loses.
#[derive(Debug, Default)]
pub(super) struct PathLoss {
    /// Octets lost and all octets, in rounds without a queue; each round takes an eighth of what
    /// was before.
    lost: u64,
    all: u64,
    round: Round,
}

/// What has happened in one round.
#[derive(Debug, Default)]
struct Round {
    lost: u64,
    delivered: u64,
    min_rtt: Option<Duration>,
    last_rtt: Option<Duration>,
}

impl PathLoss {
    pub(super) fn handle_loss(&mut self, octets: u32) {
        self.round.lost += u64::from(octets);
    }

    pub(super) fn handle_ack(&mut self, acknowledged: u64, rtt: Option<Duration>) {
        self.round.delivered += acknowledged;
        if let Some(rtt) = rtt {
            self.round.min_rtt = Some(self.round.min_rtt.map_or(rtt, |min| min.min(rtt)));
            self.round.last_rtt = Some(rtt);
        }
    }

    /// Ends a round and returns whether its losses were a sign of congestion. Learns from it when
    /// the sender was no faster than the path.
    pub(super) fn end_round(&mut self, mss: u32, min_rtt: Option<Duration>, learns: bool) -> bool {
        let round = std::mem::take(&mut self.round);
        let all = round.lost + round.delivered;
        let queued = |rtt: Option<Duration>| {
            rtt.zip(min_rtt)
                .is_none_or(|(rtt, min_rtt)| rtt > min_rtt + (min_rtt / 4).max(QUEUE_MIN))
        };
        let congested = queued(round.min_rtt) || round.lost > self.allowed(all, mss);
        // A queue that has only begun to grow shows at the end.
        if learns && !queued(round.min_rtt) && !queued(round.last_rtt) {
            self.lost = self.lost / 8 * 7 + round.lost;
            self.all = self.all / 8 * 7 + all;
        }
        congested
    }

    /// Of so many octets, how many may be lost before that counts as congestion: the threshold, the
    /// path's own losses and twice their standard deviation.
    pub(super) fn allowed(&self, octets: u64, mss: u32) -> u64 {
        let own = u128::from(octets) * u128::from(self.lost) / u128::from(self.all.max(1));
        let own = u64::try_from(own).unwrap_or(u64::MAX);
        let own = own.min(octets / 100 * PATH_LOSS_MAX);
        let mss = u64::from(mss.max(1));
        let deviation = (own / mss).isqrt() * mss;
        octets / 100 * THRESHOLD + own + 2 * deviation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1_000;
    const RTT: Duration = Duration::from_millis(50);

    /// A round of a hundred segments of which so many are lost.
    fn round(path: &mut PathLoss, lost: u32, rtt: Duration, learns: bool) -> bool {
        path.handle_loss(lost * MSS);
        path.handle_ack(u64::from((100 - lost) * MSS), Some(rtt));
        path.end_round(MSS, Some(RTT), learns)
    }

    #[test]
    fn the_first_losses_count_against_the_threshold_of_the_draft() {
        let path = PathLoss::default();
        assert_eq!(path.allowed(100_000, MSS), 2_000);
    }

    #[test]
    fn what_is_lost_without_a_queue_is_the_path() {
        let mut path = PathLoss::default();
        assert!(round(&mut path, 3, RTT, true), "not known yet");
        for _ in 0..20 {
            assert!(!round(&mut path, 3, RTT, true));
        }
        assert!(path.allowed(100_000, MSS) >= 5_000);
        // And it is forgotten when it ends.
        for _ in 0..50 {
            round(&mut path, 0, RTT, true);
        }
        assert!(path.allowed(100_000, MSS) < 2_100);
    }

    #[test]
    fn what_is_lost_with_a_queue_is_congestion() {
        let mut path = PathLoss::default();
        for _ in 0..20 {
            assert!(round(&mut path, 3, RTT * 3 / 2, true));
        }
        assert_eq!(path.allowed(100_000, MSS), 2_000);
    }

    #[test]
    fn a_probe_teaches_nothing_and_no_path_is_believed_to_lose_half() {
        let mut path = PathLoss::default();
        round(&mut path, 50, RTT, false);
        assert_eq!(path.allowed(100_000, MSS), 2_000);
        for _ in 0..20 {
            round(&mut path, 50, RTT, true);
        }
        assert!(path.allowed(100_000, MSS) < 20_000);
    }
}
