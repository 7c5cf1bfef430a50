//! What a recorded session put out, without what would make the terminal that shows it do more than
//! show it.
//!
//! Who was recorded chose every byte. A terminal that is asked what it is, where its cursor is or
//! what stands in its title answers as if the person at it had typed that; other sequences change
//! the clipboard, the title, a printer, or what keys and mouse send (ECMA-48; xterm, "Control
//! Sequences"). So only sequences that draw are let through.

/// Reads the output piece by piece; a sequence may begin in one and end in another.
#[derive(Debug, Default)]
pub(super) struct Screen {
    state: State,
    /// A control sequence as far as it has come, behind its introducer; at most
    /// [`SEQUENCE_MAX`], a longer one is dropped.
    sequence: String,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Ground,
    /// Behind ESC.
    Escape,
    /// Behind ESC and the first of several bytes of an escape sequence.
    Intermediate,
    /// In a control sequence.
    Control,
    /// In a string, such as a title, which is dropped.
    String,
    /// Behind ESC in a string.
    StringEscape,
}

/// Longer than any sequence that draws.
const SEQUENCE_MAX: usize = 128;

/// Final bytes of control sequences that draw or move the cursor, without a prefix.
const DRAWING: &str = "@ABCDEFGHIJKLMPSTXZ`abdefgmrsu";

/// Modes that change what is drawn (DECSET): the cursor, the alternate screen, wrapping, origin,
/// reverse video, synchronised output.
const PRIVATE_MODES: [&str; 10] = [
    "5", "6", "7", "12", "25", "47", "1047", "1048", "1049", "2026",
];

/// Insertion and new lines (ECMA-48, 7.2).
const MODES: [&str; 2] = ["4", "20"];

impl Screen {
    /// Returns what of a piece is shown.
    pub(super) fn show(&mut self, piece: &str) -> String {
        let mut shown = String::with_capacity(piece.len());
        for letter in piece.chars() {
            self.take(letter, &mut shown);
        }
        shown
    }

    fn take(&mut self, letter: char, shown: &mut String) {
        match (self.state, letter) {
            // CAN and SUB end whatever it is.
            (_, '\u{18}' | '\u{1a}') => self.state = State::Ground,
            (State::Escape | State::StringEscape, '\u{1b}') => {}
            (State::String, '\u{1b}') => self.state = State::StringEscape,
            (State::Ground | State::Intermediate | State::Control, '\u{1b}') => {
                self.state = State::Escape;
            }
            (State::Ground, _) => self.ground(letter, shown),
            (State::Escape, _) => self.escape(letter, shown),
            (State::Intermediate, _) => self.intermediate(letter, shown),
            (State::Control, _) => self.control(letter, shown),
            (State::String, '\u{7}' | '\u{9c}') => self.state = State::Ground,
            (State::String, _) => {}
            (State::StringEscape, '\\') => self.state = State::Ground,
            // Anything else behind ESC ends the string and begins a sequence.
            (State::StringEscape, _) => self.escape(letter, shown),
        }
    }

    fn ground(&mut self, letter: char, shown: &mut String) {
        match letter {
            '\u{9b}' => self.begin(),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => self.state = State::String,
            // Bell, backspace, tab, ends of lines, shifts between sets of letters.
            '\u{7}'..='\u{f}' => shown.push(letter),
            control if control.is_control() => {}
            _ => shown.push(letter),
        }
    }

    fn escape(&mut self, letter: char, shown: &mut String) {
        self.state = State::Ground;
        match letter {
            '[' => self.begin(),
            ']' | 'P' | 'X' | '^' | '_' => self.state = State::String,
            // Save and restore the cursor, index, next line, tab stop, reverse index, reset.
            '7' | '8' | 'D' | 'E' | 'H' | 'M' | 'c' => {
                shown.push('\u{1b}');
                shown.push(letter);
            }
            // Sets of letters, and the screen alignment test.
            '(' | ')' | '*' | '+' | '#' => {
                self.sequence.clear();
                self.sequence.push(letter);
                self.state = State::Intermediate;
            }
            _ => {}
        }
    }

    fn intermediate(&mut self, letter: char, shown: &mut String) {
        self.state = State::Ground;
        if letter.is_ascii_alphanumeric() {
            shown.push('\u{1b}');
            shown.push_str(&self.sequence);
            shown.push(letter);
        }
    }

    fn begin(&mut self) {
        self.sequence.clear();
        self.state = State::Control;
    }

    fn control(&mut self, letter: char, shown: &mut String) {
        match letter {
            ' '..='?' => {
                if self.sequence.len() < SEQUENCE_MAX {
                    self.sequence.push(letter);
                }
            }
            '@'..='~' => {
                self.state = State::Ground;
                if self.sequence.len() < SEQUENCE_MAX && draws(&self.sequence, letter) {
                    shown.push_str("\u{1b}[");
                    shown.push_str(&self.sequence);
                    shown.push(letter);
                }
            }
            // A control character inside of a sequence is obeyed at once.
            '\u{7}'..='\u{d}' => shown.push(letter),
            '\0'..='\u{1f}' | '\u{7f}' => {}
            _ => self.state = State::Ground,
        }
    }
}

/// Tells whether a control sequence draws, by what stands between its introducer and its end.
fn draws(sequence: &str, end: char) -> bool {
    let numbers = |text: &str| {
        text.bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b';' | b':'))
    };
    let all_of = |text: &str, modes: &[&str]| text.split(';').all(|mode| modes.contains(&mode));
    match (end, sequence.strip_prefix('?')) {
        ('h' | 'l', Some(modes)) => all_of(modes, &PRIVATE_MODES),
        ('h' | 'l', None) => all_of(sequence, &MODES),
        // Erase what is not protected (DECSED, DECSEL).
        ('J' | 'K', Some(rest)) => numbers(rest),
        (_, Some(_)) => false,
        // The shape of the cursor, and a soft reset (DECSCUSR, DECSTR).
        ('q', None) => sequence.strip_suffix(' ').is_some_and(numbers),
        ('p', None) => sequence == "!",
        (_, None) => DRAWING.contains(end) && numbers(sequence),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shows a text whole and letter by letter, which is the same.
    #[track_caller]
    fn shown(text: &str) -> String {
        let whole = Screen::default().show(text);
        let mut screen = Screen::default();
        let parts: String = text
            .chars()
            .map(|letter| screen.show(&letter.to_string()))
            .collect();
        assert_eq!(parts, whole);
        whole
    }

    #[test]
    fn what_draws_is_shown_as_it_was() {
        for text in [
            "plain é 漢 😀\r\n\tx\u{8}\u{7}\u{e}\u{f}",
            "\u{1b}[2J\u{1b}[H\u{1b}[1;31mred\u{1b}[0m\u{1b}[38:2::1:2:3mx\u{1b}[m",
            "\u{1b}[?1049h\u{1b}[?25l\u{1b}[?12;25h\u{1b}[4h\u{1b}[1;24r\u{1b}[2 q\u{1b}[!p",
            "\u{1b}7\u{1b}8\u{1b}M\u{1b}(B\u{1b})0\u{1b}#8\u{1b}c",
            "\u{1b}[?J\u{1b}[K\u{1b}[10;20f\u{1b}[3@\u{1b}[5P\u{1b}[s\u{1b}[u",
        ] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("\u{9b}2J"), "\u{1b}[2J");
    }

    #[test]
    fn what_a_terminal_would_answer_or_obey_is_left_out() {
        for sequence in [
            // Who and where are you.
            "\u{1b}[c",
            "\u{1b}[>c",
            "\u{1b}[=c",
            "\u{9b}c",
            "\u{1b}[6n",
            "\u{1b}[?6n",
            "\u{1b}[5n",
            "\u{1b}Z",
            "\u{5}",
            "\u{9a}",
            "\u{1b}[x",
            "\u{1b}[21t",
            "\u{1b}[>q",
            "\u{1b}[?u",
            "\u{1b}[>1u",
            "\u{1b}[?1$p",
            "\u{1b}[1$w",
            "\u{1b}[1;1;1;1;1;1*y",
            "\u{1b}[?2;1;0S",
            // Titles, the clipboard, keys, colours, files.
            "\u{1b}]0;title\u{7}",
            "\u{1b}]52;c;cHduZWQ=\u{1b}\\",
            "\u{9d}52;c;cHduZWQ=\u{9c}",
            "\u{1b}P$qm\u{1b}\\",
            "\u{1b}P+q544e\u{1b}\\",
            "\u{90}1$r\u{9c}",
            "\u{1b}_Gi=1,a=q\u{1b}\\",
            "\u{1b}^x\u{1b}\\",
            "\u{1b}Xx\u{1b}\\",
            // What keys and mouse send, and a printer.
            "\u{1b}[?1000h",
            "\u{1b}[?25;1003h",
            "\u{1b}[?1004h",
            "\u{1b}[?2004h",
            "\u{1b}[>4;2m",
            "\u{1b}[?4m",
            "\u{1b}[2h",
            "\u{1b}=",
            "\u{1b}[5i",
            "\u{1b}[?5i",
            "\u{1b}[\u{1b}[6n",
            "\u{1b}[6\u{18}\u{1b}[6n",
        ] {
            assert_eq!(shown(&format!("a{sequence}b")), "ab", "{sequence:?}");
        }
        let long = format!("a\u{1b}[{}mb", "1;".repeat(SEQUENCE_MAX));
        assert_eq!(shown(&long), "ab");
        assert_eq!(shown("a\u{1b}]0;x\u{1b}[2Jb"), "a\u{1b}[2Jb");
        assert_eq!(shown("a\u{1b}]0;x never ends"), "a");
        assert_eq!(shown("a\u{1b}[1\r\n;2Hb"), "a\r\n\u{1b}[1;2Hb");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_shown_again_as_it_is(
            text in "([\u{1b}\u{9b}\u{9d}\\[\\]0-9;?>$ a-zA-Z\u{7}\u{18}\\\\(#]|\\PC){0,40}",
        ) {
            let once = Screen::default().show(&text);
            prop_assert_eq!(Screen::default().show(&once), once.clone());
            let is_quiet = !once.contains("\u{1b}]") && !once.contains('\u{9b}');
            prop_assert!(is_quiet, "{:?}", once);
        }
    }
}
