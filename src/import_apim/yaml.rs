//! Writes YAML. Every value passes [`YamlWriter::quoted`], and every comment [`YamlWriter::comment`]: nothing that is
//! imported can end either of them.

use std::fmt::Write as _;

use super::plan::{Part, Value};
use super::source::printable;

/// Comments are wrapped at this column.
const MAX_COLUMN: usize = 110;

#[derive(Default)]
pub(super) struct YamlWriter {
    out: String,
}

impl YamlWriter {
    /// A line of our own text.
    pub(super) fn line(&mut self, indent: usize, text: &str) {
        let _ = writeln!(self.out, "{:indent$}{text}", "");
    }

    pub(super) fn empty_line(&mut self) {
        self.out.push('\n');
    }

    /// `key: value`.
    pub(super) fn entry(&mut self, indent: usize, key: &str, value: &Value) {
        self.line(indent, &format!("{key}: {}", Self::quoted(value)));
    }

    /// `key: [a, b]`.
    pub(super) fn list(&mut self, indent: usize, key: &str, values: &[Value]) {
        self.line(indent, &format!("{key}: {}", Self::flow_list(values)));
    }

    /// `[a, b]`.
    pub(super) fn flow_list(values: &[Value]) -> String {
        format!("[{}]", values.iter().map(Self::quoted).collect::<Vec<_>>().join(", "))
    }

    /// A scalar in double quotes: a literal means itself, `$` included.
    pub(super) fn quoted(value: &Value) -> String {
        let mut text = String::from("\"");
        for part in &value.0 {
            match part {
                Part::Literal(literal) => {
                    for c in literal.chars() {
                        match c {
                            '"' | '\\' => text.extend(['\\', c]),
                            '$' => text.push_str("$$"),
                            c if c == ' ' || c.is_ascii_graphic() => text.push(c),
                            c => {
                                let _ = write!(text, "\\U{:08X}", u32::from(c));
                            }
                        }
                    }
                }
                Part::Variable(name) => {
                    let _ = write!(text, "${{{name}}}");
                }
            }
        }
        text + "\""
    }

    /// A comment, wrapped.
    pub(super) fn comment(&mut self, indent: usize, text: &str) {
        let text = printable(text);
        let width = MAX_COLUMN.saturating_sub(indent + 2);
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                self.line(indent, &format!("# {line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(indent, &format!("# {line}"));
    }

    pub(super) fn comments(&mut self, indent: usize, texts: &[String]) {
        for text in texts {
            self.comment(indent, text);
        }
    }

    pub(super) fn into_text(self) -> String {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_mean_themselves() {
        let value =
            Value(vec![Part::Literal("a\"\\$x\n\u{2028}é: #".to_owned()), Part::Variable("KEY".to_owned())]);
        let written = YamlWriter::quoted(&value);
        assert_eq!(written, "\"a\\\"\\\\$$x\\U0000000A\\U00002028\\U000000E9: #${KEY}\"");
        let read: String = serde_yaml::from_str(&written).unwrap();
        assert_eq!(read, "a\"\\$$x\n\u{2028}é: #${KEY}");
    }

    #[test]
    fn a_comment_cannot_end_early() {
        let mut yaml = YamlWriter::default();
        yaml.comment(2, "a\nadmin: x\r\nb\u{85}c\u{2029}d");
        yaml.comment(0, &"word ".repeat(40));
        let text = yaml.into_text();
        assert!(text.lines().all(|line| line.trim_start().starts_with("# ")), "{text}");
        assert!(text.starts_with("  # a?admin: x??b?c?d\n") && text.lines().count() == 3, "{text}");
    }
}
