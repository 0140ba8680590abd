//! Runs the parser over a text.

use saphyr_parser::{Event, Parser, ScanError};

use super::build::{ReportProblem, TreeBuilder};
use super::limits::{MAX_BYTES, MAX_VALUES, too_deep, too_many_values};
use super::value::Value;

/// Parses the one document in `text`. Merge keys (`<<`) and aliases are resolved. `report` gets each problem;
/// after one, the result is not to be used, but what it contains can be checked for further problems.
pub fn parse(text: &str, report: &mut ReportProblem<'_>) -> Option<Value> {
    // Some editors on Windows begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Err(problem) = check_size(text) {
        report("", None, problem);
        return None;
    }
    let mut builder = TreeBuilder::new(report);
    let mut parser = Parser::new_from_str(text);
    let mut documents = 0;
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                builder.report_at_root(error.marker().line(), describe_syntax_error(&error));
                return None;
            }
        };
        if let Event::DocumentStart(_) = event {
            documents += 1;
            if documents > 1 {
                builder.report_at_root(
                    span.start.line(),
                    "the file holds more than one YAML document; remove the `---` between them".to_owned(),
                );
                return None;
            }
        }
        builder.add(event, span.start.line()).ok()?;
    }
    Some(builder.finish())
}

/// Checks what can be checked before parsing. The parser reads a list or mapping in brackets to its end
/// before it reports the first item, so the number of items has to be limited first.
fn check_size(text: &str) -> Result<(), String> {
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("the file is larger than {}MiB", MAX_BYTES >> 20));
    }
    if text.contains('\0') {
        return Err("not valid YAML: the file contains a NUL character".to_owned());
    }
    let separators = memchr::memchr3_iter(b'\n', b',', b'[', text.as_bytes()).count()
        + memchr::memchr3_iter(b'{', b':', b'\r', text.as_bytes()).count();
    // A key and a value for each: `: `, and a line or comma.
    if separators > 2 * MAX_VALUES { Err(too_many_values()) } else { Ok(()) }
}

/// The error of the parser, with a hint where its wording does not lead to the fix.
fn describe_syntax_error(error: &ScanError) -> String {
    let info = error.info();
    if info.contains("recursion limit") {
        return too_deep();
    }
    let hint = if info.contains("alias") || info.contains("unknown anchor") {
        "; write a `*` in quotes"
    } else if info.contains("unexpected character") {
        "; quote values that begin with @, ` or %"
    } else if info.contains("tab") || info.contains("valid YAML whitespace") {
        "; use spaces, not tabs"
    } else if info.contains("invalid indentation") {
        "; indent every line of a list, mapping or quoted text deeper than the line of its key"
    } else if info.contains("mapping") || info.contains("flow") || info.contains("bracket") {
        "; quote a value that contains `: `, or begins with [ or {, such as \"[::]:8080\""
    } else {
        ""
    };
    format!("not valid YAML: {info} at column {}{hint}", error.marker().col() + 1)
}
