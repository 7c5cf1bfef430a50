//! Who, where and may: ids, keys, addresses, the network map, names and API types.
//!
//! Everything here is plain data without IO. A value that exists is valid: text and bytes are
//! parsed into these types at the edge and never looked at again as text.

pub mod address;
pub mod amount;
pub mod api;
pub mod config;
pub mod dhcp;
pub mod endpoint;
pub mod event;
pub mod id;
pub mod key;
pub mod map;
pub mod name;
pub mod policy;
pub mod site;
pub mod ssh;
pub mod status;
pub mod token;
pub mod whois;
pub mod zone;
