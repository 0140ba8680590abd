//! Keeps what clients have used of their rates in the state directory, so that after a restart in the middle of a minute
//! no client can use its rate twice.
//!
//! The file is written once a second while requests come, and at the end. It is valid for a minute and until the machine
//! reboots, since its seconds are those of the monotonic clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, warn};
use serde::{Deserialize, Serialize};

use crate::admission::limits::{ClientAccounts, RateSnapshot};
use crate::state::{StateDirectory, StateError};

/// The name of the file.
const FILE_NAME: &str = "rates.json";
/// The version of its format.
const VERSION: u64 = 1;
/// A file of this size is written each second; a larger one less often.
const BYTES_PER_SECOND: usize = 256 * 1024;
/// The file is written this often at least.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// The file of rates, once this process has a state directory.
#[derive(Debug, Default)]
pub struct RatesKeeper {
    state: Mutex<KeeperState>,
}

#[derive(Debug, Default)]
struct KeeperState {
    directory: Option<Arc<StateDirectory>>,
    /// How many requests had begun or ended when the file was written.
    saved_activity: usize,
    next_save: Option<Instant>,
    is_failing: bool,
}

#[derive(Serialize, Deserialize)]
struct RatesFile {
    version: u64,
    /// The id of the boot of the machine.
    boot: String,
    rates: Vec<RateSnapshot>,
}

impl KeeperState {
    fn is_save_due(&self, activity: usize, now: Instant) -> bool {
        self.directory.is_some()
            && activity != self.saved_activity
            && self.next_save.is_none_or(|next| now >= next)
    }
}

impl RatesKeeper {
    /// Restores what the file contains, and keeps the file from now on.
    pub fn restore(
        &self,
        opened: &Result<Arc<StateDirectory>, StateError>,
        accounts: &ClientAccounts,
        now: Instant,
    ) {
        // Budgets log what is wrong with a directory that cannot be used.
        let Ok(directory) = opened else { return };
        let path = directory.path().join(FILE_NAME);
        let read = std::fs::read(&path).map(|text| serde_json::from_slice::<RatesFile>(&text));
        match read {
            Ok(Ok(file)) if file.version == VERSION && file.boot == boot_id() => {
                // No request of the process that wrote it is in progress any more.
                drop(accounts.restore(&file.rates, now));
            }
            Ok(Ok(_)) => debug!("{FILE_NAME} is ignored: it is of another boot or version"),
            Ok(Err(problem)) => debug!("{FILE_NAME} is not read: {problem}"),
            Err(problem) => debug!("{FILE_NAME} is not read: {problem}"),
        }
        self.take_over(opened);
    }

    /// Takes the directory that the predecessor has released. Its rates are not read: the predecessor has sent them.
    pub fn take_over(&self, opened: &Result<Arc<StateDirectory>, StateError>) {
        if let Ok(directory) = opened {
            self.lock().directory = Some(Arc::clone(directory));
        }
    }

    /// Releases the directory for a successor.
    pub fn release_directory(&self) {
        self.lock().directory = None;
    }

    /// Whether the file has to be written: `activity` is a number that changes whenever a request begins or ends.
    pub fn is_save_due(&self, activity: usize, now: Instant) -> bool {
        self.lock().is_save_due(activity, now)
    }

    /// Writes the file if that is due. Blocks.
    pub fn save_if_due(&self, accounts: &ClientAccounts, activity: usize, now: Instant) {
        let mut state = self.lock();
        if state.is_save_due(activity, now) {
            self.save(&mut state, accounts, activity, now);
        }
    }

    /// Writes the file, at the end of the process. Blocks.
    pub fn close(&self, accounts: &ClientAccounts, now: Instant) {
        let mut state = self.lock();
        let activity = state.saved_activity;
        self.save(&mut state, accounts, activity, now);
        state.directory = None;
    }

    fn save(&self, state: &mut KeeperState, accounts: &ClientAccounts, activity: usize, now: Instant) {
        let Some(directory) = &state.directory else { return };
        let rates = accounts.rates(now);
        if rates.is_empty() && state.next_save.is_none() {
            // No client has a rate.
            return;
        }
        let file = RatesFile { version: VERSION, boot: boot_id(), rates };
        let Ok(text) = serde_json::to_vec(&file) else { return };
        let seconds = (text.len() / BYTES_PER_SECOND + 1) as u64;
        state.next_save = Some(now + Duration::from_secs(seconds).min(LONGEST_INTERVAL));
        state.saved_activity = activity;
        match directory.replace(FILE_NAME, &text) {
            Ok(()) => state.is_failing = false,
            Err(problem) => {
                if !std::mem::replace(&mut state.is_failing, true) {
                    warn!(
                        "server.state_directory: cannot write {FILE_NAME}: {problem}. After a restart, rates begin at 0."
                    );
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, KeeperState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of this boot of the machine.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ClientName;

    #[test]
    fn what_was_used_in_the_last_minute_counts_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let open = || StateDirectory::open(directory.path()).map(Arc::new);
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let used = |accounts: &ClientAccounts, now| {
            let rates = serde_json::to_value(accounts.rates(now)).unwrap();
            rates[0]["requests"]
                .as_array()
                .map_or(0, |slots| slots.iter().map(|slot| slot[1].as_u64().unwrap()).sum())
        };
        let snapshot = r#"[{"client":"a","deployment":null,"requests":[[0,7]]}]"#;
        let accounts = ClientAccounts::new(start);
        drop(
            accounts
                .restore(&serde_json::from_str::<Vec<RateSnapshot>>(snapshot).unwrap(), start + 5 * second),
        );
        let keeper = RatesKeeper::default();
        keeper.restore(&open(), &accounts, start);
        keeper.save_if_due(&accounts, 1, start + 6 * second);
        let written = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
        drop(
            accounts
                .restore(&serde_json::from_str::<Vec<RateSnapshot>>(snapshot).unwrap(), start + 6 * second),
        );
        keeper.save_if_due(&accounts, 2, start + 6 * second);
        assert_eq!(std::fs::read(directory.path().join(FILE_NAME)).unwrap(), written, "it is not due");
        keeper.save_if_due(&accounts, 1, start + 9 * second);
        assert_eq!(std::fs::read(directory.path().join(FILE_NAME)).unwrap(), written, "nothing has happened");
        keeper.close(&accounts, start + 9 * second);
        drop(keeper);
        let restored = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(directory.path().join(FILE_NAME), text).unwrap();
            }
            let accounts = ClientAccounts::new(start);
            accounts.find_or_create(Some(&ClientName::new("a")));
            RatesKeeper::default().restore(&open(), &accounts, start + 20 * second);
            [20, 64, 67].map(|seconds| used(&accounts, start + seconds * second))
        };
        assert_eq!(restored(None), [14, 14, 0]);
        let text = std::fs::read_to_string(directory.path().join(FILE_NAME)).unwrap();
        assert_eq!(restored(Some(&text.replace(&boot_id(), "another"))), [0; 3]);
        assert_eq!(restored(Some(&text.replace("\"version\":1", "\"version\":2"))), [0; 3]);
        assert_eq!(restored(Some("{")), [0; 3]);
    }
}
