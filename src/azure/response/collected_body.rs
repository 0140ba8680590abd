//! Collects a response body that is not a stream, for the record. A body up to a limit is kept whole, a
//! longer one only with its end, where Azure puts `model` and `usage`.

use memchr::memmem;
use serde_json::value::RawValue;

use super::capture::ResponseCapture;
use crate::azure::json_text::text_from_bytes;

/// How much of the end of a long body is kept.
const TAIL_BYTES: usize = 16 * 1024;

/// A JSON or text body that is being collected.
#[derive(Debug)]
pub struct CollectedBody {
    max_whole_bytes: usize,
    whole_or_tail_bytes: Vec<u8>,
    has_only_tail: bool,
}

impl CollectedBody {
    /// An empty body. Up to `max_whole_bytes` it will be kept whole.
    pub fn new(max_whole_bytes: usize) -> Self {
        Self { max_whole_bytes, whole_or_tail_bytes: Vec::new(), has_only_tail: false }
    }

    /// Appends the next chunk.
    pub fn append(&mut self, chunk: &[u8]) {
        self.has_only_tail |= self.whole_or_tail_bytes.len() + chunk.len() > self.max_whole_bytes;
        if !self.has_only_tail {
            return self.whole_or_tail_bytes.extend_from_slice(chunk);
        }
        let tail = chunk.get(chunk.len().saturating_sub(TAIL_BYTES)..).unwrap_or(chunk);
        if self.whole_or_tail_bytes.len() + tail.len() > 2 * TAIL_BYTES {
            let keep = TAIL_BYTES - tail.len();
            self.whole_or_tail_bytes.drain(..self.whole_or_tail_bytes.len().saturating_sub(keep));
            self.whole_or_tail_bytes.shrink_to(2 * TAIL_BYTES);
        }
        self.whole_or_tail_bytes.extend_from_slice(tail);
    }

    /// The number of bytes kept.
    pub fn kept_byte_count(&self) -> usize {
        self.whole_or_tail_bytes.len()
    }

    /// The body, if it was kept whole.
    pub fn whole_body(&self) -> Option<&[u8]> {
        (!self.has_only_tail).then_some(&self.whole_or_tail_bytes)
    }

    /// Adds the complete body to `capture`. `is_json` tells its content type. Another body is captured as
    /// text.
    pub fn capture_into(&self, is_json: bool, capture: &mut ResponseCapture) {
        match self.whole_body() {
            Some(body) if is_json => capture.capture_json_body(body),
            Some(body) => capture.capture_text_body(&text_from_bytes(body)),
            None => {
                capture.mark_text_truncated();
                if is_json {
                    capture.note_usage(last_value_of_key(&self.whole_or_tail_bytes, b"\"usage\""));
                    capture.note_model(last_value_of_key(&self.whole_or_tail_bytes, b"\"model\""));
                    capture.is_response_complete = true;
                }
            }
        }
    }
}

/// The value of the last occurrence of a key. The search cannot match inside a string, because quotes
/// are escaped there.
fn last_value_of_key<'a>(tail: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let position = memmem::rfind(tail, key)?;
    let value = tail.get(position + key.len()..)?.trim_ascii_start().strip_prefix(b":")?;
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<&RawValue>();
    values.next()?.ok().map(RawValue::get)
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
        assert!(body_so_far.whole_or_tail_bytes.len() <= limit.max(2 * TAIL_BYTES));
        body_so_far.capture_into(true, &mut capture);
        capture
    }

    #[test]
    fn usage_is_found_at_the_end_of_a_long_body() {
        let body = format!(
            r#"{{"object":"list","data":[{{"embedding":"{}"}}],"model":"ada","usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#,
            "A".repeat(300_000)
        );
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
