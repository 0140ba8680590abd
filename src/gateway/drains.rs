//! The drains of backends, which the operator sets and lifts. They are kept in the state directory, so that
//! they outlive a restart, a kill and an upgrade.
//!
//! What holds is the health of the backends (`routing`); the file follows it. In an upgrade the predecessor
//! hands its drains over, accepts no changes from then on, and gives the directory up before its successor
//! takes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use log::warn;

use crate::names::BackendName;
use crate::routing::health::backend_health::HealthRegistry;
use crate::state::drains::{self, DrainRecord};
use crate::state::{StateDirectory, StateError};

/// What follows from a file that cannot be used.
const SET_ASIDE: &str = "and no backend is drained by it";

/// The drains of one process.
#[derive(Debug, Default)]
pub struct Drains {
    storage: Mutex<Storage>,
    /// Why drains are not saved, if they are not. Apart from `storage`, which is locked while a file is written.
    problem: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Storage {
    /// `None` if drains are kept in memory only.
    directory: Option<Arc<StateDirectory>>,
    /// What the file contains, as far as it is known.
    saved_text: Option<String>,
    is_handing_over: bool,
}

/// A drain or an undrain that has taken effect.
#[derive(Debug)]
pub struct DrainChange {
    /// Whether it changed anything.
    pub changed: bool,
    /// Why it does not outlive this process, if it does not.
    pub save_problem: Option<String>,
}

/// Another process is about to take over: it has the drains already.
#[derive(Debug)]
pub struct HandingOver;

impl Drains {
    /// Restores the drains that the directory has, at a start. A directory that cannot be used and a file that
    /// cannot be read are logged; the process serves without them.
    pub fn restore(
        &self,
        opened: &Result<Arc<StateDirectory>, StateError>,
        registry: &HealthRegistry,
        now: Instant,
    ) {
        let mut storage = self.lock_storage();
        let Some(directory) = self.directory_of(opened) else { return };
        match directory.read(drains::FILE_NAME) {
            Ok(None) => {}
            Ok(Some(text)) => match drains::parse(&text) {
                Ok(records) => {
                    for record in &records {
                        restore_drain(record, registry, now);
                    }
                    storage.saved_text = Some(text);
                }
                Err(problem) => directory.set_aside_and_log(drains::FILE_NAME, SET_ASIDE, &problem),
            },
            Err(problem) => directory.set_aside_and_log(drains::FILE_NAME, SET_ASIDE, &problem),
        }
        storage.directory = Some(directory);
        self.save(&mut storage, registry, now);
    }

    /// Goes on with the directory that the predecessor has given up. The drains that it handed over hold; its
    /// file may be older.
    pub fn take_over(
        &self,
        opened: &Result<Arc<StateDirectory>, StateError>,
        registry: &HealthRegistry,
        now: Instant,
    ) {
        let mut storage = self.lock_storage();
        storage.directory = self.directory_of(opened);
        self.save(&mut storage, registry, now);
    }

    /// Drains or undrains a backend, whether or not the configuration has it.
    ///
    /// # Errors
    /// [`HandingOver`]; nothing has changed then.
    pub fn set_drained(
        &self,
        registry: &HealthRegistry,
        name: &BackendName,
        drained: bool,
        now: Instant,
    ) -> Result<DrainChange, HandingOver> {
        let mut storage = self.lock_storage();
        if storage.is_handing_over {
            return Err(HandingOver);
        }
        let health = registry.get_or_create_backend(name);
        let changed = if drained { health.drain(now) } else { health.undrain(now) };
        self.save(&mut storage, registry, now);
        Ok(DrainChange { changed, save_problem: self.save_problem() })
    }

    /// Saves what an earlier attempt could not.
    pub fn save_pending(&self, registry: &HealthRegistry, now: Instant) {
        self.save(&mut self.lock_storage(), registry, now);
    }

    /// From now on no change is accepted, since the successor gets the drains as they are.
    pub fn begin_handover(&self) {
        self.lock_storage().is_handing_over = true;
    }

    /// The handover failed: changes are accepted again.
    pub fn cancel_handover(&self) {
        self.lock_storage().is_handing_over = false;
    }

    /// Gives the directory up for the successor.
    pub fn release_directory(&self) {
        self.lock_storage().directory = None;
    }

    /// Why drains are not saved, if they are not.
    pub fn save_problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock_storage(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory_of(&self, opened: &Result<Arc<StateDirectory>, StateError>) -> Option<Arc<StateDirectory>> {
        opened.as_ref().map(Arc::clone).map_err(|problem| self.on_not_saved(problem.to_string())).ok()
    }

    /// Writes the drains if the file does not have them.
    fn save(&self, storage: &mut Storage, registry: &HealthRegistry, now: Instant) {
        let Some(directory) = &storage.directory else { return };
        let wall_now = SystemTime::now();
        let drained = registry.drained_backends(now).into_iter();
        let records = drained.map(|(name, since)| {
            let elapsed = now.saturating_duration_since(since);
            DrainRecord {
                backend: name.to_string(),
                since: wall_now.checked_sub(elapsed).unwrap_or(wall_now),
            }
        });
        let records: Vec<_> = records.collect();
        if let Some(saved) = storage.saved_text.as_deref().and_then(|text| drains::parse(text).ok())
            && saved.iter().map(|record| &record.backend).eq(records.iter().map(|record| &record.backend))
        {
            return;
        }
        let text = drains::to_text(&records);
        match directory.replace(drains::FILE_NAME, text.as_bytes()) {
            Ok(()) => {
                storage.saved_text = Some(text);
                if self.problem.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
                    warn!("server.state_directory: drains are saved again");
                }
            }
            Err(problem) => {
                // The write may have replaced the file before it failed.
                storage.saved_text = None;
                self.on_not_saved(format!("cannot write {}: {problem}", drains::FILE_NAME));
            }
        }
    }

    /// Logs the first of several problems.
    fn on_not_saved(&self, problem: String) {
        let mut current = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            warn!(
                "server.state_directory: drains are kept in memory only and end with this process: {problem}"
            );
        }
        *current = Some(problem);
    }
}

fn restore_drain(record: &DrainRecord, registry: &HealthRegistry, now: Instant) {
    let elapsed = SystemTime::now().duration_since(record.since).unwrap_or_default();
    let since = now.checked_sub(elapsed).unwrap_or(now);
    registry.get_or_create_backend(&BackendName::new(&record.backend)).restore_drain(since, now);
}
