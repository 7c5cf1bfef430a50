//! `ginnel tun` and the SSH server and client against foreign programs.
//!
//! A program that is not installed is skipped loudly, or fails the test with `INTEROP=required`.

#[path = "../netns/world.rs"]
mod world;

mod boringtun;
mod flood;
mod instructions;
mod memory;
mod openssh;
mod pair;
mod paramiko;
mod tshark;
mod uapi;
mod wg;
mod wg_quick;
mod wireguard_go;
