//! Servers beside one another on one PostgreSQL: they hear of each other's changes, and one leads.
//!
//! A notification of the database tells at once that there was a change; what it was is read from
//! the serials. These are looked at every second too, so that a change is missed by no server
//! whose connection for notifications has broken, whether it knows that or not.
//!
//! The server that leads is the one whose own gateway organisations without a gateway of its own
//! kind use. It leads for as long as its connection holds a lock, which PostgreSQL frees when it
//! dies.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use model::id::NodeId;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use zeroize::Zeroizing;

use crate::{
    Inner, Server,
    storage::{
        self, Touched,
        audit::{Actor, Entry},
        notification::Listener,
    },
};

/// How often a server looks whether others made changes, and whether the lead is free.
const INTERVAL: Duration = Duration::from_secs(1);

/// The shortest pause between two looks: what comes meanwhile is seen by one.
const PAUSE: Duration = Duration::from_millis(10);

/// How long to connect for notifications.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Intervals that a server whose gateway nobody uses leaves to the others to take the lead, so that
/// a restart of the database moves no gateway.
const DEFERENCE: u32 = 5;

/// Begins to work beside other servers on the database that `url` names, until the server stops or
/// its last handle is dropped.
pub(crate) fn begin(server: &Server, url: Zeroizing<String>) {
    tokio::spawn(work_beside_others(Arc::downgrade(&server.inner), url));
}

async fn work_beside_others(server: Weak<Inner>, url: Zeroizing<String>) {
    let Some(mut stopping) = server.upgrade().map(|inner| inner.stopping.subscribe()) else {
        return;
    };
    let heard = Notify::new();
    tokio::select! {
        // An error says that nobody has the server any more.
        _ = stopping.wait_for(|stopping| *stopping) => {}
        () = listen(&server, &url, &heard) => {}
        () = follow_others(&server, &heard) => {}
    }
}

/// Publishes what other servers changed.
async fn follow_others(server: &Weak<Inner>, heard: &Notify) {
    let mut known = 0;
    let mut failed = false;
    while let Some(inner) = server.upgrade() {
        let server = Server { inner };
        let publish = server.publish_since(known);
        match server.inner.store.while_it_answers(publish).await {
            Ok(serial) => {
                known = serial;
                failed = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::warn!(error, "changes of other servers are not seen");
                }
            }
        }
        sleep(PAUSE).await;
        tokio::select! {
            () = heard.notified() => {}
            () = sleep(INTERVAL) => {}
        }
    }
}

/// Hears of changes of other servers, and leads when nobody does.
async fn listen(server: &Weak<Inner>, url: &str, heard: &Notify) {
    loop {
        let connected = timeout(CONNECT_TIMEOUT, Listener::connect(url)).await;
        match connected {
            Ok(Ok(listener)) => {
                heard.notify_one();
                attend(server, listener, heard).await;
                tracing::debug!("the connection for notifications broke");
            }
            Ok(Err(error)) => tracing::debug!(%error, "connect for notifications"),
            Err(_) => tracing::debug!("connecting for notifications took too long"),
        }
        sleep(INTERVAL).await;
    }
}

/// Does so for as long as the connection lasts.
async fn attend(server: &Weak<Inner>, mut listener: Listener, heard: &Notify) {
    let mut leads = false;
    let mut ticks = 0_u32;
    let mut interval = interval(INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            still = listener.heard() => match still {
                true => heard.notify_one(),
                false => return,
            },
            _ = interval.tick() => {
                ticks = ticks.saturating_add(1);
                let Some(inner) = server.upgrade() else {
                    return;
                };
                match (Server { inner }).lead(&mut listener, leads, ticks).await {
                    Ok(now) => leads = now,
                    Err(error) => tracing::debug!(%error, "take the lead"),
                }
            }
        }
    }
}

impl Server {
    /// Publishes what changed after `known`, and returns up to where.
    async fn publish_since(&self, known: u64) -> Result<u64, storage::Error> {
        let mut read = self.inner.store.read().await?;
        let installation = storage::installation::installation(&mut read).await?;
        let serial = installation.map_or(known, |installation| installation.serial);
        if serial < known {
            self.inner.publisher.restart();
        } else if serial > known {
            let orgs = storage::org::serials_after(&mut read, known).await?;
            self.inner.publisher.publish_found(serial, &orgs);
        }
        Ok(serial)
    }

    /// Takes the lead if it is free, and lets organisations use this server's gateway then.
    async fn lead(
        &self,
        listener: &mut Listener,
        leads: bool,
        ticks: u32,
    ) -> Result<bool, storage::Error> {
        let Some(own) = self.inner.gateway.get().copied() else {
            return Ok(false);
        };
        let mut read = self.inner.store.read().await?;
        let used = storage::org::use_of_builtin(&mut read, own).await?;
        drop(read);
        if !leads {
            let may = used.own || ticks > DEFERENCE;
            if !may || !listener.lead().await? {
                return Ok(false);
            }
            tracing::info!("this server leads");
        }
        if used.others {
            self.use_gateway(own).await?;
        }
        Ok(true)
    }

    /// Lets organisations use the gateway of this server in place of that of another one.
    async fn use_gateway(&self, own: NodeId) -> Result<(), storage::Error> {
        let mut change = self.change().await?;
        let moved = storage::org::use_builtin(change.connection(), own).await?;
        if moved == 0 {
            return Ok(());
        }
        let entry = Entry {
            actor: Actor::Server,
            action: "gateway_took_over",
            subject: format!("node:{own} {moved} organisations"),
            org: None,
        };
        let committed = change.commit(entry, Touched::Everybody).await?;
        self.inner.publisher.publish(committed);
        tracing::info!(moved, "organisations use the gateway of this server now");
        Ok(())
    }
}
