//! What clients have used of their budgets outlives stops, kills and upgrades.

use crate::support;

use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use support::{
    Balancer, is_process_alive, listed_backends_yaml, send_signal_to, start_simulator, wait_until,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Reports tokens that `team-a` has used, as a predecessor of the running process does.
async fn report(balancer: &Balancer, tokens: u64) {
    let mut stream =
        BufReader::new(UnixStream::connect(balancer.path("run/upgrade.sock.control")).await.unwrap());
    let addition = json!({
        "client": "team-a", "deployment": null, "day": today(), "day_tokens": tokens,
        // Later than any month: it does not pass while the test runs.
        "month": 30_000, "month_tokens": tokens,
    });
    let message = json!({ "report_budgets": { "additions": [addition] } });
    stream.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    assert_eq!(answer, "\"budgets_counted\"\n");
}

fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400
}

/// The tokens of the month in the file.
fn saved_tokens(balancer: &Balancer) -> u64 {
    let text = std::fs::read_to_string(balancer.path("state/budgets.log")).unwrap_or_default();
    let last = text.lines().rfind(|line| line.contains("team-a")).unwrap_or("{}");
    serde_json::from_str::<Value>(last).unwrap()["month_tokens"].as_u64().unwrap_or_default()
}

#[tokio::test]
async fn what_is_used_outlives_a_stop_a_kill_and_an_upgrade() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    assert!(!balancer.path("state/budgets.log").exists(), "nothing is used yet");
    report(&balancer, 1).await;
    assert_eq!(balancer.stop().await, 0);
    assert_eq!(saved_tokens(&balancer), 1);

    balancer.start_again().await;
    report(&balancer, 10).await;
    wait_until("it is saved", || saved_tokens(&balancer) == 11).await;
    // Without a chance to write anything.
    balancer.send_signal("KILL");
    balancer.start_again().await;

    report(&balancer, 100).await;
    assert!(balancer.run_upgrade_command().await.status.success());
    report(&balancer, 1000).await;
    wait_until("it is saved", || saved_tokens(&balancer) == 1111).await;
    let pid = balancer.wait_until_single_process().await;
    report(&balancer, 10_000).await;
    assert!(send_signal_to("TERM", pid));
    wait_until("the successor has ended", || !is_process_alive(pid)).await;
    assert_eq!(saved_tokens(&balancer), 11_111);
    assert!(!balancer.log().contains("kept in memory only"), "{}", balancer.log());
}
