//! Records: none lost, none doubled, nothing in them that should not be.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aoai_lb::demo::{Kind, Mood, Pace, Resource, Simulator};
use futures::future::join_all;
use serde_json::Value;
use support::upstream::{self, Request, Upstream};
use support::{Balancer, CHAT, HELLO, KEY, STREAM, azure, backends, until};

const STREAM_END: &str = "data: [DONE]\n\n";

fn sink(directory: &Path, more: &str) -> String {
    let directory = directory.display();
    format!(
        "record: {{ jsonl: {{ path: {directory}/records.jsonl{more} }}, spool: {{ path: {directory}/spool }} }}"
    )
}

/// The records of all files of this directory, whole lines only, old files included.
fn all_records(directory: &Path) -> Vec<Value> {
    let mut records = Vec::new();
    for path in files(directory) {
        // It may be compressed meanwhile.
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

fn files(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.to_string_lossy().contains(".jsonl"))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let packed: HashSet<PathBuf> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "gz"))
        .map(|path| path.with_extension(""))
        .collect();
    files.retain(|path| !packed.contains(path));
    files
}

fn ids(records: &[Value]) -> Vec<String> {
    records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_under_load_loses_no_record_of_an_answer_and_doubles_none() {
    let azure = azure(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let record = sink(directory.path(), ", rotate: 64KiB, keep: 1000");
    for _ in 0..3 {
        let balancer = Arc::new(Balancer::start(&backends(&azure), &record).await);
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..16)
            .map(|n| {
                let (balancer, stop) = (Arc::clone(&balancer), Arc::clone(&stop));
                let body = if n % 2 == 0 { HELLO } else { STREAM };
                tokio::spawn(async move {
                    let mut got = Vec::new();
                    let Ok(mut client) = support::Client::try_connect(balancer.address).await else {
                        return got;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        let Some(reply) = client.try_post(CHAT, &[("api-key", KEY)], body.as_bytes()).await
                        else {
                            break;
                        };
                        // A stream is whole for an SDK with its last event.
                        if reply.whole || reply.text().ends_with(STREAM_END) {
                            got.push(reply.header("x-aoai-lb-request-id").unwrap().to_owned());
                        }
                    }
                    got
                })
            })
            .collect();
        let before = azure.hits("a");
        until("there is load", || azure.hits("a") > before + 300).await;
        balancer.signal("KILL");
        stop.store(true, Ordering::Relaxed);
        let mut got = Vec::new();
        for client in clients {
            got.extend(client.await.unwrap());
        }
        drop(balancer);
        // The next process finds what the last one left.
        let mut next = Balancer::start(&backends(&azure), &record).await;
        assert_eq!(next.chat().await.status, 200);
        assert_eq!(next.stop().await, 0);
        let records = ids(&all_records(directory.path()));
        let known: HashSet<&String> = records.iter().collect();
        let lost: Vec<_> = got.iter().filter(|id| !known.contains(id)).collect();
        assert!(lost.is_empty(), "{} of {} answers have no record", lost.len(), got.len());
        assert_eq!(records.len(), known.len(), "none is there twice");
        assert!(got.len() > 100, "{}", got.len());
        assert_eq!(std::fs::read_dir(directory.path().join("spool")).unwrap().count(), 0, "nothing waits");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_rotate_by_size_and_on_sighup_and_old_ones_are_compressed() {
    let azure = azure(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let record = sink(directory.path(), ", rotate: 64KiB, keep: 3");
    let balancer = Balancer::start(&backends(&azure), &record).await;
    let mut client = balancer.client().await;
    for n in 0..400 {
        let reply = client.post(CHAT, &[("api-key", KEY)], STREAM.as_bytes()).await;
        assert_eq!(reply.status, 200);
        if n % 50 == 0 {
            // Whoever reads along finds whole lines.
            let text = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap_or_default();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            assert!(whole.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
        }
    }
    let is_done = || {
        let files = files(directory.path());
        files.len() == 4
            && files[..3].iter().all(|path| path.extension().is_some_and(|ending| ending == "gz"))
    };
    until("old files are compressed, and three of them kept", is_done).await;
    let before = ids(&all_records(directory.path()));
    balancer.signal("HUP");
    until("a new file begins", || files(directory.path()).len() == 5 || !is_done()).await;
    client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
    until("its first record is there", || {
        std::fs::read_to_string(directory.path().join("records.jsonl"))
            .is_ok_and(|text| text.lines().count() == 1)
    })
    .await;
    // What was taken away by name is begun anew as well.
    std::fs::rename(directory.path().join("records.jsonl"), directory.path().join("taken.jsonl")).unwrap();
    client.post(CHAT, &[("api-key", KEY)], HELLO.as_bytes()).await;
    until("the file is there again", || directory.path().join("records.jsonl").exists()).await;
    assert!(before.len() > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_cannot_take_waits_for_it() {
    let azure = azure(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("records.jsonl");
    let full = Path::new("/dev/full");
    std::os::unix::fs::symlink(full, &target).unwrap();
    let record = sink(directory.path(), "");
    let mut balancer = Balancer::start(&backends(&azure), &record).await;
    for _ in 0..20 {
        assert_eq!(balancer.chat().await.status, 200, "a full disk refuses nobody");
    }
    balancer.until_said("records stay in the spool").await;
    // Nor does it delay a stop for long, and what waits survives it.
    assert_eq!(balancer.stop().await, 0);
    let mut balancer = Balancer::start(&backends(&azure), &record).await;
    balancer.chat().await;
    std::fs::remove_file(&target).unwrap();
    until("they are there", || all_records(directory.path()).len() == 21).await;
    assert_eq!(balancer.stop().await, 0);
    let ids = ids(&all_records(directory.path()));
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_spool_and_file_and_the_one_that_stays_inherits() {
    let azure = azure(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let record = sink(directory.path(), ", rotate: 64KiB, keep: 1000");
    let old = Balancer::start(&backends(&azure), &record).await;
    let mut new = Balancer::start(&backends(&azure), &record).await;
    let mut expected = 0;
    for _ in 0..10 {
        let (a, b) =
            tokio::join!(join_all((0..10).map(|_| old.chat())), join_all((0..10).map(|_| new.chat())));
        assert!(a.iter().chain(&b).all(|reply| reply.status == 200));
        expected += 20;
    }
    old.signal("KILL");
    until("all of them are there", || all_records(directory.path()).len() >= expected).await;
    new.chat().await;
    until("the old one's spool is claimed", || {
        std::fs::read_dir(directory.path().join("spool")).unwrap().count() <= 2
    })
    .await;
    assert_eq!(new.stop().await, 0);
    let ids = ids(&all_records(directory.path()));
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (expected + 1, expected + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_written_is_not() {
    let azure = azure(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let record = format!(
        "record: {{ content_limit: 200B, redact: ['sk-[A-Za-z0-9]+', '4[0-9]{{15}}'], jsonl: {{ path: {path}/records.jsonl }}, spool: {{ path: {path}/spool }} }}"
    );
    let mut balancer = Balancer::start(&backends(&azure), &record).await;
    // The simulated answer repeats the prompt; one secret is written with escapes, one lies across
    // the limit.
    let long = format!("sk-first s\\u006b-second 4111111111111111 {} sk-third", "x".repeat(150));
    for stream in ["", r#","stream":true"#] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]{stream}}}"#);
        let reply = balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await;
        assert!(reply.text().contains("sk-"), "the client's answer is its own: {}", reply.text());
    }
    assert_eq!(balancer.stop().await, 0);
    assert_eq!(all_records(directory.path()).len(), 2);
    let written = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap() + &balancer.log();
    for secret in ["sk-f", "sk-s", "second", "411111", "sk-t", "third", "u006b"] {
        assert!(!written.contains(secret), "{secret}: {written}");
    }
    for record in all_records(directory.path()) {
        assert!(
            record["prompt"].as_str().unwrap().contains("[redacted] [redacted] [redacted]"),
            "{record:#}"
        );
        assert!(record["completion"].as_str().unwrap().contains("[redacted]"), "{record:#}");
        assert_eq!(record["content_cut"], true);
        assert!(record["prompt"].as_str().unwrap().len() <= 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provisioned_a_spilled_over_and_a_cached_answer_can_be_told_apart() {
    let answers = |spilled: bool, cached: u32| {
        let body = format!(
            r#"{{"choices":[{{"message":{{"content":"hi"}}}}],"usage":{{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"prompt_tokens_details":{{"cached_tokens":{cached}}}}}}}"#
        );
        let headers = match spilled {
            true => {
                "Content-Type: application/json\nx-ms-spillover-from-deployment: gpt-4o-ptu\nx-ms-deployment-name: gpt-4o-standard"
            }
            false => "Content-Type: application/json\nx-ms-deployment-name: gpt-4o-ptu",
        };
        upstream::reply(200, headers, &body)
    };
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let resource = Upstream::start(move |_: &Request| match turn.fetch_add(1, Ordering::Relaxed) {
        0 => answers(false, 0),
        1 => answers(true, 0),
        _ => answers(false, 8),
    })
    .await;
    let entry =
        support::entry("ptu", &format!("http://{}", resource.address), "deployments: { gpt-4o: gpt-4o-ptu }");
    let balancer = Balancer::start(&entry, "").await;
    for _ in 0..3 {
        assert_eq!(balancer.chat().await.status, 200);
    }
    let records = balancer.records_of(3).await;
    let told: Vec<_> = records
        .iter()
        .map(|r| (r["upstream_deployment"].as_str().unwrap(), r["cached_tokens"].as_u64().unwrap()))
        .collect();
    assert_eq!(told, [("gpt-4o-ptu", 0), ("gpt-4o-standard", 0), ("gpt-4o-ptu", 8)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_and_pictures_are_recorded_by_size_and_digest() {
    const SOUND: &str = "RIFF....of a kind";
    let picture = "iVBORw0KGgo".repeat(200_000) + "AA==";
    let bytes = openssl::base64::decode_block(&picture).unwrap();
    let body = format!(
        r#"{{"created":1,"data":[{{"b64_json":"{picture}","revised_prompt":"a cat"}}],"usage":{{"input_tokens":5,"output_tokens":7,"total_tokens":12}}}}"#
    );
    let resource = Upstream::start(move |request: &Request| {
        let is_sound = request.head.contains("/audio/speech");
        let json = "Content-Type: application/json";
        if is_sound {
            upstream::reply(200, "Content-Type: audio/mpeg", SOUND)
        } else {
            upstream::reply(200, json, &body)
        }
    })
    .await;
    let balancer = Balancer::start(&resource.backend("a"), "").await;
    let ask = async |what: &str, body: &str| {
        let target = format!("/openai/deployments/gpt-4o/{what}?api-version=2024-10-21");
        assert_eq!(balancer.post(&target, &[("api-key", KEY)], body.as_bytes()).await.status, 200);
    };
    ask("audio/speech", r#"{"input":"say it","voice":"alloy"}"#).await;
    ask("images/generations", r#"{"prompt":"a cat"}"#).await;
    let records = balancer.records_of(2).await;
    let told = |operation: &str| {
        let record = records.iter().find(|record| record["operation"] == operation).unwrap();
        (serde_json::from_str::<Value>(record["completion"].as_str().unwrap()).unwrap(), record.clone())
    };
    let (sound, _) = told("audio");
    assert_eq!(sound, serde_json::json!({ "bytes": SOUND.len(), "sha256": support::sha256(SOUND) }));
    let (pictures, record) = told("images");
    assert_eq!(pictures[0]["b64_json"]["bytes"], bytes.len());
    assert_eq!(pictures[0]["revised_prompt"], "a cat");
    assert_eq!((&record["total_tokens"], &record["content_cut"]), (&12.into(), &false.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_streams_at_once_are_captured_whole_and_unchanged() {
    let resource = Resource {
        pace: Pace { first_byte: Duration::from_millis(20), between_events: Duration::from_millis(2) },
        ..Resource::new("a").key("a-key").deployment("gpt-4o", "gpt-4o-2024-11-20", Kind::Unlimited)
    };
    let azure = Simulator::start(vec![resource]).await.unwrap();
    azure.set_mood("a", Mood::Calm);
    let directory = tempfile::tempdir().unwrap();
    let balancer = Balancer::start(&backends(&azure), &sink(directory.path(), "")).await;
    let words = |n: usize| format!("stream {n} says {}", "word ".repeat(n % 7 + 1).trim_end());
    let replies = join_all((0..200).map(|n| {
        let body = format!(
            r#"{{"stream":true,"stream_options":{{"include_usage":true}},"messages":[{{"role":"user","content":"{}"}}]}}"#,
            words(n)
        );
        let balancer = &balancer;
        async move { balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await }
    }))
    .await;
    until("all records are there", || all_records(directory.path()).len() == 200).await;
    let records: HashMap<String, Value> = all_records(directory.path())
        .into_iter()
        .map(|r| (r["request_id"].as_str().unwrap().to_owned(), r))
        .collect();
    for (n, reply) in replies.iter().enumerate() {
        assert!(reply.whole && reply.text().ends_with(STREAM_END));
        let record = &records[reply.header("x-aoai-lb-request-id").unwrap()];
        let said: String = reply
            .text()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert!(said.contains(&words(n)), "{said}");
        assert_eq!(record["completion"], said.as_str());
        assert_eq!(record["usage_source"], "reported");
        assert_eq!(record["response_bytes"], reply.body.len());
    }
}
