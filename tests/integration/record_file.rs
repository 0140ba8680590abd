//! The file of records: a record is appended to it at once, and others may lock it.

use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::support::{Balancer, Client, all_backends_yaml, start_simulator};

fn request_ids(balancer: &Balancer) -> Vec<String> {
    let records = balancer.records();
    records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect()
}

fn spool_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    files.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum()
}

#[tokio::test]
async fn a_file_that_can_be_written_gets_records_at_once_and_not_from_the_spool() {
    let azure = start_simulator(&["a"]).await;
    let balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    let mut expected = Vec::new();
    for _ in 0..50 {
        let response = balancer.post_chat().await;
        expected.push(response.header("x-aoai-lb-request-id").unwrap().to_owned());
    }
    balancer.wait_for_records(50).await;
    let mut written = request_ids(&balancer);
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    // Perhaps one of them, if the sink's thread looked at the file just then.
    let record_bytes = std::fs::metadata(balancer.path("records.jsonl")).unwrap().len() / 50;
    assert!(spool_bytes(&balancer.path("records-spool")) < 3 * record_bytes);
    let metrics =
        Client::connect(balancer.admin_address).await.get("/metrics", &[("Host", "localhost")]).await.text();
    for (sink, result) in [("jsonl", "delivered"), ("spool", "written")] {
        let metric = format!(r#"aoai_lb_records_total{{result="{result}",sink="{sink}"}} 50"#);
        assert!(metrics.contains(&metric), "{metric}");
    }
}

#[tokio::test]
async fn records_wait_in_the_spool_while_another_program_has_locked_the_file() {
    let azure = start_simulator(&["a"]).await;
    let mut balancer = Balancer::start(&all_backends_yaml(&azure), "").await;
    balancer.post_chat().await;
    balancer.wait_for_records(1).await;
    let file = std::fs::File::open(balancer.path("records.jsonl")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    for _ in 0..20 {
        assert_eq!(balancer.post_chat().await.status, 200);
    }
    balancer.wait_for_log("another program has locked it").await;
    assert_eq!(request_ids(&balancer).len(), 1);
    flock(&file, FlockOperation::Unlock).unwrap();
    balancer.wait_for_records(21).await;
    balancer.wait_for_log("records are written to").await;
    balancer.post_chat().await;
    balancer.wait_for_records(22).await;
    assert_eq!(balancer.stop().await, 0);
    let mut ids = request_ids(&balancer);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 22);
}
