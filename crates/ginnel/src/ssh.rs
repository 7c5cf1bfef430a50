//! SSH by certificates: client and server, which speak over any byte stream.

mod acceptance;
mod algorithms;
mod channels;
mod client;
pub(crate) mod command;
pub(crate) mod copy;
mod files;
mod login;
mod server;
pub(crate) mod sftp;
pub(crate) mod sftp_server;

pub(crate) use self::{
    acceptance::Authority,
    server::{Archive, Identity, Lookup, Organisation, Server},
};
