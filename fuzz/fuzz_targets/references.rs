//! The references of a request are found whatever surrounds them, and nothing makes the search fail.
#![no_main]

use aoai_lb::azure;
use aoai_lb::azure::ReferenceKind;
use aoai_lb::azure::request::json_body::BodyFacts;
use aoai_lb::azure::request::references::{visit_body_references, visit_references};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn references_in_body(body: &[u8]) -> Option<Vec<(ReferenceKind, String)>> {
    let facts = BodyFacts::parse(body).ok()?;
    let mut found = Vec::new();
    visit_body_references(&facts, body, &mut |kind, id| {
        assert!(!id.is_empty());
        found.push((kind, id.to_owned()));
    });
    Some(found)
}

fuzz_target!(|input: (&str, &[u8])| {
    let (target, body) = input;
    if let Ok(target) = azure::parse_target(target.as_bytes(), false) {
        visit_references(&target, None, &mut |_, id| assert!(!id.is_empty()));
    }
    let Some(mut found) = references_in_body(body) else { return };
    // Written in another way, a body without repeated keys has the same references.
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    let compact = serde_json::to_vec(&document).expect("a value can be written");
    if body.contains(&b'\\') || colon_count(body) != colon_count(&compact) {
        return;
    }
    let mut found_compact = references_in_body(&compact).expect("a value is valid JSON");
    found.sort();
    found_compact.sort();
    assert_eq!(found, found_compact);
});

/// Without escapes in the input, there are fewer if a key was repeated.
fn colon_count(json: &[u8]) -> usize {
    json.iter().filter(|byte| **byte == b':').count()
}
