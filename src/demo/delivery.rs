//! Saying an answer over HTTP/1.1: framing, timing, and where it breaks off.

use std::time::Duration;

use bytes::Bytes;

use super::answer::{Answer, Body};
use super::faults::eighths;
use super::http1::{Head, Socket, Wire, WireError};
use super::script::Extent;

/// How an answer is to be said.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    pub(super) first: Duration,
    pub(super) between: Duration,
    /// After so many pieces, for so long.
    pub(super) silence: Option<(usize, Duration)>,
    pub(super) stop: Option<(Extent, Stop)>,
    pub(super) framing: Framing,
    pub(super) tiny: bool,
    pub(super) infos: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Reset,
    Close,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// `Content-Length` for whole bodies, chunks for streams.
    #[default]
    Natural,
    /// `Content-Length` that promises so many bytes too much.
    Short(usize),
    /// HTTP/1.0 without a length.
    UntilClose,
}

/// What became of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Everything was said; the connection may be used again.
    Whole,
    /// Everything was said, and the connection must end.
    WholeAndClose,
    /// Broken off on purpose.
    Cut(Stop),
}

impl Delivery {
    /// Sends everything up to the body.
    pub(super) async fn head<S: Socket>(
        &self,
        wire: &mut Wire<S>,
        head: &Head,
        answer: &Answer,
        keep: bool,
    ) -> Result<(), WireError> {
        for number in 0..self.infos {
            let line =
                if number % 2 == 0 { "103 Early Hints\r\nlink: </x>; rel=preload" } else { "102 Processing" };
            wire.write(format!("HTTP/1.1 {line}\r\n\r\n").as_bytes()).await?;
        }
        let version = if self.framing == Framing::UntilClose { "1.0" } else { "1.1" };
        let mut text = format!("HTTP/{version} {} {}\r\n", answer.status, reason(answer.status));
        for (name, value) in &answer.headers {
            let value: String = value.chars().filter(|character| !character.is_control()).collect();
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let length: usize = pieces(&answer.body, false).iter().map(Bytes::len).sum();
        let framing = match (self.framing, &answer.body) {
            (Framing::Short(missing), _) => format!("content-length: {}\r\n", length + missing),
            (Framing::Natural, Body::Whole(_)) => format!("content-length: {length}\r\n"),
            _ if self.is_chunked(head, &answer.body) => "transfer-encoding: chunked\r\n".to_owned(),
            _ => String::new(),
        };
        text.push_str(&framing);
        if !keep || self.ends_connection(head, &answer.body) {
            text.push_str("connection: close\r\n");
        } else if head.minor == 0 {
            text.push_str("connection: keep-alive\r\n");
        }
        text.push_str("\r\n");
        wire.write(text.as_bytes()).await
    }

    /// Sends the body, or as much of it as is meant to be.
    pub(super) async fn body<S: Socket>(
        &self,
        wire: &mut Wire<S>,
        head: &Head,
        body: &Body,
    ) -> Result<Sent, WireError> {
        let ends = self.ends_connection(head, body);
        let whole = if ends { Sent::WholeAndClose } else { Sent::Whole };
        if head.method == "HEAD" {
            return Ok(whole);
        }
        let chunked = self.is_chunked(head, body);
        let divides = !self.between.is_zero() || self.silence.is_some() || self.stop.is_some();
        let mut said = 0;
        for (index, piece) in pieces(body, divides).iter().enumerate() {
            if let Some((after, lasting)) = self.silence
                && after == index
            {
                wire.pause(lasting).await?;
            }
            wire.pause(self.between).await?;
            let room = match self.stop {
                Some((Extent::Events(most), stop)) if index >= most => return Ok(Sent::Cut(stop)),
                Some((Extent::Bytes(most), _)) => most.saturating_sub(said).min(piece.len()),
                _ => piece.len(),
            };
            said += room;
            let mut framed = Vec::with_capacity(room + 16);
            if chunked {
                framed.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            }
            framed.extend_from_slice(piece.get(..room).unwrap_or_default());
            if chunked && room == piece.len() {
                framed.extend_from_slice(b"\r\n");
            }
            self.write(wire, &framed).await?;
            if let Some((_, stop)) = self.stop
                && room < piece.len()
            {
                return Ok(Sent::Cut(stop));
            }
        }
        match (self.stop, self.framing) {
            (Some((_, stop)), _) => return Ok(Sent::Cut(stop)),
            (None, Framing::Short(_)) => return Ok(Sent::Cut(Stop::Close)),
            (None, _) if chunked => wire.write(b"0\r\n\r\n").await?,
            (None, _) => {}
        }
        Ok(whole)
    }

    async fn write<S: Socket>(&self, wire: &mut Wire<S>, bytes: &[u8]) -> Result<(), WireError> {
        if !self.tiny {
            return wire.write(bytes).await;
        }
        let (mut rest, mut size) = (bytes, 1);
        while !rest.is_empty() {
            let (now, later) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            wire.write(now).await?;
            tokio::task::yield_now().await;
            rest = later;
            size = size % 7 + 1;
        }
        Ok(())
    }

    fn is_chunked(&self, head: &Head, body: &Body) -> bool {
        self.framing == Framing::Natural && matches!(body, Body::Stream(..)) && head.minor == 1
    }

    fn ends_connection(&self, head: &Head, body: &Body) -> bool {
        self.framing == Framing::UntilClose || (head.minor == 0 && matches!(body, Body::Stream(..)))
    }
}

/// The parts of a body between which something can happen.
fn pieces(body: &Body, divides: bool) -> Vec<Bytes> {
    match body {
        Body::Whole(bytes) if divides => eighths(bytes),
        Body::Whole(bytes) if bytes.is_empty() => Vec::new(),
        Body::Whole(bytes) => vec![bytes.clone()],
        Body::Stream(_, pieces) => {
            pieces.iter().map(|piece| piece.bytes.clone()).filter(|bytes| !bytes.is_empty()).collect()
        }
        Body::Socket(_) => Vec::new(),
    }
}

/// The reason phrase of a status.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        424 => "Failed Dependency",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}
