//! The task that reads datagrams, keeps deadlines and waits for room to send.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use node::Node;
use os::udp::Batch;
use tokio::time;

use super::Shared;

/// Batches that are read in one go before other tasks get their turn.
const BATCHES_MAX: usize = 16;

/// How far the time of day may run ahead of the monotonic clock before it means a suspend.
const SUSPEND: Duration = Duration::from_secs(10);

/// Drives until its task is aborted.
pub(super) async fn drive(shared: Arc<Shared>) {
    let mut batch = Batch::default();
    let mut daytime = Daytime::new(shared.turn().now);
    loop {
        let (deadline, blocked) = shared.turn().arm();
        tokio::select! {
            biased;
            () = shared.sockets.readable() => {
                if !read(&shared, &mut batch) {
                    // A socket that only fails must not spin.
                    time::sleep(Duration::from_millis(20)).await;
                }
                // Neither direction waits for the other to pause.
                take_packets(&shared);
                tokio::task::yield_now().await;
            }
            () = shared.attachment.readable(), if blocked.is_none() => {
                take_packets(&shared);
                tokio::task::yield_now().await;
            }
            () = shared.sockets.writable(blocked) => shared.turn().unblock(),
            () = sleep_until(deadline) => {
                let mut turn = shared.turn();
                let now = turn.now;
                daytime.look(&mut turn.node, now);
                turn.node.handle_timeout(now);
            }
            () = shared.kick.notified() => {}
        }
    }
}

/// Reads what has come, within a bound; false when the socket failed.
fn read(shared: &Shared, batch: &mut Batch) -> bool {
    let take = |batch: &mut Batch| {
        let mut turn = shared.turn();
        let now = turn.now;
        for datagram in batch.datagrams() {
            let interface = shared.attachment.interface();
            let (source, bytes) = (datagram.source, datagram.bytes);
            turn.handle_datagram(now, source, bytes, &shared.sockets, interface);
        }
        if turn
            .node
            .poll_timeout()
            .is_some_and(|deadline| deadline <= now)
        {
            turn.node.handle_timeout(now);
        }
    };
    for _ in 0..BATCHES_MAX {
        match shared.sockets.receive(batch, take) {
            Ok(true) => {}
            Ok(false) => return true,
            Err(error) => {
                tracing::debug!(%error, "receive");
                return false;
            }
        }
    }
    true
}

/// Takes what programs of this machine have sent, as much as one outbox holds.
fn take_packets(shared: &Shared) {
    if let Some(interface) = shared.attachment.interface() {
        let mut turn = shared.turn();
        let now = turn.now;
        turn.handle_packets(now, interface);
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

/// The time of day beside the monotonic clock, which stands still in a suspend.
struct Daytime {
    now: Instant,
    wall: SystemTime,
}

impl Daytime {
    fn new(now: Instant) -> Self {
        Self {
            now,
            wall: os::clock::wall(),
        }
    }

    /// Begins new handshakes after a suspend: the other sides have let their sessions expire.
    fn look(&mut self, node: &mut Node, now: Instant) {
        let wall = os::clock::wall();
        let expected = self.wall + now.saturating_duration_since(self.now);
        let gap = wall.duration_since(expected);
        if gap.is_ok_and(|gap| gap > SUSPEND) {
            tracing::info!("time has passed unseen: new handshakes");
            node.set_wall_clock(now, wall);
            for (public_key, _) in node.endpoints() {
                node.initiate(now, &public_key);
            }
        }
        *self = Self { now, wall };
    }
}
