//! Tests of the module as a whole: the files in `conf/`, malformed YAML, secrets in messages, and the time
//! that a large file takes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde_yaml::Value;

use super::error::one_per_line;
use super::load::check_text;
use super::testing::{check_with_default_blocks, literal_api_key, parse_valid, test_environment};
use super::yaml;
use super::*;

/// Everything that loading `text` may print: errors, warnings, and their debug output.
fn all_messages(text: &str, env: &dyn Fn(&str) -> Option<String>) -> String {
    match check_text(text, Some(Path::new("aoai-lb.yaml")), yaml::ProblemCollector::new(Path::new(""), env)) {
        Ok(checked) => format!("{:?} {}", checked.warnings, one_per_line(&checked.warnings)),
        Err(problems) => {
            assert!(!problems.errors.is_empty(), "refused without a reason: {text}");
            format!("{problems:?} {problems} {}", one_per_line(&problems.warnings))
        }
    }
}

fn conf_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

fn example_files() -> Vec<(PathBuf, String)> {
    let files = std::fs::read_dir(conf_directory()).unwrap().map(|entry| entry.unwrap().path());
    // simulate.yaml is for another command, prices.yaml is named by a configuration.
    let files = files.filter(|path| {
        path.extension().is_some_and(|e| e == "yaml")
            && !path.ends_with("simulate.yaml")
            && !path.ends_with("prices.yaml")
    });
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// An environment for the example files: distinct hashes, keys, and a directory that exists.
fn example_environment(logs: &Path) -> impl Fn(&str) -> Option<String> {
    let logs = logs.display().to_string();
    move |name| match name {
        "LOGS_DIRECTORY" => Some(logs.clone()),
        _ if name.ends_with("_SHA256") => {
            Some(name.bytes().cycle().take(32).fold(String::new(), |hex, b| format!("{hex}{b:02x}")))
        }
        _ if name.ends_with("_KEY") => Some("0123456789abcdef".to_owned()),
        _ => None,
    }
}

#[test]
fn every_example_file_passes_the_check_without_warnings() {
    let logs = tempfile::tempdir().unwrap();
    let examples = example_files();
    assert!(examples.len() >= 3);
    for (path, _) in &examples {
        let checked = load_and_check_file(path, &example_environment(logs.path()))
            .unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
        assert_eq!(checked.warnings, [], "{}", path.display());
    }
}

#[test]
fn every_example_file_asks_for_key_hashes_and_backend_keys() {
    for (path, text) in example_files() {
        let problems = parse_and_check_yaml(&text, Path::new(""), &|_| None).unwrap_err().to_string();
        assert!(
            problems.contains("is still the placeholder: run aoai-lb keys new"),
            "{}:\n{problems}",
            path.display()
        );
        assert!(problems.contains("credential.api_key: ${"), "{}:\n{problems}", path.display());
    }
}

#[test]
fn values_marked_default_in_the_full_example_are_the_defaults() {
    let logs = tempfile::tempdir().unwrap();
    let config =
        load_and_check_file(&conf_directory().join("aoai-lb.yaml"), &example_environment(logs.path()))
            .unwrap()
            .config;
    let defaults = parse_valid("").config;
    assert_eq!((config.timeouts, config.cooldown), (defaults.timeouts, defaults.cooldown));
    assert_eq!(config.limits, defaults.limits);
    assert_eq!(format!("{:?}", config.retry), format!("{:?}", defaults.retry));
    assert_eq!(config.requests.allow_rules, defaults.requests.allow_rules);
    let limits = |r: &RequestsConfig| {
        (r.max_buffered_body_bytes, r.max_streamed_body_bytes, r.max_total_buffered_bytes)
    };
    assert_eq!(limits(&config.requests), limits(&defaults.requests));
    assert_eq!(
        ServerConfig { worker_threads: defaults.server.worker_threads, ..config.server.clone() },
        defaults.server
    );
}

#[test]
fn text_that_is_not_a_yaml_mapping_is_reported_as_one_error() {
    for (text, expected) in [
        ("", "the file is empty; it needs listeners, backends and clients"),
        ("# nothing\n---\n", "the file is empty; it needs listeners, backends and clients"),
        ("- a", "the file must be a mapping of keys, not a list"),
        ("open", "the file must be a mapping of keys, not a string"),
        ("a: 1\n---\nb: 2", "the file holds more than one YAML document; remove the `---` between them"),
        ("a: *", "did not find expected alphabetic or numeric character"),
        ("*: *", "; write a `*` in quotes"),
        ("a: [::]:80", "; quote a value that contains `: `, or begins with [ or {"),
        ("a:\n\tb: 1", "; use spaces, not tabs"),
    ] {
        let problems = parse_and_check_yaml(text, Path::new(""), &test_environment).unwrap_err();
        assert_eq!((problems.errors.len(), problems.errors[0].key_path.as_str()), (1, ""), "{text}");
        assert!(problems.to_string().contains(expected), "{text}: {problems}");
    }
}

#[test]
fn every_missing_block_is_reported() {
    let problems =
        parse_and_check_yaml("retry: { attempts: 1 }", Path::new(""), &test_environment).unwrap_err();
    let paths: Vec<&str> = problems.errors.iter().map(|p| p.key_path.as_str()).collect();
    assert_eq!(paths, ["listeners", "backends", "clients"]);
    assert!(
        problems.errors[2].message.contains("clients: open")
            && problems.errors[2].message.contains("keys new")
    );
}

#[test]
fn yaml_merge_keys_are_expanded() {
    let yaml = "backends:\n  - &east { name: east, tier: 2, endpoint: 'https://a.b', credential: { api_key: k } }\n  - { <<: *east, name: west }";
    let backends = parse_valid(yaml).config.backends;
    assert_eq!((backends[1].name.as_str(), backends[1].tier.get()), ("west", 2));
}

#[test]
fn an_unreadable_file_is_reported_as_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("aoai-lb.yaml");
    let message = || load_and_check_file(&file, &test_environment).unwrap_err().to_string();
    assert!(message().contains("No such file"));
    std::fs::write(&file, [0xff]).unwrap();
    assert!(message().contains("not UTF-8"));
}

#[test]
fn relative_paths_start_at_the_directory_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "from-a-file\n").unwrap();
    let file = dir.path().join("aoai-lb.yaml");
    let yaml = "listeners: [ { address: '127.0.0.1:8080' } ]\nclients: open\nrecord: { jsonl: { path: x.jsonl } }\n\
                backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: '${file:key}' } } ]";
    std::fs::write(&file, yaml).unwrap();
    let config = load_and_check_file(&file, &test_environment).unwrap().config;
    assert_eq!(config.record.unwrap().jsonl.unwrap().path, dir.path().join("x.jsonl"));
    assert_eq!(literal_api_key(&config.backends[0].credential), "from-a-file");
}

#[test]
fn two_hundred_backends_and_five_thousand_clients_are_checked_within_two_seconds() {
    let mut text = "listeners: [ { address: '127.0.0.1:8080' } ]\nbackends:\n".to_owned();
    for i in 0..200 {
        writeln!(text, "  - {{ name: b{i}, endpoint: 'https://b{i}.example', credential: {{ api_key: k }}, deployments: {{ d{i}: x }} }}").unwrap();
    }
    text.push_str("clients:\n");
    for i in 0..5_000 {
        writeln!(
            text,
            "  - {{ name: c{i}, keys: [ {{ sha256: '{i:064x}' }} ], deployments: [d{}] }}",
            i % 200
        )
        .unwrap();
    }
    let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let start = used();
    let checked = parse_and_check_yaml(&text, Path::new(""), &test_environment).unwrap();
    // A debug build; an optimised one is about ten times faster.
    assert!(used() - start < Duration::from_secs(2), "{:?}", used() - start);
    assert_eq!((checked.config.backends.len(), checked.warnings), (200, vec![]));
}

/// Calls `change` with each scalar of `value`, which it may replace.
fn for_each_scalar(value: &mut Value, change: &mut dyn FnMut(&mut Value)) {
    match value {
        Value::Mapping(map) => map.values_mut().for_each(|value| for_each_scalar(value, change)),
        Value::Sequence(list) => list.iter_mut().for_each(|value| for_each_scalar(value, change)),
        scalar => change(scalar),
    }
}

/// How many texts [`replace_scalar`] can make from `example`.
fn replacement_count(example: &Value) -> usize {
    let mut count = 0;
    for_each_scalar(&mut example.clone(), &mut |_| count += 1);
    count + 1
}

/// `example` with one scalar replaced by `with`, or with all of them replaced for the last `choice`.
fn replace_scalar(example: &Value, with: &str, choice: usize) -> String {
    let (mut changed, mut i) = (example.clone(), 0);
    let all = replacement_count(example) - 1;
    for_each_scalar(&mut changed, &mut |scalar| {
        if i == choice || choice == all {
            *scalar = Value::String(with.to_owned());
        }
        i += 1;
    });
    serde_yaml::to_string(&changed).unwrap()
}

/// The example file that has every key.
fn full_example() -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(conf_directory().join("aoai-lb.yaml")).unwrap()).unwrap()
}

#[test]
fn messages_never_show_an_expanded_value() {
    let dir = tempfile::tempdir().unwrap();
    let (example, file) = (full_example(), dir.path().join("secret"));
    let from_file = format!("${{file:{}}}", file.display());
    for secret in [
        "hunter2hunter2",
        "8675309867530998675309",
        "86753",
        "hunter2\nhunter2",
        "hunter2 ünter2",
        "https://hunter2@hunter2",
        "GET hunter2",
        "unix:/hunter2/hunter2",
        "86753.09s",
        "/hunter2/x",
    ] {
        std::fs::write(&file, secret).unwrap();
        let env = |name: &str| match name {
            "SECRET" => Some(secret.to_owned()),
            _ => example_environment(dir.path())(name),
        };
        for raw in ["${SECRET}", "x${SECRET}", from_file.as_str(), &format!("${{UNSET:-{secret}}}")] {
            for choice in 0..replacement_count(&example) {
                let text = replace_scalar(&example, raw, choice);
                let messages = all_messages(&text, &env);
                assert!(!messages.contains("hunter2") && !messages.contains("86753"), "{messages}\n{text}");
            }
        }
    }
}

#[test]
fn messages_never_show_a_literal_api_key() {
    for credential in [
        "{ api_key: [hunter2] }",
        "hunter2",
        "{ hunter2: }",
        "{ api_key:hunter2 }",
        "[hunter2]",
        "{ api_key: 'hunter2 ' }",
        "{ key: hunter2 }",
    ] {
        let yaml = format!("backends: [ {{ name: a, endpoint: 'https://a.b', credential: {credential} }} ]");
        let messages = check_with_default_blocks(&yaml).unwrap_err();
        assert!(!format!("{messages} {messages:?}").contains("hunter2"), "{messages}");
    }
    let config =
        parse_valid("backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: hunter2 } } ]");
    assert!(!format!("{config:?}").contains("hunter2"));
}

/// Text that resembles a configuration: words of the examples in any order and depth.
fn config_like_text() -> impl Strategy<Value = String> {
    let words = "listeners: backends: clients: open requests: allow: retry: statuses: record: jsonl: admin: server: name: endpoint: \
                 credential: api_key: deployments: keys: sha256: address: path: weight: tier: tls: ca: ${KEY} ${ ${file:/x} $$ \
                 127.0.0.1:8080 https://a.b 500-599 5s 1GiB { } [ ] , - * & ! << ' \" : \u{0} ü";
    let word = proptest::sample::select(words.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let blank = proptest::sample::select(vec![" ", "\n", "\n  ", "\n    ", ""]);
    proptest::collection::vec((word, blank), 0..60)
        .prop_map(|pairs| pairs.into_iter().fold(String::new(), |text, (word, blank)| text + &word + blank))
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in any::<String>(), nearly in config_like_text()) {
        all_messages(&text, &test_environment);
        all_messages(&nearly, &test_environment);
    }

    #[test]
    fn any_scalar_is_read_without_panic(scalar in any::<String>(), case in 0usize..1000) {
        let example = full_example();
        all_messages(&replace_scalar(&example, &scalar, case % replacement_count(&example)), &test_environment);
    }

    #[test]
    fn no_secret_is_ever_shown(
        secret in "[ -~]{0,3}zq7[0-9a-zA-Z:/.@{}$ -]{0,20}|[0-9]{11,20}",
        case in 0usize..1000,
    ) {
        let example = full_example();
        let text = replace_scalar(&example, "${SECRET}", case % replacement_count(&example));
        let messages = all_messages(&text, &|name| (name == "SECRET").then(|| secret.clone()));
        prop_assert!(!messages.contains(&secret), "{messages}");
    }

    #[test]
    fn unit_and_pattern_parsers_take_any_text(text in any::<String>(), path in any::<String>()) {
        let _ = yaml::parse_duration(&text);
        let _ = yaml::parse_byte_size(&text);
        if let Ok(allow) = AllowRule::parse(&text) {
            allow.path_pattern.matches(&path);
        }
        if let Ok(endpoint) = Endpoint::parse(&text) {
            let again = Endpoint::parse(&format!("{}://{}", if endpoint.uses_tls { "https" } else { "http" }, endpoint.authority()));
            prop_assert_eq!(again, Ok(endpoint));
        }
    }
}
