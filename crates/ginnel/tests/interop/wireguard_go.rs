//! wireguard-go, both roles each.

use super::{flood, pair, world::Program};

const OTHER: Program = Program::WireguardGo;

#[test]
fn ginnel_initiates_over_ipv4() {
    pair::carries_everything(OTHER, 0, false, false);
}

#[test]
fn ginnel_initiates_over_ipv6_with_a_preshared_key() {
    pair::carries_everything(OTHER, 0, true, true);
}

#[test]
fn ginnel_responds_over_ipv4_with_a_preshared_key() {
    pair::carries_everything(OTHER, 1, true, false);
}

#[test]
fn ginnel_responds_over_ipv6() {
    pair::carries_everything(OTHER, 1, false, true);
}

#[test]
fn a_wrong_preshared_key_lets_nothing_pass() {
    pair::a_wrong_preshared_key_lets_nothing_pass(OTHER);
}

#[test]
fn the_first_ipv6_datagram_after_ipv4_use_arrives() {
    pair::the_first_ipv6_datagram_after_ipv4_use_arrives(OTHER);
}

#[test]
fn ginnel_roams() {
    pair::roaming_loses_at_most_a_moment(OTHER, 0);
}

#[test]
fn ginnel_follows_a_peer_that_roams() {
    pair::roaming_loses_at_most_a_moment(OTHER, 1);
}

#[test]
fn rekeying_loses_nothing() {
    pair::rekeying_loses_nothing(OTHER);
}

#[test]
fn under_load_ginnel_answers_with_cookies_and_wireguard_go_shows_them() {
    flood::a_peer_comes_through(OTHER, 0);
}

#[test]
fn under_load_wireguard_go_answers_with_cookies_and_ginnel_shows_them() {
    flood::a_peer_comes_through(OTHER, 1);
}
