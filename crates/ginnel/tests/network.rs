//! The whole network on loopback, with no root: every process is the real program.
//!
//! ```text
//!   laptop ── agent ─┐                        ┌─ agent (up) ── shed ── programs of the test
//!                    ├─ UDP ── gateway ── UDP ┤
//!   commands, test   │   in the server, or    └─ other machines and organisations
//!                    └─ HTTPS ── server, whose gateway may stand apart
//! ```

#[path = "network/agent.rs"]
mod agent;
#[path = "network/approval.rs"]
mod approval;
#[path = "network/backup.rs"]
mod backup;
#[path = "network/capture.rs"]
mod capture;
#[path = "network/clipboard.rs"]
mod clipboard;
#[path = "network/crash.rs"]
mod crash;
#[path = "network/demo.rs"]
mod demo;
#[path = "network/disk.rs"]
mod disk;
#[path = "network/doctor.rs"]
mod doctor;
#[path = "network/events.rs"]
mod events;
#[path = "network/fault.rs"]
mod fault;
#[path = "network/flood.rs"]
mod flood;
#[path = "network/hostile.rs"]
mod hostile;
#[path = "network/limit.rs"]
mod limit;
#[path = "network/load.rs"]
mod load;
#[path = "network/metrics.rs"]
mod metrics;
#[path = "network/oidc.rs"]
mod oidc;
#[path = "network/outage.rs"]
mod outage;
#[path = "network/outliving.rs"]
mod outliving;
#[path = "network/policy.rs"]
mod policy;
#[path = "network/reach.rs"]
mod reach;
#[path = "network/refusal.rs"]
mod refusal;
#[path = "network/remote.rs"]
mod remote;
#[path = "network/removal.rs"]
mod removal;
#[path = "network/revocation.rs"]
mod revocation;
#[path = "network/secrecy.rs"]
mod secrecy;
#[path = "network/session.rs"]
mod session;
#[path = "network/several.rs"]
mod several;
#[path = "network/ssh.rs"]
mod ssh;
#[path = "network/terminal.rs"]
mod terminal;
#[path = "network/trace.rs"]
mod trace;
#[path = "network/whois.rs"]
mod whois;
#[path = "network/world.rs"]
mod world;
