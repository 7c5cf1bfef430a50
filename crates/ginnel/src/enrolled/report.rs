//! A gateway tells the control plane how the tunnels of its nodes stand.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use model::{
    api::{GatewayTunnel, NodeTunnel, TUNNELS_MAX, TunnelReport},
    key::PublicKey,
};
use tokio::time;
use tunnel::Tunnel;

use super::Source;

/// How often; what did not change meanwhile is not told again.
const INTERVAL: Duration = Duration::from_secs(5);

/// Tells it for as long as it is polled. A report that does not arrive is made up for by the next.
pub(super) async fn report(tunnel: &Tunnel, source: &Source) -> Infallible {
    let mut told = HashMap::new();
    loop {
        time::sleep(INTERVAL).await;
        if let Err(error) = look(tunnel, source, &mut told).await {
            tracing::debug!("tell how tunnels stand: {error:#}");
            // The server that comes back may have forgotten everything.
            told.clear();
        }
    }
}

/// Looks at all tunnels once, a thousand at a time, and tells what has changed.
async fn look(
    tunnel: &Tunnel,
    source: &Source,
    told: &mut HashMap<PublicKey, GatewayTunnel>,
) -> anyhow::Result<()> {
    // Peers that were removed are left behind here.
    let mut seen = HashMap::with_capacity(told.len());
    let mut last = None;
    loop {
        let (tunnels, next) = tunnel.with(|node, _| node.tunnels_after(last, TUNNELS_MAX));
        let is_new = |now: &NodeTunnel| told.get(&now.public_key) != Some(&now.tunnel);
        let changed: Vec<_> = tunnels.iter().copied().filter(is_new).collect();
        if !changed.is_empty() {
            source
                .report_tunnels(TunnelReport { tunnels: changed })
                .await?;
        }
        seen.extend(tunnels.iter().map(|now| (now.public_key, now.tunnel)));
        last = next;
        if last.is_none() {
            *told = seen;
            return Ok(());
        }
    }
}
