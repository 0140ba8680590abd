//! What one instance finds unavailable is so on all instances: a deployment that answers 429 or does not exist, a
//! credential that is refused. And one instance at a time probes whether it is over.
//!
//! Requests only note that something has changed (`SharedRests::on_found_unavailable`). A task of its own (`worker.rs`) tells the
//! others, applies what they tell (`apply.rs`), and claims probes (`claim.rs`). Without the server of `shared` each
//! instance finds out for itself.

mod apply;
mod claim;
mod input;
mod message;
mod outbox;
mod part;
mod store;
mod targets;
mod tracked;
mod worker;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::input::Input;
use self::worker::Worker;
use super::backend_question::QuestionQueue;
use super::backend_queue::BackendQueue;
use crate::names::BackendName;
use crate::shared::Shared;

pub use self::part::SharedPart;
pub(super) use self::targets::{Target, Targets};
pub use self::tracked::ProbeLead;

/// Changes and messages that wait for the task. What does not fit is lost: an instance finds out for itself then.
const MAX_WAITING_INPUTS: usize = 4096;

/// Shares the unavailability of backends with other instances.
#[derive(Debug)]
pub struct SharedRests {
    inputs: mpsc::Sender<Input>,
    leads: Arc<ArcSwap<Vec<ProbeLead>>>,
}

impl SharedRests {
    /// Begins to share.
    pub fn start(
        shared: &Shared,
        questions: Arc<QuestionQueue>,
        queue: Arc<BackendQueue>,
        runtime: &Handle,
    ) -> Self {
        let (inputs, receiver) = mpsc::channel(MAX_WAITING_INPUTS);
        let received = inputs.clone();
        shared.link.subscribe(message::TOPIC, move |bytes| {
            let _ = received.try_send(Input::Received(bytes.to_vec()));
        });
        let leads = Arc::default();
        let worker = Worker::new(shared, questions, queue, Arc::clone(&leads), inputs.clone());
        runtime.spawn(worker.run(receiver));
        Self { inputs, leads }
    }

    /// From now on these are the backends.
    pub fn set_targets(&self, targets: Arc<Targets>) {
        let _ = self.inputs.try_send(Input::Targets(targets));
    }

    /// This instance has found this part unavailable; `status` is that of the response, if it matters. It waits for
    /// nothing.
    pub fn on_found_unavailable(&self, backend: &BackendName, part: SharedPart, status: Option<u16>) {
        let _ = self.inputs.try_send(Input::Found(backend.clone(), part, status));
    }

    /// Who leads which probe.
    pub fn leads(&self) -> Arc<Vec<ProbeLead>> {
        self.leads.load_full()
    }
}
