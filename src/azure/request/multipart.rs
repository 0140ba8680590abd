//! Parses a `multipart/form-data` body (RFC 7578, RFC 2046) without copying it: its `model`, text
//! fields and files. Anything that two parsers could read differently is an error. The time is linear
//! in the size of the body.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

use super::content_disposition::{PartDisposition, PartHeadError, parse_content_disposition};
use super::edit::BodyEdit;
use super::header_parameters::HeaderParameters;
use super::model_field::ModelField;
use crate::names::DeploymentName;

/// The maximum number of parts in a form.
pub const MAX_FORM_PARTS: usize = 1_000;
/// The maximum size of a part's headers.
const MAX_PART_HEAD_BYTES: usize = 16 * 1024;

/// Why a form is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// The boundary does not occur in the body.
    #[error("the form's boundary does not occur in the body")]
    BoundaryNotFound,
    /// The body ends before the closing boundary.
    #[error("the form ends before its closing boundary")]
    Truncated,
    /// More than [`MAX_FORM_PARTS`] parts.
    #[error("the form has more than {MAX_FORM_PARTS} parts")]
    TooManyParts,
    /// A part's headers cannot be parsed, are too long, or repeat a header or parameter.
    #[error("a part of the form has malformed or too long headers")]
    MalformedPartHead,
    /// A field that only some parsers would read as `model`, `stream` or `session`.
    #[error("a part of the form has a name that can be read in two ways")]
    AmbiguousName,
    /// A boundary that only some parsers would recognise.
    #[error("the form has a boundary that is not on its own line, ended by CR LF")]
    AmbiguousBoundary,
    /// A field that may appear only once is repeated.
    #[error("the form has more than one `{0}`")]
    DuplicateField(&'static str),
}

/// A text field of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormTextField {
    /// The name of the field. What is not UTF-8 in it is U+FFFD.
    pub name: String,
    /// Where its content is in the body.
    pub content_range: Range<usize>,
}

/// A file in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormFileField {
    /// The name of the field, likewise.
    pub name: String,
    /// The file's name, likewise; empty if only `filename*` is given.
    pub filename: String,
    /// Where its content is in the body.
    pub content_range: Range<usize>,
}

/// What the balancer has to know about a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormFacts {
    /// The field `model`.
    pub model: ModelField,
    /// Whether the field `stream` is `true`.
    pub wants_stream: bool,
    /// The fields that are not files, in order.
    pub text_fields: Vec<FormTextField>,
    /// The files, in order.
    pub file_fields: Vec<FormFileField>,
}

impl FormFacts {
    /// Parses a complete form. A bad `model` is not an error here; [`ModelField::deployment`] reports
    /// it.
    ///
    /// # Errors
    /// See [`FormError`].
    pub fn parse(body: &[u8], boundary: &str) -> Result<Self, FormError> {
        let mut form = Self {
            model: ModelField::Absent,
            wants_stream: false,
            text_fields: Vec::new(),
            file_fields: Vec::new(),
        };
        let needle = format!("--{boundary}");
        let delimiters = DelimiterFinder { finder: memmem::Finder::new(needle.as_bytes()), body };
        let mut delimiter = delimiters.next_delimiter(0, true)?.ok_or(FormError::BoundaryNotFound)?;
        let mut has_stream = false;
        for _ in 0..=MAX_FORM_PARTS {
            let Some(part_start) = delimiter.next_part_start else { return Ok(form) };
            let (head, content_start) = split_part_head(body, part_start)?;
            let next = delimiters.next_delimiter(content_start, false)?.ok_or(FormError::Truncated)?;
            let content_range = content_start..next.preceding_content_end;
            let disposition = parse_content_disposition(head, &["model", "stream", "session"]).map_err(
                |error| match error {
                    PartHeadError::Malformed => FormError::MalformedPartHead,
                    PartHeadError::AmbiguousName => FormError::AmbiguousName,
                },
            )?;
            if let Some(PartDisposition { name, filename }) = disposition {
                let value = body.get(content_range.clone()).unwrap_or_default();
                if name.eq_ignore_ascii_case("model") {
                    if form.model != ModelField::Absent {
                        return Err(FormError::DuplicateField("model"));
                    }
                    form.model = parse_model_value(value, &content_range);
                } else if name.eq_ignore_ascii_case("stream") {
                    if std::mem::replace(&mut has_stream, true) {
                        return Err(FormError::DuplicateField("stream"));
                    }
                    form.wants_stream = value.trim_ascii().eq_ignore_ascii_case(b"true");
                }
                match filename {
                    Some(filename) => form.file_fields.push(FormFileField { name, filename, content_range }),
                    None => form.text_fields.push(FormTextField { name, content_range }),
                }
            }
            delimiter = next;
        }
        Err(FormError::TooManyParts)
    }

    /// The edit that replaces `model` by the upstream deployment's name; `None` if they are equal.
    pub fn rename_model_edit(&self, upstream: &DeploymentName) -> Option<BodyEdit> {
        let range = self.model.range_to_replace(upstream)?;
        Some(BodyEdit { range, replacement: Bytes::copy_from_slice(upstream.as_str().as_bytes()) })
    }
}

/// Whether a `Content-Type` value is `multipart/form-data`.
pub fn is_multipart_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// The boundary in a form's `Content-Type` (1 to 70 bytes, RFC 2046, section 5.1.1).
pub fn boundary_parameter(content_type: &str) -> Option<Cow<'_, str>> {
    if !is_multipart_form(content_type) {
        return None;
    }
    let (_, parameters) = content_type.split_once(';')?;
    let boundary =
        HeaderParameters::new(parameters).find(|(name, _)| name.eq_ignore_ascii_case("boundary"))?.1;
    let is_valid_length = (1..=70).contains(&boundary.len()) && !boundary.ends_with(' ');
    (is_valid_length && boundary.bytes().all(|b| (b' '..=b'~').contains(&b))).then_some(boundary)
}

fn parse_model_value(value: &[u8], range: &Range<usize>) -> ModelField {
    match std::str::from_utf8(value).map(DeploymentName::parse) {
        Ok(Ok(name)) => ModelField::Named { name, range: range.clone() },
        _ => ModelField::InvalidName,
    }
}

/// A delimiter: the line break before it, two dashes, the boundary and the rest of the line.
struct DelimiterLine {
    /// Where the preceding content ends. The line break before the dashes belongs to the delimiter
    /// (RFC 2046, section 5.1.1).
    preceding_content_end: usize,
    /// Where the next part begins; `None` for the closing delimiter.
    next_part_start: Option<usize>,
}

struct DelimiterFinder<'a> {
    finder: memmem::Finder<'a>,
    body: &'a [u8],
}

impl DelimiterFinder<'_> {
    /// The next delimiter at or after `content_start`, which is the start of a part's content or, if
    /// `in_preamble`, of the body. A line can begin like the boundary and go on: it then belongs to a
    /// nested form with a longer boundary, and the search continues.
    fn next_delimiter(
        &self,
        content_start: usize,
        in_preamble: bool,
    ) -> Result<Option<DelimiterLine>, FormError> {
        let mut search_from = content_start;
        loop {
            let Some(offset) = self.body.get(search_from..).and_then(|rest| self.finder.find(rest)) else {
                return Ok(None);
            };
            let dashes = search_from + offset;
            let preceding = self.body.get(content_start..dashes).unwrap_or_default();
            let needle_end = dashes + self.finder.needle().len();
            match (LineStart::classify(preceding, in_preamble), self.classify_line_end(needle_end)) {
                (LineStart::Valid(line_break_len), LineEnd::Valid(next_part_start)) => {
                    return Ok(Some(DelimiterLine {
                        preceding_content_end: dashes - line_break_len,
                        next_part_start,
                    }));
                }
                (LineStart::MidLine, _) | (_, LineEnd::LongerBoundary) => search_from = dashes + 1,
                _ => return Err(FormError::AmbiguousBoundary),
            }
        }
    }

    fn classify_line_end(&self, needle_end: usize) -> LineEnd {
        let rest = self.body.get(needle_end..).unwrap_or_default();
        let is_closing = rest.starts_with(b"--");
        let rest = if is_closing { rest.get(2..).unwrap_or_default() } else { rest };
        let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        match rest.get(padding..).unwrap_or_default() {
            [b'\r', b'\n', ..] if !is_closing => LineEnd::Valid(Some(needle_end + padding + 2)),
            [] | [b'\r', b'\n', ..] if is_closing => LineEnd::Valid(None),
            [] | [b'\r' | b'\n', ..] => LineEnd::Ambiguous,
            _ if is_closing => LineEnd::Ambiguous,
            _ => LineEnd::LongerBoundary,
        }
    }
}

/// What precedes the dashes.
enum LineStart {
    /// A line break of this many bytes; 0 at the start of the body.
    Valid(usize),
    /// A lone CR or LF, or the line break that ends the part's headers.
    Ambiguous,
    /// Other bytes. This is not a delimiter.
    MidLine,
}

impl LineStart {
    fn classify(preceding: &[u8], in_preamble: bool) -> Self {
        match preceding {
            [] if in_preamble => Self::Valid(0),
            [.., b'\r', b'\n'] => Self::Valid(2),
            [] | [.., b'\r' | b'\n'] => Self::Ambiguous,
            _ => Self::MidLine,
        }
    }
}

/// What follows the boundary.
enum LineEnd {
    /// A line break, with the start of the next part; `None` for the closing delimiter.
    Valid(Option<usize>),
    /// Something that a lenient parser would accept.
    Ambiguous,
    /// The rest of a longer boundary.
    LongerBoundary,
}

/// A part's headers, and where its content begins.
fn split_part_head(body: &[u8], start: usize) -> Result<(&[u8], usize), FormError> {
    let rest = body.get(start..).unwrap_or_default();
    if rest.starts_with(b"\r\n") {
        return Ok((&[], start + 2));
    }
    let searched = rest.get(..MAX_PART_HEAD_BYTES).unwrap_or(rest);
    let error = if searched.len() < rest.len() { FormError::MalformedPartHead } else { FormError::Truncated };
    let end = memmem::find(searched, b"\r\n\r\n").ok_or(error)?;
    Ok((rest.get(..end).unwrap_or_default(), start + end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn build_form(parts: &[(&str, &str)]) -> String {
        let part = |(head, content): &(&str, &str)| format!("--B\r\n{head}\r\n\r\n{content}\r\n");
        parts.iter().map(part).chain(["--B--\r\n".to_owned()]).collect()
    }

    fn disposition_of(name: &str) -> String {
        format!("Content-Disposition: form-data; name=\"{name}\"")
    }

    #[test]
    fn the_boundary_is_read_from_the_content_type() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data ;charset=x; BOUNDARY=\"a b;c\"", Some("a b;c")),
            ("multipart/form-data; boundary=\"a\\\"b\"", Some("a\"b")),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data", None),
            ("multipart/mixed; boundary=abc", None),
            ("application/json", None),
        ] {
            assert_eq!(boundary_parameter(content_type).as_deref(), expected, "{content_type}");
        }
        assert_eq!(boundary_parameter(&format!("multipart/form-data; boundary={}", "x".repeat(71))), None);
    }

    #[test]
    fn text_fields_and_files_are_found() {
        let body = "preamble\r\n".to_owned()
            + &build_form(&[
                (
                    "content-disposition: form-data; name=\"file\"; filename=\"a\\\"b.wav\"\r\nContent-Type: audio/wav",
                    "\r\n--Bx\r\n--\0\u{ff}",
                ),
                (&disposition_of("model"), "whisper"),
                ("Content-Disposition: form-data;name = stream", "True"),
                (
                    "Content-Disposition: form-data; name*=UTF-8''model; name=\"timestamp_granularities[]\"",
                    "word",
                ),
                ("Content-Type: text/plain", "nameless"),
                ("Content-Disposition: form-data; name=image; filename*=UTF-8''x.png", ""),
            ]);
        let form = FormFacts::parse(body.as_bytes(), "B").unwrap();
        assert_eq!(form.model.deployment().unwrap().unwrap().as_str(), "whisper");
        assert!(form.wants_stream);
        let texts: Vec<_> =
            form.text_fields.iter().map(|f| (f.name.as_str(), &body[f.content_range.clone()])).collect();
        assert_eq!(texts, [("model", "whisper"), ("stream", "True"), ("timestamp_granularities[]", "word")]);
        let files: Vec<_> = form
            .file_fields
            .iter()
            .map(|f| (f.name.as_str(), f.filename.as_str(), &body[f.content_range.clone()]))
            .collect();
        assert_eq!(files, [("file", "a\"b.wav", "\r\n--Bx\r\n--\0\u{ff}"), ("image", "", "")]);
        let edit = form.rename_model_edit(&DeploymentName::parse("up").unwrap()).unwrap();
        let after = crate::azure::apply_edits(&Bytes::from(body.clone()), &[edit]).concat();
        assert_eq!(String::from_utf8(after).unwrap(), body.replacen("whisper", "up", 1));
        assert_eq!(form.rename_model_edit(&DeploymentName::parse("whisper").unwrap()), None);
    }

    #[test]
    fn malformed_and_ambiguous_forms_are_rejected() {
        let model = disposition_of("model");
        let rows = [
            (String::new(), FormError::BoundaryNotFound),
            ("--Bx\r\n".into(), FormError::BoundaryNotFound),
            ("--B\r\n".into(), FormError::Truncated),
            ("--B".into(), FormError::AmbiguousBoundary),
            ("--B\n".into(), FormError::AmbiguousBoundary),
            (build_form(&[(&model, "a\n--B\r\nhidden")]), FormError::AmbiguousBoundary),
            (build_form(&[(&model, "--B\r\nhidden")]), FormError::AmbiguousBoundary),
            (build_form(&[(&model, "a\r\n--B--x")]), FormError::AmbiguousBoundary),
            (format!("--B\r\n{model}\r\n\r\nx"), FormError::Truncated),
            (build_form(&[(&model, "a"), (&model, "a")]), FormError::DuplicateField("model")),
            (build_form(&[(&model, "a"), (&disposition_of("Mod\\el"), "b")]), FormError::AmbiguousName),
            (
                build_form(&[(&disposition_of("stream"), "a"), (&disposition_of("stream"), "b")]),
                FormError::DuplicateField("stream"),
            ),
            (
                build_form(&[("Content-Disposition: form-data; name=a; name=b", "")]),
                FormError::MalformedPartHead,
            ),
            (build_form(&[(&format!("{model}\r\n{model}"), "")]), FormError::MalformedPartHead),
            (
                build_form(&[("Content-Disposition: form-data;\r\n name=model", "x")]),
                FormError::MalformedPartHead,
            ),
            (build_form(&[("no colon", "")]), FormError::MalformedPartHead),
            (
                build_form(&[(&model, "a"), (&disposition_of("MODEL"), "b")]),
                FormError::DuplicateField("model"),
            ),
            (build_form(&[(&format!("X: {}", "x".repeat(20_000)), "")]), FormError::MalformedPartHead),
            (build_form(&vec![(model.replace("model", "x").as_str(), ""); 1_001]), FormError::TooManyParts),
        ];
        for (body, expected) in rows {
            let cut = body.chars().take(120).collect::<String>();
            assert_eq!(FormFacts::parse(body.as_bytes(), "B").unwrap_err(), expected, "{cut}");
        }
        assert!(
            FormFacts::parse(build_form(&vec![(disposition_of("x").as_str(), ""); 1_000]).as_bytes(), "B")
                .is_ok()
        );
        assert!(
            FormFacts::parse(build_form(&[(&model, "a b")]).as_bytes(), "B")
                .unwrap()
                .model
                .deployment()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn contents_are_found_byte_for_byte(contents in proptest::collection::vec("(\r\n|-|B|x|--|\u{e9}){0,6}", 0..6)) {
            prop_assume!(contents.iter().all(|c| !c.contains("--B")));
            let names: Vec<_> = (0..contents.len()).map(|n| disposition_of(&format!("f{n}"))).collect();
            let parts: Vec<_> = names.iter().zip(&contents).map(|(n, c)| (n.as_str(), c.as_str())).collect();
            let body = build_form(&parts);
            let form = FormFacts::parse(body.as_bytes(), "B").unwrap();
            let found_contents: Vec<_> = form.text_fields.iter().map(|f| body[f.content_range.clone()].to_owned()).collect();
            prop_assert_eq!(found_contents, contents);
        }

        #[test]
        fn file_names_may_be_in_any_encoding(filename in proptest::collection::vec(any::<u8>(), 0..12), is_first: bool) {
            prop_assume!(!filename.iter().any(|byte| b"\r\n\0\"\\".contains(byte)));
            let (name, filename) = (&b"; name=\"file\""[..], [b"; filename=\"", &filename[..], b"\""].concat());
            let parameters = if is_first { [&filename, name].concat() } else { [name, &filename].concat() };
            let body = [
                b"--B\r\nContent-Disposition: form-data", &parameters[..], b"\r\n\r\nRIFF\xff\r\n",
                build_form(&[(&disposition_of("model"), "whisper")]).as_bytes(),
            ].concat();
            let form = FormFacts::parse(&body, "B").unwrap();
            prop_assert_eq!(form.model.deployment().unwrap().unwrap().as_str(), "whisper");
            let [file] = &form.file_fields[..] else { panic!("expected one file: {form:?}") };
            prop_assert_eq!((&*file.name, &body[file.content_range.clone()]), ("file", &b"RIFF\xff"[..]));
        }

        #[test]
        fn arbitrary_forms_never_panic(body in "(--B|\r\n|Content-Disposition: form-data; name=|model|\"|\\\\|;|=|:|-| |\u{e9}){0,30}", content_type in "(multipart/form-data|;|boundary|=|\"|\\\\| |a){0,12}") {
            let _ = (FormFacts::parse(body.as_bytes(), "B"), boundary_parameter(&content_type));
        }
    }
}
