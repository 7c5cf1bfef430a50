//! Golden tables: what a transfer reaches on every kind of bad link, kept as snapshots.
//!
//! A change of the algorithms changes the tables: `INSTA_UPDATE=always` writes them anew, and the
//! difference is what a reviewer looks at.

use std::{fmt::Write, time::Duration};

use super::{
    pair::{Link, Pair},
    transfer::transfer,
};
use crate::Limits;

/// The bottleneck: 100 Mbit/s with a queue of 500 kB.
const RATE: (u64, u64) = (12_500_000, 500_000);
/// What each transfer moves, in bytes.
const LENGTH: usize = 2_000_000;
/// How many seeds a cell is the median of.
const SEEDS: u64 = 3;

/// Transfers over `link` under some seeds, every byte compared, and returns the median of the
/// throughputs in Mbit/s with two digits.
fn throughput(link: Link) -> String {
    // A loss of 30 % each way and the backoff may silence a connection for minutes.
    let patience = Duration::from_secs(3_600);
    let limits = Limits {
        connect_timeout: patience,
        user_timeout: patience,
        ..Limits::default()
    };
    let mut rates: Vec<_> = (0..SEEDS)
        .map(|seed| {
            let mut pair = Pair::with_limits(seed, link, limits);
            let took = transfer(&mut pair, [LENGTH, 0], true, 0);
            // 2^53 bytes are more than a test moves.
            let bits = f64::from(u32::try_from(LENGTH).unwrap()) * 8.0;
            bits / took.as_secs_f64() / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    two_digits(rates[rates.len() / 2])
}

pub(super) fn two_digits(value: f64) -> String {
    let decimals = match value {
        10.0.. => 0,
        1.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn link(loss: u64, rtt: u64) -> Link {
    Link {
        delay: Duration::from_micros(rtt * 500),
        loss,
        rate: Some(RATE),
        ..Link::default()
    }
}

#[test]
fn every_cell_of_loss_reordering_duplication_and_distance_delivers_the_stream() {
    let mut table = String::new();
    for (reordering, duplication) in [(0, 0), (250, 0), (0, 100), (250, 100)] {
        let (r, d) = (reordering / 10, duplication / 10);
        writeln!(table, "reordering {r} %, duplication {d} %: Mbit/s").unwrap();
        writeln!(table, "loss       1 ms   20 ms  100 ms  300 ms").unwrap();
        for loss in [0, 1, 10, 20, 50, 100, 200, 300] {
            let percent = format!("{}.{} %", loss / 10, loss % 10);
            write!(table, "{percent:<7}").unwrap();
            for rtt in [1, 20, 100, 300] {
                let cell = throughput(Link {
                    reordering,
                    duplication,
                    ..link(loss, rtt)
                });
                write!(table, "{cell:>8}").unwrap();
            }
            table.push('\n');
        }
        table.push('\n');
    }
    insta::assert_snapshot!("matrix", table);
}
