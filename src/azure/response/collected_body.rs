//! Collects a response body that is not a stream, for the record. A body up to a limit is kept whole. Of a
//! longer one, the model, service tier and usage are read while it passes.

use memchr::memmem;

use super::capture::ResponseCapture;
use super::json_outline::JsonOutline;
use crate::azure::json_text::text_from_bytes;

const USAGE_KEY: &[u8] = b"\"usage\"";
/// The length of the end of a body, which is searched for the usage first.
const LIKELY_USAGE_BYTES: usize = 1024;

/// A JSON or text body that is being collected.
#[derive(Debug)]
pub struct CollectedBody {
    max_whole_bytes: usize,
    bytes: Vec<u8>,
    /// Set instead of `bytes` once the body is too long.
    outline: Option<Box<JsonOutline>>,
}

impl CollectedBody {
    /// An empty body. Up to `max_whole_bytes` it will be kept whole.
    pub fn new(max_whole_bytes: usize) -> Self {
        Self { max_whole_bytes, bytes: Vec::new(), outline: None }
    }

    /// Appends the next chunk.
    pub fn append(&mut self, chunk: &[u8]) {
        if self.outline.is_none() && self.bytes.len() + chunk.len() <= self.max_whole_bytes {
            return self.bytes.extend_from_slice(chunk);
        }
        let outline = self.outline.get_or_insert_with(|| {
            let mut outline = Box::<JsonOutline>::default();
            outline.feed(&std::mem::take(&mut self.bytes));
            outline
        });
        outline.feed(chunk);
    }

    /// The number of bytes kept.
    pub fn kept_byte_count(&self) -> usize {
        self.bytes.len() + self.outline.as_ref().map_or(0, |outline| outline.kept_byte_count())
    }

    /// The memory that it holds besides itself, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.outline.as_ref().map_or(0, |outline| outline.kept_byte_count())
    }

    /// Frees all but model, service tier and usage.
    pub fn reduce_to_outline(&mut self) {
        if self.outline.is_none() {
            let mut outline = Box::<JsonOutline>::default();
            outline.feed(&std::mem::take(&mut self.bytes));
            self.outline = Some(outline);
        }
    }

    /// The body, if it was kept whole.
    pub fn whole_body(&self) -> Option<&[u8]> {
        self.outline.is_none().then_some(&self.bytes)
    }

    /// Whether the body seems to contain usage. This searches for the key instead of parsing the body, so it can find one
    /// in another place.
    pub fn has_usage(&self) -> bool {
        match &self.outline {
            // It is near the end of nearly all bodies that have it.
            None => match self.bytes.split_at_checked(self.bytes.len().saturating_sub(LIKELY_USAGE_BYTES)) {
                Some((_, end)) if has_usage_object(end) => true,
                _ => has_usage_object(&self.bytes),
            },
            Some(outline) => has_usage_object(&outline.to_json()),
        }
    }

    /// Adds the complete body to `capture`. `is_json` tells its content type. Another body is captured as
    /// text.
    pub fn capture_into(&self, is_json: bool, capture: &mut ResponseCapture) {
        match &self.outline {
            None if is_json => capture.capture_json_body(&self.bytes),
            None => capture.capture_text_body(&text_from_bytes(&self.bytes)),
            Some(outline) => {
                capture.mark_text_truncated();
                if is_json {
                    capture.capture_json_body(&outline.to_json());
                    capture.is_response_complete &= outline.is_complete();
                }
            }
        }
    }
}

/// Whether JSON has a key `usage` with an object.
fn has_usage_object(json: &[u8]) -> bool {
    memmem::find_iter(json, USAGE_KEY).any(|position| {
        let mut after =
            json.iter().skip(position + USAGE_KEY.len()).filter(|byte| !byte.is_ascii_whitespace());
        (after.next(), after.next()) == (Some(&b':'), Some(&b'{'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Operation;
    use proptest::prelude::*;

    fn collect_and_capture(body: &[u8], limit: usize, step: usize) -> ResponseCapture {
        let mut capture = ResponseCapture::new(Operation::Embeddings, 100);
        let mut body_so_far = CollectedBody::new(limit);
        body.chunks(step).for_each(|chunk| body_so_far.append(chunk));
        assert!(body_so_far.kept_byte_count() <= limit.max(32 * 1024));
        body_so_far.capture_into(true, &mut capture);
        capture
    }

    #[test]
    fn usage_is_found_anywhere_in_a_long_body() {
        let data = format!(r#""data":[{{"embedding":"{}","model":"x","usage":{{}}}}]"#, "A".repeat(300_000));
        let usage = r#""model":"ada","usage":{"prompt_tokens":8,"total_tokens":8}"#;
        for body in [format!(r#"{{"object":"list",{data},{usage}}}"#), format!("{{{usage},{data}}}")] {
            assert_usage_is_found(&body);
        }
        let cut = collect_and_capture(format!("{{{usage},{data}").as_bytes(), 1_000, 5_000);
        assert_eq!((cut.usage.and_then(|usage| usage.input), cut.is_response_complete), (Some(8), false));
    }

    fn assert_usage_is_found(body: &str) {
        for step in [1_000, 7, 50_000, 1_000_000] {
            for limit in [1_000_000, 1_000] {
                let capture = collect_and_capture(body.as_bytes(), limit, step);
                assert_eq!(capture.usage.and_then(|usage| usage.input), Some(8), "{step}");
                assert_eq!(capture.model.as_deref(), Some("ada"));
                assert_eq!(
                    (capture.is_response_complete, capture.is_text_truncated()),
                    (true, limit == 1_000)
                );
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in "(\"usage\"|\"model\"|:|\\{|\\}|\"| |1|x){0,30}", limit in 0_usize..30, step in 1_usize..10) {
            let _ = collect_and_capture(body.as_bytes(), limit, step);
        }
    }
}
