//! How long conversations are kept, and how many.

use super::*;

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
    Instant::now()
}

fn flow(number: u16, transport: fn(u16) -> Transport) -> Flow {
    Flow {
        source: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        destination: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]),
        transport: transport(number),
    }
}

fn tcp(source: u16) -> Transport {
    Transport::Tcp {
        source,
        destination: 22,
    }
}

fn udp(source: u16) -> Transport {
    Transport::Udp {
        source,
        destination: 53,
    }
}

/// Inserts, lets the flow be touched as told, and looks for it just before and after `seconds`.
#[track_caller]
fn check(opening: Flow, touches: &[(Flow, bool)], seconds: u64) {
    let now = start();
    let mut table = Table::new(1);
    table.insert(now, opening, Some(0), false);
    for (flow, ending) in touches {
        let found = table.find(now, *flow).expect("in the table");
        table.touch(now, found, *flow, *ending);
    }
    let there = |after| table.find(now + after, opening).is_some();
    let end = Duration::from_secs(seconds);
    assert!(there(end - Duration::from_millis(1)));
    assert!(!there(end));
}

#[test]
fn a_conversation_is_kept_for_the_time_that_its_kind_has() {
    let opening = flow(4096, tcp);
    let answer = (opening.reversed(), false);
    check(opening, &[], 240);
    check(opening, &[(opening, false)], 240);
    check(opening, &[answer], 7_440);
    check(opening, &[answer, (opening, true)], 240);
    check(opening, &[answer, (opening, true), answer], 240);
    check(flow(7, Transport::Echo), &[], 60);
    let question = flow(4096, udp);
    check(question, &[(question.reversed(), false)], 240);
    check(flow(0, |_| Transport::Other(47)), &[], 240);
}

#[test]
fn both_directions_are_one_conversation_and_no_other_is() {
    let now = start();
    let mut table = Table::new(1);
    let opening = flow(4096, tcp);
    table.insert(now, opening, Some(3), false);
    for direction in [opening, opening.reversed()] {
        let found = table.find(now, direction).expect("in the table");
        assert_eq!((found.opening, found.generation), (opening, Some(3)));
    }
    let other = |number, transport: fn(u16) -> Transport| {
        assert!(table.find(now, flow(number, transport)).is_none());
    };
    other(4097, tcp);
    other(4096, |source| Transport::Udp {
        source,
        destination: 22,
    });
    other(4096, Transport::Echo);
    table.insert(now, flow(0, Transport::Echo), None, false);
    // ICMP as a protocol is something else than the echo with identifier zero.
    assert!(table.find(now, flow(0, |_| Transport::Other(1))).is_none());
    table.remove(opening.reversed());
    assert!(table.find(now, opening).is_none());
}

#[test]
fn one_address_cannot_take_the_table_and_silence_gives_its_share_back() {
    let mut now = start();
    let mut table = Table::new(1);
    for number in 0..u16::MAX {
        table.insert(now, flow(number, udp), Some(0), false);
    }
    let limit = usize::try_from(FLOWS_PER_SOURCE_MAX).expect("small");
    assert_eq!(table.index.len(), limit);
    let mut other = flow(1, udp);
    other.source = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 9]);
    table.insert(now, other, Some(0), false);
    assert!(table.find(now, other).is_some());

    now += Duration::from_secs(241);
    let late = flow(u16::MAX, udp);
    table.insert(now, late, Some(0), false);
    assert!(table.find(now, late).is_some());
    for number in 0..u16::MAX {
        table.insert(now, flow(number, tcp), Some(0), false);
    }
    assert_eq!(table.index.len(), limit);
    assert_eq!(table.entries.len(), limit + 1, "places are used again");
    assert_eq!(table.opened.len(), 1);
}
