//! Token counts as Azure reports them. Nothing is estimated here: a missing count stays unknown.

use crate::azure::json;
use crate::azure::json_keys::KeySet;

/// The tokens of one request. Cached tokens are part of the input, reasoning tokens of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// `prompt_tokens` or `input_tokens`.
    pub input: Option<u64>,
    /// `completion_tokens` or `output_tokens`.
    pub output: Option<u64>,
    /// `cached_tokens` of the input details.
    pub cached: Option<u64>,
    /// `reasoning_tokens` of the output details.
    pub reasoning: Option<u64>,
    /// `total_tokens`.
    pub total: Option<u64>,
}

impl TokenUsage {
    /// Reads a `usage` object of any API. Chat, completions and embeddings have `prompt_tokens`, the others
    /// `input_tokens`. The details are `input_tokens_details` in Responses and images, but
    /// `input_token_details` in audio and realtime. `None` if it counts no tokens, as for audio models that
    /// are metered by duration.
    pub fn from_usage_object(object: &str) -> Option<Self> {
        let [
            prompt,
            input,
            completion,
            output,
            total,
            prompt_details,
            input_details,
            singular_input_details,
            completion_details,
            output_details,
            singular_output_details,
        ] = json::find_fields(
            object,
            &[
                "prompt_tokens",
                "input_tokens",
                "completion_tokens",
                "output_tokens",
                "total_tokens",
                "prompt_tokens_details",
                "input_tokens_details",
                "input_token_details",
                "completion_tokens_details",
                "output_tokens_details",
                "output_token_details",
            ],
        );
        let number = |raw: Option<&str>| raw.and_then(parse_token_count);
        let detail = |objects: [Option<&str>; 3], key| {
            objects.into_iter().flatten().find_map(|raw| number(json::find_fields(raw, &[key])[0]))
        };
        let usage = Self {
            input: number(prompt).or_else(|| number(input)),
            output: number(completion).or_else(|| number(output)),
            cached: detail([prompt_details, input_details, singular_input_details], "cached_tokens"),
            reasoning: detail(
                [completion_details, output_details, singular_output_details],
                "reasoning_tokens",
            ),
            total: number(total),
        };
        (usage != Self::default()).then_some(usage)
    }

    /// Reads the usage of a response body or an event, where it is at the top level or in `response`.
    pub fn from_json(body: &[u8]) -> Option<Self> {
        let [usage, response] =
            json::parse_fields(body, &const { KeySet::new(["usage", "response"]) }).ok()?.values;
        let nested = || json::find_fields(response?, &["usage"])[0];
        Self::from_usage_object(usage.filter(|raw| *raw != "null").or_else(nested)?)
    }
}

/// Reads a count. `9.0` is 9; a negative or malformed number is ignored.
fn parse_token_count(raw: &str) -> Option<u64> {
    let whole = raw
        .split_once('.')
        .map_or(raw, |(whole, rest)| if rest.bytes().all(|b| b == b'0') { whole } else { "" });
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token_counts(body: &str) -> Option<[Option<u64>; 5]> {
        TokenUsage::from_json(body.as_bytes()).map(|u| [u.input, u.output, u.cached, u.reasoning, u.total])
    }

    #[test]
    fn usage_of_every_api_is_read() {
        let chat = r#"{"usage":{"prompt_tokens":8,"completion_tokens":271,"total_tokens":279,"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":192}}}"#;
        let responses = r#"{"type":"response.completed","response":{"usage":{"input_tokens":11,"input_tokens_details":{"cached_tokens":0},"output_tokens":12,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":23}}}"#;
        let realtime = r#"{"type":"response.done","response":{"usage":{"input_tokens":1,"output_tokens":2,"total_tokens":3,"input_token_details":{"cached_tokens":1,"cached_tokens_details":{}}}}}"#;
        let rows = [
            (chat, Some([Some(8), Some(271), Some(3), Some(192), Some(279)])),
            (responses, Some([Some(11), Some(12), Some(0), Some(5), Some(23)])),
            (realtime, Some([Some(1), Some(2), Some(1), None, Some(3)])),
            (r#"{"usage":{"prompt_tokens":8,"total_tokens":8}}"#, Some([Some(8), None, None, None, Some(8)])),
            (
                r#"{"usage":{"type":"tokens","input_tokens":14,"input_token_details":{"audio_tokens":14},"output_tokens":45.0,"total_tokens":59}}"#,
                Some([Some(14), Some(45), None, None, Some(59)]),
            ),
            (
                r#"{"usage":{"input_tokens":50,"input_tokens_details":{"image_tokens":40},"output_tokens":4160,"total_tokens":4210}}"#,
                Some([Some(50), Some(4160), None, None, Some(4210)]),
            ),
            (
                r#"{"usage":{"prompt_tokens":-1,"completion_tokens":null,"total_tokens":"9","prompt_tokens_details":null}}"#,
                None,
            ),
            (r#"{"usage":{"type":"duration","seconds":9.0}}"#, None),
            (r#"{"usage":null}"#, None),
            (r#"{"usage":[]}"#, None),
            ("{}", None),
            ("RIFF", None),
        ];
        for (body, expected) in rows {
            assert_eq!(token_counts(body), expected, "{body}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_usage_never_panics(body in "[\\[\\]{}\":,0-9.-]{0,40}", count_text in "[0-9.-]{0,30}") {
            let _ = (TokenUsage::from_json(body.as_bytes()), TokenUsage::from_usage_object(&body), parse_token_count(&count_text));
        }
    }
}
