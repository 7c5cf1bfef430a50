//! Aliases: IPv4 addresses by which machines elsewhere know the hosts of a prefix, where those that
//! the hosts have mean somebody else.
//!
//! ```text
//!   192.168.1.0/24 = 10.99.1.0/24      192.168.1.10 ↔ 10.99.1.10
//! ```
//! Both have the same length, and the bits behind it stay.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Ipv4Prefix, MalformedIpv4Prefix};

/// A prefix of a site, and the one by which others know its hosts.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Alias {
    prefix: Ipv4Prefix,
    /// As long as `prefix`, and without an address of it.
    alias: Ipv4Prefix,
}

/// The text is no usable alias.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedAlias {
    /// It has another form.
    #[error("an alias has the form 192.168.1.0/24=10.99.1.0/24")]
    Form,
    /// One of both is no prefix.
    #[error(transparent)]
    Prefix(#[from] MalformedIpv4Prefix),
    /// They have different numbers of addresses.
    #[error("{prefix} and its alias {alias} have different lengths")]
    Length {
        /// The prefix of the site.
        prefix: Ipv4Prefix,
        /// What should stand for it.
        alias: Ipv4Prefix,
    },
    /// They have an address in common.
    #[error("{prefix} and its alias {alias} overlap")]
    Overlap {
        /// The prefix of the site.
        prefix: Ipv4Prefix,
        /// What should stand for it.
        alias: Ipv4Prefix,
    },
    /// Nodes use such addresses themselves.
    #[error("the alias {0} overlaps {RESERVED}, of which nodes use addresses themselves")]
    Reserved(Ipv4Prefix),
}

/// Addresses of protocols (RFC 6890, 2.2.2): a machine speaks from one of them to hosts that it
/// knows by an alias, and routers without an IPv4 address have another.
const RESERVED: Ipv4Prefix = Ipv4Prefix {
    address: Ipv4Addr::new(192, 0, 0, 0),
    length: 24,
};

impl Alias {
    /// Lets `alias` stand for `prefix`.
    ///
    /// # Errors
    /// When they differ in length, share an address, or `alias` is kept for nodes.
    pub fn new(prefix: Ipv4Prefix, alias: Ipv4Prefix) -> Result<Self, MalformedAlias> {
        if prefix.length != alias.length {
            return Err(MalformedAlias::Length { prefix, alias });
        }
        if prefix.overlaps(alias) {
            return Err(MalformedAlias::Overlap { prefix, alias });
        }
        if alias.overlaps(RESERVED) {
            return Err(MalformedAlias::Reserved(alias));
        }
        Ok(Self { prefix, alias })
    }

    /// Returns the addresses that the hosts have.
    #[must_use]
    pub fn prefix(self) -> Ipv4Prefix {
        self.prefix
    }

    /// Returns the addresses by which others know them.
    #[must_use]
    pub fn alias(self) -> Ipv4Prefix {
        self.alias
    }

    /// Returns by which address others know the host at `address`; `None` for one that is not in
    /// the prefix.
    #[must_use]
    pub fn of_host(self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        moved(self.prefix, self.alias, address)
    }

    /// Returns the address of the host that others know as `address`; `None` for one that is not
    /// in the alias.
    #[must_use]
    pub fn host(self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        moved(self.alias, self.prefix, address)
    }

    /// Returns the address that a host of a site with these aliases has itself, which others know
    /// by `address`; where no alias has it, that is its own.
    #[must_use]
    pub fn host_among(aliases: &[Self], address: Ipv4Addr) -> Ipv4Addr {
        let mut hosts = aliases.iter().filter_map(|alias| alias.host(address));
        hosts.next().unwrap_or(address)
    }
}

/// Returns what stands in `to` where `address` stands in `from`, which is as long.
fn moved(from: Ipv4Prefix, to: Ipv4Prefix, address: Ipv4Addr) -> Option<Ipv4Addr> {
    let difference = from.address.to_bits() ^ to.address.to_bits();
    let is_there = from.contains(address);
    is_there.then(|| Ipv4Addr::from_bits(address.to_bits() ^ difference))
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.alias)
    }
}

impl FromStr for Alias {
    type Err = MalformedAlias;

    /// Parses `PREFIX=ALIAS`.
    fn from_str(text: &str) -> Result<Self, MalformedAlias> {
        let (prefix, alias) = text.split_once('=').ok_or(MalformedAlias::Form)?;
        Self::new(prefix.parse()?, alias.parse()?)
    }
}

as_text!(Alias);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Ipv4Prefix {
        text.parse().expect("an IPv4 prefix")
    }

    #[test]
    fn an_alias_keeps_the_bits_of_a_host() {
        let alias: Alias = "192.168.1.0/24=10.99.1.0/24".parse().expect("an alias");
        let (host, other) = ([192, 168, 1, 10].into(), [10, 99, 1, 10].into());
        assert_eq!(alias.of_host(host), Some(other));
        assert_eq!(alias.host(other), Some(host));
        assert_eq!((alias.of_host(other), alias.host(host)), (None, None));
        assert_eq!(alias.to_string(), "192.168.1.0/24=10.99.1.0/24");
        assert_eq!(Alias::host_among(&[alias], other), host);
        assert_eq!(Alias::host_among(&[alias], host), host);
    }

    #[test]
    fn what_could_not_be_told_apart_is_no_alias() {
        let check = |text: &str, error| assert_eq!(text.parse::<Alias>(), Err(error), "{text}");
        for text in ["", "10.0.0.0/8", "192.168.1.0/24-10.99.1.0/24"] {
            check(text, MalformedAlias::Form);
        }
        let whole = MalformedIpv4Prefix::HostBits(prefix("10.99.1.0/24"));
        check("192.168.1.0/24=10.99.1.1/24", MalformedAlias::Prefix(whole));
        check("=", MalformedAlias::Prefix(MalformedIpv4Prefix::Form));
        let (lan, wider) = (prefix("192.168.1.0/24"), prefix("10.99.0.0/16"));
        let length = MalformedAlias::Length {
            prefix: lan,
            alias: wider,
        };
        check("192.168.1.0/24=10.99.0.0/16", length);
        let overlap = MalformedAlias::Overlap {
            prefix: lan,
            alias: lan,
        };
        check("192.168.1.0/24=192.168.1.0/24", overlap);
        let reserved = MalformedAlias::Reserved(prefix("192.0.0.0/25"));
        check("192.168.1.0/25=192.0.0.0/25", reserved);
    }

    proptest! {
        #[test]
        fn an_alias_is_a_bijection(one: u32, other: u32, length in 8_u8..=32, address: u32) {
            let of = |bits: u32| {
                let bits = bits & (u32::MAX << (32 - u32::from(length)));
                format!("{}/{length}", Ipv4Addr::from_bits(bits)).parse::<Ipv4Prefix>()
            };
            let (Ok(prefix), Ok(alias)) = (of(one), of(other)) else {
                return Ok(());
            };
            let Ok(alias) = Alias::new(prefix, alias) else {
                return Ok(());
            };
            prop_assert_eq!(alias.to_string().parse(), Ok(alias));
            let inside = prefix.address().to_bits() | (address & !mask(length));
            for address in [address, inside].map(Ipv4Addr::from_bits) {
                let known = alias.of_host(address);
                prop_assert_eq!(known.is_some(), prefix.contains(address));
                if let Some(known) = known {
                    prop_assert!(alias.alias().contains(known) && !prefix.contains(known));
                    prop_assert_eq!(alias.host(known), Some(address));
                    let differ = (known.to_bits() ^ address.to_bits()) & !mask(length);
                    prop_assert_eq!(differ, 0, "the bits of a host stay");
                }
                prop_assert_eq!(alias.host(address).and_then(|host| alias.of_host(host)),
                    alias.alias().contains(address).then_some(address));
            }
        }
    }

    fn mask(length: u8) -> u32 {
        u32::MAX << (32 - u32::from(length))
    }
}
