//! A per-thread cache of parsed request targets. Clients send a small number of different targets
//! over and over.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::target;
use super::target::RequestTarget;
use super::target_error::TargetError;

/// When a thread's cache has this many targets, it is cleared.
const MAX_CACHED_TARGETS: usize = 64;
/// Longer targets are not cached: they are rarely repeated.
const MAX_CACHED_TARGET_BYTES: usize = 256;

thread_local! {
    static TARGET_CACHE: RefCell<HashMap<Box<[u8]>, Arc<RequestTarget>>> = RefCell::default();
}

/// Like [`parse_target`](target::parse_target), with a cache.
///
/// # Errors
/// As [`parse_target`](target::parse_target).
pub fn parse_target_cached(raw: &[u8], is_websocket: bool) -> Result<Arc<RequestTarget>, TargetError> {
    if is_websocket || raw.len() > MAX_CACHED_TARGET_BYTES {
        return target::parse_target(raw, is_websocket).map(Arc::new);
    }
    if let Some(cached) = TARGET_CACHE.with_borrow(|cache| cache.get(raw).map(Arc::clone)) {
        return Ok(cached);
    }
    let target = Arc::new(target::parse_target(raw, is_websocket)?);
    // A target with an object's id is rarely repeated, and a credential must not stay in memory.
    if !target.has_object_id && !target.query.has_secret() {
        TARGET_CACHE.with_borrow_mut(|cache| {
            if cache.len() >= MAX_CACHED_TARGETS {
                cache.clear();
            }
            cache.insert(raw.into(), Arc::clone(&target));
        });
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_cached(raw: &str) -> bool {
        let (first, second) = (
            parse_target_cached(raw.as_bytes(), false).unwrap(),
            parse_target_cached(raw.as_bytes(), false).unwrap(),
        );
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        Arc::ptr_eq(&first, &second)
    }

    #[test]
    fn repeated_targets_are_parsed_once() {
        assert!(is_cached("/openai/deployments/a/chat/completions?api-version=2024-10-21"));
        assert!(!is_cached("/openai/files/file-1?api-version=2024-10-21"), "has an object's id");
        assert!(!is_cached("/openai/models?api-key=k"), "has a credential");
        assert!(!is_cached("/openai/models?code=k"), "has a secret");
        assert!(!is_cached(&format!("/openai/{}", "x".repeat(MAX_CACHED_TARGET_BYTES))));
        assert_eq!(parse_target_cached(b"/openai/../a", false).unwrap_err(), TargetError::DotSegment);
        for n in 0..3 * MAX_CACHED_TARGETS {
            parse_target_cached(format!("/openai/deployments/a{n}/embeddings").as_bytes(), false).unwrap();
        }
        assert!(TARGET_CACHE.with_borrow(HashMap::len) <= MAX_CACHED_TARGETS);
    }

    #[test]
    fn websocket_upgrades_are_not_cached() {
        let raw = b"/openai/realtime?deployment=a";
        assert!(parse_target_cached(raw, false).unwrap().deployment.is_none());
        assert!(parse_target_cached(raw, true).unwrap().deployment.is_some());
        assert!(parse_target_cached(raw, false).unwrap().deployment.is_none());
    }
}
