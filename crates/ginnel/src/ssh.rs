//! SSH by certificates: the node's own server, and the client over the user-mode network.

mod acceptance;
mod algorithms;
mod channels;
mod server;
pub(crate) mod sftp_server;

pub(crate) use self::{
    acceptance::Authority,
    server::{Identity, Lookup, Server},
};
