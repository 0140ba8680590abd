//! Reads the headers of a form's part: the name of the field, and that of the file (RFC 7578, section 4.2).
//! Their bytes may be of any encoding, since clients write the names of files as their system has them.

use std::borrow::Cow;

use super::header_parameters::HeaderParameters;
use crate::azure::json_text::text_from_bytes;

/// Why the headers of a part are rejected.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PartHeadError {
    /// They cannot be parsed, or repeat a header or parameter.
    Malformed,
    /// The part has a significant name for one parser and another name for another.
    AmbiguousName,
}

/// What `Content-Disposition` says about a part. What is not UTF-8 is U+FFFD.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PartDisposition {
    pub(super) name: String,
    /// The file's name, if the part is a file; empty if only `filename*` is given.
    pub(super) filename: Option<String>,
}

/// Reads the headers of a part; `None` for a part without a name. `significant_names` are those that must
/// not be read from a part by one parser and overlooked by another.
///
/// # Errors
/// See [`PartHeadError`].
pub(super) fn parse_content_disposition(
    head: &[u8],
    significant_names: &[&str],
) -> Result<Option<PartDisposition>, PartHeadError> {
    let head = text_from_bytes(head);
    let mut disposition = None;
    for line in head.split("\r\n").filter(|line| !line.is_empty()) {
        // Parsers differ on obsolete line folding: one that ignores it would miss a parameter.
        let (header, value) = line.split_once(':').ok_or(PartHeadError::Malformed)?;
        if line.starts_with([' ', '\t']) || line.contains(['\r', '\n', '\0']) || !header.is_ascii() {
            return Err(PartHeadError::Malformed);
        }
        if header.trim_end().eq_ignore_ascii_case("content-disposition")
            && disposition.replace(value).is_some()
        {
            return Err(PartHeadError::Malformed);
        }
    }
    let Some((_, parameters)) = disposition.and_then(|value| value.split_once(';')) else {
        return Ok(None);
    };
    let (mut name, mut filename, mut has_extended_filename) = (None, None, false);
    for (key, value) in HeaderParameters::new(parameters) {
        let slot = match () {
            () if key.eq_ignore_ascii_case("name") => &mut name,
            () if key.eq_ignore_ascii_case("filename") => &mut filename,
            () => {
                has_extended_filename |= key.eq_ignore_ascii_case("filename*");
                continue;
            }
        };
        if slot.replace(value).is_some() {
            return Err(PartHeadError::Malformed);
        }
    }
    if is_significant_name_ambiguous(name.as_deref(), parameters, significant_names) {
        return Err(PartHeadError::AmbiguousName);
    }
    let filename = filename.map(Cow::into_owned).or_else(|| has_extended_filename.then(String::new));
    Ok(name.map(|name| PartDisposition { name: name.into_owned(), filename }))
}

/// Whether `name`, as it was read from `parameters`, is another one for other parsers, and either is
/// significant: because of its backslashes, or of those before it, or of broken characters that are dropped.
fn is_significant_name_ambiguous(name: Option<&str>, parameters: &str, significant_names: &[&str]) -> bool {
    if !parameters.contains(['\\', char::REPLACEMENT_CHARACTER]) {
        return false;
    }
    let names_without_escapes: Vec<_> = HeaderParameters::without_escapes(parameters)
        .filter_map(|(key, value)| key.eq_ignore_ascii_case("name").then_some(value))
        .collect();
    let is_certain = names_without_escapes.iter().map(|name| &**name).eq(name)
        && !name.is_some_and(|name| name.contains(char::REPLACEMENT_CHARACTER));
    let is_significant = |name: &str| {
        let name = name.replace(char::REPLACEMENT_CHARACTER, "");
        significant_names.iter().any(|significant| significant.eq_ignore_ascii_case(&name))
    };
    !is_certain
        && (name.is_some_and(is_significant) || names_without_escapes.iter().any(|name| is_significant(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[u8]) -> Result<Option<(String, Option<String>)>, PartHeadError> {
        let head = [b"Content-Disposition: form-data; ", parameters].concat();
        let parsed = parse_content_disposition(&head, &["model"])?;
        Ok(parsed.map(|PartDisposition { name, filename }| (name, filename)))
    }

    #[test]
    fn names_in_any_encoding_are_read() {
        for (parameters, name, filename) in [
            (&b"name=\"file\"; filename=\"gr\xfc\xdfe.wav\""[..], "file", Some("gr\u{fffd}\u{fffd}e.wav")),
            (b"filename=\"gr\xfc\xdfe.wav\"; name=\"model\"", "model", Some("gr\u{fffd}\u{fffd}e.wav")),
            // A Shift_JIS character whose second byte is a backslash, also before the closing quote.
            (b"name=\"file\"; filename=\"\x95\x5c.wav\"", "file", Some("\u{fffd}.wav")),
            (b"name=\"file\"; filename=\"\x95\x5c\"", "file", Some("\u{fffd}\"")),
            (b"name=\"a\\\"b\"; filename=\"c\\\"d\"", "a\"b", Some("c\"d")),
            (b"name=\"gr\xfcn\"", "gr\u{fffd}n", None),
            (b"name=file; filename*=iso-8859-1''gr%FC", "file", Some("")),
        ] {
            let expected = Some((name.to_owned(), filename.map(str::to_owned)));
            assert_eq!(parse(parameters), Ok(expected), "{}", parameters.escape_ascii());
        }
        assert_eq!(parse(b"filename=\"\xff\""), Ok(None));
        let other_header = b"Content-Type: text/pl\xe4in\r\nContent-Disposition: form-data; name=a";
        assert!(parse_content_disposition(other_header, &[]).is_ok_and(|parsed| parsed.is_some()));
    }

    #[test]
    fn names_that_may_be_significant_for_another_parser_are_rejected() {
        for parameters in [
            // Of two parsers, one sees a closing quote where the other sees an escaped one.
            &b"filename=\"\x95\x5c\"; name=\"model\""[..],
            b"name=\"file\"; filename=\"a\\\"; name=\"model\"",
            b"filename=\"a\\\"; name=\"model\"; x=\"\"; name=\"file\"",
            b"name=\"mod\\el\"",
            b"name=\"\\model\"",
            // Some parsers drop what is not of their encoding.
            b"name=\"mod\xffel\"",
            b"name=\"\xef\xbf\xbdmodel\"",
        ] {
            assert_eq!(parse(parameters), Err(PartHeadError::AmbiguousName), "{}", parameters.escape_ascii());
        }
        for head in [&b"Content-Disposition\xff: form-data; name=a"[..], b"X: \xff\0", b"X: a\n\xff"] {
            assert_eq!(parse_content_disposition(head, &[]), Err(PartHeadError::Malformed));
        }
    }
}
