//! How a stream is split changes neither its events nor what the filter lets pass.
#![no_main]

use aoai_lb::azure::response::answer::Answer;
use aoai_lb::azure::response::sse::{Scanner, UsageFilter};
use aoai_lb::azure::Operation;
use aoai_lb::azure::response::opening;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

type Seen = (u64, u64, Vec<u8>, Vec<u8>, bool);

fn scan(stream: &[u8], step: usize, limit: usize) -> (Vec<Seen>, Option<String>) {
    let (mut seen, mut scanner) = (Vec::new(), Scanner::new(limit));
    let mut answer = Answer::new(Operation::Responses, 50);
    let mut on_event = |event: aoai_lb::azure::response::sse::Event<'_>| {
        let _ = opening(Operation::Chat, &event);
        answer.event(&event);
        seen.push((
            event.start,
            event.end,
            event.name.to_vec(),
            event.data.to_vec(),
            event.oversized,
        ));
    };
    stream.chunks(step).for_each(|chunk| scanner.feed(chunk, &mut on_event));
    scanner.finish(&mut on_event);
    (seen, answer.completion())
}

fn filter(stream: &[u8], step: usize, limit: usize) -> Vec<u8> {
    let (mut out, mut filter) = (Vec::new(), UsageFilter::new(limit));
    for chunk in stream.chunks(step) {
        filter.feed(&Bytes::copy_from_slice(chunk), &mut |piece| out.extend_from_slice(&piece));
    }
    filter.finish(&mut |piece| out.extend_from_slice(&piece));
    out
}

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (step, limit, stream) = input;
    let (step, limit) = (usize::from(step).max(1), usize::from(limit));
    let whole = scan(stream, stream.len().max(1), limit);
    assert_eq!(scan(stream, step, limit), whole);
    assert_eq!(whole.0.last().map_or(0, |event| event.1), stream.len() as u64);
    assert_eq!(filter(stream, step, limit), filter(stream, stream.len().max(1), limit));
});
