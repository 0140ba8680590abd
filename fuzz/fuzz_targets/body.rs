//! A parsed body is still JSON after every edit, and contains the edited values.
#![no_main]

use aoai_lb::azure::request::json_body::BodyFacts;
use aoai_lb::azure::request::prompt;
use aoai_lb::azure::response::usage::TokenUsage;
use aoai_lb::azure::response::verdict;
use aoai_lb::azure::{BodyEdit, apply_edits};
use aoai_lb::names::DeploymentName;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let _ = (prompt::prompt_text(input, None), TokenUsage::from_json(input));
    let _ = (verdict::judge_response(404, input, &|_| true), verdict::judge_error_event(input));
    let Ok(facts) = BodyFacts::parse(input) else { return };
    let located = prompt::prompt_text(input, Some(&facts.prompt_part_ranges));
    assert_eq!(
        located,
        prompt::prompt_text(input, None),
        "expected the same prompt with and without known positions"
    );
    let upstream = DeploymentName::parse("up-stream").expect("the name is valid");
    let (rename, include_usage) = (facts.rename_model_edit(&upstream), facts.include_usage_edit());
    let edits: Vec<BodyEdit> = rename.iter().chain(&include_usage).cloned().collect();
    let edited = apply_edits(&Bytes::copy_from_slice(input), &edits).concat();
    // The parser skips values that it does not need, so serde_json may reject more.
    if serde_json::from_slice::<Value>(input).is_err() {
        return;
    }
    let edited_json: Value = serde_json::from_slice(&edited).expect("edits keep JSON valid");
    // Keys are compared without case, as the parser does.
    let has_value = |object: &Value, key: &str, expected: &Value| {
        let object = object.as_object().expect("the value is an object");
        object.iter().any(|(name, value)| name.eq_ignore_ascii_case(key) && value == expected)
    };
    if include_usage.is_some() {
        let options = edited_json.as_object().expect("the value is an object").iter();
        let mut options = options.filter(|(key, _)| key.eq_ignore_ascii_case("stream_options"));
        assert!(options.any(|(_, options)| has_value(options, "include_usage", &Value::Bool(true))));
    }
    if rename.is_some() {
        assert!(has_value(&edited_json, "model", &Value::from("up-stream")));
    }
});
