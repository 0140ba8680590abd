//! API Management's dialect as XML: policies have C# expressions in attributes and text in which `<`, `&` and quotes
//! stand as they are. One pass escapes them. Line breaks stay where they are.

use super::csharp::expression_length;
use crate::import_apim::source::{ImportError, SourceText};

/// The longest expression. API Management allows no longer policy.
const MAX_EXPRESSION_BYTES: usize = 256 << 10;

/// The text as XML.
///
/// # Errors
/// If a comment, tag, attribute or expression does not end, or there is a document type: a policy has none, and
/// entities could be defined in it.
pub(super) fn escape_expressions(source: &SourceText<'_>) -> Result<String, ImportError> {
    let mut escaper = Escaper { source, at: 0, out: String::with_capacity(source.text.len() + 1024) };
    escaper.run()?;
    Ok(escaper.out)
}

struct Escaper<'s> {
    source: &'s SourceText<'s>,
    at: usize,
    out: String,
}

impl<'s> Escaper<'s> {
    fn rest(&self) -> &'s str {
        self.source.text.get(self.at..).unwrap_or_default()
    }

    fn error<T>(&self, problem: &str) -> Result<T, ImportError> {
        Err(ImportError::new(self.source.place_at(self.at), problem))
    }

    fn run(&mut self) -> Result<(), ImportError> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            if rest.starts_with("<!--") {
                self.copy_through("-->", 4, "a comment begins here that does not end")?;
            } else if rest.starts_with("<![CDATA[") {
                self.copy_through("]]>", 9, "a CDATA section begins here that does not end")?;
            } else if rest.starts_with("<?") {
                self.copy_through("?>", 2, "a processing instruction begins here that does not end")?;
            } else if rest.starts_with("<!") {
                return self.error("has a document type; a policy has none, and no entities");
            } else if begins_tag(rest) {
                self.copy_tag()?;
            } else {
                self.copy_text()?;
            }
        }
        Ok(())
    }

    /// Copies up to and with `end`, which is looked for after `skipped` bytes.
    fn copy_through(&mut self, end: &str, skipped: usize, problem: &str) -> Result<(), ImportError> {
        let rest = self.rest();
        let found = rest.get(skipped..).and_then(|inner| inner.find(end));
        let Some(found) = found else { return self.error(problem) };
        self.copy(skipped + found + end.len());
        Ok(())
    }

    fn copy(&mut self, length: usize) {
        self.out.push_str(self.rest().get(..length).unwrap_or_default());
        self.at += length;
    }

    fn copy_tag(&mut self) -> Result<(), ImportError> {
        let start = self.at;
        loop {
            let Some(found) = self.rest().find(['>', '"', '\'']) else {
                self.at = start;
                return self.error("a tag begins here that does not end");
            };
            let character = self.rest().as_bytes().get(found).copied();
            self.copy(found + 1);
            match character {
                Some(b'>') | None => return Ok(()),
                Some(quote) => self.copy_attribute(char::from(quote))?,
            }
        }
    }

    /// Copies a value up to its quote, which is written with it.
    fn copy_attribute(&mut self, quote: char) -> Result<(), ImportError> {
        let start = self.at;
        self.copy_expression()?;
        let Some(end) = self.rest().find(quote) else {
            self.at = start;
            return self.error("the value of an attribute begins here that does not end");
        };
        self.escape(end);
        self.copy(1);
        Ok(())
    }

    /// Copies text up to the next tag. Only text that begins with an expression has one.
    fn copy_text(&mut self) -> Result<(), ImportError> {
        self.copy_expression()?;
        let rest = self.rest();
        let mut end = 0;
        loop {
            match rest.get(end..).and_then(|rest| rest.find('<')) {
                None => {
                    end = rest.len();
                    break;
                }
                Some(found) => {
                    end += found;
                    if rest.get(end..).is_some_and(|rest| begins_tag(rest) || begins_markup(rest)) {
                        break;
                    }
                    end += 1;
                }
            }
        }
        self.escape(end);
        Ok(())
    }

    /// Copies blanks and the expression after them, if there is one.
    fn copy_expression(&mut self) -> Result<(), ImportError> {
        let rest = self.rest();
        let trimmed = rest.trim_start();
        if !trimmed.starts_with("@(") && !trimmed.starts_with("@{") {
            return Ok(());
        }
        self.copy(rest.len() - trimmed.len());
        let Some(length) = expression_length(trimmed) else {
            return self.error("an expression begins here that does not end");
        };
        if length > MAX_EXPRESSION_BYTES {
            return self.error("an expression begins here that is longer than 256 KiB");
        }
        self.escape(length);
        Ok(())
    }

    /// Copies so many bytes with everything escaped that has a meaning in XML. References stay.
    fn escape(&mut self, length: usize) {
        let part = self.rest().get(..length).unwrap_or_default();
        for (at, c) in part.char_indices() {
            match c {
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                '\'' => self.out.push_str("&apos;"),
                '&' if !is_reference(part.get(at..).unwrap_or_default()) => self.out.push_str("&amp;"),
                c => self.out.push(c),
            }
        }
        self.at += length;
    }
}

/// Whether a start or end tag begins here.
fn begins_tag(text: &str) -> bool {
    let name = text.strip_prefix("</").or(text.strip_prefix('<'));
    name.and_then(|name| name.chars().next()).is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
}

fn begins_markup(text: &str) -> bool {
    text.starts_with("<!") || text.starts_with("<?")
}

/// Whether a reference begins here. One to an unknown entity or character is reported when the XML is read.
fn is_reference(text: &str) -> bool {
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'#';
    let length = text.bytes().take(34).skip(1).take_while(is_of_name).count();
    let begins = text.as_bytes().get(1).is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'#');
    begins && text.as_bytes().get(1 + length) == Some(&b';')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import_apim::source::InputFile;

    fn escape(text: &str) -> Result<String, String> {
        let file = InputFile { name: "p.xml".to_owned(), bytes: text.into() };
        escape_expressions(&SourceText::new(0, &file).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn expressions_are_escaped_and_the_rest_stays() {
        for (text, expected) in [
            (r#"<a b="@(x["k"] && y < 2)"/>"#, r#"<a b="@(x[&quot;k&quot;] &amp;&amp; y &lt; 2)"/>"#),
            (r#"<a b='@(f("k"))' c="d"/>"#, r#"<a b='@(f(&quot;k&quot;))' c="d"/>"#),
            (r#"<a b="@(x[&quot;k&quot;])"/>"#, r#"<a b="@(x[&quot;k&quot;])"/>"#),
            ("<v> @(a > b) </v>", "<v> @(a &gt; b) </v>"),
            ("<!-- @(\" < --><a/>", "<!-- @(\" < --><a/>"),
            ("<v>1 < 2 & 3</v>", "<v>1 &lt; 2 &amp; 3</v>"),
            ("<v>user@(x</v>", "<v>user@(x</v>"),
            ("<v><![CDATA[@( <x>]]></v>", "<v><![CDATA[@( <x>]]></v>"),
            (
                "<a b=\"@{\n// it's\nreturn \"x\"; }\"/>",
                "<a b=\"@{\n// it&apos;s\nreturn &quot;x&quot;; }\"/>",
            ),
        ] {
            assert_eq!(escape(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_does_not_end_is_reported_where_it_begins() {
        for (text, expected) in [
            ("<a>\n<!-- x", "p.xml:2: a comment begins here that does not end"),
            ("<a\nb=\"@(x\n", "p.xml:2: an expression begins here that does not end"),
            ("<a\nb=\"x\n", "p.xml:2: the value of an attribute begins here that does not end"),
            ("\n<a b", "p.xml:2: a tag begins here that does not end"),
            ("<v>\n@{ \"</v>", "p.xml:2: an expression begins here that does not end"),
            ("<![CDATA[", "p.xml:1: a CDATA section begins here that does not end"),
            ("<?xml", "p.xml:1: a processing instruction begins here that does not end"),
            (
                "<!DOCTYPE a [<!ENTITY b \"c\">]>",
                "p.xml:1: has a document type; a policy has none, and no entities",
            ),
        ] {
            assert_eq!(escape(text).unwrap_err(), expected);
        }
    }
}
