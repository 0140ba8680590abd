//! A body that could be probed is still JSON after every edit, and says what the edit says.
#![no_main]

use aoai_lb::azure::request::{body, prompt};
use aoai_lb::azure::response::{usage, verdict};
use aoai_lb::names::Deployment;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let _ = (prompt::prompt_text(input, None), usage::Usage::from_json(input));
    let _ = (verdict::judge(404, input, &|_| true), verdict::judge_event(input));
    let Ok(probe) = body::probe(input) else { return };
    let known = prompt::prompt_text(input, Some(&probe.prompt));
    assert_eq!(known, prompt::prompt_text(input, None), "wherever it lies");
    let upstream = Deployment::parse("up-stream").expect("a good name");
    let (rename, ask) = (probe.rename(&upstream), probe.ask_usage());
    let edits: Vec<body::Edit> = rename.iter().chain(&ask).cloned().collect();
    let edited = body::edit(&Bytes::copy_from_slice(input), &edits).concat();
    // The probe skips over values it does not need, so the referee may be stricter.
    if serde_json::from_slice::<Value>(input).is_err() {
        return;
    }
    let after: Value = serde_json::from_slice(&edited).expect("edits keep JSON valid");
    // Keys are compared without case, by the probe and so by the referee.
    let says = |object: &Value, key: &str, expected: &Value| {
        let object = object.as_object().expect("an object");
        object.iter().any(|(k, value)| k.eq_ignore_ascii_case(key) && value == expected)
    };
    if ask.is_some() {
        let options = after.as_object().expect("an object").iter();
        let mut options = options.filter(|(key, _)| key.eq_ignore_ascii_case("stream_options"));
        assert!(options.any(|(_, options)| says(options, "include_usage", &Value::Bool(true))));
    }
    if rename.is_some() {
        assert!(says(&after, "model", &Value::from("up-stream")));
    }
});
