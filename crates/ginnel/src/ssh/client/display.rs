//! The person's X display, which programs at the node may use (`-X`; RFC 4254, 6.3).
//!
//! The node learns a cookie that was made for this connection; whoever shows it here is led on with
//! the real one, which never leaves this machine.

use std::{fmt, io, path::PathBuf, process::Stdio, str::FromStr, time::Duration};

use anyhow::{Context as _, Result};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::HEXLOWER;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpStream, UnixStream},
    process, time,
};
use zeroize::Zeroizing;

use crate::remedy::Advise as _;

/// The only way of xauth that every X server takes (xauth(1)).
const PROTOCOL: &str = "MIT-MAGIC-COOKIE-1";

const COOKIE_LENGTH: usize = 16;

/// TCP port of display 0.
const PORT: u16 = 6_000;

/// How long xauth may take: it waits for a lock in the home directory.
const XAUTH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a program may take to show its cookie.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of the name of a protocol, and of what it shows; more ends the connection.
const WORD_MAX: usize = 256;

/// A display of this machine that the server may open.
pub(in crate::ssh) struct Display {
    place: Place,
    /// What the X server wants to see; nothing where it asks for no cookie.
    cookie: Zeroizing<Vec<u8>>,
    /// What the node shows instead.
    token: Zeroizing<[u8; COOKIE_LENGTH]>,
}

/// Where an X server listens, as `DISPLAY` says (X(7)).
#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    /// This machine, if nothing stands here.
    host: Option<String>,
    number: u16,
    screen: u32,
}

/// The text is no display that can be forwarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a display has the form [HOST]:NUMBER[.SCREEN]")]
struct MalformedPlace;

/// What a request for the display says.
pub(super) struct Request {
    pub(super) protocol: &'static str,
    /// In hex (RFC 4254, 6.3.1).
    pub(super) cookie: Zeroizing<String>,
    pub(super) screen: u32,
}

impl Display {
    /// Finds the display of this session and what its server wants to see.
    pub(in crate::ssh) async fn own() -> Result<Self> {
        let text = std::env::var("DISPLAY")
            .ok()
            .filter(|text| !text.is_empty());
        let text = text.context("SSH: there is no display to forward").remedy(
            "run it where DISPLAY is set, such as a terminal on a desktop, or leave out -X",
        )?;
        let place: Place = text
            .parse()
            .with_context(|| format!("SSH: read DISPLAY `{text}`"))?;
        let cookie = match cookie_of(&place).await {
            Ok(cookie) => cookie,
            Err(error) => {
                tracing::warn!(%error, "ssh: xauth tells no cookie; the X server may want one");
                Zeroizing::default()
            }
        };
        Ok(Self {
            place,
            cookie,
            token: Zeroizing::new(os::random::bytes()),
        })
    }

    /// Returns what the node is told.
    pub(super) fn request(&self) -> Request {
        Request {
            protocol: PROTOCOL,
            cookie: Zeroizing::new(HEXLOWER.encode(&*self.token)),
            screen: self.place.screen,
        }
    }

    /// Connects to the X server.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        if let Some(host) = &self.place.host {
            let stream = TcpStream::connect((host.as_str(), PORT + self.place.number)).await?;
            // It only costs latency if it fails.
            drop(stream.set_nodelay(true));
            return Ok(Box::new(stream));
        }
        let path = PathBuf::from(format!("/tmp/.X11-unix/X{}", self.place.number));
        Ok(Box::new(UnixStream::connect(path).await?))
    }

    /// Reads how a program at the node begins and returns how it begins at the X server, with the
    /// real cookie.
    ///
    /// # Errors
    ///
    /// It does not show the cookie that the node was told, or takes too long.
    pub(super) async fn introduce(
        &self,
        program: impl AsyncRead + Unpin,
    ) -> io::Result<Zeroizing<Vec<u8>>> {
        let read = time::timeout(SETUP_TIMEOUT, Setup::read(program)).await;
        let setup = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let shown = verify_slices_are_equal(&setup.data, self.token.as_slice());
        if setup.protocol != PROTOCOL.as_bytes() || shown.is_err() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(setup.emit(&self.cookie))
    }
}

/// A connection to an X server.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The first message of an X client (X Window System Protocol, "Connection Setup").
struct Setup {
    head: [u8; 12],
    protocol: Vec<u8>,
    data: Zeroizing<Vec<u8>>,
}

impl Setup {
    async fn read(mut from: impl AsyncRead + Unpin) -> io::Result<Self> {
        let mut head = [0; 12];
        from.read_exact(&mut head).await?;
        let number = match head[0] {
            b'B' => u16::from_be_bytes,
            b'l' => u16::from_le_bytes,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let protocol = number([head[6], head[7]]).into();
        let data = number([head[8], head[9]]).into();
        let protocol = word(&mut from, protocol).await?;
        let data = word(&mut from, data).await?;
        Ok(Self {
            head,
            protocol: protocol.to_vec(),
            data,
        })
    }

    /// Returns the message with another cookie, or with none.
    fn emit(&self, cookie: &[u8]) -> Zeroizing<Vec<u8>> {
        let protocol = if cookie.is_empty() { "" } else { PROTOCOL };
        let length = |word: &[u8]| {
            let length = u16::try_from(word.len()).expect("a word is short");
            match self.head[0] {
                b'B' => length.to_be_bytes(),
                _ => length.to_le_bytes(),
            }
        };
        let mut head = self.head;
        head[6..8].copy_from_slice(&length(protocol.as_bytes()));
        head[8..10].copy_from_slice(&length(cookie));
        let mut message = Zeroizing::new(Vec::with_capacity(12 + 2 * WORD_MAX));
        message.extend(head);
        for word in [protocol.as_bytes(), cookie] {
            message.extend(word);
            let padded = message.len().next_multiple_of(4);
            message.resize(padded, 0);
        }
        message
    }
}

/// Reads a word and what fills it up to a multiple of four bytes.
async fn word(
    from: &mut (impl AsyncRead + Unpin),
    length: usize,
) -> io::Result<Zeroizing<Vec<u8>>> {
    if length > WORD_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut word = Zeroizing::new(vec![0; length.next_multiple_of(4)]);
    from.read_exact(&mut word).await?;
    word.truncate(length);
    Ok(word)
}

/// Asks xauth for the cookie of a display.
async fn cookie_of(place: &Place) -> Result<Zeroizing<Vec<u8>>> {
    let mut xauth = process::Command::new("xauth");
    xauth
        .args(["-n", "list", &place.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = time::timeout(XAUTH_TIMEOUT, xauth.output()).await;
    let output = output.context("await xauth")?.context("start xauth")?;
    let listed = Zeroizing::new(output.stdout);
    let listed = std::str::from_utf8(&listed).context("read what xauth lists")?;
    let cookie = listed.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == PROTOCOL).then(|| words.next())?
    });
    let cookie = cookie.context("xauth knows no cookie of this display")?;
    let cookie = HEXLOWER.decode(cookie.as_bytes()).map(Zeroizing::new);
    let cookie = cookie.context("read a cookie")?;
    anyhow::ensure!(cookie.len() <= WORD_MAX, "a cookie is too long");
    Ok(cookie)
}

impl FromStr for Place {
    type Err = MalformedPlace;

    fn from_str(text: &str) -> Result<Self, MalformedPlace> {
        let (host, rest) = text.rsplit_once(':').ok_or(MalformedPlace)?;
        let (number, screen) = rest.split_once('.').unwrap_or((rest, "0"));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(number) || !is_number(screen) {
            return Err(MalformedPlace);
        }
        let number = number.parse().ok();
        let number = number.filter(|number| *number <= u16::MAX - PORT);
        let host = host
            .strip_prefix('[')
            .map_or(Some(host), |rest| rest.strip_suffix(']'));
        let host = host.filter(|host| !host.starts_with(['-', '/']) && !host.ends_with(':'));
        let host = host.ok_or(MalformedPlace)?;
        Ok(Self {
            host: (!matches!(host, "" | "unix")).then(|| host.to_owned()),
            number: number.ok_or(MalformedPlace)?,
            screen: screen.parse().map_err(|_| MalformedPlace)?,
        })
    }
}

/// As xauth names it: a display of a loopback address has the cookie of this machine's own name.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_deref() {
            None => write!(f, ":{}", self.number),
            Some("localhost") => write!(f, "unix:{}", self.number),
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.number),
            Some(host) => write!(f, "{host}:{}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_is_of_this_machine_unless_a_host_stands_before_it() {
        let place = |host: Option<&str>, number, screen| {
            let host = host.map(str::to_owned);
            Some(Place {
                host,
                number,
                screen,
            })
        };
        for (text, expected) in [
            (":0", place(None, 0, 0)),
            ("unix:10.1", place(None, 10, 1)),
            ("localhost:10.0", place(Some("localhost"), 10, 0)),
            ("[::1]:3", place(Some("::1"), 3, 0)),
            ("host::0", None),
            (":", None),
            ("0", None),
            (":-1", None),
            (":+1", None),
            (":59536", None),
            (":0.", None),
            ("-host:0", None),
            ("/tmp/launch:0", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    fn display(cookie: &[u8]) -> Display {
        Display {
            place: ":0".parse().unwrap(),
            cookie: Zeroizing::new(cookie.to_vec()),
            token: Zeroizing::new([7; COOKIE_LENGTH]),
        }
    }

    /// How a program begins: its byte order, the name of the protocol and what it shows.
    fn setup(order: u8, protocol: &[u8], data: &[u8]) -> Vec<u8> {
        let mut head = [order, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0];
        for (at, word) in [(6, protocol), (8, data)] {
            let length = u16::try_from(word.len()).unwrap();
            let length = match order {
                b'B' => length.to_be_bytes(),
                _ => length.to_le_bytes(),
            };
            head[at..at + 2].copy_from_slice(&length);
        }
        let mut message = head.to_vec();
        for word in [protocol, data] {
            message.extend(word);
            message.resize(message.len().next_multiple_of(4), 0);
        }
        message
    }

    fn introduce(display: &Display, message: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        runtime.block_on(display.introduce(message))
    }

    #[test]
    fn who_shows_the_cookie_of_this_connection_is_led_on_with_the_real_one() {
        for order in *b"Bl" {
            for (cookie, name) in [(&[9; 16][..], PROTOCOL), (&[][..], "")] {
                let shown = setup(order, PROTOCOL.as_bytes(), &[7; 16]);
                let led = introduce(&display(cookie), &shown).unwrap();
                assert_eq!(*led, setup(order, name.as_bytes(), cookie));
            }
        }
    }

    #[test]
    fn whoever_shows_something_else_is_not_led_on() {
        let display = display(&[9; 16]);
        for message in [
            setup(b'l', PROTOCOL.as_bytes(), &[8; 16]),
            setup(b'l', PROTOCOL.as_bytes(), &[9; 16]),
            setup(b'l', PROTOCOL.as_bytes(), &[7; 15]),
            setup(b'l', PROTOCOL.as_bytes(), &[]),
            setup(b'l', b"XDM-AUTHORIZATION-1", &[7; 16]),
            setup(b'l', b"", &[7; 16]),
            setup(b'x', PROTOCOL.as_bytes(), &[7; 16]),
            setup(b'B', &[b'a'; WORD_MAX + 1], &[7; 16]),
            setup(b'l', PROTOCOL.as_bytes(), &[7; 16])[..40].to_vec(),
            Vec::new(),
        ] {
            assert!(introduce(&display, &message).is_err(), "{message:?}");
        }
    }
}
