//! Sends a response over HTTP/1.1: its framing, its timing, and where it is cut off.

use std::time::Duration;

use bytes::Bytes;

use crate::demo::api::response::{ResponseBody, SimulatedResponse};
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::request_head::RequestHead;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::http::status::reason_phrase;
use crate::demo::moods::mood::{BodyPosition, Mood};
use crate::demo::resource::definition::ResponseTiming;

/// How a response is sent.
#[derive(Debug, Default)]
pub(in crate::demo) struct DeliveryPlan {
    /// Before the head.
    pub(in crate::demo) first_byte_delay: Duration,
    /// Before each piece of the body.
    delay_before_each_piece: Duration,
    silence: Option<SilencePlan>,
    /// Where the body is cut off, and how.
    pub(in crate::demo) cutoff: Option<(BodyPosition, CutoffMethod)>,
    framing: ResponseFraming,
    splits_into_tiny_writes: bool,
    pub(in crate::demo) interim_response_count: usize,
}

/// A pause within the body.
#[derive(Debug)]
struct SilencePlan {
    after_events: usize,
    duration: Duration,
}

/// How a connection ends when the response is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum CutoffMethod {
    Reset,
    Close,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ResponseFraming {
    /// `Content-Length` for whole bodies, chunks for streams.
    #[default]
    Standard,
    /// `Content-Length` that exceeds the body by this many bytes.
    UnderfilledLength(usize),
    /// HTTP/1.0 without a length; the body ends with the connection.
    UntilClose,
}

/// How the sending of a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum DeliveryOutcome {
    /// Everything was sent; the connection may carry another request.
    CompleteReusable,
    /// Everything was sent; the connection must be closed.
    CompleteMustClose,
    /// The mood cut the response off.
    CutOff(CutoffMethod),
}

impl DeliveryPlan {
    /// The plan for a mood, with the delays of the resource where the mood says nothing.
    pub(in crate::demo) fn from_mood(mood: &Mood, timing: ResponseTiming) -> Self {
        let mut plan = Self {
            first_byte_delay: timing.first_byte_delay,
            delay_before_each_piece: timing.event_interval,
            ..Self::default()
        };
        match mood {
            Mood::SlowFirstByte(delay) => plan.first_byte_delay = *delay,
            Mood::Drip(delay) => plan.delay_before_each_piece = *delay,
            Mood::ResetMidBody { after } => plan.cutoff = Some((*after, CutoffMethod::Reset)),
            Mood::CloseMidStream { after } => plan.cutoff = Some((*after, CutoffMethod::Close)),
            Mood::TruncatedLength { missing_bytes } => {
                plan.framing = ResponseFraming::UnderfilledLength(*missing_bytes);
            }
            Mood::Silence { after_events, duration } => {
                plan.silence = Some(SilencePlan { after_events: *after_events, duration: *duration });
            }
            Mood::TinyWrites => plan.splits_into_tiny_writes = true,
            Mood::InfoFlood(count) => plan.interim_response_count = *count,
            Mood::Http10Close => plan.framing = ResponseFraming::UntilClose,
            Mood::EarlyAnswer { .. } => plan.first_byte_delay = Duration::ZERO,
            _ => {}
        }
        plan
    }

    /// The pause before the piece of this index.
    pub(in crate::demo) fn delay_before_piece(&self, index: usize) -> Duration {
        let silence = self.silence.as_ref().filter(|silence| silence.after_events == index);
        self.delay_before_each_piece + silence.map_or(Duration::ZERO, |silence| silence.duration)
    }

    /// Whether a longer body is announced than is sent.
    pub(in crate::demo) fn announces_too_much(&self) -> bool {
        matches!(self.framing, ResponseFraming::UnderfilledLength(_))
    }

    /// Sends interim responses, the status line and the headers.
    pub(in crate::demo) async fn send_head<S: ResettableStream>(
        &self,
        connection: &mut HttpConnection<S>,
        head: &RequestHead,
        response: &SimulatedResponse,
        keeps_alive: bool,
    ) -> Result<(), ConnectionError> {
        for number in 0..self.interim_response_count {
            let line =
                if number % 2 == 0 { "103 Early Hints\r\nlink: </x>; rel=preload" } else { "102 Processing" };
            connection.write_all(format!("HTTP/1.1 {line}\r\n\r\n").as_bytes()).await?;
        }
        let version = if self.framing == ResponseFraming::UntilClose { "1.0" } else { "1.1" };
        let mut text = format!("HTTP/{version} {} {}\r\n", response.status, reason_phrase(response.status));
        for (name, value) in &response.headers {
            // `retry-after` may come verbatim from a file or a header.
            let value: String = value.chars().filter(|character| !character.is_control()).collect();
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let body_length: usize = body_pieces(&response.body, false).iter().map(Bytes::len).sum();
        let framing = match (self.framing, &response.body) {
            (ResponseFraming::UnderfilledLength(missing_bytes), _) => {
                format!("content-length: {}\r\n", body_length + missing_bytes)
            }
            (ResponseFraming::Standard, ResponseBody::Complete(_)) => {
                format!("content-length: {body_length}\r\n")
            }
            _ if self.is_chunked(head, &response.body) => "transfer-encoding: chunked\r\n".to_owned(),
            _ => String::new(),
        };
        text.push_str(&framing);
        if !keeps_alive || self.body_ends_at_close(head, &response.body) {
            text.push_str("connection: close\r\n");
        } else if head.minor_version == 0 {
            text.push_str("connection: keep-alive\r\n");
        }
        text.push_str("\r\n");
        connection.write_all(text.as_bytes()).await
    }

    /// Sends the body, or as much of it as the mood lets through.
    pub(in crate::demo) async fn send_body<S: ResettableStream>(
        &self,
        connection: &mut HttpConnection<S>,
        head: &RequestHead,
        body: &ResponseBody,
    ) -> Result<DeliveryOutcome, ConnectionError> {
        let must_close = self.body_ends_at_close(head, body);
        let outcome =
            if must_close { DeliveryOutcome::CompleteMustClose } else { DeliveryOutcome::CompleteReusable };
        if head.method == "HEAD" {
            return Ok(outcome);
        }
        let is_chunked = self.is_chunked(head, body);
        let is_divided =
            !self.delay_before_each_piece.is_zero() || self.silence.is_some() || self.cutoff.is_some();
        let mut bytes_sent = 0;
        for (index, piece) in body_pieces(body, is_divided).iter().enumerate() {
            connection.sleep_while_connected(self.delay_before_piece(index)).await?;
            let allowed_bytes = match self.cutoff {
                Some((BodyPosition::Events(count), method)) if index >= count => {
                    return Ok(DeliveryOutcome::CutOff(method));
                }
                Some((BodyPosition::Bytes(count), _)) => count.saturating_sub(bytes_sent).min(piece.len()),
                _ => piece.len(),
            };
            bytes_sent += allowed_bytes;
            let mut framed = Vec::with_capacity(allowed_bytes + 16);
            if is_chunked {
                framed.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            }
            framed.extend_from_slice(piece.get(..allowed_bytes).unwrap_or_default());
            if is_chunked && allowed_bytes == piece.len() {
                framed.extend_from_slice(b"\r\n");
            }
            self.write_body(connection, &framed).await?;
            if let Some((_, method)) = self.cutoff
                && allowed_bytes < piece.len()
            {
                return Ok(DeliveryOutcome::CutOff(method));
            }
        }
        match (self.cutoff, self.framing) {
            // The body ended before the position of the cut.
            (Some((_, method)), _) => return Ok(DeliveryOutcome::CutOff(method)),
            (None, ResponseFraming::UnderfilledLength(_)) => {
                return Ok(DeliveryOutcome::CutOff(CutoffMethod::Close));
            }
            (None, _) if is_chunked => connection.write_all(b"0\r\n\r\n").await?,
            (None, _) => {}
        }
        Ok(outcome)
    }

    pub(in crate::demo) async fn write_body<S: ResettableStream>(
        &self,
        connection: &mut HttpConnection<S>,
        bytes: &[u8],
    ) -> Result<(), ConnectionError> {
        if !self.splits_into_tiny_writes {
            return connection.write_all(bytes).await;
        }
        let (mut unsent, mut size) = (bytes, 1);
        while !unsent.is_empty() {
            let (part, remaining) = unsent.split_at_checked(size).unwrap_or((unsent, &[]));
            connection.write_all(part).await?;
            // Gives the receiver a chance to read each part by itself.
            tokio::task::yield_now().await;
            unsent = remaining;
            size = size % 7 + 1;
        }
        Ok(())
    }

    fn is_chunked(&self, head: &RequestHead, body: &ResponseBody) -> bool {
        self.framing == ResponseFraming::Standard
            && matches!(body, ResponseBody::Stream(..))
            && head.minor_version == 1
    }

    fn body_ends_at_close(&self, head: &RequestHead, body: &ResponseBody) -> bool {
        self.framing == ResponseFraming::UntilClose
            || (head.minor_version == 0 && matches!(body, ResponseBody::Stream(..)))
    }
}

/// The pieces of a body before which something can happen. A complete body is divided only if `is_divided`.
fn body_pieces(body: &ResponseBody, is_divided: bool) -> Vec<Bytes> {
    match body {
        ResponseBody::Complete(bytes) if is_divided => split_into_eighths(bytes),
        ResponseBody::Complete(bytes) if bytes.is_empty() => Vec::new(),
        ResponseBody::Complete(bytes) => vec![bytes.clone()],
        ResponseBody::Stream(_, pieces) => {
            pieces.iter().map(|piece| piece.bytes.clone()).filter(|bytes| !bytes.is_empty()).collect()
        }
        ResponseBody::WebSocket(_) => Vec::new(),
    }
}

fn split_into_eighths(body: &Bytes) -> Vec<Bytes> {
    let size = body.len().div_ceil(8).max(1);
    (0..body.len()).step_by(size).map(|start| body.slice(start..(start + size).min(body.len()))).collect()
}
