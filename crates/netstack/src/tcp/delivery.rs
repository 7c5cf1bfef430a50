//! The rate at which the path delivers, sampled by acknowledgements (draft-ietf-ccwg-bbr-06, 4.1).

use std::time::{Duration, Instant};

use super::sequence::Seq;

/// What was known when a segment was transmitted (4.1.2.1.2).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshot {
    /// Octets that had been delivered, and that had been found lost.
    delivered: u64,
    lost: u64,
    /// Microseconds since the latest delivery, and since the transmission of what it delivered.
    since_delivery: u32,
    since_first: u32,
    /// Octets in flight, the segment among them.
    in_flight: u32,
    /// The sender was running out of data.
    application_limited: bool,
}

impl Snapshot {
    /// Only what is in flight, the segment among them: the rate is not measured.
    pub(super) fn of_flight(in_flight: u32) -> Self {
        Self {
            in_flight,
            ..Self::default()
        }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

/// What the acknowledgement that is being taken has delivered.
#[derive(Clone, Copy, Debug)]
struct Newest {
    sent_at: Instant,
    end: Seq,
    snapshot: Snapshot,
}

/// A segment that was found lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub(crate) octets: u32,
    /// Octets that were in flight when it was transmitted, and that were lost since.
    pub(crate) in_flight: u32,
    pub(crate) lost_since: u64,
    /// Octets that had been delivered when it was transmitted.
    pub(crate) prior_delivered: u64,
    pub(crate) application_limited: bool,
}

/// One sample of the delivery rate (4.1.2.1.3).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Octets per second; zero when the interval is too short to tell.
    pub(crate) rate: u64,
    /// Octets that were delivered in the interval, and by this acknowledgement alone.
    pub(crate) delivered: u64,
    pub(crate) acknowledged: u64,
    /// Octets that had been delivered when the interval began.
    pub(crate) prior_delivered: u64,
    /// Octets in flight when what was delivered last was transmitted, and octets lost since.
    pub(crate) in_flight: u32,
    pub(crate) lost_since: u64,
    pub(crate) application_limited: bool,
}

/// The estimator of one connection; O(1) for each segment.
#[derive(Debug)]
pub(crate) struct Delivery {
    delivered: u64,
    lost: u64,
    delivered_at: Instant,
    /// When what was delivered last had been transmitted.
    first_sent_at: Instant,
    /// What is sampled before so many octets are delivered says nothing about the path, because the
    /// sender was running out of data; zero when it was not.
    limited_until: u64,
    newest: Option<Newest>,
    /// What `delivered` was when the acknowledgement came.
    before: u64,
    /// Not yet taken; at most the segments in flight.
    losses: Vec<Loss>,
}

impl Delivery {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            lost: 0,
            delivered_at: now,
            first_sent_at: now,
            limited_until: 0,
            newest: None,
            before: 0,
            losses: Vec::new(),
        }
    }

    /// Returns how many octets have been delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Tells whether the sender has been running out of data of late.
    pub(crate) fn is_application_limited(&self) -> bool {
        self.limited_until > 0
    }

    /// Takes notice that the sender has run out of data with so many octets in flight (4.1.2.4).
    pub(crate) fn limit(&mut self, in_flight: u32) {
        self.limited_until = (self.delivered + u64::from(in_flight)).max(1);
    }

    /// Returns the snapshot of a segment of `octets` that is transmitted beside those in flight.
    pub(crate) fn transmit(&mut self, now: Instant, in_flight: u32, octets: u32) -> Snapshot {
        if in_flight == 0 {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        Snapshot {
            delivered: self.delivered,
            lost: self.lost,
            since_delivery: micros(now.saturating_duration_since(self.delivered_at)),
            since_first: micros(now.saturating_duration_since(self.first_sent_at)),
            in_flight: in_flight + octets,
            application_limited: self.limited_until > 0,
        }
    }

    /// Counts a segment that was delivered.
    pub(crate) fn deliver(
        &mut self,
        now: Instant,
        sent_at: Instant,
        (start, end): (Seq, Seq),
        snapshot: Snapshot,
    ) {
        self.delivered += u64::from(end - start);
        self.delivered_at = now;
        let newer = self.newest.is_none_or(|newest| {
            let later = sent_at > newest.sent_at;
            later || (sent_at == newest.sent_at && end.after(newest.end))
        });
        if newer {
            self.newest = Some(Newest {
                sent_at,
                end,
                snapshot,
            });
        }
    }

    /// Counts a segment that was found lost.
    pub(crate) fn lose(&mut self, octets: u32, snapshot: Snapshot) {
        self.lost += u64::from(octets);
        self.losses.push(Loss {
            octets,
            in_flight: snapshot.in_flight,
            lost_since: self.lost - snapshot.lost,
            prior_delivered: snapshot.delivered,
            application_limited: snapshot.application_limited,
        });
    }

    /// Takes the segments that were found lost since the last call.
    pub(crate) fn take_losses(&mut self) -> Vec<Loss> {
        std::mem::take(&mut self.losses)
    }

    /// Ends an acknowledgement and returns its sample; `None` when it has delivered nothing.
    pub(crate) fn sample(&mut self, now: Instant, min_rtt: Duration) -> Option<Sample> {
        if self.delivered > self.limited_until {
            self.limited_until = 0;
        }
        let acknowledged = self.delivered - std::mem::replace(&mut self.before, self.delivered);
        let Newest {
            sent_at, snapshot, ..
        } = self.newest.take()?;
        self.first_sent_at = sent_at;
        let delivered = self.delivered - snapshot.delivered;
        let since_delivery = Duration::from_micros(snapshot.since_delivery.into());
        let acknowledging = now.saturating_duration_since(sent_at) + since_delivery;
        // Acknowledgements that were held up on their way come faster than the path delivers.
        let sending = Duration::from_micros(snapshot.since_first.into());
        let interval = acknowledging.max(sending);
        // The answer to a retransmission that came as quickly was one to the original.
        let reliable = interval >= min_rtt && !interval.is_zero();
        Some(Sample {
            rate: if reliable {
                rate(delivered, interval)
            } else {
                0
            },
            delivered,
            acknowledged,
            prior_delivered: snapshot.delivered,
            in_flight: snapshot.in_flight,
            lost_since: self.lost - snapshot.lost,
            application_limited: snapshot.application_limited,
        })
    }
}

fn rate(octets: u64, interval: Duration) -> u64 {
    let octets = u128::from(octets) * 1_000_000_000;
    u64::try_from(octets / interval.as_nanos().max(1)).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::pair::base;

    const RTT: Duration = Duration::from_millis(100);
    const MSS: u32 = 1_000;

    /// Segments of [`MSS`] octets and what was known when each was transmitted.
    struct Path {
        delivery: Delivery,
        in_flight: u32,
        sent: Vec<(Instant, Snapshot)>,
    }

    impl Path {
        fn new() -> Self {
            Self {
                delivery: Delivery::new(base()),
                in_flight: 0,
                sent: Vec::new(),
            }
        }

        fn send(&mut self, now: Instant) {
            let snapshot = self.delivery.transmit(now, self.in_flight, MSS);
            self.in_flight += MSS;
            self.sent.push((now, snapshot));
        }

        fn ack(&mut self, now: Instant, segments: std::ops::Range<u32>) -> Sample {
            for segment in segments {
                let (sent_at, snapshot) = self.sent[usize::try_from(segment).unwrap()];
                let start = Seq(segment * MSS);
                self.delivery
                    .deliver(now, sent_at, (start, start + MSS), snapshot);
                self.in_flight -= MSS;
            }
            self.delivery.sample(now, RTT).unwrap()
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_path_of_a_segment_in_a_millisecond_is_seen_as_that() {
        let (began, mut path) = (base(), Path::new());
        let mut last = 0;
        for at in 0..1_000 {
            if at >= 100 {
                let segment = u32::try_from(at - 100).unwrap();
                last = path.ack(began + millis(at), segment..segment + 1).rate;
            }
            path.send(began + millis(at));
        }
        // A round of 100 segments: the one that is acknowledged at its end counts as well.
        assert!((990_000..=1_010_000).contains(&last), "{last}");
    }

    #[test]
    fn acknowledgements_in_a_bunch_show_no_more_than_was_sent() {
        let (began, mut path) = (base(), Path::new());
        for at in 0..100 {
            path.send(began + millis(at));
        }
        path.ack(began + millis(200), 0..1);
        // 99 segments of a hundred milliseconds arrive at once.
        let sample = path.ack(began + millis(201), 1..100);
        assert!(sample.rate <= 1_010_000, "{sample:?}");
        assert_eq!(sample.acknowledged, 99_000);
    }

    #[test]
    fn a_pause_of_the_sender_marks_what_follows_until_it_has_left_the_path() {
        let (began, mut path) = (base(), Path::new());
        path.send(began);
        path.delivery.limit(path.in_flight);
        path.send(began + millis(50));
        assert!(!path.ack(began + millis(100), 0..1).application_limited);
        assert!(path.delivery.is_application_limited());
        assert!(path.ack(began + millis(150), 1..2).application_limited);
        assert!(!path.delivery.is_application_limited());
    }

    #[test]
    fn an_answer_quicker_than_the_path_is_no_sample() {
        let (began, mut path) = (base(), Path::new());
        path.send(began);
        assert_eq!(path.ack(began + millis(99), 0..1).rate, 0);
    }

    #[test]
    fn a_loss_tells_how_much_was_in_flight_and_lost_with_it() {
        let (began, mut path) = (base(), Path::new());
        for at in 0..10 {
            path.send(began + millis(at));
        }
        for segment in [3, 4] {
            path.delivery.lose(MSS, path.sent[segment].1);
        }
        let losses = path.delivery.take_losses();
        let told = losses.iter().map(|loss| (loss.in_flight, loss.lost_since));
        assert_eq!(told.collect::<Vec<_>>(), [(4_000, 1_000), (5_000, 2_000)]);
        let sample = path.ack(began + RTT, 0..3);
        assert_eq!((sample.in_flight, sample.lost_since), (3_000, 2_000));
    }
}
