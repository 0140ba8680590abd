//! Parses the text of a file into one YAML document.

use serde_yaml::Value;

use super::node::kind_name;
use super::problem_collector::ProblemCollector;

/// Parses the one document in `text`, and resolves its merge keys (`<<`).
pub(crate) fn parse_document(text: &str, problems: &ProblemCollector<'_>) -> Option<Value> {
    // Some editors on Windows begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = serde_yaml::from_str::<Value>(text).and_then(|mut value| {
        value.apply_merge()?;
        Ok(value)
    });
    match value {
        Ok(Value::Null) => {
            problems.report_error("", "the file is empty; it needs listeners, backends and clients")
        }
        Ok(value @ Value::Mapping(_)) => Some(value),
        Ok(other) => problems
            .report_error("", format!("the file must be a mapping of keys, not {}", kind_name(&other))),
        Err(e) => problems.report_error("", describe_syntax_error(&e)),
    }
}

/// The error of the YAML parser, with a hint where its wording does not lead to the fix.
fn describe_syntax_error(error: &serde_yaml::Error) -> String {
    let mut message = error.to_string();
    if message.contains("invalid value") {
        // The only message of the parser that repeats a value, which may be a secret.
        message = "a value does not fit its tag".to_owned();
    }
    if message.contains("more than one document") {
        return "the file holds more than one YAML document; remove the `---` between them".to_owned();
    }
    let location = match error.location() {
        Some(location) if !message.contains(" at line ") => {
            format!(" at line {} column {}", location.line(), location.column())
        }
        _ => String::new(),
    };
    let hint = if message.contains("alias") || message.contains("unknown anchor") {
        "; write a `*` in quotes"
    } else if message.contains("cannot start any token") {
        "; indent with spaces, not tabs, and quote values that begin with @, ` or %"
    } else if message.contains("flow") {
        "; write a value that begins with [ or { in quotes, such as \"[::]:8080\""
    } else {
        ""
    };
    format!("not valid YAML: {message}{location}{hint}")
}
