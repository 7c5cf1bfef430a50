//! A device with many peers.

use std::net::Ipv6Addr;

use super::*;

fn address(n: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits((0xfd01 << 112) | u128::from(n)))
}

/// Public keys need not be points that anybody knows the secret of.
fn key(n: u32) -> PublicKey {
    let mut key = [0x42; KEY];
    key[..4].copy_from_slice(&n.to_le_bytes());
    PublicKey(key)
}

#[test]
fn a_hundred_thousand_peers_are_added_found_and_removed_without_a_timer() {
    const COUNT: u32 = 100_000;
    let mut device = device(1);
    let ids: Vec<_> = (0..COUNT)
        .map(|n| {
            let id = device.add_peer(base(), key(n)).unwrap();
            device.allow(id, Prefix::host(address(n)));
            id
        })
        .collect();
    assert_eq!(device.peer_count(), ids.len());
    assert!(device.poll_timeout().is_none(), "idle peers cost no time");
    for (n, id) in (0..COUNT).zip(&ids).step_by(977) {
        assert_eq!(device.route(address(n)), Some(*id));
        assert_eq!(device.peer(&key(n)), Some(*id));
    }
    for id in ids.iter().step_by(2) {
        assert!(device.remove_peer(*id));
    }
    assert_eq!(device.route(address(0)), None);
    assert_eq!(device.route(address(1)), Some(ids[1]));
    assert_eq!(device.peers().count(), ids.len() / 2);
}

#[test]
fn adding_changing_and_removing_peers_does_not_disturb_another() {
    let mut pair = Pair::connected();
    for n in 0..100 {
        let now = pair.now;
        let device = &mut pair.devices[B];
        let id = device.add_peer(now, key(n)).unwrap();
        device.allow(id, Prefix::host(address(n)));
        device.set_endpoint(id, Some("203.0.113.1:1".parse().unwrap()));
        device.initiate(now, id);
        if n % 2 == 0 {
            device.remove_peer(id);
        }
        while device.poll_transmit().is_some() {}
        pair.assert_alive();
    }
    assert_eq!(pair.sent(A, 1), 0);
}

#[test]
fn only_peers_that_are_due_are_woken() {
    let mut device = device(1);
    for n in 0..3_000 {
        let id = device.add_peer(base(), key(n)).unwrap();
        device.set_endpoint(id, Some("203.0.113.1:1".parse().unwrap()));
        device.initiate(base(), id);
    }
    while device.poll_transmit().is_some() {}
    let mut now = base();
    let (mut calls, mut retries) = (0, 0);
    while let Some(due) = device
        .poll_timeout()
        .filter(|due| *due < base() + SECOND * 10)
    {
        now = now.max(due);
        device.handle_timeout(now);
        calls += 1;
        while let Some(sent) = device.poll_transmit() {
            retries += 1;
            assert_eq!(sent.datagram.len(), INITIATION);
        }
    }
    assert_eq!(retries, 3_000);
    assert!(calls <= 3_000);
}

#[test]
fn allowed_ips_move_between_peers_and_are_shown_in_order() {
    let mut device = device(1);
    let first = device.add_peer(base(), key(1)).unwrap();
    let second = device.add_peer(base(), key(2)).unwrap();
    for text in ["10.2.0.0/16", "10.1.0.0/16", "fd00::/8"] {
        device.allow(first, prefix(text));
    }
    device.allow(second, prefix("10.1.0.0/16"));
    let shown = |device: &Device, id| -> Vec<_> {
        let status = device.status(id).unwrap();
        status.allowed_ips.iter().copied().collect()
    };
    assert_eq!(
        shown(&device, first),
        [prefix("10.2.0.0/16"), prefix("fd00::/8")]
    );
    assert_eq!(shown(&device, second), [prefix("10.1.0.0/16")]);
    assert!(!device.disallow(first, prefix("10.1.0.0/16")));
    assert!(device.disallow(second, prefix("10.1.0.0/16")));
    device.clear_allowed_ips(first);
    assert!(shown(&device, first).is_empty());
    assert_eq!(device.route("10.2.0.1".parse().unwrap()), None);
}

#[test]
fn peers_are_shown_in_parts_while_others_come_and_go() {
    let mut device = device(1);
    let ids: Vec<_> = (0..10)
        .map(|n| device.add_peer(base(), key(n)).unwrap())
        .collect();
    let part = |device: &Device, last| -> Vec<_> {
        let peers = device.peers_after(last).take(4);
        peers.map(|peer| peer.id).collect()
    };
    assert_eq!(part(&device, None), ids[..4]);
    assert!(device.remove_peer(ids[3]) && device.remove_peer(ids[4]));
    assert_eq!(part(&device, Some(ids[3])), ids[5..9]);
    assert_eq!(part(&device, Some(ids[8])), ids[9..]);
    assert!(part(&device, Some(ids[9])).is_empty());
}
