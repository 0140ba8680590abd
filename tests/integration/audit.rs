//! Records under stress: none is lost, doubled or without its content because of another client or a disk.

use crate::support;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use support::upstream::{PAUSE_100_MS, RawRequest, ScriptedUpstream};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, Client, STREAM_BODY, all_backends_yaml, poll_within, sha256_hex,
    start_simulator, wait_until, wait_until_async,
};

const HEAVY_KEY: &str = "key-of-heavy";
const CALM_KEY: &str = "key-of-calm";
/// For what takes a debug build on a busy machine long.
const LONG_TIMEOUT: Duration = Duration::from_secs(120);
/// The default of `record.content_limit`.
const CONTENT_LIMIT: usize = 64 * 1024;

fn two_clients_yaml() -> String {
    let client = |name: &str, key: &str| {
        format!("  - name: {name}\n    keys: [ {{ sha256: {} }} ]\n", sha256_hex(key))
    };
    format!("clients:\n{}{}", client("heavy", HEAVY_KEY), client("calm", CALM_KEY))
}

/// An upstream whose streams say a word, with this usage, and then nothing for half a minute.
async fn start_upstream_with_open_streams(usage: &'static str) -> ScriptedUpstream {
    ScriptedUpstream::start(move |request: &RawRequest| {
        let body_start = String::from_utf8_lossy(&request.body[..request.body.len().min(200)]).into_owned();
        if !body_start.contains("\"stream\":true") {
            let body = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
            return support::upstream::complete_response(200, "Content-Type: application/json", body);
        }
        let choice = r#"{"index":0,"delta":{"content":"a word"}}"#;
        let event = format!("data: {{\"choices\":[{choice}],\"usage\":{usage}}}\n\n");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut pieces = vec![format!("{head}{:x}\r\n{event}\r\n", event.len()).into_bytes()];
        pieces.extend(vec![PAUSE_100_MS.to_vec(); 300]);
        pieces
    })
    .await
}

/// Opens streams with this body and reads until their first event.
async fn open_streams(balancer: &Balancer, count: usize, key: &str, body: &str) -> Vec<Client> {
    let mut streams = Vec::new();
    while streams.len() < count {
        let opened = join_all((0..20.min(count - streams.len())).map(|_| async {
            let mut client = balancer.connect().await;
            let headers = [("api-key", key), ("Content-Type", "application/json")];
            let length = body.len().to_string();
            let headers = [&headers[..], &[("Content-Length", length.as_str())]].concat();
            client.send((Client::request_head("POST", CHAT_TARGET, &headers)).as_bytes()).await;
            client.send(body.as_bytes()).await;
            assert_eq!(client.read_response_head().await.unwrap().status, 200);
            assert!(client.read_chunk().await.is_some());
            client
        }));
        streams.extend(opened.await);
    }
    streams
}

/// Like `Balancer::wait_for_records`, without parsing records again and again.
async fn wait_for_large_records(balancer: &Balancer, count: usize) -> Vec<Value> {
    let path = balancer.path("records.jsonl");
    let line_count = || std::fs::read(&path).unwrap_or_default().split(|byte| *byte == b'\n').count() - 1;
    poll_within(LONG_TIMEOUT, &format!("there are {count} records"), async || match line_count() {
        lines if lines < count => Err(lines),
        _ => Ok(()),
    })
    .await;
    balancer.records()
}

fn records_of<'r>(records: &'r [Value], client: &str) -> Vec<&'r Value> {
    records.iter().filter(|record| record["client"] == client).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_streams_that_break_off_together_cost_no_record_and_no_prompt() {
    const STREAMS: usize = 150;
    const REQUESTS: usize = 60;
    let upstream = start_upstream_with_open_streams("null").await;
    let balancer = Balancer::start_with_clients(&upstream.backend_yaml("a"), &two_clients_yaml(), "").await;
    let content = "some words ".repeat(100_000);
    let body = format!(r#"{{"stream":true,"messages":[{{"role":"user","content":"{content}"}}]}}"#);
    let streams = open_streams(&balancer, STREAMS, HEAVY_KEY, &body).await;
    drop(streams);
    for _ in 0..REQUESTS / 10 {
        let responses = join_all(
            (0..10).map(|_| balancer.post(CHAT_TARGET, &[("api-key", CALM_KEY)], CHAT_BODY.as_bytes())),
        );
        assert!(responses.await.iter().all(|response| response.status == 200));
    }
    let records = wait_for_large_records(&balancer, STREAMS + REQUESTS).await;
    let ids: HashSet<&str> = records.iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), records.len(), "expected no record twice");
    let (heavy, calm) = (records_of(&records, "heavy"), records_of(&records, "calm"));
    assert_eq!((heavy.len(), calm.len()), (STREAMS, REQUESTS));
    for record in heavy {
        let prompt = record["prompt"].as_str().unwrap();
        assert!(prompt.len() <= CONTENT_LIMIT && prompt.len() > CONTENT_LIMIT - 4, "{}", prompt.len());
        assert_eq!((&record["completion"], &record["content_cut"]), (&"a word".into(), &true.into()));
        assert_eq!(record["usage_source"], "estimated");
        let input = record["input_tokens"].as_u64().unwrap();
        assert!((180_000..=220_000).contains(&input), "{input}");
    }
    for record in calm {
        assert!(record["prompt"].as_str().unwrap().contains("hello"), "{record}");
        assert_eq!((&record["completion"], &record["content_cut"]), (&"hi".into(), &false.into()));
    }
}

/// A `record` block whose file and spool are in directories of their own.
fn separate_directories_yaml(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "record: {{ jsonl: {{ path: {directory}/logs/records.jsonl }}, spool: {{ path: {directory}/disk/spool }} }}"
    )
}

fn count_lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// The value of `aoai_lb_records_total` for the spool.
async fn spool_count(balancer: &Balancer, result: &str) -> u64 {
    let mut client = Client::connect(balancer.admin_address).await;
    let text = client.get("/metrics", &[("Host", "localhost")]).await.text();
    let prefix = format!("aoai_lb_records_total{{result=\"{result}\",sink=\"spool\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_usable_directories_serves_and_records_as_soon_as_it_can() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    // Nobody can create a directory below a file, not even root.
    std::fs::write(directory.path().join("disk"), "a file").unwrap();
    let record_block = separate_directories_yaml(directory.path());
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    for _ in 0..10 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    wait_until_async("the lost records are counted", async || spool_count(&balancer, "dropped").await == 10)
        .await;
    let incidents = balancer.log().matches("cannot write records to").count();
    assert_eq!(incidents, 1, "{}", balancer.log());
    balancer.wait_for_log("records stay in the spool: cannot write to").await;
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"))
        .args(["check", "-c"])
        .arg(balancer.path("aoai-lb.yaml"))
        .output()
        .unwrap();
    let problems = String::from_utf8(check.stderr).unwrap();
    assert!(!check.status.success());
    for expected in ["record.jsonl.path: is in a directory that does not exist", "record.spool.path: "] {
        assert!(problems.contains(expected), "{problems}");
    }
    // The spool first: records wait in it for the file.
    std::fs::remove_file(directory.path().join("disk")).unwrap();
    wait_until("the spool's directory is made", || directory.path().join("disk/spool").is_dir()).await;
    wait_until_async("a record is written", async || {
        assert_eq!(balancer.post_chat().await.status, 200);
        spool_count(&balancer, "written").await > 0
    })
    .await;
    std::fs::create_dir(directory.path().join("logs")).unwrap();
    let records = directory.path().join("logs/records.jsonl");
    wait_until("the records are in the file", || count_lines(&records) > 0).await;
    balancer.wait_for_log("records were lost").await;
    assert_eq!(balancer.stop().await, 0);
    let lost = spool_losses_in_log(&balancer.log());
    assert!(lost >= 10, "{lost}");
}

/// How many records were lost, as the log says.
fn spool_losses_in_log(log: &str) -> u64 {
    let line = log.lines().find(|line| line.contains("records were lost")).unwrap();
    line.split("meanwhile ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_go_while_running_cost_no_request_and_recording_goes_on() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    for name in ["disk", "logs"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    let record_block = separate_directories_yaml(directory.path());
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    let records = directory.path().join("logs/records.jsonl");
    assert_eq!(balancer.post_chat().await.status, 200);
    wait_until("the first record is in the file", || count_lines(&records) == 1).await;
    for name in ["disk", "logs"] {
        std::fs::rename(directory.path().join(name), directory.path().join(format!("{name}-away"))).unwrap();
        std::fs::write(directory.path().join(name), "a file").unwrap();
    }
    balancer.wait_for_log("cannot write records to").await;
    for _ in 0..10 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    balancer.wait_for_log("records stay in the spool: cannot write to").await;
    for name in ["disk", "logs"] {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    std::fs::create_dir(directory.path().join("logs")).unwrap();
    // The file that was open could still be written to: nothing is lost.
    wait_until("the records are in the new file", || count_lines(&records) == 10).await;
    wait_until("the spool's directory is made again", || directory.path().join("disk/spool").is_dir()).await;
    assert_eq!(balancer.post_chat().await.status, 200);
    wait_until("the last record is in the file", || count_lines(&records) == 11).await;
    assert_eq!(spool_count(&balancer, "dropped").await, 0);
    assert_eq!(balancer.stop().await, 0);
    assert_eq!(balancer.log().matches("cannot write records to").count(), 1, "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_with_an_unusable_directory_is_accepted_with_a_warning() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    balancer.replace_in_config("path: records.jsonl", "path: no-such-directory/records.jsonl, keep: 3");
    let response = balancer.post_admin("/api/reload").await;
    assert_eq!(response.status, 200, "{}", response.text());
    balancer.wait_for_log("WARN").await;
    balancer.wait_for_log("record.jsonl.path: is in a directory that does not exist").await;
    assert_eq!(balancer.post_chat().await.status, 200);
    balancer.wait_for_records(1).await;
}

/// The resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_given_back_when_many_streams_have_ended() {
    const STREAMS: usize = 1_000;
    // With usage, so that no tokenizer is loaded.
    let usage = r#"{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}"#;
    let upstream = start_upstream_with_open_streams(usage).await;
    let balancer = Balancer::start_with_clients(&upstream.backend_yaml("a"), &two_clients_yaml(), "").await;
    // What is made once is not counted.
    drop(open_streams(&balancer, 20, HEAVY_KEY, STREAM_BODY).await);
    wait_for_large_records(&balancer, 20).await;
    let before = resident_kib(balancer.pid());
    let streams = open_streams(&balancer, STREAMS, HEAVY_KEY, STREAM_BODY).await;
    let open = resident_kib(balancer.pid());
    assert!(open > before + 20 * 1024, "{before} KiB before, {open} KiB with open streams");
    drop(streams);
    wait_for_large_records(&balancer, STREAMS + 20).await;
    wait_until("a third of the growth is left at most", || {
        resident_kib(balancer.pid()) < before + (open - before) / 3
    })
    .await;
}
