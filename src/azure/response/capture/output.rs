//! The text of a response that counts as output.

use super::ResponseCapture;

/// The text of a response that counts as output, or its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputSample {
    /// The texts, separated like those of a [`PromptSample`](crate::azure::request::prompt_sample::PromptSample).
    pub text: String,
    /// The bytes of the response that `text` was made from.
    pub sampled_bytes: u64,
    /// The bytes of all text in the response.
    pub total_bytes: u64,
}

impl ResponseCapture {
    /// The text that counts as output. `None` if an unknown amount of text is missing.
    pub fn output_sample(&self) -> Option<OutputSample> {
        let total_bytes = self.text_budget.total_bytes();
        let (text, sampled_bytes) = match &self.shortened_text {
            Some(shortened) => (shortened.text.clone(), shortened.text.len() as u64),
            None => (self.choices.to_separate_texts(), self.text_budget.used_bytes() as u64),
        };
        let is_length_unknown = self.text_budget.is_truncated() && total_bytes <= sampled_bytes;
        (!is_length_unknown).then_some(OutputSample { text, sampled_bytes, total_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Operation;
    use crate::azure::response::sse::SseEvent;

    fn capture(limit: usize, deltas: &[&str]) -> ResponseCapture {
        let mut capture = ResponseCapture::new(Operation::Chat, limit);
        for delta in deltas {
            let event = format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#);
            capture.capture_event(&SseEvent::from_message(event.as_bytes()));
        }
        capture
    }

    #[test]
    fn the_output_is_what_the_model_has_written() {
        let call =
            r#"{"tool_calls":[{"index":0,"id":"call_1","function":{"name":"f","arguments":"{\"a\":"}}]}"#;
        let more = r#"{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}"#;
        let text = |text: &str| format!(r#"{{"content":"{text}"}}"#);
        for (limit, deltas, expected) in [
            (100, vec![text("a"), text("b")], ("ab\0", 2, 2)),
            (100, vec![text("\\ud83d"), text("\\ude00")], ("\u{1f600}\0", 4, 4)),
            (100, vec![text("a"), call.to_owned(), more.to_owned()], ("a\0f\0{\"a\":1}\0", 15, 15)),
            (100, vec![], ("", 0, 0)),
            // What is beyond the limit has the length of its text, not of its escapes.
            (3, vec![text("abc"), text("\\u00e9\\n"), text("xy")], ("abc\0", 3, 8)),
        ] {
            let deltas: Vec<&str> = deltas.iter().map(String::as_str).collect();
            let sample = capture(limit, &deltas).output_sample().unwrap();
            assert_eq!((&*sample.text, sample.sampled_bytes, sample.total_bytes), expected, "{deltas:?}");
        }
        let mut incomplete = capture(100, &[&text("a")]);
        incomplete.mark_text_truncated();
        assert_eq!(incomplete.output_sample(), None);
    }
}
