//! Records in Log Analytics: all of them, whatever happens to the service.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use support::ingestion::{Ingestion, SECRET, Temper};
use support::{Balancer, CHAT, HELLO, KEY, azure, backends, until};

fn record(ingestion: &Ingestion, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "record: {{ jsonl: {{ path: {directory}/records.jsonl }}, spool: {{ path: {directory}/spool }}, {} }}",
        ingestion.config()
    )
}

fn ids(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect()
}

async fn chats(balancer: &Balancer, count: usize) {
    let replies = join_all((0..count).map(|_| balancer.chat())).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_the_records_of_the_file() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let mut balancer = Balancer::start(&backends(&azure), &record(&ingestion, directory.path())).await;
    chats(&balancer, 30).await;
    until("all rows are there", || ingestion.count() == 30).await;
    assert_eq!(balancer.stop().await, 0);
    let file = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap();
    let mut lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut rows = ingestion.rows();
    let id = |row: &Value| row["request_id"].as_str().unwrap().to_owned();
    lines.sort_by_key(id);
    rows.sort_by_key(id);
    assert_eq!(rows, lines);
    let (calls, tokens, _) = ingestion.seen();
    assert!(tokens == 1 && calls <= 5, "{calls} calls, {tokens} tokens");
    assert_eq!(ingestion.strange(), Vec::<String>::new());
    assert!(!balancer.log().contains(SECRET) && !balancer.log().contains("token-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_cannot_take_now_waits_over_restarts_and_kills() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let config = record(&ingestion, directory.path());
    let mut expected = 0;
    // Down, overloaded, without the role, without a rule: one after the other, with a process each.
    let tempers = [
        Temper::Says(503, None),
        Temper::Says(429, Some("1")),
        Temper::Says(403, None),
        Temper::Says(404, None),
        Temper::Says(500, Some("soon")),
    ];
    for (n, temper) in tempers.into_iter().enumerate() {
        ingestion.set(temper);
        let mut balancer = Balancer::start(&backends(&azure), &config).await;
        chats(&balancer, 20).await;
        expected += 20;
        balancer.until_said("records stay in the spool").await;
        if n % 2 == 0 {
            balancer.signal("KILL");
        } else {
            assert_eq!(balancer.stop().await, 0);
        }
        assert_eq!(balancer.log().matches("records stay in the spool").count(), 1, "{}", balancer.log());
    }
    assert_eq!(ingestion.count(), 0);
    ingestion.set(Temper::Good);
    let balancer = Balancer::start(&backends(&azure), &config).await;
    chats(&balancer, 1).await;
    until("all rows are there", || {
        ids(&ingestion.rows()).iter().collect::<HashSet<_>>().len() == expected + 1
    })
    .await;
    // They are back while it runs as well, and under load.
    ingestion.set(Temper::Says(503, None));
    for _ in 0..50 {
        chats(&balancer, 20).await;
    }
    until("it is told", || {
        balancer.log().contains("do not take them") || balancer.log().contains("does not take them")
    })
    .await;
    ingestion.set(Temper::Good);
    until("all rows are there", || {
        ids(&ingestion.rows()).iter().collect::<HashSet<_>>().len() == expected + 1001
    })
    .await;
    balancer.until_said("delivered to Log Analytics again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_left_alone_for_as_long_as_it_asks() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let balancer = Balancer::start(&backends(&azure), &record(&ingestion, directory.path())).await;
    ingestion.set(Temper::Says(429, Some("3")));
    chats(&balancer, 1).await;
    until("it is refused", || ingestion.seen().0 == 1).await;
    ingestion.set(Temper::Good);
    until("the row is there", || ingestion.count() == 1).await;
    let times = ingestion.times();
    // Its own pauses begin with a second at most.
    assert!(times.len() == 2 && times[1] - times[0] >= Duration::from_millis(2_900), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_service_that_is_mute() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let config = record(&ingestion, directory.path());
    ingestion.set(Temper::Mute);
    let mut balancer = Balancer::start(&backends(&azure), &config).await;
    chats(&balancer, 5).await;
    until("it is called", || ingestion.seen().0 == 1).await;
    let begun = Instant::now();
    assert_eq!(balancer.stop().await, 0);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!balancer.log().contains("lost"), "{}", balancer.log());
    ingestion.set(Temper::Good);
    let _next = Balancer::start(&backends(&azure), &config).await;
    until("the rows are there", || ingestion.count() == 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_when_they_are_refused() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let balancer = Balancer::start(&backends(&azure), &record(&ingestion, directory.path())).await;
    chats(&balancer, 1).await;
    until("the first is there", || ingestion.count() == 1).await;
    ingestion.revoke();
    chats(&balancer, 1).await;
    until("the second is there", || ingestion.count() == 2).await;
    assert_eq!(ingestion.seen().1, 2, "one new token");
    assert!(!balancer.log().contains("stay in the spool"), "{}", balancer.log());
    // Nobody gives a token for a while.
    ingestion.refuse_tokens(true);
    ingestion.revoke();
    chats(&balancer, 1).await;
    balancer.until_said("401 (invalid_client)").await;
    ingestion.refuse_tokens(false);
    until("the third is there", || ingestion.count() == 3).await;
    assert!(!balancer.log().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_small_enough_and_halved_where_they_are_not() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let config = record(&ingestion, directory.path()).replace("record: {", "record: { content_limit: 4MiB,");
    let balancer = Balancer::start(&backends(&azure), &config).await;
    ingestion.set(Temper::Says(503, Some("1")));
    // Four megabytes of prompts; one is larger than a call by itself.
    let ask = async |size: usize| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(size));
        assert_eq!(balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes()).await.status, 200);
    };
    for _ in 0..20 {
        ask(200_000).await;
    }
    ask(1_500_000).await;
    ingestion.set(Temper::Good);
    until("all rows are there", || ingestion.count() >= 21).await;
    let (calls, _, largest) = ingestion.seen();
    assert!(largest <= 1_000_000 && calls < 40, "{calls} calls, the largest of {largest}");
    let rows = ingestion.rows();
    assert_eq!(ids(&rows).iter().collect::<HashSet<_>>().len(), 21);
    // Azure would cut them without a word.
    assert!(
        rows.iter().all(|row| row["content_cut"] == true && row["prompt"].as_str().unwrap().len() <= 64_000)
    );
    ingestion.set(Temper::AtMost(3));
    chats(&balancer, 20).await;
    until("all rows are there", || ids(&ingestion.rows()).iter().collect::<HashSet<_>>().len() == 41).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_never_taken_is_set_aside_alone() {
    let (azure, ingestion) = (azure(&["a"]).await, Ingestion::start().await);
    let directory = tempfile::tempdir().unwrap();
    let balancer = Balancer::start(&backends(&azure), &record(&ingestion, directory.path())).await;
    ingestion.set(Temper::Refuses("poison"));
    let bodies = [HELLO, r#"{"messages":[{"role":"user","content":"poison"}]}"#];
    let requests = (0..20).map(|n| {
        let body = bodies[usize::from(n == 7)];
        balancer.post(CHAT, &[("api-key", KEY)], body.as_bytes())
    });
    assert!(join_all(requests).await.iter().all(|reply| reply.status == 200));
    until("the others are there", || ingestion.count() == 19).await;
    let dead = directory.path().join("spool/dead-letters.jsonl");
    until("it is set aside", || dead.exists()).await;
    let text = std::fs::read_to_string(&dead).unwrap();
    assert!(text.lines().count() == 1 && text.contains("poison"), "{text}");
    balancer.until_said("refuses a record for good").await;
    assert!(!balancer.log().contains("poison"), "prompts do not reach the log");
}

/// The deployed table and stream have the record's fields, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_deployed_columns_are_the_fields_of_the_record() {
    let azure = azure(&["a"]).await;
    let balancer = Balancer::start(&backends(&azure), "").await;
    balancer.chat().await;
    let record = balancer.records_of(1).await.pop().unwrap();
    let text = balancer.path("records.jsonl");
    let line = std::fs::read_to_string(text).unwrap();
    // In their order, which a map does not keep.
    let mut fields: Vec<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_by_key(|name| line.find(&format!("\"{name}\":")).unwrap());
    let bicep = include_str!("../conf/azure/log-analytics.bicep");
    let list = bicep.split("var fields = [").nth(1).unwrap().split("\n]").next().unwrap();
    let columns: Vec<&str> =
        list.split("name: '").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
    assert_eq!(columns, fields);
}
