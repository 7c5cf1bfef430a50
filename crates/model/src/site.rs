//! Sites: LANs behind a node, whose IPv4 hosts have IPv6 addresses inside the network (RFC 6052).
//!
//! ```text
//! | organisation (48) | kind (16) | 0 (8) | site (24) | IPv4 address (32) |
//! ```
//! Each site has a /96 of its own, so two sites may have the same IPv4 addresses and both be
//! reached. A network-specific prefix of 96 bits keeps bits 64 to 71 zero (RFC 6052, 2.2).

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    address::{Kind, OrgPrefix},
    id::SiteId,
};

pub use self::{
    alias::{Alias, MalformedAlias},
    health::{Health, NodeHealth, SITE_NODES_MAX},
};

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

mod alias;
mod health;

/// The /96 of one site, in which each IPv4 address has its IPv6 address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SitePrefix([u8; 12]);

/// How the hosts of a site and the network reach each other.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The node opens ordinary connections: hosts see its address and open none themselves.
    #[default]
    Masquerade,
    /// Hosts of this site and of others see each other's own IPv4 addresses, and each opens
    /// connections to the other, when the node has an interface and the routers of both LANs lead
    /// to their nodes. For everybody else it is as with [`Mode::Masquerade`].
    Routed,
    /// As [`Mode::Routed`] while what hosts of the LAN answer to another site comes back to the
    /// node, which tries that out; else they see the node's address as with
    /// [`Mode::Masquerade`], and connections that they open themselves are theirs still.
    Auto,
}

/// The text names no mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a mode is `auto`, `masquerade` or `routed`")]
pub struct UnknownMode;

/// Length of a site's prefix in bits.
pub const SITE_PREFIX_BITS: u8 = 96;

/// IPv4 addresses of a LAN that share their first bits (RFC 4632, 3.1): 8 to 32 bits, none of a
/// kind that no host of a LAN has.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ipv4Prefix {
    /// Its bits behind `length` are zero.
    address: Ipv4Addr,
    length: u8,
}

/// The text is no usable IPv4 prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedIpv4Prefix {
    /// It has another form.
    #[error("an IPv4 prefix has the form 192.168.1.0/24, with 8 to 32 bits")]
    Form,
    /// Bits behind its length are set.
    #[error("the prefix that holds this address is {0}")]
    HostBits(Ipv4Prefix),
    /// It has addresses that no host of a LAN has.
    #[error("it overlaps {0}, whose addresses are not those of hosts in a LAN")]
    Special(&'static str),
}

/// Prefixes whose addresses are not those of hosts in a LAN (RFC 6890, 2.2.2; RFC 1112, 4).
const SPECIAL: [(Ipv4Addr, u8, &str); 5] = [
    (Ipv4Addr::UNSPECIFIED, 8, "0.0.0.0/8"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "127.0.0.0/8"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "169.254.0.0/16"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "224.0.0.0/4"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "240.0.0.0/4"),
];

/// The least length: a shorter prefix would be most of the Internet and no LAN.
const LENGTH_MIN: u8 = 8;

impl SitePrefix {
    /// Makes the prefix of a site; `None` when its id is not 1 to 2^24 - 1.
    #[must_use]
    pub fn new(org: OrgPrefix, site: SiteId) -> Option<Self> {
        let number = u32::try_from(site.0).ok()?;
        if number == 0 || number >> 24 != 0 {
            return None;
        }
        let address = org.address(Kind::Site, u64::from(number) << 32);
        let mut prefix = [0; 12];
        prefix.copy_from_slice(&address.octets()[..12]);
        Some(Self(prefix))
    }

    /// Takes an address of some site apart; `None` when it is another kind of address.
    #[must_use]
    pub fn of(address: Ipv6Addr) -> Option<(Self, Ipv4Addr)> {
        if Kind::of(address) != Some(Kind::Site) {
            return None;
        }
        let octets = address.octets();
        let mut prefix = [0; 12];
        prefix.copy_from_slice(&octets[..12]);
        let [.., a, b, c, d] = octets;
        // Bits 64 to 71 are zero in every prefix that was given.
        (prefix[8] == 0).then_some((Self(prefix), Ipv4Addr::new(a, b, c, d)))
    }

    /// Returns the IPv6 address of a host.
    #[must_use]
    pub fn embed(self, host: Ipv4Addr) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..12].copy_from_slice(&self.0);
        octets[12..].copy_from_slice(&host.octets());
        octets.into()
    }
}

impl Ipv4Prefix {
    /// Makes the prefix of one address.
    ///
    /// # Errors
    /// [`MalformedIpv4Prefix::Special`] when no host has that address.
    pub fn host(address: Ipv4Addr) -> Result<Self, MalformedIpv4Prefix> {
        Self::new(address, 32)
    }

    fn new(address: Ipv4Addr, length: u8) -> Result<Self, MalformedIpv4Prefix> {
        if !(LENGTH_MIN..=32).contains(&length) {
            return Err(MalformedIpv4Prefix::Form);
        }
        let prefix = Self {
            address: masked(address, length),
            length,
        };
        for (address, length, text) in SPECIAL {
            if prefix.overlaps(Self { address, length }) {
                return Err(MalformedIpv4Prefix::Special(text));
            }
        }
        if prefix.address != address {
            return Err(MalformedIpv4Prefix::HostBits(prefix));
        }
        Ok(prefix)
    }

    /// Returns the lowest address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Returns how many bits all addresses share.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// Tells whether `address` begins with the same bits.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        masked(address, self.length) == self.address
    }

    /// Tells whether all addresses of `other` are among its own.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }

    /// Tells whether some address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

fn masked(address: Ipv4Addr, length: u8) -> Ipv4Addr {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(length))
        .unwrap_or_default();
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Masquerade, Self::Routed, Self::Auto];

    /// Returns its name in the API, the store and the manual.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Routed => "routed",
            Self::Auto => "auto",
        }
    }

    /// Tells whether it is the mode of a site of which nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let named = |mode: &Self| mode.name() == text;
        Self::ALL.into_iter().find(named).ok_or(UnknownMode)
    }
}

impl fmt::Display for SitePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = self.embed(Ipv4Addr::UNSPECIFIED);
        write!(f, "{network}/{SITE_PREFIX_BITS}")
    }
}

/// The text is not the /96 of a site.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a site's prefix has the form fdxx:xxxx:xxxx:2:x:x::/96")]
pub struct MalformedSitePrefix;

impl FromStr for SitePrefix {
    type Err = MalformedSitePrefix;

    fn from_str(text: &str) -> Result<Self, MalformedSitePrefix> {
        let address = text.strip_suffix("/96").ok_or(MalformedSitePrefix)?;
        let address = address.parse().map_err(|_| MalformedSitePrefix)?;
        match Self::of(address) {
            Some((prefix, Ipv4Addr::UNSPECIFIED)) => Ok(prefix),
            Some(_) | None => Err(MalformedSitePrefix),
        }
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Ipv4Prefix {
    type Err = MalformedIpv4Prefix;

    /// Parses `ADDRESS/LENGTH`, or an address alone, which is a prefix of 32 bits.
    fn from_str(text: &str) -> Result<Self, MalformedIpv4Prefix> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let form = MalformedIpv4Prefix::Form;
        let address = address.parse().map_err(|_| form)?;
        let plain = length.bytes().all(|byte| byte.is_ascii_digit());
        let length = length.parse().map_err(|_| form)?;
        if !plain {
            return Err(form);
        }
        Self::new(address, length)
    }
}

as_text!(SitePrefix, Ipv4Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Ipv4Prefix {
        text.parse().expect("an IPv4 prefix")
    }

    #[test]
    fn a_host_of_a_site_has_an_address_that_tells_both() {
        let org = OrgPrefix::new([1, 2, 3, 4, 5]);
        let site = SitePrefix::new(org, SiteId(0x01_02_03)).expect("a site");
        assert_eq!(site.to_string(), "fd01:203:405:2:1:203::/96");
        assert_eq!(site.to_string().parse(), Ok(site));
        let host = Ipv4Addr::new(192, 168, 1, 10);
        let address = site.embed(host);
        assert_eq!(address.to_string(), "fd01:203:405:2:1:203:c0a8:10a");
        assert_eq!(SitePrefix::of(address), Some((site, host)));
        assert!(org.contains(address));
        for (kind, id) in [(Kind::Node, 7), (Kind::Infrastructure, 53)] {
            assert_eq!(SitePrefix::of(org.address(kind, id)), None);
        }
        assert_eq!(SitePrefix::of("2001:db8::1".parse().unwrap()), None);
        for id in [i64::MIN, -1, 0, 1 << 24, 1 << 32, i64::MAX] {
            assert_eq!(SitePrefix::new(org, SiteId(id)), None, "{id}");
        }
        for text in ["", "fd00::/96", "fd00:0:0:2::1/96", "fd00:0:0:2::/95"] {
            assert_eq!(text.parse::<SitePrefix>(), Err(MalformedSitePrefix));
        }
    }

    #[test]
    fn an_ipv4_prefix_is_that_of_a_lan() {
        for text in ["192.168.1.0/24", "10.0.0.0/8", "192.168.1.10/32"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("192.168.1.10"), prefix("192.168.1.10/32"));
        let check = |text: &str, error| {
            assert_eq!(text.parse::<Ipv4Prefix>(), Err(error), "{text}");
        };
        for text in [
            "",
            "/",
            "x/24",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/7",
            "fd00::/96",
            "0.0.0.0/0",
        ] {
            check(text, MalformedIpv4Prefix::Form);
        }
        let whole = MalformedIpv4Prefix::HostBits(prefix("192.168.1.0/24"));
        check("192.168.1.10/24", whole);
        for (text, special) in [
            ("127.0.0.1", "127.0.0.0/8"),
            ("169.254.169.254", "169.254.0.0/16"),
            ("169.0.0.0/8", "169.254.0.0/16"),
            ("0.0.0.0/8", "0.0.0.0/8"),
            ("239.1.2.3", "224.0.0.0/4"),
            ("255.255.255.255", "240.0.0.0/4"),
        ] {
            check(text, MalformedIpv4Prefix::Special(special));
        }
    }

    #[test]
    fn prefixes_overlap_when_one_covers_the_other() {
        let [lan, part, next] = ["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16"].map(prefix);
        assert!(lan.covers(part) && !part.covers(lan));
        assert!(lan.overlaps(part) && part.overlaps(lan));
        assert!(!lan.overlaps(next) && lan.overlaps(lan));
        assert!(part.contains(Ipv4Addr::new(10, 1, 2, 255)));
        assert!(!part.contains(Ipv4Addr::new(10, 1, 3, 0)));
    }
}
