//! The connection to the server, as the rest of the process sees it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, RedisResult, ScriptInvocation, Value};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::connect::ServerAccess;
use super::error::SharedError;
use super::keys::KeySpace;
use super::link_state::{LinkState, OutgoingMessage};
use super::session::keep_connected;
use super::status::LinkStatus;
use crate::config::RedisConfig;
use crate::credentials::RefreshedSecret;

/// How long a request may wait for the server.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_millis(5);
/// Messages that have been published and not sent.
const OUTGOING_QUEUE_LEN: usize = 1024;

/// The connection to the server. A background task makes it, watches it, and makes it again, for as long as the process
/// runs.
pub struct SharedLink {
    state: Arc<LinkState>,
    outgoing: mpsc::Sender<OutgoingMessage>,
}

impl fmt::Debug for SharedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLink").field("status", &self.state.status).finish_non_exhaustive()
    }
}

impl SharedLink {
    /// Begins to connect. `password` is what [`find_secret`](super::find_secret) has found.
    pub fn start(config: &RedisConfig, password: Option<RefreshedSecret>, runtime: &Handle) -> Arc<Self> {
        let (outgoing, receiver) = mpsc::channel(OUTGOING_QUEUE_LEN);
        let access = Arc::new(ServerAccess::new(config, password));
        let state = Arc::new(LinkState::new(access, Instant::now()));
        let kept = Arc::clone(&state);
        runtime.spawn(async move { keep_connected(&kept, receiver).await });
        Arc::new(Self { state, outgoing })
    }

    /// Runs a command. While there is no connection it fails at once. After [`SharedError::Lost`] and
    /// [`SharedError::TimedOut`] it may have been carried out or not. Commands with the same key run in the order in which
    /// they are called, unless a cluster moves it to another node meanwhile.
    ///
    /// # Errors
    /// [`SharedError`].
    pub async fn run(&self, command: &Cmd, time_limit: Duration) -> Result<Value, SharedError> {
        let mut connection = self.state.connection()?;
        self.finish(command.query_async::<Value>(&mut connection), time_limit).await
    }

    /// Runs a script by its hash; where the server does not know it yet, it gets the text first, within the same time
    /// limit.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_script(
        &self,
        script: &ScriptInvocation<'_>,
        time_limit: Duration,
    ) -> Result<Value, SharedError> {
        let mut connection = self.state.connection()?;
        self.finish(script.invoke_async::<Value>(&mut connection), time_limit).await
    }

    /// Sends a message to all instances that have subscribed to the topic, this one included. It waits for nothing:
    /// where there is no connection, or too much is waiting to be sent, the message is dropped and counted.
    pub fn publish(&self, topic: &str, payload: Vec<u8>) {
        let message = OutgoingMessage { channel: self.keys().channel(topic), payload };
        if !self.is_up() || self.outgoing.try_send(message).is_err() {
            self.state.count_dropped(1);
        }
    }

    /// Calls `handler` with each message of the topic from now on, as long as the process runs. Messages that are
    /// published while there is no connection are missed. The handler must not block.
    pub fn subscribe(&self, topic: &str, handler: impl Fn(&[u8]) + Send + Sync + 'static) {
        self.state.subscriptions.add(self.keys().channel(topic), Arc::new(handler));
    }

    /// Whether commands are answered.
    pub fn is_up(&self) -> bool {
        self.state.is_up()
    }

    /// What is wrong, in one sentence; `None` while all of it is up, and before the first attempt has ended.
    pub fn problem(&self) -> Option<String> {
        self.status().problem
    }

    /// Whether it is up, since when, and what is wrong.
    pub fn status(&self) -> LinkStatus {
        self.state.status.current()
    }

    /// A receiver that is woken whenever the connection is lost or there again. Its value says whether it is up.
    pub fn watch_state(&self) -> watch::Receiver<bool> {
        self.state.status.subscribe()
    }

    /// Messages that were not published because there was no connection or too many of them.
    pub fn dropped_message_count(&self) -> u64 {
        self.state.dropped_messages()
    }

    /// The names of keys.
    pub fn keys(&self) -> &KeySpace {
        &self.state.access.keys
    }

    async fn finish(
        &self,
        reply: impl Future<Output = RedisResult<Value>>,
        time_limit: Duration,
    ) -> Result<Value, SharedError> {
        let reply = timeout(time_limit, reply).await.map_err(|_| SharedError::TimedOut(time_limit))?;
        reply.map_err(|error| self.state.on_error(SharedError::from(error)))
    }
}
