//! The frames of a backend and their events tell the same however their bytes arrive.
#![no_main]

use aoai_lb::azure::Operation;
use aoai_lb::azure::response::capture::ResponseCapture;
use aoai_lb::azure::response::realtime_events::{RealtimeEvent, RealtimeEventKind, RealtimeEventReader};
use aoai_lb::proxy::websocket::realtime::frame_follower::{FrameFollower, MessagePart};
use libfuzzer_sys::fuzz_target;

fn observe(bytes: &[u8], step: usize) -> (Vec<(RealtimeEventKind, String)>, bool) {
    let (mut frames, mut reader) = (FrameFollower::default(), RealtimeEventReader::new(true));
    let mut told = Vec::new();
    let mut on_event = |event: RealtimeEvent<'_>| {
        let _ = (event.response_id(), event.item_id(), event.session_models(), event.client_item());
        let _ = (event.transcription().usage, ResponseCapture::new(Operation::Realtime, 100).capture_realtime_response(&event));
        told.push((event.kind, event.data.to_owned()));
    };
    for chunk in bytes.chunks(step) {
        frames.feed(chunk, &mut |part| match part {
            MessagePart::Bytes(bytes) => reader.push(bytes, &mut on_event),
            MessagePart::End => reader.end(&mut on_event),
        });
    }
    (told, frames.is_broken())
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(observe(bytes, usize::from(step).max(1)), observe(bytes, bytes.len().max(1)));
});
