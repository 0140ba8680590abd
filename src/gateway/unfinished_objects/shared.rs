//! Objects that the server remembers for all instances.
//!
//! One task applies what happens to objects, in its order. While the server is away, an end counts at the instance that has made
//! the object: its record has the tokens, and budgets are corrected once the server is back. At another instance it does not
//! count, and the next response that shows it may.

use std::sync::Arc;
use std::time::Duration;

use log::debug;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::admission::limits::ClientAccounts;
use crate::record::stored_objects::{ObjectEnd, StoredObjectKey, UnfinishedObject};
use crate::shared::{Script, SharedError, SharedLink, Value, cmd};

/// The version of a value.
const VERSION: u32 = 1;
/// Changes that wait for the server. What comes on top is dropped: it counts as estimated.
const MAX_WAITING_CHANGES: usize = 16 * 1024;
/// How long the server remembers an object, and a claim to one. It knows every claim to an object that was made so recently.
pub(super) const LIFETIME: Duration = Duration::from_secs(2 * 86_400);
/// How long the server may take for a change.
const TIME_LIMIT: Duration = Duration::from_secs(1);
/// How long a record waits for the answer to a claim.
const CLAIM_TIME_LIMIT: Duration = Duration::from_millis(250);
/// The pause after the server was not reached.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Instances tell each other which objects were claimed.
const TAKEN_TOPIC: &str = "ended-objects";

/// Claims an object. `KEYS`: the object. `ARGV`: the claimant, and for how many seconds the claim is remembered. The claimant
/// gets the object again if it has missed the answer; another one gets an empty text.
const CLAIM_SCRIPT: &str = r"
local value = redis.call('GET', KEYS[1])
if not value then return false end
local claimed_by, object = string.match(value, '^claimed;(%x+);(.*)$')
if claimed_by then
  if claimed_by == ARGV[1] then return object end
  return ''
end
redis.call('SET', KEYS[1], 'claimed;' .. ARGV[1] .. ';' .. value, 'EX', ARGV[2])
return value
";

/// Gives a claim back. `KEYS`: the object. `ARGV`: who has claimed it, and how many seconds it is remembered.
const RELEASE_SCRIPT: &str = r"
local value = redis.call('GET', KEYS[1])
local claimed_by, object = string.match(value or '', '^claimed;(%x+);(.*)$')
if claimed_by == ARGV[1] then redis.call('SET', KEYS[1], object, 'EX', ARGV[2]) end
return false
";

/// The objects of all instances.
#[derive(Debug)]
pub(super) struct SharedObjects {
    link: Arc<SharedLink>,
    runtime: Handle,
    changes: mpsc::Sender<Change>,
}

/// The answer to a claim.
#[derive(Debug)]
pub(super) enum Claim {
    /// This instance has seen the end of this object first.
    Granted(UnfinishedObject),
    /// Another one has.
    Taken,
    /// The server does not know the object: no instance has made it, or the server has lost or forgotten it.
    Unknown,
    /// The server is away, or too slow.
    NotAnswered,
}

/// What happens to an object.
#[derive(Debug)]
enum Change {
    /// This instance has seen its end, and waits for the answer.
    Claimed(StoredObjectKey, oneshot::Sender<Claim>),
    Repeated(RepeatedChange),
}

/// What is repeated until the server answers.
#[derive(Debug)]
enum RepeatedChange {
    /// An object was made, and the server is to remember this.
    Made(StoredObjectKey, String),
    /// This instance has seen its end, and the record has its tokens already.
    Counted(StoredObjectKey, UnfinishedObject, ObjectEnd),
    /// A claim of this instance was granted too late.
    GivenBack(StoredObjectKey),
}

/// An object as the server keeps it.
#[derive(Serialize, Deserialize)]
struct StoredValue<T> {
    version: u32,
    #[serde(flatten)]
    object: T,
}

/// What applies changes.
struct Worker {
    link: Arc<SharedLink>,
    accounts: Arc<ClientAccounts>,
    claim: Script,
    release: Script,
}

impl SharedObjects {
    /// `on_taken` is called when an instance, this one or another, has seen the end of an object first.
    pub(super) fn start(
        link: &Arc<SharedLink>,
        accounts: &Arc<ClientAccounts>,
        runtime: &Handle,
        on_taken: impl Fn(StoredObjectKey) + Send + Sync + 'static,
    ) -> Self {
        link.subscribe(TAKEN_TOPIC, move |message| {
            let key = std::str::from_utf8(message).ok().and_then(StoredObjectKey::parse);
            key.into_iter().for_each(&on_taken);
        });
        let (changes, receiver) = mpsc::channel(MAX_WAITING_CHANGES);
        let worker = Worker {
            link: Arc::clone(link),
            accounts: Arc::clone(accounts),
            claim: Script::new(CLAIM_SCRIPT),
            release: Script::new(RELEASE_SCRIPT),
        };
        runtime.spawn(worker.run(receiver));
        Self { link: Arc::clone(link), runtime: runtime.clone(), changes }
    }

    pub(super) fn on_made(&self, key: StoredObjectKey, object: &UnfinishedObject) {
        let _ = self.changes.try_send(Change::Repeated(RepeatedChange::Made(key, to_text(object))));
    }

    /// Claims an object whose end was seen. Waits a moment for the answer: only for threads that serve no requests.
    pub(super) fn claim(&self, key: StoredObjectKey) -> Claim {
        let (answer, mut answers) = oneshot::channel();
        if !self.link.is_up() || self.changes.try_send(Change::Claimed(key, answer)).is_err() {
            return Claim::NotAnswered;
        }
        let answered = self.runtime.block_on(async { timeout(CLAIM_TIME_LIMIT, &mut answers).await });
        // What is granted later is given back.
        answers.close();
        let claim = answered.map_or_else(|_| answers.try_recv().ok(), Result::ok);
        claim.unwrap_or(Claim::NotAnswered)
    }

    /// Corrects budgets once the server answers, unless another instance has seen the end first.
    pub(super) fn settle_later(&self, key: StoredObjectKey, object: UnfinishedObject, end: ObjectEnd) {
        let _ = self.changes.try_send(Change::Repeated(RepeatedChange::Counted(key, object, end)));
    }
}

impl Worker {
    async fn run(self, mut changes: mpsc::Receiver<Change>) {
        while let Some(change) = changes.recv().await {
            let claimant = format!("{:016x}", fastrand::u64(..));
            match change {
                Change::Claimed(key, answer) => self.answer(key, &claimant, answer).await,
                Change::Repeated(change) => self.apply_until_answered(&change, &claimant).await,
            }
        }
    }

    async fn apply_until_answered(&self, change: &RepeatedChange, claimant: &str) {
        while let Err(problem) = self.apply(change, claimant).await
            && is_worth_repeating(&problem)
        {
            sleep(RETRY_DELAY).await;
        }
    }

    async fn apply(&self, change: &RepeatedChange, claimant: &str) -> Result<(), SharedError> {
        match change {
            RepeatedChange::Made(key, text) => self.remember(*key, text).await,
            RepeatedChange::Counted(key, object, end) => self.settle(*key, claimant, object, end).await,
            RepeatedChange::GivenBack(key) => self.release(*key, claimant).await,
        }
    }

    async fn answer(&self, key: StoredObjectKey, claimant: &str, answer: oneshot::Sender<Claim>) {
        let claimed = self.claim(key, claimant).await;
        let may_be_granted = match &claimed {
            Ok(claim) => matches!(claim, Claim::Granted(_)),
            Err(problem) => !matches!(problem, SharedError::Down),
        };
        let is_answered = claimed.is_ok();
        let is_heard = answer.send(claimed.unwrap_or(Claim::NotAnswered)).is_ok();
        if may_be_granted && is_answered && is_heard {
            self.link.publish(TAKEN_TOPIC, key.to_text().into_bytes());
        } else if may_be_granted {
            self.apply_until_answered(&RepeatedChange::GivenBack(key), claimant).await;
        }
    }

    async fn remember(&self, key: StoredObjectKey, text: &str) -> Result<(), SharedError> {
        let mut command = cmd("SET");
        command.arg(self.key(key)).arg(text);
        // Once more after a lost answer: somebody may have claimed it meanwhile.
        command.arg("NX").arg("EX").arg(LIFETIME.as_secs());
        self.link.run(&command, TIME_LIMIT).await.map(drop)
    }

    async fn claim(&self, key: StoredObjectKey, claimant: &str) -> Result<Claim, SharedError> {
        let mut claim = self.claim.prepare_invoke();
        claim.key(self.key(key)).arg(claimant).arg(LIFETIME.as_secs());
        Ok(match self.link.run_script(&claim, TIME_LIMIT).await? {
            Value::BulkString(text) if text.is_empty() => Claim::Taken,
            Value::BulkString(text) => parse(&text).map_or(Claim::Unknown, Claim::Granted),
            _ => Claim::Unknown,
        })
    }

    async fn release(&self, key: StoredObjectKey, claimant: &str) -> Result<(), SharedError> {
        let mut release = self.release.prepare_invoke();
        release.key(self.key(key)).arg(claimant).arg(LIFETIME.as_secs());
        self.link.run_script(&release, TIME_LIMIT).await.map(drop)
    }

    async fn settle(
        &self,
        key: StoredObjectKey,
        claimant: &str,
        object: &UnfinishedObject,
        end: &ObjectEnd,
    ) -> Result<(), SharedError> {
        let granted = match self.claim(key, claimant).await? {
            Claim::Granted(granted) => granted,
            Claim::Unknown => object.clone(),
            Claim::Taken | Claim::NotAnswered => return Ok(()),
        };
        if let Some(booked) = granted.booked() {
            self.accounts.correct(booked, end.final_use(granted.deployment().as_ref()));
        }
        self.link.publish(TAKEN_TOPIC, key.to_text().into_bytes());
        Ok(())
    }

    fn key(&self, key: StoredObjectKey) -> String {
        self.link.keys().key(&format!("booking:{}", key.to_text()))
    }
}

/// Whether the server has not answered.
fn is_worth_repeating(problem: &SharedError) -> bool {
    let is_away = matches!(problem, SharedError::Down | SharedError::Lost | SharedError::TimedOut(_));
    if !is_away {
        debug!("shared.redis: a background response counts as estimated: {problem}");
    }
    is_away
}

fn to_text(object: &UnfinishedObject) -> String {
    // Numbers and strings alone cannot fail.
    serde_json::to_string(&StoredValue { version: VERSION, object }).unwrap_or_default()
}

/// `None` if it is not understood: another version may have written it.
fn parse(text: &[u8]) -> Option<UnfinishedObject> {
    let value: StoredValue<UnfinishedObject> = serde_json::from_slice(text).ok()?;
    (value.version == VERSION).then_some(value.object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_was_written_and_another_version_is_not_understood() {
        let text = r#"{"version":1,"made_by":"a","client":"a","deployment":null,"tokens":5,"cached_weight_permille":1000,"day":1,"month":2}"#;
        let object = parse(text.as_bytes()).unwrap();
        assert!(object.booked().is_some());
        assert_eq!(to_text(&object), text);
        for other in [text.replace("\"version\":1", "\"version\":2"), String::new(), "{}".to_owned()] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
