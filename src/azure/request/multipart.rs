//! A `multipart/form-data` body, looked at without copying: which deployment it names, which
//! text fields and files it has. Strict (RFC 7578 over RFC 2046): what two readers could
//! understand differently is an error. Searching is by substring, so linear in the body.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

use super::body::{Edit, Model};
use crate::names::Deployment;

/// Most parts a form may have.
pub const PARTS_MAX: usize = 1_000;
/// Most bytes the head of a part may have.
const HEAD_MAX: usize = 16 * 1024;

/// Why a form cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadForm {
    /// No part at all: the boundary does not occur.
    #[error("the form's boundary does not occur in the body")]
    NoParts,
    /// It ends before its closing boundary.
    #[error("the form ends before its closing boundary")]
    Truncated,
    /// More parts than we are ready to look at.
    #[error("the form has more than {PARTS_MAX} parts")]
    TooManyParts,
    /// A part's head is unreadable, too long, or says a thing twice.
    #[error("a part of the form has a malformed head")]
    Head,
    /// A boundary that only some readers would take for one.
    #[error("the form has a boundary that is not on a line of its own, ended by CR LF")]
    Boundary,
    /// A field that may occur once occurs again.
    #[error("the form has more than one `{0}`")]
    Duplicate(&'static str),
}

/// A text field of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its content's bytes within the body.
    pub range: Range<usize>,
}

/// A file in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The field's name.
    pub name: String,
    /// The file's name; empty if only an extended one was given.
    pub filename: String,
    /// Its content's bytes within the body.
    pub range: Range<usize>,
}

/// What the balancer has to know of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormProbe {
    /// The field `model`.
    pub model: Model,
    /// Whether the field `stream` is `true`.
    pub stream: bool,
    /// All fields that are no files, in order.
    pub texts: Vec<Field>,
    /// All files, in order.
    pub files: Vec<File>,
}

impl FormProbe {
    /// Puts the backend's name in place of the client's; `None` when they are spelled alike.
    pub fn rename(&self, upstream: &Deployment) -> Option<Edit> {
        let range = self.model.differing(upstream)?;
        Some((range, Bytes::copy_from_slice(upstream.as_str().as_bytes())))
    }
}

/// Whether a `Content-Type` is a form's.
pub fn is_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// The boundary a form's `Content-Type` names (1 to 70 bytes, RFC 2046, section 5.1.1).
pub fn boundary(content_type: &str) -> Option<Cow<'_, str>> {
    if !is_form(content_type) {
        return None;
    }
    let (_, parameters) = content_type.split_once(';')?;
    let found = Parameters(parameters).find(|(name, _)| name.eq_ignore_ascii_case("boundary"))?.1;
    let fits = (1..=70).contains(&found.len()) && !found.ends_with(' ');
    (fits && found.bytes().all(|b| (b' '..=b'~').contains(&b))).then_some(found)
}

/// Reads the heads of all parts of a complete form.
///
/// # Errors
/// [`BadForm`]; a `model` that is no deployment name is reported by [`Model::deployment`].
pub fn probe(body: &[u8], boundary: &str) -> Result<FormProbe, BadForm> {
    let mut form = FormProbe { model: Model::Absent, stream: false, texts: Vec::new(), files: Vec::new() };
    let dashed = format!("--{boundary}");
    let delimiters = Delimiters { finder: memmem::Finder::new(dashed.as_bytes()), body };
    let mut at = delimiters.after(0, true)?.ok_or(BadForm::NoParts)?;
    let mut seen_stream = false;
    for _ in 0..=PARTS_MAX {
        let Some(start) = at.part else { return Ok(form) };
        let (head, content) = head(body, start)?;
        let next = delimiters.after(content, false)?.ok_or(BadForm::Truncated)?;
        let range = content..next.start;
        if let Some((name, filename)) = disposition(head)? {
            let value = body.get(range.clone()).unwrap_or_default();
            if name.eq_ignore_ascii_case("model") {
                if form.model != Model::Absent {
                    return Err(BadForm::Duplicate("model"));
                }
                form.model = read_model(value, &range);
            } else if name.eq_ignore_ascii_case("stream") {
                if std::mem::replace(&mut seen_stream, true) {
                    return Err(BadForm::Duplicate("stream"));
                }
                form.stream = value.trim_ascii().eq_ignore_ascii_case(b"true");
            }
            match filename {
                Some(filename) => form.files.push(File { name, filename, range }),
                None => form.texts.push(Field { name, range }),
            }
        }
        at = next;
    }
    Err(BadForm::TooManyParts)
}

fn read_model(value: &[u8], range: &Range<usize>) -> Model {
    match std::str::from_utf8(value).map(Deployment::parse) {
        Ok(Ok(name)) => Model::Named { name, range: range.clone() },
        _ => Model::BadName,
    }
}

/// A line of dashes and boundary.
struct Delimiter {
    /// Where the content before it ends: at the line break that belongs to the delimiter.
    start: usize,
    /// Where the next part begins; `None` after the closing delimiter.
    part: Option<usize>,
}

struct Delimiters<'a> {
    finder: memmem::Finder<'a>,
    body: &'a [u8],
}

impl Delimiters<'_> {
    /// The next delimiter after `from`, where a content begins, or else a preamble. Other
    /// boundaries may begin like ours, so that the rest of the line decides.
    fn after(&self, from: usize, preamble: bool) -> Result<Option<Delimiter>, BadForm> {
        let mut searched = from;
        loop {
            let Some(found) = self.body.get(searched..).and_then(|rest| self.finder.find(rest)) else {
                return Ok(None);
            };
            let dashes = searched + found;
            let before = self.body.get(from..dashes).unwrap_or_default();
            let end = dashes + self.finder.needle().len();
            match (LineStart::of(before, preamble), self.line_end(end)) {
                (LineStart::Clean(line_break), LineEnd::Clean(part)) => {
                    return Ok(Some(Delimiter { start: dashes - line_break, part }));
                }
                (LineStart::Inside, _) | (_, LineEnd::Other) => searched = dashes + 1,
                _ => return Err(BadForm::Boundary),
            }
        }
    }

    fn line_end(&self, end: usize) -> LineEnd {
        let rest = self.body.get(end..).unwrap_or_default();
        let closing = rest.starts_with(b"--");
        let rest = if closing { rest.get(2..).unwrap_or_default() } else { rest };
        let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        match rest.get(padding..).unwrap_or_default() {
            [b'\r', b'\n', ..] if !closing => LineEnd::Clean(Some(end + padding + 2)),
            [] | [b'\r', b'\n', ..] if closing => LineEnd::Clean(None),
            [] | [b'\r' | b'\n', ..] => LineEnd::Unclear,
            _ if closing => LineEnd::Unclear,
            _ => LineEnd::Other,
        }
    }
}

/// What stands before the dashes.
enum LineStart {
    /// A line break of so many bytes, or the very start of the body.
    Clean(usize),
    /// Half a line break, or the head's.
    Unclear,
    /// Other bytes: no delimiter.
    Inside,
}

impl LineStart {
    fn of(before: &[u8], preamble: bool) -> Self {
        match before {
            [] if preamble => Self::Clean(0),
            [.., b'\r', b'\n'] => Self::Clean(2),
            [] | [.., b'\r' | b'\n'] => Self::Unclear,
            _ => Self::Inside,
        }
    }
}

/// What stands after the boundary.
enum LineEnd {
    /// A line break, and with it the start of the next part, if there is one.
    Clean(Option<usize>),
    /// Something that a lenient reader would let pass.
    Unclear,
    /// More of another boundary.
    Other,
}

/// A part's head, and where its content begins.
fn head(body: &[u8], start: usize) -> Result<(&[u8], usize), BadForm> {
    let rest = body.get(start..).unwrap_or_default();
    if rest.starts_with(b"\r\n") {
        return Ok((&[], start + 2));
    }
    let bounded = rest.get(..HEAD_MAX).unwrap_or(rest);
    let problem = if bounded.len() < rest.len() { BadForm::Head } else { BadForm::Truncated };
    let end = memmem::find(bounded, b"\r\n\r\n").ok_or(problem)?;
    Ok((rest.get(..end).unwrap_or_default(), start + end + 4))
}

type Named = (String, Option<String>);

/// Name and file name of a part; `None` for a part without a name.
fn disposition(head: &[u8]) -> Result<Option<Named>, BadForm> {
    let head = std::str::from_utf8(head).map_err(|_| BadForm::Head)?;
    let mut found = None;
    for line in head.split("\r\n").filter(|line| !line.is_empty()) {
        // A folded line (obsolete) could hide a parameter from one of two readers.
        let (header, value) = line.split_once(':').ok_or(BadForm::Head)?;
        if line.starts_with([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
            return Err(BadForm::Head);
        }
        if header.trim_end().eq_ignore_ascii_case("content-disposition") && found.replace(value).is_some() {
            return Err(BadForm::Head);
        }
    }
    let Some((_, parameters)) = found.and_then(|value| value.split_once(';')) else {
        return Ok(None);
    };
    let (mut name, mut filename, mut extended) = (None, None, false);
    for (key, value) in Parameters(parameters) {
        let slot = match () {
            () if key.eq_ignore_ascii_case("name") => &mut name,
            () if key.eq_ignore_ascii_case("filename") => &mut filename,
            () => {
                extended |= key.eq_ignore_ascii_case("filename*");
                continue;
            }
        };
        if slot.replace(value.into_owned()).is_some() {
            return Err(BadForm::Head);
        }
    }
    let filename = filename.or_else(|| extended.then(String::new));
    Ok(name.map(|name| (name, filename)))
}

/// The `; name=value` pairs of a header, quoted strings understood (RFC 9110, section 5.6.6).
struct Parameters<'a>(&'a str);

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a str, Cow<'a, str>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0 = self.0.trim_start_matches([';', ' ', '\t']);
        let end = self.0.find(['=', ';']).unwrap_or(self.0.len());
        if self.0.is_empty() {
            return None;
        }
        let (name, rest) = self.0.split_at(end);
        let Some(value) = rest.strip_prefix('=') else {
            self.0 = rest;
            return Some((name.trim(), Cow::Borrowed("")));
        };
        let value = value.trim_start_matches([' ', '\t']);
        let Some(quoted) = value.strip_prefix('"') else {
            let end = value.find(';').unwrap_or(value.len());
            let (value, rest) = value.split_at(end);
            self.0 = rest;
            return Some((name.trim(), Cow::Borrowed(value.trim())));
        };
        let (value, rest) = unquote(quoted);
        // Between a closing quote and the next semicolon nothing is said.
        self.0 = rest.split_at(rest.find(';').unwrap_or(rest.len())).1;
        Some((name.trim(), value))
    }
}

/// Reads up to the closing quote; an unclosed string ends with the header.
fn unquote(text: &str) -> (Cow<'_, str>, &str) {
    let plain = text.find(['"', '\\']).unwrap_or(text.len());
    let (before, rest) = text.split_at(plain);
    if !rest.starts_with('\\') {
        return (Cow::Borrowed(before), rest.strip_prefix('"').unwrap_or(rest));
    }
    let mut value = before.to_owned();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (Cow::Owned(value), chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn form(parts: &[(&str, &str)]) -> String {
        let part = |(head, content): &(&str, &str)| format!("--B\r\n{head}\r\n\r\n{content}\r\n");
        parts.iter().map(part).chain(["--B--\r\n".to_owned()]).collect()
    }

    fn named(name: &str) -> String {
        format!("Content-Disposition: form-data; name=\"{name}\"")
    }

    #[test]
    fn boundaries_are_read() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data ;charset=x; BOUNDARY=\"a b;c\"", Some("a b;c")),
            ("multipart/form-data; boundary=\"a\\\"b\"", Some("a\"b")),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data", None),
            ("multipart/mixed; boundary=abc", None),
            ("application/json", None),
        ] {
            assert_eq!(boundary(content_type).as_deref(), expected, "{content_type}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))), None);
    }

    #[test]
    fn fields_and_files_are_found() {
        let body = "preamble\r\n".to_owned()
            + &form(&[
                (
                    "content-disposition: form-data; name=\"file\"; filename=\"a\\\"b.wav\"\r\nContent-Type: audio/wav",
                    "\r\n--Bx\r\n--\0\u{ff}",
                ),
                (&named("model"), "whisper"),
                ("Content-Disposition: form-data;name = stream", "True"),
                (
                    "Content-Disposition: form-data; name*=UTF-8''model; name=\"timestamp_granularities[]\"",
                    "word",
                ),
                ("Content-Type: text/plain", "nameless"),
                ("Content-Disposition: form-data; name=image; filename*=UTF-8''x.png", ""),
            ]);
        let form = probe(body.as_bytes(), "B").unwrap();
        assert_eq!(form.model.deployment().unwrap().unwrap().as_str(), "whisper");
        assert!(form.stream);
        let texts: Vec<_> = form.texts.iter().map(|f| (f.name.as_str(), &body[f.range.clone()])).collect();
        assert_eq!(texts, [("model", "whisper"), ("stream", "True"), ("timestamp_granularities[]", "word")]);
        let files: Vec<_> = form
            .files
            .iter()
            .map(|f| (f.name.as_str(), f.filename.as_str(), &body[f.range.clone()]))
            .collect();
        assert_eq!(files, [("file", "a\"b.wav", "\r\n--Bx\r\n--\0\u{ff}"), ("image", "", "")]);
        let edit = form.rename(&Deployment::parse("up").unwrap()).unwrap();
        let after = crate::azure::request::body::edit(&Bytes::from(body.clone()), &[edit]).concat();
        assert_eq!(String::from_utf8(after).unwrap(), body.replacen("whisper", "up", 1));
        assert_eq!(form.rename(&Deployment::parse("whisper").unwrap()), None);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        let model = named("model");
        let rows = [
            (String::new(), BadForm::NoParts),
            ("--Bx\r\n".into(), BadForm::NoParts),
            ("--B\r\n".into(), BadForm::Truncated),
            ("--B".into(), BadForm::Boundary),
            ("--B\n".into(), BadForm::Boundary),
            (form(&[(&model, "a\n--B\r\nhidden")]), BadForm::Boundary),
            (form(&[(&model, "--B\r\nhidden")]), BadForm::Boundary),
            (form(&[(&model, "a\r\n--B--x")]), BadForm::Boundary),
            (format!("--B\r\n{model}\r\n\r\nx"), BadForm::Truncated),
            (form(&[(&model, "a"), (&model, "a")]), BadForm::Duplicate("model")),
            (form(&[(&model, "a"), (&named("Mod\\el"), "b")]), BadForm::Duplicate("model")),
            (form(&[(&named("stream"), "a"), (&named("stream"), "b")]), BadForm::Duplicate("stream")),
            (form(&[("Content-Disposition: form-data; name=a; name=b", "")]), BadForm::Head),
            (form(&[(&format!("{model}\r\n{model}"), "")]), BadForm::Head),
            (form(&[("Content-Disposition: form-data;\r\n name=model", "x")]), BadForm::Head),
            (form(&[("no colon", "")]), BadForm::Head),
            (form(&[(&format!("X: {}", "x".repeat(20_000)), "")]), BadForm::Head),
            (form(&vec![(model.replace("model", "x").as_str(), ""); 1_001]), BadForm::TooManyParts),
        ];
        for (body, expected) in rows {
            let cut = body.chars().take(120).collect::<String>();
            assert_eq!(probe(body.as_bytes(), "B").unwrap_err(), expected, "{cut}");
        }
        assert!(probe(form(&vec![(named("x").as_str(), ""); 1_000]).as_bytes(), "B").is_ok());
        assert!(probe(form(&[(&model, "a b")]).as_bytes(), "B").unwrap().model.deployment().is_err());
    }

    proptest! {
        #[test]
        fn contents_are_found_byte_for_byte(contents in proptest::collection::vec("(\r\n|-|B|x|--|\u{e9}){0,6}", 0..6)) {
            prop_assume!(contents.iter().all(|c| !c.contains("--B")));
            let names: Vec<_> = (0..contents.len()).map(|n| named(&format!("f{n}"))).collect();
            let parts: Vec<_> = names.iter().zip(&contents).map(|(n, c)| (n.as_str(), c.as_str())).collect();
            let body = form(&parts);
            let found = probe(body.as_bytes(), "B").unwrap();
            let found: Vec<_> = found.texts.iter().map(|f| body[f.range.clone()].to_owned()).collect();
            prop_assert_eq!(found, contents);
        }

        #[test]
        fn nothing_panics(body in "(--B|\r\n|Content-Disposition: form-data; name=|model|\"|\\\\|;|=|:|-| |\u{e9}){0,30}", content_type in "(multipart/form-data|;|boundary|=|\"|\\\\| |a){0,12}") {
            let _ = (probe(body.as_bytes(), "B"), boundary(&content_type));
        }
    }
}
