//! What the header fields of a request tell its record: the ids that the client has for it, and the client's
//! program.

use http::{HeaderMap, HeaderName};

/// Longest text that is kept of a field.
const MAX_FIELD_BYTES: usize = 256;

/// The fields with the client's own id of a request, the first of which counts: that of Azure, that of OpenAI, and
/// that of most frameworks and proxies.
static REQUEST_ID_FIELDS: [HeaderName; 3] = [
    HeaderName::from_static("x-ms-client-request-id"),
    HeaderName::from_static("x-client-request-id"),
    HeaderName::from_static("x-request-id"),
];
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What the header fields of a request tell its record. Texts are cut, and what is not printable ASCII is
/// escaped.
#[derive(Clone, Debug, Default)]
pub struct ClientHeaders {
    /// The client's own id for the request.
    pub request_id: Option<Box<str>>,
    /// The client's program: `user-agent`.
    pub user_agent: Option<Box<str>>,
    /// The id of the trace that the request belongs to: 32 hexadecimal digits.
    pub trace_id: Option<Box<str>>,
}

impl ClientHeaders {
    /// Reads the fields of a request.
    pub fn read(headers: &HeaderMap) -> Self {
        Self {
            request_id: REQUEST_ID_FIELDS.iter().find_map(|name| printable_field(headers, name)),
            user_agent: printable_field(headers, &http::header::USER_AGENT),
            trace_id: trace_id(headers).map(Box::from),
        }
    }

    /// The memory of the texts, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let texts = [&self.request_id, &self.user_agent, &self.trace_id];
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

/// The trace id of a valid `traceparent` (W3C Trace Context, section 3.2): one field
/// `VERSION-TRACE_ID-PARENT_ID-FLAGS`, after which only a later version than 00 may have more.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(&TRACEPARENT).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let (field, more) = field.as_bytes().split_at_checked(55)?;
    let has_dashes = [2, 35, 52].iter().all(|at| field.get(*at) == Some(&b'-'));
    let (version, trace_id) = (field.get(..2)?, field.get(3..35)?);
    let (parent_id, flags) = (field.get(36..52)?, field.get(53..)?);
    let is_hex = |part: &[u8]| holds_for_all(part, |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |id: &[u8]| holds_for_all(id, |byte| *byte == b'0');
    let may_have_more = version != b"00" && more.starts_with(b"-");
    let is_valid = has_dashes
        && [version, trace_id, parent_id, flags].into_iter().all(is_hex)
        && (more.is_empty() || may_have_more)
        && version != b"ff"
        && !is_zero(trace_id)
        && !is_zero(parent_id);
    std::str::from_utf8(trace_id).ok().filter(|_| is_valid)
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
        ClientHeaders::read(&headers)
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

    #[test]
    fn only_a_valid_traceparent_has_a_trace_id() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let zeros = "0".repeat(32);
        for (value, is_valid) in [
            (format!("00-{trace}-{parent}-01"), true),
            (format!("00-{trace}-{parent}-00"), true),
            (format!("cc-{trace}-{parent}-01"), true),
            (format!("cc-{trace}-{parent}-01-what-comes"), true),
            (format!("00-{trace}-{parent}-01-what-comes"), false),
            (format!("ff-{trace}-{parent}-01"), false),
            (format!("cc-{trace}-{parent}-01x"), false),
            (format!("00-{trace}-{parent}-1"), false),
            (format!("00-{trace}-{parent}"), false),
            (format!("00-{zeros}-{parent}-01"), false),
            (format!("00-{trace}-{}-01", &zeros[..16]), false),
            (format!("00-{}-{parent}-01", trace.to_uppercase()), false),
            (format!("00-{}-{parent}-01", &trace[1..]), false),
            (format!(" 00-{trace}-{parent}-01"), false),
            ("\u{e9}".to_owned(), false),
            (String::new(), false),
        ] {
            let headers = read(&[("traceparent", value.as_bytes())]);
            assert_eq!(headers.trace_id.as_deref(), is_valid.then_some(trace), "{value}");
        }
        let valid = format!("00-{trace}-{parent}-01");
        let twice = read(&[("traceparent", valid.as_bytes()), ("traceparent", valid.as_bytes())]);
        assert_eq!(twice.trace_id, None);
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_becomes_short_printable_text(value in proptest::collection::vec(0x80_u8.., 0..400)) {
            let headers = read(&[("user-agent", &value), ("traceparent", &value), ("x-request-id", &value)]);
            for text in [headers.user_agent, headers.request_id, headers.trace_id].into_iter().flatten() {
                prop_assert!(text.len() <= 4 * MAX_FIELD_BYTES && text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        }
    }
}
