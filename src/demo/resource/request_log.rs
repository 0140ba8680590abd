//! The requests that a simulated resource has received, for tests to look at.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

use crate::demo::http::request_head::RequestHead;
use crate::demo::util::locking::lock_ignoring_poison;

/// Requests that are kept; older ones are dropped, so that the simulator can run for days.
const MAX_LOGGED_REQUESTS: usize = 10_000;

/// One request as it was received, and how it ended.
#[derive(Debug, Clone)]
pub struct LoggedRequest {
    /// The method, such as `POST`.
    pub method: String,
    /// Path and query as received, still percent-encoded.
    pub target: String,
    /// Headers in the order and the case received.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Bytes of the body that were received, without chunk framing.
    pub body_len: u64,
    /// The body, if [`records_request_bodies`](crate::demo::SimulatedResource::records_request_bodies) is
    /// set.
    pub body: Option<Bytes>,
    /// When the head had been read.
    pub received_at: Instant,
    /// Whether the whole body has been received.
    pub is_body_complete: bool,
    /// The status of the response, once its head has been sent.
    pub response_status: Option<u16>,
    /// Whether the whole response has been sent, as far as the mood let it be.
    pub is_response_complete: bool,
    /// Whether the client disconnected before the response was complete.
    pub client_disconnected: bool,
    /// The number of the connection, counted from 1 for each resource.
    pub connection_number: u64,
    /// Whether it is a turn on a Responses WebSocket. Its method is `WEBSOCKET`, its body the `response.create`,
    /// target and headers are those of the handshake, which is a request of its own.
    pub is_websocket_turn: bool,
}

impl LoggedRequest {
    /// The first header of this name, if it is valid UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }
}

/// The latest requests, each with its number.
#[derive(Debug, Default)]
pub(in crate::demo) struct RequestLog {
    request_count: AtomicUsize,
    numbered_requests: Mutex<VecDeque<(usize, LoggedRequest)>>,
}

impl RequestLog {
    /// Adds a request whose head was read. Returns its number, for [`RequestLog::update_request`].
    pub(in crate::demo) fn record_request(
        &self,
        head: &RequestHead,
        connection_number: u64,
        now: Instant,
    ) -> usize {
        self.add(LoggedRequest {
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            body_len: 0,
            body: None,
            received_at: now,
            is_body_complete: false,
            response_status: None,
            is_response_complete: false,
            client_disconnected: false,
            connection_number,
            is_websocket_turn: false,
        })
    }

    /// Adds a turn on the WebSocket of this handshake. Returns its number.
    pub(in crate::demo) fn record_turn(
        &self,
        handshake: &LoggedRequest,
        message: &str,
        records_body: bool,
        now: Instant,
    ) -> usize {
        self.add(LoggedRequest {
            method: "WEBSOCKET".to_owned(),
            body_len: message.len() as u64,
            body: records_body.then(|| Bytes::copy_from_slice(message.as_bytes())),
            received_at: now,
            is_body_complete: true,
            response_status: None,
            is_response_complete: false,
            client_disconnected: false,
            is_websocket_turn: true,
            ..handshake.clone()
        })
    }

    fn add(&self, request: LoggedRequest) -> usize {
        let number = self.request_count.fetch_add(1, Ordering::SeqCst);
        let mut requests = lock_ignoring_poison(&self.numbered_requests);
        if requests.len() == MAX_LOGGED_REQUESTS {
            requests.pop_front();
        }
        requests.push_back((number, request));
        number
    }

    /// Changes a request, unless it has already been dropped.
    pub(in crate::demo) fn update_request(&self, number: usize, update: impl FnOnce(&mut LoggedRequest)) {
        // Requests that change are recent ones, so that a search from the end is short.
        let mut requests = lock_ignoring_poison(&self.numbered_requests);
        if let Some((_, request)) = requests.iter_mut().rev().find(|(known, _)| *known == number) {
            update(request);
        }
    }

    /// The request of this number, unless it has already been dropped.
    pub(in crate::demo) fn request(&self, number: usize) -> Option<LoggedRequest> {
        let requests = lock_ignoring_poison(&self.numbered_requests);
        requests.iter().rev().find(|(known, _)| *known == number).map(|(_, request)| request.clone())
    }

    /// How many requests were received, including those that were dropped from the log.
    pub(in crate::demo) fn request_count(&self) -> usize {
        self.request_count.load(Ordering::SeqCst)
    }

    /// The requests that are kept, oldest first.
    pub(in crate::demo) fn requests(&self) -> Vec<LoggedRequest> {
        lock_ignoring_poison(&self.numbered_requests).iter().map(|(_, request)| request.clone()).collect()
    }
}
