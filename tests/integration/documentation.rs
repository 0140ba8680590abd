//! What the README and the pages in docs/ promise: links lead somewhere, configurations pass `check`, and commands
//! have the options that are shown.

use crate::support;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;

const HASH_PLACEHOLDER: &str = "REPLACE-ME: output of aoai-lb keys new";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run_aoai_lb(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    for name in ["EASTUS_KEY", "WESTUS_KEY", "REDIS_PASSWORD"] {
        command.env(name, "a-secret");
    }
    command.args(arguments).output().unwrap()
}

/// All pages, with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for directory in [".", "docs", "conf/azure", "conf/grafana", "conf/prometheus"] {
        let entries = std::fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.filter(|file| file.extension().is_some_and(|extension| extension == "md")));
    }
    let pages: Vec<_> =
        files.into_iter().map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect();
    assert!(pages.len() > 15, "{} pages", pages.len());
    pages
}

/// The text without fenced blocks, and the fenced blocks with their language.
fn split_code(text: &str) -> (String, Vec<(String, String)>) {
    let (mut prose, mut blocks) = (String::new(), Vec::new());
    let mut block: Option<(String, String)> = None;
    // Blocks in lists are indented.
    let mut indent = 0;
    for line in text.lines() {
        match (&mut block, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                indent = line.len() - line.trim_start().len();
                block = Some((language.to_owned(), String::new()));
            }
            (Some(_), Some(_)) => blocks.extend(block.take()),
            (Some((_, code)), None) => *code += &format!("{}\n", line.get(indent..).unwrap_or_default()),
            (None, None) => prose += &format!("{line}\n"),
        }
    }
    assert!(block.is_none(), "a block of code does not end");
    (prose, blocks)
}

/// The anchors of the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let (prose, _) = split_code(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let title = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_between_pages_lead_to_files_and_headings() {
    let mut links = 0;
    let mut broken = Vec::new();
    for (file, text) in pages() {
        let (prose, _) = split_code(&text);
        for link in prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let is_right = target.exists()
                && (anchor.is_empty()
                    || anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_right {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(links > 50, "{links} links");
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn complete_configurations_pass_check() {
    let mut checked = 0;
    for (file, text) in pages() {
        let (_, blocks) = split_code(&text);
        let complete =
            blocks.iter().filter(|(_, code)| code.contains("listeners:") && code.contains("clients:"));
        for (_, block) in complete {
            let directory = tempfile::tempdir().unwrap();
            let written = directory.path().join("aoai-lb.yaml");
            std::fs::write(&written, block.replace(HASH_PLACEHOLDER, &support::sha256_hex("x"))).unwrap();
            let output = run_aoai_lb(&["check", "-c", written.to_str().unwrap()]);
            let problems = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{}: {block}\n{problems}", file.display());
            checked += 1;
        }
    }
    assert!(checked > 0);
}

/// What completes a part of a configuration, by its first line.
const OTHER_KEYS: [(&str, &str); 4] = [
    ("listeners:", "  - address: 127.0.0.1:8080\n"),
    ("clients:", "  - name: team-a\n"),
    ("backends:", "  - name: eastus-ptu\n    provisioned: { units: 100 }\n  - name: sweden\n"),
    ("prices:", "  currency: USD\n  rows: [ { deployment: gpt-4o, input: 2.50, output: 10.00 } ]\n"),
];

/// The configuration of which a block shows a part: with all keys that a configuration needs.
fn completed_configuration(block: &str) -> String {
    let mut text = block.to_owned();
    for (key, lines) in OTHER_KEYS {
        if !text.lines().any(|line| line.starts_with(key)) {
            text += &format!("{key}\n{lines}");
        }
    }
    let mut completed = String::new();
    let mut section = "";
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        completed += &format!("{line}\n");
        section = if line.starts_with(char::is_alphabetic) { line } else { section };
        let Some(name) = line.strip_prefix("  - name: ") else { continue };
        let has_more = lines.peek().is_some_and(|next| next.contains("endpoint:") || next.contains("keys:"));
        match section {
            "backends:" if !has_more => {
                completed += &format!("    endpoint: https://contoso-{name}.openai.azure.com\n");
                completed += "    credential: { api_key: \"${EASTUS_KEY}\" }\n";
            }
            "clients:" if !has_more => {
                completed += &format!("    keys: [ {{ sha256: {} }} ]\n", support::sha256_hex(name));
            }
            _ => {}
        }
    }
    completed
}

#[test]
fn parts_of_configurations_pass_check_when_completed() {
    let mut checked = 0;
    for (file, text) in pages() {
        let (_, blocks) = split_code(&text);
        let others = ["model_list:", "scrape_configs:"];
        for (_, block) in blocks.iter().filter(|(language, _)| language == "yaml") {
            if block.contains("listeners:") || others.iter().any(|key| block.starts_with(key)) {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let written = directory.path().join("aoai-lb.yaml");
            let configuration = completed_configuration(block);
            std::fs::write(&written, &configuration).unwrap();
            let output = run_aoai_lb(&["check", "-c", written.to_str().unwrap()]);
            let problems = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{}: {configuration}\n{problems}", file.display());
            checked += 1;
        }
    }
    assert!(checked >= 9, "{checked} blocks");
}

/// The command lines of a page: in code spans, in blocks for a shell, and synopses.
fn command_lines(text: &str) -> Vec<String> {
    let (prose, blocks) = split_code(text);
    let shell_blocks =
        blocks.iter().filter(|(language, _)| matches!(language.as_str(), "sh" | "console" | "text"));
    let in_blocks = shell_blocks.flat_map(|(_, code)| code.lines());
    let spans = prose.split('`').skip(1).step_by(2);
    in_blocks
        .chain(spans)
        .filter_map(|line| {
            line.trim().trim_start_matches("$ ").trim_start_matches("sudo ").strip_prefix("aoai-lb ")
        })
        // What follows a comment or a pipe belongs to another program. A span may go on in the next line.
        .map(|line| line.split(" #").next().unwrap().split(" | ").next().unwrap().replace('\n', " "))
        .collect()
}

#[test]
fn commands_and_their_options_exist() {
    let mut help_by_command = HashMap::new();
    let mut checked = 0;
    let mut unknown = Vec::new();
    for (file, text) in pages() {
        for line in command_lines(&text) {
            let mut words = line.split([' ', '[', ']', ',', '|', '=']).filter(|word| !word.is_empty());
            let Some(command) = words.next().filter(|word| word.starts_with(char::is_lowercase)) else {
                continue;
            };
            let help = help_by_command.entry(command.to_owned()).or_insert_with(|| {
                let output = run_aoai_lb(&[command, "--help"]);
                output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
            });
            let options = words.filter(|word| word.starts_with("--"));
            let missing: Vec<&str> = match help {
                Some(help) => options.filter(|option| !help.contains(*option)).collect(),
                None => vec![command],
            };
            checked += 1;
            if !missing.is_empty() {
                unknown.push(format!("{}: aoai-lb {line}: {missing:?}", file.display()));
            }
        }
    }
    assert!(checked > 50, "{checked} command lines");
    assert_eq!(unknown, Vec::<String>::new());
}

/// The columns of the table in Log Analytics, which are the fields of a record (`log_analytics.rs` compares them).
fn record_fields() -> Vec<String> {
    let columns = std::fs::read_to_string(root().join("conf/azure/log-analytics.bicep")).unwrap();
    let fields: Vec<String> = columns
        .lines()
        .filter_map(|line| line.trim().strip_prefix("{ name: '")?.split('\'').next())
        .filter(|name| name.starts_with(char::is_lowercase))
        .map(str::to_owned)
        .collect();
    assert!(fields.len() > 40, "{fields:?}");
    fields
}

/// What a query names besides columns: operators, types and units, a counter, and the table with the columns that the service
/// adds.
const KQL_WORDS: &str = "let where project extend summarize lookup kind leftouter on by order top desc asc and or in \
    mv expand with_itemindex render timechart string real null m d h e6 n AoaiExchanges_CL TimeGenerated";

#[test]
fn the_queries_name_fields_of_records() {
    let (fields, words) = (record_fields(), KQL_WORDS.split(' ').collect::<Vec<_>>());
    let queries = std::fs::read_to_string(root().join("conf/azure/queries.kql")).unwrap();
    // Names of columns that are reserved words are in brackets; other texts are values.
    let queries = Regex::new(r#"\["(\w+)"\]"#).unwrap().replace_all(&queries, "$1");
    let queries = Regex::new(r#"//.*\n|"[^"]*""#).unwrap().replace_all(&queries, "");
    let name = Regex::new(r"(\.?)\b([A-Za-z_]\w*)\b( *[(=:]?=?)").unwrap();
    let mut unknown = Vec::new();
    for query in queries.split("\n\n") {
        let names: Vec<_> = name.captures_iter(query).map(|found| found.extract::<3>().1).collect();
        // Functions, and names that the query gives.
        let is_given = |after: &str| matches!(after.trim(), "=" | ":");
        let given: Vec<&str> =
            names.iter().filter(|[.., after]| is_given(after)).map(|[_, name, _]| *name).collect();
        let columns = names.iter().filter(|[_, name, after]| !after.ends_with('(') && !given.contains(name));
        for [dot, name, _] in columns {
            let is_known = match *dot {
                "" => words.contains(name) || fields.iter().any(|field| field == name),
                _ => ["backend", "status", "error", "ms", "retry_after_ms"].contains(name),
            };
            if !is_known {
                unknown.push(format!("{dot}{name}"));
            }
        }
    }
    assert_eq!(unknown, Vec::<String>::new());
    let about_money = ["cost", "service_tier", "cache_write_tokens", "usage_missing", "spilled"];
    assert!(about_money.iter().all(|field| queries.contains(field)));
}

#[test]
fn every_field_of_a_record_is_described() {
    let page = std::fs::read_to_string(root().join("docs/records.md")).unwrap();
    let fields = record_fields();
    let missing: Vec<&String> = fields.iter().filter(|field| !page.contains(&format!("`{field}`"))).collect();
    assert!(missing.is_empty(), "docs/records.md does not describe {missing:?}");
}

#[test]
fn the_invoice_of_the_documentation_is_that_of_its_records() {
    let page = std::fs::read_to_string(root().join("docs/money.md")).unwrap();
    let (_, blocks) = split_code(&page);
    let block = |wanted: &str| {
        let found: Vec<_> = blocks.iter().filter(|(language, _)| language == wanted).collect();
        assert_eq!(found.len(), 1, "{wanted}");
        &found[0].1
    };
    let invoice = command_lines(&page).into_iter().find(|line| line.contains("--format csv")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let records = directory.path().join("exchanges.jsonl");
    std::fs::write(&records, block("jsonl")).unwrap();
    let absent = directory.path().join("absent.yaml").display().to_string();
    let mut arguments: Vec<&str> = invoice.split_whitespace().collect();
    arguments.extend(["-c", &absent, records.to_str().unwrap()]);
    let output = run_aoai_lb(&arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(&String::from_utf8(output.stdout).unwrap(), block("csv"));
}
