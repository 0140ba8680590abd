//! `record`: what is written down of each exchange, where it waits and where it goes.

mod log_analytics;

use regex::{Regex, RegexBuilder};

use super::CONTENT;
use crate::config::node::{Inner, Map};
use crate::config::{Content, Jsonl, Record, Spool, UsageMode};

/// Most memory that one pattern may take, compiled.
const PATTERN_MAX: usize = 1 << 20;
/// A spool has room for sixteen segments of some records each.
const SPOOL_LEAST: u64 = 1 << 20;
/// A file that rotates with every few records helps nobody.
const ROTATE_LEAST: u64 = 64 << 10;

/// Reads the block; without it nothing is kept.
pub(super) fn read(node: &Inner<'_, '_>) -> Option<Record> {
    let map =
        node.map(&["content", "content_limit", "usage", "redact", "jsonl", "log_analytics", "spool"])?;
    let content = map.or("content", Content::Full, |node| node.word(&CONTENT));
    let content_limit = map.or("content_limit", 64 * 1024, Inner::size);
    let usage = map.or("usage", UsageMode::Ask, |node| {
        node.word(&[("ask", UsageMode::Ask), ("observe", UsageMode::Observe)])
    });
    let redact = map.or("redact", Vec::new(), |node| node.each(pattern));
    let jsonl = map.maybe("jsonl", jsonl);
    let log_analytics = map.maybe("log_analytics", log_analytics::read);
    if let (Some(None), Some(None)) = (&jsonl, &log_analytics) {
        return node.error("must have jsonl: { path: FILE }, or log_analytics, or both");
    }
    let spool = spool(&map, jsonl.as_ref().and_then(Option::as_ref));
    Some(Record {
        content: content?,
        content_limit: content_limit?,
        usage: usage?,
        redact: redact?,
        jsonl: jsonl?,
        log_analytics: log_analytics?,
        spool: spool?,
    })
}

/// A pattern that is taken out; the library's time is in proportion to the text, whatever the
/// pattern is.
fn pattern(node: &Inner<'_, '_>) -> Option<Regex> {
    let text = node.verbatim()?;
    match RegexBuilder::new(text).size_limit(PATTERN_MAX).build() {
        Ok(pattern) if pattern.is_match("") => {
            node.error("must not match an empty text, which is everywhere")
        }
        Ok(pattern) => Some(pattern),
        Err(regex::Error::CompiledTooBig(_)) => node.error("must be a smaller pattern: its repeats multiply"),
        Err(problem) => {
            let last = problem.to_string();
            let last = last.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            node.error(format!("must be a regular expression: {last}"))
        }
    }
}

fn spool(record: &Map<'_, '_>, jsonl: Option<&Jsonl>) -> Option<Spool> {
    let map = record.block("spool", &["path", "maximum"])?;
    let beside = jsonl.map(|jsonl| {
        let stem = jsonl.path.file_stem().unwrap_or_default().to_string_lossy();
        jsonl.path.with_file_name(format!("{stem}-spool"))
    });
    let path = map.maybe("path", |node| {
        let (path, shown) = node.file()?;
        if path.exists() && !path.is_dir() {
            return node.error(format!("must be a directory of its own, and {shown} is a file"));
        }
        Some(path)
    });
    let maximum = map.or("maximum", 1 << 30, |node| {
        let size = node.size()?;
        if size < SPOOL_LEAST { node.error("must be at least 1MiB") } else { Some(size) }
    });
    let Some(path) = path?.or(beside) else {
        // Without a file there is no directory to put it beside; a bad file has been told.
        return match record.find("jsonl") {
            Some(_) => None,
            None => record.report.error(&map.at("path"), "is missing; write a directory of its own"),
        };
    };
    Some(Spool { path, maximum: maximum? })
}

fn jsonl(node: &Inner<'_, '_>) -> Option<Jsonl> {
    let map = node.map(&["path", "rotate", "keep"])?;
    let rotate = map.or("rotate", 100 << 20, |node| {
        let size = node.size()?;
        if size < ROTATE_LEAST { node.error("must be at least 64KiB") } else { Some(size) }
    });
    let keep = map.or("keep", 10, |node| Some(node.number(0..=100_000)? as usize));
    let node = map.need("path", "write the file that records go to")?;
    let (path, shown) = node.file()?;
    let has_directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => true,
        Some(parent) => parent.is_dir(),
        None => false,
    };
    if path.is_dir() {
        return node.error(format!("must be a file, and {shown} is a directory"));
    }
    if !has_directory {
        return node
            .error(format!("the directory of {shown} does not exist; create it, writable for the service"));
    }
    Some(Jsonl { path, rotate: rotate?, keep: keep? })
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{assert_problems, good};

    #[test]
    fn what_is_not_said_is_beside_the_file() {
        let record = good("record: { jsonl: { path: x.jsonl } }").config.record.unwrap();
        let jsonl = record.jsonl.unwrap();
        assert_eq!((jsonl.rotate, jsonl.keep, record.spool.maximum), (100 << 20, 10, 1 << 30));
        assert_eq!(record.spool.path.to_str(), Some("x-spool"));
        let yaml = "record: { jsonl: { path: x, rotate: 1MiB, keep: 0 }, spool: { path: y, maximum: 2MiB }, redact: ['a$', 'k$$'] }";
        let record = good(yaml).config.record.unwrap();
        let patterns: Vec<&str> = record.redact.iter().map(regex::Regex::as_str).collect();
        assert_eq!(patterns, ["a$", "k$$"], "a dollar sign is theirs");
        assert_eq!((record.spool.path.to_str(), record.spool.maximum), (Some("y"), 2 << 20));
    }

    #[test]
    fn problems() {
        let one = |more: &str| format!("record: {{ jsonl: {{ path: x }}, {more} }}");
        assert_problems(&[
            (
                &one("redact: ['(', 'x*', 'a{1000}{1000}', 7]"),
                &[
                    "record.redact[0]: must be a regular expression: unclosed group",
                    "record.redact[1]: must not match an empty text, which is everywhere",
                    "record.redact[2]: must be a smaller pattern: its repeats multiply",
                    "record.redact[3]: must be a string, not a number",
                ],
            ),
            (&one("spool: { maximum: 1KiB }"), &["record.spool.maximum: must be at least 1MiB"]),
            (
                &one("spool: { path: Cargo.toml }"),
                &["record.spool.path: must be a directory of its own, and \"Cargo.toml\" is a file"],
            ),
            (
                "record: { jsonl: { path: x, rotate: 1KiB } }",
                &["record.jsonl.rotate: must be at least 64KiB"],
            ),
        ]);
    }
}
