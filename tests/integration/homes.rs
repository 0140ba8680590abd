//! Where objects live is remembered over restarts, kills and upgrades.

use crate::support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use aoai_lb::state::homes_log::{
    FILE_NAME, HomeEntry, HomeRecord, encode, header, read_header, read_records,
};
use serde_json::Value;
use support::{Balancer, listed_backends_yaml, send_signal_to, start_simulator, wait_until};

const HASH_KEY: [u8; 16] = *b"0123456789abcdef";

/// A log of this many entries.
fn log_of(entries: u64) -> Vec<u8> {
    let mut text = header(HASH_KEY).to_vec();
    for key in 1..=entries {
        let entry = HomeEntry { key, resource: 1, maker: 2, made_at: 3, used_at: 4, lags: true };
        encode(HomeRecord::Stored(entry), &mut text);
    }
    text
}

/// The keys in a log with the hash key of [`log_of`]; none if there is no such log.
fn keys_in(mut log: impl Read) -> BTreeSet<u64> {
    let mut keys = BTreeSet::new();
    if !matches!(read_header(&mut log), Ok(HASH_KEY)) {
        return keys;
    }
    read_records(&mut log, |record| match record {
        HomeRecord::Stored(entry) => _ = keys.insert(entry.key),
        HomeRecord::Forgotten(key) => _ = keys.remove(&key),
        HomeRecord::SnapshotEnd => {}
    })
    .unwrap();
    keys
}

fn keys_in_file(balancer: &Balancer) -> BTreeSet<u64> {
    std::fs::File::open(balancer.path("state").join(FILE_NAME)).map(keys_in).unwrap_or_default()
}

/// A balancer that has found this log at its start.
async fn start_with_log(log: &[u8]) -> Balancer {
    let azure = start_simulator(&["a", "b"]).await;
    let mut balancer = Balancer::start(&listed_backends_yaml(&azure), "").await;
    balancer.send_signal("KILL");
    balancer.wait_for_exit().await;
    std::fs::write(balancer.path("state").join(FILE_NAME), log).unwrap();
    balancer.start_again().await;
    balancer
}

/// What the running process tells a successor that asks for it.
fn told_to_a_successor(balancer: &Balancer) -> BTreeSet<u64> {
    let mut stream = UnixStream::connect(balancer.path("run/upgrade.sock.control")).unwrap();
    stream.write_all(b"\"follow_homes\"\n").unwrap();
    // Everything comes at once; then the connection stays open for what is learned later.
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut told = BTreeSet::new();
    assert_eq!(read_header(&mut stream).unwrap(), HASH_KEY);
    let mut bytes = [0; 32];
    loop {
        stream.read_exact(&mut bytes).unwrap();
        let mut is_complete = false;
        read_records(&mut &bytes[..], |record| match record {
            HomeRecord::Stored(entry) => _ = told.insert(entry.key),
            HomeRecord::Forgotten(_) => panic!("nothing was forgotten"),
            HomeRecord::SnapshotEnd => is_complete = true,
        })
        .unwrap();
        if is_complete {
            return told;
        }
    }
}

#[tokio::test]
async fn homes_outlive_an_upgrade_even_if_the_log_is_lost_and_then_a_kill() {
    let mut balancer = start_with_log(&log_of(1000)).await;
    let all: BTreeSet<u64> = (1..=1000).collect();
    assert_eq!(told_to_a_successor(&balancer), all);
    // The successor is told over a socket, and writes the log that is gone.
    std::fs::remove_file(balancer.path("state").join(FILE_NAME)).unwrap();
    assert!(balancer.run_upgrade_command().await.status.success());
    wait_until("the log is written anew", || keys_in_file(&balancer) == all).await;
    let pid = balancer.wait_until_single_process().await;
    assert!(send_signal_to("KILL", pid));
    wait_until("it is gone", || !support::is_process_alive(pid)).await;
    balancer.start_again().await;
    assert_eq!(told_to_a_successor(&balancer), all);
    assert_eq!(balancer.status().await["affinity"]["not_saved"], Value::Null);
    assert!(!balancer.log().contains("in memory only"), "{}", balancer.log());
}

#[tokio::test]
async fn homes_outlive_an_upgrade_without_a_state_directory() {
    let balancer = start_with_log(&log_of(10)).await;
    // From now on the directory cannot be used: its place is taken by a file.
    std::fs::rename(balancer.path("state"), balancer.path("state-before")).unwrap();
    std::fs::write(balancer.path("state"), "").unwrap();
    assert!(balancer.run_upgrade_command().await.status.success());
    assert_eq!(told_to_a_successor(&balancer), (1..=10).collect());
    let problem = balancer.status().await["affinity"]["not_saved"].clone();
    assert!(problem.as_str().unwrap().starts_with("cannot use "), "{problem}");
    let told = "ids of stored objects are remembered in memory only, until this process ends: cannot use";
    assert_eq!(balancer.log().matches(told).count(), 1, "{}", balancer.log());
}

#[tokio::test]
async fn a_report_of_an_earlier_process_is_added_and_a_broken_log_is_renamed() {
    let mut broken = log_of(3);
    broken[..64].fill(0);
    let balancer = start_with_log(&broken).await;
    balancer
        .wait_for_log(
            "homes.log cannot be used, so resources are asked for the objects in it: it does not begin",
        )
        .await;
    drop(balancer);

    let balancer = start_with_log(&log_of(3)).await;
    let mut stream = UnixStream::connect(balancer.path("run/upgrade.sock.control")).unwrap();
    stream.write_all(b"\"report_homes\"\n").unwrap();
    let mut reply = [0; 18];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(std::str::from_utf8(&reply).unwrap(), "\"ready_for_homes\"\n");
    stream.write_all(&log_of(5)).unwrap();
    drop(stream);
    wait_until("the report is in the log", || keys_in_file(&balancer) == (1..=5).collect()).await;
}

#[tokio::test]
async fn a_second_instance_reads_the_log_of_the_first_for_its_hash_key_only() {
    let first = start_with_log(&log_of(3)).await;
    let azure = start_simulator(&["a", "b"]).await;
    let directory = first.path("state").display().to_string();
    let server = format!("server: {{ drain_delay: 0s, state_directory: {directory} }}");
    let second = Balancer::start(&listed_backends_yaml(&azure), &server).await;
    second.wait_for_log(&format!("until this process ends: process {} uses {directory}", first.pid())).await;
    assert_eq!(told_to_a_successor(&second), BTreeSet::new());
    assert_eq!(keys_in_file(&first), (1..=3).collect());
}
