//! Stories in virtual time: two stacks and a link, or one stack and single segments.

mod algorithm;
mod calls;
mod datagram;
mod ecn;
mod fairness;
mod flood;
mod flow;
mod foreign;
mod golden;
mod large;
pub(crate) mod pair;
mod recovery;
mod scale;
mod scenario;
mod shrink;
mod statistics;
mod trace;
mod transfer;
mod validation;
