//! A target that is accepted is its own normal form, and no credential survives.
#![no_main]

use aoai_lb::azure;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (upgrade, raw) = input;
    let Ok(first) = azure::parse_target(raw, upgrade) else { return };
    let sent = first.upstream_target(None, None, None);
    let again = azure::parse_target(sent.as_bytes(), upgrade).expect("what we send can be read");
    assert_eq!(again.path, first.path);
    assert_eq!(again.deployment, first.deployment);
    assert!(again.query.credentials().is_empty());
    assert_eq!(again.upstream_target(None, None, None), sent);
    assert!(!first.path.contains("/../") && !first.path.contains("//"));
});
