//! Any response or error event has a verdict, whatever its body is.
#![no_main]

use aoai_lb::azure::response::usage::TokenUsage;
use aoai_lb::azure::response::verdict;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (status, is_listed, body) = input;
    let status = 100 + status % 500;
    let _ = verdict::judge_response(status, body, &|_| is_listed);
    let _ = verdict::judge_error_event(body);
    let _ = (verdict::needs_body_to_judge(status), verdict::mentions_stream_options(body));
    let _ = TokenUsage::from_json(body);
});
