#![no_main]
//! Messages of Responses sockets, of clients and of backends.

use aoai_lb::azure::request::socket_message::{SocketMessage, with_lane, without_lane};
use aoai_lb::azure::response::socket_event::{
    error_event_headers, error_event_status, is_socket_limit, made_response_id,
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

// Text only: the frames of other bytes are refused before.
fuzz_target!(|text: &str| {
    let data = text.as_bytes();
    let message = SocketMessage::parse(data);
    let bytes = Bytes::copy_from_slice(data);
    let stripped = without_lane(&bytes);
    // What is left has no lane, and gets one back.
    if message.is_ok() {
        assert_eq!(SocketMessage::parse(&stripped).ok().and_then(|message| message.lane), None);
    }
    let _ = with_lane(&stripped, "lane");
    let _ = (made_response_id(data), error_event_status(data), error_event_headers(data), is_socket_limit(data));
});
