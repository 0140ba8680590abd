//! What the header fields of a request tell its record: the ids that the client has for it, and the client's
//! program.

use http::{HeaderMap, HeaderName};

use super::trace_context::TraceContext;

/// Longest text that is kept of a field.
const MAX_FIELD_BYTES: usize = 256;

/// The fields with the client's own id of a request, the first of which counts: that of Azure, that of OpenAI, and
/// that of most frameworks and proxies.
static REQUEST_ID_FIELDS: [HeaderName; 3] = [
    HeaderName::from_static("x-ms-client-request-id"),
    HeaderName::from_static("x-client-request-id"),
    HeaderName::from_static("x-request-id"),
];

/// What the header fields of a request tell its record. Texts are cut, and what is not printable ASCII is
/// escaped.
#[derive(Clone, Debug, Default)]
pub struct ClientHeaders {
    /// The client's own id for the request.
    pub request_id: Option<Box<str>>,
    /// The client's program: `user-agent`.
    pub user_agent: Option<Box<str>>,
    /// The trace that the request belongs to, by its `traceparent`.
    pub trace_context: Option<TraceContext>,
}

impl ClientHeaders {
    /// Reads the fields of a request, or only those that its trace needs.
    pub fn read(headers: &HeaderMap, keeps_record: bool) -> Self {
        if !keeps_record {
            return Self { trace_context: TraceContext::read(headers), ..Self::default() };
        }
        Self {
            request_id: REQUEST_ID_FIELDS.iter().find_map(|name| printable_field(headers, name)),
            user_agent: printable_field(headers, &http::header::USER_AGENT),
            trace_context: TraceContext::read(headers),
        }
    }

    /// The memory of the texts, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let texts = [&self.request_id, &self.user_agent];
        texts.into_iter().flatten().map(|text| text.len()).sum()
    }
}

/// The first field of this name that is not empty, as printable text.
fn printable_field(headers: &HeaderMap, name: &HeaderName) -> Option<Box<str>> {
    let value = headers.get(name)?.as_bytes();
    (!value.is_empty()).then(|| printable_text(value))
}

/// The value of a field as the record has it.
pub fn printable_text(value: &[u8]) -> Box<str> {
    let value = value.get(..MAX_FIELD_BYTES).unwrap_or(value);
    let is_printable = |byte: &u8| matches!(byte, b' '..=b'~');
    if holds_for_all(value, is_printable)
        && let Ok(text) = std::str::from_utf8(value)
    {
        return text.into();
    }
    let escaped = value.iter().map(|byte| match is_printable(byte) {
        true => char::from(*byte).to_string(),
        false => byte.escape_ascii().to_string(),
    });
    escaped.collect::<String>().into()
}

/// Like `all`, without a branch for each byte: every request pays for it.
fn holds_for_all(bytes: &[u8], condition: impl Fn(&u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & condition(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn read(fields: &[(&'static str, &[u8])]) -> ClientHeaders {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        ClientHeaders::read(&headers, true)
    }

    #[test]
    fn the_first_id_of_the_client_counts() {
        let azure: (_, &[u8]) = ("x-ms-client-request-id", b"azure");
        let older: (_, &[u8]) = ("x-client-request-id", b"older");
        let openai: (_, &[u8]) = ("x-request-id", b"openai");
        for (fields, expected) in [
            (&[openai, older, azure][..], Some("azure")),
            (&[openai, older], Some("older")),
            (&[openai], Some("openai")),
            (&[("x-ms-client-request-id", b""), openai], Some("openai")),
            (&[("request-id", b"x")], None),
        ] {
            assert_eq!(read(fields).request_id.as_deref(), expected, "{fields:?}");
        }
    }

    #[test]
    fn texts_are_cut_and_escaped() {
        for (value, expected) in [
            (&b"OpenAI/Python 1.2 (it's \"new\")"[..], "OpenAI/Python 1.2 (it's \"new\")"),
            (b"caf\xc3\xa9\t1", "caf\\xc3\\xa9\\t1"),
            (&[b'a'; 300], &"a".repeat(MAX_FIELD_BYTES)),
            (&[0xff; 300], &"\\xff".repeat(MAX_FIELD_BYTES)),
        ] {
            assert_eq!(read(&[("user-agent", value)]).user_agent.as_deref(), Some(expected));
        }
        assert_eq!(read(&[("user-agent", b"")]).user_agent, None);
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_becomes_short_printable_text(value in proptest::collection::vec(0x80_u8.., 0..400)) {
            let headers = read(&[("user-agent", &value), ("x-request-id", &value)]);
            for text in [headers.user_agent, headers.request_id].into_iter().flatten() {
                prop_assert!(text.len() <= 4 * MAX_FIELD_BYTES && text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        }
    }
}
