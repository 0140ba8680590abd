//! `${NAME}`, `${NAME:-default}` and `${file:/path}` inside one scalar, once, and the rule
//! that nothing which came that way is ever shown.
//!
//! As in a shell, the default of `:-` stands in for a variable that is unset or empty. `$$`
//! is a dollar sign; a `$` before anything else than `{` or `$` stays as it is. A file loses
//! one line break at its end.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The environment as it is handed in.
pub(super) type Environment<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// The most a `${file:…}` may hold: secrets are short, and `/dev/zero` never ends.
const LARGEST_FILE: u64 = 64 * 1024;
/// The most characters of a literal value that a message repeats.
const SHOWN: usize = 60;

/// A scalar after expansion, which knows whether it may be shown.
#[derive(Debug)]
pub(super) struct Text {
    /// The text as it is meant.
    pub(super) value: String,
    /// The expansions in it, as `${NAME}`.
    sources: Vec<String>,
}

impl Text {
    /// Whether some of the text came from an expansion.
    pub(super) fn is_expanded(&self) -> bool {
        !self.sources.is_empty()
    }

    /// The text for a message: itself if it stood in the file, otherwise where it came from.
    pub(super) fn shown(&self) -> String {
        if self.is_expanded() {
            return format!("the value from {}", self.sources.join(" and "));
        }
        match self.value.char_indices().nth(SHOWN) {
            Some((cut, _)) => format!("{:?}…", &self.value[..cut]),
            None => format!("{:?}", self.value),
        }
    }
}

/// Expands `raw`; relative files start at `base`.
///
/// # Errors
/// One message for each expansion that has no value.
pub(super) fn expand(raw: &str, base: &Path, env: &Environment<'_>) -> Result<Text, Vec<String>> {
    let mut text = Text { value: String::with_capacity(raw.len()), sources: Vec::new() };
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
                problems.push("has a `${` without its `}`; a literal dollar sign is written `$$`".to_owned());
                rest = "";
                break;
            };
            rest = after;
            match resolve(inside, base, env) {
                Ok((source, value)) => {
                    text.value.push_str(&value);
                    text.sources.push(source);
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

/// What stands between the braces, as its label for messages and its value.
fn resolve(inside: &str, base: &Path, env: &Environment<'_>) -> Result<(String, String), String> {
    if let Some(file) = inside.strip_prefix("file:") {
        let source = format!("${{file:{file}}}");
        let value = read(&base.join(file)).map_err(|reason| format!("cannot read {source}: {reason}"))?;
        return Ok((source, value));
    }
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(
            "has an expansion that is none of ${NAME}, ${NAME:-default} and ${file:/path}; a literal `${` is written `$${`"
                .to_owned(),
        );
    }
    let source = format!("${{{name}}}");
    let value = match (env(name), default) {
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

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err("it is larger than 64KiB".to_owned());
    }
    let mut text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
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
    fn values_are_put_in_once() {
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
            assert_eq!(expand(raw, Path::new(""), &env).unwrap().value, value, "{raw}");
        }
    }

    #[test]
    fn what_has_no_value_is_said() {
        for (raw, problems) in [
            ("${NONE}", vec!["${NONE} is not set; set NONE or write ${NONE:-default}"]),
            (
                "${NONE}${NO}",
                vec![
                    "${NONE} is not set; set NONE or write ${NONE:-default}",
                    "${NO} is not set; set NO or write ${NO:-default}",
                ],
            ),
            ("a${KEY", vec!["has a `${` without its `}`; a literal dollar sign is written `$$`"]),
            (
                "${NONE:-${KEY}}",
                vec!["has an expansion inside the default of ${NONE}; expansions do not nest"],
            ),
        ] {
            assert_eq!(expand(raw, Path::new(""), &env).unwrap_err(), problems, "{raw}");
        }
        for raw in ["${}", "${1A}", "${A B}", "${:-x}", "${A-x}"] {
            assert!(expand(raw, Path::new(""), &env).unwrap_err()[0].contains("none of ${NAME}"), "{raw}");
        }
    }

    #[test]
    fn files_lose_one_line_break() {
        let dir = tempfile::tempdir().unwrap();
        for (content, value) in [("k\n", "k"), ("k\r\n", "k"), ("k\n\n", "k\n"), ("k", "k"), ("", "")] {
            std::fs::write(dir.path().join("key"), content).unwrap();
            assert_eq!(expand("${file:key}", dir.path(), &env).unwrap().value, value, "{content:?}");
        }
        std::fs::write(dir.path().join("key"), [0xff]).unwrap();
        let cases = [
            ("${file:key}", "not UTF-8"),
            ("${file:none}", "No such file"),
            ("${file:/dev/zero}", "larger"),
            ("${file:}", "cannot read"),
        ];
        for (raw, problem) in cases {
            let said = expand(raw, dir.path(), &env).unwrap_err();
            assert!(said[0].contains(problem), "{said:?}");
        }
    }

    #[test]
    fn only_literal_text_is_shown() {
        let shown = |raw: &str| expand(raw, Path::new(""), &env).unwrap().shown();
        assert_eq!(shown("a\"b"), r#""a\"b""#);
        assert_eq!(shown("${KEY}"), "the value from ${KEY}");
        assert_eq!(shown("x${KEY}${NONE:-secret}"), "the value from ${KEY} and ${NONE}");
        assert_eq!(shown(&"ä".repeat(61)), format!("\"{}\"…", "ä".repeat(60)));
    }
}
