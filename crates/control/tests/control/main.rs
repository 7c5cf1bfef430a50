//! The control plane through its real router: requests, replies, and what is left on disk.

mod approval;
mod audit;
mod backup;
mod capture;
mod chromium;
mod copy;
mod disk;
mod enrol;
mod hostile;
mod map;
mod oidc;
mod page;
mod peer;
mod permission;
mod policy;
mod provider;
mod schemathesis;
mod session;
mod several;
mod site;
mod ssh;
mod token;
mod user;
mod world;
