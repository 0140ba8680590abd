//! What happens to objects that go on after the response that made them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;

use super::log::{self, ObjectLog};
use super::memory::ObjectMemory;
use super::report::{Handover, MadeObject};
use super::shared::{self, Claim, SharedObjects};
use crate::admission::limits::{ClientAccounts, FinalUse};
use crate::record::stored_objects::{ObjectEnd, StoredObjectKey, UnfinishedObject, UnfinishedObjectKeeper};
use crate::shared::SharedLink;
use crate::state::{StateDirectory, StateError};

/// How long a record waits for the answer of a successor.
const ANSWER_TIME_LIMIT: Duration = Duration::from_secs(1);
/// How many of the last ends are known when predecessors ask.
const MAX_LAST_ENDED: usize = 1024;

/// The objects that a process remembers.
#[derive(Debug)]
pub struct UnfinishedObjects {
    pub(super) accounts: Arc<ClientAccounts>,
    /// Set where several instances share budgets.
    shared: OnceLock<SharedObjects>,
    state: Mutex<State>,
    /// A handover has something to report, or ends.
    pub(super) changed: Condvar,
    /// A thread reports to a successor.
    pub(super) is_reporting: AtomicBool,
    log: ObjectLog,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) memory: ObjectMemory,
    /// From the capture of the objects for a successor on.
    pub(super) handover: Option<Handover>,
    /// The objects whose ends were seen last, newest last, for the questions of predecessors.
    last_ended: VecDeque<StoredObjectKey>,
}

impl State {
    fn note_end(&mut self, key: StoredObjectKey) {
        if self.last_ended.len() >= MAX_LAST_ENDED {
            self.last_ended.pop_front();
        }
        self.last_ended.push_back(key);
    }

    /// Whether this is one of the objects whose ends were seen last.
    pub(super) fn has_ended(&self, key: StoredObjectKey) -> bool {
        self.last_ended.contains(&key)
    }
}

impl UnfinishedObjects {
    /// No objects. What was booked for them is corrected in these accounts.
    pub fn new(accounts: &Arc<ClientAccounts>) -> Self {
        Self {
            accounts: Arc::clone(accounts),
            shared: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
            is_reporting: AtomicBool::new(false),
            log: ObjectLog::default(),
        }
    }

    /// From now on the server decides which instance has seen an end first.
    pub fn share(self: &Arc<Self>, link: &Arc<SharedLink>, runtime: &Handle) {
        let objects = Arc::downgrade(self);
        let on_taken = move |key| {
            if let Some(objects) = objects.upgrade() {
                objects.forget(key, |_| None);
            }
        };
        let _ = self.shared.set(SharedObjects::start(link, &self.accounts, runtime, on_taken));
    }

    /// Takes the state directory, at a start or after the predecessor has released it. The objects of its file are remembered
    /// unless the predecessor has told its own.
    pub fn restore(self: &Arc<Self>, opened: &Result<Arc<StateDirectory>, StateError>) {
        // Budgets log what is wrong with a directory that cannot be used.
        let Ok(directory) = opened else { return };
        if self.lock().memory.is_empty() {
            for MadeObject { object, made } in log::read(directory) {
                if let Some(key) = StoredObjectKey::parse(&object) {
                    self.remember(key, made);
                }
            }
        }
        let objects = Arc::clone(self);
        self.log.start(directory, Box::new(move || objects.all()));
    }

    /// Writes everything, and releases the state directory.
    pub fn release_directory(&self) {
        self.log.close();
    }

    fn all(&self) -> Vec<MadeObject> {
        self.lock().memory.all().map(|(key, object)| MadeObject::new(key, object)).collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an object in this process.
    pub(super) fn remember(&self, key: StoredObjectKey, object: UnfinishedObject) {
        let mut state = self.lock();
        if let Some(handover) = &mut state.handover {
            handover.add_made(key, &object);
            self.changed.notify_all();
        }
        self.log.add(key, &object);
        if let Some(forgotten) = state.memory.insert(key, object) {
            self.log.remove(forgotten);
        }
    }

    /// Forgets an object whose end this process has seen, and reports that to a successor. `used` is what corrects its
    /// booking; `None` if the server keeps that.
    pub(super) fn forget(
        &self,
        key: StoredObjectKey,
        used: impl FnOnce(&UnfinishedObject) -> Option<FinalUse>,
    ) -> Option<UnfinishedObject> {
        self.forget_and_report(key, used, None)
    }

    /// The same, unless a successor has already seen the end.
    fn forget_if_first(
        &self,
        key: StoredObjectKey,
        used: impl FnOnce(&UnfinishedObject) -> Option<FinalUse>,
    ) -> Option<UnfinishedObject> {
        if !self.is_reporting.load(Ordering::Acquire) {
            return self.forget(key, used);
        }
        let (answer, answers) = sync_channel(1);
        let object = self.forget_and_report(key, used, Some(answer))?;
        // Without an answer it counts here.
        let is_first = answers.recv_timeout(ANSWER_TIME_LIMIT).unwrap_or(true);
        is_first.then_some(object)
    }

    /// Whether the server has forgotten this object, and whether another instance has counted its end.
    fn is_forgotten_by_server(&self, key: StoredObjectKey) -> bool {
        let state = self.lock();
        state.memory.get(key).is_some_and(|object| object.age(SystemTime::now()) >= shared::LIFETIME)
    }

    fn forget_and_report(
        &self,
        key: StoredObjectKey,
        used: impl FnOnce(&UnfinishedObject) -> Option<FinalUse>,
        answer: Option<SyncSender<bool>>,
    ) -> Option<UnfinishedObject> {
        let mut state = self.lock();
        let object = state.memory.remove(key)?;
        self.log.remove(key);
        state.note_end(key);
        let used = used(&object);
        if let Some(handover) = &mut state.handover {
            handover.add_ended(key, &object, used, answer);
            self.changed.notify_all();
            return Some(object);
        }
        drop(state);
        if let Some((booked, used)) = object.booked().zip(used) {
            self.accounts.correct(booked, used);
        }
        Some(object)
    }
}

impl UnfinishedObjectKeeper for UnfinishedObjects {
    fn on_made(&self, key: StoredObjectKey, object: UnfinishedObject) {
        if let Some(shared) = self.shared.get() {
            shared.on_made(key, &object);
        }
        self.remember(key, object);
    }

    fn on_ended(&self, key: StoredObjectKey, end: ObjectEnd) -> Option<UnfinishedObject> {
        let Some(shared) = self.shared.get() else {
            return self.forget_if_first(key, final_use(&end));
        };
        match shared.claim(key) {
            Claim::Granted(object) => {
                self.forget(key, |_| None);
                if let Some(booked) = object.booked() {
                    self.accounts.correct(booked, end.final_use(object.deployment().as_ref()));
                }
                Some(object)
            }
            Claim::Taken => {
                self.forget(key, |_| None);
                None
            }
            Claim::Unknown | Claim::NotAnswered if self.is_forgotten_by_server(key) => {
                self.forget(key, |_| None);
                None
            }
            Claim::Unknown => self.forget_if_first(key, final_use(&end)),
            Claim::NotAnswered => {
                let object = self.forget_if_first(key, |_| None)?;
                shared.settle_later(key, object.clone(), end);
                Some(object)
            }
        }
    }

    fn is_decided_elsewhere(&self) -> bool {
        self.shared.get().is_some() || self.is_reporting.load(Ordering::Acquire)
    }
}

fn final_use(end: &ObjectEnd) -> impl FnOnce(&UnfinishedObject) -> Option<FinalUse> + use<'_> {
    |object| Some(end.final_use(object.deployment().as_ref()))
}
