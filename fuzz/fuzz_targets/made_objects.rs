//! The ids in a response are the same however its bytes are split, and nothing makes the search fail.
#![no_main]

use aoai_lb::azure;
use aoai_lb::azure::ReferenceKind;
use aoai_lb::azure::response::id_time::time_of_id;
use aoai_lb::azure::response::made_objects::{LearnedId, MadeObjectReader};
use aoai_lb::azure::response::sse::EventScanner;
use libfuzzer_sys::fuzz_target;

type Ids = Vec<(ReferenceKind, String)>;

fn reader() -> MadeObjectReader {
    let target = azure::parse_target(b"/openai/v1/responses", false).expect("the target is valid");
    MadeObjectReader::new(&target).expect("responses have ids")
}

fn push(ids: &mut Ids, LearnedId { kind, id }: LearnedId<'_>) {
    assert!(!id.is_empty() && id.len() <= 256);
    let _ = time_of_id(id, u32::MAX);
    ids.push((kind, id.to_owned()));
}

fn ids_in_body(chunks: &[&[u8]]) -> (Ids, bool) {
    let (mut reader, mut ids) = (reader(), Vec::new());
    for chunk in chunks {
        reader.on_body_bytes(chunk, &mut |id| push(&mut ids, id));
    }
    (ids, reader.says_not_stored())
}

fn ids_in_stream(chunks: &[&[u8]], max_event_bytes: usize) -> (Ids, bool) {
    let (mut reader, mut ids) = (reader(), Vec::new());
    let mut scanner = EventScanner::new(max_event_bytes);
    for chunk in chunks {
        scanner.feed(chunk, &mut |event| reader.on_event(&event, &mut |id| push(&mut ids, id)));
    }
    (ids, reader.says_not_stored())
}

fuzz_target!(|input: (usize, &[u8])| {
    let (split, bytes) = input;
    let (first, second) = bytes.split_at(split.checked_rem(bytes.len()).unwrap_or_default());
    assert_eq!(ids_in_body(&[first, second]), ids_in_body(&[bytes]));
    assert_eq!(ids_in_stream(&[first, second], 64), ids_in_stream(&[bytes], 64));
    assert_eq!(ids_in_stream(&[first, second], 1 << 20), ids_in_stream(&[bytes], 1 << 20));
    reader().on_frame(bytes, &mut |id| push(&mut Vec::new(), id));
});
