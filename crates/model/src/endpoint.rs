//! Where a WireGuard socket is found: `HOST:PORT`, with an address or a name as host.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// A host and a UDP port.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port; never zero.
    pub port: u16,
}

/// An address, or a name that has to be resolved first.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A host name of at most 253 bytes.
    Name(HostName),
}

/// The name of a host in the public DNS (RFC 1123, 2.1; an underscore is let through).
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HostName(String);

/// The text is not an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an endpoint has the form HOST:PORT, with an IPv6 address in brackets")]
pub struct MalformedEndpoint;

/// Length of the longest name in text (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;

impl Endpoint {
    /// Returns the socket address, unless the host is a name.
    #[must_use]
    pub fn socket_address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(address) => Some(SocketAddr::new(address, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl HostName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = MalformedEndpoint;

    fn from_str(text: &str) -> Result<Self, MalformedEndpoint> {
        let (host, port) = text.rsplit_once(':').ok_or(MalformedEndpoint)?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(MalformedEndpoint);
        }
        let port = port.parse().map_err(|_| MalformedEndpoint)?;
        if port == 0 {
            return Err(MalformedEndpoint);
        }
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(v6) => Host::Address(IpAddr::V6(v6.parse().map_err(|_| MalformedEndpoint)?)),
            None => parse_host(host)?,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{}:{}", name.0, self.port),
        }
    }
}

fn parse_host(text: &str) -> Result<Host, MalformedEndpoint> {
    if let Ok(address) = text.parse() {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(allowed) && !label.starts_with('-')
    };
    let labels = text.strip_suffix('.').unwrap_or(text);
    // A last label of digits would be a mistyped IPv4 address (RFC 3696, 2).
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let well_formed = text.len() <= NAME_MAX
        && labels.split('.').all(label)
        && !labels.rsplit('.').next().is_some_and(numeric);
    if !well_formed {
        return Err(MalformedEndpoint);
    }
    Ok(Host::Name(HostName(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_or_a_name_with_a_port() {
        for text in [
            "192.0.2.1:51820",
            "[2001:db8::1]:51820",
            "vpn.example.com:1",
            "vpn.example.com.:65535",
            "localhost:51820",
            "my_host-1:51820",
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), text);
            assert_eq!(text.parse(), Ok(endpoint));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = format!("{}.example:1", "a.".repeat(130));
        for text in [
            "",
            ":",
            ":51820",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:-1",
            "2001:db8::1:51820",
            "[2001:db8::1]",
            "[2001:db8::1:51820",
            "[192.0.2.1]:51820",
            "192.0.2.256:51820",
            "192.0.2:51820",
            "-host:1",
            "ho st:1",
            "host..example:1",
            "host\n:1",
            "$(id):1",
            &long,
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(MalformedEndpoint), "{text}");
        }
    }
}
