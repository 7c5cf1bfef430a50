//! The escape of a terminal session: `~.` at the beginning of a line ends it, `~~` is a tilde, `~?`
//! tells both.

/// Where in the typed text we are.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Escape {
    /// A line begins.
    LineStart,
    /// After a tilde at the beginning of a line, which has not been sent.
    Tilde,
    /// Within a line.
    Within,
    /// Nothing is special.
    Off,
}

/// What `~?` says; the terminal is raw.
const HELP: &str = "~?\r\n\
Escapes, at the beginning of a line:\r\n  \
~.  end the session\r\n  \
~~  send a tilde\r\n  \
~?  this\r\n";

impl Escape {
    /// Takes what was typed and appends to `out` what is to be sent and to `said` what the person
    /// is to see; true ends the session.
    pub(super) fn handle(&mut self, typed: &[u8], out: &mut Vec<u8>, said: &mut String) -> bool {
        for byte in typed {
            *self = match (&self, *byte) {
                (Self::Off, byte) => {
                    out.push(byte);
                    Self::Off
                }
                (Self::LineStart, b'~') => Self::Tilde,
                (Self::Tilde, b'.') => return true,
                (Self::Tilde, b'~') => {
                    out.push(b'~');
                    Self::Within
                }
                (Self::Tilde, b'?') => {
                    said.push_str(HELP);
                    Self::LineStart
                }
                (state, byte) => {
                    if **state == Self::Tilde {
                        out.push(b'~');
                    }
                    out.push(byte);
                    match byte {
                        b'\r' | b'\n' => Self::LineStart,
                        _ => Self::Within,
                    }
                }
            };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[&str], sent: &str, ended: bool) {
        let (mut escape, mut out) = (Escape::LineStart, Vec::new());
        let mut pieces = pieces.iter();
        let mut said = String::new();
        let end = pieces.any(|piece| escape.handle(piece.as_bytes(), &mut out, &mut said));
        assert_eq!(
            (String::from_utf8(out).unwrap().as_str(), end),
            (sent, ended)
        );
    }

    #[test]
    fn a_tilde_and_a_dot_end_at_the_beginning_of_a_line_only() {
        check(&["~."], "", true);
        check(&["ls\r~."], "ls\r", true);
        check(&["ls\r", "~", "."], "ls\r", true);
        check(&["a~."], "a~.", false);
        check(&["~~."], "~.", false);
        check(&["~x"], "~x", false);
        check(&["~\r~."], "~\r", true);
    }

    #[test]
    fn without_a_terminal_nothing_is_special() {
        let (mut out, mut said) = (Vec::new(), String::new());
        assert!(!Escape::Off.handle(b"~?~.\n~.", &mut out, &mut said));
        assert_eq!((&out[..], said.as_str()), (&b"~?~.\n~."[..], ""));
    }

    #[test]
    fn a_tilde_and_a_question_mark_tell_the_escapes_and_are_not_sent() {
        let (mut escape, mut out, mut said) = (Escape::LineStart, Vec::new(), String::new());
        assert!(!escape.handle(b"ls\r~?", &mut out, &mut said));
        assert_eq!((&out[..], said.as_str()), (&b"ls\r"[..], HELP));
        // The line is still empty.
        assert!(escape.handle(b"~.", &mut out, &mut said));
    }
}
