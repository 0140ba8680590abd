//! The queue: how much may wait, and what waits.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::admission::queue::{Choice, RequestQueue};
use crate::config::{QueueConfig, RequestClass};
use crate::gateway::PoolKey;

/// How many deployments are listed at most: those for which most requests wait.
const MAX_LISTED_LINES: usize = 500;

/// The bounds of the queue, and the requests that wait in it.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct QueueStatus {
    /// How long a request waits at most.
    pub wait_ms: u64,
    /// How many requests may wait.
    pub requests: u64,
    /// The length of the bodies of those that wait together, in bytes.
    pub body_memory: u64,
    pub waiting: WaitingByClass,
    /// The deployments for which requests wait, the one with most first.
    pub lines: Vec<QueueLineStatus>,
}

/// How many requests wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct WaitingByClass {
    pub interactive: u64,
    pub standard: u64,
    pub batch: u64,
}

/// The requests that wait for one deployment.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct QueueLineStatus {
    /// The name that clients use, in lower case; `null` for calls that name no deployment.
    pub deployment: Option<String>,
    pub waiting: u64,
}

impl WaitingByClass {
    /// How many wait in all classes together.
    pub fn total(self) -> u64 {
        self.interactive.saturating_add(self.standard).saturating_add(self.batch)
    }
}

/// What waits in the queue; `None` if requests do not wait.
pub(in crate::admin) fn queue_status<L: Choice>(
    config: Option<QueueConfig>,
    queue: &RequestQueue<L>,
) -> Option<QueueStatus> {
    let QueueConfig { max_wait, max_requests, max_body_bytes } = config?;
    let waiting = |class| queue.waiting(class) as u64;
    let lines = queue.busy_lines();
    let mut lines: Vec<_> = lines.iter().map(|line| (line.waiting() as u64, line.name())).collect();
    lines.sort_by_key(|(waiting, name)| (Reverse(*waiting), *name));
    lines.truncate(MAX_LISTED_LINES);
    let no_deployment = PoolKey::DefaultBackend.to_string();
    let lines = lines.into_iter().map(|(waiting, name)| QueueLineStatus {
        deployment: (name != no_deployment).then(|| name.to_owned()),
        waiting,
    });
    Some(QueueStatus {
        wait_ms: u64::try_from(max_wait.as_millis()).unwrap_or(u64::MAX),
        requests: max_requests as u64,
        body_memory: max_body_bytes,
        waiting: WaitingByClass {
            interactive: waiting(RequestClass::Interactive),
            standard: waiting(RequestClass::Standard),
            batch: waiting(RequestClass::Batch),
        },
        lines: lines.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::admin::testing::TestQueue;
    use crate::config::RequestClass::{Batch, Interactive, Standard};

    #[test]
    fn what_waits_is_told_by_class_and_deployment_the_longest_line_first() {
        let config =
            QueueConfig { max_wait: Duration::from_millis(2_500), max_requests: 9, max_body_bytes: 1 << 20 };
        let mut queue = TestQueue::new();
        let told =
            |queue: &TestQueue| serde_json::to_value(queue_status(Some(config), &queue.queue)).unwrap();
        let expected = |waiting: [u64; 3], lines: Value| {
            let [interactive, standard, batch] = waiting;
            json!({
                "wait_ms": 2_500, "requests": 9, "body_memory": 1_048_576, "lines": lines,
                "waiting": { "interactive": interactive, "standard": standard, "batch": batch },
            })
        };
        assert_eq!(told(&queue), expected([0; 3], json!([])));
        let calls = PoolKey::DefaultBackend.to_string();
        for (line, class) in
            [("o3", Batch), (&calls, Interactive), ("gpt-4o", Batch), ("gpt-4o", Batch), ("o3", Standard)]
        {
            queue.join(line, class);
        }
        let lines = json!([
            { "deployment": "gpt-4o", "waiting": 2 },
            { "deployment": "o3", "waiting": 2 },
            { "deployment": null, "waiting": 1 },
        ]);
        assert_eq!(told(&queue), expected([1, 1, 3], lines));
        queue.leave_all();
        assert_eq!(told(&queue), expected([0; 3], json!([])));
        assert!(queue_status(None, &queue.queue).is_none());
    }
}
