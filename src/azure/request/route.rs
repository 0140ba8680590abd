//! The route of a target: its path with placeholders for names and ids, of which there are few different ones.

use super::operation::{PathMatcher, SegmentKind};
use super::target::RequestTarget;

/// The route, such as `/openai/deployments/{deployment}/chat/completions` or `/openai/v1/responses/{id}`; `None` for
/// a path that the API does not have.
pub fn route_of(target: &RequestTarget) -> Option<String> {
    let mut segments = target.path.split('/').filter(|segment| !segment.is_empty()).peekable();
    if segments.next()? != "openai" {
        return None;
    }
    let mut route = String::from("/openai");
    if segments.next_if_eq(&"v1").is_some() {
        route.push_str("/v1");
    } else if segments.next_if_eq(&"deployments").is_some() {
        segments.next()?;
        route.push_str("/deployments/{deployment}");
    }
    let mut matcher = PathMatcher::new();
    for segment in segments {
        route.push('/');
        match matcher.classify_next_segment(segment) {
            SegmentKind::Keyword(keyword) => route.push_str(keyword),
            SegmentKind::Id(_) => route.push_str("{id}"),
            SegmentKind::Unknown => return None,
        }
    }
    Some(route)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::parse_target;

    #[test]
    fn names_and_ids_are_placeholders() {
        for (path, expected) in [
            (
                "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
                Some("/openai/deployments/{deployment}/chat/completions"),
            ),
            ("/OpenAI/Deployments/v1/Embeddings", Some("/openai/deployments/{deployment}/embeddings")),
            ("/v1/responses", Some("/openai/v1/responses")),
            ("/openai/v1/responses/resp_1/input_items", Some("/openai/v1/responses/{id}/input_items")),
            ("/openai/v1/responses/compact", Some("/openai/v1/responses/compact")),
            ("/openai/files/file-1/content", Some("/openai/files/{id}/content")),
            ("/openai/v1/threads/a/runs/b/steps/c", Some("/openai/v1/threads/{id}/runs/{id}/steps/{id}")),
            ("/openai", Some("/openai")),
            ("/openai/deployments", None),
            ("/openai/v1/what/ever", None),
            ("/openai/v1/embeddings/what", None),
            ("/favicon.ico", None),
            ("/", None),
        ] {
            let target = parse_target(path.as_bytes(), false).unwrap();
            assert_eq!(route_of(&target).as_deref(), expected, "{path}");
        }
    }
}
