//! Stories of real nodes in virtual time: two organisations, their nodes and one gateway.

mod alias;
mod capture;
mod congestion;
mod discard;
mod failover;
mod isolation;
mod map_change;
mod names;
mod parallel;
mod path_mtu;
mod plain;
mod policy;
mod reach;
mod routed;
mod site;
mod world;
