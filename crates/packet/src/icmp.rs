//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443).
