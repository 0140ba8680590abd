//! Texts and numbers that satisfy a JSON schema.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Map, Value, json};

/// The longest text that is written for a `pattern` or a `minLength`.
const MAX_CHARACTERS: usize = 100_000;
/// Integers beyond have no exact `f64`.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// A text for the keywords of strings: `text` itself, as far as they let it.
pub(super) fn text_for_schema(schema: &Map<String, Value>, text: &str, variant: u64) -> Option<String> {
    let size = |name: &str| {
        schema.get(name).and_then(Value::as_u64).map(|size| usize::try_from(size).unwrap_or(usize::MAX))
    };
    let (min_length, max_length) = (size("minLength").unwrap_or(0), size("maxLength").unwrap_or(usize::MAX));
    let keyword = |name: &str| schema.get(name).and_then(Value::as_str);
    if let Some(found) = keyword("pattern").and_then(|pattern| text_for_pattern(pattern, min_length)) {
        let length = found.chars().count();
        return (min_length..=max_length).contains(&length).then_some(found);
    }
    if let Some(found) = keyword("format").and_then(|format| text_of_format(format, variant)) {
        return Some(found);
    }
    if min_length > max_length || min_length > MAX_CHARACTERS {
        return None;
    }
    // A number in front makes the texts of a list differ, even if they are cut.
    let text = if variant == 0 { text.to_owned() } else { format!("{variant} {text}") };
    let mut fitting: String = text.chars().take(max_length).collect();
    let missing = min_length.saturating_sub(fitting.chars().count());
    fitting.extend(std::iter::repeat_n('.', missing));
    Some(fitting)
}

/// A number for the keywords of numbers.
pub(super) fn number_for_schema(
    schema: &Map<String, Value>,
    is_integer: bool,
    variant: u64,
) -> Option<Value> {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let (minimum, exclusive_minimum) = (bound("minimum"), bound("exclusiveMinimum"));
    let (maximum, exclusive_maximum) = (bound("maximum"), bound("exclusiveMaximum"));
    let is_allowed = |number: f64| {
        minimum.is_none_or(|bound| number >= bound)
            && exclusive_minimum.is_none_or(|bound| number > bound)
            && maximum.is_none_or(|bound| number <= bound)
            && exclusive_maximum.is_none_or(|bound| number < bound)
    };
    let lower = [minimum, exclusive_minimum].into_iter().flatten().reduce(f64::max);
    let upper = [maximum, exclusive_maximum].into_iter().flatten().reduce(f64::min);
    let multiple = bound("multipleOf").filter(|step| *step > 0.0);
    let mut candidates = Vec::new();
    if is_integer || multiple.is_some() {
        let step = match multiple {
            Some(step) if !is_integer || step.fract() == 0.0 => step,
            // An integer that is a multiple of 0.5 is a multiple of 1, roughly.
            Some(step) => step.ceil().max(1.0),
            None => 1.0,
        };
        let first = match (lower, upper) {
            (Some(lower), _) => (lower / step).ceil(),
            (None, Some(upper)) => (upper / step).floor().min(1.0),
            (None, None) => 1.0,
        };
        let direction = if lower.is_none() && upper.is_some() { -1.0 } else { 1.0 };
        let nth = |number: f64| (first + direction * number) * step;
        // The first may be excluded; then the second is not.
        candidates.extend((0..=variant.saturating_add(1).min(100_000)).map(|number| nth(number as f64)));
    } else {
        let offset = variant as f64;
        candidates.extend(match (lower, upper) {
            (Some(lower), Some(upper)) => {
                let width = upper - lower;
                vec![lower, lower + width / (2.0 + offset), lower + width / 2.0]
            }
            (Some(lower), None) => vec![lower + offset, lower + offset + 1.0],
            (None, Some(upper)) => vec![upper - offset, upper - offset - 1.0],
            (None, None) => vec![1.0 + offset],
        });
    }
    let mut allowed = candidates.into_iter().filter(|number| number.is_finite() && is_allowed(*number));
    let index = if is_integer || multiple.is_some() { usize::try_from(variant).unwrap_or(0) } else { 0 };
    let number = if variant > 0 && index == 0 { allowed.nth(1) } else { allowed.nth(index) }?;
    if number.fract() == 0.0 && number.abs() < MAX_EXACT_INTEGER {
        return Some(json!(number as i64));
    }
    (!is_integer).then(|| json!(number))
}

/// An example of a format. `None` if the format is not known, and says nothing then.
fn text_of_format(format: &str, variant: u64) -> Option<String> {
    let number = variant % 28 + 1;
    Some(match format {
        "date-time" => format!("2026-11-{number:02}T12:00:00Z"),
        "date" => format!("2026-11-{number:02}"),
        "time" => format!("12:00:{number:02}Z"),
        "duration" => format!("P{number}D"),
        "email" => format!("user{number}@example.com"),
        "hostname" => format!("host{number}.example.com"),
        "ipv4" => format!("192.0.2.{number}"),
        "ipv6" => format!("2001:db8::{number}"),
        "uuid" => format!("00000000-0000-4000-8000-{number:012}"),
        "uri" | "url" => format!("https://example.com/{number}"),
        _ => return None,
    })
}

/// A text that matches a regular expression. `None` if it is not one that Rust understands.
fn text_for_pattern(pattern: &str, min_length: usize) -> Option<String> {
    let expression = regex_syntax::parse(pattern).ok()?;
    let mut shortest = String::new();
    write_match(&expression, 0, &mut shortest)?;
    if shortest.chars().count() >= min_length {
        return Some(shortest);
    }
    // Each repetition is tried with as many rounds as could be missing.
    (1..=min_length.min(1_000)).find_map(|rounds| {
        let mut text = String::new();
        write_match(&expression, rounds, &mut text)?;
        (text.chars().count() >= min_length).then_some(text)
    })
}

/// Writes a match; each repetition has `extra` more rounds than it must have, as far as it may.
fn write_match(expression: &Hir, extra: usize, into: &mut String) -> Option<()> {
    if into.len() > MAX_CHARACTERS {
        return None;
    }
    match expression.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => into.push_str(std::str::from_utf8(&literal.0).ok()?),
        HirKind::Class(class) => into.push(character_of(class)?),
        HirKind::Repetition(repetition) => {
            let minimum = usize::try_from(repetition.min).ok()?;
            let maximum = repetition.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
            for _ in 0..minimum.saturating_add(extra).min(maximum) {
                write_match(&repetition.sub, extra, into)?;
            }
        }
        HirKind::Capture(capture) => write_match(&capture.sub, extra, into)?,
        HirKind::Concat(parts) => {
            for part in parts {
                write_match(part, extra, into)?;
            }
        }
        HirKind::Alternation(alternatives) => write_match(alternatives.first()?, extra, into)?,
    }
    Some(())
}

/// A character of a class, one that is easy to read if there is any.
fn character_of(class: &Class) -> Option<char> {
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => class.iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => {
            class.iter().map(|range| (char::from(range.start()), char::from(range.end()))).collect()
        }
    };
    let is_in = |character: &char| ranges.iter().any(|(start, end)| (start..=end).contains(&character));
    ['a', 'A', '1', ' ', '-'].into_iter().find(is_in).or_else(|| ranges.first().map(|(start, _)| *start))
}
