//! The words of a line, as a shell splits them.

/// Why a line has no words.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum MalformedLine {
    #[error("a quotation mark has no end")]
    Quote,
    #[error("a backslash stands last")]
    Backslash,
}

/// Splits at spaces outside quotation marks. A backslash takes what follows as it is, except
/// within `'`.
pub(super) fn split(line: &str) -> Result<Vec<String>, MalformedLine> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), character) if open == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or(MalformedLine::Backslash)?;
                word.get_or_insert_default().push(next);
            }
            (None, character) if character.is_whitespace() => words.extend(word.take()),
            (Some(_) | None, character) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(MalformedLine::Quote);
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (line, expected) in [
            ("", &[][..]),
            ("  ls  -l ", &["ls", "-l"]),
            (r#"put "a b" 'c\d'"#, &["put", "a b", r"c\d"]),
            (r"rm a\ b", &["rm", "a b"]),
            (r#"rm "" 'a'"b""#, &["rm", "", "ab"]),
            (r#"rm "a\"b""#, &["rm", "a\"b"]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        assert_eq!(split("rm 'a"), Err(MalformedLine::Quote));
        assert_eq!(split("rm a\\"), Err(MalformedLine::Backslash));
    }
}
