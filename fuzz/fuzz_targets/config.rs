//! Any text is read as a configuration without a panic, within its limits, and no problem shows a secret.
#![no_main]

use std::path::Path;

use aoai_lb::config::parse_and_check_yaml;
use libfuzzer_sys::fuzz_target;

const SECRET: &str = "zq7-the-secret-of-the-environment";
/// A hundred problems of at most one line each, and the count of the others.
const MAX_PROBLEMS: usize = 101;

fuzz_target!(|text: &str| {
    // No file of this machine is read.
    if text.contains("file:") || text.contains(SECRET) {
        return;
    }
    let env = |name: &str| (name == "SECRET").then(|| SECRET.to_owned());
    let Err(problems) = parse_and_check_yaml(text, Path::new("/nonexistent"), &env) else { return };
    assert!((1..=MAX_PROBLEMS).contains(&problems.errors.len()));
    assert!(!problems.to_string().contains(SECRET));
});
