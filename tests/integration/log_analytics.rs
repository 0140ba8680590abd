//! Delivery of records to Log Analytics, also while the service fails.

use crate::support;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use support::ingestion::{CLIENT_SECRET, IngestionBehaviour, LogIngestionService};
use support::{Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, all_backends_yaml, start_simulator, wait_until};

fn record_yaml(ingestion: &LogIngestionService, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "record: {{ jsonl: {{ path: {directory}/records.jsonl }}, spool: {{ path: {directory}/spool }}, {} }}",
        ingestion.log_analytics_yaml()
    )
}

fn request_ids(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect()
}

async fn post_chats(balancer: &Balancer, count: usize) {
    let responses = join_all((0..count).map(|_| balancer.post_chat())).await;
    assert!(responses.iter().all(|response| response.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_rows_equal_the_records_in_the_file() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let mut balancer =
        Balancer::start(&all_backends_yaml(&azure), &record_yaml(&ingestion, directory.path())).await;
    post_chats(&balancer, 30).await;
    wait_until("all rows are delivered", || ingestion.row_count() == 30).await;
    assert_eq!(balancer.stop().await, 0);
    let file = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap();
    let mut lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut rows = ingestion.rows();
    let id = |row: &Value| row["request_id"].as_str().unwrap().to_owned();
    lines.sort_by_key(id);
    rows.sort_by_key(id);
    assert_eq!(rows, lines);
    let (calls, tokens, _) = ingestion.call_statistics();
    assert!(tokens == 1 && calls <= 5, "{calls} calls, {tokens} tokens");
    assert_eq!(ingestion.unexpected_requests(), Vec::<String>::new());
    assert!(!balancer.log().contains(CLIENT_SECRET) && !balancer.log().contains("token-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn undelivered_records_survive_restarts_and_kills_in_the_spool() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let record_block = record_yaml(&ingestion, directory.path());
    let mut expected = 0;
    // The service is down, overloaded, denies access, and has no such rule: one process for each.
    let behaviours = [
        IngestionBehaviour::RespondsWith(503, None),
        IngestionBehaviour::RespondsWith(429, Some("1")),
        IngestionBehaviour::RespondsWith(403, None),
        IngestionBehaviour::RespondsWith(404, None),
        IngestionBehaviour::RespondsWith(500, Some("soon")),
    ];
    for (index, behaviour) in behaviours.into_iter().enumerate() {
        ingestion.set_behaviour(behaviour);
        let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
        post_chats(&balancer, 20).await;
        expected += 20;
        balancer.wait_for_log("records stay in the spool").await;
        // A response waits for its record for 20 ms only; what is in the file is in the spool.
        wait_until("all records are written", || {
            let file = std::fs::read_to_string(directory.path().join("records.jsonl"));
            file.is_ok_and(|text| text.lines().count() == expected)
        })
        .await;
        if index % 2 == 0 {
            balancer.send_signal("KILL");
        } else {
            assert_eq!(balancer.stop().await, 0);
        }
        assert_eq!(balancer.log().matches("records stay in the spool").count(), 1, "{}", balancer.log());
    }
    assert_eq!(ingestion.row_count(), 0);
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    let balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    post_chats(&balancer, 1).await;
    wait_until("all rows are delivered", || {
        request_ids(&ingestion.rows()).iter().collect::<HashSet<_>>().len() == expected + 1
    })
    .await;
    // The service fails and recovers under load, too.
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(503, None));
    for _ in 0..50 {
        post_chats(&balancer, 20).await;
    }
    wait_until("the log reports that records are not accepted", || {
        balancer.log().contains("does not accept them")
    })
    .await;
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    wait_until("all rows are delivered", || {
        request_ids(&ingestion.rows()).iter().collect::<HashSet<_>>().len() == expected + 1001
    })
    .await;
    balancer.wait_for_log("delivered to Log Analytics again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_of_the_service_is_respected() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let balancer =
        Balancer::start(&all_backends_yaml(&azure), &record_yaml(&ingestion, directory.path())).await;
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(429, Some("3")));
    post_chats(&balancer, 1).await;
    wait_until("the call is refused", || ingestion.call_statistics().0 == 1).await;
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    wait_until("the row is delivered", || ingestion.row_count() == 1).await;
    let times = ingestion.call_times();
    // The sink's own backoff starts at one second at most.
    assert!(times.len() == 2 && times[1] - times[0] >= Duration::from_millis(2_900), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_a_service_that_does_not_respond() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let record_block = record_yaml(&ingestion, directory.path());
    ingestion.set_behaviour(IngestionBehaviour::NeverResponds);
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    post_chats(&balancer, 5).await;
    wait_until("the service is called", || ingestion.call_statistics().0 == 1).await;
    let start = Instant::now();
    assert_eq!(balancer.stop().await, 0);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(!balancer.log().contains("lost"), "{}", balancer.log());
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    let _next_balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    wait_until("all rows are delivered", || ingestion.row_count() == 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_is_renewed() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let balancer =
        Balancer::start(&all_backends_yaml(&azure), &record_yaml(&ingestion, directory.path())).await;
    post_chats(&balancer, 1).await;
    wait_until("the first row is delivered", || ingestion.row_count() == 1).await;
    ingestion.revoke_tokens();
    post_chats(&balancer, 1).await;
    wait_until("the second row is delivered", || ingestion.row_count() == 2).await;
    assert_eq!(ingestion.call_statistics().1, 2, "expected one new token");
    assert!(!balancer.log().contains("stay in the spool"), "{}", balancer.log());
    // The token endpoint fails for a while.
    ingestion.reject_token_requests(true);
    ingestion.revoke_tokens();
    post_chats(&balancer, 1).await;
    balancer.wait_for_log("401 (invalid_client)").await;
    ingestion.reject_token_requests(false);
    wait_until("the third row is delivered", || ingestion.row_count() == 3).await;
    assert!(!balancer.log().contains(CLIENT_SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_stay_below_the_size_limit_and_are_split_after_a_413() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let record_block =
        record_yaml(&ingestion, directory.path()).replace("record: {", "record: { content_limit: 4MiB,");
    let balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(503, Some("1")));
    // Four megabytes of prompts, one of which alone exceeds the limit of a call.
    let post_prompt_of = async |size: usize| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(size));
        assert_eq!(balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await.status, 200);
    };
    for _ in 0..20 {
        post_prompt_of(200_000).await;
    }
    post_prompt_of(1_500_000).await;
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    wait_until("all rows are delivered", || ingestion.row_count() >= 21).await;
    let (calls, _, largest_call_bytes) = ingestion.call_statistics();
    assert!(
        largest_call_bytes <= 1_000_000 && calls < 40,
        "{calls} calls, the largest of {largest_call_bytes}"
    );
    let rows = ingestion.rows();
    assert_eq!(request_ids(&rows).iter().collect::<HashSet<_>>().len(), 21);
    // Azure would truncate longer fields silently.
    assert!(
        rows.iter().all(|row| row["content_cut"] == true && row["prompt"].as_str().unwrap().len() <= 64_000)
    );
    ingestion.set_behaviour(IngestionBehaviour::AcceptsAtMostRows(3));
    post_chats(&balancer, 20).await;
    wait_until("all rows are delivered", || {
        request_ids(&ingestion.rows()).iter().collect::<HashSet<_>>().len() == 41
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_always_rejected_goes_to_the_dead_letters_alone() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    let balancer =
        Balancer::start(&all_backends_yaml(&azure), &record_yaml(&ingestion, directory.path())).await;
    ingestion.set_behaviour(IngestionBehaviour::RejectsRowsContaining("poison"));
    let bodies = [CHAT_BODY, r#"{"messages":[{"role":"user","content":"poison"}]}"#];
    let requests = (0..20).map(|index| {
        let body = bodies[usize::from(index == 7)];
        balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes())
    });
    assert!(join_all(requests).await.iter().all(|response| response.status == 200));
    wait_until("the other rows are delivered", || ingestion.row_count() == 19).await;
    let dead_letters = directory.path().join("spool/dead-letters.jsonl");
    wait_until("the rejected row is written to the dead letters", || dead_letters.exists()).await;
    let text = std::fs::read_to_string(&dead_letters).unwrap();
    assert!(text.lines().count() == 1 && text.contains("poison"), "{text}");
    balancer.wait_for_log("rejects a record permanently").await;
    assert!(!balancer.log().contains("poison"), "expected no prompt in the log");
}

/// The table and the stream of the Bicep file have exactly the fields of the record.
#[tokio::test(flavor = "multi_thread")]
async fn the_columns_in_the_bicep_file_match_the_record_fields() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    balancer.post_chat().await;
    let record = balancer.wait_for_records(1).await.pop().unwrap();
    let text = balancer.path("records.jsonl");
    let line = std::fs::read_to_string(text).unwrap();
    // Fields of attempts have names of their own, or the same.
    let (before, attempts) = line.split_once("\"attempts\":[").unwrap();
    let line = format!("{before}\"attempts\":{}", attempts.split_once(']').unwrap().1);
    // In the order of the file, since the parsed map does not keep it.
    let mut fields: Vec<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_by_key(|name| line.find(&format!("\"{name}\":")).unwrap());
    let bicep = include_str!("../../conf/azure/log-analytics.bicep");
    let list = bicep.split("var fields = [").nth(1).unwrap().split("\n]").next().unwrap();
    let columns: Vec<&str> =
        list.split("name: '").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
    assert_eq!(columns, fields);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_for_each_sink_what_waits_and_why() {
    let (azure, ingestion) = (start_simulator(&["a"]).await, LogIngestionService::start().await);
    let directory = tempfile::tempdir().unwrap();
    ingestion.set_behaviour(IngestionBehaviour::RespondsWith(403, None));
    let record_block = record_yaml(&ingestion, directory.path());
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    post_chats(&balancer, 3).await;
    let sink = |status: &Value, name: &str| {
        let sinks = status["sinks"].as_array().unwrap();
        sinks.iter().find(|sink| sink["sink"] == name).unwrap_or_else(|| panic!("{name}: {sinks:?}")).clone()
    };
    let is_failing = |status: &Value| {
        let (file, table) = (sink(status, "jsonl"), sink(status, "log_analytics"));
        file["backlog_records"] == 0
            && table["backlog_records"] == 3
            && table["failing_since"].is_string()
            && table["backlog_seconds"].as_u64() >= Some(1)
    };
    balancer.wait_for_status("records wait for Log Analytics", is_failing).await;
    let status = balancer.status().await;
    let names: Vec<&Value> = status["sinks"].as_array().unwrap().iter().map(|sink| &sink["sink"]).collect();
    assert_eq!(names, ["spool", "jsonl", "log_analytics"]);
    let table = sink(&status, "log_analytics");
    assert!(table["last_error"].as_str().unwrap().starts_with("403: its identity needs the role"), "{table}");
    assert!(table["last_delivery"].is_null() && table["backlog_bytes"].as_u64() > Some(500), "{table}");
    for name in ["spool", "jsonl"] {
        let working = sink(&status, name);
        assert!(working["last_delivery"].is_string(), "{working}");
        for key in ["failing_since", "last_error", "last_error_at", "backlog_seconds"] {
            assert!(working[key].is_null(), "{name}: {key}: {working}");
        }
    }
    let metrics = async |balancer: &Balancer| {
        let mut admin = support::Client::connect(balancer.admin_address).await;
        admin.get("/metrics", &[("Host", "localhost")]).await.text()
    };
    let text = metrics(&balancer).await;
    for (name, is_waiting) in [("spool", false), ("jsonl", false), ("log_analytics", true)] {
        let sample = format!("aoai_lb_record_backlog_seconds{{sink=\"{name}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap();
        assert_eq!(value.parse::<f64>().unwrap() > 0.5, is_waiting, "{name}: {value}");
    }
    let url = format!("http://{}", balancer.admin_address);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    let output = command.args(["status", "--admin", &url]).output().await.unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("records do not reach log_analytics since 20"), "{shown}");

    // The next process knows what its predecessor has left, and delivers it.
    assert_eq!(balancer.stop().await, 0);
    let balancer = Balancer::start(&all_backends_yaml(&azure), &record_block).await;
    balancer
        .wait_for_status("the records of the earlier process are counted", |status| {
            let table = sink(status, "log_analytics");
            table["backlog_records"] == 3 && table["failing_since"].is_string()
        })
        .await;
    ingestion.set_behaviour(IngestionBehaviour::Normal);
    balancer
        .wait_for_status("the records are delivered", |status| {
            let table = sink(status, "log_analytics");
            table["backlog_records"] == 0 && table["failing_since"].is_null()
        })
        .await;
    let table = sink(&balancer.status().await, "log_analytics");
    assert!(table["last_delivery"].is_string() && table["last_error"].is_string(), "{table}");
    assert_eq!(
        (&table["backlog_bytes"], &table["dropped"], &table["dead_letters"]),
        (&0.into(), &0.into(), &0.into())
    );
    // Records that the service rejects for good.
    ingestion.set_behaviour(IngestionBehaviour::RejectsRowsContaining("poison"));
    let body = CHAT_BODY.replace("hello", "poison");
    balancer.post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await;
    balancer
        .wait_for_status("the record is a dead letter", |status| {
            sink(status, "log_analytics")["dead_letters"] == 1
        })
        .await;
    let text = balancer.status().await["sinks"].to_string();
    assert!(!text.contains(CLIENT_SECRET) && !text.contains("token-") && !text.contains("poison"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_that_files_of_records_cannot_be_written() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    // Where a directory would have to be, there is a file.
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.display();
    let record =
        format!("record: {{ jsonl: {{ path: {file}/records.jsonl }}, spool: {{ path: {file}/spool }} }}");
    let balancer = Balancer::start(&all_backends_yaml(&azure), &record).await;
    post_chats(&balancer, 2).await;
    balancer
        .wait_for_status("both fail", |status| {
            let sinks = status["sinks"].as_array().unwrap();
            sinks.iter().all(|sink| sink["failing_since"].is_string()) && sinks[0]["dropped"] == 2
        })
        .await;
    let status = balancer.status().await;
    let (spool, jsonl) = (&status["sinks"][0], &status["sinks"][1]);
    assert_eq!((&spool["sink"], &jsonl["sink"]), (&"spool".into(), &"jsonl".into()));
    assert_eq!(spool["dropped_last_15_minutes"], 2);
    assert!(spool["last_error"].as_str().unwrap().starts_with("cannot write to its directory: "), "{spool}");
    assert!(jsonl["last_error"].as_str().unwrap().starts_with("cannot write to its file: "), "{jsonl}");
}
