//! Datagrams over the loopback interface.

use std::{net::SocketAddr, os::fd::AsFd as _, time::Duration};

use packet::ecn::Ecn;

use super::{
    control::Beside,
    receive::Run,
    send::{Refusal, classify},
    *,
};
use crate::{
    poll::{Interest, wait_for},
    reactor::Watched,
};

fn pair(localhost: &str) -> (Socket, Socket) {
    let address: SocketAddr = format!("{localhost}:0").parse().unwrap();
    // The kernel counts more than the payload: 100 small datagrams overrun the default.
    let options = Options {
        buffer_bytes: 1 << 20,
        ..Options::default()
    };
    let bind = || Socket::bind(address, &options).unwrap();
    (bind(), bind())
}

/// Reads until `count` datagrams have come.
fn collect(socket: &Socket, count: usize) -> Vec<Vec<u8>> {
    let mut batch = Batch::default();
    let mut all = Vec::new();
    while all.len() < count {
        let readable = wait_for(socket.as_fd(), Interest::READ, Duration::from_secs(5));
        assert!(readable.unwrap(), "{} of {count} came", all.len());
        socket.recv_batch(&mut batch).unwrap();
        all.extend(batch.datagrams().map(|datagram| datagram.bytes.to_vec()));
    }
    all
}

fn numbered(count: usize, size: usize, last: usize) -> Vec<u8> {
    let whole = (0..count).flat_map(|n| vec![u8::try_from(n % 251).unwrap(); size]);
    let length = (count - 1) * size + last;
    whole.take(length).collect()
}

#[track_caller]
fn check_run(
    localhost: &str,
    count: usize,
    size: usize,
    last: usize,
    prepare: fn(&Socket),
) -> bool {
    let (sender, receiver) = pair(localhost);
    prepare(&sender);
    let bytes = numbered(count, size, last);
    let mut sent = 0;
    let mut received = Vec::new();
    let mut expected: Vec<Vec<u8>> = bytes.chunks(size).map(<[u8]>::to_vec).collect();
    while sent < bytes.len() {
        let length = sender
            .send_run(
                &Envelope::to(receiver.local_address()),
                &bytes[sent..],
                size,
            )
            .unwrap();
        received.extend(collect(&receiver, length.div_ceil(size)));
        sent += length;
    }
    assert_eq!(received.len(), expected.len());
    received.sort();
    expected.sort();
    assert!(received == expected, "contents differ");
    sender.segments()
}

#[test]
fn a_run_arrives_as_its_datagrams_in_both_families() {
    for localhost in ["127.0.0.1", "[::1]"] {
        for (count, size, last) in [(1, 1, 1), (2, 100, 99), (40, 1452, 1452), (44, 1400, 7)] {
            assert!(check_run(localhost, count, size, last, |_| ()));
        }
    }
}

#[test]
fn a_run_longer_than_one_call_may_carry_is_split() {
    assert!(check_run("127.0.0.1", 150, 1000, 1, |_| ()));
    assert!(check_run("127.0.0.1", 3, 40_000, 12, |_| ()));
}

/// A socket without UDP checksums refuses UDP_SEGMENT with EINVAL (`udp_send_skb`).
fn refuse_segmentation(socket: &Socket, refuse: bool) {
    let option = libc::SO_NO_CHECK;
    set_option(&socket.socket, libc::SOL_SOCKET, option, refuse.into()).unwrap();
}

/// Sends one run of five datagrams and sees that all of them arrive.
fn send_five(sender: &Socket, receiver: &Socket) {
    let run = numbered(5, 1200, 600);
    let sent = sender.send_run(&Envelope::to(receiver.local_address()), &run, 1200);
    assert_eq!(sent, Ok(run.len()));
    let expected: Vec<_> = run.chunks(1200).map(<[u8]>::to_vec).collect();
    assert_eq!(collect(receiver, 5), expected);
}

#[test]
fn refused_runs_are_sent_datagram_by_datagram_until_segmentation_is_given_up() {
    let (sender, receiver) = pair("127.0.0.1");
    refuse_segmentation(&sender, true);
    for _ in 0..REFUSALS_MAX {
        assert!(sender.segments());
        send_five(&sender, &receiver);
    }
    assert!(!sender.segments());
    refuse_segmentation(&sender, false);
    send_five(&sender, &receiver);
    assert!(!sender.segments(), "it is not tried again");
}

#[test]
fn a_self_test_tells_what_the_kernel_does_with_runs() {
    let whole = Runs {
        sent: true,
        joined: true,
    };
    assert_eq!(probe().unwrap(), whole);
    let (sender, receiver) = pair("127.0.0.1");
    refuse_segmentation(&sender, true);
    let runs = probe::probe_with(&sender, &receiver).unwrap();
    assert!(!runs.sent);
}

#[test]
fn one_success_forgets_the_refusals_before_it() {
    let (sender, receiver) = pair("127.0.0.1");
    for _ in 0..3 {
        refuse_segmentation(&sender, true);
        for _ in 1..REFUSALS_MAX {
            send_five(&sender, &receiver);
        }
        refuse_segmentation(&sender, false);
        send_five(&sender, &receiver);
    }
    assert!(sender.segments());
}

#[test]
fn only_the_errors_of_segmentation_count_as_refusals() {
    assert_eq!(Refusal::of(libc::EIO), Some(Refusal::Final));
    assert_eq!(Refusal::of(libc::EOPNOTSUPP), Some(Refusal::Final));
    assert_eq!(Refusal::of(libc::EINVAL), Some(Refusal::Suspicious));
    assert_eq!(Refusal::of(libc::EMSGSIZE), Some(Refusal::PathTooSmall));
    assert_eq!(Refusal::of(libc::EAGAIN), None);
    assert_eq!(Refusal::of(libc::ENETUNREACH), None);
}

#[test]
fn each_error_of_sending_says_what_to_do_about_it() {
    let from = Some("192.0.2.1".parse().unwrap());
    for (errno, from, expected) in [
        (libc::EAGAIN, None, SendError::WouldBlock),
        (libc::ENOBUFS, None, SendError::NoBuffers),
        (libc::ENOMEM, from, SendError::NoBuffers),
        (libc::EMSGSIZE, None, SendError::TooLong),
        (libc::ENETUNREACH, None, SendError::Unreachable),
        (libc::EHOSTUNREACH, None, SendError::Unreachable),
        (libc::ENETDOWN, None, SendError::Unreachable),
        (libc::ENETUNREACH, from, SendError::SourceGone),
        (libc::EINVAL, from, SendError::SourceGone),
        (libc::EADDRNOTAVAIL, from, SendError::SourceGone),
        (libc::EINVAL, None, SendError::Failed(libc::EINVAL)),
        (libc::EPERM, from, SendError::Denied),
        (libc::EACCES, None, SendError::Denied),
        (libc::ECONNREFUSED, None, SendError::Refused),
    ] {
        assert_eq!(classify(errno, from), expected, "{errno} {from:?}");
    }
}

#[test]
fn datagrams_may_be_fragmented_on_their_way() {
    let (v4, _) = pair("127.0.0.1");
    let (v6, _) = pair("[::1]");
    let (ip, ip6) = (libc::IPPROTO_IP, libc::IPPROTO_IPV6);
    let dont = libc::IP_PMTUDISC_DONT;
    assert_eq!(option(&v4, ip, libc::IP_MTU_DISCOVER), dont);
    let dont = libc::IPV6_PMTUDISC_DONT;
    assert_eq!(option(&v6, ip6, libc::IPV6_MTU_DISCOVER), dont);
    // The loopback interface carries less than UDP's most, which leaves in fragments.
    let most = vec![0; 65_507];
    for localhost in ["127.0.0.1", "[::1]"] {
        let (sender, receiver) = pair(localhost);
        let envelope = Envelope::to(receiver.local_address());
        assert_eq!(sender.send_whole(&envelope, &most[..1_200]), Ok(()));
        assert_eq!(sender.send(&envelope, &most), Ok(()));
        let mtu = crate::link::mtu("lo").unwrap();
        if mtu < most.len() {
            let whole = sender.send_whole(&envelope, &most);
            assert_eq!(whole, Err(SendError::TooLong), "{localhost}");
        }
        assert_eq!(sender.send(&envelope, &most), Ok(()));
    }
}

fn option(socket: &Socket, level: i32, name: i32) -> i32 {
    let mut value = 0_i32;
    let mut length = crate::link::socklen::<i32>();
    // SAFETY: the pointers and the length describe `value`, which lives through the call.
    let answer = unsafe {
        let value = std::ptr::from_mut(&mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), level, name, value, &raw mut length)
    };
    assert_eq!(answer, 0);
    value
}

#[test]
fn an_empty_datagram_arrives_among_others() {
    let (sender, receiver) = pair("127.0.0.1");
    for bytes in [&b"before"[..], b"", b"behind"] {
        sender
            .send(&Envelope::to(receiver.local_address()), bytes)
            .unwrap();
    }
    let expected = [&b"before"[..], b"", b"behind"];
    assert_eq!(collect(&receiver, 3), expected);
}

#[test]
fn an_unlikely_segment_size_leaves_one_datagram() {
    let source = ([127, 0, 0, 1], 1).into();
    let sizes = |length: usize, segment| {
        let beside = Beside {
            segment,
            ..Beside::default()
        };
        let mut buffer = vec![0; 200];
        let run = Run::new(source, length, beside);
        let sizes = run.split(&mut buffer).map(|datagram| datagram.bytes.len());
        sizes.collect::<Vec<_>>()
    };
    for segment in [None, Some(0), Some(100), Some(101), Some(usize::MAX)] {
        assert_eq!(sizes(100, segment), [100], "{segment:?}");
    }
    assert_eq!(sizes(100, Some(99)), [99, 1]);
    assert_eq!(sizes(0, Some(10)), [0]);
}

#[test]
fn without_segmentation_a_run_arrives_all_the_same() {
    assert!(!check_run("[::1]", 100, 700, 7, |socket| socket.set_segments(false)));
}

#[test]
fn mixed_sizes_and_the_largest_datagram_keep_their_borders() {
    let (sender, receiver) = pair("127.0.0.1");
    let sizes = [1, 148, 32, 32, 32, 1452, 1452, 60, 65_507, 92];
    for size in sizes {
        let bytes = vec![u8::try_from(size % 251).unwrap(); size];
        sender
            .send(&Envelope::to(receiver.local_address()), &bytes)
            .unwrap();
    }
    let received: Vec<_> = collect(&receiver, sizes.len())
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(received, sizes);
}

#[test]
fn a_datagram_names_its_source_and_the_address_it_was_sent_to() {
    let (sender, _) = pair("127.0.0.1");
    let any = Socket::bind("0.0.0.0:0".parse().unwrap(), &Options::default()).unwrap();
    let to = (Ipv4Addr::new(127, 0, 0, 7), any.local_address().port()).into();
    sender.send(&Envelope::to(to), b"x").unwrap();
    wait_for(any.as_fd(), Interest::READ, Duration::from_secs(5)).unwrap();
    let mut batch = Batch::default();
    any.recv_batch(&mut batch).unwrap();
    let datagram = batch.datagrams().next().unwrap();
    assert_eq!(datagram.source, sender.local_address());
    assert_eq!(datagram.local, Some(to.ip()));
    let answer = Envelope {
        from: datagram.local,
        ..Envelope::to(sender.local_address())
    };
    any.send(&answer, b"y").unwrap();
    wait_for(sender.as_fd(), Interest::READ, Duration::from_secs(5)).unwrap();
    sender.recv_batch(&mut batch).unwrap();
    assert_eq!(batch.datagrams().next().unwrap().source, to);
}

#[test]
fn errors_that_a_caller_counts_have_their_own_variants() {
    let (sender, receiver) = pair("127.0.0.1");
    let gone = Envelope {
        from: Some("192.0.2.77".parse().unwrap()),
        ..Envelope::to(receiver.local_address())
    };
    assert_eq!(sender.send(&gone, b"x"), Err(SendError::SourceGone));
    let run = [0; 300];
    assert_eq!(
        sender.send_run(&gone, &run, 100),
        Err(SendError::SourceGone)
    );
    assert!(
        sender.segments(),
        "a bad source says nothing about segmentation"
    );
    assert_eq!(
        sender.send(&Envelope::to(receiver.local_address()), &[0; 65_508]),
        Err(SendError::TooLong)
    );
    let mut batch = Batch::default();
    let empty = receiver.recv_batch(&mut batch).unwrap_err();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_waiting_reader_gets_what_comes_and_ends_with_the_socket() {
    let (sender, receiver) = pair("127.0.0.1");
    receiver.set_blocking().unwrap();
    let to = receiver.local_address();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut batch = Batch::default();
            let mut lengths: Vec<usize> = Vec::new();
            loop {
                receiver.wait_batch(&mut batch).unwrap();
                let arrivals: Vec<_> = batch.arrivals().map(|run| run.bytes.len()).collect();
                lengths.extend(&arrivals);
                if receiver.is_retired() {
                    return lengths;
                }
            }
        });
        sender.send(&Envelope::to(to), b"one").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        receiver.retire();
        assert_eq!(reader.join().unwrap(), [3]);
    });
}

#[test]
fn a_reader_of_one_run_leaves_the_next_where_it_is() {
    let (sender, receiver) = pair("127.0.0.1");
    let (_, other) = pair("127.0.0.1");
    receiver.set_blocking().unwrap();
    // Of two senders, so that the kernel does not join them.
    for (socket, byte) in [(&sender, 1), (&other, 2)] {
        socket
            .send(&Envelope::to(receiver.local_address()), &[byte; 9])
            .unwrap();
    }
    let mut batch = Batch::default();
    for byte in [1, 2] {
        assert_eq!(receiver.wait_run(&mut batch).unwrap(), 1);
        let all: Vec<_> = batch.datagrams().map(|one| one.bytes.to_vec()).collect();
        assert_eq!(all, [[byte; 9]]);
    }
}

#[test]
fn both_families_share_a_port_and_a_taken_one_is_in_use() {
    let options = Options {
        buffer_bytes: 1 << 20,
        ..Options::default()
    };
    let both = Pair::bind(0, &options).unwrap();
    assert_ne!(both.port(), 0);
    let ports: Vec<_> = both
        .sockets()
        .map(|socket| socket.local_address().port())
        .collect();
    assert!(ports.iter().all(|port| *port == both.port()));
    let error = Pair::bind(both.port(), &options).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn a_socket_works_under_tokio() {
    let (sender, receiver) = pair("127.0.0.1");
    let to = Envelope::to(receiver.local_address());
    let (sender, receiver) = (
        Watched::new(sender).unwrap(),
        Watched::new(receiver).unwrap(),
    );
    let mut batch = Batch::default();
    for run in [300, 1_000_000] {
        let bytes = vec![7; run];
        let (mut sent, mut received) = (0, 0);
        while received < run {
            tokio::select! {
                length = sender.send(|s| s.send_run(&to, &bytes[sent..], 1000)),
                    if sent < run => sent += length.unwrap(),
                read = receiver.recv_batch(&mut batch) => {
                    read.unwrap();
                    received += batch.datagrams().map(|d| d.bytes.len()).sum::<usize>();
                }
            }
        }
    }
}

#[test]
fn a_socket_beside_another_takes_what_begins_otherwise() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let any: SocketAddr = any.parse().unwrap();
        let one = Socket::bind(any, &Options::default()).unwrap();
        let address = one.local_address();
        let beside = one.bind_beside(&Options::default()).unwrap();
        one.steer(4, NonZeroU8::MIN).unwrap();
        assert_eq!(beside.local_address(), address);
        let sender = Socket::bind(any, &Options::default()).unwrap();
        for datagram in [&[4, 1], &[1, 2], &[4, 3], &[2, 4]] {
            sender
                .send_run(&Envelope::to(address), datagram, 2)
                .unwrap();
        }
        assert_eq!(collect(&one, 2), [[4, 1], [4, 3]]);
        assert_eq!(collect(&beside, 2), [[1, 2], [2, 4]]);
        let other = Socket::bind(address, &Options::default()).map(drop);
        let error = other.expect_err("the port is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}

#[test]
fn sockets_of_one_port_share_what_comes_by_a_word_of_it() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let one = Socket::bind(any, &Options::default()).unwrap();
    let bind = || one.bind_beside(&Options::default()).unwrap();
    let (two, three, rest) = (bind(), bind(), bind());
    one.steer(4, NonZeroU8::new(3).unwrap()).unwrap();
    let sender = Socket::bind(any, &Options::default()).unwrap();
    let send = |datagram: &[u8]| {
        sender
            .send(&Envelope::to(one.local_address()), datagram)
            .unwrap();
    };
    for word in 0..9 {
        send(&[4, 9, 9, 9, 0, 0, 0, word, 9]);
        send(&[1, 9, 9, 9, 0, 0, 0, word, 9]);
    }
    // Too short for the word.
    send(&[4, 0, 0, 0, 0, 0, 1]);
    let words = |socket: &Socket, count| {
        let all = collect(socket, count);
        all.iter()
            .map(|one| one.get(7).copied())
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&one, 4), [Some(0), Some(3), Some(6), None]);
    assert_eq!(words(&two, 3), [1, 4, 7].map(Some));
    assert_eq!(words(&three, 3), [2, 5, 8].map(Some));
    assert_eq!(collect(&rest, 9).len(), 9);
}

/// Sends parcels to two receivers and sees that all datagrams arrive, each parcel's in order.
fn check_parcels(prepare: fn(&Socket), segments: bool) {
    let (sender, first) = pair("127.0.0.1");
    let (second, _) = pair("127.0.0.1");
    prepare(&sender);
    let bytes = [
        numbered(5, 1200, 600),
        numbered(1, 700, 700),
        numbered(64, 90, 90),
    ];
    let sizes = [1200, 700, 90];
    let slices: Vec<Vec<_>> = bytes
        .iter()
        .zip(sizes)
        .map(|(bytes, size)| bytes.chunks(size).map(io::IoSlice::new).collect())
        .collect();
    let to = [&first, &second, &first].map(Socket::local_address);
    let parcels: Vec<_> = (0..3)
        .map(|place| Parcel {
            envelope: Envelope::to(to[place]),
            datagrams: &slices[place],
        })
        .collect();
    let mut rest = &parcels[..];
    while !rest.is_empty() {
        let sent = sender.send_parcels(rest).unwrap();
        assert!(sent > 0);
        rest = &rest[sent..];
    }
    let of = |places: &[usize]| {
        let datagrams = places.iter().flat_map(|place| &slices[*place]);
        datagrams.map(|slice| slice.to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(collect(&first, 69), of(&[0, 2]));
    assert_eq!(collect(&second, 1), of(&[1]));
    assert_eq!(sender.segments(), segments);
}

#[test]
fn parcels_of_several_destinations_arrive_whole_and_in_order() {
    check_parcels(|_| (), true);
}

#[test]
fn parcels_arrive_where_the_kernel_does_not_cut_or_is_not_asked_to() {
    check_parcels(|sender| refuse_segmentation(sender, true), true);
    check_parcels(|sender| sender.set_segments(false), false);
}

#[test]
fn a_parcel_that_cannot_be_sent_is_told_apart_from_those_behind_it() {
    let (sender, receiver) = pair("127.0.0.1");
    let datagrams = [io::IoSlice::new(b"x")];
    let to = |to: SocketAddr| Parcel {
        envelope: Envelope::to(to),
        datagrams: &datagrams,
    };
    let nowhere = to(([255, 255, 255, 255], 9).into());
    let somewhere = to(receiver.local_address());
    let parcels = [somewhere, nowhere, somewhere];
    assert_eq!(sender.send_parcels(&parcels), Ok(1));
    let refused = sender.send_parcels(&parcels[1..]);
    assert_eq!(refused, Err(SendError::Denied), "no right to broadcast");
    assert_eq!(sender.send_parcels(&parcels[2..]), Ok(1));
    assert_eq!(collect(&receiver, 2), [b"x", b"x"]);
    assert_eq!(sender.send_parcels(&[]), Ok(0));
}

#[test]
fn what_is_said_about_congestion_arrives_with_each_run() {
    for localhost in ["127.0.0.1", "[::1]"] {
        let (sender, receiver) = pair(localhost);
        let (_, other) = pair(localhost);
        let to = receiver.local_address();
        let all = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];
        let bytes = numbered(3, 100, 60);
        for ecn in all {
            let envelope = Envelope {
                ecn,
                ..Envelope::to(to)
            };
            sender.send(&envelope, b"x").unwrap();
            assert_eq!(sender.send_run(&envelope, &bytes, 100), Ok(bytes.len()));
            let slices: Vec<_> = bytes.chunks(100).map(io::IoSlice::new).collect();
            let parcel = Parcel {
                envelope,
                datagrams: &slices,
            };
            // Of another sender, so that the kernel does not join them.
            assert_eq!(other.send_parcels(&[parcel]), Ok(1));
        }
        let mut batch = Batch::default();
        let mut told = Vec::new();
        while told.len() < 7 * all.len() {
            let readable = wait_for(receiver.as_fd(), Interest::READ, Duration::from_secs(5));
            assert!(readable.unwrap(), "{} came", told.len());
            receiver.recv_batch(&mut batch).unwrap();
            told.extend(batch.datagrams().map(|one| one.ecn));
        }
        let expected: Vec<_> = all.into_iter().flat_map(|ecn| [ecn; 7]).collect();
        assert_eq!(told, expected, "{localhost}");
    }
}

#[test]
fn runs_are_handed_out_until_they_have_so_many_datagrams() {
    let (receiver, sender) = pair("127.0.0.1");
    // Each run by itself: the sizes differ, and an empty datagram is none.
    for (count, size) in [(20, 100), (12, 200), (0, 0), (31, 300), (40, 400), (1, 500)] {
        let bytes = vec![7; count * size];
        let to = Envelope::to(receiver.local_address());
        match count {
            0 => assert_eq!(sender.send(&to, &[]), Ok(())),
            _ => assert_eq!(sender.send_run(&to, &bytes, size), Ok(bytes.len())),
        }
    }
    let mut batch = Batch::default();
    assert_eq!(receiver.recv_batch(&mut batch).unwrap(), 6);
    let portions = |batch: &mut Batch, datagrams| {
        let mut portions = batch.portions();
        let mut counts = Vec::new();
        while let Some(portion) = portions.next(datagrams) {
            let runs = portion.iter().flatten();
            counts.push(runs.map(|run| run.datagrams().len()).collect::<Vec<_>>());
        }
        counts
    };
    let counts = portions(&mut batch, 32);
    assert_eq!(counts, [vec![20, 12], vec![0, 31, 40], vec![1]]);
    let all = vec![20, 12, 0, 31, 40, 1];
    assert_eq!(portions(&mut batch, usize::MAX), [all]);
    assert_eq!(
        portions(&mut batch, 1).len(),
        5,
        "an empty one goes with the next"
    );
    assert_eq!(
        portions(&mut Batch::default(), 32),
        Vec::<Vec<usize>>::new()
    );
}
