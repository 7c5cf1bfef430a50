//! TCP segments: header, options and checksum (RFC 9293, 3.1).
