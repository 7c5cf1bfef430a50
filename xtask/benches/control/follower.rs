//! A node or a gateway that follows its map.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode, body::Bytes};
use model::map::{Difference, NetworkMap};
use tokio::sync::mpsc;

use crate::{client::Client, now};

/// What a follower was told.
pub(crate) struct Heard {
    /// The number of its organisation, or [`GATEWAY`].
    pub(crate) place: usize,
    pub(crate) at: Instant,
    pub(crate) bytes: f64,
}

/// How soon one asks again that was refused.
const AGAIN: Duration = Duration::from_secs(1);

/// The place of the one that sees all.
pub(crate) const GATEWAY: usize = usize::MAX;

/// Follows the map after `serial`, tells of each answer, and knows what it says as a node has to.
pub(crate) async fn follow(
    client: Client,
    place: usize,
    serial: u64,
    heard: mpsc::UnboundedSender<Heard>,
) {
    let mut known = serial;
    loop {
        let path = format!("/v1/map?after={known}&differences=true");
        let (status, body) = client.ask(Method::GET, &path, Bytes::new()).await;
        let at = now();
        known = match status {
            StatusCode::NO_CONTENT => continue,
            StatusCode::IM_USED => parse::<Difference>(&body).serial,
            // All nodes ask at once when they begin, and those that find no place ask again.
            StatusCode::SERVICE_UNAVAILABLE => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            _ => parse::<NetworkMap>(&body).serial,
        };
        let bytes = f64::from(u32::try_from(body.len()).expect("less than 4 GB"));
        if heard.send(Heard { place, at, bytes }).is_err() {
            return;
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> T {
    serde_json::from_slice(body).expect("a map or a difference")
}
