//! Tests of the parser as a whole: what is read, what is refused and how soon.

use super::limits::MAX_VALUES;
use super::*;

fn problems_in(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    parse(text, &mut |path, line, problem| {
        let line = line.map(|line| format!("{line} ")).unwrap_or_default();
        problems.push(format!("{line}{path}: {problem}"));
    });
    problems
}

fn parse_valid(text: &str) -> Value {
    let mut problems = Vec::new();
    let value = parse(text, &mut |path, _, problem| problems.push(format!("{path}: {problem}")));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    value.unwrap()
}

fn text_at<'v>(value: &'v Value, path: &[&str]) -> &'v str {
    match (value, path) {
        (Value::Scalar(scalar), []) => &scalar.text,
        (Value::Mapping(entries), [key, rest @ ..]) => text_at(entries.get(key).unwrap(), rest),
        (Value::List(items), [index, rest @ ..]) => {
            text_at(&items[index.parse::<usize>().unwrap()].value, rest)
        }
        _ => panic!("{value:?} has no {path:?}"),
    }
}

#[test]
fn a_scalar_keeps_the_text_that_was_written() {
    for written in [
        "12345678901234567890123456789012",
        "007",
        "0x1F",
        "1_000",
        "1e5",
        "1.50",
        "true",
        "null",
        "2024-10-21",
        "a b",
    ] {
        assert_eq!(text_at(&parse_valid(&format!("k: {written} # why")), &["k"]), written);
        assert_eq!(text_at(&parse_valid(&format!("k: '{written}'")), &["k"]), written);
    }
    assert_eq!(text_at(&parse_valid("k: |\n  two\n  lines\n"), &["k"]), "two\nlines\n");
    assert_eq!(text_at(&parse_valid("{\"k\":\"\\u00fc\"}"), &["k"]), "ü");
    assert_eq!(text_at(&parse_valid("k: !!str 5"), &["k"]), "5");
}

#[test]
fn merge_keys_and_aliases_are_resolved() {
    let value = parse_valid(
        "a: &a { x: 1, y: 1 }\nb: &b { x: 2, z: 2 }\nc: { y: 3, <<: [*a, *b] }\nd: [*a, { <<: *b }]",
    );
    for (path, text) in [
        (&["c", "x"][..], "1"),
        (&["c", "y"], "3"),
        (&["c", "z"], "2"),
        (&["d", "0", "y"], "1"),
        (&["d", "1", "z"], "2"),
    ] {
        assert_eq!(text_at(&value, path), text, "{path:?}");
    }
}

#[test]
fn each_problem_has_its_path_and_shows_no_value() {
    for (text, expected) in [
        ("a: 1\na: hunter2", "2 a: is written a second time; remove one of them"),
        ("x:\n  - { b: 1,\n    b: hunter2 }", "3 x[0].b: is written a second time; remove one of them"),
        ("a: &a [*a]", "1 a[0]: has an alias to the value that contains it"),
        ("a: { <<: hunter2 }", "1 a: merges with `<<` what is not a mapping or a list of mappings"),
        ("a: !!int hunter2", "1 a: has a YAML tag that its value does not fit"),
        ("a: { [hunter2]: 1 }", "1 a: has a key that is a list"),
        (
            "a: hunter2\n---\nb: 2",
            "2 : the file holds more than one YAML document; remove the `---` between them",
        ),
        ("a: hunter2\nb\n", "3 : not valid YAML: simple key expect ':' at column 1"),
        (
            "a: \"hunter2",
            "1 : not valid YAML: while scanning a quoted scalar, found unexpected end of stream at column 4",
        ),
        (
            "a: *hunter2",
            "1 : not valid YAML: while parsing node, found unknown anchor at column 4; write a `*` in quotes",
        ),
        ("a: hunter2\0", ": not valid YAML: the file contains a NUL character"),
    ] {
        assert_eq!(problems_in(text), [expected], "{text}");
    }
}

#[test]
fn each_key_and_item_has_the_line_where_it_begins() {
    let text = "\u{feff}# comment\na:\n  - x\n  -\n    b: 1\n    c: { d: 1,\n      e: two\n        words\n    , f: 1 }\n  - &n { g: 1 }\nh:\n  <<: *n\n  i: *n\n";
    let value = parse_valid(text);
    let Value::Mapping(root) = &value else { panic!("{value:?}") };
    let (Some(Value::List(a)), Some(Value::Mapping(h))) = (root.get("a"), root.get("h")) else {
        panic!("{value:?}")
    };
    let Value::Mapping(second) = &a[1].value else { panic!("{value:?}") };
    let Some(Value::Mapping(c)) = second.get("c") else { panic!("{value:?}") };
    assert_eq!(a.iter().map(|item| item.line).collect::<Vec<_>>(), [3, 5, 10]);
    for (entries, key, line) in [
        (root, "a", 2),
        (second, "b", 5),
        (second, "c", 6),
        (c, "d", 6),
        (c, "e", 7),
        (c, "f", 9),
        (root, "h", 11),
        // Where it is written, not where it is merged.
        (h, "g", 10),
        (h, "i", 13),
    ] {
        assert_eq!(entries.line_of(key), Some(line), "{key}");
    }
    assert_eq!(root.line_of("none"), None);
}

#[test]
fn nesting_is_limited_also_through_aliases() {
    let nested = |depth: usize| format!("a: {}{}", "[".repeat(depth), "]".repeat(depth));
    parse_valid(&nested(MAX_DEPTH - 1));
    let block =
        |depth: usize| (0..depth).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
    parse_valid(&block(MAX_DEPTH));
    let through_aliases = |steps: usize| {
        (1..=steps).fold("a0: &a0 [[]]\n".to_owned(), |text, step| {
            format!("{text}a{step}: &a{step} [*a{}]\n", step - 1)
        })
    };
    parse_valid(&through_aliases(MAX_DEPTH - 3));
    for text in [
        nested(MAX_DEPTH),
        nested(300),
        block(MAX_DEPTH + 1),
        through_aliases(MAX_DEPTH - 2),
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "{a:".repeat(100_000),
        "- ".repeat(100_000),
        "? ".repeat(100_000),
        "[{".repeat(100_000),
    ] {
        let problems = problems_in(&text);
        let shown: String = text.chars().take(40).collect();
        assert_eq!(problems.len(), 1, "{shown}");
        let is_expected =
            problems[0].contains("nested deeper than 64 levels") || problems[0].contains("not valid YAML");
        assert!(is_expected, "{shown}: {problems:?}");
    }
}

#[test]
fn what_aliases_expand_to_is_limited() {
    let bomb = |width: usize, levels: usize, leaf: &str| {
        (1..=levels).fold(format!("a0: &a0 {leaf}\n"), |text, level| {
            let items = vec![format!("*a{}", level - 1); width].join(", ");
            format!("{text}a{level}: &a{level} [{items}]\n")
        })
    };
    let (many_values, much_text) = ("more than 1000000 keys and values", "more than 32MiB of text");
    for (name, text, expected) in [
        ("many values", bomb(10, 9, "x"), many_values),
        ("much text", bomb(40, 1, &"x".repeat(1 << 20)), much_text),
        ("mappings", bomb(10, 8, "{ x: y }").replace('[', "{ k: [").replace(']', "] }"), many_values),
    ] {
        let problems = problems_in(&text);
        assert_eq!(problems.len(), 1, "{name}");
        assert!(problems[0].contains(expected), "{name}: {problems:?}");
    }
    parse_valid(&bomb(10, 4, "x"));
}

#[test]
fn a_text_that_repeats_itself_is_read_to_its_end_or_refused() {
    for unit in [
        "[",
        "{a:",
        "{a: ",
        "- ",
        "? ",
        "a: b\n",
        "[a, ",
        "- [a]\n",
        "x",
        "\"",
        "'",
        "#",
        "&a ",
        "!t ",
        "|",
        "\n",
        " ",
        "\t",
        "\r",
        ":",
        "*a ",
        "%",
        "---\n",
        "-",
        "?",
        ",",
        "a,",
        "\u{fc}",
        "a: {\n",
        "!<",
        "\\",
        "- ? ",
        "<<: ",
        "a b ",
        "&a [",
        "k: &a x\n",
        "a: b, ",
        "a: |\n b\n",
        "\"a\": 1,",
        "{},",
        "'' ",
        "\u{1}",
        "...\n",
        "a:\n",
    ] {
        for prefix in ["", "[", "k: \"", "k: '", "k: |\n ", "k: ", "- "] {
            problems_in(&format!("{prefix}{}", unit.repeat(32_768 / unit.len())));
        }
    }
}

#[test]
fn a_text_beyond_the_limits_is_refused_before_it_is_parsed() {
    assert_eq!(problems_in(&"x".repeat(MAX_BYTES as usize + 1)), [": the file is larger than 16MiB"]);
    let values = "[0,".to_owned() + &"0,".repeat(2 * MAX_VALUES);
    assert!(problems_in(&values)[0].contains("more than 1000000 keys and values"));
}
