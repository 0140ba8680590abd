//! Expressions of ARM templates, such as `[format('{0}/{1}', parameters('name'), 'backend')]`: what can be known of
//! their value without a deployment.

use std::collections::HashMap;

use serde_json::Value;

/// Stands for a part that is not known.
pub(super) const UNKNOWN: char = '\u{fffc}';
/// The deepest nesting of calls, and of parameters in parameters.
const MAX_DEPTH: usize = 16;
/// The longest value. Values that refer to each other could double in length each time.
const MAX_VALUE_BYTES: usize = 4096;

/// The parameters and variables of a template that are plain text.
#[derive(Clone, Default)]
pub(super) struct KnownValues {
    parameters: HashMap<String, String>,
    variables: HashMap<String, String>,
}

impl KnownValues {
    /// Those of a template.
    pub(super) fn of_template(template: &Value) -> Self {
        let texts = |key: &str, value_of: fn(&Value) -> Option<&Value>| {
            let entries = template.get(key).and_then(Value::as_object).into_iter().flatten();
            entries
                .filter_map(|(name, value)| {
                    Some((name.to_ascii_lowercase(), value_of(value)?.as_str()?.to_owned()))
                })
                .collect()
        };
        Self {
            parameters: texts("parameters", |parameter| parameter.get("defaultValue")),
            variables: texts("variables", |value| Some(value)),
        }
    }

    /// The value of a text of the template, with [`UNKNOWN`] for what is not known.
    pub(super) fn evaluate(&self, text: &str) -> String {
        self.evaluate_within(text, MAX_DEPTH)
    }

    fn evaluate_within(&self, text: &str, depth: usize) -> String {
        match text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            // `[[` is an escaped bracket.
            Some(inner) if inner.starts_with('[') => text.get(1..).unwrap_or_default().to_owned(),
            Some(inner) => {
                let mut parser = Parser { known: self, rest: inner };
                let mut value = parser.value(depth);
                if !parser.rest.trim().is_empty() {
                    value = UNKNOWN.to_string();
                }
                if value.len() > MAX_VALUE_BYTES { UNKNOWN.to_string() } else { value }
            }
            None => text.to_owned(),
        }
    }

    fn call(&self, function: &str, arguments: &[String], depth: usize) -> String {
        let unknown = || UNKNOWN.to_string();
        let first = arguments.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
        let look_up = |values: &HashMap<String, String>| match depth.checked_sub(1) {
            Some(depth) => values.get(&first).map_or_else(unknown, |text| self.evaluate_within(text, depth)),
            None => unknown(),
        };
        match function.to_ascii_lowercase().as_str() {
            "parameters" => look_up(&self.parameters),
            "variables" => look_up(&self.variables),
            "concat" => shortened(arguments.concat()),
            "format" => format_arguments(arguments),
            // A name is all that is used of an id.
            "resourceid" => arguments.last().cloned().unwrap_or_else(unknown),
            _ => unknown(),
        }
    }
}

fn shortened(value: String) -> String {
    if value.len() > MAX_VALUE_BYTES { UNKNOWN.to_string() } else { value }
}

fn format_arguments(arguments: &[String]) -> String {
    let Some((template, values)) = arguments.split_first() else { return UNKNOWN.to_string() };
    let (mut out, mut rest) = (String::new(), template.as_str());
    while let Some((before, after)) = rest.split_once('{') {
        let Some((index, after)) = after.split_once('}') else { break };
        out.push_str(before);
        match index.parse::<usize>().ok().and_then(|index| values.get(index)) {
            Some(value) => out.push_str(value),
            None => out.push(UNKNOWN),
        }
        if out.len() > MAX_VALUE_BYTES {
            return UNKNOWN.to_string();
        }
        rest = after;
    }
    shortened(out + rest)
}

struct Parser<'p> {
    known: &'p KnownValues,
    rest: &'p str,
}

impl Parser<'_> {
    /// A text, or a call. What is neither is not known.
    fn value(&mut self, depth: usize) -> String {
        self.rest = self.rest.trim_start();
        if let Some(after) = self.rest.strip_prefix('\'') {
            return self.text(after);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let length = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let (name, after) = self.rest.split_at(length);
        self.rest = after;
        let (Some(arguments), Some(inner)) = (after.trim_start().strip_prefix('('), depth.checked_sub(1))
        else {
            return UNKNOWN.to_string();
        };
        self.rest = arguments;
        let mut values = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            if let Some(after) = self.rest.strip_prefix(')') {
                self.rest = after;
                break;
            }
            values.push(self.value(inner));
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix(',') {
                Some(after) => self.rest = after,
                None if self.rest.starts_with(')') => {}
                None => {
                    self.rest = "?";
                    return UNKNOWN.to_string();
                }
            }
        }
        self.known.call(name, &values, depth)
    }

    /// What follows a quote. `''` is a quote in it.
    fn text(&mut self, mut after: &str) -> String {
        let mut text = String::new();
        // The end of the text is found in `self.rest`, which has the same end as `after`.
        while let Some((before, rest)) = after.split_once('\'') {
            text.push_str(before);
            match rest.strip_prefix('\'') {
                Some(rest) => {
                    text.push('\'');
                    after = rest;
                }
                None => {
                    let consumed = self.rest.len() - rest.len();
                    self.rest = self.rest.get(consumed..).unwrap_or_default();
                    return text;
                }
            }
        }
        self.rest = "?";
        UNKNOWN.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_an_expression_is_its_value() {
        let template = serde_json::json!({
            "parameters": { "service": { "type": "string" }, "region": { "defaultValue": "eastus" } },
            "variables": { "name": "[concat('aoai-', parameters('region'))]", "loop": "[variables('loop')]" },
        });
        let known = KnownValues::of_template(&template);
        for (text, expected) in [
            ("plain", "plain"),
            ("[[x]", "[x]"),
            ("['it''s']", "it's"),
            ("[format('{0}/{1}', parameters('service'), 'b-1')]", "\u{fffc}/b-1"),
            ("[concat(parameters('service'), '/', variables('name'))]", "\u{fffc}/aoai-eastus"),
            ("[resourceId('Microsoft.ApiManagement/service/backends', parameters('service'), 'b-2')]", "b-2"),
            ("[reference(resourceId('a', 'b')).endpoint]", "\u{fffc}"),
            ("[variables('loop')]", "\u{fffc}"),
            ("[format('{0}{9}', 'a')]", "a\u{fffc}"),
            ("[concat('a'", "[concat('a'"),
            ("[concat('a', ]", "\u{fffc}"),
            ("['a]", "\u{fffc}"),
            ("[]", "\u{fffc}"),
        ] {
            assert_eq!(known.evaluate(text), expected, "{text}");
        }
        let deep = format!("[{}'a'{}]", "concat(".repeat(5000), ")".repeat(5000));
        assert_eq!(known.evaluate(&deep), UNKNOWN.to_string());
    }
}
