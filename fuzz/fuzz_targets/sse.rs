//! The events of a stream and the output of the usage filter do not depend on how the stream is split.
#![no_main]

use aoai_lb::azure::response::capture::ResponseCapture;
use aoai_lb::azure::response::sse::{EventScanner, SseEvent, UsageEventRemover};
use aoai_lb::azure::{Operation, classify_first_event};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

type ScannedEvent = (u64, u64, Vec<u8>, Vec<u8>, bool);

fn scan(stream: &[u8], step: usize, limit: usize) -> (Vec<ScannedEvent>, Option<String>) {
    let (mut events, mut scanner) = (Vec::new(), EventScanner::new(limit));
    let mut capture = ResponseCapture::new(Operation::Responses, 50);
    let mut on_event = |event: SseEvent<'_>| {
        let _ = classify_first_event(Operation::Chat, &event);
        capture.capture_event(&event);
        events.push((
            event.start_offset,
            event.end_offset,
            event.name.to_vec(),
            event.data.to_vec(),
            event.is_oversized,
        ));
    };
    stream.chunks(step).for_each(|chunk| scanner.feed(chunk, &mut on_event));
    scanner.finish(&mut on_event);
    (events, capture.completion_text())
}

fn filter(stream: &[u8], step: usize, limit: usize) -> Vec<u8> {
    let (mut out, mut filter) = (Vec::new(), UsageEventRemover::new(limit));
    for chunk in stream.chunks(step) {
        filter.feed(&Bytes::copy_from_slice(chunk), &mut |piece| out.extend_from_slice(&piece));
    }
    filter.finish(&mut |piece| out.extend_from_slice(&piece));
    out
}

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (step, limit, stream) = input;
    let (step, limit) = (usize::from(step).max(1), usize::from(limit));
    let unsplit = scan(stream, stream.len().max(1), limit);
    assert_eq!(scan(stream, step, limit), unsplit);
    assert_eq!(unsplit.0.last().map_or(0, |event| event.1), stream.len() as u64);
    assert_eq!(filter(stream, step, limit), filter(stream, stream.len().max(1), limit));
});
