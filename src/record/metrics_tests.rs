//! Which requests metrics count, and how.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::azure::parse_target;
use crate::config::RequestClass;
use crate::record::testing::answered_exchange;

#[test]
fn only_requests_that_waited_in_the_queue_are_counted_by_their_class() {
    let metrics = Metrics::new();
    let queued =
        |class, ms| FinishedExchange { class, queued: Duration::from_millis(ms), ..answered_exchange() };
    for exchange in [
        queued(Some(RequestClass::Batch), 7),
        queued(Some(RequestClass::Batch), 400),
        queued(Some(RequestClass::Interactive), 0),
        queued(None, 60_001),
    ] {
        metrics.record_exchange(&exchange, None, None);
    }
    let text = metrics.to_prometheus_text(&Registry::new());
    let samples: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("aoai_lb_queue_wait_seconds")).collect();
    for sample in [
        r#"_bucket{class="batch",le="0.005"} 0"#,
        r#"_bucket{class="batch",le="0.01"} 1"#,
        r#"_bucket{class="batch",le="0.5"} 2"#,
        r#"_count{class="batch"} 2"#,
        r#"_bucket{class="standard",le="60"} 0"#,
        r#"_count{class="standard"} 1"#,
    ] {
        assert!(samples.contains(&sample), "{sample}\n{samples:#?}");
    }
    assert!(!samples.iter().any(|sample| sample.contains("interactive")), "{samples:#?}");
}

#[test]
fn turns_are_requests_and_their_websocket_has_no_duration() {
    let metrics = Metrics::new();
    let target = parse_target(b"/openai/v1/responses", false).unwrap();
    let target = Some(Arc::new(target));
    let socket = FinishedExchange {
        client_status: Some(101),
        duration: Duration::from_hours(1),
        target: target.clone(),
        ..answered_exchange()
    };
    let turn =
        || FinishedExchange { socket_id: Some("018".into()), target: target.clone(), ..answered_exchange() };
    let failed = FinishedExchange { outcome: ExchangeOutcome::Failed, ..turn() };
    for exchange in [socket, turn(), turn(), failed] {
        metrics.record_exchange(&exchange, None, None);
    }
    let text = metrics.to_prometheus_text(&Registry::new());
    for sample in [
        r#"aoai_lb_websocket_turns_total{operation="responses",outcome="answered"} 2"#,
        r#"aoai_lb_websocket_turns_total{operation="responses",outcome="failed"} 1"#,
        r#"aoai_lb_websocket_turns_total{operation="realtime",outcome="answered"} 0"#,
        r#"aoai_lb_request_duration_seconds_count{operation="responses"} 3"#,
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}\n{text}");
    }
    let steps = metrics.statistics.snapshot(Instant::now()).steps;
    let counts = steps.into_iter().flatten().map(|step| (step.finished_requests, step.failed_requests));
    assert_eq!(counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1)), (3, 1));
}
