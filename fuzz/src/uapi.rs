//! Requests of the userspace API of a WireGuard interface.

// The parser is a module of the binary and depends on nothing of it.
#[path = "../../crates/ginnel/src/tun"]
mod tun {
    #[allow(dead_code, reason = "the emitters are the binary's")]
    pub(super) mod uapi;
}

use tun::uapi::{Framing, Request, frame, parse};

/// A request: found, parsed, and its secrets not printed.
pub fn requests(data: &[u8]) {
    if let Framing::Whole(length) = frame(data, 0) {
        assert!(length >= 2 && length <= data.len());
        assert_eq!(
            frame(data, length - 2),
            frame(data, 0),
            "looked at in pieces"
        );
    }
    let Ok(Some(Request::Set(settings))) = parse(data) else {
        return;
    };
    if let Some(Some(secret)) = &settings.private_key {
        let digits: String = secret
            .expose()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(
            !format!("{settings:?}").contains(&digits),
            "a secret is not printed"
        );
    }
}
