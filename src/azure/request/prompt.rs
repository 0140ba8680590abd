//! The prompt of a request as text for the record, with images, audio and files replaced by their size
//! and SHA-256. Used only if prompts are recorded. Everything else is copied as the client sent it.

use std::ops::Range;

use super::multipart::{FormFacts, FormTextField};
use super::prompt_parts::{PROMPT_KEYS, PromptPartRanges};
use crate::azure::binary_data::{parse_data_url, replace_binary_data};
use crate::azure::json;

/// The prompt of a JSON body: `messages`, else `input` (with `instructions`: an object of both), else
/// `prompt`. A string is returned without its quotes. `parts` saves a search, if it is known from
/// parsing the body.
pub fn prompt_text(body: &[u8], parts: Option<&PromptPartRanges>) -> Option<String> {
    let text_at = |range: Range<usize>| std::str::from_utf8(body.get(range)?).ok();
    let values = match parts {
        Some(ranges) if ranges.iter().any(Option::is_some) => {
            ranges.clone().map(|range| range.and_then(text_at))
        }
        _ => json::parse_fields(body, &PROMPT_KEYS).ok()?.values,
    };
    let [messages, input, instructions, prompt] = values.map(|raw| raw.filter(|raw| *raw != "null"));
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
        (_, Some(only), ..) | (.., Some(only)) => Some(text_or_json(only)),
        _ => None,
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
            json::push_json_string(&mut out, &String::from_utf8_lossy(bytes));
        }
        out.push_str(if is_list { "]" } else { "" });
    }
    out.push('}');
    (!form.text_fields.is_empty()).then_some(out)
}

fn text_or_json(raw: &str) -> String {
    match json::decode_string(raw) {
        Some(text) if parse_data_url(&text).is_none() => text.into_owned(),
        _ => replace_binary_data(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::request::json_body::BodyFacts;

    /// The prompt text, which is the same whether or not the prompt's place is known.
    fn prompt_of(body: &str) -> Option<String> {
        let body = body.as_bytes();
        let text = prompt_text(body, None);
        if let Ok(facts) = BodyFacts::parse(body) {
            assert_eq!(prompt_text(body, Some(&facts.prompt_part_ranges)), text);
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
        ];
        for (body, expected) in rows {
            assert_eq!(prompt_of(body).as_deref(), expected, "{body}");
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
