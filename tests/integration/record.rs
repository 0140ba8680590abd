//! Records: none is lost or duplicated, files rotate, and secrets are redacted.

use crate::support;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use aoai_lb::demo::{DeploymentKind, Mood, ResponseTiming, SimulatedResource, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::traffic::BackgroundTraffic;
use support::upstream::{self, RawRequest, ScriptedUpstream};
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, all_backends_yaml, listed_backends_yaml,
    send_signal_to, start_simulator, wait_until,
};

pub(crate) const STREAM_END: &str = "data: [DONE]\n\n";

pub(crate) fn record_yaml(directory: &Path, extra_yaml: &str) -> String {
    let directory = directory.display();
    format!(
        "record: {{ jsonl: {{ path: {directory}/records.jsonl{extra_yaml} }}, spool: {{ path: {directory}/spool }} }}"
    )
}

/// The records in all files of a directory, rotated and compressed ones included.
pub(crate) fn read_all_records(directory: &Path) -> Vec<Value> {
    let mut records = Vec::new();
    for path in record_files(directory) {
        // The file may just have been replaced by its compressed form.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let mut text = String::new();
        if path.extension().is_some_and(|ending| ending == "gz") {
            flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        } else {
            text = String::from_utf8(bytes).unwrap();
        }
        records.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    records
}

fn record_files(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.to_string_lossy().contains(".jsonl"))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let compressed: HashSet<PathBuf> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .map(|path| path.with_extension(""))
        .collect();
    files.retain(|path| !compressed.contains(path));
    files
}

pub(crate) fn request_ids(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn record_files_rotate_by_size_and_on_sighup_and_old_ones_are_compressed() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let record_block = record_yaml(directory.path(), ", rotate: 64KiB, keep: 3");
    let balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    let mut client = balancer.connect().await;
    for index in 0..400 {
        let response = client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], STREAM_BODY.as_bytes()).await;
        assert_eq!(response.status, 200);
        if index % 50 == 0 {
            // Complete lines are valid JSON at any moment.
            let text = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap_or_default();
            let complete_lines = text.rsplit_once('\n').map_or("", |(complete_lines, _)| complete_lines);
            assert!(complete_lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
        }
    }
    let are_old_files_compressed = || {
        let files = record_files(directory.path());
        files.len() == 4
            && files[..3].iter().all(|path| path.extension().is_some_and(|ending| ending == "gz"))
    };
    wait_until("three old files are kept, compressed", are_old_files_compressed).await;
    let before = request_ids(&read_all_records(directory.path()));
    balancer.send_signal("HUP");
    wait_until("a new file is started", || {
        record_files(directory.path()).len() == 5 || !are_old_files_compressed()
    })
    .await;
    client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    wait_until("the first record is written to it", || {
        std::fs::read_to_string(directory.path().join("records.jsonl"))
            .is_ok_and(|text| text.lines().count() == 1)
    })
    .await;
    // A file that was renamed by someone else is started anew, too.
    std::fs::rename(directory.path().join("records.jsonl"), directory.path().join("taken.jsonl")).unwrap();
    client.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], CHAT_BODY.as_bytes()).await;
    wait_until("the file exists again", || directory.path().join("records.jsonl").exists()).await;
    assert!(before.len() > 50);
}

/// Renames the record file as logrotate does, and returns once the process writes to a new one.
async fn rename_and_reopen(balancer: &Balancer, round: usize) {
    let path = balancer.path("records.jsonl");
    std::fs::rename(&path, balancer.path(&format!("records.jsonl.{round}"))).unwrap();
    assert!(send_signal_to("USR1", balancer.serving_pid().await));
    wait_until("the record file is there again", || path.exists()).await;
}

#[tokio::test]
async fn renamed_record_files_are_reopened_on_sigusr1_and_no_record_is_lost_or_doubled() {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    // Without traffic as well: nothing but the signal makes it open the file.
    rename_and_reopen(&balancer, 0).await;
    let traffic = BackgroundTraffic::start(balancer.address);
    for round in 1..=6 {
        let started_before = traffic.started_requests();
        wait_until("30 more requests have started", || traffic.started_requests() > started_before + 30)
            .await;
        if round == 4 {
            // The old process writes records, too, and gets no signal.
            assert!(balancer.run_upgrade_command().await.status.success());
        }
        rename_and_reopen(&balancer, round).await;
    }
    let counts = traffic.stop().await;
    assert_eq!(counts.failures, Vec::<String>::new());
    balancer.wait_until_single_process().await;
    let directory = balancer.path("records.jsonl").parent().unwrap().to_owned();
    let expected = counts.records();
    wait_until("all records are written", || read_all_records(&directory).len() >= expected).await;
    let ids = request_ids(&read_all_records(&directory));
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (expected, expected));
    let file_count = record_files(&directory).len();
    assert_eq!(file_count, 8, "expected a file for each rename, and the newest");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_wait_in_the_spool_while_the_sink_fails() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("records.jsonl");
    let full = Path::new("/dev/full");
    std::os::unix::fs::symlink(full, &target).unwrap();
    let record_block = record_yaml(directory.path(), "");
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    for _ in 0..20 {
        assert_eq!(
            balancer.post_chat().await.status,
            200,
            "expected requests to succeed although the disk is full"
        );
    }
    balancer.wait_for_log("records stay in the spool").await;
    // Nor does it delay the shutdown for long, and the waiting records survive it.
    assert_eq!(balancer.stop().await, 0);
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    balancer.post_chat().await;
    std::fs::remove_file(&target).unwrap();
    wait_until("all records are written", || read_all_records(directory.path()).len() == 21).await;
    assert_eq!(balancer.stop().await, 0);
    let ids = request_ids(&read_all_records(directory.path()));
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_the_spool_and_the_survivor_delivers_the_rest() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let record_block = record_yaml(directory.path(), ", rotate: 64KiB, keep: 1000");
    let old = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    let mut new = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    let mut expected = 0;
    for _ in 0..10 {
        let (a, b) = tokio::join!(
            join_all((0..10).map(|_| old.post_chat())),
            join_all((0..10).map(|_| new.post_chat()))
        );
        assert!(a.iter().chain(&b).all(|response| response.status == 200));
        expected += 20;
    }
    old.send_signal("KILL");
    wait_until("the records of both processes are written", || {
        read_all_records(directory.path()).len() >= expected
    })
    .await;
    new.post_chat().await;
    wait_until("the new process claims the spool of the old one", || {
        std::fs::read_dir(directory.path().join("spool")).unwrap().count() <= 2
    })
    .await;
    assert_eq!(new.stop().await, 0);
    let ids = request_ids(&read_all_records(directory.path()));
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (expected + 1, expected + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn redacted_text_is_never_written() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let record_block = format!(
        "record: {{ content_limit: 200B, redact: ['sk-[A-Za-z0-9]+', '4[0-9]{{15}}'], jsonl: {{ path: {path}/records.jsonl }}, spool: {{ path: {path}/spool }} }}"
    );
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    // The simulated response repeats the prompt. One secret is written with JSON escapes, one crosses
    // `content_limit`.
    let long = format!("sk-first s\\u006b-second 4111111111111111 {} sk-third", "x".repeat(150));
    for stream in ["", r#","stream":true"#] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]{stream}}}"#);
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        assert!(
            response.text().contains("sk-"),
            "expected the client to get the unredacted response: {}",
            response.text()
        );
    }
    assert_eq!(balancer.stop().await, 0);
    assert_eq!(read_all_records(directory.path()).len(), 2);
    let written = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap() + &balancer.log();
    for secret in ["sk-f", "sk-s", "-second", "411111", "sk-t", "third", "u006b"] {
        assert!(!written.contains(secret), "{secret}: {written}");
    }
    for record in read_all_records(directory.path()) {
        assert!(
            record["prompt"].as_str().unwrap().contains("[redacted] [redacted] [redacted]"),
            "{record:#}"
        );
        assert!(record["completion"].as_str().unwrap().contains("[redacted]"), "{record:#}");
        assert_eq!(record["content_cut"], true);
        assert!(record["prompt"].as_str().unwrap().len() <= 200);
    }
}

#[tokio::test]
async fn no_prompt_is_longer_than_the_limit() {
    const LIMIT: usize = 300;
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let record_block = format!(
        "record: {{ content_limit: {LIMIT}B, jsonl: {{ path: {path}/records.jsonl }}, spool: {{ path: {path}/spool }} }}"
    );
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    // What replaces data can be longer than the data.
    let data_urls = [r#""data:a/,""#; 20].join(",");
    let messages = [
        (format!(r#"[{{"role":"user","content":"{}"}}]"#, "a".repeat(LIMIT / 2)), false),
        (format!(r#"[{{"role":"user","content":"{}"}}]"#, "é".repeat(LIMIT)), true),
        (format!(r#"[{{"role":"user","content":"hi","x":[{data_urls}]}}]"#), true),
    ];
    for (messages, _) in &messages {
        let body = format!(r#"{{"messages":{messages}}}"#);
        let response = balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
        assert_eq!(response.status, 200);
    }
    assert_eq!(balancer.stop().await, 0);
    let records = read_all_records(directory.path());
    assert_eq!(records.len(), messages.len());
    for (record, (messages, is_cut)) in records.iter().zip(messages) {
        let prompt = record["prompt"].as_str().unwrap();
        assert_eq!((prompt == messages, prompt.len() >= LIMIT - 1), (!is_cut, is_cut), "{record:#}");
        assert!(prompt.len() <= LIMIT, "{record:#}");
        assert!(!is_cut || record["content_cut"] == true, "{record:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_distinguish_provisioned_spilled_over_and_cached_responses() {
    let response_with_usage = |is_spilled_over: bool, cached_tokens: u32| {
        let body = format!(
            r#"{{"choices":[{{"message":{{"content":"hi"}}}}],"usage":{{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}}}"#
        );
        let headers = match is_spilled_over {
            true => {
                "Content-Type: application/json\nx-ms-spillover-from-deployment: gpt-4o-ptu\nx-ms-deployment-name: gpt-4o-standard"
            }
            false => "Content-Type: application/json\nx-ms-deployment-name: gpt-4o-ptu",
        };
        upstream::complete_response(200, headers, &body)
    };
    let request_number = std::sync::atomic::AtomicUsize::new(0);
    let resource =
        ScriptedUpstream::start(move |_: &RawRequest| match request_number.fetch_add(1, Ordering::Relaxed) {
            0 => response_with_usage(false, 0),
            1 => response_with_usage(true, 0),
            _ => response_with_usage(false, 8),
        })
        .await;
    let entry = support::backend_yaml(
        "ptu",
        &format!("http://{}", resource.address),
        "deployments: { gpt-4o: gpt-4o-ptu }",
    );
    let balancer = Balancer::start(&entry, "").await;
    for _ in 0..3 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    let records = balancer.wait_for_records(3).await;
    let recorded: Vec<_> = records
        .iter()
        .map(|record| {
            (record["upstream_deployment"].as_str().unwrap(), record["cached_tokens"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(recorded, [("gpt-4o-ptu", 0), ("gpt-4o-standard", 0), ("gpt-4o-ptu", 8)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn audio_and_images_are_recorded_by_size_and_digest() {
    const AUDIO_BYTES: &str = "RIFF....of a kind";
    let image_base64 = "iVBORw0KGgo".repeat(200_000) + "AA==";
    let bytes = openssl::base64::decode_block(&image_base64).unwrap();
    let body = format!(
        r#"{{"created":1,"data":[{{"b64_json":"{image_base64}","revised_prompt":"a cat"}}],"usage":{{"input_tokens":5,"output_tokens":7,"total_tokens":12}}}}"#
    );
    let resource = ScriptedUpstream::start(move |request: &RawRequest| {
        let is_audio = request.head.contains("/audio/speech");
        let json = "Content-Type: application/json";
        if is_audio {
            upstream::complete_response(200, "Content-Type: audio/mpeg", AUDIO_BYTES)
        } else {
            upstream::complete_response(200, json, &body)
        }
    })
    .await;
    let balancer = Balancer::start(&resource.backend_yaml("a"), "").await;
    let post = async |what: &str, body: &str| {
        let target = format!("/openai/deployments/gpt-4o/{what}?api-version=2024-10-21");
        assert_eq!(balancer.post(&target, &[("api-key", CLIENT_KEY)], body.as_bytes()).await.status, 200);
    };
    post("audio/speech", r#"{"input":"say it","voice":"alloy"}"#).await;
    post("images/generations", r#"{"prompt":"a cat"}"#).await;
    let records = balancer.wait_for_records(2).await;
    let recorded = |operation: &str| {
        let record = records.iter().find(|record| record["operation"] == operation).unwrap();
        (serde_json::from_str::<Value>(record["completion"].as_str().unwrap()).unwrap(), record.clone())
    };
    let (audio, _) = recorded("audio");
    assert_eq!(
        audio,
        serde_json::json!({ "bytes": AUDIO_BYTES.len(), "sha256": support::sha256_hex(AUDIO_BYTES) })
    );
    let (images, record) = recorded("images");
    assert_eq!(images[0]["b64_json"]["bytes"], bytes.len());
    assert_eq!(images[0]["revised_prompt"], "a cat");
    assert_eq!((&record["total_tokens"], &record["content_cut"]), (&12.into(), &false.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_concurrent_streams_are_captured_completely() {
    let resource = SimulatedResource {
        timing: ResponseTiming {
            first_byte_delay: Duration::from_millis(20),
            event_interval: Duration::from_millis(2),
        },
        ..SimulatedResource::new("a").with_api_key("a-key").with_deployment(
            "gpt-4o",
            "gpt-4o-2024-11-20",
            DeploymentKind::Unlimited,
        )
    };
    let azure = Simulator::start(vec![resource]).await.unwrap();
    azure.set_mood("a", Mood::Calm);
    let directory = tempfile::tempdir().unwrap();
    let balancer = Balancer::start(&all_backends_yaml(&azure), &record_yaml(directory.path(), "")).await;
    let stream_text =
        |index: usize| format!("stream {index} says {}", "word ".repeat(index % 7 + 1).trim_end());
    let responses = join_all((0..200).map(|index| {
        let body = format!(
            r#"{{"stream":true,"stream_options":{{"include_usage":true}},"messages":[{{"role":"user","content":"{}"}}]}}"#,
            stream_text(index)
        );
        let balancer = &balancer;
        async move { balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await }
    }))
    .await;
    wait_until("all records are written", || read_all_records(directory.path()).len() == 200).await;
    let records: HashMap<String, Value> = read_all_records(directory.path())
        .into_iter()
        .map(|record| (record["request_id"].as_str().unwrap().to_owned(), record))
        .collect();
    for (index, response) in responses.iter().enumerate() {
        assert!(response.is_complete && response.text().ends_with(STREAM_END));
        let record = &records[response.header("x-aoai-lb-request-id").unwrap()];
        let relayed_text: String = response
            .text()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert!(relayed_text.contains(&stream_text(index)), "{relayed_text}");
        assert_eq!(record["completion"], relayed_text.as_str());
        assert_eq!(record["usage_source"], "reported");
        assert_eq!(record["response_bytes"], response.body.len());
    }
}
