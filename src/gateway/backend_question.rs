//! The balancer's own questions to backends about rejections that requests met. They are queued here and
//! sent by `proxy/upstream/question.rs`; Azure does not bill them.

use tokio::sync::{Mutex, mpsc};

use crate::azure::Operation;
use crate::names::{BackendName, DeploymentName};

/// The most questions that wait. Each part of each backend has at most one every two seconds.
const MAX_QUEUED_QUESTIONS: usize = 256;

/// A question to a backend.
#[derive(Clone, Debug)]
pub struct BackendQuestion {
    /// The backend.
    pub backend: BackendName,
    /// What the question is about.
    pub subject: QuestionSubject,
}

/// What a question is about.
#[derive(Clone, Debug)]
pub enum QuestionSubject {
    /// Whether the backend accepts the credential.
    Credential,
    /// Whether the resource has a deployment of this name.
    Deployment(DeploymentName),
    /// Whether the credential may do this operation, on the deployment of this name.
    Operation(Operation, DeploymentName),
}

/// The questions that have not been sent. It outlives a configuration.
#[derive(Debug)]
pub struct QuestionQueue {
    sender: mpsc::Sender<BackendQuestion>,
    /// Taken by the task that sends the questions; that of the next configuration takes over.
    receiver: Mutex<mpsc::Receiver<BackendQuestion>>,
}

impl Default for QuestionQueue {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_QUESTIONS);
        Self { sender, receiver: Mutex::new(receiver) }
    }
}

impl QuestionQueue {
    /// Adds a question, unless too many wait: then its rejection stays undecided, and the next one leads to
    /// another question.
    pub(super) fn push(&self, question: BackendQuestion) {
        let _ = self.sender.try_send(question);
    }

    /// Waits for the next question.
    pub async fn next(&self) -> Option<BackendQuestion> {
        self.receiver.lock().await.recv().await
    }
}
