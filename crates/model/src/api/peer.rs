//! What is said about plain WireGuard clients, which work by an exported configuration.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::{
    address::OrgPrefix,
    id::{NodeId, UserId},
    key::PublicKey,
    map,
    name::Label,
};

/// A plain WireGuard client, such as a phone or a router: a node that does not run ginnel.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Peer {
    /// The id of its node.
    pub id: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// Its address.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// Its public key.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// Who has the private key.
    pub key_holder: KeyHolder,
    /// Whose device it is; a machine has no person.
    pub user: Option<UserId>,
    /// When it is removed; absent when it stays.
    pub expires: Option<Timestamp>,
    /// When its configuration was exported last.
    pub exported: Option<Timestamp>,
    /// Whether the exported configuration names another gateway than the one that serves now.
    pub stale: bool,
    /// When it was added.
    pub created: Timestamp,
}

/// Who has the private key of a plain WireGuard client.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyHolder {
    /// The device, which has made it.
    Device,
    /// Whoever has the exported configuration: the key is not managed.
    Configuration,
    /// Nobody, until the configuration is exported.
    Nobody,
}

/// Adds a plain WireGuard client.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewPeer {
    /// The organisation; that of the asking device if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Its name, unique among the nodes of the organisation.
    #[schema(value_type = String)]
    pub name: Label,
    /// The public key that the device has made; without one, exporting makes a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub public_key: Option<PublicKey>,
    /// Whose device it is, by name; nobody's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<Label>,
    /// How long it stays, in seconds, one year at most; for ever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// Exports the configuration of a plain WireGuard client.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PeerExport {
    /// The key of the new configuration, made by whoever exports it; a former configuration works
    /// no more. Absent for a client that has made its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub public_key: Option<PublicKey>,
}

/// What the configuration of a plain WireGuard client says, without the private key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PeerConfiguration {
    /// Its address.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// All that it reaches; the resolver is in it.
    #[schema(value_type = String)]
    pub prefix: OrgPrefix,
    /// Whom it connects to.
    #[schema(value_type = Object)]
    pub gateway: map::Gateway,
}
