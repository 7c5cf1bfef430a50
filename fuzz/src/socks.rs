//! SOCKS5 messages.

// The parser is a module of the binary and depends on nothing of it.
#[allow(dead_code, reason = "the emitters are the binary's")]
#[path = "../../crates/ginnel/src/socks.rs"]
mod message;

use message::{MESSAGE_MAX, Parsed, parse_datagram, parse_greeting, parse_request};

/// A greeting, a request and a datagram.
pub fn messages(data: &[u8]) {
    parsed(data, &parse_greeting(data));
    parsed(data, &parse_request(data));
    parsed(data, &parse_datagram(data));
}

fn parsed<T>(data: &[u8], parsed: &Parsed<T>) {
    match parsed {
        Parsed::Message(_, length) => assert!(*length <= data.len() && *length > 0),
        Parsed::Incomplete => assert!(data.len() < MESSAGE_MAX, "a client cannot make us wait"),
        Parsed::Malformed => (),
    }
}
