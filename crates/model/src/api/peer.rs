//! What is said about plain WireGuard clients, which work by an exported configuration.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU16,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::Timestamp;
use crate::{
    address::{ORG_PREFIX_BITS, OrgPrefix},
    config::{self, Config, Prefix},
    endpoint::MalformedEndpoint,
    id::{NodeId, UserId},
    key::{PublicKey, SecretKey},
    map,
    name::{Label, ZONE},
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
    /// Whether others know it: `active`, or `expired` by `ginnel node expire`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub state: map::State,
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

/// The least MTU of IPv6 passes every path that carries a tunnel.
const MTU: u16 = 1280;

/// Keeps the mapping of a NAT open, so that the client can be reached.
const KEEPALIVE_SECONDS: NonZeroU16 = NonZeroU16::new(25).expect("not zero");

impl PeerConfiguration {
    /// Writes the configuration in the form of `wg-quick`. Without a key its place is a comment for
    /// whoever has it.
    pub fn emit(&self, key: Option<SecretKey>) -> Result<Zeroizing<String>, MalformedEndpoint> {
        let leaves_key = key.is_none();
        let config = Config {
            interface: config::Interface {
                private_key: key.unwrap_or_else(|| SecretKey::new([0; 32])),
                addresses: vec![Prefix::single(IpAddr::V6(self.address))],
                dns: vec![IpAddr::V6(self.prefix.resolver())],
                search: vec![ZONE.to_owned()],
                mtu: Some(MTU),
                listen_port: None,
                fw_mark: None,
            },
            peers: vec![config::Peer {
                public_key: self.gateway.public_key,
                preshared_key: None,
                allowed_ips: vec![Prefix {
                    address: IpAddr::V6(self.prefix.network()),
                    bits: ORG_PREFIX_BITS,
                }],
                endpoint: Some(self.gateway.endpoint.parse()?),
                persistent_keepalive: Some(KEEPALIVE_SECONDS),
            }],
            ignored: Vec::new(),
        };
        let text = Zeroizing::new(config.emit());
        if !leaves_key {
            return Ok(text);
        }
        let lines = text.lines().map(|line| match line {
            line if line.starts_with("PrivateKey") => "# PrivateKey = the one of the device",
            line => line,
        });
        let lines: Vec<_> = lines.collect();
        Ok(Zeroizing::new(lines.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> PeerConfiguration {
        PeerConfiguration {
            address: "fd01:203:405:1::7".parse().expect("an address"),
            prefix: "fd01:203:405::/48".parse().expect("a prefix"),
            gateway: map::Gateway {
                id: NodeId(1),
                name: "edge".parse().expect("a name"),
                public_key: PublicKey([9; 32]),
                endpoint: "vpn.example.org:51820".to_owned(),
            },
        }
    }

    #[test]
    fn an_endpoint_that_would_be_more_than_one_value_makes_no_configuration() {
        let long = format!("{}:1", "a".repeat(255));
        for endpoint in [
            "a:1\nPostUp = touch pwned",
            "a:1\r\n[Interface]",
            "a:1 # b",
            "a b:1",
            "$(id):1",
            "`id`:1",
            "a;b:1",
            "\"a\":1",
            "'a':1",
            "-a:1",
            "a=b:1",
            "a,b:1",
            "\u{1b}[2J:1",
            "\u{202e}a:1",
            "bücher:1",
            "a:1\0",
            "[::1%eth0]:1",
            "a:0",
            "a:65536",
            "a:+1",
            &long,
        ] {
            let mut configuration = configuration();
            configuration.gateway.endpoint = endpoint.to_owned();
            assert!(configuration.emit(None).is_err(), "{endpoint:?}");
        }
        let mut configuration = configuration();
        for endpoint in ["xn--bcher-kva.example:1", "[fd00::1]:65535", "192.0.2.1:1"] {
            configuration.gateway.endpoint = endpoint.to_owned();
            let text = configuration.emit(None).expect("well-formed");
            let line = format!("Endpoint = {endpoint}");
            assert_eq!(text.lines().filter(|known| *known == line).count(), 1);
        }
    }

    #[test]
    fn a_configuration_is_one_that_wg_quick_and_we_can_read() {
        let key = SecretKey::new([7; 32]);
        let text = configuration()
            .emit(Some(key.clone()))
            .expect("well-formed");
        let read = Config::parse(text.as_bytes()).expect("our own form");
        assert_eq!(read.interface.private_key, key);
        let dns = "DNS = fd01:203:405::35, internal\n";
        assert!(text.contains(dns), "{}", *text);
        let allowed = "AllowedIPs = fd01:203:405::/48\n";
        assert!(text.contains(allowed), "{}", *text);
    }

    #[test]
    fn the_place_of_a_devices_own_key_is_left_to_it() {
        let text = configuration().emit(None).expect("well-formed");
        assert!(!text.contains("AAAA"), "{}", *text);
        assert!(text.contains("\n# PrivateKey = "), "{}", *text);
    }
}
