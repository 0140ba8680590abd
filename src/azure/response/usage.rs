//! Token counts and the seconds of audio as Azure reports them. Nothing is estimated here: a missing count stays unknown.

use crate::azure::json;
use crate::azure::json_keys::KeySet;

/// The tokens of one request. Cached tokens are part of the input, reasoning tokens of the output, and audio
/// tokens of what they are named after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// `prompt_tokens` or `input_tokens`.
    pub input: Option<u64>,
    /// `completion_tokens` or `output_tokens`.
    pub output: Option<u64>,
    /// `cached_tokens` of the input details.
    pub cached: Option<u64>,
    /// `cache_write_tokens`: what the prompt cache has newly stored of the input. Only models that bill it report it.
    pub cache_write: Option<u64>,
    /// `reasoning_tokens` of the output details.
    pub reasoning: Option<u64>,
    /// `total_tokens`.
    pub total: Option<u64>,
    /// `audio_tokens` of the input details.
    pub input_audio: Option<u64>,
    /// `audio_tokens` of the output details.
    pub output_audio: Option<u64>,
    /// `audio_tokens` of the details of the cached tokens.
    pub cached_audio: Option<u64>,
    /// `seconds`, in milliseconds: the audio that a request is metered by, in place of tokens.
    pub audio_millis: Option<u64>,
}

/// More than any audio lasts, and a whole number in an `f64`.
const MAX_AUDIO_MILLIS: f64 = 1e15;

impl TokenUsage {
    /// Reads a `usage` object of any API. Chat, completions and embeddings have `prompt_tokens`, the others
    /// `input_tokens`. The details are `input_tokens_details` in Responses and images, but
    /// `input_token_details` in audio and realtime. Tokens that are written to the cache are in them too, or beside
    /// them. `None` if it counts neither tokens nor seconds.
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
            seconds,
            cache_write_beside_details,
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
                "seconds",
                "cache_write_tokens",
            ],
        );
        let number = |raw: Option<&str>| raw.and_then(parse_token_count);
        let input_details = prompt_details.or(input_details).or(singular_input_details);
        let [cached, cache_write, input_audio, cached_details] = input_details.map_or([None; 4], |raw| {
            let keys = ["cached_tokens", "cache_write_tokens", "audio_tokens", "cached_tokens_details"];
            json::find_fields(raw, &keys)
        });
        let output_details = completion_details.or(output_details).or(singular_output_details);
        let [reasoning, output_audio] = output_details
            .map_or([None; 2], |raw| json::find_fields(raw, &["reasoning_tokens", "audio_tokens"]));
        let usage = Self {
            input: number(prompt).or_else(|| number(input)),
            output: number(completion).or_else(|| number(output)),
            cached: number(cached),
            cache_write: number(cache_write).or_else(|| number(cache_write_beside_details)),
            reasoning: number(reasoning),
            total: number(total),
            input_audio: number(input_audio),
            output_audio: number(output_audio),
            cached_audio: cached_details.and_then(|raw| number(json::find_fields(raw, &["audio_tokens"])[0])),
            audio_millis: seconds.and_then(parse_seconds),
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

/// Reads seconds as milliseconds. A negative or malformed number is ignored.
fn parse_seconds(raw: &str) -> Option<u64> {
    let millis = (raw.parse::<f64>().ok()? * 1000.0).round();
    (0.0..MAX_AUDIO_MILLIS).contains(&millis).then_some(millis as u64)
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
            (r#"{"usage":{"type":"duration","seconds":9.0}}"#, Some([None; 5])),
            (r#"{"usage":null}"#, None),
            (r#"{"usage":[]}"#, None),
            ("{}", None),
            ("RIFF", None),
        ];
        for (body, expected) in rows {
            assert_eq!(token_counts(body), expected, "{body}");
        }
    }

    #[test]
    fn written_tokens_are_read_from_the_details_or_beside_them() {
        let rows = [
            (
                r#"{"prompt_tokens":2000,"prompt_tokens_details":{"cached_tokens":1024,"cache_write_tokens":896}}"#,
                Some(896),
            ),
            (
                r#"{"input_tokens":2000,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":1920}}"#,
                Some(1920),
            ),
            (r#"{"input_tokens":9,"input_tokens_details":{"cache_write_tokens":0}}"#, Some(0)),
            (r#"{"prompt_tokens":9,"cache_write_tokens":7,"prompt_tokens_details":null}"#, Some(7)),
            (r#"{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":0}}"#, None),
            (r#"{"prompt_tokens":9,"prompt_tokens_details":{"cache_write_tokens":null}}"#, None),
        ];
        for (usage, expected) in rows {
            assert_eq!(TokenUsage::from_usage_object(usage).and_then(|u| u.cache_write), expected, "{usage}");
        }
    }

    #[test]
    fn audio_is_told_apart() {
        let audio_counts = |usage: &str| {
            TokenUsage::from_usage_object(usage)
                .map(|u| [u.input_audio, u.output_audio, u.cached_audio, u.audio_millis])
        };
        let rows = [
            (
                r#"{"prompt_tokens":8,"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":5},"completion_tokens_details":{"reasoning_tokens":1,"audio_tokens":6}}"#,
                Some([Some(5), Some(6), None, None]),
            ),
            (
                r#"{"input_tokens":9,"input_token_details":{"text_tokens":1,"audio_tokens":8,"cached_tokens":7,"cached_tokens_details":{"text_tokens":3,"audio_tokens":4}},"output_tokens":2,"output_token_details":{"text_tokens":0,"audio_tokens":2}}"#,
                Some([Some(8), Some(2), Some(4), None]),
            ),
            (
                r#"{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":0,"audio_tokens":14},"output_tokens":45,"total_tokens":59}"#,
                Some([Some(14), None, None, None]),
            ),
            (r#"{"input_tokens":9,"input_tokens_details":{"cached_tokens":7}}"#, Some([None; 4])),
            (r#"{"type":"duration","seconds":12.3456}"#, Some([None, None, None, Some(12_346)])),
            (r#"{"type":"duration","seconds":0}"#, Some([None, None, None, Some(0)])),
            (r#"{"type":"duration","seconds":-1}"#, None),
            (r#"{"type":"duration","seconds":1e300}"#, None),
            (r#"{"type":"duration","seconds":"NaN"}"#, None),
            (r#"{"type":"duration","seconds":inf}"#, None),
        ];
        for (usage, expected) in rows {
            assert_eq!(audio_counts(usage), expected, "{usage}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_usage_never_panics(body in "[\\[\\]{}\":,0-9.-]{0,40}", count_text in "[0-9.-]{0,30}") {
            let _ = (TokenUsage::from_json(body.as_bytes()), TokenUsage::from_usage_object(&body), parse_token_count(&count_text), parse_seconds(&count_text));
        }
    }
}
