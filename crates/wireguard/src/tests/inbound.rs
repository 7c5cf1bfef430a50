//! What threads that open by themselves know of sessions, and tell of them.

use super::*;

fn index_of(datagram: &[u8]) -> u32 {
    let (index, _) = transport_data(datagram).expect("transport data");
    index
}

#[test]
fn a_known_session_is_found_without_the_device_until_its_peer_is_gone() {
    let mut pair = Pair::connected();
    let mut datagrams = [pair.seal(A, 60), pair.seal(A, 60)];
    let index = index_of(&datagrams[0]);
    let mut sessions = Sessions::default();
    assert!(!sessions.recall(index), "nobody has told of it");
    sessions.learn(index, pair.devices[B].opening(index));
    assert_eq!(sessions.get(0), Some((index, pair.peers[B])));
    let (now, [first, _]) = (pair.now, &mut datagrams);
    let (place, opened) = sessions.openers(now).open(first).expect("at hand");
    assert_eq!((place, opened.expect("fresh").newest), (0, true));

    sessions.clear();
    assert_eq!(sessions.get(0), None);
    assert!(sessions.recall(index) && sessions.recall(index));
    assert_eq!(sessions.get(1), None, "twice asked for, once at hand");
    sessions.clear();
    assert!(pair.devices[B].remove_peer(pair.peers[B]));
    assert!(!sessions.recall(index), "no key outlives its peer");
    sessions.learn(index, pair.devices[B].opening(index));
    assert_eq!((sessions.get(0), sessions.index(0)), (None, index));
    let (_, opened) = sessions
        .openers(now)
        .open(&mut datagrams[1])
        .expect("asked");
    assert_eq!(opened.err(), Some(Discard::UnknownIndex));
}

#[test]
fn sessions_by_turns_each_have_their_own_window() {
    let mut pair = Pair::connected();
    let mut datagrams = vec![pair.seal(A, 60), pair.seal(A, 60)];
    // The next session, and the former may still be opened.
    pair.now += REKEY_AFTER_TIME;
    pair.send(A, 60);
    pair.send(B, 60);
    datagrams.extend([pair.seal(A, 60), pair.seal(A, 60)]);
    let mut sessions = Sessions::default();
    for datagram in datagrams.iter().step_by(2) {
        let index = index_of(datagram);
        sessions.learn(index, pair.devices[B].opening(index));
    }
    assert_ne!(sessions.get(0), sessions.get(1));
    let count = datagrams.len();
    let again = datagrams.clone();
    let mut openers = sessions.openers(pair.now);
    // The first of each session, then the second of each, then all once more.
    let places = (0..count).step_by(2).chain((1..count).step_by(2));
    for place in places.collect::<Vec<_>>() {
        let (session, opened) = openers.open(&mut datagrams[place]).expect("at hand");
        assert!(session == place / 2 && opened.is_ok(), "{place}");
    }
    for mut datagram in again {
        let (_, opened) = openers.open(&mut datagram).expect("at hand");
        assert_eq!(opened.err(), Some(Discard::Duplicate));
    }
    assert!(openers.open(&mut [1; 148]).is_none(), "a handshake message");
    assert!(openers.open(&mut [4, 0, 0, 0, 9]).is_none(), "too short");
}

#[test]
fn neighbours_of_one_session_are_told_of_once() {
    let mut heard = Heard::one(7, KEEPALIVE, false);
    assert!(!heard.data);
    assert_eq!(heard.join(Heard::one(7, 96, true)), None);
    assert_eq!(heard.join(Heard::one(7, KEEPALIVE, false)), None);
    let all = Heard {
        index: 7,
        datagrams: 3,
        bytes: 2 * KEEPALIVE + 96,
        newest: true,
        data: true,
    };
    assert_eq!(heard.join(Heard::one(8, 96, true)), Some(all));
    assert_eq!(heard, Heard::one(8, 96, true));
}
