//! The room as a whole: files in `conf/`, YAML that is none, secrets that stay secret, and
//! the time a large file takes. Also what the tables beside the code are run with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_yaml::Value;

use super::*;

/// What a case need not say: each block stands unless the case has its key.
const USUAL: [(&str, &str); 3] = [
    ("listeners:", "listeners: [ { address: '127.0.0.1:8080' } ]\n"),
    (
        "backends:",
        "backends: [ { name: east, endpoint: 'https://east.example', credential: { api_key: k } } ]\n",
    ),
    ("clients:", "clients: open\n"),
];

fn env(name: &str) -> Option<String> {
    match name {
        "KEY" => Some("k3y-of-the-test".to_owned()),
        "EMPTY" => Some(String::new()),
        "FOUR" => Some("4".to_owned()),
        "AZURE_TENANT_ID" => Some("tenant-of-the-cluster".to_owned()),
        "AZURE_FEDERATED_TOKEN_FILE" => Some("/var/run/secrets/token".to_owned()),
        _ => None,
    }
}

fn check(case: &str) -> Result<Checked, Problems> {
    let mut text = String::new();
    for (key, block) in USUAL {
        if !case.lines().any(|line| line.starts_with(key)) {
            text.push_str(block);
        }
    }
    parse(&(text + case), Path::new(""), &env)
}

pub(super) fn good(case: &str) -> Checked {
    check(case).unwrap_or_else(|problems| panic!("{case}\n{problems}"))
}

pub(super) fn problems_in(case: &str) -> Vec<String> {
    check(case)
        .map_or_else(|problems| problems.errors.iter().map(Problem::to_string).collect(), |_| Vec::new())
}

pub(super) fn assert_problems(cases: &[(&str, &[&str])]) {
    for (case, expected) in cases {
        assert_eq!(problems_in(case), *expected, "{case}");
    }
}

pub(super) fn assert_warnings(cases: &[(&str, &[&str])]) {
    for (case, expected) in cases {
        let said: Vec<String> = good(case).warnings.iter().map(Problem::to_string).collect();
        assert_eq!(said, *expected, "{case}");
    }
}

/// Writes `NAME.pem` and `NAME.key`: a certificate for so many days and these hosts.
pub(super) fn pair(directory: &Path, name: &str, days: u32, hosts: &[&str]) {
    use openssl::asn1::Asn1Time;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;
    use openssl::x509::X509;
    use openssl::x509::extension::SubjectAlternativeName;

    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(days).unwrap()).unwrap();
    if !hosts.is_empty() {
        let mut names = SubjectAlternativeName::new();
        for host in hosts {
            names.dns(host);
        }
        let names = names.build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(names).unwrap();
    }
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let write = |kind, pem: Vec<u8>| std::fs::write(directory.join(format!("{name}.{kind}")), pem).unwrap();
    write("pem", builder.build().to_pem().unwrap());
    write("key", key.private_key_to_pem_pkcs8().unwrap());
}

/// The key of a backend that stands in its file.
pub(super) fn written(credential: &Credential) -> &str {
    match credential {
        Credential::ApiKey(SecretSource::Written(key)) => key.expose(),
        other => panic!("no written key: {other:?}"),
    }
}

/// All that is said about `text`, however it ends.
fn said(text: &str, env: &dyn Fn(&str) -> Option<String>) -> String {
    match parse(text, Path::new(""), env) {
        Ok(checked) => format!("{:?} {}", checked.warnings, lines(&checked.warnings)),
        Err(problems) => {
            assert!(!problems.errors.is_empty(), "refused without a reason: {text}");
            format!("{problems:?} {problems} {}", lines(&problems.warnings))
        }
    }
}

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

fn examples() -> Vec<(PathBuf, String)> {
    let files = std::fs::read_dir(conf()).unwrap().map(|entry| entry.unwrap().path());
    // simulate.yaml is another command's.
    let files = files
        .filter(|path| path.extension().is_some_and(|e| e == "yaml") && !path.ends_with("simulate.yaml"));
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// An environment for the examples: hashes that differ, a directory that exists, keys.
fn example_env(logs: &Path) -> impl Fn(&str) -> Option<String> {
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
fn every_example_is_good() {
    let logs = tempfile::tempdir().unwrap();
    let examples = examples();
    assert!(examples.len() >= 3);
    for (path, _) in &examples {
        let checked =
            load(path, &example_env(logs.path())).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
        assert_eq!(checked.warnings, [], "{}", path.display());
    }
}

#[test]
fn every_example_asks_for_what_only_its_owner_has() {
    for (path, text) in examples() {
        let problems = parse(&text, Path::new(""), &|_| None).unwrap_err().to_string();
        assert!(
            problems.contains("is still the placeholder: run aoai-lb keys new"),
            "{}:\n{problems}",
            path.display()
        );
        assert!(problems.contains("credential.api_key: ${"), "{}:\n{problems}", path.display());
    }
}

#[test]
fn the_full_example_says_the_defaults_it_claims() {
    let logs = tempfile::tempdir().unwrap();
    let config = load(&conf().join("aoai-lb.yaml"), &example_env(logs.path())).unwrap().config;
    let usual = good("").config;
    assert_eq!((config.timeouts, config.cooldown), (usual.timeouts, usual.cooldown));
    assert_eq!(format!("{:?}", config.retry), format!("{:?}", usual.retry));
    assert_eq!(config.requests.allow, usual.requests.allow);
    let limits = |r: &Requests| (r.max_body, r.max_streamed_body, r.body_memory);
    assert_eq!(limits(&config.requests), limits(&usual.requests));
    assert_eq!(Server { threads: usual.server.threads, ..config.server.clone() }, usual.server);
}

#[test]
fn yaml_that_is_no_configuration_says_why_once() {
    for (text, expected) in [
        ("", "the file is empty; it needs listeners, backends and clients"),
        ("# nothing\n---\n", "the file is empty; it needs listeners, backends and clients"),
        ("- a", "the file must be a mapping of keys, not a list"),
        ("open", "the file must be a mapping of keys, not a string"),
        ("a: 1\n---\nb: 2", "the file holds more than one YAML document; remove the `---` between them"),
        ("a: 1\na: 2", "not valid YAML: duplicate entry with key \"a\" at line 1 column 1"),
        ("x: { b: 1, b: 2 }", "not valid YAML: x: duplicate entry with key \"b\" at line 1 column 4"),
        ("a: !!int hunter2", "not valid YAML: a value does not fit its tag at line 1 column 4"),
        ("a: *", "did not find expected alphabetic or numeric character"),
        ("*: *", "; a `*` is written in quotes"),
        ("a: [::]:80", "; a value that begins with [ or { is written in quotes"),
        ("a:\n\tb: 1", "; indent with blanks, not tabs"),
        ("a: &a [*a]", "recursion limit exceeded"),
        ("<<: 3", "for merging"),
    ] {
        let problems = parse(text, Path::new(""), &env).unwrap_err();
        assert_eq!((problems.errors.len(), problems.errors[0].path.as_str()), (1, ""), "{text}");
        assert!(problems.to_string().contains(expected), "{text}: {problems}");
    }
}

#[test]
fn a_file_without_its_blocks_is_told_about_each() {
    let problems = parse("retry: { attempts: 1 }", Path::new(""), &env).unwrap_err();
    let paths: Vec<&str> = problems.errors.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["listeners", "backends", "clients"]);
    assert!(
        problems.errors[2].message.contains("clients: open")
            && problems.errors[2].message.contains("keys new")
    );
}

#[test]
fn a_merged_mapping_counts_as_written_out() {
    let yaml = "backends:\n  - &east { name: east, tier: 2, endpoint: 'https://a.b', credential: { api_key: k } }\n  - { <<: *east, name: west }";
    let backends = good(yaml).config.backends;
    assert_eq!((backends[1].name.as_str(), backends[1].tier.get()), ("west", 2));
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("aoai-lb.yaml");
    let message = || load(&file, &env).unwrap_err().to_string();
    assert!(message().contains("No such file"));
    std::fs::write(&file, [0xff]).unwrap();
    assert!(message().contains("not UTF-8"));
}

#[test]
fn relative_paths_start_at_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "from-a-file\n").unwrap();
    let file = dir.path().join("aoai-lb.yaml");
    let yaml = "listeners: [ { address: '127.0.0.1:8080' } ]\nclients: open\nrecord: { jsonl: { path: x.jsonl } }\n\
                backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: '${file:key}' } } ]";
    std::fs::write(&file, yaml).unwrap();
    let config = load(&file, &env).unwrap().config;
    assert_eq!(config.record.unwrap().jsonl.unwrap().path, dir.path().join("x.jsonl"));
    assert_eq!(written(&config.backends[0].credential), "from-a-file");
}

#[test]
fn two_hundred_backends_and_five_thousand_clients_take_no_time() {
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
    let start = Instant::now();
    let checked = parse(&text, Path::new(""), &env).unwrap();
    // A debug build; an optimised one is about ten times faster.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!((checked.config.backends.len(), checked.warnings), (200, vec![]));
}

/// All scalars of `value`, by a function that may replace each.
fn for_each_scalar(value: &mut Value, change: &mut dyn FnMut(&mut Value)) {
    match value {
        Value::Mapping(map) => map.values_mut().for_each(|value| for_each_scalar(value, change)),
        Value::Sequence(list) => list.iter_mut().for_each(|value| for_each_scalar(value, change)),
        scalar => change(scalar),
    }
}

/// How many texts [`with_a_scalar_replaced`] can make of `example`.
fn replacements(example: &Value) -> usize {
    let mut count = 0;
    for_each_scalar(&mut example.clone(), &mut |_| count += 1);
    count + 1
}

/// `example` with `with` in place of one scalar, or of all of them for the last `choice`.
fn with_a_scalar_replaced(example: &Value, with: &str, choice: usize) -> String {
    let (mut changed, mut i) = (example.clone(), 0);
    let all = replacements(example) - 1;
    for_each_scalar(&mut changed, &mut |scalar| {
        if i == choice || choice == all {
            *scalar = Value::String(with.to_owned());
        }
        i += 1;
    });
    serde_yaml::to_string(&changed).unwrap()
}

/// The example that has every key.
fn full_example() -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(conf().join("aoai-lb.yaml")).unwrap()).unwrap()
}

#[test]
fn an_expanded_value_is_never_shown_wherever_it_stands() {
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
            _ => example_env(dir.path())(name),
        };
        for raw in ["${SECRET}", "x${SECRET}", from_file.as_str(), &format!("${{UNSET:-{secret}}}")] {
            for choice in 0..replacements(&example) {
                let text = with_a_scalar_replaced(&example, raw, choice);
                let said = said(&text, &env);
                assert!(!said.contains("hunter2") && !said.contains("86753"), "{said}\n{text}");
            }
        }
    }
}

#[test]
fn a_literal_key_is_never_shown_either() {
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
        let said = check(&yaml).unwrap_err();
        assert!(!format!("{said} {said:?}").contains("hunter2"), "{said}");
    }
    let config = good("backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: hunter2 } } ]");
    assert!(!format!("{config:?}").contains("hunter2"));
}

/// Text that is nearly a configuration: words of the examples in any order and depth.
fn nearly_a_file() -> impl Strategy<Value = String> {
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
    fn any_text_is_read_without_panic(text in any::<String>(), nearly in nearly_a_file()) {
        said(&text, &env);
        said(&nearly, &env);
    }

    #[test]
    fn any_scalar_is_read_without_panic(scalar in any::<String>(), case in 0usize..1000) {
        let example = full_example();
        said(&with_a_scalar_replaced(&example, &scalar, case % replacements(&example)), &env);
    }

    #[test]
    fn no_secret_is_ever_shown(
        secret in "[ -~]{0,3}zq7[0-9a-zA-Z:/.@{}$ -]{0,20}|[0-9]{11,20}",
        case in 0usize..1000,
    ) {
        let example = full_example();
        let text = with_a_scalar_replaced(&example, "${SECRET}", case % replacements(&example));
        let said = said(&text, &|name| (name == "SECRET").then(|| secret.clone()));
        prop_assert!(!said.contains(&secret), "{said}");
    }

    #[test]
    fn units_and_patterns_take_any_text(text in any::<String>(), path in any::<String>()) {
        let _ = units::duration(&text);
        let _ = units::size(&text);
        if let Ok(allow) = Allow::parse(&text) {
            allow.path.matches(&path);
        }
        if let Ok(endpoint) = Endpoint::parse(&text) {
            let again = Endpoint::parse(&format!("{}://{}", if endpoint.tls { "https" } else { "http" }, endpoint.authority()));
            prop_assert_eq!(again, Ok(endpoint));
        }
    }
}
