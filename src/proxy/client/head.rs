//! Whether a request head means one thing only. Everything that two servers in a row could
//! read differently, and so be made to disagree about where a request ends, is refused.

use std::cell::Cell;
use std::mem::MaybeUninit;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use pingora::http::RequestHeader;

use crate::refusal::{Reason, Refusal};

/// Most header fields of a request.
const FIELDS_MAX: usize = 100;

/// Checks a complete head, up to and including its empty line.
///
/// # Errors
/// `bad_request`, and `headers_too_large` for more than a hundred fields.
pub(in crate::proxy) fn check(head: &[u8]) -> Result<(), Refusal> {
    if has_bare_line_end(head) {
        return bad("the request head has a line that does not end in CR LF");
    }
    let mut fields = [MaybeUninit::uninit(); FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return bad("the request head is incomplete"),
        Err(httparse::Error::TooManyHeaders) => return Err(too_many()),
        Err(problem) => return bad(format!("the request head is malformed: {problem}")),
    }
    target(&request)?;
    let is_http_11 = request.version == Some(1);
    let framing = Framing::default();
    for field in request.headers.iter() {
        framing.field(field, is_http_11)?;
    }
    framing.together(is_http_11)
}

/// Checks the fields of a request of HTTP/2, whose framing is the protocol's own business.
///
/// # Errors
/// `bad_request`, and `headers_too_large` for more than a hundred fields.
pub(in crate::proxy) fn check_fields(request: &RequestHeader) -> Result<(), Refusal> {
    if request.headers.len() > FIELDS_MAX {
        return Err(too_many());
    }
    for (name, shown) in [
        (CONTENT_TYPE, "Content-Type"),
        (CONTENT_ENCODING, "Content-Encoding"),
        (CONTENT_LENGTH, "Content-Length"),
        (HOST, "Host"),
    ] {
        if request.headers.get_all(name).iter().nth(1).is_some() {
            return bad(format!("there is more than one `{shown}`"));
        }
    }
    Ok(())
}

fn too_many() -> Refusal {
    Refusal::new(Reason::HeadersTooLarge, format!("a request may have at most {FIELDS_MAX} header fields"))
}

/// A target that the engine would refuse without a word: neither a path nor a URL of ours.
fn target(request: &httparse::Request<'_, '_>) -> Result<(), Refusal> {
    let target = request.path.unwrap_or("");
    if target.starts_with('/') || target == "*" || request.method == Some("CONNECT") {
        return Ok(());
    }
    let url = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let authority = url.map(|url| url.split(['/', '?']).next().unwrap_or(""));
    let is_good = |text: &str| {
        let parsed = text.parse::<http::uri::Authority>();
        // A port that is no number of a port is left out by the parser.
        is_authority(text.as_bytes())
            && parsed.is_ok_and(|authority| authority.port().is_some() == has_port(text))
    };
    match authority {
        Some(authority) if is_good(authority) => Ok(()),
        _ => bad("the request target must be a path, or a URL with a host"),
    }
}

fn has_port(authority: &str) -> bool {
    authority.rsplit(']').next().unwrap_or("").contains(':')
}

/// The fields that decide where a request ends, whom it is for and how its body is read.
#[derive(Default)]
struct Framing {
    hosts: Cell<u32>,
    lengths: Cell<u32>,
    chunked: Cell<u32>,
    types: Cell<u32>,
    encodings: Cell<u32>,
}

impl Framing {
    fn field(&self, field: &httparse::Header<'_>, is_http_11: bool) -> Result<(), Refusal> {
        let one_more = |count: &Cell<u32>| count.set(count.get() + 1);
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            4 if is("host") => {
                one_more(&self.hosts);
                if !is_authority(field.value) {
                    return bad("`Host` must be a host name or address, with a port or without");
                }
            }
            12 if is("content-type") => one_more(&self.types),
            16 if is("content-encoding") => one_more(&self.encodings),
            10 if is("connection") => nominations(field.value)?,
            14 if is("content-length") => {
                one_more(&self.lengths);
                let digits = !field.value.is_empty() && field.value.iter().all(u8::is_ascii_digit);
                if !digits || field.value.len() > 18 {
                    return bad("`Content-Length` must be one number");
                }
            }
            17 if is("transfer-encoding") => {
                one_more(&self.chunked);
                if !is_http_11 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return bad("`Transfer-Encoding` may only be `chunked`, in HTTP/1.1");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn together(&self, is_http_11: bool) -> Result<(), Refusal> {
        match (self.hosts.get(), self.lengths.get(), self.chunked.get()) {
            (0, ..) if is_http_11 => bad("`Host` is missing"),
            (2.., ..) => bad("there is more than one `Host`"),
            (_, 2.., _) => bad("there is more than one `Content-Length`"),
            (.., 2..) => bad("there is more than one `Transfer-Encoding`"),
            (_, 1, 1) => bad("there are both `Content-Length` and `Transfer-Encoding`"),
            _ if self.types.get() > 1 => bad("there is more than one `Content-Type`"),
            _ if self.encodings.get() > 1 => bad("there is more than one `Content-Encoding`"),
            _ => Ok(()),
        }
    }
}

/// A client may ask for its own headers to be taken off on the way, but not for those on
/// which others rely.
fn nominations(value: &[u8]) -> Result<(), Refusal> {
    const KEPT: [&[u8]; 8] = [
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
        if !is_token || KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name)) {
            return bad("`Connection` names a header that it may not take away, or none at all");
        }
    }
    Ok(())
}

fn bad(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<(), Refusal> {
    Err(Refusal::bad_request(message))
}

/// A CR without LF or an LF without CR.
fn has_bare_line_end(head: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', head).any(|at| match head.get(at) {
        Some(b'\n') => at == 0 || head.get(at - 1) != Some(&b'\r'),
        _ => head.get(at + 1) != Some(&b'\n'),
    })
}

fn is_authority(value: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%:[]".contains(byte);
    !value.is_empty() && value.len() <= 255 && value.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(head: &str) -> Option<Reason> {
        check(head.as_bytes()).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn ordinary_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /x?y HTTP/1.1\r\nhost: [::1]:80\r\nContent-Length: 3\r\n\r\n",
            "POST /x HTTP/1.1\r\nHost: a.b:1\r\nTransfer-Encoding: Chunked\r\nX: a b\tc\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET http://a:80/x HTTP/1.1\r\nHost: a:80\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine\r\n\r\n",
        ] {
            assert_eq!(verdict(head), None, "{head:?}");
        }
    }

    #[test]
    fn ambiguous_heads_do_not() {
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
            assert_eq!(verdict(&head), Some(Reason::BadRequest), "{field:?}");
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
            assert_eq!(verdict(head), Some(Reason::BadRequest), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(100));
        assert_eq!(verdict(&many), Some(Reason::HeadersTooLarge));
    }
}
