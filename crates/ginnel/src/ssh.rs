//! SSH by certificates: the server, which speaks over any byte stream.

mod acceptance;
mod algorithms;
mod channels;
mod server;
pub(crate) mod sftp_server;

pub(crate) use self::{
    acceptance::Authority,
    server::{Identity, Lookup, Server},
};
