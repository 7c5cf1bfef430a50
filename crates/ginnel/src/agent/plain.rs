//! The tunnel of a plain WireGuard configuration.

use model::{config::Config, key::PublicKey};
use tunnel::Network;
use wireguard::StaticSecret;

use super::profile::Opened;
use crate::{
    enrolled::{Asked, Led, Sites},
    offload,
};

/// Returns the public half of the configuration's key.
pub(super) fn public_key(config: &Config) -> PublicKey {
    let secret = StaticSecret::new(*config.interface.private_key.expose());
    PublicKey(secret.public_key().0)
}

/// Opens the tunnel.
pub(super) fn open(config: &Config) -> anyhow::Result<Opened> {
    let network = Network::open_with(config, offload::max()?)?;
    Ok(Opened {
        tunnel: network.tunnel().clone(),
        key: None,
        control: None,
        led: Led::default(),
        asked: Asked::default(),
        sites: Sites::default(),
        background: Box::pin(async move {
            network.run().await;
            Ok(())
        }),
    })
}
