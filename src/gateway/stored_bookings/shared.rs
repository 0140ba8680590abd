//! Bookings that the server keeps for all instances.
//!
//! One task applies what happens to objects, in its order. While the server is away, it waits: budgets go on from what is known
//! then, and are corrected once the server is back.

use std::sync::Arc;
use std::time::Duration;

use log::debug;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::admission::limits::{Booked, ClientAccounts};
use crate::record::stored_bookings::{ObjectEnd, StoredObjectKey};
use crate::shared::{Script, SharedError, SharedLink, Value, cmd};

/// The version of a value.
const VERSION: u32 = 1;
/// Changes that wait for the server. What comes on top is dropped, and counts as estimated.
const MAX_WAITING_CHANGES: usize = 16 * 1024;
/// How long a booking is kept.
const LIFETIME: Duration = Duration::from_secs(2 * 86_400);
/// How long it is known that a booking was claimed: longer than any instance may still write it.
const CLAIMED_LIFETIME: Duration = Duration::from_secs(3600);
/// How long the server may take for a change.
const TIME_LIMIT: Duration = Duration::from_secs(1);
/// The pause after the server was not reached.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Claims a booking. `KEYS`: the object. `ARGV`: who claims it, and how many seconds that is known. The one that has claimed a
/// booking gets it again if it has missed the answer.
const CLAIM_SCRIPT: &str = r"
local value = redis.call('GET', KEYS[1])
if not value then return false end
local claimed_by, booking = string.match(value, '^claimed;(%x+);(.*)$')
if claimed_by then
  if claimed_by == ARGV[1] then return booking end
  return false
end
redis.call('SET', KEYS[1], 'claimed;' .. ARGV[1] .. ';' .. value, 'EX', ARGV[2])
return value
";

/// The bookings of all instances.
#[derive(Debug)]
pub(super) struct SharedBookings {
    changes: mpsc::Sender<Change>,
}

/// What happens to an object.
#[derive(Debug)]
enum Change {
    Made(StoredObjectKey, Booked),
    Ended(StoredObjectKey, ObjectEnd),
}

/// A booking as the server keeps it.
#[derive(Serialize, Deserialize)]
struct StoredValue<B> {
    version: u32,
    #[serde(flatten)]
    booked: B,
}

/// What applies changes.
struct Worker {
    link: Arc<SharedLink>,
    accounts: Arc<ClientAccounts>,
    claim: Script,
}

impl SharedBookings {
    pub(super) fn start(link: &Arc<SharedLink>, accounts: &Arc<ClientAccounts>, runtime: &Handle) -> Self {
        let (changes, receiver) = mpsc::channel(MAX_WAITING_CHANGES);
        let (link, accounts) = (Arc::clone(link), Arc::clone(accounts));
        let worker = Worker { link, accounts, claim: Script::new(CLAIM_SCRIPT) };
        runtime.spawn(worker.run(receiver));
        Self { changes }
    }

    pub(super) fn on_made(&self, object: StoredObjectKey, booked: Booked) {
        let _ = self.changes.try_send(Change::Made(object, booked));
    }

    pub(super) fn on_ended(&self, object: StoredObjectKey, end: ObjectEnd) {
        let _ = self.changes.try_send(Change::Ended(object, end));
    }
}

impl Worker {
    async fn run(self, mut changes: mpsc::Receiver<Change>) {
        while let Some(change) = changes.recv().await {
            let claimant = format!("{:016x}", fastrand::u64(..));
            loop {
                match self.apply(&change, &claimant).await {
                    Ok(()) => break,
                    Err(SharedError::Down | SharedError::Lost | SharedError::TimedOut(_)) => {
                        sleep(RETRY_DELAY).await;
                    }
                    Err(problem) => {
                        debug!("shared.redis: a background response counts as estimated: {problem}");
                        break;
                    }
                }
            }
        }
    }

    async fn apply(&self, change: &Change, claimant: &str) -> Result<(), SharedError> {
        match change {
            Change::Made(object, booked) => {
                let mut command = cmd("SET");
                command.arg(self.key(*object)).arg(to_text(booked));
                // Once more after a lost answer: somebody may have claimed it meanwhile.
                command.arg("NX").arg("EX").arg(LIFETIME.as_secs());
                self.link.run(&command, TIME_LIMIT).await?;
            }
            Change::Ended(object, end) => {
                let mut claim = self.claim.prepare_invoke();
                claim.key(self.key(*object)).arg(claimant).arg(CLAIMED_LIFETIME.as_secs());
                let reply = self.link.run_script(&claim, TIME_LIMIT).await?;
                if let Value::BulkString(text) = reply
                    && let Some(booked) = parse(&text)
                {
                    self.accounts.correct(&booked, end.final_use(booked.deployment().as_ref()));
                }
            }
        }
        Ok(())
    }

    fn key(&self, object: StoredObjectKey) -> String {
        self.link.keys().key(&format!("booking:{}", object.to_text()))
    }
}

fn to_text(booked: &Booked) -> String {
    // Numbers and strings alone cannot fail.
    serde_json::to_string(&StoredValue { version: VERSION, booked }).unwrap_or_default()
}

/// `None` if it is not understood: another version may have written it.
fn parse(text: &[u8]) -> Option<Booked> {
    let value: StoredValue<Booked> = serde_json::from_slice(text).ok()?;
    (value.version == VERSION).then_some(value.booked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_booking_is_read_as_it_was_written_and_another_version_is_not_understood() {
        let text = r#"{"version":1,"client":"a","deployment":null,"tokens":5,"cached_weight_permille":1000,"day":1,"month":2}"#;
        let booked = parse(text.as_bytes()).unwrap();
        assert_eq!(to_text(&booked), text);
        for other in [text.replace("\"version\":1", "\"version\":2"), String::new(), "{}".to_owned()] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
        let object = StoredObjectKey::of("resp_1");
        assert_eq!(StoredObjectKey::parse(&object.to_text()), Some(object));
    }
}
