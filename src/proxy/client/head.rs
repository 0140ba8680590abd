//! Refuses request heads that the balancer and a proxy in front of it or a backend could understand
//! differently (request smuggling).

use std::cell::Cell;
use std::mem::MaybeUninit;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use pingora::http::RequestHeader;

use crate::refusal::{Refusal, RefusalReason};

/// Largest request head. The heads of SDKs have up to 2 KiB, plus up to 8 KiB for an access token of Entra
/// ID.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Maximum number of header fields in a request.
const MAX_FIELDS: usize = 100;
/// What a field counts in HTTP/2 beside its name and value (RFC 9113, section 6.5.2).
const HTTP2_FIELD_BYTES: usize = 32;

/// How it is known where the body after a head ends (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// No body, or an empty one.
    None,
    /// By its length.
    Length,
    /// By its last chunk.
    Chunked,
}

/// Checks a complete head of HTTP/1.x, including the empty line at its end. Returns the framing of the body.
///
/// # Errors
/// `bad_request`, or `headers_too_large` for too many fields.
pub fn check_head(head: &[u8]) -> Result<BodyFraming, Refusal> {
    if has_bare_line_end(head) {
        return Err(Refusal::bad_request("the request head has a line that does not end in CR LF"));
    }
    let mut fields = [MaybeUninit::uninit(); MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Err(Refusal::bad_request("the request head is incomplete"));
        }
        Err(httparse::Error::TooManyHeaders) => return Err(too_many_fields_refusal()),
        Err(error) => {
            return Err(Refusal::bad_request(format!("the request head is malformed: {error}")));
        }
    }
    check_target(&request)?;
    let is_http_11 = request.version == Some(1);
    let counts = SingletonFieldCounts::default();
    for field in request.headers.iter() {
        counts.check_and_count_field(field, is_http_11)?;
    }
    counts.check_counts(is_http_11)?;
    Ok(match (counts.transfer_encoding.get(), counts.has_body.get()) {
        (1.., _) => BodyFraming::Chunked,
        (0, true) => BodyFraming::Length,
        (0, false) => BodyFraming::None,
    })
}

/// Checks the header fields of an HTTP/2 request. Its framing is checked by h2.
///
/// # Errors
/// `bad_request`, or `headers_too_large` for too many or too large fields.
pub(super) fn check_http2_fields(request: &RequestHeader) -> Result<(), Refusal> {
    if request.headers.len() > MAX_FIELDS {
        return Err(too_many_fields_refusal());
    }
    let field_bytes = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    let bytes: usize = field_bytes.map(|bytes| bytes + HTTP2_FIELD_BYTES).sum();
    if request.raw_path().len() + bytes > MAX_HEAD_BYTES {
        return Err(too_large_refusal());
    }
    for (name, display_name) in [
        (CONTENT_TYPE, "Content-Type"),
        (CONTENT_ENCODING, "Content-Encoding"),
        (CONTENT_LENGTH, "Content-Length"),
        (HOST, "Host"),
    ] {
        if request.headers.get_all(name).iter().nth(1).is_some() {
            return bad_request(format!("there is more than one `{display_name}`"));
        }
    }
    Ok(())
}

/// The refusal of a head of more than [`MAX_HEAD_BYTES`].
pub(super) fn too_large_refusal() -> Refusal {
    let message = format!("a request head may have at most {MAX_HEAD_BYTES} bytes");
    Refusal::new(RefusalReason::HeadersTooLarge, message)
}

fn too_many_fields_refusal() -> Refusal {
    Refusal::new(
        RefusalReason::HeadersTooLarge,
        format!("a request may have at most {MAX_FIELDS} header fields"),
    )
}

/// Checks that the request target is a path, or a URL with a host. CONNECT and `*` are left to the gateway,
/// which refuses them.
fn check_target(request: &httparse::Request<'_, '_>) -> Result<(), Refusal> {
    let target = request.path.unwrap_or("");
    if target.starts_with('/') || target == "*" || request.method == Some("CONNECT") {
        return Ok(());
    }
    let url = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let authority = url.map(|url| url.split(['/', '?']).next().unwrap_or(""));
    let is_valid = |text: &str| {
        let parsed = text.parse::<http::uri::Authority>();
        // The parser accepts a port that is no valid number and then behaves as if there were none.
        has_only_authority_characters(text.as_bytes())
            && parsed.is_ok_and(|authority| authority.port().is_some() == has_port(text))
    };
    match authority {
        Some(authority) if is_valid(authority) => Ok(()),
        _ => bad_request("the request target must be a path, or a URL with a host"),
    }
}

fn has_port(authority: &str) -> bool {
    // The colons of an IPv6 address are in brackets.
    authority.rsplit(']').next().unwrap_or("").contains(':')
}

/// Counts the fields that a request may have only once, because they decide where it ends, which host it is
/// for, and how its body is read.
#[derive(Default)]
struct SingletonFieldCounts {
    host: Cell<u32>,
    content_length: Cell<u32>,
    /// The length is not 0.
    has_body: Cell<bool>,
    transfer_encoding: Cell<u32>,
    content_type: Cell<u32>,
    content_encoding: Cell<u32>,
}

impl SingletonFieldCounts {
    /// Checks one field and counts it.
    fn check_and_count_field(&self, field: &httparse::Header<'_>, is_http_11: bool) -> Result<(), Refusal> {
        let count = |counter: &Cell<u32>| counter.set(counter.get() + 1);
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        // The length is compared first, which is enough for most fields.
        match field.name.len() {
            4 if is("host") => {
                count(&self.host);
                if !has_only_authority_characters(field.value) {
                    return bad_request("`Host` must be a host name or address, with a port or without");
                }
            }
            12 if is("content-type") => count(&self.content_type),
            16 if is("content-encoding") => count(&self.content_encoding),
            10 if is("connection") => check_nominated_fields(field.value)?,
            14 if is("content-length") => {
                count(&self.content_length);
                let is_number = !field.value.is_empty() && field.value.iter().all(u8::is_ascii_digit);
                // 18 digits fit into 64 bits.
                if !is_number || field.value.len() > 18 {
                    return bad_request("`Content-Length` must be one number");
                }
                self.has_body.set(field.value.iter().any(|digit| *digit != b'0'));
            }
            17 if is("transfer-encoding") => {
                count(&self.transfer_encoding);
                if !is_http_11 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return bad_request("`Transfer-Encoding` may only be `chunked`, in HTTP/1.1");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that each field occurs at most once, `Host` if it is required, and only one that says where
    /// the body ends.
    fn check_counts(&self, is_http_11: bool) -> Result<(), Refusal> {
        match (self.host.get(), self.content_length.get(), self.transfer_encoding.get()) {
            (0, ..) if is_http_11 => bad_request("`Host` is missing"),
            (2.., ..) => bad_request("there is more than one `Host`"),
            (_, 2.., _) => bad_request("there is more than one `Content-Length`"),
            (.., 2..) => bad_request("there is more than one `Transfer-Encoding`"),
            (_, 1, 1) => bad_request("there are both `Content-Length` and `Transfer-Encoding`"),
            _ if self.content_type.get() > 1 => bad_request("there is more than one `Content-Type`"),
            _ if self.content_encoding.get() > 1 => bad_request("there is more than one `Content-Encoding`"),
            _ => Ok(()),
        }
    }
}

/// Checks the fields that `Connection` names, which the next proxy removes (RFC 9110, section 7.6.1). A
/// client must not have fields removed that servers rely on.
fn check_nominated_fields(value: &[u8]) -> Result<(), Refusal> {
    const NEVER_REMOVED: [&[u8]; 8] = [
        b"host",
        b"content-length",
        b"content-type",
        b"authorization",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ];
    for name in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
        let is_token =
            name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte));
        if !is_token || NEVER_REMOVED.iter().any(|field| field.eq_ignore_ascii_case(name)) {
            return bad_request(
                "`Connection` must only name header fields, and none that other servers rely on",
            );
        }
    }
    Ok(())
}

fn bad_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<(), Refusal> {
    Err(Refusal::bad_request(message))
}

/// Whether there is a CR without an LF, or an LF without a CR.
fn has_bare_line_end(head: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', head).any(|at| match head.get(at) {
        Some(b'\n') => at == 0 || head.get(at - 1) != Some(&b'\r'),
        _ => head.get(at + 1) != Some(&b'\n'),
    })
}

/// Whether this has only characters of a host name or address and a port.
fn has_only_authority_characters(value: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%:[]".contains(byte);
    !value.is_empty() && value.len() <= 255 && value.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal_reason(head: &str) -> Option<RefusalReason> {
        check_head(head.as_bytes()).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn unambiguous_heads_are_accepted() {
        use BodyFraming::{Chunked, Length, None};
        for (head, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("POST /x?y HTTP/1.1\r\nhost: [::1]:80\r\nContent-Length: 30\r\n\r\n", Length),
            ("POST /x HTTP/1.1\r\nhost: a\r\nContent-Length: 00\r\n\r\n", None),
            ("POST /x HTTP/1.1\r\nHost: a.b:1\r\nTransfer-Encoding: Chunked\r\nX: a b\tc\r\n\r\n", Chunked),
            ("GET / HTTP/1.0\r\n\r\n", None),
            ("GET http://a:80/x HTTP/1.1\r\nHost: a:80\r\n\r\n", None),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine\r\n\r\n", None),
        ] {
            assert_eq!(check_head(head.as_bytes()).unwrap(), framing, "{head:?}");
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let fields = [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: 0x3",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\r\n chunked",
            " X: 1",
            "X: 1\n",
            "X: 1\rY: 2",
            "X: a\0b",
            "Host: b",
            "X y: 1",
            ": 1",
            "Content-Type: a/b\r\nContent-Type: c/d",
            "Content-Encoding: gzip\r\nContent-Encoding: identity",
            "Connection: close, host",
            "Connection: \"X\"",
        ];
        for field in fields {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            assert_eq!(refusal_reason(&head), Some(RefusalReason::BadRequest), "{field:?}");
        }
        let heads = [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://x:99999999/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://u:p@b/openai HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET openai HTTP/1.1\r\nHost: b\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: a\r\n\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
        ];
        for head in heads {
            assert_eq!(refusal_reason(head), Some(RefusalReason::BadRequest), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(100));
        assert_eq!(refusal_reason(&many), Some(RefusalReason::HeadersTooLarge));
    }
}
