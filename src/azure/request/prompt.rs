//! The record's half of a request: its prompt as text, with pictures, sound and files replaced
//! by their size and SHA-256. Called only when prompts are recorded; the body is valid JSON by
//! then, and what is not changed is copied as it was sent.

use std::fmt::Write as _;
use std::ops::Range;

use openssl::{base64, sha::Sha256};

use super::multipart::FormProbe;
use crate::azure::json;

/// Where a prompt may be.
pub(in crate::azure) const KEYS: [&str; 4] = ["messages", "input", "instructions", "prompt"];

/// Where the values of [`KEYS`] lie in a body, in this order.
pub type Parts = [Option<Range<usize>>; 4];

/// The prompt of a JSON body: the text of `messages`, else `input` (with `instructions`, as an
/// object of both), else `prompt`. A string stands for itself, without quotes. `known` is where they
/// lie, if that is known.
pub fn prompt_text(body: &[u8], known: Option<&Parts>) -> Option<String> {
    let part = |range: Range<usize>| std::str::from_utf8(body.get(range)?).ok();
    let values = match known {
        Some(parts) if parts.iter().any(Option::is_some) => parts.clone().map(|range| range.and_then(part)),
        _ => json::probe(body, &KEYS).ok()?.values,
    };
    let [messages, input, instructions, prompt] = values.map(|raw| raw.filter(|raw| *raw != "null"));
    match (messages, input, instructions, prompt) {
        (Some(messages), ..) => Some(without_binary(messages)),
        (_, input, Some(instructions), _) => {
            let mut out = format!("{{\"instructions\":{}", without_binary(instructions));
            if let Some(input) = input {
                out.push_str(",\"input\":");
                out.push_str(&without_binary(input));
            }
            out.push('}');
            Some(out)
        }
        (_, Some(only), ..) | (.., Some(only)) => Some(as_text(only)),
        _ => None,
    }
}

/// The text fields of a form, as the text of a JSON object; a repeated name has an array.
pub fn form_text(body: &[u8], form: &FormProbe) -> Option<String> {
    let mut out = String::from("{");
    for (n, field) in form.texts.iter().enumerate() {
        let same = |f: &&super::multipart::Field| f.name == field.name;
        if form.texts.iter().take(n).any(|f| same(&f)) {
            continue;
        }
        out.push_str(if out.len() > 1 { "," } else { "" });
        json::push_string(&mut out, &field.name);
        out.push(':');
        let mut values = form.texts.iter().filter(same).peekable();
        let first = values.next();
        let is_list = values.peek().is_some();
        out.push_str(if is_list { "[" } else { "" });
        for (n, value) in first.into_iter().chain(values).enumerate() {
            out.push_str(if n == 0 { "" } else { "," });
            let bytes = body.get(value.range.clone()).unwrap_or_default();
            json::push_string(&mut out, &String::from_utf8_lossy(bytes));
        }
        out.push_str(if is_list { "]" } else { "" });
    }
    out.push('}');
    (!form.texts.is_empty()).then_some(out)
}

fn as_text(raw: &str) -> String {
    match json::string(raw) {
        Some(text) if data_url(&text).is_none() => text.into_owned(),
        _ => without_binary(raw),
    }
}

/// Deepest nesting in which keys are remembered; below it nothing is known by its key.
const DEPTH: usize = 32;

/// Copies JSON with every string that carries binary data replaced by an object.
pub(in crate::azure) fn without_binary(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len().min(64 * 1024));
    let (mut at, mut copied, mut depth) = (0, 0, 0_usize);
    let mut key = "";
    let mut owners = [""; DEPTH];
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                if let Some(owner) = owners.get_mut(depth) {
                    *owner = key;
                }
                depth += 1;
                key = if byte == b'[' { key } else { "" };
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                key = "";
            }
            b'"' => {
                let end = json::string_end(bytes, at).unwrap_or(bytes.len());
                let string = raw.get(at..end).unwrap_or_default();
                let after = bytes.get(end..).unwrap_or_default().trim_ascii_start();
                if after.starts_with(b":") {
                    key = string;
                } else {
                    let owner = depth.checked_sub(1).and_then(|d| owners.get(d)).copied();
                    if let Some(summary) = summary(key, owner.unwrap_or_default(), string) {
                        out.push_str(raw.get(copied..at).unwrap_or_default());
                        out.push_str(&summary);
                        copied = end;
                    }
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    out.push_str(raw.get(copied..).unwrap_or_default());
    out
}

/// What stands in for a string, if it is data.
fn summary(key: &str, owner: &str, string: &str) -> Option<String> {
    let by_key = matches!(key, "\"file_data\"" | "\"b64_json\"")
        || (key == "\"data\"" && owner == "\"input_audio\"")
        // An image that a tool made, sent back as history.
        || (key == "\"result\"" && string.len() > 1024 && is_base64(string.trim_matches('"')));
    if !by_key && !string.starts_with("\"data:") {
        return None;
    }
    let text = json::string(string)?;
    match data_url(&text) {
        Some((data, true)) => Some(of_base64(data)),
        Some((data, false)) => Some(of_bytes(data)),
        None if by_key && !text.is_empty() => Some(of_base64(&text)),
        None => None,
    }
}

/// The payload of a data URL (RFC 2397), and whether it is base64. Text that merely begins
/// with `data:` has no media type.
fn data_url(text: &str) -> Option<(&str, bool)> {
    let (head, data) = text.strip_prefix("data:")?.split_once(',')?;
    let is_base64 =
        head.get(head.len().saturating_sub(7)..).is_some_and(|end| end.eq_ignore_ascii_case(";base64"));
    let is_type = head.len() <= 256 && head.contains('/') && !head.contains(char::is_whitespace);
    (is_base64 || is_type).then_some((data, is_base64))
}

fn is_base64(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

/// Size and hash of what base64 stands for; of the text itself when it is not base64.
fn of_base64(text: &str) -> String {
    // Decoded piece by piece: a picture of 20 MB needs no second copy.
    const STEP: usize = 64 * 1024;
    let data = text.trim_end_matches('=');
    if !is_base64(data) || data.contains('=') || data.len() % 4 == 1 {
        return of_bytes(text);
    }
    let (mut hash, mut length) = (Sha256::new(), 0);
    for piece in data.as_bytes().chunks(STEP) {
        let mut piece = String::from_utf8_lossy(piece);
        if !piece.len().is_multiple_of(4) {
            let padding = 4 - piece.len() % 4;
            piece.to_mut().extend(std::iter::repeat_n('=', padding));
        }
        let Ok(decoded) = base64::decode_block(&piece) else { return of_bytes(text) };
        length += decoded.len();
        hash.update(&decoded);
    }
    object(length, &hash.finish())
}

fn of_bytes(text: &str) -> String {
    object(text.len(), &openssl::sha::sha256(text.as_bytes()))
}

fn object(length: usize, hash: &[u8]) -> String {
    let mut out = format!("{{\"bytes\":{length},\"sha256\":\"");
    for byte in hash {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out.push_str("\"}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::request::body;

    /// The prompt of a body, which is the same whether or not its place is known.
    fn text_of(body: &[u8]) -> Option<String> {
        let text = prompt_text(body, None);
        if let Ok(probe) = body::probe(body) {
            assert_eq!(prompt_text(body, Some(&probe.prompt)), text);
        }
        text
    }
    use proptest::prelude::*;

    const HELLO: &str =
        r#"{"bytes":5,"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}"#;

    #[test]
    fn prompts_are_found() {
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
            assert_eq!(text_of(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn binary_becomes_size_and_hash() {
        let rows = [
            (r#"[{"image_url":{"url":"data:image/png;base64,aGVsbG8=","detail":"low"}}]"#, format!(r#"[{{"image_url":{{"url":{HELLO},"detail":"low"}}}}]"#)),
            (r#"[{"image_url":"data:image\/png;base64,aGVsbG8"}]"#, format!(r#"[{{"image_url":{HELLO}}}]"#)),
            (r#"[{"input_audio":{"format":"wav","data":"aGVsbG8="}}]"#, format!(r#"[{{"input_audio":{{"format":"wav","data":{HELLO}}}}}]"#)),
            (r#"[{"file":{"file_data" : "aGVsbG8="}}]"#, format!(r#"[{{"file":{{"file_data" : {HELLO}}}}}]"#)),
            (r#"["data:text/plain,hello"]"#, format!("[{HELLO}]")),
            (r#"[{"file_data":"h\u0065llo!"}]"#, r#"[{"file_data":{"bytes":6,"sha256":"ce06092fb948d9ffac7d1a376e404b26b7575bcc11ee05a4615fef4fec3a308b"}}]"#.to_owned()),
            (r#"[{"data":"aGVsbG8="},"data: 1, 2, 3","data:a,b"]"#, r#"[{"data":"aGVsbG8="},"data: 1, 2, 3","data:a,b"]"#.to_owned()),
        ];
        for (value, expected) in rows {
            let body = format!(r#"{{"messages":{value}}}"#);
            assert_eq!(text_of(body.as_bytes()), Some(expected), "{value}");
        }
        let body = r#"{"input":"data:image/png;base64,aGVsbG8="}"#;
        assert_eq!(text_of(body.as_bytes()).as_deref(), Some(HELLO));
        let long = base64::encode_block(&vec![7; 200_001]);
        assert!(of_base64(&long).starts_with(r#"{"bytes":200001,"#));
    }

    #[test]
    fn forms_show_their_text() {
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
        let form = crate::azure::request::multipart::probe(body.as_bytes(), "B").unwrap();
        assert_eq!(
            form_text(body.as_bytes(), &form).as_deref(),
            Some(r#"{"model":"whisper","g[]":["word","segment"],"prompt":"a\"b"}"#)
        );
    }

    proptest! {
        #[test]
        fn what_comes_out_is_json(value in "[\\[\\]{}\":,a0 \\\\]{0,40}|\\[\"data:a/b[^\"\\\\\\x00-\\x1f]{0,20}\"\\]") {
            let _ = without_binary(&value);
            if serde_json::from_str::<serde_json::Value>(&value).is_ok() {
                let after = without_binary(&value);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&after).is_ok(), "{}", after);
                if !value.contains("data:") {
                    prop_assert_eq!(after, value);
                }
            }
        }
    }
}
