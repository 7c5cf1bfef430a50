//! Tells the control plane which logins this node refused, so that its audit has the reasons.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use model::ssh::RefusedLogin;
use tokio::{sync::mpsc, time};

use crate::api::Client;

/// Refusals that wait to be told; further ones are counted only.
const WAITING_MAX: usize = 32;

/// Refusals that are told one after the other without a pause.
const BURST: u32 = 10;

/// After that, one in this time; below what the control plane takes of one node.
const PAUSE: Duration = Duration::from_secs(4);

/// Returns where refusals go. Nobody waits: what is too much is told as a number with the next one.
pub(super) fn teller(client: Arc<Client>) -> Arc<dyn Fn(RefusedLogin) + Send + Sync> {
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    let untold = Arc::new(AtomicU32::new(0));
    tokio::spawn(tell(client, waiting, Arc::clone(&untold)));
    Arc::new(move |refused| {
        if sender.try_send(refused).is_err() {
            untold.fetch_add(1, Ordering::Relaxed);
        }
    })
}

async fn tell(
    client: Arc<Client>,
    mut waiting: mpsc::Receiver<RefusedLogin>,
    untold: Arc<AtomicU32>,
) {
    let mut left = BURST;
    let mut refill = time::interval(PAUSE);
    refill.set_missed_tick_behavior(time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            _ = refill.tick(), if left < BURST => left += 1,
            refused = waiting.recv(), if left > 0 => {
                let Some(mut refused) = refused else { return };
                left -= 1;
                refused.untold = untold.swap(0, Ordering::Relaxed);
                if let Err(error) = client.report_refusal(&refused).await {
                    tracing::debug!("tell a refused login: {error:#}");
                    untold.fetch_add(refused.untold.saturating_add(1), Ordering::Relaxed);
                }
            }
        }
    }
}
