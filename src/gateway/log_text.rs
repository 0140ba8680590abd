//! Text from outside, for log lines.

/// The text with control characters, backslashes and non-ASCII escaped.
pub fn escape_for_log(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            ' '..='~' => escaped.push(c),
            c => escaped.extend(c.escape_default()),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_on_its_line_and_is_readable() {
        let table = [
            ("it's \"quoted\"", "it's \"quoted\""),
            ("a\nb\t\u{1b}[31m", "a\\nb\\t\\u{1b}[31m"),
            ("\\n é", "\\\\n \\u{e9}"),
        ];
        for (text, expected) in table {
            assert_eq!(escape_for_log(text), expected);
        }
    }
}
