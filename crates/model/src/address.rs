//! Addresses inside an organisation: a ULA /48, 16 bits of kind, 64 bits of id (RFC 4193).
//!
//! ```text
//! | fd | global ID (40) | kind (16) | id (64) |
//! ```
//! Nothing movable is encoded, so an address stays for the life of its node.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The ULA /48 of one organisation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OrgPrefix([u8; 6]);

/// What an address names: the subnet ID of the prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Parts of the network itself, such as the resolver.
    Infrastructure,
    /// A node.
    Node,
    /// A host of a site: [`crate::site::SitePrefix`] tells of which.
    Site,
}

/// The text is not a ULA prefix of 48 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an organisation's prefix has the form fdxx:xxxx:xxxx::/48")]
pub struct MalformedPrefix;

/// Length of an organisation's prefix in bits.
pub const ORG_PREFIX_BITS: u8 = 48;

/// Id of the resolver among the infrastructure addresses: its port.
const RESOLVER: u64 = 53;

impl OrgPrefix {
    /// Makes the prefix with `global_id`, which the caller draws at random (RFC 4193, 3.2.2).
    #[must_use]
    pub fn new(global_id: [u8; 5]) -> Self {
        let [a, b, c, d, e] = global_id;
        Self([0xfd, a, b, c, d, e])
    }

    /// Returns the prefix that `address` lies in; `None` when it is no locally assigned ULA.
    #[must_use]
    pub fn of(address: Ipv6Addr) -> Option<Self> {
        let [first, a, b, c, d, e, ..] = address.octets();
        (first == 0xfd).then(|| Self::new([a, b, c, d, e]))
    }

    /// Returns the address of `id` among those of `kind`.
    #[must_use]
    pub fn address(self, kind: Kind, id: u64) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&self.0);
        octets[6..8].copy_from_slice(&kind.subnet_id().to_be_bytes());
        octets[8..].copy_from_slice(&id.to_be_bytes());
        octets.into()
    }

    /// Returns the address at which every gateway of the organisation answers DNS.
    #[must_use]
    pub fn resolver(self) -> Ipv6Addr {
        self.address(Kind::Infrastructure, RESOLVER)
    }

    /// Returns the first address of the prefix.
    #[must_use]
    pub fn network(self) -> Ipv6Addr {
        self.address(Kind::Infrastructure, 0)
    }

    /// Tells whether `address` belongs to the organisation.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.octets()[..6] == self.0
    }
}

impl Kind {
    /// Returns what `address` names; `None` when it is no locally assigned ULA, or of a kind that
    /// is not known.
    #[must_use]
    pub fn of(address: Ipv6Addr) -> Option<Self> {
        OrgPrefix::of(address)?;
        let kinds = [Self::Infrastructure, Self::Node, Self::Site];
        let subnet_id = address.segments()[3];
        kinds.into_iter().find(|kind| kind.subnet_id() == subnet_id)
    }

    fn subnet_id(self) -> u16 {
        match self {
            Self::Infrastructure => 0,
            Self::Node => 1,
            Self::Site => 2,
        }
    }
}

impl fmt::Display for OrgPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{ORG_PREFIX_BITS}", self.network())
    }
}

impl FromStr for OrgPrefix {
    type Err = MalformedPrefix;

    fn from_str(text: &str) -> Result<Self, MalformedPrefix> {
        let address = text.strip_suffix("/48").ok_or(MalformedPrefix)?;
        let address: Ipv6Addr = address.parse().map_err(|_| MalformedPrefix)?;
        let octets = address.octets();
        let prefix: [u8; 6] = octets[..6].try_into().expect("six of sixteen bytes");
        if prefix[0] != 0xfd || octets[6..] != [0; 10] {
            return Err(MalformedPrefix);
        }
        Ok(Self(prefix))
    }
}

impl Serialize for OrgPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OrgPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_prefix_kind_and_id() {
        let prefix = OrgPrefix::new([1, 2, 3, 4, 5]);
        assert_eq!(prefix.to_string(), "fd01:203:405::/48");
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
        assert_eq!(prefix.resolver().to_string(), "fd01:203:405::35");
        let node = prefix.address(Kind::Node, 0xabcd_0000_0000_0001);
        assert_eq!(node.to_string(), "fd01:203:405:1:abcd::1");
        assert!(prefix.contains(node));
        assert_eq!(OrgPrefix::of(node), Some(prefix));
        assert_eq!(OrgPrefix::of("fc00::1".parse().expect("an address")), None);
        assert!(!OrgPrefix::new([1, 2, 3, 4, 6]).contains(node));
    }

    #[test]
    fn other_prefixes_are_refused() {
        for text in [
            "",
            "fd00::/64",
            "fd00::1/48",
            "fe80::/48",
            "10.0.0.0/48",
            "fd00::",
        ] {
            assert_eq!(text.parse::<OrgPrefix>(), Err(MalformedPrefix), "{text}");
        }
    }
}
