//! The parser of the `wg-quick` format: one pass over the lines, then what must be there.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use super::{
    Config, Fault, Ignored, Interface, Key, MTU_MIN, Malformed, Peer, Prefix, Quoted, Section,
    TEXT_MAX,
};
use crate::{
    endpoint::Endpoint,
    key::{PublicKey, SecretKey},
};

/// What has been read so far.
#[derive(Default)]
struct Draft {
    interface: Option<InterfaceDraft>,
    peers: Vec<PeerDraft>,
    section: Option<Section>,
    /// The keys that the current section holds already.
    seen: Vec<Key>,
    ignored: Vec<Ignored>,
}

#[derive(Default)]
struct InterfaceDraft {
    line: usize,
    private_key: Option<SecretKey>,
    addresses: Vec<Prefix>,
    dns: Vec<IpAddr>,
    search: Vec<String>,
    mtu: Option<u16>,
    listen_port: Option<NonZeroU16>,
    fw_mark: Option<u32>,
}

#[derive(Default)]
struct PeerDraft {
    line: usize,
    public_key: Option<PublicKey>,
    preshared_key: Option<SecretKey>,
    allowed_ips: Vec<Prefix>,
    endpoint: Option<Endpoint>,
    persistent_keepalive: Option<NonZeroU16>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Config, Malformed> {
    if bytes.len() > TEXT_MAX {
        let fault = Fault::TextTooLong;
        return Err(Malformed { line: 1, fault });
    }
    // Editors of another system put a byte order mark in front.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut draft = Draft::default();
    for (index, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        let at = |fault| Malformed { line, fault };
        let text = std::str::from_utf8(bytes).map_err(|_| at(Fault::NotText))?;
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            draft.line(line, text).map_err(at)?;
        }
    }
    draft.finish()
}

impl Draft {
    fn line(&mut self, line: usize, text: &str) -> Result<(), Fault> {
        if text.starts_with('[') {
            return self.begin(line, text);
        }
        let (key, value) = text.split_once('=').ok_or(Fault::NoEqualsSign)?;
        let (key, value) = (key.trim(), value.trim());
        let known = |known: &Key| known.name().eq_ignore_ascii_case(key);
        let Some(key) = Key::ALL.into_iter().find(known) else {
            let section = self.section.unwrap_or(Section::Interface);
            return Err(Fault::UnknownKey(Quoted::new(key), section, section.keys()));
        };
        let section = self.section.ok_or(Fault::OutsideSection(key))?;
        if key.section() != section {
            return Err(Fault::WrongSection(key, key.section()));
        }
        if self.seen.contains(&key) && !repeatable(key) {
            return Err(Fault::Repeated(key));
        }
        if !self.seen.contains(&key) {
            self.seen.push(key);
        }
        let expected = |expected| Fault::Value(key, expected);
        match section {
            Section::Interface => {
                let interface = self.interface.as_mut().expect("the section was begun");
                if interface.set(key, value).map_err(expected)? == Meaning::None {
                    let key = key.name();
                    self.ignored.push(Ignored { line, key });
                }
                Ok(())
            }
            Section::Peer => {
                let peer = self.peers.last_mut().expect("the section was begun");
                peer.set(key, value).map_err(expected)
            }
        }
    }

    fn begin(&mut self, line: usize, text: &str) -> Result<(), Fault> {
        self.seen.clear();
        if text.eq_ignore_ascii_case("[interface]") {
            if self.interface.is_some() {
                return Err(Fault::SecondInterface);
            }
            self.section = Some(Section::Interface);
            self.interface = Some(InterfaceDraft {
                line,
                ..InterfaceDraft::default()
            });
        } else if text.eq_ignore_ascii_case("[peer]") {
            self.section = Some(Section::Peer);
            self.peers.push(PeerDraft {
                line,
                ..PeerDraft::default()
            });
        } else {
            return Err(Fault::Section);
        }
        Ok(())
    }

    fn finish(self) -> Result<Config, Malformed> {
        let no_interface = Malformed {
            line: 1,
            fault: Fault::NoInterface,
        };
        let interface = self.interface.ok_or(no_interface)?.finish()?;
        let mut lines = BTreeMap::new();
        let mut peers = Vec::with_capacity(self.peers.len());
        for draft in self.peers {
            let line = draft.line;
            let peer = draft.finish()?;
            if let Some(first) = lines.insert(peer.public_key, line) {
                let fault = Fault::SamePeer(first);
                return Err(Malformed { line, fault });
            }
            peers.push(peer);
        }
        Ok(Config {
            interface,
            peers,
            ignored: self.ignored,
        })
    }
}

/// Whether a key did anything.
#[derive(Eq, PartialEq)]
enum Meaning {
    Taken,
    None,
}

impl InterfaceDraft {
    /// Takes one key; the error says what would be right.
    fn set(&mut self, key: Key, value: &str) -> Result<Meaning, &'static str> {
        match key {
            Key::PrivateKey => self.private_key = Some(value.parse().map_err(|_| KEY)?),
            Key::Address => self.addresses.extend(prefixes(value)?),
            Key::Dns => self.take_dns(value)?,
            Key::Mtu => self.mtu = Some(mtu(value)?),
            Key::ListenPort => self.listen_port = NonZeroU16::new(decimal(value).ok_or(PORT)?),
            Key::FwMark => self.fw_mark = fw_mark(value)?,
            Key::Table
            | Key::PreUp
            | Key::PostUp
            | Key::PreDown
            | Key::PostDown
            | Key::SaveConfig => return Ok(Meaning::None),
            Key::PublicKey
            | Key::PresharedKey
            | Key::AllowedIps
            | Key::Endpoint
            | Key::PersistentKeepalive => unreachable!("the key belongs to this section"),
        }
        Ok(Meaning::Taken)
    }

    fn take_dns(&mut self, value: &str) -> Result<(), &'static str> {
        for item in items(value) {
            if let Ok(address) = item.parse() {
                self.dns.push(address);
            } else if is_domain(item) {
                self.search.push(item.to_owned());
            } else {
                return Err("addresses or domains, separated by commas");
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Interface, Malformed> {
        let missing = Malformed {
            line: self.line,
            fault: Fault::Missing(Key::PrivateKey, Section::Interface),
        };
        Ok(Interface {
            private_key: self.private_key.ok_or(missing)?,
            addresses: self.addresses,
            dns: self.dns,
            search: self.search,
            mtu: self.mtu,
            listen_port: self.listen_port,
            fw_mark: self.fw_mark,
        })
    }
}

impl PeerDraft {
    /// Takes one key; the error says what would be right.
    fn set(&mut self, key: Key, value: &str) -> Result<(), &'static str> {
        match key {
            Key::PublicKey => self.public_key = Some(value.parse().map_err(|_| KEY)?),
            Key::PresharedKey => self.preshared_key = Some(value.parse().map_err(|_| KEY)?),
            Key::AllowedIps => self.allowed_ips.extend(prefixes(value)?),
            Key::Endpoint => {
                let expected = "HOST:PORT, with an IPv6 address in brackets";
                self.endpoint = Some(value.parse().map_err(|_| expected)?);
            }
            Key::PersistentKeepalive => {
                self.persistent_keepalive = if value.eq_ignore_ascii_case("off") {
                    None
                } else {
                    let expected = "seconds from 0 to 65535, or off";
                    NonZeroU16::new(decimal(value).ok_or(expected)?)
                };
            }
            Key::PrivateKey
            | Key::Address
            | Key::Dns
            | Key::Mtu
            | Key::ListenPort
            | Key::FwMark
            | Key::Table
            | Key::PreUp
            | Key::PostUp
            | Key::PreDown
            | Key::PostDown
            | Key::SaveConfig => unreachable!("the key belongs to this section"),
        }
        Ok(())
    }

    fn finish(self) -> Result<Peer, Malformed> {
        let missing = Malformed {
            line: self.line,
            fault: Fault::Missing(Key::PublicKey, Section::Peer),
        };
        Ok(Peer {
            public_key: self.public_key.ok_or(missing)?,
            preshared_key: self.preshared_key,
            allowed_ips: self.allowed_ips,
            endpoint: self.endpoint,
            persistent_keepalive: self.persistent_keepalive,
        })
    }
}

const KEY: &str = "44 characters of base64 that end in `=`, as `wg genkey` prints them";
const PORT: &str = "a port from 0 to 65535";

/// Keys that add up, and commands of `wg-quick`, which runs all of them in order.
fn repeatable(key: Key) -> bool {
    match key {
        Key::Address
        | Key::Dns
        | Key::AllowedIps
        | Key::PreUp
        | Key::PostUp
        | Key::PreDown
        | Key::PostDown => true,
        Key::PrivateKey
        | Key::Mtu
        | Key::ListenPort
        | Key::FwMark
        | Key::Table
        | Key::SaveConfig
        | Key::PublicKey
        | Key::PresharedKey
        | Key::Endpoint
        | Key::PersistentKeepalive => false,
    }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    // An empty value is an empty list, as for `AllowedIPs` (wg(8)).
    let value = (!value.is_empty()).then_some(value);
    value
        .into_iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn prefixes(value: &str) -> Result<Vec<Prefix>, &'static str> {
    let prefix = |item: &str| item.parse().map_err(|()| ADDRESSES);
    items(value).map(prefix).collect()
}

const ADDRESSES: &str = "addresses such as 10.0.0.0/8 or fd00::1/64, separated by commas";

/// Reads digits only, unlike `str::parse`, which takes a plus sign.
fn decimal(value: &str) -> Option<u16> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten()
}

fn mtu(value: &str) -> Result<u16, &'static str> {
    let mtu = decimal(value).filter(|&mtu| mtu >= MTU_MIN);
    mtu.ok_or("bytes from 576 to 65535")
}

fn fw_mark(value: &str) -> Result<Option<u32>, &'static str> {
    if value.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let (digits, radix) = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    let well_formed = digits.chars().all(|digit| digit.is_digit(radix));
    let mark = well_formed.then(|| u32::from_str_radix(digits, radix).ok());
    let mark = mark.flatten().ok_or("a number up to 0xffffffff, or off")?;
    Ok((mark != 0).then_some(mark))
}

fn is_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(allowed)
}
