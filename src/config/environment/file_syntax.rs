//! The syntax of a file of environment variables: that of systemd's `EnvironmentFile=`, as systemd.exec(5)
//! describes it.
//!
//! A line that systemd passes over is passed over here as well, with a problem that says so.

use std::iter::Peekable;
use std::str::Chars;

/// What a backslash keeps from its meaning inside double quotes.
const ESCAPED_IN_QUOTES: [char; 4] = ['"', '\\', '`', '$'];

/// The variables of a file, in its order, and what is probably a mistake: a line and a message. Of a variable
/// that is set twice, the last value counts. Messages never show any part of a line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assignments {
    pub(super) variables: Vec<(String, String)>,
    pub(super) problems: Vec<(usize, &'static str)>,
}

/// Parses the text of a file. Any text is accepted, as by systemd.
pub(super) fn parse(text: &str) -> Assignments {
    let mut scanner = Scanner { rest: text.chars().peekable(), line: 1, unclosed_quote_line: None };
    let mut assignments = Assignments::default();
    while scanner.skip_blanks_and_comments() {
        let line = scanner.line;
        let Some(name) = scanner.read_name() else {
            assignments.problems.push((line, "has no `=`, so it is ignored; write NAME=value"));
            continue;
        };
        let value = scanner.read_value();
        if is_variable_name(&name) {
            assignments.variables.push((name, value));
        } else {
            let problem = "is ignored: a name has only letters, digits and underscores, and does not begin with a \
                           digit (and `export` is not part of the syntax)";
            assignments.problems.push((line, problem));
        }
        if let Some(line) = scanner.unclosed_quote_line {
            assignments
                .problems
                .push((line, "has a quote that is not closed, so all that follows is part of the value"));
        }
    }
    assignments
}

/// Whether a variable may have this name.
fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t') || is_line_end(c)
}

struct Scanner<'t> {
    rest: Peekable<Chars<'t>>,
    /// The line of the next character, from 1.
    line: usize,
    unclosed_quote_line: Option<usize>,
}

impl Scanner<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        self.line += usize::from(next == '\n');
        Some(next)
    }

    /// Returns whether anything follows.
    fn skip_blanks_and_comments(&mut self) -> bool {
        while let Some(&next) = self.rest.peek() {
            match next {
                '#' | ';' => while self.next().is_some_and(|c| !is_line_end(c)) {},
                _ if is_blank(next) => _ = self.next(),
                _ => return true,
            }
        }
        false
    }

    /// Reads up to and including the `=`; `None` if the line has none. Systemd takes the first character for a
    /// part of the name, also if it is `=`.
    fn read_name(&mut self) -> Option<String> {
        let mut name = String::from(self.next()?);
        loop {
            match self.next()? {
                '=' => break,
                c if is_line_end(c) => return None,
                c => name.push(c),
            }
        }
        name.truncate(name.trim_end_matches(is_blank).len());
        Some(name)
    }

    /// Reads up to and including the end of the line.
    fn read_value(&mut self) -> String {
        let mut value = String::new();
        // Texts in quotes come first; from the first other character on, quotes have no meaning.
        loop {
            match self.next() {
                Some('\'') => self.read_single_quoted(&mut value),
                Some('"') => self.read_double_quoted(&mut value),
                Some('\\') => {
                    self.read_escaped(&mut value);
                    break;
                }
                Some(c) if is_line_end(c) => return value,
                Some(c) if is_blank(c) => {}
                Some(c) => {
                    value.push(c);
                    break;
                }
                None => return value,
            }
        }
        // How much of the value stays if nothing but blanks follows.
        let mut length_without_blanks = value.len();
        loop {
            match self.next() {
                Some('\\') => {
                    self.read_escaped(&mut value);
                    length_without_blanks = value.len();
                }
                Some(c) if !is_line_end(c) => {
                    value.push(c);
                    if !is_blank(c) {
                        length_without_blanks = value.len();
                    }
                }
                _ => {
                    value.truncate(length_without_blanks);
                    return value;
                }
            }
        }
    }

    /// Reads what follows a backslash outside of quotes. At the end of a line it continues the line.
    fn read_escaped(&mut self, value: &mut String) {
        value.extend(self.next().filter(|c| !is_line_end(*c)));
    }

    fn read_single_quoted(&mut self, value: &mut String) {
        let line = self.line;
        loop {
            match self.next() {
                Some('\'') => return,
                Some(c) => value.push(c),
                None => return self.unclosed_quote_line = Some(line),
            }
        }
    }

    fn read_double_quoted(&mut self, value: &mut String) {
        let line = self.line;
        loop {
            match self.next() {
                Some('"') => return,
                Some('\\') => match self.next() {
                    Some(c) if ESCAPED_IN_QUOTES.contains(&c) => value.push(c),
                    Some('\n') => {}
                    Some(c) => value.extend(['\\', c]),
                    None => return self.unclosed_quote_line = Some(line),
                },
                Some(c) => value.push(c),
                None => return self.unclosed_quote_line = Some(line),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=", ""),
            ("  A  =  b c  \t", "b c"),
            ("A=b\r\n", "b"),
            ("A=b=c", "b=c"),
            ("A=b#c", "b#c"),
            ("A=b # not a comment", "b # not a comment"),
            ("A=$B ${B} `x`", "$B ${B} `x`"),
            ("A=\u{fc}", "\u{fc}"),
            // Outside of quotes, a backslash keeps the next character.
            (r"A=a\b\\c\ d", r"ab\c d"),
            ("A=b\\ ", "b "),
            ("A=b\\  ", "b "),
            ("A=\\ b", " b"),
            (r#"A=\"b\""#, r#""b""#),
            ("A=a\\\nb", "ab"),
            ("A=a \\\n   \nB=c", "a "),
            ("A=a\\", "a"),
            ("A=a \\", "a "),
            // Single quotes: verbatim, over lines.
            ("A='b c' ", "b c"),
            ("A='  b  '", "  b  "),
            (r"A='a\b\'", r"a\b\"),
            ("A='a\nb'", "a\nb"),
            ("A='a\\\nb'", "a\\\nb"),
            ("A=''", ""),
            // Double quotes: the escapes of a shell.
            (r#"A="a\"b\\c\$d\`e""#, r#"a"b\c$d`e"#),
            (r#"A="a\nb\x""#, r"a\nb\x"),
            ("A=\"a\\\nb\"", "ab"),
            ("A=\"a\nb\"", "a\nb"),
            ("A=\"# b\"", "# b"),
            // Quotes that follow each other are one value; after other text they have no meaning.
            ("A='a'\"b\" 'c'", "abc"),
            ("A='a' b 'c' ", "ab 'c'"),
            ("A=a'b'", "a'b'"),
            ("A=a \"b\"", "a \"b\""),
        ] {
            let parsed = parse(text);
            assert_eq!(parsed.variables.first().map(|(_, value)| value.as_str()), Some(value), "{text:?}");
            assert_eq!(parsed.problems, [], "{text:?}");
        }
    }

    #[test]
    fn comments_and_lines_without_an_assignment_are_passed_over() {
        let text = "# A=1\n; A=2\n\n  # A=3\\\nA=4\nhunter2\nA hunter2\nexport B=hunter2\n1C=x\n=x\nD-E=x\nF=\"x\nG=1\n";
        let parsed = parse(text);
        let variables: Vec<(&str, &str)> =
            parsed.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(variables, [("A", "4"), ("F", "x\nG=1\n")]);
        let lines: Vec<usize> = parsed.problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [6, 7, 8, 9, 10, 11, 12]);
        assert!(parsed.problems.iter().all(|(_, problem)| !problem.contains("hunter2")), "{parsed:?}");
    }

    #[test]
    fn a_line_without_a_name_has_no_value_that_could_go_on() {
        let parsed = parse("='x\nA=1\n=='x\nB=2'\nC=3");
        let pairs = [("A", "1"), ("C", "3")];
        assert_eq!(parsed.variables, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn an_unknown_name_or_value_in_one_line_leaves_the_others_as_they_are() {
        let parsed = parse("A=1\nnot an assignment\nB='2'\nA=3");
        let pairs = [("A", "1"), ("B", "2"), ("A", "3")];
        assert_eq!(parsed.variables, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>()) {
            for (name, _) in parse(&text).variables {
                prop_assert!(is_variable_name(&name), "{name}");
            }
        }

        #[test]
        fn a_value_is_the_same_in_each_way_to_write_it(
            values in proptest::collection::vec("[ -~\t\u{fc}\n]{0,20}", 0..4),
            newline in prop_oneof![Just("\n"), Just("\r\n")],
        ) {
            let double_quoted = |value: &str| {
                let escape = |c: char| if ESCAPED_IN_QUOTES.contains(&c) { format!("\\{c}") } else { c.to_string() };
                format!("\"{}\"", value.chars().map(escape).collect::<String>())
            };
            // A single quote cannot be in single quotes, nor the end of a line outside of quotes.
            let single_quoted = |value: &str| value.split('\'').map(|part| format!("'{part}'")).collect::<Vec<_>>().join("\"'\"");
            let escaped = |value: &str| {
                let escape = |c: char| if c == '\n' { "\"\n\"".to_owned() } else { format!("\\{c}") };
                if value.contains('\n') { double_quoted(value) } else { value.chars().map(escape).collect() }
            };
            let ways: [&dyn Fn(&str) -> String; 3] = [&double_quoted, &single_quoted, &escaped];
            for write in ways {
                let lines = values.iter().enumerate().map(|(n, value)| format!(" V{n} = {} {newline}# x{newline}", write(value)));
                let parsed = parse(&lines.collect::<String>());
                let read: Vec<&str> = parsed.variables.iter().map(|(_, value)| value.as_str()).collect();
                prop_assert_eq!(&read, &values.iter().map(String::as_str).collect::<Vec<_>>());
                prop_assert_eq!(parsed.problems, []);
            }
        }
    }
}
