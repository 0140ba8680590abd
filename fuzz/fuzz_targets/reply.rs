//! A reply that is too long to be kept is read like one that is kept, whatever its chunks are.
#![no_main]

use aoai_lb::azure::Operation;
use aoai_lb::azure::response::capture::ResponseCapture;
use aoai_lb::azure::response::collected_body::CollectedBody;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

fn read(reply: &[u8], step: usize, limit: usize) -> ResponseCapture {
    let mut capture = ResponseCapture::new(Operation::Chat, 100);
    let mut body = CollectedBody::new(limit);
    reply.chunks(step).for_each(|chunk| body.append(chunk));
    assert!(body.kept_byte_count() <= limit.max(32 * 1024));
    body.capture_into(true, &mut capture);
    capture
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (step, limit, reply) = input;
    let (step, limit) = (usize::from(step).max(1), usize::from(limit));
    let reduced = read(reply, step, limit);
    assert_eq!(format!("{reduced:?}"), format!("{:?}", read(reply, reply.len().max(1), limit)));
    // Long values are not kept, and what is read of broken JSON differs.
    if reply.len() < 4_000 && serde_json::from_slice::<IgnoredAny>(reply).is_ok() {
        let whole = read(reply, step, usize::MAX);
        assert_eq!((reduced.usage, reduced.model), (whole.usage, whole.model));
        assert_eq!(reduced.is_response_complete, whole.is_response_complete);
    }
});
