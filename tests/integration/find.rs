//! `aoai-lb find`: one request by any of its ids, wherever its record is, and what is said if it is not there.

use crate::support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aoai_lb::demo::Mood;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use support::terminal::Terminal;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, Client, Response, all_backends_yaml, listed_backends_yaml,
    start_simulator, wait_until,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn to_text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn find(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aoai-lb")).arg("find").args(arguments).output().unwrap()
}

/// What is printed for an id that is found.
fn story_of(arguments: &[&str]) -> String {
    let output = find(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", to_text(&output.stderr));
    to_text(&output.stdout)
}

/// What is said of an id that is not found.
fn refusal_of(arguments: &[&str]) -> String {
    let output = find(arguments);
    assert_eq!((output.status.code(), to_text(&output.stdout)), (Some(1), String::new()), "{arguments:?}");
    to_text(&output.stderr)
}

/// A directory with a configuration whose records go to `exchanges.jsonl`.
struct Records {
    directory: tempfile::TempDir,
    config: String,
}

impl Records {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("aoai-lb.yaml");
        let text = "listeners: [ { address: 127.0.0.1:1 } ]\nclients: open\nbackends: [ { name: a, endpoint: \
                    'https://a.example', credential: { api_key: '${NOT_SET}' } } ]\nrecord: { jsonl: { path: \
                    exchanges.jsonl } }\n";
        fs::write(&config, text).unwrap();
        Self { config: config.display().to_string(), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn find(&self, arguments: &[&str]) -> Output {
        find(&[arguments, &["-c", &self.config]].concat())
    }

    fn story_of(&self, arguments: &[&str]) -> String {
        story_of(&[arguments, &["-c", &self.config]].concat())
    }

    fn refusal_of(&self, arguments: &[&str]) -> String {
        refusal_of(&[arguments, &["-c", &self.config]].concat())
    }
}

/// A record of this minute with these further fields.
fn record(minute: u32, id: &str, more: &Value) -> String {
    let mut record = json!({
        "request_id": id, "client": "team-a", "status": 200, "outcome": "answered", "attempts": [], "duration_ms": 7,
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let rest = record.to_string();
    format!("{{\"time\":\"2026-11-23T08:{minute:02}:00.000000Z\",{}\n", &rest[1..])
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The line of a story with this label, without it.
fn line<'s>(story: &'s str, label: &str) -> &'s str {
    let line = story.lines().find(|line| line.starts_with(&format!("{label} ")));
    line.unwrap_or_else(|| panic!("{label} is not in\n{story}"))[label.len()..].trim()
}

/// Names of the files in a directory that begin like this.
fn names(directory: &Path, beginning: &str) -> Vec<String> {
    let names =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(beginning)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_found_by_each_of_its_ids_in_the_spool_and_in_current_rotated_and_compressed_files() {
    let azure = start_simulator(&["a", "b"]).await;
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("exchanges.jsonl");
    // Nothing can be written to it, so the record stays in the spool.
    std::os::unix::fs::symlink("/dev/full", &target).unwrap();
    let record_block = format!(
        "record: {{ jsonl: {{ path: {} }}, spool: {{ path: {}/spool }} }}",
        target.display(),
        directory.path().display()
    );
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), &record_block).await;
    azure.set_mood("a", Mood::Throttled { retry_after_ms: Some(4_000), retry_after: None });
    azure.set_mood("b", Mood::Throttled { retry_after_ms: Some(10), retry_after: None });
    let parent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    let headers = [
        ("api-key", CLIENT_KEY),
        ("x-request-id", "The-Client's-Own"),
        ("traceparent", &parent),
        ("user-agent", "my-program/1.0"),
    ];
    let request = balancer.post(CHAT_TARGET, &headers, CHAT_BODY.as_bytes());
    let (response, ()) = tokio::join!(request, async {
        wait_until("both are throttled", || azure.request_count("a") > 0 && azure.request_count("b") > 0)
            .await;
        azure.set_mood("b", Mood::Calm);
    });
    assert_eq!(response.status, 200, "{}", response.text());
    let id_of = |response: &Response, name: &str| response.header(name).unwrap().to_owned();
    let own_id = id_of(&response, "x-aoai-lb-request-id");
    let ids = [
        (own_id.clone(), "request_id"),
        ("The-Client's-Own".to_owned(), "client_request_id"),
        (id_of(&response, "apim-request-id"), "apim_request_id"),
        (TRACE_ID.to_owned(), "trace_id"),
        // However somebody has written it down.
        (own_id.to_uppercase(), "request_id"),
    ];
    // Another one, which must not be found.
    assert_eq!(balancer.post_chat().await.status, 200);
    let config = balancer.path("aoai-lb.yaml").display().to_string();
    let assert_found = |place: &str| {
        for (id, field) in &ids {
            let story = story_of(&[id, "-c", &config]);
            assert!(
                story.starts_with(&format!("{own_id}  ")) && story.contains("  answered, 200\n"),
                "{story}"
            );
            let record = line(&story, "record");
            assert!(
                record.contains(place) && record.ends_with(&format!("; found by its {field}")),
                "{story}"
            );
            assert!(line(&story, "client").starts_with("team-a, "), "{story}");
            assert_eq!(line(&story, "program"), "my-program/1.0");
            assert!(line(&story, "ids").contains("the client's The-Client's-Own, Azure's "), "{story}");
            let request = CHAT_TARGET.split_once('?').unwrap().0;
            assert_eq!(line(&story, "request"), format!("POST {request}"));
            assert!(story.contains(" chat, classic, api-version 2024-10-21, no stream, "), "{story}");
            let attempt = line(&story, "attempts");
            assert!(
                attempt.contains(" 429  began at ") && attempt.contains("asked to retry after "),
                "{story}"
            );
            assert!(line(&story, "answer").starts_with("by b "), "{story}");
            assert!(line(&story, "tokens").starts_with("input ") && story.contains(" ms\n"), "{story}");
            assert!(!story.contains("hello") && line(&story, "content").contains("--content"), "{story}");
            assert_eq!(story.lines().filter(|line| line.contains(&own_id)).count(), 1, "once: {story}");
        }
    };
    let is_in_spool = || to_text(&find(&[&own_id, "-c", &config]).stdout).contains("in the spool");
    wait_until("the record is in the spool", is_in_spool).await;
    assert_found("in the spool (not delivered to jsonl yet)");
    // The list of recent trouble has it under the same ids: it was retried.
    for (id, _) in &ids {
        let target = format!("/api/requests?id={id}");
        let mut admin = Client::connect(balancer.admin_address).await;
        let list = admin.get(&target, &[("Host", "localhost")]).await.json();
        assert_eq!(
            (&list["matching"], &list["requests"][0]["id"]),
            (&json!(1), &json!(own_id)),
            "{id}: {list}"
        );
        assert_eq!(list["requests"][0]["client_request_id"], "The-Client's-Own");
    }
    let output = find(&[&own_id, "-c", &config]);
    let warning = format!("warning: not read: {}: it is not a regular file\n", target.display());
    assert_eq!(to_text(&output.stderr), warning);

    fs::remove_file(&target).unwrap();
    let lines = || fs::read_to_string(&target).unwrap_or_default().lines().count();
    wait_until("the records are in the file", || lines() == 2).await;
    assert_found(&target.display().to_string());
    balancer.send_signal("HUP");
    let rotated = || names(directory.path(), "exchanges-");
    wait_until("the file is rotated", || rotated().len() == 1).await;
    assert_found(&format!("{}/exchanges-20", directory.path().display()));
    wait_until("the file is compressed", || rotated().len() == 1 && rotated()[0].ends_with(".jsonl.gz"))
        .await;
    assert_eq!(balancer.stop().await, 0);
    assert_found(".jsonl.gz; found by");
    assert_eq!(names(&directory.path().join("spool"), "").len(), 0, "the spool is empty and was no help");

    // As it is, in any place, with prompt and completion.
    let mut expected = String::new();
    let file = fs::File::open(directory.path().join(&rotated()[0])).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut expected).unwrap();
    let expected = expected.lines().find(|line| line.contains(&own_id)).unwrap();
    assert_eq!(story_of(&[&own_id, "--json", "-c", &config]), format!("{expected}\n"));
    let content = story_of(&[&own_id, "--content", "-c", &config]);
    assert!(content.contains("\n  | [{\"role\":\"user\",\"content\":\"hello\"}]\n"), "{content}");
    assert!(line(&content, "completion").ends_with('B'), "{content}");
}

#[test]
fn nothing_in_a_record_reaches_the_terminal_as_a_command() {
    let records = Records::new();
    let evil = "\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\r\nforged";
    let more = json!({
        "client_request_id": "mine", "user_agent": evil, "path": evil, "model": evil, "outcome": evil, "region": evil,
        "prompt": format!("first\n  {evil}"), "completion": evil, "cost": { "of": evil }, evil: evil,
        "attempts": [{ "backend": evil, "error": evil, "ms": 1 }], "affinity": { "by": evil, "how": evil },
    });
    records.write("exchanges.jsonl", record(1, "1", &more));
    for options in [&["mine"][..], &["mine", "--content"]] {
        let story = records.story_of(options);
        let unsafe_character = story.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(unsafe_character, None, "{story:?}");
        // What is on a line of its own is no line of the record.
        assert!(!story.contains("\nforged"), "{story}");
    }
    // An id that is not found is printed, too.
    let refusal = records.refusal_of(&["\u{1b}[2J"]);
    assert!(!refusal.contains('\u{1b}') && refusal.contains("[2J: not found"), "{refusal:?}");
    let raw = records.story_of(&["mine", "--json"]);
    assert!(raw.contains('\u{9b}'), "a pipe gets it as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_on_a_terminal_has_no_command_either() {
    let records = Records::new();
    records.write("exchanges.jsonl", record(1, "1", &json!({ "prompt": "a\u{9b}2Jb\u{7f}" })));
    let mut terminal =
        Terminal::start(&["find", "1", "--json", "-c", &records.config], &[("NO_COLOR", "1")], 200, 12);
    assert_eq!(terminal.wait_for_exit().await, Some(0));
    let is_shown = |rows: &[String]| rows.concat().contains(r#""prompt":"a\u009b2Jb\u007f""#);
    terminal.wait_for("the record is there, escaped", is_shown).await;
}

#[test]
fn all_requests_with_an_id_are_shown_in_order_of_time_and_the_newest_of_too_many() {
    let records = Records::new();
    let with_id =
        |minute: u32| record(minute, &format!("r{minute}"), &json!({ "client_request_id": "mine" }));
    let other =
        record(9, "other", &json!({ "prompt": "\"client_request_id\":\"mine\" mine", "user_agent": "mine" }));
    records.write("exchanges-20261123T080300.000Z.jsonl.gz", gzip(&(with_id(3) + &with_id(1))));
    // Renamed by another program, and a record that was delivered twice.
    records.write("exchanges.jsonl.1", with_id(2) + &with_id(3));
    records.write("exchanges.jsonl-20261122.gz", gzip(&with_id(0)));
    records.write("exchanges.jsonl.xz.txt", with_id(7));
    records.write("exchanges.jsonl", with_id(5) + &other + &with_id(4));
    let ids = |text: &str| -> Vec<String> {
        let first = text.split("\n\n").map(|story| story.split("  ").next().unwrap().to_owned());
        first.collect()
    };
    assert_eq!(ids(&records.story_of(&["mine"])), ["r0", "r1", "r2", "r3", "r4", "r5"]);
    let output = records.find(&["mine", "--limit", "2"]);
    assert_eq!(ids(&to_text(&output.stdout)), ["r4", "r5"]);
    assert_eq!(to_text(&output.stderr), "warning: 4 older requests with this id are left out\n");
    let json = records.story_of(&["mine", "--json", "--limit", "2"]);
    assert_eq!(json, with_id(4) + &with_id(5));
    // Named files only, which need no configuration.
    let path = |name: &str| records.path(name).display().to_string();
    let named = story_of(&["mine", &path("exchanges.jsonl.1"), "-c", "/no/such/file"]);
    assert_eq!(ids(&named), ["r2", "r3"]);
}

#[test]
fn what_cannot_be_read_is_named_and_the_answer_stays_honest() {
    let records = Records::new();
    let good = record(1, "good", &json!({}));
    records.write("exchanges.jsonl", &good);
    let whole = gzip(&record(1, "in-gz", &json!({ "prompt": "x".repeat(5000) })));
    records.write("exchanges-20261123T080300.000Z.jsonl.gz", &whole[..whole.len() - 12]);
    let refusal = records.refusal_of(&["missing"]);
    assert!(refusal.starts_with("missing: not found in what could be read\nnot read: "), "{refusal}");
    let problem = "exchanges-20261123T080300.000Z.jsonl.gz: its compressed data are cut off\n";
    assert!(refusal.contains(problem), "{refusal}");
    assert!(refusal.contains("records since 2026-11-23T08:01:00.000000Z\n"), "{refusal}");
    let output = records.find(&["good"]);
    assert!(output.status.success() && to_text(&output.stdout).starts_with("good  "));
    assert!(to_text(&output.stderr).starts_with("warning: not read: "), "{}", to_text(&output.stderr));
    fs::remove_file(records.path("exchanges-20261123T080300.000Z.jsonl.gz")).unwrap();

    // A line that is still being written, or was when its process was killed.
    let half = record(2, "half", &json!({}));
    records.write("exchanges.jsonl", good.clone() + &half[..half.len() - 4]);
    let refusal = records.refusal_of(&["half"]);
    assert!(refusal.starts_with("half: not found\n"), "{refusal}");
    assert!(
        refusal.contains("exchanges.jsonl: its last line contains the id, and is not complete"),
        "{refusal}"
    );
    // Whole, but for its end.
    records.write("exchanges.jsonl", good.clone() + half.trim_end());
    assert!(records.story_of(&["half"]).starts_with("half  2026-11-23T08:02"));
    // A line in the middle that is no record.
    records.write("exchanges.jsonl", "{\"time\":\"broken\"\n".to_owned() + &good);
    assert!(records.refusal_of(&["broken"]).contains("lines that contain the id and are not records: 1"));
    records.write("exchanges.jsonl.3.zst", "x");
    assert!(records.refusal_of(&["x"]).contains("it is compressed as zst; decompress it, and name it"));
    // A damaged segment of the spool.
    fs::create_dir(records.path("exchanges-spool")).unwrap();
    records.write("exchanges-spool/0000000000000001-000000-1-00000000.sealed", b"aoailb\x001damaged bytes");
    let refusal = records.refusal_of(&["x"]);
    assert!(refusal.contains("its last 13 bytes are damaged"), "{refusal}");
}

#[test]
fn an_id_that_is_not_found_ends_with_1_and_what_was_searched() {
    let records = Records::new();
    let refusal = records.refusal_of(&["missing"]);
    let directory = records.directory.path().display();
    let expected = format!(
        "missing: not found\nsearched: the spool (there is no {directory}/exchanges-spool), 0 files of \
         {directory}/exchanges.jsonl: 0 B, no record\nknown ids: "
    );
    assert!(refusal.starts_with(&expected), "{refusal}");
    records.write("exchanges.jsonl", record(1, "1", &json!({})));
    assert!(records.refusal_of(&["missing"]).contains(", 1 file of "));
    let usage = ["", "--limit", "0"];
    for (arguments, problem) in [
        (&[][..], "required arguments were not provided"),
        (&[" "], "invalid value ' ' for '<ID>': expected the id of a request"),
        (&["id", usage[1], usage[2]], "0 is not in 1..=1000"),
        (&["id", "--json", "--content"], "cannot be used with"),
    ] {
        let output = find(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(to_text(&output.stderr).contains(problem), "{arguments:?}: {}", to_text(&output.stderr));
    }
    let output = find(&["id", "-c", "/no/such/file"]);
    assert!(output.status.code() == Some(1) && to_text(&output.stderr).contains("/no/such/file"));
    let page = to_text(&Command::new(env!("CARGO_BIN_EXE_aoai-lb")).arg("man").output().unwrap().stdout);
    assert!(page.contains(".SS find\n") && page.contains("\\-\\-content"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_records_the_running_process_is_asked_for_recent_trouble() {
    let azure = start_simulator(&["a"]).await;
    // The harness adds a record block unless the text names one.
    let balancer = Balancer::start(&all_backends_yaml(&azure), "# without a record: block").await;
    let config = balancer.path("aoai-lb.yaml").display().to_string();
    let refused = balancer.post(CHAT_TARGET, &[("api-key", "nobody's")], CHAT_BODY.as_bytes()).await;
    let id = refused.header("x-aoai-lb-request-id").unwrap();
    wait_until("it is kept", || find(&[id, "-c", &config]).status.success()).await;
    let story = story_of(&[id, "-c", &config]);
    assert!(story.starts_with(&format!("{id}  ")) && story.contains("  refused, 401\n"), "{story}");
    assert_eq!(line(&story, "record"), "in the memory of the running process; found by its request_id");
    assert!(line(&story, "cause").starts_with("no valid key"), "{story}");
    let answered = balancer.post_chat().await;
    let refusal = refusal_of(&[answered.header("x-aoai-lb-request-id").unwrap(), "-c", &config]);
    assert!(refusal.contains("has no record block: requests leave no records"), "{refusal}");
    drop(balancer);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("aoai-lb.yaml");
    let admin = format!("127.0.0.1:{}", support::free_port());
    let text = format!(
        "listeners: [ {{ address: 127.0.0.1:1 }} ]\nadmin: {{ address: '{admin}' }}\nclients: open\nbackends: [ {{ \
         name: a, endpoint: 'https://a.example', credential: {{ api_key: k }} }} ]\n"
    );
    fs::write(&file, text).unwrap();
    let refusal = refusal_of(&[id, "-c", file.to_str().unwrap()]);
    assert!(
        refusal.contains(&format!("recent trouble: cannot reach the admin API at http://{admin}")),
        "{refusal}"
    );
}
