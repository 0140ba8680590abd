//! HTTP/1.1 by hand: request heads with their case and order kept, bodies counted exactly, raw writes.
//!
//! A library would tidy up what tests want to see, and would refuse to misbehave where [`super::faults`]
//! must. The reader is stricter than a lenient server: what a careless proxy could send (both framings,
//! folded headers, two hosts) is a 400 (RFC 9112 sections 3.2, 5.2 and 6.1).

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::codec::percent_decoded;

const LARGEST_HEAD: usize = 256 * 1024;
const LARGEST_BODY: u64 = 1024 * 1024 * 1024;
/// Bytes of a next request that are taken in while an answer is under way.
const LARGEST_PIPELINE: usize = 1024 * 1024;

/// Something bytes go through. TLS would be one more implementation.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the coming close a TCP reset instead of an orderly end.
    fn sever(&self);
}

impl Socket for TcpStream {
    fn sever(&self) {
        if let Err(error) = self.set_zero_linger() {
            log::debug!("simulate: no reset on this platform: {error}");
        }
    }
}

/// Why a request could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The caller went away, or nothing came for too long.
    #[error("the caller went away")]
    Gone,
    /// It is not a request one may answer with anything but this status.
    #[error("{1}")]
    Malformed(u16, &'static str),
}

impl From<io::Error> for WireError {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// The first line and the headers of a request, exactly as they came.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub(super) minor: u8,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

/// How the body of a request is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

impl Head {
    fn parse(raw: &[u8]) -> Result<Self, WireError> {
        let bad = |why| WireError::Malformed(400, why);
        let mut lines = raw.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let mut words = first.ok_or(bad("request line is not text"))?.split(' ');
        let (method, target, version) = (words.next(), words.next(), words.next());
        let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next())
        else {
            return Err(bad("request line is not METHOD TARGET VERSION"));
        };
        let minor = match version {
            "HTTP/1.1" => 1,
            "HTTP/1.0" => 0,
            _ => return Err(WireError::Malformed(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")),
        };
        let mut headers = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let colon = line.iter().position(|byte| *byte == b':').ok_or(bad("header without a colon"))?;
            let (name, value) = line.split_at(colon);
            let name = std::str::from_utf8(name).map_err(|_| bad("header name is not text"))?;
            if name.is_empty() || name.bytes().any(|byte| byte <= b' ') {
                return Err(bad("white space in a header name, or a folded header"));
            }
            let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
            headers.push((name.to_owned(), value.to_vec()));
        }
        let head = Self { method: method.to_owned(), target: target.to_owned(), minor, headers };
        if minor == 1 && head.values("host").count() != 1 {
            return Err(bad("HTTP/1.1 needs exactly one Host"));
        }
        Ok(head)
    }

    /// The first header of this name that is text.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).find_map(|value| std::str::from_utf8(value).ok())
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers
            .iter()
            .filter(move |(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    /// Whether a comma-separated header names this token.
    pub(super) fn lists(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// The path, still percent-encoded.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, decoded.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(key, true) == name).then(|| percent_decoded(value, true))
        })
    }

    /// Whether the connection may carry another request after this one.
    pub(super) fn keeps_alive(&self) -> bool {
        if self.minor == 0 {
            self.lists("connection", "keep-alive")
        } else {
            !self.lists("connection", "close")
        }
    }

    /// Whether this is a WebSocket handshake (RFC 6455 section 4.1).
    pub(super) fn wants_websocket(&self) -> bool {
        self.method == "GET" && self.lists("upgrade", "websocket") && self.lists("connection", "upgrade")
    }

    /// How the body that follows is delimited.
    pub(super) fn framing(&self) -> Result<Framing, WireError> {
        let bad = |why| WireError::Malformed(400, why);
        let lengths: Vec<&[u8]> = self.values("content-length").collect();
        if self.values("transfer-encoding").next().is_some() {
            if !lengths.is_empty() {
                return Err(bad("both Content-Length and Transfer-Encoding"));
            }
            let only = self.value("transfer-encoding").unwrap_or_default();
            return match only.eq_ignore_ascii_case("chunked") && self.values("transfer-encoding").count() == 1
            {
                true => Ok(Framing::Chunked),
                false => Err(WireError::Malformed(501, "unknown Transfer-Encoding")),
            };
        }
        let Some(length) = lengths.first() else { return Ok(Framing::Length(0)) };
        if lengths.len() > 1 {
            return Err(bad("more than one Content-Length"));
        }
        let digits =
            std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits
            .and_then(|text| text.parse().ok())
            .map(Framing::Length)
            .ok_or(bad("Content-Length is not a number"))
    }
}

/// A connection with what was read from it too early.
#[derive(Debug)]
pub(super) struct Wire<S> {
    socket: S,
    ahead: BytesMut,
}

impl<S: Socket> Wire<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, ahead: BytesMut::new() }
    }

    /// The next request head; `None` once the caller is done, or has been idle for too long.
    pub(super) async fn head(&mut self, idle: Option<Duration>) -> Result<Option<Head>, WireError> {
        let mut searched = 0;
        loop {
            while searched == 0 && self.ahead.starts_with(b"\r\n") {
                self.ahead.advance(2);
            }
            let from = usize::saturating_sub(searched, 3);
            let tail = self.ahead.get(from..).unwrap_or_default();
            if let Some(at) = tail.windows(4).position(|window| window == b"\r\n\r\n") {
                let raw = self.ahead.split_to(from + at + 4);
                return Head::parse(&raw).map(Some);
            }
            searched = self.ahead.len();
            if searched > LARGEST_HEAD {
                return Err(WireError::Malformed(431, "request head too large"));
            }
            let read = self.socket.read_buf(&mut self.ahead);
            let got = match idle {
                Some(limit) => timeout(limit, read).await.unwrap_or(Ok(0))?,
                None => read.await?,
            };
            if got == 0 {
                return if searched == 0 { Ok(None) } else { Err(WireError::Gone) };
            }
        }
    }

    /// Reads a body into `body`, which holds what came even when this fails.
    pub(super) async fn body(&mut self, framing: Framing, body: &mut BytesMut) -> Result<(), WireError> {
        match framing {
            Framing::Length(length) => self.take(length, body).await,
            Framing::Chunked => loop {
                let line = self.line().await?;
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let size =
                    std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
                let size = size.ok_or(WireError::Malformed(400, "chunk size is not a hex number"))?;
                if size == 0 {
                    while !self.line().await?.is_empty() {} // trailers
                    return Ok(());
                }
                self.take(size, body).await?;
                if !self.line().await?.is_empty() {
                    return Err(WireError::Malformed(400, "chunk longer than its size"));
                }
            },
        }
    }

    async fn take(&mut self, mut wanted: u64, body: &mut BytesMut) -> Result<(), WireError> {
        if wanted.saturating_add(body.len() as u64) > LARGEST_BODY {
            return Err(WireError::Malformed(413, "request body too large"));
        }
        while wanted > 0 {
            if self.ahead.is_empty() {
                self.ahead.reserve(64 * 1024);
                self.fill().await?;
            }
            let part = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.ahead.len());
            body.extend_from_slice(&self.ahead.split_to(part));
            wanted -= part as u64;
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<Bytes, WireError> {
        loop {
            if let Some(at) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let line = self.ahead.split_to(at + 1).freeze();
                return Ok(line.slice(..line.trim_ascii_end().len()));
            }
            if self.ahead.len() > LARGEST_HEAD {
                return Err(WireError::Malformed(400, "endless line in a chunked body"));
            }
            self.fill().await?;
        }
    }

    /// Exactly `count` bytes, for WebSocket frames.
    pub(super) async fn exactly(&mut self, count: usize) -> Result<BytesMut, WireError> {
        while self.ahead.len() < count {
            self.fill().await?;
        }
        Ok(self.ahead.split_to(count))
    }

    async fn fill(&mut self) -> Result<(), WireError> {
        match self.socket.read_buf(&mut self.ahead).await? {
            0 => Err(WireError::Gone),
            _ => Ok(()),
        }
    }

    /// Whether something of the body has already come, so that nobody waits for `100 Continue`.
    pub(super) fn has_bytes_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Writes all of it.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.socket.write_all(bytes).await?;
        Ok(self.socket.flush().await?)
    }

    /// Waits, and notices meanwhile when the caller goes away.
    pub(super) async fn pause(&mut self, length: Duration) -> Result<(), WireError> {
        if length.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = sleep(length) => Ok(()),
            () = self.gone() => Err(WireError::Gone),
        }
    }

    /// Returns once the caller has gone away.
    pub(super) async fn gone(&mut self) {
        while self.ahead.len() < LARGEST_PIPELINE {
            if !matches!(self.socket.read_buf(&mut self.ahead).await, Ok(1..)) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Drops the connection with a TCP reset.
    pub(super) async fn reset(self) {
        // What was already sent should be read before the reset overtakes it.
        sleep(Duration::from_millis(15)).await;
        self.socket.sever();
    }

    /// Ends the connection in order: what was sent arrives, then the end.
    pub(super) async fn close(mut self) {
        if self.socket.shutdown().await.is_err() {
            return;
        }
        // Unread bytes would turn the close into a reset, which can destroy the answer on its way.
        let drained = async {
            while matches!(self.socket.read_buf(&mut self.ahead).await, Ok(1..)) {
                self.ahead.clear();
            }
        };
        if timeout(Duration::from_secs(1), drained).await.is_err() {
            log::trace!("simulate: the caller keeps a closed connection open");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_keep_their_case_and_order() {
        let head =
            Head::parse(b"POST /a%20b?x=1&y=%2F HTTP/1.1\r\nHost: h\r\nX-One:  a \r\nx-one: b\r\n\r\n")
                .unwrap();
        assert_eq!((head.path(), head.query("y").as_deref()), ("/a%20b", Some("/")));
        assert_eq!(head.headers[1], ("X-One".to_owned(), b"a".to_vec()));
        assert_eq!(head.value("X-ONE"), Some("a"));
    }

    #[test]
    fn ambiguous_requests_are_refused() {
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
        for (raw, why) in cases {
            let framing = Head::parse(raw.as_bytes()).and_then(|head| head.framing());
            assert!(matches!(framing, Err(WireError::Malformed(400, _))), "{why}: {framing:?}");
        }
    }
}
