//! SSH by certificates: client and server, which speak over any byte stream.

mod acceptance;
mod algorithms;
mod channels;
mod client;
pub(crate) mod command;
mod server;
pub(crate) mod sftp_server;

pub(crate) use self::{
    acceptance::Authority,
    server::{Identity, Lookup, Server},
};
