//! From text to one parsed YAML document, or the one reason why there is none.

use serde_yaml::Value;

use super::node::{Node, Report, kind};

/// The one document in `text`, with its merge keys (`<<`) written out.
pub(super) fn document<'a>(text: &str, report: &'a Report<'a>) -> Option<Node<'a>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = serde_yaml::from_str::<Value>(text).and_then(|mut value| {
        value.apply_merge()?;
        Ok(value)
    });
    match value {
        Ok(Value::Null) => report.error("", "the file is empty; it needs listeners, backends and clients"),
        Ok(value @ Value::Mapping(_)) => Some(Node::root(value, report)),
        Ok(other) => report.error("", format!("the file must be a mapping of keys, not {}", kind(&other))),
        Err(e) => report.error("", syntax(&e)),
    }
}

/// What the YAML parser says, with a hint where its words do not lead to the fix.
fn syntax(error: &serde_yaml::Error) -> String {
    let mut said = error.to_string();
    if said.contains("invalid value") {
        // The only message of the parser that repeats a value.
        said = "a value does not fit its tag".to_owned();
    }
    if said.contains("more than one document") {
        return "the file holds more than one YAML document; remove the `---` between them".to_owned();
    }
    let place = match error.location() {
        Some(place) if !said.contains(" at line ") => {
            format!(" at line {} column {}", place.line(), place.column())
        }
        _ => String::new(),
    };
    let hint = if said.contains("alias") || said.contains("unknown anchor") {
        "; a `*` is written in quotes"
    } else if said.contains("cannot start any token") {
        "; indent with blanks, not tabs, and quote values that begin with @, ` or %"
    } else if said.contains("flow") {
        "; a value that begins with [ or { is written in quotes, such as \"[::]:8080\""
    } else {
        ""
    };
    format!("not valid YAML: {said}{place}{hint}")
}
