//! Reads and checks `record`: what is recorded of each request, the spool and the sinks.

mod log_analytics;

use std::path::Path;

use regex::{Regex, RegexBuilder};

use super::shared::{RECORDED_CONTENT_WORDS, is_writable};
use crate::config::schema::{JsonlConfig, RecordConfig, RecordedContent, SpoolConfig, StreamUsageMode};
use crate::config::yaml::{YamlMapping, YamlNode};

/// The most memory that one compiled pattern may take.
const MAX_COMPILED_PATTERN_BYTES: usize = 1 << 20;
/// The spool is divided into 16 segments, and each needs room for some records.
const MIN_SPOOL_BYTES: u64 = 1 << 20;
/// Below this, the file would rotate every few records.
const MIN_ROTATION_BYTES: u64 = 64 << 10;

/// Reads the block.
pub(super) fn read_record(node: &YamlNode<'_, '_>) -> Option<RecordConfig> {
    let map = node.read_mapping(&[
        "content",
        "content_limit",
        "usage",
        "redact",
        "jsonl",
        "log_analytics",
        "spool",
    ])?;
    let content =
        map.read_or("content", RecordedContent::Full, |node| node.read_choice(&RECORDED_CONTENT_WORDS));
    let content_limit = map.read_or("content_limit", 64 * 1024, YamlNode::read_byte_size);
    let usage = map.read_or("usage", StreamUsageMode::AskUpstream, |node| {
        node.read_choice(&[("ask", StreamUsageMode::AskUpstream), ("observe", StreamUsageMode::ObserveOnly)])
    });
    let redact = map.read_or("redact", Vec::new(), |node| node.read_each(read_redaction_pattern));
    let jsonl = map.read_optional("jsonl", read_jsonl);
    let log_analytics = map.read_optional("log_analytics", log_analytics::read_log_analytics);
    // Two `Some`s mean that neither key has an error of its own.
    if let (Some(None), Some(None)) = (&jsonl, &log_analytics) {
        return node.report_error("must have jsonl: { path: FILE }, or log_analytics, or both");
    }
    let spool = read_spool(&map, jsonl.as_ref().and_then(Option::as_ref));
    Some(RecordConfig {
        recorded_content: content?,
        max_content_bytes: content_limit?,
        stream_usage_mode: usage?,
        redaction_patterns: redact?,
        jsonl: jsonl?,
        log_analytics: log_analytics?,
        spool: spool?,
    })
}

/// Reads a pattern for redaction. The `regex` crate matches in linear time whatever the pattern, so only its
/// compiled size is limited.
fn read_redaction_pattern(node: &YamlNode<'_, '_>) -> Option<Regex> {
    let text = node.read_unexpanded_text()?;
    match RegexBuilder::new(text).size_limit(MAX_COMPILED_PATTERN_BYTES).build() {
        Ok(pattern) if pattern.is_match("") => {
            node.report_error("must not match the empty text, which is found everywhere")
        }
        Ok(pattern) => Some(pattern),
        Err(regex::Error::CompiledTooBig(_)) => {
            node.report_error("must be a smaller pattern: its repetitions multiply")
        }
        Err(problem) => {
            let message = problem.to_string();
            let last_line =
                message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            node.report_error(format!("must be a regular expression: {last_line}"))
        }
    }
}

fn read_spool(record: &YamlMapping<'_, '_>, jsonl: Option<&JsonlConfig>) -> Option<SpoolConfig> {
    let map = record.read_block("spool", &["path", "maximum"])?;
    let default_path = jsonl.map(|jsonl| {
        let stem = jsonl.path.file_stem().unwrap_or_default().to_string_lossy();
        jsonl.path.with_file_name(format!("{stem}-spool"))
    });
    let path = map.read_optional("path", |node| {
        let path = node.read_file_path()?;
        let nearest = path.ancestors().find(|ancestor| ancestor.exists());
        if nearest.is_some_and(|nearest| nearest != path && !nearest.is_dir()) {
            node.report_unusable_path("cannot be created: it is below a file");
        } else if path.exists() && !path.is_dir() {
            node.report_unusable_path("must be a directory, and is a file");
        } else if path.is_dir() && !is_writable(&path) {
            node.report_warning("cannot be written to by this user");
        }
        Some(path)
    });
    let maximum = map.read_or("maximum", 1 << 30, |node| {
        let size = node.read_byte_size()?;
        if size < MIN_SPOOL_BYTES { node.report_error("must be at least 1MiB") } else { Some(size) }
    });
    let Some(path) = path?.or(default_path) else {
        // There is no default without `jsonl`. If `jsonl` is there but has errors, those were reported.
        return match record.get("jsonl") {
            Some(_) => None,
            None => map.report_error_at("path", "is missing; write a directory that only aoai-lb uses"),
        };
    };
    Some(SpoolConfig { directory: path, max_bytes: maximum? })
}

fn read_jsonl(node: &YamlNode<'_, '_>) -> Option<JsonlConfig> {
    let map = node.read_mapping(&["path", "rotate", "keep"])?;
    let rotate = map.read_or("rotate", 100 << 20, |node| {
        let size = node.read_byte_size()?;
        if size < MIN_ROTATION_BYTES { node.report_error("must be at least 64KiB") } else { Some(size) }
    });
    let keep = map.read_or("keep", 10, |node| Some(node.read_integer(0..=100_000)? as usize));
    let node = map.require("path", "write the file that records go to")?;
    let path = node.read_file_path()?;
    let directory =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    if path.is_dir() {
        node.report_unusable_path("must be a file, and is a directory");
    } else if !directory.is_some_and(Path::is_dir) {
        node.report_unusable_path(
            "is in a directory that does not exist; create it, writable for the service",
        );
    } else if !is_writable(if path.exists() { &path } else { directory.unwrap_or(&path) }) {
        node.report_warning("cannot be written to by this user");
    }
    Some(JsonlConfig { path, rotate_at_bytes: rotate?, max_rotated_files: keep? })
}

#[cfg(test)]
mod tests {
    use crate::config::testing::{assert_errors, parse_valid};

    #[test]
    fn the_spool_defaults_to_a_directory_beside_the_record_file() {
        let record = parse_valid("record: { jsonl: { path: x.jsonl } }").config.record.unwrap();
        let jsonl = record.jsonl.unwrap();
        assert_eq!(
            (jsonl.rotate_at_bytes, jsonl.max_rotated_files, record.spool.max_bytes),
            (100 << 20, 10, 1 << 30)
        );
        assert_eq!(record.spool.directory.file_name().unwrap(), "x-spool");
        let yaml = "record: { jsonl: { path: x, rotate: 1MiB, keep: 0 }, spool: { path: y, maximum: 2MiB }, redact: ['a$', 'k$$'] }";
        let record = parse_valid(yaml).config.record.unwrap();
        let patterns: Vec<&str> = record.redaction_patterns.iter().map(regex::Regex::as_str).collect();
        assert_eq!(patterns, ["a$", "k$$"], "a dollar sign is theirs");
        assert_eq!(
            (record.spool.directory.file_name().unwrap(), record.spool.max_bytes),
            ("y".as_ref(), 2 << 20)
        );
    }

    #[test]
    fn invalid_record_settings_are_reported() {
        let record_with = |more: &str| format!("record: {{ jsonl: {{ path: x }}, {more} }}");
        assert_errors(&[
            (
                &record_with("redact: ['(', 'x*', 'a{1000}{1000}', [7]]"),
                &[
                    "record.redact[0]: must be a regular expression: unclosed group",
                    "record.redact[1]: must not match the empty text, which is found everywhere",
                    "record.redact[2]: must be a smaller pattern: its repetitions multiply",
                    "record.redact[3]: must be a string, not a list",
                ],
            ),
            (&record_with("spool: { maximum: 1KiB }"), &["record.spool.maximum: must be at least 1MiB"]),
            (
                "record: { jsonl: { path: x, rotate: 1KiB } }",
                &["record.jsonl.rotate: must be at least 64KiB"],
            ),
        ]);
    }

    #[test]
    fn paths_that_cannot_be_used_now_are_told_apart_from_errors() {
        for (record, expected) in [
            (
                "jsonl: { path: /no/such/x }",
                "record.jsonl.path: is in a directory that does not exist; create it, writable for the service",
            ),
            ("jsonl: { path: / }", "record.jsonl.path: must be a file, and is a directory"),
            (
                "jsonl: { path: x }, spool: { path: /proc/version }",
                "record.spool.path: must be a directory, and is a file",
            ),
            (
                "jsonl: { path: x }, spool: { path: /proc/version/spool }",
                "record.spool.path: cannot be created: it is below a file",
            ),
        ] {
            let checked = parse_valid(&format!("record: {{ {record} }}"));
            assert_eq!(
                checked.unusable_paths.iter().map(ToString::to_string).collect::<Vec<_>>(),
                [expected]
            );
            // Together with an error, a check reports both.
            let with_error = format!("record: {{ {record}, usage: maybe }}");
            assert!(crate::config::testing::errors_in(&with_error).contains(&expected.to_owned()));
        }
    }
}
