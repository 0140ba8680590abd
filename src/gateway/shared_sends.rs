//! Tells other instances how many attempts this one has sent to each deployment, and counts theirs: `balance: headroom`
//! estimates what all of them have used since the last response.
//!
//! A message has what was sent since the one before. One that is lost, or not understood, makes an estimate a little too
//! high until the next response reports what is left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use log::debug;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};

use super::shared_rests::Targets;
use crate::names::BackendName;
use crate::shared::{Shared, SharedLink};

/// The topic of these messages.
const TOPIC: &str = "sends";
/// The version of their format.
const VERSION: u32 = 1;
/// The longest message that is read.
const MAX_BYTES: usize = 256 * 1024;
/// How often an instance tells what it has sent, if it has sent anything.
const INTERVAL: Duration = Duration::from_millis(200);
/// No instance sends more than this to a deployment between two messages.
const MAX_SENDS: u64 = 10_000;

/// Shares what instances send.
#[derive(Debug)]
pub struct SharedSends {
    targets: Arc<ArcSwap<Targets>>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    v: u32,
    from: String,
    sent: Vec<Sent>,
}

/// What was sent to a deployment.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sent {
    backend: String,
    url: String,
    /// The resource's name for it, in lower case; empty for calls that name none.
    deployment: String,
    count: u64,
}

impl SharedSends {
    /// Begins to share. There is nothing to share before [`Self::set_targets`].
    pub fn start(shared: &Shared, runtime: &Handle) -> Self {
        let targets = Arc::<ArcSwap<Targets>>::default();
        let (heard_targets, own_id) = (Arc::clone(&targets), shared.instances.own_id().to_owned());
        shared.link.subscribe(TOPIC, move |bytes| {
            count_sends(&heard_targets.load(), &own_id, bytes);
        });
        let own_id = shared.instances.own_id().to_owned();
        runtime.spawn(tell_sends(Arc::clone(&shared.link), own_id, Arc::clone(&targets)));
        Self { targets }
    }

    /// From now on these are the backends whose deployments are balanced by their headroom.
    pub fn set_targets(&self, targets: Arc<Targets>) {
        self.targets.store(targets);
    }
}

/// Tells what this instance has sent, for as long as the process runs.
async fn tell_sends(link: Arc<SharedLink>, own_id: String, targets: Arc<ArcSwap<Targets>>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = HashMap::new();
    loop {
        ticks.tick().await;
        // What was sent while the server was away is not told later: it is in what backends report since.
        let sent = take_sends(&targets.load(), &mut told);
        if !sent.is_empty() && link.is_up() {
            let message = Message { v: VERSION, from: own_id.clone(), sent };
            // Text and numbers alone cannot fail.
            link.publish(TOPIC, serde_json::to_vec(&message).unwrap_or_default());
        }
    }
}

/// What has been sent since the last call. `told` has how much was sent to each deployment until then.
fn take_sends(targets: &Targets, told: &mut HashMap<(BackendName, String), u64>) -> Vec<Sent> {
    let mut sent = Vec::new();
    for target in targets.list() {
        for (deployment, health) in target.health.deployments() {
            let total = health.headroom.attempts_sent();
            let last = told.insert((target.name.clone(), deployment.clone()), total);
            let count = total.saturating_sub(last.unwrap_or(total));
            if count > 0 {
                let backend = target.name.to_string();
                sent.push(Sent { backend, url: target.url.clone(), deployment, count });
            }
        }
    }
    sent
}

/// Counts what another instance has sent.
fn count_sends(targets: &Targets, own_id: &str, bytes: &[u8]) {
    let message = Some(bytes).filter(|bytes| bytes.len() <= MAX_BYTES);
    let message = message.and_then(|bytes| serde_json::from_slice::<Message>(bytes).ok());
    let Some(message) = message.filter(|message| message.v == VERSION) else {
        debug!("shared.redis: a message about sent requests is not understood");
        return;
    };
    if message.from == own_id {
        return;
    }
    for Sent { backend, url, deployment, count } in message.sent {
        let target = targets.named(&backend).filter(|target| target.url == url);
        if let Some(health) = target.and_then(|target| target.health.find_deployment(&deployment)) {
            health.headroom.record_sends_elsewhere(count.min(MAX_SENDS));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::credentials::BackendCredential;
    use crate::gateway::shared_rests::Target;
    use crate::names::DeploymentName;
    use crate::routing::health::backend_health::{DeploymentHealth, HealthRegistry};

    fn targets(now: Instant) -> (Targets, Arc<DeploymentHealth>) {
        let name = BackendName::new("a");
        let health = HealthRegistry::new(now).get_or_create_backend(&name);
        let deployment = health.get_or_create_deployment(Some(&DeploymentName::parse("GPT-4o").unwrap()));
        let target = Target {
            name,
            url: "https://a.b".to_owned(),
            health,
            credential: Arc::new(BackendCredential::fixed_for_test("key")),
            first_deployment: None,
            max_cooldown: Duration::ZERO,
            max_open: Duration::ZERO,
        };
        (Targets::new(std::iter::once(target)), deployment)
    }

    #[test]
    fn what_was_sent_is_told_once() {
        let now = Instant::now();
        let (targets, deployment) = targets(now);
        let mut told = HashMap::new();
        deployment.headroom.record_send(now);
        assert_eq!(take_sends(&targets, &mut told), [], "what was sent before is not known to be recent");
        (0..3).for_each(|_| _ = deployment.headroom.record_send(now));
        deployment.headroom.record_sends_elsewhere(50);
        let sent = |count| Sent {
            backend: "a".to_owned(),
            url: "https://a.b".to_owned(),
            deployment: "gpt-4o".to_owned(),
            count,
        };
        assert_eq!(take_sends(&targets, &mut told), [sent(3)]);
        assert_eq!(take_sends(&targets, &mut told), []);
    }

    #[test]
    fn only_what_is_understood_and_means_the_same_deployment_counts() {
        let now = Instant::now();
        let (targets, deployment) = targets(now);
        let message = |version: u32, from: &str, url: &str, deployment: &str, count: serde_json::Value| {
            let sent = json!([{ "backend": "a", "url": url, "deployment": deployment, "count": count }]);
            json!({ "v": version, "from": from, "sent": sent }).to_string()
        };
        for (text, expected) in [
            (message(1, "2", "https://a.b", "gpt-4o", json!(7)), 7),
            (message(1, "2", "https://a.b", "gpt-4o", json!(u64::MAX)), MAX_SENDS),
            (message(1, "1", "https://a.b", "gpt-4o", json!(7)), 0),
            (message(2, "2", "https://a.b", "gpt-4o", json!(7)), 0),
            (message(1, "2", "https://c.d", "gpt-4o", json!(7)), 0),
            (message(1, "2", "https://a.b", "other", json!(7)), 0),
            (message(1, "2", "https://a.b", "gpt-4o", json!(-7)), 0),
            (String::new(), 0),
            ("[]".to_owned(), 0),
        ] {
            let before = deployment.headroom.attempts_sent_elsewhere();
            count_sends(&targets, "1", text.as_bytes());
            assert_eq!(deployment.headroom.attempts_sent_elsewhere() - before, expected, "{text}");
        }
        assert_eq!(deployment.headroom.attempts_sent(), 0);
    }
}
