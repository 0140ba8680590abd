//! Replaces images, audio and files in JSON by their size and SHA-256. The input is not validated: the
//! caller knows that it is JSON.

use std::fmt::Write as _;
use std::sync::LazyLock;

use openssl::{base64, sha::Sha256};
use regex::Regex;

use crate::azure::json;
use crate::azure::json_strings::{JsonString, JsonStrings};

/// Finds in one pass what every string that [`replace_binary_data`] replaces begins with, or the key before it.
static MARKERS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#""data:|"file_data"|"b64_json"|"input_audio"|"result""#).ok());

/// Copies JSON and replaces every string that contains binary data by an object such as
/// `{"bytes":5,"sha256":"2cf2…"}`.
pub(super) fn replace_binary_data(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len().min(64 * 1024));
    let mut copied_to = 0;
    for JsonString { range, raw: string, key, container_key, .. } in
        JsonStrings::new(raw).filter(|string| !string.is_key)
    {
        if let Some(summary) = summary_if_binary(key, container_key, string) {
            out.push_str(raw.get(copied_to..range.start).unwrap_or_default());
            out.push_str(&summary);
            copied_to = range.end;
        }
    }
    out.push_str(raw.get(copied_to..).unwrap_or_default());
    out
}

/// Whether [`replace_binary_data`] might replace something in this part of JSON.
pub(super) fn may_contain_binary_data(raw: &str) -> bool {
    MARKERS.as_ref().is_none_or(|markers| markers.is_match(raw))
}

/// The object that replaces a string, if the string contains binary data.
fn summary_if_binary(key: &str, container_key: &str, string: &str) -> Option<String> {
    let is_binary_key = matches!(key, "\"file_data\"" | "\"b64_json\"")
        || (key == "\"data\"" && container_key == "\"input_audio\"")
        // The output of the image generation tool, which clients send back with the conversation.
        || (key == "\"result\"" && string.len() > 1024 && has_only_base64_chars(string.trim_matches('"')));
    if !is_binary_key && !string.starts_with("\"data:") {
        return None;
    }
    let text = json::decode_string(string)?;
    match parse_data_url(&text) {
        Some((data, true)) => Some(summarise_base64(data)),
        Some((data, false)) => Some(summarise_text_bytes(data)),
        None if is_binary_key && !text.is_empty() => Some(summarise_base64(&text)),
        None => None,
    }
}

/// The payload of a data URL (RFC 2397), and whether it is base64. Other text that begins with `data:`
/// is told apart by its missing media type.
pub(super) fn parse_data_url(text: &str) -> Option<(&str, bool)> {
    let (head, data) = text.strip_prefix("data:")?.split_once(',')?;
    let is_base64 =
        head.get(head.len().saturating_sub(7)..).is_some_and(|end| end.eq_ignore_ascii_case(";base64"));
    let is_media_type = head.len() <= 256 && head.contains('/') && !head.contains(char::is_whitespace);
    (is_base64 || is_media_type).then_some((data, is_base64))
}

fn has_only_base64_chars(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

/// Size and hash of the decoded data; of the text itself if it is not valid base64.
fn summarise_base64(text: &str) -> String {
    // Decoding in chunks avoids a second copy of a large image. The size is a multiple of 4, so that
    // every chunk but the last is complete base64.
    const CHUNK_BYTES: usize = 64 * 1024;
    let data = text.trim_end_matches('=');
    if !has_only_base64_chars(data) || data.contains('=') || data.len() % 4 == 1 {
        return summarise_text_bytes(text);
    }
    let (mut hasher, mut length) = (Sha256::new(), 0);
    for chunk in data.as_bytes().chunks(CHUNK_BYTES) {
        let mut chunk = String::from_utf8_lossy(chunk);
        if !chunk.len().is_multiple_of(4) {
            let padding = 4 - chunk.len() % 4;
            chunk.to_mut().extend(std::iter::repeat_n('=', padding));
        }
        let Ok(decoded) = base64::decode_block(&chunk) else { return summarise_text_bytes(text) };
        length += decoded.len();
        hasher.update(&decoded);
    }
    summary_object(length, &hasher.finish())
}

fn summarise_text_bytes(text: &str) -> String {
    summary_object(text.len(), &openssl::sha::sha256(text.as_bytes()))
}

fn summary_object(length: usize, hash: &[u8]) -> String {
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
    use proptest::prelude::*;

    const SUMMARY_OF_HELLO: &str =
        r#"{"bytes":5,"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}"#;

    #[test]
    fn binary_strings_become_size_and_sha256() {
        let rows = [
            (r#"[{"image_url":{"url":"data:image/png;base64,aGVsbG8=","detail":"low"}}]"#, format!(r#"[{{"image_url":{{"url":{SUMMARY_OF_HELLO},"detail":"low"}}}}]"#)),
            (r#"[{"image_url":"data:image\/png;base64,aGVsbG8"}]"#, format!(r#"[{{"image_url":{SUMMARY_OF_HELLO}}}]"#)),
            (r#"[{"input_audio":{"format":"wav","data":"aGVsbG8="}}]"#, format!(r#"[{{"input_audio":{{"format":"wav","data":{SUMMARY_OF_HELLO}}}}}]"#)),
            (r#"[{"file":{"file_data" : "aGVsbG8="}}]"#, format!(r#"[{{"file":{{"file_data" : {SUMMARY_OF_HELLO}}}}}]"#)),
            (r#"["data:text/plain,hello"]"#, format!("[{SUMMARY_OF_HELLO}]")),
            (r#"[{"file_data":"h\u0065llo!"}]"#, r#"[{"file_data":{"bytes":6,"sha256":"ce06092fb948d9ffac7d1a376e404b26b7575bcc11ee05a4615fef4fec3a308b"}}]"#.to_owned()),
            (r#"[{"data":"aGVsbG8="},"data: 1, 2, 3","data:a,b"]"#, r#"[{"data":"aGVsbG8="},"data: 1, 2, 3","data:a,b"]"#.to_owned()),
        ];
        for (value, expected) in rows {
            assert_eq!(replace_binary_data(value), expected, "{value}");
        }
        let long = base64::encode_block(&vec![7; 200_001]);
        assert!(summarise_base64(&long).starts_with(r#"{"bytes":200001,"#));
    }

    proptest! {
        #[test]
        fn valid_json_stays_valid_json(value in "[\\[\\]{}\":,a0 \\\\]{0,40}|\\[\"data:a/b[^\"\\\\\\x00-\\x1f]{0,20}\"\\]") {
            let _ = replace_binary_data(&value);
            if serde_json::from_str::<serde_json::Value>(&value).is_ok() {
                let after = replace_binary_data(&value);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&after).is_ok(), "{}", after);
                if !value.contains("data:") {
                    prop_assert_eq!(after, value);
                }
            }
        }
    }
}
