//! `ginnel tun` and `ginnel up --tun` on the real kernel: interfaces, signals, rights and limits.
//!
//! Skips loudly without root; fails then with `NETNS=required`.

mod alias;
mod allocation;
mod attachment;
mod capture;
mod congestion;
mod doctor;
mod failover;
mod fault;
mod flap;
mod flood;
mod interface;
mod mangled;
mod offload;
mod path_mtu;
mod peer;
mod privileges;
mod return_path;
mod routed;
mod shim;
mod site;
mod soak;
mod ssh;
mod trouble;
mod underlay;
mod world;
