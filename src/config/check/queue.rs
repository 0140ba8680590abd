//! Reads and checks `queue`.

use std::time::Duration;

use crate::config::schema::{QueueConfig, RequestsConfig, RetryConfig};
use crate::config::yaml::YamlMapping;

const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_BODY_BYTES: u64 = 256 * 1024 * 1024;

/// Reads the block; `Some(None)` if there is none.
pub(super) fn read_queue(
    root: &YamlMapping<'_, '_>,
    requests: Option<&RequestsConfig>,
    retry: Option<&RetryConfig>,
) -> Option<Option<QueueConfig>> {
    let body_memory = requests.map_or(u64::MAX, |requests| requests.max_total_buffered_bytes);
    let deadline = retry.map_or(Duration::MAX, |retry| retry.retry_start_time_limit);
    root.read_optional("queue", |node| {
        let map = node.read_mapping(&["wait", "requests", "body_memory"])?;
        let max_wait = map.read_or("wait", DEFAULT_MAX_WAIT, |node| {
            let wait = node.read_positive_duration()?;
            if wait > deadline {
                node.report_warning("is longer than retry.deadline, which ends the wait before");
            }
            Some(wait)
        });
        let max_requests =
            map.read_or("requests", 1000, |node| usize::try_from(node.read_integer(1..=1_000_000)?).ok());
        let max_body_bytes = map.read_or("body_memory", DEFAULT_MAX_BODY_BYTES.min(body_memory), |node| {
            let bytes = node.read_byte_size()?;
            if bytes > body_memory {
                node.report_warning("is more than requests.body_memory, which it is a part of");
            }
            Some(bytes)
        });
        Some(QueueConfig {
            max_wait: max_wait?,
            max_requests: max_requests?,
            max_body_bytes: max_body_bytes?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{assert_errors, parse_valid};

    fn queue_of(block: &str) -> (Option<QueueConfig>, Vec<String>) {
        let checked = parse_valid(block);
        (checked.config.queue, checked.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn without_the_block_nobody_waits() {
        assert_eq!(queue_of("").0, None);
        let defaults =
            QueueConfig { max_wait: Duration::from_secs(5), max_requests: 1000, max_body_bytes: 256 << 20 };
        assert_eq!(queue_of("queue: {}").0, Some(defaults));
        let all = queue_of("queue: { wait: 300ms, requests: 7, body_memory: 1MiB }");
        let expected =
            QueueConfig { max_wait: Duration::from_millis(300), max_requests: 7, max_body_bytes: 1 << 20 };
        assert_eq!(all, (Some(expected), Vec::new()));
        let part = queue_of("requests: { body_memory: 100MiB, max_body: 10MiB }\nqueue: {}");
        assert_eq!(part.0.map(|queue| queue.max_body_bytes), Some(100 << 20));
    }

    #[test]
    fn bounds_that_other_settings_make_pointless_are_told() {
        let (_, warnings) = queue_of("retry: { deadline: 3s }\nqueue: { wait: 4s, body_memory: 100GiB }");
        assert_eq!(
            warnings,
            [
                "queue.wait: is longer than retry.deadline, which ends the wait before",
                "queue.body_memory: is more than requests.body_memory, which it is a part of"
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_errors(&[
            ("queue: { waits: 5s }", &["queue.waits: unknown key; did you mean `wait`?"]),
            ("queue: { requests: 0 }", &["queue.requests: must be a whole number from 1 to 1000000"]),
            ("queue: { wait: 0s }", &["queue.wait: must be longer than 0s"]),
        ]);
    }
}
