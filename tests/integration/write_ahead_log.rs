//! Records over a kill of the process, with a write-ahead log in memory and without one.

use crate::record::{STREAM_END, read_all_records, record_yaml, request_ids};
use crate::support;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aoai_lb::demo::Simulator;
use support::traffic::BackgroundTraffic;
use support::{
    Balancer, CHAT_BODY, CHAT_TARGET, CLIENT_KEY, STREAM_BODY, TEST_TIMEOUT, all_backends_yaml,
    memory_directory, start_simulator, wait_until,
};

/// A balancer whose records are in `directory`, with this runtime directory, which outlives it.
async fn start(azure: &Simulator, directory: &Path, runtime_directory: &Path) -> Balancer {
    let variables = [
        ("RUNTIME_DIRECTORY", runtime_directory.display().to_string()),
        ("RUNTIME_DIRECTORY_PRESERVE", "yes".to_owned()),
    ];
    let record_block = record_yaml(directory, ", rotate: 64KiB, keep: 1000");
    Balancer::start_with_environment(&variables, &all_backends_yaml(azure), &record_block).await
}

fn logs_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "records")).collect()
}

/// Sends chats and streams until the process is killed. Returns the ids of those whose responses are complete.
async fn kill_under_load(azure: &Simulator, balancer: &Arc<Balancer>) -> Vec<String> {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..16)
        .map(|index| {
            let (balancer, stop) = (Arc::clone(balancer), Arc::clone(&stop));
            let body = if index % 2 == 0 { CHAT_BODY } else { STREAM_BODY };
            tokio::spawn(async move {
                let mut answered_ids = Vec::new();
                let Ok(mut client) = support::Client::try_connect(balancer.address).await else {
                    return answered_ids;
                };
                while !stop.load(Ordering::Relaxed) {
                    let Some(response) =
                        client.try_post(CHAT_TARGET, &[("api-key", CLIENT_KEY)], body.as_bytes()).await
                    else {
                        break;
                    };
                    // For an SDK a stream is complete with its last event.
                    if response.is_complete || response.text().ends_with(STREAM_END) {
                        answered_ids.push(response.header("x-aoai-lb-request-id").unwrap().to_owned());
                    }
                }
                answered_ids
            })
        })
        .collect();
    let before = azure.request_count("a");
    wait_until("300 more requests have reached the backend", || azure.request_count("a") > before + 300)
        .await;
    balancer.send_signal("KILL");
    stop.store(true, Ordering::Relaxed);
    let mut answered_ids = Vec::new();
    for client in clients {
        answered_ids.extend(client.await.unwrap());
    }
    answered_ids
}

/// Kills a balancer under load and starts another one. Returns whether some records were in the log only.
async fn kill_and_recover(azure: &Simulator, directory: &Path, runtime_directory: &Path) -> bool {
    let balancer = Arc::new(start(azure, directory, runtime_directory).await);
    let answered_ids = kill_under_load(azure, &balancer).await;
    let written = request_ids(&read_all_records(directory));
    let only_in_log = answered_ids.iter().find(|id| !written.contains(id));
    if let Some(id) = only_in_log {
        let story = find(&balancer, runtime_directory, id);
        assert!(story.contains("memory (waiting to be written)"), "{story}");
    }
    drop(balancer);
    // The next process delivers what the last one left.
    let mut next = start(azure, directory, runtime_directory).await;
    assert_eq!(next.post_chat().await.status, 200);
    assert_eq!(next.stop().await, 0);
    let records = request_ids(&read_all_records(directory));
    let distinct_ids: HashSet<&String> = records.iter().collect();
    let missing: Vec<_> = answered_ids.iter().filter(|id| !distinct_ids.contains(id)).collect();
    assert!(missing.is_empty(), "{} of {} answers have no record", missing.len(), answered_ids.len());
    assert_eq!(records.len(), distinct_ids.len(), "expected no record twice");
    assert!(answered_ids.len() > 100, "{}", answered_ids.len());
    assert_eq!(fs::read_dir(directory.join("spool")).unwrap().count(), 0, "of the spool");
    assert!(logs_in(runtime_directory).is_empty());
    only_in_log.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_under_load_neither_loses_nor_duplicates_records() {
    let azure = start_simulator(&["a"]).await;
    let (directory, runtime_directory) = (tempfile::tempdir().unwrap(), memory_directory());
    let (mut rounds, mut was_only_in_log) = (0, false);
    // A kill between two writes of the file leaves records in the log.
    while rounds < 3 || !was_only_in_log {
        was_only_in_log |= kill_and_recover(&azure, directory.path(), runtime_directory.path()).await;
        rounds += 1;
        assert!(rounds < 20, "expected that a kill leaves records that are in the log only");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_a_kill_under_load_loses_nothing_either() {
    let azure = start_simulator(&["a"]).await;
    let directory = tempfile::tempdir().unwrap();
    // Not in memory: the balancer says so.
    let on_disk = Path::new("/proc");
    for _ in 0..2 {
        assert!(!kill_and_recover(&azure, directory.path(), on_disk).await);
    }
    let balancer = start(&azure, directory.path(), on_disk).await;
    assert!(balancer.log().contains("no write-ahead log in /proc: the directory is not in memory"));
}

/// A log as a process leaves it that was killed: for this spool, with these records in its first half.
fn killed_log(spool: &Path, records: &[&str]) -> Vec<u8> {
    let spool = spool.to_str().unwrap().as_bytes();
    let mut bytes =
        [b"aoailbw1".as_slice(), &u32::try_from(spool.len()).unwrap().to_le_bytes(), spool].concat();
    bytes.resize(8 * 1024, 0);
    for record in records {
        let length = u32::try_from(record.len()).unwrap();
        bytes.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
        bytes.extend(record.as_bytes());
    }
    bytes.extend([0; 8]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_is_written_unless_it_is_in_the_file_already() {
    let azure = start_simulator(&["a"]).await;
    let (directory, runtime_directory) = (tempfile::tempdir().unwrap(), memory_directory());
    let record = |id: &str| format!("{{\"time\":\"2026-11-28T00:00:00.000000Z\",\"request_id\":\"{id}\"}}");
    let file = directory.path().join("records.jsonl");
    fs::write(&file, record("written") + "\n").unwrap();
    let spool = directory.path().join("spool");
    // The file cannot hold its segments at first.
    fs::write(&spool, "").unwrap();
    let log = runtime_directory.path().join("1-1-1.records");
    fs::write(&log, killed_log(&spool, &[&record("written"), &record("missing")])).unwrap();
    let other_log = runtime_directory.path().join("2-2-2.records");
    fs::write(&other_log, killed_log(Path::new("/another/spool"), &[&record("another")])).unwrap();
    let balancer = start(&azure, directory.path(), runtime_directory.path()).await;
    balancer.wait_for_log("what a killed process left in memory").await;
    assert!(log.exists());
    fs::remove_file(&spool).unwrap();
    wait_until("the log is gone", || !log.exists()).await;
    wait_until("what was missing is written", || read_all_records(directory.path()).len() == 2).await;
    assert_eq!(request_ids(&read_all_records(directory.path())), ["written", "missing"]);
    assert!(other_log.exists(), "it is of another spool");
}

/// What `aoai-lb find` prints of a request.
fn find(balancer: &Balancer, runtime_directory: &Path, id: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoai-lb"));
    command.args(["find", id, "-c"]).arg(balancer.path("aoai-lb.yaml"));
    let output = command.env("RUNTIME_DIRECTORY", runtime_directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_is_in_the_file_soon_and_no_log_is_left() {
    let azure = start_simulator(&["a"]).await;
    let (directory, runtime_directory) = (tempfile::tempdir().unwrap(), memory_directory());
    let mut balancer = start(&azure, directory.path(), runtime_directory.path()).await;
    let has_records = |count| read_all_records(directory.path()).len() == count;
    assert!(!logs_in(runtime_directory.path()).is_empty(), "expected a log");
    for count in 1..=3 {
        assert_eq!(balancer.post_chat().await.status, 200);
        // Nothing else happens that would wake the writer.
        wait_until("the record is in the file", || has_records(count)).await;
    }
    // Somebody tidies up: the next log is another one.
    let deleted = logs_in(runtime_directory.path());
    deleted.iter().for_each(|path| fs::remove_file(path).unwrap());
    let mut sent = 3;
    let deadline = Instant::now() + TEST_TIMEOUT;
    while logs_in(runtime_directory.path()).len() < deleted.len() {
        assert!(Instant::now() < deadline, "expected another log");
        assert_eq!(balancer.post_chat().await.status, 200);
        sent += 1;
    }
    wait_until("all records are in the file", || has_records(sent)).await;
    // A successor has logs of its own.
    let traffic = BackgroundTraffic::start(balancer.address);
    wait_until("the load runs", || traffic.started_requests() > 50).await;
    let before_upgrade = logs_in(runtime_directory.path());
    let output = balancer.run_upgrade_command().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counts = traffic.stop().await;
    assert_eq!(counts.failures, [""; 0]);
    balancer.wait_until_single_process().await;
    wait_until("all records are in the file", || has_records(sent + counts.records())).await;
    let after_upgrade = logs_in(runtime_directory.path());
    assert!(!after_upgrade.is_empty());
    assert!(before_upgrade.iter().all(|log| !after_upgrade.contains(log)), "expected other logs");
}
