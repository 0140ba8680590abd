//! Tests of the queue's limits.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::admission::client::Client;
use crate::record::exchange::CapturedRequest;
use crate::record::testing::answered_exchange;

const MIB: usize = 1024 * 1024;

/// An exchange of this client whose prompt takes so much memory.
fn queued_exchange(client: &Arc<Client>, prompt_bytes: usize) -> QueuedExchange {
    let exchange = FinishedExchange {
        client: Some(Arc::clone(client)),
        captured_request: Some(CapturedRequest {
            body: Bytes::from(vec![b'x'; prompt_bytes]),
            content_type: "application/json".to_owned(),
            prompt_parts: None,
        }),
        ..answered_exchange()
    };
    QueuedExchange::new(Box::new(exchange), CapturePolicy::default(), None)
}

fn client_named(name: &str) -> Arc<Client> {
    let mut client = Client::unrestricted();
    client.name = Some(ClientName::new(name));
    Arc::new(client)
}

/// Takes everything out of the queue: for each client, the exchanges with and without content.
fn take_all(queue: &ExchangeQueue) -> HashMap<String, (usize, usize)> {
    let mut taken = Vec::new();
    queue.take_ready(usize::MAX, &mut taken);
    let mut counts = HashMap::<String, (usize, usize)>::new();
    let mut charges = Vec::new();
    for queued in taken {
        let (exchange, _, _, charge) = queued.into_parts();
        let name = exchange.client.as_ref().unwrap().name.as_ref().unwrap().to_string();
        let (with_content, without_content) = counts.entry(name).or_default();
        *(if exchange.is_content_dropped { without_content } else { with_content }) += 1;
        charges.push(charge);
    }
    queue.release(&mut charges);
    assert!(queue.is_idle() && queue.lock().shares.is_empty(), "expected that all charges are released");
    counts
}

#[test]
fn a_full_queue_lightens_the_client_that_holds_most_and_keeps_all_records() {
    let queue = ExchangeQueue::default();
    let (heavy, calm) = (client_named("heavy"), client_named("calm"));
    let mut lightened = 0;
    for index in 0..1_000 {
        let (_, dropped) = queue.push(queued_exchange(&heavy, MIB), false);
        assert!(dropped.records.is_empty());
        assert!(dropped.largest_client.is_none_or(|name| name.as_str() == "heavy"));
        lightened += dropped.lightened_count;
        if index % 10 == 0 {
            let (_, dropped) = queue.push(queued_exchange(&calm, MIB / 4), index % 20 == 0);
            assert!(dropped.largest_client.is_none_or(|name| name.as_str() == "heavy"));
            lightened += dropped.lightened_count;
        }
        assert!(queue.lock().charged_bytes <= MAX_QUEUED_BYTES);
    }
    while let Ok(Some(slow)) = queue.take_slow(Duration::ZERO) {
        assert!(!slow.exchange.is_content_dropped);
        assert!(queue.push_prepared(slow).records.is_empty());
    }
    let counts = take_all(&queue);
    assert_eq!(counts["calm"], (100, 0));
    let (with_content, without_content) = counts["heavy"];
    assert_eq!(with_content + without_content, 1_000);
    assert_eq!(without_content as u64, lightened);
    assert!(with_content >= 130, "expected that no more is dropped than necessary: {with_content}");
}

#[test]
fn records_are_dropped_last_and_first_those_of_the_client_that_holds_most() {
    let queue = ExchangeQueue::default();
    let (heavy, calm) = (client_named("heavy"), client_named("calm"));
    for _ in 0..50 {
        queue.push(queued_exchange(&calm, 100), false);
    }
    let bare_bytes = queued_exchange(&heavy, 0).charge.bytes;
    let (mut pushed, mut lost) = (0, 0);
    while lost == 0 {
        let (_, dropped) = queue.push(queued_exchange(&heavy, 10), false);
        pushed += 1;
        lost = dropped.records.len();
        assert!(dropped.records.iter().all(|record| record.charge.client == heavy.name));
        assert!(pushed * bare_bytes < 2 * MAX_QUEUED_BYTES, "expected a limit");
    }
    let counts = take_all(&queue);
    assert_eq!(counts["calm"].0 + counts["calm"].1, 50);
    assert_eq!(counts["heavy"].0 + counts["heavy"].1 + lost, pushed);
}

#[test]
fn a_single_exchange_of_any_size_is_taken() {
    let queue = ExchangeQueue::default();
    let (_, dropped) = queue.push(queued_exchange(&client_named("heavy"), MAX_QUEUED_BYTES + MIB), false);
    assert!(dropped.records.is_empty() && dropped.lightened_count == 0);
    assert_eq!(take_all(&queue)["heavy"], (1, 0));
}
