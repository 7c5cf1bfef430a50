//! What a node writes, so that traffic goes on at once after a restart.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use model::key::PublicKey;
use tokio::{sync::Mutex, task::spawn_blocking};
use tunnel::{KnownEndpoint, Tunnel};
use wireguard::Tai64n;

use crate::enrolment::State;

const ENDPOINTS: &str = "endpoints.json";
/// At which of our addresses those at an endpoint called.
const SOURCES: &str = "sources.json";
const TIMESTAMP: &str = "timestamp.json";

/// How soon after a change it is written, if it is long ago that something was.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// It is as much for each peer where that is longer: ten thousand are looked at every two seconds.
const PAUSE_PER_PEER: Duration = Duration::from_micros(200);

/// Where peers are and the newest timestamp that was sent, on disk.
pub(super) struct Kept {
    state: State,
    /// A client finds its gateway by the map.
    has_endpoints: bool,
    written: Arc<Mutex<Written>>,
}

#[derive(Default)]
struct Written {
    endpoints: Vec<KnownEndpoint>,
    timestamp: Tai64n,
}

impl Kept {
    pub(super) fn new(state: State, has_endpoints: bool) -> Self {
        Self {
            state,
            has_endpoints,
            written: Arc::default(),
        }
    }

    /// Writes what is not on disk yet, and returns how long to wait before the next time; `None`
    /// while the last one still goes on.
    pub(super) fn keep(&self, tunnel: &Tunnel) -> Option<Duration> {
        let mut written = Arc::clone(&self.written).try_lock_owned().ok()?;
        let endpoints = self.has_endpoints.then(|| tunnel.endpoints());
        let timestamp = tunnel.with(|node, _| node.timestamp_floor());
        let peers = endpoints.as_ref().map_or(0, Vec::len);
        let state = self.state.clone();
        spawn_blocking(move || {
            if let Err(error) = written.update(&state, endpoints, timestamp) {
                tracing::warn!("{error:#}");
            }
        });
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        Some(PAUSE.max(PAUSE_PER_PEER.saturating_mul(peers)))
    }
}

impl Written {
    fn update(
        &mut self,
        state: &State,
        endpoints: Option<Vec<KnownEndpoint>>,
        timestamp: Tai64n,
    ) -> Result<()> {
        if let Some(endpoints) = endpoints
            && endpoints != self.endpoints
        {
            let sources = endpoints
                .iter()
                .filter_map(|known| Some((known.endpoint, known.called?)));
            state.write(SOURCES, &sources.collect::<Vec<_>>())?;
            let places = endpoints
                .iter()
                .map(|known| (known.public_key, known.endpoint));
            state.write(ENDPOINTS, &places.collect::<Vec<_>>())?;
            self.endpoints = endpoints;
        }
        if timestamp != self.timestamp {
            state.write(TIMESTAMP, &timestamp.0)?;
            self.timestamp = timestamp;
        }
        Ok(())
    }
}

/// Reads the newest timestamp that another process of the node has sent.
pub(super) fn timestamp(state: &State) -> Result<Option<Tai64n>> {
    Ok(state.read(TIMESTAMP)?.map(Tai64n))
}

/// Reads where peers of another process of the node were.
pub(super) fn endpoints(state: &State) -> Result<Vec<KnownEndpoint>> {
    let sources: Option<Vec<(SocketAddr, IpAddr)>> = state.read(SOURCES)?;
    let sources: BTreeMap<_, _> = sources.unwrap_or_default().into_iter().collect();
    let places: Option<Vec<(PublicKey, SocketAddr)>> = state.read(ENDPOINTS)?;
    let known = |(public_key, endpoint)| KnownEndpoint {
        public_key,
        endpoint,
        called: sources.get(&endpoint).copied(),
    };
    Ok(places.unwrap_or_default().into_iter().map(known).collect())
}
