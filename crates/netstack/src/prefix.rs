//! Sets of addresses, and which of them an address falls into.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::secret::TableKey;

/// All addresses that begin with the same bits (RFC 4291, 2.3).
///
/// ```
/// use netstack::Prefix;
///
/// let office = Prefix::new("192.168.7.0".parse()?, 24).expect("24 bits fit IPv4");
/// assert!(office.contains("192.168.7.9".parse()?));
/// assert!(!office.contains("192.168.8.1".parse()?));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Prefix {
    /// Its bits behind `length` are zero.
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Makes the prefix of the first `length` bits of `address`; `None` when it has fewer.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        (length <= bits).then(|| Self {
            address: masked(address, length),
            length,
        })
    }

    /// Returns the lowest address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Returns how many bits all addresses share.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// Tells whether `address` begins with the same bits.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.length) == self.address
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & !mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & !mask).into()
        }
    }
}

/// Values by prefix; the longest prefix that contains an address decides. A look-up costs one
/// step for each length in use, however many prefixes there are.
#[derive(Debug)]
pub(crate) struct Prefixes<T> {
    values: HashMap<Prefix, T, TableKey>,
    /// How many prefixes have that length, the longest first.
    lengths: Vec<(u8, usize)>,
}

impl<T: Copy> Prefixes<T> {
    pub(crate) fn new(key: TableKey) -> Self {
        Self {
            values: HashMap::with_hasher(key),
            lengths: Vec::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.lengths.clear();
    }

    pub(crate) fn insert(&mut self, prefix: Prefix, value: T) {
        if self.values.insert(prefix, value).is_some() {
            return;
        }
        let length = prefix.length;
        match self
            .lengths
            .binary_search_by(|(other, _)| length.cmp(other))
        {
            Ok(at) => self.lengths[at].1 += 1,
            Err(at) => self.lengths.insert(at, (length, 1)),
        }
    }

    pub(crate) fn contains(&self, prefix: Prefix) -> bool {
        self.values.contains_key(&prefix)
    }

    pub(crate) fn remove(&mut self, prefix: Prefix) {
        if self.values.remove(&prefix).is_none() {
            return;
        }
        let length = prefix.length;
        if let Ok(at) = self
            .lengths
            .binary_search_by(|(other, _)| length.cmp(other))
        {
            self.lengths[at].1 -= 1;
            if self.lengths[at].1 == 0 {
                self.lengths.remove(at);
            }
        }
    }

    pub(crate) fn find(&self, address: IpAddr) -> Option<T> {
        self.lengths.iter().find_map(|&(length, _)| {
            let prefix = Prefix::new(address, length)?;
            self.values.get(&prefix).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(text.parse().unwrap(), length).unwrap()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let (_, key) = Secret::new(&[0; 32]);
        let mut prefixes = Prefixes::new(key);
        prefixes.insert(prefix("10.1.2.3", 8), 1);
        prefixes.insert(prefix("10.1.2.3", 24), 2);
        prefixes.insert(prefix("fd00::", 8), 3);
        prefixes.insert(prefix("::", 0), 4);
        let find = |address: &str| prefixes.find(address.parse().unwrap());
        assert_eq!(find("10.1.2.9"), Some(2));
        assert_eq!(find("10.1.3.9"), Some(1));
        assert_eq!(find("11.1.2.9"), None);
        assert_eq!(find("fd12::1"), Some(3));
        assert_eq!(find("2001:db8::1"), Some(4));
        prefixes.remove(prefix("10.1.2.0", 24));
        assert!(!prefixes.contains(prefix("10.1.2.0", 24)));
        assert_eq!(prefixes.find("10.1.2.9".parse().unwrap()), Some(1));
    }

    #[test]
    fn a_prefix_has_no_more_bits_than_its_address() {
        assert_eq!(Prefix::new(Ipv4Addr::LOCALHOST.into(), 33), None);
        let host = prefix("fd00::1", 128);
        assert!(host.contains("fd00::1".parse().unwrap()));
        assert!(!host.contains("fd00::2".parse().unwrap()));
        assert!(!prefix("0.0.0.0", 0).contains("::".parse().unwrap()));
    }
}
