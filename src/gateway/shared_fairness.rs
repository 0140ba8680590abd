//! Exchanges with other instances, once a second, what clients were charged in the queue, so that the queue is fair over
//! all instances.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::debug;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval};

use super::backend_queue::BackendQueue;
use crate::admission::queue::LineCharges;
use crate::config::RequestClass;
use crate::names::ClientName;
use crate::shared::{InstanceRegistry, SharedLink};

const TOPIC: &str = "queue";
const VERSION: u32 = 1;
const INTERVAL: Duration = Duration::from_secs(1);
/// A longer message is neither sent nor read.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;
/// What one message can charge or refund a client.
const MAX_TOKENS: i64 = 1_000_000_000_000;

/// Exchanges with other instances what clients were charged.
#[derive(Debug)]
pub struct FairnessExchange {
    link: Arc<SharedLink>,
    instances: Arc<InstanceRegistry>,
    queue: Arc<BackendQueue>,
    runtime: Handle,
    /// The sender in its messages, by which it ignores them.
    id: String,
    has_started: AtomicBool,
}

#[derive(Serialize, Deserialize)]
struct Message {
    version: u32,
    from: String,
    charges: Vec<ChargesOfLine>,
}

#[derive(Serialize, Deserialize)]
struct ChargesOfLine {
    line: String,
    class: String,
    /// Names and tokens.
    clients: Vec<(String, i64)>,
}

impl FairnessExchange {
    /// An exchange that adds the charges of others from now on, and publishes nothing before it has started.
    pub fn new(
        link: &Arc<SharedLink>,
        instances: &Arc<InstanceRegistry>,
        queue: &Arc<BackendQueue>,
        runtime: &Handle,
    ) -> Arc<Self> {
        let id = format!("{:016x}", fastrand::u64(..));
        let (own_id, own_queue) = (id.clone(), Arc::clone(queue));
        link.subscribe(TOPIC, move |payload| match parse_message(payload) {
            Some(message) if message.from == own_id => {}
            Some(message) => own_queue.add_charges_of_others(message.charges),
            None => debug!("shared.redis: a message about the queue is malformed or of another version"),
        });
        Arc::new(Self {
            link: Arc::clone(link),
            instances: Arc::clone(instances),
            queue: Arc::clone(queue),
            runtime: runtime.clone(),
            id,
            has_started: AtomicBool::new(false),
        })
    }

    /// Begins to publish charges, for as long as the process runs: a process that stops or is replaced still serves the
    /// requests that wait in it.
    pub fn start(self: &Arc<Self>) {
        if !self.has_started.swap(true, Ordering::AcqRel) {
            self.queue.collect_charges();
            self.runtime.spawn(Arc::clone(self).run());
        }
    }

    async fn run(self: Arc<Self>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Discarded if they cannot be published now: later they would mislead.
            let charges = self.queue.take_charges();
            if self.link.is_up()
                && self.instances.instances().list.len() > 1
                && let Some(message) = message_of(&self.id, charges)
            {
                self.link.publish(TOPIC, message);
            }
        }
    }
}

/// What others have charged, and the sender.
#[derive(Debug, PartialEq, Eq)]
struct ParsedMessage {
    from: String,
    charges: Vec<LineCharges>,
}

/// The message with these charges; `None` if there are none. If they are too many for one message, the largest are in it.
fn message_of(id: &str, charges: Vec<LineCharges>) -> Option<Vec<u8>> {
    let mut charges: Vec<_> = charges.into_iter().map(ChargesOfLine::new).collect();
    while !charges.is_empty() {
        let message = Message { version: VERSION, from: id.to_owned(), charges };
        // Numbers and strings alone cannot fail.
        let payload = serde_json::to_vec(&message).ok()?;
        if payload.len() <= MAX_MESSAGE_BYTES {
            return Some(payload);
        }
        charges = message.charges;
        for line in &mut charges {
            line.clients.truncate(line.clients.len() / 2);
        }
        charges.retain(|line| !line.clients.is_empty());
    }
    None
}

/// What a message says; `None` if it is not valid as a whole.
fn parse_message(payload: &[u8]) -> Option<ParsedMessage> {
    if payload.len() > MAX_MESSAGE_BYTES {
        return None;
    }
    let message: Message = serde_json::from_slice(payload).ok()?;
    if message.version != VERSION {
        return None;
    }
    let charges = message.charges.into_iter().map(ChargesOfLine::check).collect::<Option<_>>()?;
    Some(ParsedMessage { from: message.from, charges })
}

impl ChargesOfLine {
    /// The largest first.
    fn new(charges: LineCharges) -> Self {
        let in_range = |(client, tokens): (ClientName, i64)| {
            (client.as_str().to_owned(), tokens.clamp(-MAX_TOKENS, MAX_TOKENS))
        };
        let mut clients: Vec<_> = charges.clients.into_iter().map(in_range).collect();
        clients.sort_by_key(|(_, tokens)| Reverse(tokens.unsigned_abs()));
        Self { line: charges.line, class: charges.class.as_str().to_owned(), clients }
    }

    fn check(self) -> Option<LineCharges> {
        let class = RequestClass::parse(&self.class)?;
        let checked = |(client, tokens): (String, i64)| {
            (-MAX_TOKENS..=MAX_TOKENS).contains(&tokens).then(|| (ClientName::new(&client), tokens))
        };
        let clients = self.clients.into_iter().map(checked).collect::<Option<_>>()?;
        Some(LineCharges { line: self.line, class, clients })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charges(clients: &[(&str, i64)]) -> LineCharges {
        let clients = clients.iter().map(|(client, tokens)| (ClientName::new(client), *tokens)).collect();
        LineCharges { line: "gpt-4o".to_owned(), class: RequestClass::Batch, clients }
    }

    #[test]
    fn a_message_has_all_charges_the_largest_first() {
        let sent = vec![charges(&[("a", 5), ("b", -30), ("c", i64::MAX)])];
        let payload = message_of("one", sent).unwrap();
        let expected = r#"{"version":1,"from":"one","charges":[{"line":"gpt-4o","class":"batch","clients":[["c",1000000000000],["b",-30],["a",5]]}]}"#;
        assert_eq!(String::from_utf8(payload.clone()).unwrap(), expected);
        let received = charges(&[("c", MAX_TOKENS), ("b", -30), ("a", 5)]);
        let expected = ParsedMessage { from: "one".to_owned(), charges: vec![received] };
        assert_eq!(parse_message(&payload), Some(expected));
        assert_eq!(message_of("one", Vec::new()), None);
    }

    #[test]
    fn a_message_that_would_be_too_long_has_the_largest_charges() {
        let names: Vec<String> = (0..10_000).map(|number| format!("client-number-{number:020}")).collect();
        let all: Vec<_> = names.iter().zip(1..).map(|(name, tokens)| (name.as_str(), tokens)).collect();
        let payload = message_of("one", vec![charges(&all)]).unwrap();
        assert!(payload.len() <= MAX_MESSAGE_BYTES);
        let clients = parse_message(&payload).unwrap().charges.remove(0).clients;
        assert_eq!((clients.len(), clients[0].1, clients.last().unwrap().1), (5_000, 10_000, 5_001));
        let long = "x".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(message_of("one", vec![charges(&[(&long, 1)])]), None);
    }

    #[test]
    fn a_message_that_is_not_valid_as_a_whole_is_ignored() {
        let with = |version: &str, class: &str, tokens: &str| {
            format!(
                r#"{{"version":{version},"from":"x","charges":[{{"line":"a","class":"batch","clients":[["a",1]]}},{{"line":"a","class":"{class}","clients":[["b",{tokens}]]}}]}}"#
            )
        };
        assert!(parse_message(with("1", "batch", "1000000000000").as_bytes()).is_some());
        let long = with("1", "batch", "1") + &" ".repeat(MAX_MESSAGE_BYTES);
        for malformed in [
            with("2", "batch", "1"),
            with("1", "urgent", "1"),
            with("1", "batch", "1000000000001"),
            with("1", "batch", "-1000000000001"),
            with("1", "batch", "1e400"),
            with("1", "batch", "1.5"),
            with("1", "batch", "99999999999999999999"),
            with("1", "batch", "null"),
            with("1", "batch", "1]"),
            r#"{"version":1,"from":"x"}"#.to_owned(),
            "[".repeat(100_000),
            String::new(),
            long,
        ] {
            assert_eq!(parse_message(malformed.as_bytes()), None, "{malformed:.200}");
        }
        assert_eq!(parse_message(&[0xff, 0xfe]), None);
    }
}
