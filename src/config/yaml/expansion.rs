//! Expansion of `${NAME}`, `${NAME:-default}` and `${file:/path}` inside a scalar. Expanded values may be
//! secrets, so no message ever shows one.
//!
//! As in a shell, `:-` gives the default for a variable that is unset or empty. `$$` is a dollar sign; a `$`
//! before anything but `{` or `$` is kept. The last line break of a file is dropped. What an expansion
//! inserts is not expanded again.

use std::path::Path;

use crate::files::read_text_file;

/// Looks up an environment variable.
pub(crate) type EnvironmentLookup<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// The largest file for `${file:…}`: secrets are short.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The text of a scalar after expansion, with the knowledge of whether it may be shown.
#[derive(Debug)]
pub(crate) struct ExpandedText {
    /// The expanded text.
    pub(crate) value: String,
    /// The expansions that it came from, as `${NAME}`.
    expansion_sources: Vec<String>,
}

impl ExpandedText {
    /// What stands for a secret that is not there, where only its place matters.
    pub(crate) fn missing_secret(key_path: &str) -> Self {
        Self { value: "secret-not-read".to_owned(), expansion_sources: vec![key_path.to_owned()] }
    }

    /// Whether any of the text came from an expansion.
    pub(crate) fn is_expanded(&self) -> bool {
        !self.expansion_sources.is_empty()
    }

    /// What a message adds about this text: where it came from, or nothing if it was written in the file.
    /// The text itself is never shown.
    pub(crate) fn source_note(&self) -> String {
        if self.is_expanded() {
            format!(" (the value is from {})", self.expansion_sources.join(" and "))
        } else {
            String::new()
        }
    }
}

/// Expands `raw`. Relative file paths start at `base`.
///
/// # Errors
/// One message for each expansion that has no value.
pub(crate) fn expand_text(
    raw: &str,
    base: &Path,
    env: &EnvironmentLookup<'_>,
) -> Result<ExpandedText, Vec<String>> {
    let mut text = ExpandedText { value: String::with_capacity(raw.len()), expansion_sources: Vec::new() };
    let mut problems = Vec::new();
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('$') {
        text.value.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            text.value.push('$');
            rest = after;
        } else if let Some(body) = rest.strip_prefix('{') {
            let Some((inside, after)) = body.split_once('}') else {
                problems.push("has a `${` without its `}`; write `$$` for a literal dollar sign".to_owned());
                rest = "";
                break;
            };
            rest = after;
            match resolve_expansion(inside, base, env) {
                Ok((source, value)) => {
                    text.value.push_str(&value);
                    text.expansion_sources.push(source);
                }
                Err(problem) => problems.push(problem),
            }
        } else {
            text.value.push('$');
        }
    }
    text.value.push_str(rest);
    if problems.is_empty() { Ok(text) } else { Err(problems) }
}

/// Resolves what is between the braces. Returns its label for messages, and its value.
fn resolve_expansion(
    inside: &str,
    base: &Path,
    env: &EnvironmentLookup<'_>,
) -> Result<(String, String), String> {
    if let Some(file) = inside.strip_prefix("file:") {
        let source = format!("${{file:{file}}}");
        let value =
            read_file_value(&base.join(file)).map_err(|reason| format!("cannot read {source}: {reason}"))?;
        return Ok((source, value));
    }
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let has_valid_start = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !has_valid_start || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(
            "has an invalid expansion; write ${NAME}, ${NAME:-default} or ${file:/path}, or `$${` for a literal `${`"
                .to_owned(),
        );
    }
    let source = format!("${{{name}}}");
    let value = match (env(name), default) {
        // First: the closing brace that was found belongs to the inner expansion, so the default is cut off.
        (_, Some(default)) if default.contains("${") => {
            return Err(format!("has an expansion inside the default of {source}; expansions do not nest"));
        }
        (None, Some(default)) => default.to_owned(),
        (Some(value), Some(default)) if value.is_empty() => default.to_owned(),
        (Some(value), _) => value,
        (None, None) => {
            return Err(format!("{source} is not set; set {name} or write ${{{name}:-default}}"));
        }
    };
    Ok((source, value))
}

fn read_file_value(path: &Path) -> Result<String, String> {
    let mut text = read_text_file(path, MAX_FILE_BYTES).map_err(|e| e.to_string())?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "KEY" => Some("k3y".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${KEY} $$ : {".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn values_are_inserted_without_further_expansion() {
        for (raw, value) in [
            ("plain", "plain"),
            ("${KEY}", "k3y"),
            ("a${KEY}b${KEY}", "ak3ybk3y"),
            ("${NONE:-other}", "other"),
            ("${NONE:-}", ""),
            ("${NONE:-a:-b}", "a:-b"),
            ("${EMPTY:-other}", "other"),
            ("${EMPTY}", ""),
            ("${TRICKY}", "${KEY} $$ : {"),
            ("$$", "$"),
            ("$${KEY}", "${KEY}"),
            ("$x $", "$x $"),
            ("ü${KEY}ü", "ük3yü"),
        ] {
            assert_eq!(expand_text(raw, Path::new(""), &env).unwrap().value, value, "{raw}");
        }
    }

    #[test]
    fn an_expansion_without_a_value_is_an_error() {
        for (raw, problems) in [
            ("${NONE}", vec!["${NONE} is not set; set NONE or write ${NONE:-default}"]),
            (
                "${NONE}${NO}",
                vec![
                    "${NONE} is not set; set NONE or write ${NONE:-default}",
                    "${NO} is not set; set NO or write ${NO:-default}",
                ],
            ),
            ("a${KEY", vec!["has a `${` without its `}`; write `$$` for a literal dollar sign"]),
            (
                "${NONE:-${KEY}}",
                vec!["has an expansion inside the default of ${NONE}; expansions do not nest"],
            ),
        ] {
            assert_eq!(expand_text(raw, Path::new(""), &env).unwrap_err(), problems, "{raw}");
        }
        for raw in ["${}", "${1A}", "${A B}", "${:-x}", "${A-x}"] {
            assert!(
                expand_text(raw, Path::new(""), &env).unwrap_err()[0]
                    .contains("has an invalid expansion; write ${NAME},"),
                "{raw}"
            );
        }
    }

    #[test]
    fn the_last_line_break_of_a_file_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        for (content, value) in [("k\n", "k"), ("k\r\n", "k"), ("k\n\n", "k\n"), ("k", "k"), ("", "")] {
            std::fs::write(dir.path().join("key"), content).unwrap();
            assert_eq!(expand_text("${file:key}", dir.path(), &env).unwrap().value, value, "{content:?}");
        }
        std::fs::write(dir.path().join("key"), [0xff]).unwrap();
        std::fs::write(dir.path().join("large"), [b'k'; 65_537]).unwrap();
        let cases = [
            ("${file:key}", "not UTF-8"),
            ("${file:none}", "No such file"),
            ("${file:/dev/zero}", "it is a FIFO or a device, not a regular file"),
            ("${file:.}", "it is a directory, not a regular file"),
            ("${file:large}", "it is larger than 64KiB"),
            ("${file:}", "cannot read"),
        ];
        for (raw, problem) in cases {
            let errors = expand_text(raw, dir.path(), &env).unwrap_err();
            assert!(errors[0].contains(problem), "{errors:?}");
        }
    }

    #[test]
    fn a_note_says_where_a_text_came_from_and_never_shows_it() {
        let note = |raw: &str| expand_text(raw, Path::new(""), &env).unwrap().source_note();
        assert_eq!(note("literal"), "");
        assert_eq!(note("${KEY}"), " (the value is from ${KEY})");
        assert_eq!(note("x${KEY}${NONE:-secret}"), " (the value is from ${KEY} and ${NONE})");
    }
}
