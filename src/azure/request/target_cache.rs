//! Targets that were understood lately: clients ask for few, again and again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::path;
use super::path::{BadTarget, Target};

/// Most targets that a thread remembers.
const MOST: usize = 64;
/// Longer ones are not asked for often.
const LENGTH_MAX: usize = 256;

thread_local! {
    static RECENT: RefCell<HashMap<Box<[u8]>, Arc<Target>>> = RefCell::default();
}

/// As [`path::parse`].
///
/// # Errors
/// [`BadTarget`].
pub fn parse(raw: &[u8], upgrade: bool) -> Result<Arc<Target>, BadTarget> {
    if upgrade || raw.len() > LENGTH_MAX {
        return path::parse(raw, upgrade).map(Arc::new);
    }
    if let Some(known) = RECENT.with_borrow(|recent| recent.get(raw).map(Arc::clone)) {
        return Ok(known);
    }
    let target = Arc::new(path::parse(raw, upgrade)?);
    // An id is not asked for again and again, and a secret is not kept.
    if !target.item && target.query.credentials().is_empty() {
        RECENT.with_borrow_mut(|recent| {
            if recent.len() >= MOST {
                recent.clear();
            }
            recent.insert(raw.into(), Arc::clone(&target));
        });
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_remembered(raw: &str) -> bool {
        let (once, again) = (parse(raw.as_bytes(), false).unwrap(), parse(raw.as_bytes(), false).unwrap());
        assert_eq!(format!("{once:?}"), format!("{again:?}"));
        Arc::ptr_eq(&once, &again)
    }

    #[test]
    fn what_is_asked_for_often_is_read_once() {
        assert!(is_remembered("/openai/deployments/a/chat/completions?api-version=2024-10-21"));
        assert!(!is_remembered("/openai/files/file-1?api-version=2024-10-21"), "an id");
        assert!(!is_remembered("/openai/models?api-key=k"), "a secret");
        assert!(!is_remembered(&format!("/openai/{}", "x".repeat(LENGTH_MAX))));
        assert_eq!(parse(b"/openai/../a", false).unwrap_err(), BadTarget::DotSegment);
        for n in 0..3 * MOST {
            parse(format!("/openai/deployments/a{n}/embeddings").as_bytes(), false).unwrap();
        }
        assert!(RECENT.with_borrow(HashMap::len) <= MOST);
    }

    #[test]
    fn an_upgrade_is_another_question() {
        let raw = b"/openai/realtime?deployment=a";
        assert!(parse(raw, false).unwrap().deployment.is_none());
        assert!(parse(raw, true).unwrap().deployment.is_some());
        assert!(parse(raw, false).unwrap().deployment.is_none());
    }
}
