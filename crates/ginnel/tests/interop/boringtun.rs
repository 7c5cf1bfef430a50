//! boringtun-cli, both roles each.

use super::{flood, pair, world::Program};

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

#[test]
fn rekeying_loses_nothing() {
    pair::rekeying_loses_nothing(OTHER);
}

#[test]
fn under_load_ginnel_answers_with_cookies_and_boringtun_shows_them() {
    flood::a_peer_comes_through(OTHER, 0);
}

#[test]
fn under_load_boringtun_answers_with_cookies_and_ginnel_shows_them() {
    flood::a_peer_comes_through(OTHER, 1);
}
