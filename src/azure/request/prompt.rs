//! The prompt of a request as text for the record, with images, audio and files replaced by their size
//! and SHA-256. Used only if prompts are recorded. Everything else is copied as the client sent it.

use std::borrow::Cow;
use std::ops::Range;

use super::multipart::{FormFacts, FormTextField};
use super::prompt_parts::{PROMPT_KEYS, PromptPartRanges};
use crate::azure::binary_data::{may_contain_binary_data, parse_data_url, replace_binary_data};
use crate::azure::json;
use crate::azure::json_text::{decode_content, replace_surrogate_halves, text_from_bytes};

/// The prompt of a JSON body: `messages`, else `input` (with `instructions`: an object of both), else
/// `prompt`. A string is returned without its quotes. `parts` saves a search, if it is known from
/// parsing the body. Broken characters and, after the prompt, broken JSON do not lose it.
pub fn prompt_text(body: &[u8], parts: Option<&PromptPartRanges>) -> Option<String> {
    let text_at = |range: Range<usize>| body.get(range).map(text_from_bytes);
    let values = match parts {
        Some(ranges) if ranges.iter().any(Option::is_some) => {
            ranges.clone().map(|range| range.and_then(text_at))
        }
        _ => find_prompt_parts(&text_from_bytes(body)).map(|raw| raw.map(Cow::Owned)),
    };
    let values = values.map(|raw| raw.filter(|raw| raw != "null"));
    let values = values.each_ref().map(|raw| raw.as_deref().map(replace_surrogate_halves));
    let [messages, input, instructions, prompt] = values.each_ref().map(Option::as_deref);
    match (messages, input, instructions, prompt) {
        (Some(messages), ..) => Some(replace_binary_data(messages)),
        (_, input, Some(instructions), _) => {
            let mut out = format!("{{\"instructions\":{}", replace_binary_data(instructions));
            if let Some(input) = input {
                out.push_str(",\"input\":");
                out.push_str(&replace_binary_data(input));
            }
            out.push('}');
            Some(out)
        }
        (_, Some(only), ..) | (.., Some(only)) => Some(text_or_json(only).into_owned()),
        _ => None,
    }
}

/// The values of [`PROMPT_KEYS`] in a body.
fn find_prompt_parts(body: &str) -> [Option<String>; PROMPT_KEYS.names().len()] {
    let values = match json::parse_fields(body.as_bytes(), &PROMPT_KEYS) {
        Ok(fields) => fields.values,
        // Not valid, or with a key of broken characters: what stands before the error is found.
        Err(_) => json::find_fields(body, PROMPT_KEYS.names()),
    };
    values.map(|raw| raw.map(str::to_owned))
}

/// The longest escape of a character in JSON: `\\ud83d\\ude00`.
const MAX_ESCAPE_BYTES: usize = 12;

/// The beginning of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub struct PromptBeginning<'b> {
    /// The text: if it is in the body as it is, that part of the body.
    pub text: Cow<'b, str>,
    /// Whether the prompt is longer.
    pub is_truncated: bool,
}

/// The beginning of what [`prompt_text`] returns, made from at most `limit` bytes of the prompt, in time and memory in
/// proportion to `limit`. It can be longer than `limit`, since what replaces binary data can be longer than the data. If the
/// limit splits a surrogate pair, its first half is replaced. `None` if the prompt begins with long binary data.
pub fn prompt_beginning<'b>(
    body: &'b [u8],
    parts: &PromptPartRanges,
    limit: usize,
) -> Option<PromptBeginning<'b>> {
    let mut values = [None; PROMPT_KEYS.names().len()];
    for (value, range) in values.iter_mut().zip(parts) {
        *value = range.clone().and_then(|range| body.get(range)).filter(|raw| *raw != b"null");
    }
    let [messages, input, instructions, prompt] = values;
    let mut beginning = PromptBeginning { text: Cow::Borrowed(""), is_truncated: false };
    match (messages, input, instructions, prompt) {
        (Some(messages), ..) => beginning.push_json(messages, limit)?,
        (_, input, Some(instructions), _) => {
            beginning.push_json(b"{\"instructions\":", limit)?;
            beginning.push_json(instructions, limit)?;
            if let Some(input) = input {
                beginning.push_json(b",\"input\":", limit)?;
                beginning.push_json(input, limit)?;
            }
            beginning.push_json(b"}", limit)?;
        }
        (_, Some(only), ..) | (.., Some(only)) if only.len() > limit && only.starts_with(b"\"") => {
            beginning.push_string(only, limit)?;
        }
        (_, Some(only), ..) | (.., Some(only)) if only.len() > limit => beginning.push_json(only, limit)?,
        (_, Some(only), ..) | (.., Some(only)) => {
            beginning.text = match replace_surrogate_halves(whole_text(only)?) {
                Cow::Borrowed(raw) => text_or_json(raw),
                Cow::Owned(raw) => Cow::Owned(text_or_json(&raw).into_owned()),
            };
        }
        _ => return None,
    }
    Some(beginning)
}

impl<'b> PromptBeginning<'b> {
    /// Appends as much of `raw`, a JSON value or a part between two, as fits.
    fn push_json(&mut self, raw: &'b [u8], limit: usize) -> Option<()> {
        let room = limit.saturating_sub(self.text.len());
        if self.is_truncated {
            return Some(());
        }
        if raw.len() <= room {
            let text = replace_surrogate_halves(whole_text(raw)?);
            self.push(if may_contain_binary_data(&text) { replace_binary_data(&text).into() } else { text });
            return Some(());
        }
        let beginning = text_beginning(raw, room).filter(|raw| !may_contain_binary_data(raw))?;
        self.push(replace_surrogate_halves(beginning));
        self.is_truncated = true;
        Some(())
    }

    fn push(&mut self, text: Cow<'b, str>) {
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.to_mut().push_str(&text);
        }
    }

    /// Appends as much of a decoded JSON string as fits.
    fn push_string(&mut self, raw: &'b [u8], limit: usize) -> Option<()> {
        let content = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        // Enough for the limit if everything is escaped. A cut inside of an escape is then beyond the limit.
        let end = limit.saturating_mul(MAX_ESCAPE_BYTES / 2).saturating_add(MAX_ESCAPE_BYTES);
        let beginning = text_beginning(content, end).filter(|beginning| !beginning.starts_with("data:"))?;
        let decoded = decode_content(beginning);
        self.is_truncated = decoded.len() > limit || beginning.len() < content.len();
        let end = decoded.floor_char_boundary(limit);
        self.text = match decoded {
            Cow::Borrowed(text) => Cow::Borrowed(text.get(..end)?),
            Cow::Owned(mut text) => {
                text.truncate(end);
                Cow::Owned(text)
            }
        };
        Some(())
    }
}

/// Bytes as text; `None` if they are not UTF-8: they are left to [`prompt_text`].
fn whole_text(raw: &[u8]) -> Option<&str> {
    simdutf8::basic::from_utf8(raw).ok()
}

/// The whole characters in the first `max_bytes` bytes; `None` if there is something else than UTF-8 among them. The
/// rest is not looked at.
fn text_beginning(raw: &[u8], max_bytes: usize) -> Option<&str> {
    let beginning = raw.get(..max_bytes).unwrap_or(raw);
    match simdutf8::compat::from_utf8(beginning) {
        Ok(text) => Some(text),
        Err(cut) if cut.error_len().is_none() && beginning.len() < raw.len() => {
            whole_text(beginning.get(..cut.valid_up_to())?)
        }
        Err(_) => None,
    }
}

/// The text fields of a form as a JSON object. A repeated name has an array. `None` without fields.
pub fn form_text_as_json(body: &[u8], form: &FormFacts) -> Option<String> {
    let mut out = String::from("{");
    for (n, field) in form.text_fields.iter().enumerate() {
        let has_same_name = |f: &&FormTextField| f.name == field.name;
        if form.text_fields.iter().take(n).any(|f| has_same_name(&f)) {
            continue;
        }
        out.push_str(if out.len() > 1 { "," } else { "" });
        json::push_json_string(&mut out, &field.name);
        out.push(':');
        let mut values = form.text_fields.iter().filter(has_same_name).peekable();
        let first = values.next();
        let is_list = values.peek().is_some();
        out.push_str(if is_list { "[" } else { "" });
        for (n, value) in first.into_iter().chain(values).enumerate() {
            out.push_str(if n == 0 { "" } else { "," });
            let bytes = body.get(value.content_range.clone()).unwrap_or_default();
            json::push_json_string(&mut out, &text_from_bytes(bytes));
        }
        out.push_str(if is_list { "]" } else { "" });
    }
    out.push('}');
    (!form.text_fields.is_empty()).then_some(out)
}

fn text_or_json(raw: &str) -> Cow<'_, str> {
    match json::decode_string(raw) {
        Some(text) if parse_data_url(&text).is_none() => text,
        _ => replace_binary_data(raw).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::request::json_body::BodyFacts;

    /// The prompt text, which is the same whether or not the prompt's place is known.
    fn prompt_of(body: &(impl AsRef<[u8]> + ?Sized)) -> Option<String> {
        let body = body.as_ref();
        let text = prompt_text(body, None);
        if let Ok(facts) = BodyFacts::parse(body) {
            assert_eq!(prompt_text(body, Some(&facts.prompt_part_ranges)), text);
            let beginning = prompt_beginning(body, &facts.prompt_part_ranges, usize::MAX);
            assert!(beginning.as_ref().is_none_or(|beginning| !beginning.is_truncated));
            if let Some(beginning) = beginning {
                assert_eq!(Some(beginning.text.as_ref()), text.as_deref());
            }
        }
        text
    }

    #[test]
    fn the_prompt_is_found_in_every_api() {
        let rows = [
            (
                r#"{"model":"m","messages":[ {"role":"user","content":"hi"} ],"n":1}"#,
                Some(r#"[ {"role":"user","content":"hi"} ]"#),
            ),
            (r#"{"input":"h\u00e9llo\n"}"#, Some("héllo\n")),
            (r#"{"input":["a","b"]}"#, Some(r#"["a","b"]"#)),
            (r#"{"input":"a","instructions":"b"}"#, Some(r#"{"instructions":"b","input":"a"}"#)),
            (r#"{"input":"a","instructions":null}"#, Some("a")),
            (r#"{"instructions":"b"}"#, Some(r#"{"instructions":"b"}"#)),
            (r#"{"prompt":"draw"}"#, Some("draw")),
            (r#"{"prompt":[1,2]}"#, Some("[1,2]")),
            (r#"{"x":1}"#, None),
            ("no json", None),
            // A text that was cut within a character, in any place.
            (r#"{"input":"cut \ud83d"}"#, Some("cut \u{fffd}")),
            (r#"{"messages":[{"content":"cut \ud83d"}]}"#, Some(r#"[{"content":"cut \ufffd"}]"#)),
            (r#"{"\ud83d":1,"messages":["a"]}"#, Some(r#"["a"]"#)),
            // Broken JSON: what is complete before the error.
            (r#"{"messages":["a"],"n":"#, Some(r#"["a"]"#)),
            (r#"{"messages":["a"#, None),
        ];
        for (body, expected) in rows {
            assert_eq!(prompt_of(body).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_cost_no_other_text() {
        for (body, expected) in [
            (&b"{\"input\":\"a\xff\xc3b\"}"[..], "a\u{fffd}\u{fffd}b"),
            (b"{\"messages\":[\"caf\xe9\"]}", "[\"caf\u{fffd}\"]"),
            // Its key is found by the slower parser only.
            (b"{\"inp\\u0075t\":\"caf\xe9\"}", "caf\u{fffd}"),
            (b"{\"model\":\"\xff\",\"input\":\"a\"}", "a"),
        ] {
            assert_eq!(prompt_of(body).as_deref(), Some(expected), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn the_beginning_of_a_prompt_is_the_beginning_of_its_text() {
        let escapes = r"\ud83d\ude00\u00e9\n".repeat(40);
        for body in [
            r#"{"messages":[ {"role":"user","content":"hi, there: é"} ],"n":1}"#.to_owned(),
            r#"{"input":"a longer text","instructions":"b\u0041"}"#.to_owned(),
            format!(r#"{{"input":"{escapes}"}}"#),
            r#"{"prompt":["one","two","three"]}"#.to_owned(),
            r#"{"input":"h\u00e9llo\n"}"#.to_owned(),
            format!(r#"{{"input":"{}"}}"#, "aé".repeat(60)),
        ] {
            let facts = BodyFacts::parse(body.as_bytes()).unwrap();
            let text = prompt_text(body.as_bytes(), None).unwrap();
            for limit in 0..200 {
                let beginning = prompt_beginning(body.as_bytes(), &facts.prompt_part_ranges, limit).unwrap();
                assert!(text.starts_with(&*beginning.text), "{limit} of {body}: {}", beginning.text);
                assert!(beginning.text.len() <= limit, "{limit} of {body}");
                assert!(beginning.text.len() + 4 > limit.min(text.len()), "{limit} of {body}: {beginning:?}");
                assert_eq!(beginning.is_truncated, beginning.text.len() < text.len(), "{limit} of {body}");
            }
        }
        // What comes later is not looked at, UTF-8 or not.
        let body = [&br#"{"input":""#[..], &b"a".repeat(200), b"\xff\"}"].concat();
        let facts = BodyFacts::parse(&body).unwrap();
        let beginning = |limit| prompt_beginning(&body, &facts.prompt_part_ranges, limit);
        assert_eq!(beginning(10).map(|beginning| beginning.text), Some("a".repeat(10).into()));
        assert_eq!(beginning(200), None);
        // The digest of binary data needs all of it.
        for body in [
            r#"{"input":"data:image/png;base64,aGVsbG8="}"#,
            r#"{"messages":[{"image_url":{"url":"data:image/png;base64,aGVsbG8="}}]}"#,
        ] {
            let facts = BodyFacts::parse(body.as_bytes()).unwrap();
            assert_eq!(prompt_beginning(body.as_bytes(), &facts.prompt_part_ranges, 30), None, "{body}");
        }
    }

    #[test]
    fn a_prompt_that_is_a_data_url_is_summarised() {
        let body = r#"{"input":"data:image/png;base64,aGVsbG8="}"#;
        let summary =
            r#"{"bytes":5,"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}"#;
        assert_eq!(prompt_of(body).as_deref(), Some(summary));
    }

    #[test]
    fn form_text_is_a_json_object_of_the_text_fields() {
        let field = |name: &str, value: &str| {
            format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let body = [
            field("model", "whisper"),
            field("g[]", "word"),
            field("g[]", "segment"),
            field("prompt", "a\"b"),
            "--B--".into(),
        ]
        .concat();
        let form = FormFacts::parse(body.as_bytes(), "B").unwrap();
        assert_eq!(
            form_text_as_json(body.as_bytes(), &form).as_deref(),
            Some(r#"{"model":"whisper","g[]":["word","segment"],"prompt":"a\"b"}"#)
        );
    }
}
