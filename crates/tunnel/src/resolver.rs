//! Names inside the tunnel: a stub resolver that asks the network's own servers (RFC 1035, 7).

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time,
};

use super::{Code, Failure, Record, RecordKind, Tunnel, UdpSocket, system};

mod machine;

pub use machine::ask_as_machine;

/// Whom to ask, and which domains to try behind a short name.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    /// Servers inside the tunnel, in order of preference.
    pub servers: Vec<SocketAddr>,
    /// Domains without a final dot.
    pub search: Vec<String>,
}

/// How long one server may take for one question before it is asked again: so often that a path
/// which loses one packet in twenty each way fails once in a hundred thousand questions.
const PATIENCE: [Duration; 5] = [
    Duration::from_millis(1_000),
    Duration::from_millis(1_000),
    Duration::from_millis(1_000),
    Duration::from_millis(1_500),
    Duration::from_millis(1_500),
];

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Servers that are asked at most.
const SERVERS_MAX: usize = 3;

/// Domains that are tried at most.
const SEARCH_MAX: usize = 6;

/// An answer of this size passes through every tunnel in one piece (RFC 9715).
const PAYLOAD_MAX: u16 = 1_232;

/// Aliases that are followed within one answer.
const ALIASES_MAX: usize = 16;

/// Records that one answer may give.
const RECORDS_MAX: usize = 256;

/// What a server said about one name.
enum Said {
    Records(Vec<Record>),
    /// The name exists, but has no such record.
    NoData,
    NoSuchName,
}

impl Tunnel {
    /// Returns the addresses that `host` means, those of the first family that we have in front. An
    /// IPv4 address in an alias of a site means the host that is known by it.
    pub async fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, Failure> {
        let literal = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if let Ok(address) = literal.unwrap_or(host).parse() {
            return Ok(vec![self.of_alias(address).unwrap_or(address)]);
        }
        let kinds = [RecordKind::Aaaa, RecordKind::A];
        let records = self.resolve(host, &kinds, deadline).await?;
        let addresses: Vec<_> = records
            .iter()
            .filter_map(|r| r.value.parse().ok())
            .collect();
        if addresses.is_empty() {
            return Err(no_such_record(host, "address"));
        }
        Ok(addresses)
    }

    /// Returns the address in the network of the host that is known by an IPv4 address in an alias.
    pub fn of_alias(&self, address: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(address) = address else {
            return None;
        };
        let found = self.with(|node, _| node.map()?.own_org()?.of_alias(address));
        found.map(IpAddr::V6)
    }

    /// Looks up the records of `name`; never an empty answer.
    pub async fn resolve(
        &self,
        name: &str,
        kinds: &[RecordKind],
        deadline: Instant,
    ) -> Result<Vec<Record>, Failure> {
        let resolver = self.resolver();
        if resolver.servers.is_empty() {
            return Err(Failure::new(
                Code::ResolverSilent,
                format!("`{name}` is a name, and the configuration has no DNS line"),
                "add `DNS = ADDRESS` of a server inside the tunnel to [Interface], or give an IP \
                 address",
            ));
        }
        let (mut exists, mut unknown, mut refused) = (false, false, None);
        for candidate in candidates(name, &resolver.search) {
            let Some(parsed) = parse_name(&candidate) else {
                continue;
            };
            match self.ask_all(&resolver, &parsed, kinds, deadline).await {
                Ok(Said::Records(records)) => return Ok(records),
                Ok(Said::NoData) => exists = true,
                Ok(Said::NoSuchName) => unknown = true,
                // A server that serves only its own zones may still know the next name.
                Err(failure) if failure.code == Code::NameRefused => refused = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        if exists {
            let kinds: Vec<_> = kinds.iter().map(|kind| kind.text()).collect();
            return Err(no_such_record(name, &kinds.join(" or ")));
        }
        match refused {
            Some(failure) if !unknown => Err(failure),
            Some(_) | None => Err(no_such_name(name, &resolver)),
        }
    }

    /// Asks for every kind at once.
    async fn ask_all(
        &self,
        resolver: &Resolver,
        name: &Name,
        kinds: &[RecordKind],
        deadline: Instant,
    ) -> Result<Said, Failure> {
        if self.interface().is_some() {
            // The node has the whole zone: no server has to be reached.
            let records = system::records(self, &name.to_ascii(), kinds);
            return Ok(match records {
                None => Said::NoSuchName,
                Some(records) if records.is_empty() => Said::NoData,
                Some(records) => Said::Records(records),
            });
        }
        let mut found = Vec::new();
        let mut exists = false;
        let (first, second) = (kinds.first().copied(), kinds.get(1).copied());
        let ask = async |kind: Option<RecordKind>| match kind {
            Some(kind) => self.ask(resolver, name, kind, deadline).await,
            None => Ok(Said::NoSuchName),
        };
        let (first, second) = tokio::join!(ask(first), ask(second));
        for said in [first?, second?] {
            match said {
                Said::Records(records) => found.extend(records),
                Said::NoData => exists = true,
                Said::NoSuchName => {}
            }
        }
        Ok(match (found.is_empty(), exists) {
            (false, _) => Said::Records(found),
            (true, true) => Said::NoData,
            (true, false) => Said::NoSuchName,
        })
    }

    /// Asks the servers in turn until one answers.
    async fn ask(
        &self,
        resolver: &Resolver,
        name: &Name,
        kind: RecordKind,
        deadline: Instant,
    ) -> Result<Said, Failure> {
        let mut silent = None;
        let mut refused = None;
        for patience in PATIENCE {
            for server in resolver.servers.iter().take(SERVERS_MAX) {
                self.reach(server.ip(), deadline).await?;
                let now = self.now();
                if now >= deadline {
                    break;
                }
                let until = deadline.min(now + patience);
                let received = self.received_from(server.ip());
                match self.answer(*server, name, kind, until).await {
                    Some(Ok(Answered::Said(said))) => return Ok(said),
                    Some(Ok(Answered::Refused(code))) => refused = Some((*server, code)),
                    Some(Err(failure)) => return Err(failure),
                    None => {
                        self.doubt(server.ip(), received);
                        silent = Some(*server);
                    }
                }
            }
        }
        Err(match (refused, silent) {
            (Some((server, code)), _) => Failure::new(
                Code::NameRefused,
                format!("{} cannot answer for `{name}`: {code}", server.ip()),
                "see the logs of that DNS server, or give an IP address",
            ),
            (None, server) => Failure::new(
                Code::ResolverSilent,
                match server {
                    Some(server) => format!("no answer from the DNS server {}", server.ip()),
                    None => format!("no time was left to ask for `{name}`"),
                },
                "the tunnel itself works: see whether the DNS line names a server that answers \
                 there",
            ),
        })
    }

    /// Asks one server and waits until `until`; asks again at once when a session is made, because
    /// what went into the one before is lost.
    async fn answer(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: RecordKind,
        until: Instant,
    ) -> Option<Result<Answered, Failure>> {
        loop {
            let made = self.shared.session.notified();
            tokio::pin!(made);
            made.as_mut().enable();
            tokio::select! {
                answered = self.exchange(server, name, kind) => return Some(answered),
                () = made => {}
                () = time::sleep_until(until.into()) => return None,
            }
        }
    }

    async fn exchange(
        &self,
        server: SocketAddr,
        name: &Name,
        kind: RecordKind,
    ) -> Result<Answered, Failure> {
        let mut id = [0; 2];
        os::random::fill(&mut id);
        let query = query(u16::from_be_bytes(id), name, kind);
        let bytes = query.to_vec().map_err(|error| unsendable(name, &error))?;
        let message = self.exchange_udp(server, &query, &bytes).await?;
        let message = if message.metadata.truncation {
            self.exchange_tcp(server, &query, &bytes).await?
        } else {
            message
        };
        Ok(read_answer(&message, name, kind))
    }

    async fn exchange_udp(
        &self,
        server: SocketAddr,
        query: &Message,
        bytes: &[u8],
    ) -> Result<Message, Failure> {
        let unsent = |error: &dyn std::fmt::Display| {
            Failure::new(
                Code::ResolverSilent,
                format!("cannot ask the DNS server {}: {error}", server.ip()),
                "see that Address holds an address of the same family as DNS",
            )
        };
        let socket = UdpSocket::towards(self, server.ip()).map_err(|error| unsent(&error))?;
        socket
            .send_to(bytes, server)
            .map_err(|error| unsent(&error))?;
        let mut buffer = vec![0; 4_096];
        loop {
            let (length, source) = socket.recv_from(&mut buffer).await;
            // A forged answer must not even end the wait (RFC 5452, 9.1).
            if source == server
                && let Some(message) = parse_answer(&buffer[..length], query)
            {
                return Ok(message);
            }
        }
    }

    async fn exchange_tcp(
        &self,
        server: SocketAddr,
        query: &Message,
        bytes: &[u8],
    ) -> Result<Message, Failure> {
        let mut stream = self.connect(server, CONNECT_TIMEOUT).await?;
        let exchange = async {
            let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
            stream
                .write_all(&[&length.to_be_bytes(), bytes].concat())
                .await?;
            let length = stream.read_u16().await?;
            let mut answer = vec![0; usize::from(length)];
            stream.read_exact(&mut answer).await?;
            Ok(parse_answer(&answer, query))
        };
        let answer: std::io::Result<_> = exchange.await;
        answer.ok().flatten().ok_or_else(|| {
            Failure::new(
                Code::ResolverSilent,
                format!(
                    "the DNS server {} answers cut off and not by TCP",
                    server.ip()
                ),
                "let it serve TCP port 53 too, or give an IP address",
            )
        })
    }
}

enum Answered {
    Said(Said),
    Refused(ResponseCode),
}

/// Returns the type by which DNS knows `kind`.
fn record_type(kind: RecordKind) -> RecordType {
    match kind {
        RecordKind::A => RecordType::A,
        RecordKind::Aaaa => RecordType::AAAA,
        RecordKind::Txt => RecordType::TXT,
    }
}

/// Returns the full names to try, each with a final dot: a name with a dot as it is first, one
/// without a dot first behind the search domains (resolv.conf(5), `ndots:1`).
fn candidates(name: &str, search: &[String]) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let plain = std::iter::once(format!("{name}."));
    let searched = search
        .iter()
        .take(SEARCH_MAX)
        .map(|domain| format!("{name}.{domain}."));
    if name.contains('.') {
        plain.chain(searched).collect()
    } else {
        searched.chain(plain).collect()
    }
}

fn parse_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn query(id: u16, name: &Name, kind: RecordKind) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), record_type(kind)));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_MAX);
    message.set_edns(edns);
    message
}

/// Parses an answer to exactly this query (RFC 5452, 9.1).
fn parse_answer(bytes: &[u8], query: &Message) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let ours = message.metadata.message_type == MessageType::Response
        && message.metadata.id == query.metadata.id
        && message.queries == query.queries;
    ours.then_some(message)
}

fn read_answer(message: &Message, name: &Name, kind: RecordKind) -> Answered {
    if message.metadata.response_code == ResponseCode::NXDomain {
        return Answered::Said(Said::NoSuchName);
    }
    if message.metadata.response_code != ResponseCode::NoError {
        return Answered::Refused(message.metadata.response_code);
    }
    let mut owner = name;
    for _ in 0..ALIASES_MAX {
        let mut answers = message.answers.iter();
        let alias = answers.find_map(|record| {
            if let RData::CNAME(target) = &record.data
                && record.name == *owner
            {
                return Some(&target.0);
            }
            None
        });
        match alias {
            Some(target) => owner = target,
            None => break,
        }
    }
    let own = message
        .answers
        .iter()
        .filter(|record| record.name == *owner);
    let records = own.filter_map(|record| {
        let value = match (&record.data, kind) {
            (RData::A(address), RecordKind::A) => address.0.to_string(),
            (RData::AAAA(address), RecordKind::Aaaa) => address.0.to_string(),
            (RData::TXT(text), RecordKind::Txt) => text_of(&text.txt_data),
            _ => return None,
        };
        let name = owner.to_ascii().trim_end_matches('.').to_owned();
        Some(Record {
            name,
            kind,
            ttl: record.ttl,
            value,
        })
    });
    let records: Vec<_> = records.take(RECORDS_MAX).collect();
    Answered::Said(if records.is_empty() {
        Said::NoData
    } else {
        Said::Records(records)
    })
}

/// Joins the strings of a TXT record; what a terminal could obey is escaped.
fn text_of(strings: &[Box<[u8]>]) -> String {
    String::from_utf8_lossy(&strings.concat())
        .chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

fn no_such_name(name: &str, resolver: &Resolver) -> Failure {
    let servers: Vec<_> = resolver
        .servers
        .iter()
        .map(|server| server.ip().to_string())
        .collect();
    Failure::new(
        Code::NameUnknown,
        format!("`{name}` does not exist, says {}", servers.join(", ")),
        "look at the spelling; the name is looked up inside the tunnel only",
    )
}

fn no_such_record(name: &str, kind: &str) -> Failure {
    Failure::new(
        Code::NameUnknown,
        format!("`{name}` exists, but has no {kind}"),
        "ask with `ginnel resolve` what it has",
    )
}

fn unsendable(name: &Name, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Code::NameUnknown,
        format!("`{name}` cannot be asked for: {error}"),
        "a name has labels of at most 63 characters and 253 in all",
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::{
        self,
        rdata::{A, CNAME, TXT},
    };

    use super::*;

    fn name(text: &str) -> Name {
        parse_name(text).unwrap()
    }

    fn answer(records: &[(&str, RData)]) -> Message {
        let mut message = query(7, &name("db.x."), RecordKind::A);
        message.metadata.message_type = MessageType::Response;
        for (owner, data) in records {
            message.add_answer(rr::Record::from_rdata(name(owner), 60, data.clone()));
        }
        message
    }

    fn values(message: &Message, kind: RecordKind) -> Vec<String> {
        match read_answer(message, &name("db.x."), kind) {
            Answered::Said(Said::Records(records)) => {
                records.into_iter().map(|record| record.value).collect()
            }
            Answered::Said(Said::NoData) => vec!["NODATA".into()],
            Answered::Said(Said::NoSuchName) => vec!["NXDOMAIN".into()],
            Answered::Refused(code) => vec![code.to_string()],
        }
    }

    #[test]
    fn short_names_are_tried_behind_the_search_domains() {
        let search = ["a.b".to_owned(), "c".to_owned()];
        assert_eq!(candidates("db", &search), ["db.a.b.", "db.c.", "db."]);
        assert_eq!(
            candidates("db.x", &search),
            ["db.x.", "db.x.a.b.", "db.x.c."]
        );
        assert_eq!(candidates("db.", &search), ["db."]);
    }

    #[test]
    fn aliases_are_followed_and_foreign_records_ignored() {
        let address = |last| RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
        let alias = RData::CNAME(CNAME(name("real.x.")));
        let message = answer(&[
            ("db.x.", alias),
            ("evil.x.", address(66)),
            ("real.x.", address(1)),
            ("REAL.x.", address(2)),
        ]);
        assert_eq!(values(&message, RecordKind::A), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(values(&message, RecordKind::Txt), ["NODATA"]);
    }

    #[test]
    fn a_loop_of_aliases_ends() {
        let message = answer(&[
            ("db.x.", RData::CNAME(CNAME(name("b.x.")))),
            ("b.x.", RData::CNAME(CNAME(name("db.x.")))),
        ]);
        assert_eq!(values(&message, RecordKind::A), ["NODATA"]);
    }

    #[test]
    fn a_text_cannot_command_the_terminal() {
        let text = RData::TXT(TXT::new(vec!["a\u{1b}[2J".into(), "b".into()]));
        assert_eq!(
            values(&answer(&[("db.x.", text)]), RecordKind::Txt),
            ["a\\u{1b}[2Jb"]
        );
    }

    #[test]
    fn only_the_answer_to_our_question_counts() {
        let query = query(7, &name("db.x."), RecordKind::A);
        let mut message = answer(&[]);
        assert!(parse_answer(&message.to_vec().unwrap(), &query).is_some());
        message.metadata.id = 8;
        assert!(parse_answer(&message.to_vec().unwrap(), &query).is_none());
        let mut message = answer(&[]);
        message.queries[0].set_name(name("other.x."));
        assert!(parse_answer(&message.to_vec().unwrap(), &query).is_none());
        assert!(parse_answer(&query.to_vec().unwrap(), &query).is_none());
        assert!(parse_answer(b"", &query).is_none());
    }
}
