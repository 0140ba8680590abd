//! Parsing an accepted target again does not change it, and no credential remains in it.
#![no_main]

use aoai_lb::azure;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (upgrade, raw) = input;
    let Ok(target) = azure::parse_target(raw, upgrade) else { return };
    let upstream_target = target.upstream_target(None, None, None);
    let reparsed =
        azure::parse_target(upstream_target.as_bytes(), upgrade).expect("an upstream target can be parsed");
    assert_eq!(reparsed.path, target.path);
    assert_eq!(reparsed.deployment, target.deployment);
    assert!(reparsed.query.credentials().is_empty());
    assert_eq!(reparsed.upstream_target(None, None, None), upstream_target);
    assert!(!target.path.contains("/../") && !target.path.contains("//"));
});
