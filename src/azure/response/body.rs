//! A reply that is no stream, collected for its record as it passes: whole up to a limit,
//! beyond that only its end, where Azure puts `model` and `usage`.

use memchr::memmem;
use serde_json::value::RawValue;

use super::answer::Answer;

/// How much of the end of a long reply is kept.
const TAIL: usize = 16 * 1024;

/// Collects a JSON (or text) reply.
#[derive(Debug)]
pub struct ReplyBody {
    limit: usize,
    bytes: Vec<u8>,
    is_tail: bool,
}

impl ReplyBody {
    /// Keeps a reply of up to `limit` bytes whole.
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: Vec::new(), is_tail: false }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.is_tail |= self.bytes.len() + chunk.len() > self.limit;
        if !self.is_tail {
            return self.bytes.extend_from_slice(chunk);
        }
        let end = chunk.get(chunk.len().saturating_sub(TAIL)..).unwrap_or(chunk);
        if self.bytes.len() + end.len() > 2 * TAIL {
            let keep = TAIL - end.len();
            self.bytes.drain(..self.bytes.len().saturating_sub(keep));
            self.bytes.shrink_to(2 * TAIL);
        }
        self.bytes.extend_from_slice(end);
    }

    /// Bytes kept.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The reply, if it was kept whole.
    pub fn whole(&self) -> Option<&[u8]> {
        (!self.is_tail).then_some(&self.bytes)
    }

    /// Tells `answer` what the complete reply said. `is_json` is about its content type; what
    /// is no JSON is text if it is UTF-8, and nothing else.
    pub fn tell(&self, is_json: bool, answer: &mut Answer) {
        match self.whole() {
            Some(body) if is_json => answer.reply(body),
            Some(body) => {
                if let Ok(text) = std::str::from_utf8(body) {
                    answer.plain_reply(text);
                }
            }
            None => {
                answer.mark_cut();
                if is_json {
                    answer.note_usage(last_value(&self.bytes, b"\"usage\""));
                    answer.note_model(last_value(&self.bytes, b"\"model\""));
                    answer.terminal = true;
                }
            }
        }
    }
}

/// The value of the last occurrence of a key. Inside of a string the quotes would be escaped.
fn last_value<'a>(tail: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let at = memmem::rfind(tail, key)?;
    let value = tail.get(at + key.len()..)?.trim_ascii_start().strip_prefix(b":")?;
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<&RawValue>();
    values.next()?.ok().map(RawValue::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Operation;
    use proptest::prelude::*;

    fn collect(body: &[u8], limit: usize, step: usize) -> Answer {
        let mut answer = Answer::new(Operation::Embeddings, 100);
        let mut reply = ReplyBody::new(limit);
        body.chunks(step).for_each(|chunk| reply.feed(chunk));
        assert!(reply.bytes.len() <= limit.max(2 * TAIL));
        reply.tell(true, &mut answer);
        answer
    }

    #[test]
    fn the_end_of_a_long_reply_tells_its_usage() {
        let body = format!(
            r#"{{"object":"list","data":[{{"embedding":"{}"}}],"model":"ada","usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#,
            "A".repeat(300_000)
        );
        for step in [1_000, 7, 50_000, 1_000_000] {
            for limit in [1_000_000, 1_000] {
                let answer = collect(body.as_bytes(), limit, step);
                assert_eq!(answer.usage.and_then(|usage| usage.input), Some(8), "{step}");
                assert_eq!(answer.model.as_deref(), Some("ada"));
                assert_eq!((answer.terminal, answer.is_cut()), (true, limit == 1_000));
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(body in "(\"usage\"|\"model\"|:|\\{|\\}|\"| |1|x){0,30}", limit in 0_usize..30, step in 1_usize..10) {
            let _ = collect(body.as_bytes(), limit, step);
        }
    }
}
