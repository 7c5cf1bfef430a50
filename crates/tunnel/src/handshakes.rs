//! Handshake messages, which come by sockets of their own, so that a flood of them fills no queue
//! of data, and their key agreements, which are computed while the node is unlocked.
//!
//! ```text
//! UDP ──► batch ──mac1?──► node ──► cookie replies
//!              no lock    lock, a few at a time ──► agreements ──► compute ──► node
//!                                                                 no lock     lock
//! ```

use std::{
    collections::BTreeMap,
    panic,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use os::{
    clock::{Clock, Effort},
    udp::Batch,
};
use tokio::{task, time};
use wireguard::{Agreement, Discard};

use super::Shared;

/// Takes handshake messages until its task is aborted.
pub(super) async fn listen(shared: Arc<Shared>) {
    let mut batch = Batch::default();
    loop {
        shared.sockets.handshakes_readable().await;
        let mut effort = Effort::start();
        let read = shared
            .sockets
            .receive_handshakes(&mut batch, |batch| take(&shared, batch));
        match read {
            Ok(_) => match shared.pause(effort.since_last()) {
                Some(pause) => time::sleep(pause).await,
                None => task::yield_now().await,
            },
            Err(error) => {
                tracing::debug!(%error, "receive handshakes");
                time::sleep(PAUSE).await;
            }
        }
    }
}

/// Computes key agreements until its task is aborted.
pub(super) async fn agree(shared: Arc<Shared>) {
    let mut next = None;
    loop {
        let worker = Arc::clone(&shared);
        let computed = match task::spawn_blocking(move || worker.agree(next)).await {
            Ok(computed) => computed,
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => return,
        };
        next = computed.next;
        if let Some(pause) = computed.pause {
            time::sleep(pause).await;
        }
        if computed.idle {
            shared.deferred.notified().await;
        }
    }
}

/// Why a thread computes no further.
struct Computed {
    /// What has another stage.
    next: Option<Agreement>,
    /// Data would suffer otherwise.
    pause: Option<Duration>,
    /// There is nothing more to compute.
    idle: bool,
}

/// Takes messages into the node, but not those that anybody can tell to be forged.
fn take(shared: &Shared, batch: &mut Batch) {
    let gate = shared.gate();
    let mut admitted = Vec::new();
    let mut refused = BTreeMap::<Discard, u64>::new();
    match batch.take_truncated() {
        0 => {}
        count => drop(refused.insert(Discard::Length, count)),
    }
    for datagram in batch.datagrams() {
        match gate.as_ref().map(|gate| gate.admit(datagram.bytes)) {
            None | Some(Ok(())) => admitted.push(datagram),
            Some(Err(discard)) => *refused.entry(discard).or_default() += 1,
        }
    }
    let mut admitted = admitted.into_iter().peekable();
    loop {
        let mut turn = shared.turn();
        for (discard, count) in std::mem::take(&mut refused) {
            turn.node.turn_away(discard, count);
        }
        for datagram in admitted.by_ref().take(TOGETHER) {
            turn.take_datagram(datagram);
        }
        if admitted.peek().is_none() {
            return;
        }
    }
}

impl Shared {
    /// Computes a few stages of agreements, and first that of `next`.
    fn agree(&self, mut next: Option<Agreement>) -> Computed {
        let mut effort = Effort::start();
        for _ in 0..STAGES_MAX {
            next = next.or_else(|| self.turn().node.poll_agreement());
            let Some(mut agreement) = next else {
                return Computed {
                    next: None,
                    pause: None,
                    idle: true,
                };
            };
            agreement.compute();
            let mut turn = self.turn();
            let now = turn.now;
            next = turn.node.handle_agreement(now, agreement);
            drop(turn);
            let pause = self.pause(effort.since_last());
            if pause.is_some() {
                return Computed {
                    next,
                    pause,
                    idle: false,
                };
            }
        }
        Computed {
            next,
            pause: None,
            idle: false,
        }
    }

    /// Notes a batch of what may be data only.
    pub(super) fn note_data(&self) {
        if self.sockets.are_apart() {
            self.data.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how long whoever used this CPU time for handshakes is to pause, so that data does
    /// not suffer.
    fn pause(&self, used: Duration) -> Option<Duration> {
        let data = self.data.load(Ordering::Relaxed);
        let overdue = self.overdue.load(Ordering::Relaxed);
        let allowance = self.allowance.lock();
        let mut allowance = allowance.unwrap_or_else(PoisonError::into_inner);
        allowance.take(Clock::start().now(), used, data, overdue)
    }
}

/// So that data does not wait for long: a cookie reply takes some microseconds.
const TOGETHER: usize = 4;
/// Then the thread goes back to the runtime, which may want to end.
const STAGES_MAX: usize = 8;
/// After an error of the socket that may last.
const PAUSE: Duration = Duration::from_millis(10);
