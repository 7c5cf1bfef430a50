//! The trie against a naive list.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn prefix(text: &str) -> Prefix {
    let (address, bits) = text.split_once('/').expect("a slash");
    Prefix::new(
        address.parse().expect("an address"),
        bits.parse().expect("a number"),
    )
    .expect("bits fit the family")
}

#[track_caller]
fn check(table: &[(&str, u32)], address: &str, expected: Option<u32>) {
    let mut allowed = AllowedIps::default();
    for (text, peer) in table {
        allowed.insert(prefix(text), *peer);
    }
    assert_eq!(allowed.lookup(address.parse().unwrap()), expected);
}

#[test]
fn the_longest_prefix_wins_in_both_families() {
    let table = [
        ("0.0.0.0/0", 1),
        ("10.0.0.0/8", 2),
        ("10.1.0.0/16", 3),
        ("10.1.2.3/32", 4),
        ("::/0", 5),
        ("fd00::/8", 6),
        ("fd00::1/128", 7),
    ];
    check(&table, "192.0.2.1", Some(1));
    check(&table, "10.200.0.1", Some(2));
    check(&table, "10.1.200.1", Some(3));
    check(&table, "10.1.2.3", Some(4));
    check(&table, "2001:db8::1", Some(5));
    check(&table, "fd00::2", Some(6));
    check(&table, "fd00::1", Some(7));
    check(&table[1..4], "11.0.0.1", None);
    check(&table[..4], "::1", None);
}

#[test]
fn a_prefix_moves_to_the_peer_that_got_it_last() {
    let mut allowed = AllowedIps::default();
    assert_eq!(allowed.insert(prefix("10.0.0.0/8"), 1), None);
    assert_eq!(allowed.insert(prefix("10.9.9.9/8"), 2), Some(1));
    assert_eq!(allowed.lookup("10.0.0.1".parse().unwrap()), Some(2));
    assert_eq!(allowed.remove(prefix("10.0.0.0/9")), None);
    assert_eq!(allowed.remove(prefix("10.0.0.0/8")), Some(2));
    assert_eq!(allowed.lookup("10.0.0.1".parse().unwrap()), None);
}

#[test]
fn a_prefix_is_cut_to_its_bits_and_refuses_more_than_the_family_has() {
    assert_eq!(prefix("10.1.2.3/8").address(), Ipv4Addr::new(10, 0, 0, 0));
    assert_eq!(
        prefix("fdff::1/9").address(),
        "fd80::".parse::<Ipv6Addr>().unwrap()
    );
    assert_eq!(Prefix::new("10.0.0.0".parse().unwrap(), 33), None);
    assert_eq!(Prefix::new("::".parse().unwrap(), 129), None);
    assert!(prefix("0.0.0.0/0").contains("9.9.9.9".parse().unwrap()));
    assert!(!prefix("0.0.0.0/0").contains("::".parse().unwrap()));
}

#[test]
fn an_emptied_trie_holds_no_node() {
    let mut allowed = AllowedIps::default();
    let all: Vec<_> = (0..=255u8)
        .map(|n| Prefix::new(IpAddr::from([10, n, n ^ 0x55, 1]), n % 33).unwrap())
        .collect();
    for prefix in &all {
        allowed.insert(*prefix, 1);
    }
    for prefix in &all {
        allowed.remove(*prefix);
    }
    assert_eq!(allowed.v4.root, NONE);
    assert_eq!(allowed.v4.free.len(), allowed.v4.nodes.len());
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Prefix, u32),
    Remove(Prefix),
    Lookup(IpAddr),
}

/// Few distinct bits, so that prefixes nest and lookups hit.
fn address() -> impl Strategy<Value = IpAddr> {
    let sparse = prop_oneof![Just(0u8), Just(0xff), Just(0x80), Just(1), any::<u8>()];
    prop_oneof![
        proptest::array::uniform4(sparse.clone()).prop_map(IpAddr::from),
        proptest::array::uniform16(sparse).prop_map(IpAddr::from),
    ]
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (address(), 0..=128u8).prop_map(|(address, bits)| {
        let width = if address.is_ipv4() { 33 } else { 129 };
        Prefix::new(address, bits % width).expect("bits fit the family")
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any_prefix(), 0..9u32).prop_map(|(prefix, peer)| Step::Insert(prefix, peer)),
        1 => any_prefix().prop_map(Step::Remove),
        3 => address().prop_map(Step::Lookup),
    ]
}

proptest! {
    #[test]
    fn the_trie_answers_like_a_list(steps in proptest::collection::vec(step(), 1..200)) {
        let mut trie = AllowedIps::default();
        let mut list: Vec<(Prefix, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(prefix, peer) => {
                    let at = list.iter().position(|(other, _)| *other == prefix);
                    let former = at.map(|at| list.swap_remove(at).1);
                    list.push((prefix, peer));
                    prop_assert_eq!(trie.insert(prefix, peer), former);
                }
                Step::Remove(prefix) => {
                    let at = list.iter().position(|(other, _)| *other == prefix);
                    let former = at.map(|at| list.swap_remove(at).1);
                    prop_assert_eq!(trie.remove(prefix), former);
                }
                Step::Lookup(address) => {
                    let longest = list
                        .iter()
                        .filter(|(prefix, _)| prefix.contains(address))
                        .max_by_key(|(prefix, _)| prefix.bits());
                    prop_assert_eq!(trie.lookup(address), longest.map(|(_, peer)| *peer));
                }
            }
        }
    }
}
