//! boringtun-cli, both roles each.

use super::{pair, world::Program};

const OTHER: Program = Program::Boringtun;

#[test]
fn ginnel_initiates_over_ipv4_with_a_preshared_key() {
    pair::carries_everything(OTHER, 0, true, false);
}

#[test]
fn ginnel_initiates_over_ipv6() {
    pair::carries_everything(OTHER, 0, false, true);
}

#[test]
fn ginnel_responds_over_ipv4() {
    pair::carries_everything(OTHER, 1, false, false);
}

#[test]
fn ginnel_responds_over_ipv6_with_a_preshared_key() {
    pair::carries_everything(OTHER, 1, true, true);
}

#[test]
fn a_wrong_preshared_key_lets_nothing_pass() {
    pair::a_wrong_preshared_key_lets_nothing_pass(OTHER);
}

#[test]
fn ginnel_roams() {
    pair::roaming_loses_at_most_a_moment(OTHER, 0);
}
