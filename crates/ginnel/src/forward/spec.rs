//! What one forward listens at and where it leads, as written on the command line.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// One forward: `[BIND:]PORT:HOST:PORT[/udp]` or `PATH:HOST:PORT`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Spec {
    /// Where this machine listens.
    pub(crate) local: Local,
    /// Name or address of the remote machine.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
}

/// Where a forward listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Local {
    /// A TCP port; 0 lets the system choose one.
    Tcp(SocketAddr),
    /// A UDP port; 0 lets the system choose one.
    Udp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a text is not a forward.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum MalformedSpec {
    #[error("write [BIND:]PORT:HOST:PORT or PATH:HOST:PORT, such as 5432:db:5432")]
    Shape,
    #[error("`{0}` is not a port from 0 to 65535")]
    Port(String),
    #[error("the remote port must not be 0")]
    RemotePortZero,
    #[error("`{0}` is not an address of this machine; write an IP address, IPv6 in brackets")]
    Bind(String),
    #[error("`[` without `]`")]
    Bracket,
    #[error("a Unix socket carries TCP only; leave out /udp")]
    UnixUdp,
}

impl FromStr for Spec {
    type Err = MalformedSpec;

    fn from_str(text: &str) -> Result<Self, MalformedSpec> {
        let (text, udp) = match text.strip_suffix("/udp") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix("/tcp").unwrap_or(text), false),
        };
        let fields = split(text)?;
        let (bind, local, host, port) = match fields.as_slice() {
            [local, host, port] => (None, *local, *host, *port),
            [bind, local, host, port] => (Some(*bind), *local, *host, *port),
            _ => return Err(MalformedSpec::Shape),
        };
        if host.is_empty() {
            return Err(MalformedSpec::Shape);
        }
        let port = match parse_port(port)? {
            0 => return Err(MalformedSpec::RemotePortZero),
            port => port,
        };
        let local = parse_local(bind, local, udp)?;
        Ok(Self {
            local,
            host: host.to_owned(),
            port,
        })
    }
}

fn parse_local(bind: Option<&str>, local: &str, udp: bool) -> Result<Local, MalformedSpec> {
    if bind.is_none() && local.contains('/') {
        if udp {
            return Err(MalformedSpec::UnixUdp);
        }
        return Ok(Local::Unix(local.into()));
    }
    let address = match bind {
        None => IpAddr::from(Ipv4Addr::LOCALHOST),
        Some("localhost") => IpAddr::from(Ipv4Addr::LOCALHOST),
        Some("*") => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Some(bind) => bind
            .parse()
            .map_err(|_| MalformedSpec::Bind(bind.to_owned()))?,
    };
    let address = SocketAddr::new(address, parse_port(local)?);
    Ok(if udp {
        Local::Udp(address)
    } else {
        Local::Tcp(address)
    })
}

fn parse_port(text: &str) -> Result<u16, MalformedSpec> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten();
    port.ok_or_else(|| MalformedSpec::Port(text.to_owned()))
}

/// Splits at colons outside brackets and takes the brackets away.
fn split(text: &str) -> Result<Vec<&str>, MalformedSpec> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = if let Some(inner) = rest.strip_prefix('[') {
            inner.split_once(']').ok_or(MalformedSpec::Bracket)?
        } else {
            rest.split_at(rest.find(':').unwrap_or(rest.len()))
        };
        fields.push(field);
        if after.is_empty() {
            return Ok(fields);
        }
        rest = after.strip_prefix(':').ok_or(MalformedSpec::Shape)?;
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Udp(address) => write!(f, "{address}/udp"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, local: &Local, host: &str, port: u16) {
        let expected = Spec {
            local: local.clone(),
            host: host.to_owned(),
            port,
        };
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    fn tcp(address: &str) -> Local {
        Local::Tcp(address.parse().unwrap())
    }

    fn udp(address: &str) -> Local {
        Local::Udp(address.parse().unwrap())
    }

    #[test]
    fn a_port_without_an_address_binds_to_this_machine_alone() {
        check("5432:db:5432", &tcp("127.0.0.1:5432"), "db", 5432);
        check("0:db:80/tcp", &tcp("127.0.0.1:0"), "db", 80);
        check("53:10.0.0.53:53/udp", &udp("127.0.0.1:53"), "10.0.0.53", 53);
    }

    #[test]
    fn ipv6_stands_in_brackets_on_both_sides() {
        check("[::1]:80:[fd00::1]:8080", &tcp("[::1]:80"), "fd00::1", 8080);
        check("80:[fd00::1]:8080", &tcp("127.0.0.1:80"), "fd00::1", 8080);
        check("*:80:web:80", &tcp("0.0.0.0:80"), "web", 80);
    }

    #[test]
    fn a_path_is_a_unix_socket() {
        let path = "/tmp/.s.PGSQL.5432";
        check(
            &format!("{path}:db:5432"),
            &Local::Unix(path.into()),
            "db",
            5432,
        );
        check("./s:db:1", &Local::Unix("./s".into()), "db", 1);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, error) in [
            ("", MalformedSpec::Shape),
            ("80", MalformedSpec::Shape),
            ("80:db", MalformedSpec::Shape),
            ("80::80", MalformedSpec::Shape),
            ("1:2:3:4:5", MalformedSpec::Shape),
            ("80:[fd00::1:80", MalformedSpec::Bracket),
            ("80:[fd00::1]x:80", MalformedSpec::Shape),
            ("80:db:0", MalformedSpec::RemotePortZero),
            ("80:db:65536", MalformedSpec::Port("65536".into())),
            ("80:db:+80", MalformedSpec::Port("+80".into())),
            ("x:db:80", MalformedSpec::Port("x".into())),
            ("eth0:80:db:80", MalformedSpec::Bind("eth0".into())),
            ("/s:db:80/udp", MalformedSpec::UnixUdp),
        ] {
            assert_eq!(text.parse::<Spec>(), Err(error), "{text}");
        }
    }
}
