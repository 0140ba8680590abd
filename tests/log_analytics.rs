//! Delivery of records to Log Analytics, also while the service fails.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and print for the reader of a failure"
)]

mod support;

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
    let bicep = include_str!("../conf/azure/log-analytics.bicep");
    let list = bicep.split("var fields = [").nth(1).unwrap().split("\n]").next().unwrap();
    let columns: Vec<&str> =
        list.split("name: '").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
    assert_eq!(columns, fields);
}
