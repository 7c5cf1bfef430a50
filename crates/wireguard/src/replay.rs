//! Refuses a counter that was accepted before (whitepaper section 5.4.6, RFC 6479).

/// How far behind the newest counter a packet may still arrive.
pub(crate) const WINDOW: u64 = BITS - WORD;

/// The counters accepted under one receiving key.
#[derive(Debug)]
pub(crate) struct ReplayWindow {
    newest: u64,
    /// A ring: bit `counter % BITS` tells whether `counter` was accepted.
    accepted: [u64; WORDS],
}

/// Why a counter was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    /// It was accepted before.
    Duplicate,
    /// It lies behind the window, where duplicates can no longer be told apart.
    TooOld,
}

impl ReplayWindow {
    /// Accepts `counter` at most once and tells whether it is newer than all before.
    ///
    /// Call this after the AEAD tag has been verified, never before: a forged counter would move
    /// the window and lock the peer out.
    pub(crate) fn accept(&mut self, counter: u64) -> Result<bool, Refused> {
        if self.newest.saturating_sub(counter) > WINDOW {
            return Err(Refused::TooOld);
        }
        // An untouched window has `newest` 0 too; the newest counter itself is refused below.
        let newer = counter >= self.newest;
        self.slide_to(counter);
        let (word, bit) = position(counter);
        if self.accepted[word] & bit != 0 {
            return Err(Refused::Duplicate);
        }
        self.accepted[word] |= bit;
        Ok(newer)
    }

    fn slide_to(&mut self, counter: u64) {
        // A jump past the whole ring clears each word once, so the work per packet is bounded.
        for word in (self.newest / WORD + 1..=counter / WORD).take(WORDS) {
            self.accepted[position(word * WORD).0] = 0;
        }
        self.newest = self.newest.max(counter);
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            newest: 0,
            accepted: [0; WORDS],
        }
    }
}

fn position(counter: u64) -> (usize, u64) {
    let word = usize::try_from(counter / WORD % WORDS as u64).expect("smaller than `WORDS`");
    (word, 1 << (counter % WORD))
}

const BITS: u64 = 8192;
const WORD: u64 = 64;
const WORDS: usize = 128;
const _: () = assert!(WORDS as u64 * WORD == BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(counters: &[u64], expected: Result<bool, Refused>) {
        let mut window = ReplayWindow::default();
        let (last, earlier) = counters.split_last().expect("at least one counter");
        for counter in earlier {
            window.accept(*counter).expect("earlier counters are new");
        }
        assert_eq!(window.accept(*last), expected);
    }

    #[test]
    fn a_counter_is_accepted_once() {
        check(&[0], Ok(true));
        check(&[0, 0], Err(Refused::Duplicate));
        check(&[7, 3], Ok(false));
        check(&[7, 3, 0], Ok(false));
        check(&[7, 8], Ok(true));
        check(&[7, 3, 3], Err(Refused::Duplicate));
    }

    #[test]
    fn the_window_reaches_back_exactly_window_counters() {
        check(&[WINDOW, 0], Ok(false));
        check(&[WINDOW + 1, 0], Err(Refused::TooOld));
        check(&[1, WINDOW + 1, 1], Err(Refused::Duplicate));
    }

    #[test]
    fn the_table_of_wireguard_go_holds() {
        // Its limit is 8,128 too; the cases are those of its TestReplay.
        const LIMIT: u64 = WINDOW + 1;
        let (old, twice) = (Err(Refused::TooOld), Err(Refused::Duplicate));
        let cases: &[(u64, Result<(), Refused>)] = &[
            (0, Ok(())),
            (1, Ok(())),
            (1, twice),
            (9, Ok(())),
            (8, Ok(())),
            (7, Ok(())),
            (7, twice),
            (LIMIT, Ok(())),
            (LIMIT - 1, Ok(())),
            (LIMIT - 1, twice),
            (LIMIT - 2, Ok(())),
            (2, Ok(())),
            (2, twice),
            (LIMIT + 16, Ok(())),
            (3, old),
            (LIMIT + 16, twice),
            (LIMIT * 4, Ok(())),
            (LIMIT * 4 - (LIMIT - 1), Ok(())),
            (10, old),
            (LIMIT * 4 - LIMIT, old),
            (LIMIT * 4 - (LIMIT + 1), old),
            (LIMIT * 4 - (LIMIT - 2), Ok(())),
            (LIMIT * 4 + 1 - LIMIT, twice),
            (0, old),
            (u64::MAX / 2, Ok(())),
            (u64::MAX / 2, twice),
            (u64::MAX, Ok(())),
            (u64::MAX, twice),
            (u64::MAX - WINDOW, Ok(())),
            (u64::MAX - WINDOW - 1, old),
        ];
        let mut window = ReplayWindow::default();
        for (counter, expected) in cases {
            assert_eq!(window.accept(*counter).map(drop), *expected, "{counter}");
        }
    }

    #[test]
    fn a_long_jump_forgets_every_older_counter() {
        check(&[5, 5 + BITS], Ok(true));
        check(&[5, 5 + 9 * BITS, 6 + 8 * BITS + WORD], Ok(false));
    }
}
