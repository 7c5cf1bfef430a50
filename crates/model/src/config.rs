//! The configuration file of `wg-quick` (wg-quick(8), wg(8)): parsed within bounds, and emitted.
//!
//! No error quotes a value, because a value in the wrong place may be a secret.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    str::FromStr,
};

use crate::{
    endpoint::Endpoint,
    key::{PublicKey, SecretKey},
};

mod parse;

/// A plain WireGuard configuration: one interface and its peers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The own side.
    pub interface: Interface,
    /// The other sides; no two have the same public key.
    pub peers: Vec<Peer>,
    /// Keys that were understood and have no meaning here, such as `PostUp`.
    pub ignored: Vec<Ignored>,
}

/// The section `[Interface]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// The private key.
    pub private_key: SecretKey,
    /// Own addresses inside the tunnel, with the length of their subnets.
    pub addresses: Vec<Prefix>,
    /// Resolvers to ask through the tunnel.
    pub dns: Vec<IpAddr>,
    /// Domains to append to short names.
    pub search: Vec<String>,
    /// Largest packet inside the tunnel in bytes; at least [`MTU_MIN`].
    pub mtu: Option<u16>,
    /// UDP port of the own socket; the system chooses when `None`.
    pub listen_port: Option<NonZeroU16>,
    /// Mark of outgoing datagrams, for policy routing.
    pub fw_mark: Option<u32>,
}

/// A section `[Peer]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its public key.
    pub public_key: PublicKey,
    /// A secret that both sides mix into the handshake.
    pub preshared_key: Option<SecretKey>,
    /// What is routed to it and may come from it. A prefix of two peers belongs to the later one.
    pub allowed_ips: Vec<Prefix>,
    /// Where it is found; `None` when it has to begin.
    pub endpoint: Option<Endpoint>,
    /// Interval of persistent keepalives in seconds; `None` when off.
    pub persistent_keepalive: Option<NonZeroU16>,
}

/// An address and how many of its leading bits belong to the network.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Prefix {
    /// The address; bits behind the prefix may be set.
    pub address: IpAddr,
    /// At most 32 for IPv4 and 128 for IPv6.
    pub bits: u8,
}

/// A key that was understood and has no meaning here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ignored {
    /// Its line, counted from 1.
    pub line: usize,
    /// The key, as `wg-quick` spells it.
    pub key: &'static str,
}

/// Why a text is not a configuration, and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct Malformed {
    /// The line, counted from 1; for something missing, the line of its section.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The text is longer than [`TEXT_MAX`].
    #[error("the file is longer than 16 MiB")]
    TextTooLong,
    /// The text is not UTF-8.
    #[error("the line is not UTF-8 text")]
    NotText,
    /// A section that is neither `[Interface]` nor `[Peer]`.
    #[error("unknown section: expected [Interface] or [Peer]")]
    Section,
    /// A second `[Interface]`.
    #[error("[Interface] stands a second time: merge it with the first")]
    SecondInterface,
    /// There is no `[Interface]`.
    #[error("no [Interface]: it holds the private key and must be there once")]
    NoInterface,
    /// A line that has no equals sign.
    #[error("expected `Key = value`")]
    NoEqualsSign,
    /// A key before the first section.
    #[error("`{0}` stands before the first section: write [Interface] or [Peer] above it")]
    OutsideSection(Key),
    /// A key that no section has.
    #[error("unknown key{0}: {1} has {2}")]
    UnknownKey(Quoted, Section, &'static str),
    /// A key that belongs to the other section.
    #[error("`{0}` does not belong here but to {1}")]
    WrongSection(Key, Section),
    /// A key that may stand only once in its section.
    #[error("`{0}` stands a second time in this section")]
    Repeated(Key),
    /// A value that the key cannot have.
    #[error("`{0}`: expected {1}")]
    Value(Key, &'static str),
    /// A section that lacks a key.
    #[error("{1} has no `{0}`")]
    Missing(Key, Section),
    /// Two peers with one public key.
    #[error("the peer of line {0} has the same `PublicKey`: merge the two")]
    SamePeer(usize),
}

/// The name of an unknown key, shown only where it cannot be a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quoted(Option<String>);

/// A section of the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Section {
    /// The own side.
    Interface,
    /// One other side.
    Peer,
}

/// A key of the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Key {
    /// Own private key.
    PrivateKey,
    /// Own addresses.
    Address,
    /// Resolvers and search domains.
    Dns,
    /// Largest packet.
    Mtu,
    /// Own UDP port.
    ListenPort,
    /// Mark of outgoing datagrams.
    FwMark,
    /// Routing table of `wg-quick`; ignored.
    Table,
    /// Command of `wg-quick`; ignored.
    PreUp,
    /// Command of `wg-quick`; ignored.
    PostUp,
    /// Command of `wg-quick`; ignored.
    PreDown,
    /// Command of `wg-quick`; ignored.
    PostDown,
    /// Switch of `wg-quick`; ignored.
    SaveConfig,
    /// A peer's public key.
    PublicKey,
    /// A peer's preshared key.
    PresharedKey,
    /// A peer's addresses.
    AllowedIps,
    /// A peer's endpoint.
    Endpoint,
    /// A peer's keepalive interval.
    PersistentKeepalive,
}

/// A longer text is refused; 65,536 peers with one address each take about 8 MiB.
pub const TEXT_MAX: usize = 16 << 20;

/// The smallest MTU that every IPv4 link carries (RFC 791, 3.2); IPv6 needs 1,280.
pub const MTU_MIN: u16 = 576;

impl Config {
    /// Parses the file's bytes.
    ///
    /// Keys and sections are compared without case; `#` begins a comment anywhere; `Address`,
    /// `DNS` and `AllowedIPs` may be repeated and add up, every other key stands once.
    ///
    /// # Errors
    /// The first fault and its line. No error holds a value of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        parse::parse(bytes)
    }

    /// Writes the configuration as a file that [`Config::parse`] reads back, without what was
    /// ignored. It holds the secrets: for files with mode 0600 and nothing else.
    #[must_use]
    pub fn emit(&self) -> String {
        let mut out = String::from("[Interface]\n");
        let interface = &self.interface;
        put(&mut out, Key::PrivateKey, interface.private_key.to_base64());
        put_list(&mut out, Key::Address, &interface.addresses);
        let dns = interface.dns.iter().map(ToString::to_string);
        let dns: Vec<_> = dns.chain(interface.search.iter().cloned()).collect();
        put_list(&mut out, Key::Dns, &dns);
        put_some(&mut out, Key::Mtu, interface.mtu);
        put_some(&mut out, Key::ListenPort, interface.listen_port);
        put_some(&mut out, Key::FwMark, interface.fw_mark);
        for peer in &self.peers {
            out.push_str("\n[Peer]\n");
            put(&mut out, Key::PublicKey, peer.public_key);
            let preshared_key = peer.preshared_key.as_ref().map(SecretKey::to_base64);
            put_some(&mut out, Key::PresharedKey, preshared_key);
            put_list(&mut out, Key::AllowedIps, &peer.allowed_ips);
            put_some(&mut out, Key::Endpoint, peer.endpoint.as_ref());
            put_some(
                &mut out,
                Key::PersistentKeepalive,
                peer.persistent_keepalive,
            );
        }
        out
    }
}

impl Key {
    const ALL: [Self; 17] = [
        Self::PrivateKey,
        Self::Address,
        Self::Dns,
        Self::Mtu,
        Self::ListenPort,
        Self::FwMark,
        Self::Table,
        Self::PreUp,
        Self::PostUp,
        Self::PreDown,
        Self::PostDown,
        Self::SaveConfig,
        Self::PublicKey,
        Self::PresharedKey,
        Self::AllowedIps,
        Self::Endpoint,
        Self::PersistentKeepalive,
    ];

    /// Returns the key as `wg-quick` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PrivateKey => "PrivateKey",
            Self::Address => "Address",
            Self::Dns => "DNS",
            Self::Mtu => "MTU",
            Self::ListenPort => "ListenPort",
            Self::FwMark => "FwMark",
            Self::Table => "Table",
            Self::PreUp => "PreUp",
            Self::PostUp => "PostUp",
            Self::PreDown => "PreDown",
            Self::PostDown => "PostDown",
            Self::SaveConfig => "SaveConfig",
            Self::PublicKey => "PublicKey",
            Self::PresharedKey => "PresharedKey",
            Self::AllowedIps => "AllowedIPs",
            Self::Endpoint => "Endpoint",
            Self::PersistentKeepalive => "PersistentKeepalive",
        }
    }

    fn section(self) -> Section {
        match self {
            Self::PrivateKey
            | Self::Address
            | Self::Dns
            | Self::Mtu
            | Self::ListenPort
            | Self::FwMark
            | Self::Table
            | Self::PreUp
            | Self::PostUp
            | Self::PreDown
            | Self::PostDown
            | Self::SaveConfig => Section::Interface,
            Self::PublicKey
            | Self::PresharedKey
            | Self::AllowedIps
            | Self::Endpoint
            | Self::PersistentKeepalive => Section::Peer,
        }
    }
}

impl Section {
    fn keys(self) -> &'static str {
        match self {
            Self::Interface => "PrivateKey, Address, DNS, MTU, ListenPort, FwMark",
            Self::Peer => "PublicKey, PresharedKey, AllowedIPs, Endpoint, PersistentKeepalive",
        }
    }
}

impl Quoted {
    /// The longest key of the format; a longer word, or one with digits, may be part of a secret.
    const LENGTH_MAX: usize = 19;

    fn new(key: &str) -> Self {
        let harmless = (1..=Self::LENGTH_MAX).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_alphabetic());
        Self(harmless.then(|| key.to_owned()))
    }
}

impl Prefix {
    /// Makes the prefix that holds `address` alone.
    #[must_use]
    pub fn single(address: IpAddr) -> Self {
        let bits = bits_max(address);
        Self { address, bits }
    }

    /// Returns the prefix with all bits behind it cleared.
    #[must_use]
    pub fn masked(self) -> Self {
        let behind = u32::from(bits_max(self.address).saturating_sub(self.bits));
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        let bits = self.bits;
        Self { address, bits }
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let Some((address, bits)) = text.split_once('/') else {
            return text.parse().map(Self::single).map_err(|_| ());
        };
        let address = address.parse().map_err(|_| ())?;
        if bits.is_empty() || !bits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        let bits = bits.parse().map_err(|_| ())?;
        if bits > bits_max(address) {
            return Err(());
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interface => "[Interface]",
            Self::Peer => "[Peer]",
        })
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(key) => write!(f, " `{key}`"),
            None => Ok(()),
        }
    }
}

fn bits_max(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn put(out: &mut String, key: Key, value: impl fmt::Display) {
    writeln!(out, "{key} = {value}").expect("a string takes every write");
}

fn put_some(out: &mut String, key: Key, value: Option<impl fmt::Display>) {
    if let Some(value) = value {
        put(out, key, value);
    }
}

fn put_list(out: &mut String, key: Key, values: &[impl ToString]) {
    if !values.is_empty() {
        let values: Vec<_> = values.iter().map(ToString::to_string).collect();
        put(out, key, values.join(", "));
    }
}

#[cfg(test)]
mod tests;
