//! From text to one parsed YAML document, or the one reason why there is none.

use serde_yaml::Value;

use super::node::kind_name;
use super::problem_collector::ProblemCollector;

/// The one document in `text`, with its merge keys (`<<`) written out.
pub(crate) fn parse_document(text: &str, problems: &ProblemCollector<'_>) -> Option<Value> {
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

/// What the YAML parser says, with a hint where its words do not lead to the fix.
fn describe_syntax_error(error: &serde_yaml::Error) -> String {
    let mut message = error.to_string();
    if message.contains("invalid value") {
        // The only message of the parser that repeats a value.
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
        "; a `*` is written in quotes"
    } else if message.contains("cannot start any token") {
        "; indent with blanks, not tabs, and quote values that begin with @, ` or %"
    } else if message.contains("flow") {
        "; a value that begins with [ or { is written in quotes, such as \"[::]:8080\""
    } else {
        ""
    };
    format!("not valid YAML: {message}{location}{hint}")
}
