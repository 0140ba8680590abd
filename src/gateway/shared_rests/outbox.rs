//! What goes to the others and to the server.

use std::collections::HashMap;
use std::sync::Arc;

use log::debug;
use tokio::sync::mpsc;

use super::input::Input;
use super::message::{Event, Message, TOPIC};
use super::part::SharedPart;
use super::store::{self, Change};
use super::targets::{Target, Targets};
use super::tracked::Key;
use crate::names::BackendName;
use crate::routing::health::availability::UnavailableReason;
use crate::shared::{InstanceRegistry, SharedLink};

/// Sends messages, and collects what is to be kept on the server.
pub(super) struct Outbox {
    pub(super) link: Arc<SharedLink>,
    pub(super) instances: Arc<InstanceRegistry>,
    inputs: mpsc::Sender<Input>,
    /// What is to be written, the newest of each part.
    changes: HashMap<Key, Change>,
    is_writing: bool,
}

impl Outbox {
    pub(super) fn new(
        link: Arc<SharedLink>,
        instances: Arc<InstanceRegistry>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self { link, instances, inputs, changes: HashMap::new(), is_writing: false }
    }

    /// Sends a message about a part, and returns it.
    pub(super) fn publish(
        &self,
        target: &Target,
        part: &SharedPart,
        reason: UnavailableReason,
        event: Event,
    ) -> Vec<u8> {
        let message = Message {
            from: self.instances.own_id().to_owned(),
            backend: target.name.to_string(),
            url: target.url.clone(),
            part: part.clone(),
            reason,
            event,
        };
        let bytes = message.to_bytes();
        if self.link.is_up() {
            self.link.publish(TOPIC, bytes.clone());
        }
        bytes
    }

    /// Has a change written.
    pub(super) fn write(&mut self, key: Key, change: Change) {
        self.changes.insert(key, change);
    }

    /// Has the claim of this instance released, if no other change does that.
    pub(super) fn release_claim(&mut self, key: &Key) {
        self.changes.entry(key.clone()).or_insert(Change::ReleaseClaim);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What has not been written is outdated.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
    }

    /// The last write has ended.
    pub(super) fn on_written(&mut self) {
        self.is_writing = false;
    }

    /// Writes all changes, unless the last write has not ended.
    pub(super) fn flush(&mut self, targets: &Targets) {
        if self.is_writing || self.changes.is_empty() {
            return;
        }
        if !self.link.is_up() {
            return self.changes.clear();
        }
        let mut by_backend: HashMap<BackendName, Vec<(SharedPart, Change)>> = HashMap::new();
        for ((backend, part), change) in self.changes.drain() {
            by_backend.entry(backend).or_default().push((part, change));
        }
        let changed = by_backend
            .into_iter()
            .filter_map(|(backend, changes)| Some((Arc::clone(targets.named(backend.as_str())?), changes)));
        let changed: Vec<_> = changed.collect();
        self.is_writing = true;
        let (link, inputs) = (Arc::clone(&self.link), self.inputs.clone());
        let own_id = self.instances.own_id().to_owned();
        tokio::spawn(async move {
            for (target, changes) in changed {
                if let Err(problem) = store::write(&link, &target, &own_id, &changes).await {
                    debug!("shared.redis: what is unavailable could not be kept: {problem}");
                }
            }
            let _ = inputs.send(Input::Written).await;
        });
    }
}
