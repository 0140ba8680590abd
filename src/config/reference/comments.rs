//! The comments of the example configuration, by the keys that they are about.

use std::collections::BTreeMap;

/// What the example says about a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Comment {
    /// What the key does.
    pub(super) text: String,
    /// The value that it has without being written, if the example shows it.
    pub(super) default: Option<String>,
}

/// A line of the example that has a key.
struct KeyLine<'l> {
    indent: usize,
    is_item: bool,
    key: &'l str,
    value: &'l str,
    comment: &'l str,
}

/// The mapping or list of an earlier line, which a key may be in.
struct Parent {
    indent: usize,
    path: String,
    has_defaults: bool,
}

/// The comment of each key, by its path with `[]` for the items of lists. The first comment counts. Names, such as those of
/// deployments, are keys as well.
pub(super) fn comments_by_key(example: &str) -> BTreeMap<String, Comment> {
    let mut comments = BTreeMap::<String, Comment>::new();
    let mut parents: Vec<Parent> = Vec::new();
    // The key whose comment may go on in the next line.
    let mut current: Option<String> = None;
    for line in example.lines() {
        let uncommented = uncomment(line);
        let Some(key) = uncommented.as_deref().and_then(parse_key_line) else {
            let continuation = line.trim_start().strip_prefix('#').map(str::trim);
            match (continuation, current.as_ref().and_then(|path| comments.get_mut(path))) {
                // Only what begins far to the right goes on; other comments stand for themselves.
                (Some(text), Some(comment)) if line.find('#').unwrap_or(0) >= MIN_COMMENT_COLUMN => {
                    comment.text = format!("{} {text}", comment.text).trim().to_owned();
                }
                _ => current = None,
            }
            continue;
        };
        let indent = if key.is_item { key.indent + 2 } else { key.indent };
        parents.retain(|parent| parent.indent < indent && (!key.is_item || parent.indent < key.indent));
        let parent_path = parents.last().map_or("", |parent| parent.path.as_str());
        let parent_path = if key.is_item { format!("{parent_path}[]") } else { parent_path.to_owned() };
        let path =
            if parent_path.is_empty() { key.key.to_owned() } else { format!("{parent_path}.{}", key.key) };
        let inherits_defaults = parents.last().is_some_and(|parent| parent.has_defaults);
        let comment = parse_comment(&key, inherits_defaults);
        let has_defaults = key.comment.starts_with("all defaults");
        if key.is_item {
            parents.push(Parent { indent: key.indent, path: parent_path, has_defaults: false });
        }
        parents.push(Parent { indent, path: path.clone(), has_defaults });
        current = comments.get(&path).is_none_or(|known| known.text.is_empty()).then(|| {
            comments.insert(path.clone(), comment);
            path
        });
    }
    comments
}

/// Where comments behind values begin at the earliest.
const MIN_COMMENT_COLUMN: usize = 20;

/// The line, without the mark in front of it if it is a key that is only a comment.
fn uncomment(line: &str) -> Option<String> {
    let trimmed = line.trim_start();
    let indent = line.len() - trimmed.len();
    match trimmed.strip_prefix("# ") {
        Some(rest) if indent < MIN_COMMENT_COLUMN => Some(format!("{}{rest}", " ".repeat(indent))),
        Some(_) => None,
        None => Some(line.to_owned()),
    }
}

/// Reads `key: value   # comment`, with or without a hyphen in front.
fn parse_key_line(line: &str) -> Option<KeyLine<'_>> {
    let trimmed = line.trim_start();
    let indent = line.len() - trimmed.len();
    let content = trimmed.strip_prefix("- ").unwrap_or(trimmed);
    let (key, rest) = content.split_once(':')?;
    let is_key =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !is_key || !(rest.is_empty() || rest.starts_with(' ')) {
        return None;
    }
    let (value, comment) = rest.split_once(" # ").unwrap_or((rest, ""));
    Some(KeyLine {
        indent,
        is_item: trimmed.starts_with("- "),
        key,
        value: value.trim(),
        comment: comment.trim(),
    })
}

/// Takes apart what a comment says about the default and about the key.
fn parse_comment(line: &KeyLine<'_>, inherits_defaults: bool) -> Comment {
    let shown = || (!line.value.is_empty()).then(|| line.value.trim_matches('"').to_owned());
    for mark in ["default; ", "default: ", "all defaults; "] {
        // Without a value, the comment says what the default is.
        if let Some(text) =
            line.comment.strip_prefix(mark).filter(|_| mark != "default: " || shown().is_some())
        {
            return Comment { text: text.to_owned(), default: shown() };
        }
    }
    match line.comment {
        "default" | "all defaults" => Comment { text: String::new(), default: shown() },
        text => Comment { text: text.to_owned(), default: if inherits_defaults { shown() } else { None } },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_belong_to_the_keys_in_front_of_them() {
        let example = "# An example. Keys have: comments.\n\
                       listeners:\n\
                       \x20 - address: 127.0.0.1:1            # where it listens;\n\
                       \x20                                   # more of it\n\
                       \x20   # tls:                          # default: none\n\
                       \x20   #   certificate: a.pem          # PEM\n\
                       \x20   http2: false                    # default; speaks HTTP/2\n\
                       \n\
                       timeouts:                           # all defaults\n\
                       \x20 connect: 5s                       # to a backend\n\
                       # queue:                            # a queue\n\
                       #   wait: 5s                        # default; how long\n";
        let comments = comments_by_key(example);
        let comment = |text: &str, default: Option<&str>| Comment {
            text: text.to_owned(),
            default: default.map(str::to_owned),
        };
        let expected = [
            ("listeners", comment("", None)),
            ("listeners[].address", comment("where it listens; more of it", None)),
            ("listeners[].http2", comment("speaks HTTP/2", Some("false"))),
            ("listeners[].tls", comment("default: none", None)),
            ("listeners[].tls.certificate", comment("PEM", None)),
            ("queue", comment("a queue", None)),
            ("queue.wait", comment("how long", Some("5s"))),
            ("timeouts", comment("", None)),
            ("timeouts.connect", comment("to a backend", Some("5s"))),
        ];
        assert_eq!(comments.into_iter().collect::<Vec<_>>(), expected.map(|(path, c)| (path.to_owned(), c)));
    }
}
