//! What this instance shares with others: whether the server answers, and who is there.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::admin::wall_clock::format_rfc3339;
use crate::gateway::{ProbeLead, ProcessState, SharedRests};
use crate::shared::{Instance, Instances, LinkStatus};

/// A list of instances that is older than this is not what is there now: each is in it for five seconds.
const MAX_LIST_AGE: Duration = Duration::from_secs(5);
/// How many instances are listed at most.
const MAX_LISTED_INSTANCES: usize = 500;

/// The server of `shared`, and the instances that use it.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SharedStatus {
    pub up: bool,
    /// Why it is not up, or not all of it; `null` also before the first attempt has ended.
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
    /// When they were last seen; `null` if they were not yet.
    #[serde(default)]
    pub instances_seen: Option<String>,
    /// Whether that is what is there now.
    #[serde(default)]
    pub instances_current: bool,
    /// Who probes what is unavailable.
    #[serde(default)]
    pub probes: Vec<ProbeStatus>,
}

/// A part of a backend that is unavailable, and the instance that probes whether that is over.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct ProbeStatus {
    pub backend: String,
    /// `deployment`, `credential`, `operation` or `breaker`.
    pub part: String,
    /// Of the deployment or operation; empty for others, and for calls that name no deployment.
    pub name: String,
    /// The name of the instance; its id if it has none.
    pub instance: String,
    pub is_self: bool,
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
    /// Requests; `null`, as the next two, of an earlier version, and of an instance that has just ended.
    #[serde(default)]
    pub in_flight: Option<u64>,
    /// Requests that wait in its queue.
    #[serde(default)]
    pub queued: Option<u64>,
    /// The state of the whole, as it sees it.
    #[serde(default)]
    pub state: Option<String>,
    pub is_self: bool,
}

/// What is shared; `None` if this instance is alone.
pub(in crate::admin) fn shared_status(process: &ProcessState) -> Option<SharedStatus> {
    let shared = process.shared.get()?;
    let leads = process.shared_rests.get().map(SharedRests::leads).unwrap_or_default();
    let instances = shared.instances.instances();
    let (link, own_id) = (shared.link.status(), shared.instances.own_id());
    let status = status_of(link, &instances, own_id, &leads, SystemTime::now());
    let requests_limited_alone = process.limit_reporter.get().map_or(0, |reporter| reporter.limited_alone());
    Some(SharedStatus { requests_limited_alone, ..status })
}

fn status_of(
    link: LinkStatus,
    instances: &Instances,
    own_id: &str,
    leads: &[ProbeLead],
    now: SystemTime,
) -> SharedStatus {
    let LinkStatus { is_up, problem, since } = link;
    let format = |time: Option<SystemTime>| time.map(format_rfc3339);
    let to_status = |instance: &Instance| InstanceStatus {
        id: instance.id.clone(),
        name: instance.name.clone(),
        version: instance.version.clone(),
        since: format(instance.since),
        requests_per_second: instance.requests_per_second,
        in_flight: instance.in_flight,
        queued: instance.queued,
        state: instance.state.clone(),
        is_self: instance.is_self,
    };
    let to_probe = |lead: &ProbeLead| {
        let instance = instances.list.iter().find(|instance| instance.id == lead.instance);
        let name = instance.map(|instance| instance.name.clone()).filter(|name| !name.is_empty());
        ProbeStatus {
            backend: lead.backend.to_string(),
            part: lead.part.kind().to_owned(),
            name: lead.part.name().to_owned(),
            instance: name.unwrap_or_else(|| lead.instance.clone()),
            is_self: lead.instance == own_id,
        }
    };
    SharedStatus {
        up: is_up,
        problem,
        since: format(since),
        last_seen_count: instances.last_seen_count as u64,
        requests_limited_alone: 0,
        instances: instances.list.iter().take(MAX_LISTED_INSTANCES).map(to_status).collect(),
        instances_seen: format(instances.seen_at),
        instances_current: is_up && instances.seen_at.is_some_and(|seen_at| is_recent(seen_at, now)),
        probes: leads.iter().take(MAX_LISTED_INSTANCES).map(to_probe).collect(),
    }
}

/// Whether a list of this time is not too old. The clock may have been set back meanwhile.
fn is_recent(seen_at: SystemTime, now: SystemTime) -> bool {
    now.duration_since(seen_at).is_ok_and(|age| age <= MAX_LIST_AGE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::SharedPart;
    use crate::names::BackendName;

    #[test]
    fn the_instances_that_were_last_seen_are_told_with_what_is_wrong() {
        let instance = Instance {
            id: "1".to_owned(),
            name: "host/7".to_owned(),
            version: "0.1.0".to_owned(),
            since: None,
            requests_per_second: 2.5,
            in_flight: Some(4),
            queued: None,
            state: Some("healthy".to_owned()),
            is_self: true,
        };
        let link = LinkStatus {
            is_up: false,
            problem: Some("cannot".to_owned()),
            since: Some(SystemTime::UNIX_EPOCH),
        };
        let lead = |part, instance: &str| ProbeLead {
            backend: BackendName::new("a"),
            part,
            instance: instance.to_owned(),
        };
        let leads =
            [lead(SharedPart::Deployment("gpt-4o".to_owned()), "1"), lead(SharedPart::Credential, "unseen")];
        let instances =
            Instances { list: vec![instance], last_seen_count: 3, seen_at: Some(SystemTime::UNIX_EPOCH) };
        let seconds = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let status = status_of(link, &instances, "1", &leads, seconds(3));
        let expected = json!({
            "up": false, "problem": "cannot", "since": "1970-01-01T00:00:00.000Z", "last_seen_count": 3,
            "requests_limited_alone": 0,
            "instances": [{
                "id": "1", "name": "host/7", "version": "0.1.0", "since": null, "requests_per_second": 2.5,
                "in_flight": 4, "queued": null, "state": "healthy", "is_self": true,
            }],
            "instances_seen": "1970-01-01T00:00:00.000Z", "instances_current": false,
            "probes": [
                { "backend": "a", "part": "deployment", "name": "gpt-4o", "instance": "host/7", "is_self": true },
                { "backend": "a", "part": "credential", "name": "", "instance": "unseen", "is_self": false },
            ],
        });
        assert_eq!(serde_json::to_value(status).unwrap(), expected);
        let up = LinkStatus { is_up: true, ..LinkStatus::default() };
        for (now, expected) in [(0, true), (5, true), (6, false)] {
            let status = status_of(up.clone(), &instances, "1", &[], seconds(now));
            assert_eq!(status.instances_current, expected, "{now}");
        }
    }
}
