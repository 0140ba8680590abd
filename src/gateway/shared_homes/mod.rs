//! What instances have learned of objects is known to all of them.
//!
//! What one learns is written in the background (`writer.rs`), so that no response waits for it. What a request refers
//! to and this instance does not know is looked up first, within the time limit of a request (`gateway/home_lookup.rs`).

mod entry;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::entry::SharedChange;
use self::writer::write_changes;
use crate::config::{AffinityConfig, AskLimit, OwnerPolicy};
use crate::shared::{DEFAULT_TIME_LIMIT, SharedError, SharedLink, Value, cmd};

pub(super) use self::entry::{SharedHome, SharedKey, SharedOwner};

/// Changes that wait to be written. What comes on top is dropped and counted.
const MAX_WAITING_CHANGES: usize = 8192;
/// How long an object is remembered if another instance could ask for it as well.
const ASKABLE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long it is remembered if forgetting it would show it to others, or lose it: as long as Azure keeps a response.
const FULL_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// The homes that all instances know.
#[derive(Debug)]
pub struct SharedHomes {
    link: Arc<SharedLink>,
    changes: mpsc::Sender<SharedChange>,
    lifetime_seconds: AtomicU64,
    dropped: Arc<AtomicU64>,
}

impl SharedHomes {
    /// Begins to share.
    pub fn start(link: &Arc<SharedLink>, runtime: &Handle) -> Arc<Self> {
        let (changes, receiver) = mpsc::channel(MAX_WAITING_CHANGES);
        let dropped = Arc::default();
        runtime.spawn(write_changes(Arc::clone(link), receiver, Arc::clone(&dropped)));
        Arc::new(Self {
            link: Arc::clone(link),
            changes,
            lifetime_seconds: AtomicU64::new(FULL_LIFETIME.as_secs()),
            dropped,
        })
    }

    /// From now on objects are remembered for as long as this configuration needs.
    pub fn set_lifetime(&self, config: &AffinityConfig) {
        self.lifetime_seconds.store(lifetime(config).as_secs(), Ordering::Relaxed);
    }

    /// Has all instances know where an object lives. It waits for nothing.
    pub fn learn(&self, key: SharedKey, home: SharedHome) {
        let lifetime = Duration::from_secs(self.lifetime_seconds.load(Ordering::Relaxed));
        self.send(SharedChange::Learned { key, home, lifetime });
    }

    /// Has all instances forget an object that was deleted.
    pub fn forget(&self, key: SharedKey) {
        self.send(SharedChange::Forgotten(key));
    }

    /// What is known of these objects, in their order, as far as the server answers in time.
    ///
    /// # Errors
    /// [`SharedError`].
    pub async fn find(&self, keys: &[SharedKey]) -> Result<Vec<Option<SharedHome>>, SharedError> {
        let mut command = cmd("MGET");
        for key in keys {
            command.arg(self.link.keys().key(&key.to_text()));
        }
        match self.link.run(&command, DEFAULT_TIME_LIMIT).await? {
            Value::Array(values) if values.len() == keys.len() => {
                let parse = |value| match value {
                    Value::BulkString(bytes) => SharedHome::parse(&bytes),
                    _ => None,
                };
                Ok(values.into_iter().map(parse).collect())
            }
            _ => Err(SharedError::UnexpectedReply("it is not a list of as many values".to_owned())),
        }
    }

    /// Whether the server answers.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// What other instances will not know, because there was no connection or too much to write.
    pub fn dropped_count(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn send(&self, change: SharedChange) {
        if !self.link.is_up() || self.changes.try_send(change).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Who made an object is known only from here if a request comes to another instance, and so is where it lives if
/// resources are not asked.
fn lifetime(config: &AffinityConfig) -> Duration {
    let is_needed =
        config.owner_policy == OwnerPolicy::Enforce || matches!(config.ask_limit, AskLimit::AtMost(_));
    if is_needed { FULL_LIFETIME } else { ASKABLE_LIFETIME }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UnavailableHomePolicy;

    #[test]
    fn what_cannot_be_asked_for_is_remembered_for_longer() {
        let config = |owner_policy, ask_limit| AffinityConfig {
            ask_limit,
            memory_bytes: 0,
            read_lag: Duration::ZERO,
            unavailable_policy: UnavailableHomePolicy::Wait,
            owner_policy,
        };
        for (owner, ask, days) in [
            (OwnerPolicy::Off, AskLimit::All, 1),
            (OwnerPolicy::Off, AskLimit::AtMost(0), 30),
            (OwnerPolicy::Off, AskLimit::AtMost(3), 30),
            (OwnerPolicy::Enforce, AskLimit::All, 30),
        ] {
            assert_eq!(
                lifetime(&config(owner, ask)),
                Duration::from_secs(days * 86_400),
                "{owner:?} {ask:?}"
            );
        }
    }
}
