//! Which packets a capture wants, in a part of the language of pcap-filter(7).
//!
//! ```text
//! expression := unary { ("and" | "&&" | "or" | "||") unary }      one precedence, from the left
//! unary      := ("not" | "!") unary | "(" expression ")" | primitive
//! primitive  := "ip" | "ip6" | "tcp" | "udp" | "icmp" | "icmp6" | ("less" | "greater") BYTES
//!             | ["ip" | "ip6"] [ends] ["host"] ADDRESS | ["ip" | "ip6"] [ends] "net" PREFIX
//!             | ["tcp" | "udp"] [ends] ("port" PORT | "portrange" PORT-PORT)
//! ends       := "src" | "dst" | "src or dst" | "src and dst"
//! ```
//! As there, a value alone repeats the qualifiers before it: `host 10.0.0.1 or 10.0.0.2`. Names
//! of hosts and ports are not looked up, and bytes of packets cannot be compared. Ports are those
//! of TCP and UDP, also behind extension headers of IPv6; a fragment but the first has none.

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use crate::ip;

/// A parsed expression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    text: String,
    /// In postfix order; never empty.
    steps: Vec<Step>,
}

/// Why a text is no expression of the language above.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Malformed {
    /// Where in the text, in bytes.
    pub position: usize,
    /// The word that stands there; empty at the end.
    pub word: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a word of an expression.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The text is longer than [`TEXT_MAX`].
    TooLong,
    /// More than [`DEPTH_MAX`] parentheses and negations are open.
    TooDeep,
    /// A primitive is wanted here.
    NoPrimitive,
    /// A parenthesis is not closed.
    NotClosed,
    /// The expression before was complete.
    Trailing,
    /// `host` wants an address of the named family.
    NoAddress,
    /// `net` wants a prefix of the named family, such as `10.0.0.0/8`.
    NoPrefix,
    /// A prefix has bits behind its length.
    HostBits,
    /// `port` wants a number, `portrange` two.
    NoPort,
    /// `less` and `greater` want a number of bytes.
    NoLength,
    /// The protocol before it does not go with this word.
    Qualifier,
}

/// A longer text is refused.
pub const TEXT_MAX: usize = 2_048;

/// So many parentheses and negations may be open at once.
pub const DEPTH_MAX: usize = 32;

#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    Test(Primitive),
    Not,
    And,
    Or,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Primitive {
    Family(Family),
    Protocol(Option<Family>, u8),
    Address(Ends, Prefix),
    Port(Option<u8>, Ends, RangeInclusive<u16>),
    AtMost(usize),
    AtLeast(usize),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

/// Which of the two addresses or ports are compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ends {
    Source,
    Destination,
    Either,
    Both,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Prefix {
    address: IpAddr,
    length: u8,
}

/// What is compared; the headers are `None` of what is no IP packet.
struct Subject<'a> {
    headers: Option<ip::Packet<'a>>,
    length: usize,
}

impl Filter {
    /// Parses an expression.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > TEXT_MAX {
            return Err(Malformed {
                position: TEXT_MAX,
                word: String::new(),
                fault: Fault::TooLong,
            });
        }
        let mut parser = Parser {
            text,
            words: words(text),
            next: 0,
            steps: Vec::new(),
            qualifiers: Qualifiers::default(),
        };
        parser.expression(0)?;
        if parser.next < parser.words.len() {
            return Err(parser.fault(Fault::Trailing));
        }
        Ok(Self {
            text: text.to_owned(),
            steps: parser.steps,
        })
    }

    /// Returns the text that was parsed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Tells whether a packet of `length` bytes is wanted that begins with `start`: with all its
    /// headers. What is no IP packet has a length only.
    #[must_use]
    pub fn matches(&self, start: &[u8], length: usize) -> bool {
        let headers = ip::parse_quote(start).ok();
        let subject = Subject { headers, length };
        // A stack of answers, the top in the lowest bit. No expression needs more than one for
        // each open parenthesis and two.
        const { assert!(DEPTH_MAX + 2 <= u64::BITS as usize) };
        let mut stack = 0_u64;
        for step in &self.steps {
            let top = stack & 1;
            stack = match step {
                Step::Test(primitive) => (stack << 1) | u64::from(subject.fits(primitive)),
                Step::Not => stack ^ 1,
                Step::And => (stack >> 1) & (top | !1),
                Step::Or => (stack >> 1) | top,
            };
        }
        stack & 1 == 1
    }
}

impl Subject<'_> {
    fn fits(&self, primitive: &Primitive) -> bool {
        match primitive {
            Primitive::AtMost(length) => return self.length <= *length,
            Primitive::AtLeast(length) => return self.length >= *length,
            Primitive::Family(_)
            | Primitive::Protocol(..)
            | Primitive::Address(..)
            | Primitive::Port(..) => {}
        }
        let Some(packet) = &self.headers else {
            return false;
        };
        let header = &packet.header;
        match primitive {
            Primitive::AtMost(_) | Primitive::AtLeast(_) => false,
            Primitive::Family(family) => Family::of(header.source) == *family,
            Primitive::Protocol(family, number) => {
                header.next_header == *number
                    && family.is_none_or(|family| Family::of(header.source) == family)
            }
            Primitive::Address(ends, prefix) => ends.fit(
                prefix.contains(header.source),
                prefix.contains(header.destination),
            ),
            Primitive::Port(protocol, ends, range) => {
                let Some((source, destination)) = ports(packet) else {
                    return false;
                };
                protocol.is_none_or(|protocol| header.next_header == protocol)
                    && ends.fit(range.contains(&source), range.contains(&destination))
            }
        }
    }
}

/// Returns the ports of TCP or UDP, source first.
fn ports(packet: &ip::Packet<'_>) -> Option<(u16, u16)> {
    let header = &packet.header;
    let later = header.fragment.is_some_and(|fragment| fragment.offset > 0);
    if later || !matches!(header.next_header, ip::TCP | ip::UDP) {
        return None;
    }
    let [a, b, c, d] = *packet.payload.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

impl Family {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl Ends {
    fn fit(self, source: bool, destination: bool) -> bool {
        match self {
            Self::Source => source,
            Self::Destination => destination,
            Self::Either => source || destination,
            Self::Both => source && destination,
        }
    }
}

impl Prefix {
    fn contains(&self, address: IpAddr) -> bool {
        let (own, width) = bits(self.address);
        let (theirs, of_width) = bits(address);
        let behind = width - u32::from(self.length);
        width == of_width && (own ^ theirs).checked_shr(behind).unwrap_or(0) == 0
    }

    fn has_host_bits(&self) -> bool {
        let (own, width) = bits(self.address);
        let behind = width - u32::from(self.length);
        own.trailing_zeros() < behind
    }
}

/// Returns an address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

/// What stands before a value, and before those that follow it alone.
#[derive(Clone, Copy, Debug, Default)]
struct Qualifiers {
    protocol: Option<Protocol>,
    ends: Option<Ends>,
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Protocol {
    Ip(Family),
    Transport(u8),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
}

struct Parser<'t> {
    text: &'t str,
    /// Where each begins, and the word.
    words: Vec<(usize, &'t str)>,
    next: usize,
    steps: Vec<Step>,
    qualifiers: Qualifiers,
}

impl<'t> Parser<'t> {
    fn expression(&mut self, depth: usize) -> Result<(), Malformed> {
        self.unary(depth)?;
        loop {
            let step = match self.word(0) {
                Some("and" | "&&") => Step::And,
                Some("or" | "||") => Step::Or,
                Some(_) | None => return Ok(()),
            };
            self.next += 1;
            self.unary(depth)?;
            self.steps.push(step);
        }
    }

    fn unary(&mut self, depth: usize) -> Result<(), Malformed> {
        let word = self.word(0);
        if depth == DEPTH_MAX && matches!(word, Some("not" | "!" | "(")) {
            return Err(self.fault(Fault::TooDeep));
        }
        match word {
            Some("not" | "!") => {
                self.next += 1;
                self.unary(depth + 1)?;
                self.steps.push(Step::Not);
            }
            Some("(") => {
                self.next += 1;
                self.expression(depth + 1)?;
                if self.word(0) != Some(")") {
                    return Err(self.fault(Fault::NotClosed));
                }
                self.next += 1;
            }
            Some(_) | None => {
                let primitive = self.primitive()?;
                self.steps.push(Step::Test(primitive));
            }
        }
        Ok(())
    }

    fn primitive(&mut self) -> Result<Primitive, Malformed> {
        let start = self.next;
        let alone = match self.word(0) {
            Some("icmp") => Some(Primitive::Protocol(Some(Family::V4), ip::ICMP)),
            Some("icmp6") => Some(Primitive::Protocol(Some(Family::V6), ip::ICMPV6)),
            Some("less") => Some(Primitive::AtMost(self.length()?)),
            Some("greater") => Some(Primitive::AtLeast(self.length()?)),
            Some(_) | None => None,
        };
        if let Some(primitive) = alone {
            self.next += 1;
            return Ok(primitive);
        }
        let qualifiers = Qualifiers {
            protocol: self.protocol(),
            ends: self.ends(),
            kind: self.kind(),
        };
        match qualifiers {
            Qualifiers {
                protocol: Some(protocol),
                ends: None,
                kind: None,
            } => {
                return Ok(match protocol {
                    Protocol::Ip(family) => Primitive::Family(family),
                    Protocol::Transport(number) => Primitive::Protocol(None, number),
                });
            }
            // A value alone.
            _ if self.next == start => {}
            _ => self.qualifiers = qualifiers,
        }
        self.value()
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let protocol = match self.word(0)? {
            "ip" => Protocol::Ip(Family::V4),
            "ip6" => Protocol::Ip(Family::V6),
            "tcp" => Protocol::Transport(ip::TCP),
            "udp" => Protocol::Transport(ip::UDP),
            _ => return None,
        };
        self.next += 1;
        Some(protocol)
    }

    fn ends(&mut self) -> Option<Ends> {
        let (first, other) = match self.word(0)? {
            "src" => (Ends::Source, "dst"),
            "dst" => (Ends::Destination, "src"),
            _ => return None,
        };
        let ends = match (self.word(1), self.word(2)) {
            (Some("or" | "||"), Some(word)) if word == other => Ends::Either,
            (Some("and" | "&&"), Some(word)) if word == other => Ends::Both,
            (Some(_) | None, _) => {
                self.next += 1;
                return Some(first);
            }
        };
        self.next += 3;
        Some(ends)
    }

    fn kind(&mut self) -> Option<Kind> {
        let kind = match self.word(0)? {
            "host" => Kind::Host,
            "net" => Kind::Net,
            "port" => Kind::Port,
            "portrange" => Kind::PortRange,
            _ => return None,
        };
        self.next += 1;
        Some(kind)
    }

    fn value(&mut self) -> Result<Primitive, Malformed> {
        let Qualifiers {
            protocol,
            ends,
            kind,
        } = self.qualifiers;
        let ends = ends.unwrap_or(Ends::Either);
        let kind = kind.unwrap_or(Kind::Host);
        let (family, transport) = match (protocol, kind) {
            (None, _) => (None, None),
            (Some(Protocol::Ip(family)), Kind::Host | Kind::Net) => (Some(family), None),
            (Some(Protocol::Transport(number)), Kind::Port | Kind::PortRange) => {
                (None, Some(number))
            }
            (Some(_), _) => return Err(self.fault(Fault::Qualifier)),
        };
        let Some(word) = self.word(0) else {
            return Err(self.fault(Fault::NoPrimitive));
        };
        let parsed = match kind {
            Kind::Host => address(word, family).map(|prefix| Primitive::Address(ends, prefix)),
            Kind::Net => prefix(word, family).map(|prefix| Primitive::Address(ends, prefix)),
            Kind::Port | Kind::PortRange => {
                port_range(word, kind).map(|range| Primitive::Port(transport, ends, range))
            }
        };
        let primitive = parsed.map_err(|fault| self.fault(fault))?;
        self.next += 1;
        Ok(primitive)
    }

    /// Parses the word behind the next, and goes to it.
    fn length(&mut self) -> Result<usize, Malformed> {
        self.next += 1;
        let length = self.word(0).and_then(|word| word.parse().ok());
        length.ok_or_else(|| self.fault(Fault::NoLength))
    }

    /// Returns the word that many behind the next.
    fn word(&self, behind: usize) -> Option<&'t str> {
        self.words.get(self.next + behind).map(|(_, word)| *word)
    }

    fn fault(&self, fault: Fault) -> Malformed {
        let end = (self.text.len(), "");
        let (position, word) = *self.words.get(self.next).unwrap_or(&end);
        Malformed {
            position,
            word: word.to_owned(),
            fault,
        }
    }
}

fn address(word: &str, family: Option<Family>) -> Result<Prefix, Fault> {
    let address: IpAddr = match word.parse() {
        Ok(address) => address,
        // The likeliest error is another: no primitive begins so.
        Err(_) if !word.contains(['.', ':']) => return Err(Fault::NoPrimitive),
        Err(_) => return Err(Fault::NoAddress),
    };
    if family.is_some_and(|family| family != Family::of(address)) {
        return Err(Fault::NoAddress);
    }
    let length = u8::try_from(bits(address).1).expect("32 or 128");
    Ok(Prefix { address, length })
}

fn prefix(word: &str, family: Option<Family>) -> Result<Prefix, Fault> {
    let (address_word, length) = match word.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (word, None),
    };
    let whole = address(address_word, family).map_err(|_| Fault::NoPrefix)?;
    let Some(length) = length else {
        return Ok(whole);
    };
    let length = length.parse().ok().filter(|length| *length <= whole.length);
    let prefix = Prefix {
        length: length.ok_or(Fault::NoPrefix)?,
        ..whole
    };
    if prefix.has_host_bits() {
        return Err(Fault::HostBits);
    }
    Ok(prefix)
}

fn port_range(word: &str, kind: Kind) -> Result<RangeInclusive<u16>, Fault> {
    let (first, last) = match word.split_once('-') {
        Some(ends) if kind == Kind::PortRange => ends,
        Some(_) => return Err(Fault::NoPort),
        None => (word, word),
    };
    let number = |word: &str| word.parse().map_err(|_| Fault::NoPort);
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(Fault::NoPort);
    }
    Ok(first..=last)
}

/// Cuts a text into words; parentheses and exclamation marks are words of their own, and so are
/// runs of `&` and `|`.
fn words(text: &str) -> Vec<(usize, &str)> {
    let kind = |char: char| match char {
        '(' | ')' | '!' => Spelling::Single,
        '&' | '|' => Spelling::Operator,
        _ if char.is_whitespace() => Spelling::Space,
        _ => Spelling::Letter,
    };
    let mut words: Vec<(usize, &str)> = Vec::new();
    let mut last = Spelling::Space;
    for (position, char) in text.char_indices() {
        let end = position + char.len_utf8();
        let here = kind(char);
        match words.last_mut() {
            _ if here == Spelling::Space => {}
            Some((start, word)) if here == last && here != Spelling::Single => {
                *word = &text[*start..end];
            }
            Some(_) | None => words.push((position, &text[position..end])),
        }
        last = here;
    }
    words
}

/// What a character is to words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spelling {
    Space,
    Single,
    Operator,
    Letter,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.word.is_empty() {
            write!(f, "at the end: {}", self.fault)
        } else {
            write!(
                f,
                "`{}` at byte {}: {}",
                self.word, self.position, self.fault
            )
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => return write!(f, "a filter has at most {TEXT_MAX} bytes"),
            Self::TooDeep => return write!(f, "more than {DEPTH_MAX} parentheses and negations"),
            Self::NoPrimitive => "a primitive is wanted, such as `tcp`, `host 10.0.0.1`, `port 22`",
            Self::NotClosed => "a parenthesis is not closed",
            Self::Trailing => "`and` or `or` is wanted before another primitive",
            Self::NoAddress => "an address of that family is wanted; names are not looked up",
            Self::NoPrefix => "a prefix of that family is wanted, such as `10.0.0.0/8`",
            Self::HostBits => "the prefix has bits behind its length",
            Self::NoPort => "a port number is wanted, or `FIRST-LAST` behind `portrange`",
            Self::NoLength => "a number of bytes is wanted",
            Self::Qualifier => "`tcp` and `udp` go with ports, `ip` and `ip6` with addresses",
        })
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests;
