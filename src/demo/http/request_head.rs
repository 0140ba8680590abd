//! The head of a request: the request line and the headers, exactly as received.
//!
//! The parser is strict. What a careless proxy could send (two framings, folded headers, two `Host`
//! headers) is a 400 (RFC 9112 sections 3.2, 5.2 and 6.1).

use super::error::ConnectionError;
use crate::demo::util::encoding::percent_decode;

/// The request line and the headers of a request, in the order and the case received.
#[derive(Debug, Clone)]
pub(in crate::demo) struct RequestHead {
    pub(in crate::demo) method: String,
    /// Path and query, still percent-encoded.
    pub(in crate::demo) target: String,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub(in crate::demo) minor_version: u8,
    /// Names in the case received; values without surrounding white space.
    pub(in crate::demo) headers: Vec<(String, Vec<u8>)>,
}

/// How the end of a request body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum RequestBodyFraming {
    Length(u64),
    Chunked,
}

impl RequestHead {
    /// Parses a head, including the empty line that ends it.
    ///
    /// # Errors
    /// [`ConnectionError::MalformedRequest`] with the status to respond with.
    pub(super) fn parse(raw: &[u8]) -> Result<Self, ConnectionError> {
        let malformed = |reason| ConnectionError::MalformedRequest(400, reason);
        let mut lines = raw.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let request_line = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let mut words = request_line.ok_or(malformed("request line is not text"))?.split(' ');
        let (method, target, version) = (words.next(), words.next(), words.next());
        let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next())
        else {
            return Err(malformed("request line is not METHOD TARGET VERSION"));
        };
        let minor_version = match version {
            "HTTP/1.1" => 1,
            "HTTP/1.0" => 0,
            _ => {
                return Err(ConnectionError::MalformedRequest(
                    505,
                    "only HTTP/1.0 and HTTP/1.1 are spoken here",
                ));
            }
        };
        let mut headers = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let colon =
                line.iter().position(|byte| *byte == b':').ok_or(malformed("header without a colon"))?;
            let (name, value) = line.split_at(colon);
            let name = std::str::from_utf8(name).map_err(|_| malformed("header name is not text"))?;
            if name.is_empty() || name.bytes().any(|byte| byte <= b' ') {
                return Err(malformed("white space in a header name, or a folded header"));
            }
            let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
            headers.push((name.to_owned(), value.to_vec()));
        }
        let head = Self { method: method.to_owned(), target: target.to_owned(), minor_version, headers };
        if minor_version == 1 && head.header_values("host").count() != 1 {
            return Err(malformed("HTTP/1.1 needs exactly one Host"));
        }
        Ok(head)
    }

    /// The first header of this name whose value is valid UTF-8.
    pub(in crate::demo) fn header(&self, name: &str) -> Option<&str> {
        self.header_values(name).find_map(|value| std::str::from_utf8(value).ok())
    }

    fn header_values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    /// Whether a header that is a comma-separated list contains this token.
    pub(in crate::demo) fn header_has_token(&self, name: &str, token: &str) -> bool {
        self.header_values(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// The path, still percent-encoded.
    pub(in crate::demo) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, percent-decoded.
    pub(in crate::demo) fn query_parameter(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true) == name).then(|| percent_decode(value, true))
        })
    }

    /// Whether the client lets the connection carry another request after this one.
    pub(in crate::demo) fn keeps_alive(&self) -> bool {
        if self.minor_version == 0 {
            self.header_has_token("connection", "keep-alive")
        } else {
            !self.header_has_token("connection", "close")
        }
    }

    /// Whether this is a WebSocket handshake (RFC 6455 section 4.1).
    pub(in crate::demo) fn is_websocket_upgrade(&self) -> bool {
        self.method == "GET"
            && self.header_has_token("upgrade", "websocket")
            && self.header_has_token("connection", "upgrade")
    }

    /// How the end of the body is found.
    ///
    /// # Errors
    /// [`ConnectionError::MalformedRequest`] if the framing is ambiguous or unknown.
    pub(in crate::demo) fn body_framing(&self) -> Result<RequestBodyFraming, ConnectionError> {
        let malformed = |reason| ConnectionError::MalformedRequest(400, reason);
        let lengths: Vec<&[u8]> = self.header_values("content-length").collect();
        if self.header_values("transfer-encoding").next().is_some() {
            if !lengths.is_empty() {
                return Err(malformed("both Content-Length and Transfer-Encoding"));
            }
            let coding = self.header("transfer-encoding").unwrap_or_default();
            return match coding.eq_ignore_ascii_case("chunked")
                && self.header_values("transfer-encoding").count() == 1
            {
                true => Ok(RequestBodyFraming::Chunked),
                false => Err(ConnectionError::MalformedRequest(501, "unknown Transfer-Encoding")),
            };
        }
        let Some(length) = lengths.first() else { return Ok(RequestBodyFraming::Length(0)) };
        if lengths.len() > 1 {
            return Err(malformed("more than one Content-Length"));
        }
        let digits =
            std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits
            .and_then(|text| text.parse().ok())
            .map(RequestBodyFraming::Length)
            .ok_or(malformed("Content-Length is not a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_head_keeps_the_case_and_order_of_its_headers() {
        let head = RequestHead::parse(
            b"POST /a%20b?x=1&y=%2F HTTP/1.1\r\nHost: h\r\nX-One:  a \r\nx-one: b\r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.path(), head.query_parameter("y").as_deref()), ("/a%20b", Some("/")));
        assert_eq!(head.headers[1], ("X-One".to_owned(), b"a".to_vec()));
        assert_eq!(head.header("X-ONE"), Some("a"));
    }

    #[test]
    fn ambiguous_requests_are_malformed() {
        let cases: [(&str, &str); 7] = [
            ("GET / HTTP/1.1\r\n\r\n", "no host"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two hosts"),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", "folded"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "two spaces"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "two framings",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "two lengths"),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", "signed length"),
        ];
        for (raw, description) in cases {
            let framing = RequestHead::parse(raw.as_bytes()).and_then(|head| head.body_framing());
            assert!(
                matches!(framing, Err(ConnectionError::MalformedRequest(400, _))),
                "{description}: {framing:?}"
            );
        }
    }
}
