//! DNS messages (RFC 1035) over the zone of one organisation: a pure function.
//!
//! It is authoritative for `internal` and nothing else; it never asks anyone.

use std::net::Ipv6Addr;

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name as DnsName, RData, Record, RecordType,
        rdata::{AAAA, SOA, TXT},
    },
    serialize::binary::{BinEncodable, BinEncoder},
};
use model::{
    name::ZONE,
    zone::{Answer, Kind, Name, Question, Zone},
};

pub(crate) mod server;

/// How a message came, which bounds the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// One datagram: what does not fit is left out and TC is set (RFC 2181, 9).
    Udp,
    /// A stream, with the length in front of each message (RFC 1035, 4.2.2).
    Tcp,
}

/// The largest answer over UDP: what fits 1,280 bytes, the least MTU of IPv6 (DNS flag day 2020).
pub const UDP_PAYLOAD_MAX: u16 = 1232;

/// The largest answer over UDP to a question without EDNS (RFC 1035, 2.3.4).
const UDP_PAYLOAD_PLAIN: u16 = 512;

/// A question longer than this is not looked at: a name has 255 bytes, options are few.
pub(crate) const QUESTION_MAX: usize = 4096;

/// How long an answer may be kept, in seconds: a removed node must be forgotten soon.
const TTL: u32 = 5;

/// Answers one message of the node at `asker`, whose organisation has `zone`.
///
/// `None` means that nothing is sent: for a message that is an answer itself (RUSTSEC-2023-0041)
/// or is too short to have an id. `seed` orders several addresses.
#[must_use]
pub fn answer(
    zone: &Zone,
    asker: Ipv6Addr,
    message: &[u8],
    transport: Transport,
    seed: u64,
) -> Option<Vec<u8>> {
    let &[id_high, id_low, flags, ..] = message.first_chunk::<HEADER>()?;
    let id = u16::from_be_bytes([id_high, id_low]);
    if flags & 0x80 != 0 {
        return None;
    }
    let malformed = || Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    let opcode = (flags >> 3) & 0x0f;
    if opcode != 0 {
        let opcode = OpCode::from_u8(opcode);
        let refused = Message::error_msg(id, opcode, ResponseCode::NotImp);
        return emit(&refused, UDP_PAYLOAD_PLAIN);
    }
    let request = match Message::from_vec(message) {
        Ok(request) if message.len() <= QUESTION_MAX => request,
        Ok(_) | Err(_) => return emit(&malformed(), UDP_PAYLOAD_PLAIN),
    };
    let response = respond(zone, asker, &request, seed);
    let size_max = match transport {
        Transport::Udp => {
            let asked = request
                .edns
                .as_ref()
                .map_or(UDP_PAYLOAD_PLAIN, Edns::max_payload);
            asked.clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD_MAX)
        }
        Transport::Tcp => u16::MAX,
    };
    emit(&response, size_max)
}

/// Length of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

fn respond(zone: &Zone, asker: Ipv6Addr, request: &Message, seed: u64) -> Message {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_MAX).set_version(0);
        response.set_edns(edns);
        if asked.version() != 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response;
        }
    }
    let [query] = &request.queries[..] else {
        response.metadata.response_code = ResponseCode::FormErr;
        return response;
    };
    response.add_query(query.clone());
    let ours = query.query_class() == DNSClass::IN;
    let name = Name::from_labels(query.name().iter());
    let (true, Ok(name)) = (ours, name) else {
        response.metadata.response_code = ResponseCode::Refused;
        return response;
    };
    response.metadata.authoritative = true;
    let kind = kind(query.query_type());
    let answer = zone.answer(asker, &Question { name, kind }, seed);
    fill(&mut response, query, zone, answer);
    response
}

fn fill(response: &mut Message, query: &Query, zone: &Zone, answer: Answer) {
    // The owner is the name as it was asked: its case comes back (draft-vixie-dnsext-dns0x20).
    let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
    match answer {
        Answer::Addresses(addresses) => {
            let records = addresses.into_iter().map(|a| record(RData::AAAA(AAAA(a))));
            response.add_answers(records);
        }
        Answer::Text(strings) => {
            response.add_answer(record(RData::TXT(TXT::new(strings))));
        }
        Answer::Authority => {
            response.add_answer(record(RData::SOA(authority(zone))));
        }
        Answer::NoData => {
            response.add_authority(negative(zone));
        }
        Answer::NoSuchName => {
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authority(negative(zone));
        }
    }
}

fn kind(record_type: RecordType) -> Kind {
    if record_type == RecordType::AAAA {
        Kind::Aaaa
    } else if record_type == RecordType::TXT {
        Kind::Txt
    } else if record_type == RecordType::SOA {
        Kind::Soa
    } else {
        Kind::Other
    }
}

/// The SOA record tells how long a negative answer may be kept (RFC 2308, 3).
fn negative(zone: &Zone) -> Record {
    Record::from_rdata(dns_name(&[ZONE]), TTL, RData::SOA(authority(zone)))
}

fn authority(zone: &Zone) -> SOA {
    // Serials count modulo 2^32 (RFC 1982).
    let serial = zone.serial() & u64::from(u32::MAX);
    let serial = u32::try_from(serial).expect("masked to 32 bits");
    // Nobody transfers the zone: refresh, retry and expire are formal.
    SOA::new(
        dns_name(&["_health", ZONE]),
        dns_name(&["hostmaster", ZONE]),
        serial,
        3600,
        600,
        86_400,
        TTL,
    )
}

fn dns_name(labels: &[&str]) -> DnsName {
    let labels = labels.iter().map(|label| label.as_bytes());
    DnsName::from_labels(labels).expect("short labels make a name")
}

/// Writes the message; when it exceeds `size_max`, without records and with TC.
fn emit(message: &Message, size_max: u16) -> Option<Vec<u8>> {
    let whole = to_bytes(message)?;
    if whole.len() <= usize::from(size_max) {
        return Some(whole);
    }
    let mut cut = Message::response(message.metadata.id, message.metadata.op_code);
    cut.metadata = message.metadata;
    cut.metadata.truncation = true;
    cut.add_queries(message.queries.iter().cloned());
    cut.edns.clone_from(&message.edns);
    to_bytes(&cut)
}

fn to_bytes(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    message.emit(&mut BinEncoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
