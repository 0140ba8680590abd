//! What this instance shares with others: whether the server answers, and who is there.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::admin::wall_clock::format_rfc3339;
use crate::gateway::shared_limits::LimitReporter;
use crate::shared::{Instance, Instances, LinkStatus, Shared};

/// How many instances are listed at most.
const MAX_LISTED_INSTANCES: usize = 500;

/// The server of `shared`, and the instances that use it.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SharedStatus {
    pub up: bool,
    /// Why it is not up; `null` also before the first attempt has ended.
    pub problem: Option<String>,
    /// Since when it is up or not.
    pub since: Option<String>,
    /// How many instances there were when they were last seen.
    pub last_seen_count: u64,
    /// How many requests were compared with this instance's part of their limits, because the server did not answer in time.
    #[serde(default)]
    pub requests_limited_alone: u64,
    /// Those that were last seen, this one first.
    pub instances: Vec<InstanceStatus>,
}

/// An instance.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct InstanceStatus {
    pub id: String,
    pub name: String,
    pub version: String,
    /// When it started.
    pub since: Option<String>,
    /// In the last ten seconds.
    pub requests_per_second: f64,
    pub is_self: bool,
}

/// What is shared; `None` if this instance is alone.
pub(in crate::admin) fn shared_status(
    shared: Option<&Shared>,
    limit_reporter: Option<&Arc<LimitReporter>>,
) -> Option<SharedStatus> {
    let shared = shared?;
    let limited_alone = limit_reporter.map_or(0, |reporter| reporter.limited_alone());
    Some(status_of(shared.link.status(), &shared.instances.instances(), limited_alone))
}

fn status_of(link: LinkStatus, instances: &Instances, requests_limited_alone: u64) -> SharedStatus {
    let LinkStatus { is_up, problem, since } = link;
    let format = |time: Option<SystemTime>| time.map(format_rfc3339);
    let to_status = |instance: &Instance| InstanceStatus {
        id: instance.id.clone(),
        name: instance.name.clone(),
        version: instance.version.clone(),
        since: format(instance.since),
        requests_per_second: instance.requests_per_second,
        is_self: instance.is_self,
    };
    SharedStatus {
        up: is_up,
        problem,
        since: format(since),
        last_seen_count: instances.last_seen_count as u64,
        requests_limited_alone,
        instances: instances.list.iter().take(MAX_LISTED_INSTANCES).map(to_status).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_instances_that_were_last_seen_are_told_with_what_is_wrong() {
        assert!(shared_status(None, None).is_none());
        let instance = Instance {
            id: "1".to_owned(),
            name: "host/7".to_owned(),
            version: "0.1.0".to_owned(),
            since: None,
            requests_per_second: 2.5,
            is_self: true,
        };
        let link = LinkStatus {
            is_up: false,
            problem: Some("cannot".to_owned()),
            since: Some(SystemTime::UNIX_EPOCH),
        };
        let status = status_of(link, &Instances { list: vec![instance], last_seen_count: 3 }, 4);
        let expected = json!({
            "up": false, "problem": "cannot", "since": "1970-01-01T00:00:00.000Z", "last_seen_count": 3,
            "requests_limited_alone": 4,
            "instances": [{
                "id": "1", "name": "host/7", "version": "0.1.0", "since": null, "requests_per_second": 2.5,
                "is_self": true,
            }],
        });
        assert_eq!(serde_json::to_value(status).unwrap(), expected);
    }
}
