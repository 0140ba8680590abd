//! Reads the response of a realtime session, which is in the event that ends it.

use super::ResponseCapture;
use crate::azure::json;
use crate::azure::response::captured_text::truncate_label;
use crate::azure::response::realtime_events::RealtimeEvent;

/// How a response of a realtime session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealtimeResponseEnd {
    /// As the model or the client would have it: completed, cancelled, or cut at a limit.
    Ended,
    /// With an error.
    Failed,
}

impl ResponseCapture {
    /// Takes the event `response.done`.
    pub fn capture_realtime_response(&mut self, event: &RealtimeEvent<'_>) -> RealtimeResponseEnd {
        let response = json::find_fields(event.data, &["response"])[0].unwrap_or_default();
        let [model, usage, status, details, output] =
            json::find_fields(response, &["model", "usage", "status", "status_details", "output"]);
        self.is_response_complete = true;
        self.note_model(model);
        self.note_usage(usage);
        let [reason, error] = details.map_or([None; 2], |raw| json::find_fields(raw, &["reason", "error"]));
        let finish_reason =
            json::decode_non_empty_string(reason).or_else(|| json::decode_non_empty_string(status));
        self.finish_reason = finish_reason.map(|reason| truncate_label(&reason));
        if self.text_budget.limit_bytes() > 0 {
            let mut index = 0;
            json::for_each_array_item(output.unwrap_or_default(), |item| {
                self.read_realtime_item(index, item);
                index += 1;
            });
            if event.is_outline {
                self.text_budget.mark_truncated();
            }
        }
        if status != Some("\"failed\"") {
            return RealtimeResponseEnd::Ended;
        }
        match error.zip(details) {
            Some((_, details)) => self.note_error_code(details),
            None => self.error_code = Some("error".to_owned()),
        }
        RealtimeResponseEnd::Failed
    }

    /// Reads an item of the output. What was spoken is in its transcript.
    fn read_realtime_item(&mut self, output_index: u64, item: &str) {
        let [content] = json::find_fields(item, &["content"]);
        let mut content_index = 0;
        json::for_each_array_item(content.unwrap_or_default(), |part| {
            let [text, transcript] = json::find_fields(part, &["text", "transcript"]);
            let text = json::non_empty_string_content(text).or(json::non_empty_string_content(transcript));
            if let Some(text) = text {
                let choice = self.choices.get_or_insert_choice(0);
                let target = choice.switch_to_part((output_index, content_index), &mut self.text_budget);
                self.text_budget.append_json_content(target, text);
            }
            content_index += 1;
        });
        self.read_tool_call_item(output_index, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::Operation;
    use crate::azure::response::realtime_events::RealtimeEventKind;

    fn capture(response: &str, limit: usize) -> (ResponseCapture, RealtimeResponseEnd) {
        let mut capture = ResponseCapture::new(Operation::Realtime, limit);
        let data = format!(r#"{{"type":"response.done","event_id":"e","response":{response}}}"#);
        let event = RealtimeEvent { kind: RealtimeEventKind::ResponseDone, data: &data, is_outline: false };
        let end = capture.capture_realtime_response(&event);
        (capture, end)
    }

    #[test]
    fn a_completed_response_has_text_transcripts_calls_and_usage() {
        let response = r#"{"object":"realtime.response","id":"resp_1","status":"completed","status_details":null,"output":[
            {"id":"item_1","type":"message","role":"assistant","content":[{"type":"output_audio","transcript":"Hello \u00e9"},{"type":"output_text","text":"and more"}]},
            {"id":"item_2","type":"function_call","name":"f","call_id":"call_1","arguments":"{}"}],
            "usage":{"total_tokens":30,"input_tokens":10,"output_tokens":20,"input_token_details":{"text_tokens":4,"audio_tokens":6,"cached_tokens":2}}}"#;
        let (captured, end) = capture(response, 1_000);
        assert_eq!(end, RealtimeResponseEnd::Ended);
        assert_eq!(captured.finish_reason.as_deref(), Some("completed"));
        let usage = captured.usage.unwrap();
        assert_eq!((usage.input, usage.output, usage.cached), (Some(10), Some(20), Some(2)));
        let text = captured.completion_text().unwrap();
        assert!(
            text.contains(r#""content":"Hello é\nand more""#) && text.contains(r#""id":"call_1""#),
            "{text}"
        );
        assert_eq!(capture(response, 0).0.completion_text(), None);
    }

    #[test]
    fn other_ends_tell_their_reason() {
        let rows = [
            (
                r#"{"status":"cancelled","status_details":{"type":"cancelled","reason":"turn_detected"}}"#,
                "turn_detected",
                None,
            ),
            (
                r#"{"status":"incomplete","status_details":{"type":"incomplete","reason":"max_output_tokens"}}"#,
                "max_output_tokens",
                None,
            ),
            (r#"{"status":"cancelled"}"#, "cancelled", None),
            (
                r#"{"status":"failed","status_details":{"type":"failed","error":{"type":"server_error","code":"rate_limit_exceeded"}}}"#,
                "failed",
                Some("rate_limit_exceeded"),
            ),
            (r#"{"status":"failed"}"#, "failed", Some("error")),
        ];
        for (response, reason, error) in rows {
            let (captured, end) = capture(response, 100);
            assert_eq!(captured.finish_reason.as_deref(), Some(reason), "{response}");
            assert_eq!(captured.error_code.as_deref(), error, "{response}");
            assert_eq!(end == RealtimeResponseEnd::Failed, error.is_some(), "{response}");
        }
    }
}
