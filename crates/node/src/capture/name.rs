//! Names of addresses for the file: each once, and once more when it changes.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use packet::pcapng::{self, NAMES_BLOCK_MAX, NameRecord};

use super::QUEUE_MAX;

/// What the file says about names.
#[derive(Debug)]
pub(super) struct Names {
    /// The newest that is written or waits; not more than were taken.
    known: BTreeMap<IpAddr, String>,
    /// Those that are not written yet, in their order.
    waiting: VecDeque<(IpAddr, String)>,
    /// How many more are taken; the addresses of further ones stay without.
    left: usize,
    /// How many bytes more they may take in the file.
    bytes_left: usize,
}

/// The most names in a file: a few megabytes.
pub(super) const NAMES_MAX: usize = 16_384;

/// Names take at most this part of a file that has a bound, because packets are what is wanted.
const SHARE: u64 = 8;

impl Names {
    /// None yet, in a file of at most `bytes_max`.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            known: BTreeMap::new(),
            waiting: VecDeque::new(),
            left: NAMES_MAX,
            bytes_left: usize::try_from(bytes_max / SHARE).unwrap_or(usize::MAX),
        }
    }

    /// Takes a name, unless the file has it.
    pub(super) fn insert(&mut self, address: IpAddr, name: String) {
        if self.left == 0 || self.known.get(&address) == Some(&name) {
            return;
        }
        self.left -= 1;
        self.known.insert(address, name.clone());
        self.waiting.push_back((address, name));
    }

    /// Tells whether some are to be written.
    pub(super) fn wait(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes as many as `queue` has room for now. What has no room in the file, whose bound is
    /// `file_left` bytes away, never will.
    pub(super) fn write(&mut self, queue: &mut Vec<u8>, file_left: usize) {
        let has_room = |queue: &[u8]| queue.len() + NAMES_BLOCK_MAX <= QUEUE_MAX;
        if !has_room(queue) {
            return;
        }
        let names = self.waiting.make_contiguous().iter();
        let records: Vec<_> = names
            .map(|(address, name)| NameRecord {
                address: *address,
                name,
            })
            .collect();
        let mut taken = 0;
        let mut in_file = self.bytes_left.min(file_left);
        while taken < records.len() && has_room(queue) {
            let before = queue.len();
            let count = pcapng::name_resolution(queue, &records[taken..], in_file);
            let length = queue.len() - before;
            self.bytes_left -= length;
            in_file -= length;
            if count == 0 {
                taken = records.len();
                self.left = 0;
            }
            taken += count;
        }
        self.waiting.drain(..taken);
    }
}
