//! Checks the heads of a backend's responses, and their chunked bodies, as their bytes arrive.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use memchr::memchr_iter;

use super::chunked::{CheckedBytes, ChunkedBody};
use super::error::FramingError;

/// Largest head of a response. Azure's have 1 to 2 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Maximum number of header fields in a response.
const MAX_FIELDS: usize = 128;
/// Maximum number of interim responses before the final one. While they arrive without a pause, no deadline would be
/// noticed.
const MAX_INTERIM_HEADS: u8 = 32;

/// The response to one request: interim heads, the final head and the body.
#[derive(Debug, Default)]
pub(in crate::proxy) struct ResponseFraming {
    position: Position,
    /// The beginning of a head that has not arrived completely.
    partial_head: BytesMut,
    interim_heads: u8,
}

#[derive(Debug, Default)]
enum Position {
    #[default]
    Head,
    ChunkedBody(ChunkedBody),
    /// What follows is framed by a length or by the end of the connection, or it belongs to a tunnel.
    Unchecked,
    Malformed(&'static str),
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterHead {
    /// The next head: this one was that of an interim response.
    Head,
    ChunkedBody,
    Other,
}

impl ResponseFraming {
    /// Checks the next bytes of the connection; returns how many of them are well-formed. If that is fewer
    /// than all, the next call returns an error.
    ///
    /// # Errors
    /// [`FramingError`] if the first of the bytes is malformed, or earlier ones were.
    pub(in crate::proxy) fn check(&mut self, bytes: &[u8]) -> Result<usize, FramingError> {
        let mut at = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            match &mut self.position {
                Position::Malformed(what) => {
                    return if at > 0 { Ok(at) } else { Err(FramingError(what)) };
                }
                Position::Unchecked => return Ok(bytes.len()),
                Position::ChunkedBody(body) => match body.check(rest) {
                    CheckedBytes::WellFormed | CheckedBytes::EndOfBody(_) => return Ok(bytes.len()),
                    CheckedBytes::MalformedAfter(well_formed) => {
                        self.position = Position::Malformed(ChunkedBody::MALFORMED);
                        at += well_formed;
                    }
                },
                Position::Head if rest.is_empty() => return Ok(bytes.len()),
                Position::Head => match self.check_head_bytes(rest) {
                    Ok(taken) => at += taken,
                    Err(what) => self.position = Position::Malformed(what),
                },
            }
        }
    }

    /// Checks that nothing malformed has arrived.
    ///
    /// # Errors
    /// [`FramingError`] if earlier bytes were malformed.
    pub(in crate::proxy) fn ensure_well_formed(&self) -> Result<(), FramingError> {
        match self.position {
            Position::Malformed(what) => Err(FramingError(what)),
            _ => Ok(()),
        }
    }

    /// Checks bytes of a head; returns how many of them belong to it.
    fn check_head_bytes(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let known = self.partial_head.len();
        if known == 0 {
            // Usually a head arrives whole, and is not copied.
            if let Some(length) = head_length(bytes, 0) {
                self.end_head(check_head(bytes.get(..length).unwrap_or_default())?)?;
                return Ok(length);
            }
        }
        self.partial_head.extend_from_slice(bytes);
        // The last three bytes may be the beginning of the CR LF CR LF that ends the head.
        if let Some(length) = head_length(&self.partial_head, known.saturating_sub(3)) {
            let head = std::mem::take(&mut self.partial_head);
            self.end_head(check_head(head.get(..length).unwrap_or_default())?)?;
            return Ok(length.saturating_sub(known));
        }
        match () {
            // At once: a server that does not speak HTTP may send nothing more.
            () if !begins_like_http(&self.partial_head) => Err("the response is not HTTP/1.1"),
            () if self.partial_head.len() > MAX_HEAD_BYTES => Err("the response head is too large"),
            () => Ok(bytes.len()),
        }
    }

    fn end_head(&mut self, after: AfterHead) -> Result<(), &'static str> {
        self.position = match after {
            AfterHead::Head if self.interim_heads == MAX_INTERIM_HEADS => {
                return Err("the response has too many interim responses");
            }
            AfterHead::Head => {
                self.interim_heads += 1;
                Position::Head
            }
            AfterHead::ChunkedBody => Position::ChunkedBody(ChunkedBody::new()),
            AfterHead::Other => Position::Unchecked,
        };
        Ok(())
    }
}

/// The length of the head in these bytes if it is complete, that is, ends with an empty line. The empty line
/// is searched from `from` on. A bare LF counts as a line end, as it does for Pingora.
fn head_length(bytes: &[u8], from: usize) -> Option<usize> {
    let searched = bytes.get(from..)?;
    memchr_iter(b'\n', searched).find_map(|at| match searched.get(at + 1..)? {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

fn begins_like_http(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected)
}

/// Checks a complete head; returns what follows it.
///
/// # Errors
/// What is malformed.
fn check_head(head: &[u8]) -> Result<AfterHead, &'static str> {
    if !begins_like_http(head) {
        return Err("the response is not HTTP/1.1");
    }
    if head.len() > MAX_HEAD_BYTES {
        return Err("the response head is too large");
    }
    let mut fields = [MaybeUninit::uninit(); MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    // Pingora also accepts fields that are folded or have a blank before the colon, and relays them as they
    // are (RFC 9112, sections 5.1 and 5.2).
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        head,
        &mut fields,
    );
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err("the response head is incomplete"),
        Err(httparse::Error::TooManyHeaders) => return Err("the response has too many header fields"),
        Err(_) => return Err("the response head is malformed"),
    }
    let status = response.code.unwrap_or(0);
    if !(100..600).contains(&status) {
        return Err("the response has an invalid status code");
    }
    let mut length = None;
    let mut is_chunked = false;
    for field in response.headers.iter() {
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                for value in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    let value = parse_length(value).ok_or("the response has an invalid Content-Length")?;
                    // Equal values are allowed (RFC 9110, section 8.6).
                    if length.is_some_and(|length| length != value) {
                        return Err("the response has conflicting Content-Length values");
                    }
                    length = Some(value);
                }
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if is_chunked || response.version != Some(1) || !field.value.eq_ignore_ascii_case(b"chunked")
                {
                    return Err("the response has an unsupported Transfer-Encoding");
                }
                is_chunked = true;
            }
            _ => {}
        }
    }
    Ok(match (status, is_chunked) {
        (_, true) if length.is_some() => {
            return Err("the response has both Content-Length and Transfer-Encoding");
        }
        (101, _) => AfterHead::Other,
        (100..=199, _) => AfterHead::Head,
        (_, true) => AfterHead::ChunkedBody,
        (_, false) => AfterHead::Other,
    })
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    // 18 digits fit into 64 bits.
    (is_number && value.len() <= 18)
        .then(|| value.iter().fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a response in one piece; returns the length of the well-formed part, 0 if there is none.
    fn well_formed_length(response: &str) -> usize {
        ResponseFraming::default().check(response.as_bytes()).unwrap_or(0)
    }

    #[test]
    fn well_formed_responses_pass_in_any_pieces() {
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200\r\n\r\nto the end",
            "HTTP/1.0 200 OK\r\nA: b\r\n\r\nto the end",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\nContent-Length:2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\0\r\nHTTP",
            "HTTP/1.1 200 Gr\u{fc}n\r\nX: \u{e4}\t\r\n\r\n",
        ] {
            assert_eq!(well_formed_length(response), response.len(), "{response:?}");
            let mut framing = ResponseFraming::default();
            for byte in response.bytes() {
                assert_eq!(framing.check(&[byte]).unwrap(), 1, "{response:?}");
            }
        }
    }

    #[test]
    fn malformed_heads_are_errors() {
        let fields = [
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1, 2",
            "Content-Length: -1",
            "Content-Length: +1",
            "Content-Length: 0x1",
            "Content-Length: 1 1",
            "Content-Length:",
            "Content-Length: 1,",
            "Content-Length: 9999999999999999999",
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding:",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\r\n chunked",
            "X: a\0b",
            "X: a\rb",
            "X: a\r\n folded",
            "X y: 1",
            ": 1",
            "no colon",
        ];
        for field in fields {
            let head = format!("HTTP/1.1 200 OK\r\nA: b\r\n{field}\r\n\r\n");
            assert_eq!(well_formed_length(&head), 0, "{field:?}");
        }
        let many_fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(MAX_FIELDS + 1));
        let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        for head in [
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/1.1 -20 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "<html>",
            "S",
            &many_fields,
            &large,
        ] {
            assert_eq!(well_formed_length(head), 0, "{head:?}");
        }
    }

    #[test]
    fn what_is_malformed_after_the_head_ends_the_well_formed_part() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n";
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (well_formed, rest) in [
            (interim.to_owned(), "garbage"),
            (interim.to_owned(), "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
            (chunked.to_owned(), "\r\n\r\n"),
            (chunked.to_owned(), ";x\r\n\r\n"),
            (format!("{chunked}2\r\n{{}}\r\n"), "\r\n\r\n"),
        ] {
            let mut framing = ResponseFraming::default();
            let bytes = format!("{well_formed}{rest}");
            assert_eq!(framing.check(bytes.as_bytes()).unwrap(), well_formed.len(), "{bytes:?}");
            assert!(framing.ensure_well_formed().is_err());
            assert!(framing.check(b"0\r\n\r\n").is_err(), "it stays malformed");
        }
    }

    #[test]
    fn interim_responses_are_limited() {
        let interim = "HTTP/1.1 103 X\r\n\r\n";
        let most = interim.repeat(usize::from(MAX_INTERIM_HEADS));
        let response = format!("{most}HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(well_formed_length(&response), response.len());
        assert_eq!(well_formed_length(&format!("{most}{interim}")), most.len());
    }

    #[test]
    fn a_head_that_does_not_end_is_limited() {
        let mut framing = ResponseFraming::default();
        assert!(framing.check(b"HTTP/1.1 200 OK\r\n").is_ok());
        let line = format!("X: {}\r\n", "x".repeat(1000));
        let pieces = (0..1000).take_while(|_| framing.check(line.as_bytes()).is_ok()).count();
        assert!(pieces <= MAX_HEAD_BYTES / line.len(), "{pieces}");
    }
}
