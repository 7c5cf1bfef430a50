//! User mode on a plain configuration against wireguard-go, by a user without privileges.
//!
//! ```text
//!   namespace client (uid nobody)            namespace server (root)
//!   ginnel ── agent ── 10.99.0.1 ═ veth ═ 10.99.0.2 ── wireguard-go ── 10.88.0.1, fd88::1
//!             10.88.0.2, fd88::2                                       programs of the test
//! ```
//! Skipped, loudly, without root or tools; with `NETNS=required` or `INTEROP=required` that fails.

#[path = "user_mode/agent.rs"]
mod agent;
#[path = "user_mode/capture.rs"]
mod capture;
#[path = "user_mode/fault.rs"]
mod fault;
#[path = "user_mode/traffic.rs"]
mod traffic;
#[path = "user_mode/world.rs"]
mod world;
