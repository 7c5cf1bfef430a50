//! A private network that a team runs itself, in one binary.

mod admin;
mod agent;
mod api;
mod authority;
mod backup;
mod capture;
mod cert;
mod cli;
mod completions;
mod demo;
mod dial;
mod doctor;
mod enrol;
mod enrolled;
mod enrolment;
mod events;
mod extcap;
mod forward;
mod gateway;
mod join;
mod local_http;
mod local_port;
mod log;
mod login;
mod logout;
mod manual;
mod metrics;
mod offload;
mod peer;
mod ping;
mod proxy;
mod random;
mod remedy;
mod replay;
mod resolve;
mod restore;
mod server;
mod sign_in;
mod socks;
mod ssh;
mod ssh_config;
mod ssh_server;
mod state;
mod status;
mod terminal;
mod trace;
mod tun;
mod up;
mod whoami;
mod whois;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(cli::arguments()) {
        Ok(cli) => cli,
        Err(error) => return terminal::usage(&error),
    };
    log::start(&cli.global);
    match cli.command.run(&cli.global) {
        Ok(code) => code,
        Err(error) => terminal::report(&error, cli.global.json),
    }
}
