//! Requests of the userspace API of a WireGuard interface.

// The parser is a module of the binary and depends on nothing of it.
#[allow(dead_code, reason = "the emitters are the binary's")]
#[path = "../../crates/ginnel/src/tun/uapi.rs"]
mod text;

/// A request: found, parsed, and its secrets not printed.
pub fn requests(data: &[u8]) {
    if let text::Framing::Whole(length) = text::frame(data, 0) {
        assert!(length >= 2 && length <= data.len());
        assert_eq!(text::frame(data, length - 2), text::frame(data, 0), "looked at in pieces");
    }
    let Ok(Some(text::Request::Set(settings))) = text::parse(data) else {
        return;
    };
    if let Some(Some(secret)) = &settings.private_key {
        let digits: String = secret.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!format!("{settings:?}").contains(&digits), "a secret is not printed");
    }
}
