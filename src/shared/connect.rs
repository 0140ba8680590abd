//! One attempt to get a connection that can be used: to the server, or to a node of a cluster.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, Script};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::keys::KeySpace;
use super::node_address::NodeAddress;
use super::problem::Problem;
use super::stream::open_stream;
use crate::config::{Endpoint, RedisConfig};
use crate::credentials::{RefreshedSecret, SecretValue};

/// How long the server may take to answer the greeting or a question of the connection's own.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the first fetch of the password may take.
const PASSWORD_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages of subscriptions that have been received and not handled.
const RECEIVED_QUEUE_LEN: usize = 4096;

/// Whether a script can be run and can write is known only by trying.
const PROBE_SCRIPT: &str = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', 10000)";

/// What a connection is made with.
#[derive(Debug)]
pub(super) struct ServerAccess {
    pub(super) config: RedisConfig,
    /// The password or token, kept fresh; `None` if there is none.
    pub(super) password: Option<RefreshedSecret>,
    pub(super) keys: KeySpace,
    /// The nodes of a cluster that were seen last.
    known_nodes: Mutex<Vec<NodeAddress>>,
}

/// A connection that has been authenticated.
pub(super) struct OpenConnection {
    pub(super) address: NodeAddress,
    pub(super) connection: MultiplexedConnection,
    /// What comes for subscriptions.
    pub(super) pushes: mpsc::Receiver<PushInfo>,
    /// Moves the bytes; it ends with the connection.
    pub(super) driver: DriverTask,
    /// Which password it was authenticated with; 0 for none.
    pub(super) password_id: u64,
}

/// The task of a connection, which ends with this value.
pub(super) struct DriverTask(JoinHandle<()>);

impl DriverTask {
    /// Waits until the connection is closed.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.0).await;
    }
}

impl Drop for DriverTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ServerAccess {
    pub(super) fn new(config: &RedisConfig, password: Option<RefreshedSecret>) -> Self {
        let keys = KeySpace::new(&config.prefix);
        Self { config: config.clone(), password, keys, known_nodes: Mutex::default() }
    }

    /// Connects to the configured address and authenticates; if that fails, to the first node of the cluster, as far as
    /// one has been seen, with which it succeeds.
    pub(super) async fn connect(&self) -> Result<OpenConnection, Problem> {
        let Endpoint { host, port, .. } = &self.config.endpoint;
        let problem = match self.connect_to(&NodeAddress { host: host.clone(), port: *port }).await {
            Ok(open) => return Ok(open),
            Err(problem) => problem,
        };
        let nodes = self.lock_known_nodes().clone();
        if nodes.is_empty() {
            return Err(problem);
        }
        let attempts = nodes.iter().map(|address| Box::pin(self.connect_to(address)));
        select_ok(attempts).await.map(|(open, _)| open).map_err(|_| problem)
    }

    /// Remembers the nodes of a cluster, for the next connection.
    pub(super) fn set_known_nodes(&self, nodes: &[NodeAddress]) {
        *self.lock_known_nodes() = nodes.to_vec();
    }

    fn lock_known_nodes(&self) -> MutexGuard<'_, Vec<NodeAddress>> {
        self.known_nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection and authenticates.
    pub(super) async fn connect_to(&self, address: &NodeAddress) -> Result<OpenConnection, Problem> {
        let password = self.current_password().await?;
        let stream = open_stream(&self.config, address).await?;
        // The third version of the protocol has one connection for commands and subscriptions, and takes AUTH on it.
        let mut info =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(username) = &self.config.username {
            info = info.set_username(username);
        }
        if let Some(password) = &password {
            info = info.set_password(password.secret.expose_secret());
        }
        let (sender, pushes) = mpsc::channel(RECEIVED_QUEUE_LEN);
        // What nobody has handled in time is lost, like what is published while there is no connection.
        let settings =
            AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(move |push: PushInfo| {
                match sender.try_send(push) {
                    Err(mpsc::error::TrySendError::Closed(_)) => Err(()),
                    _ => Ok(()),
                }
            });
        let greeting = MultiplexedConnection::new_with_config(&info, stream, settings);
        let greeted = timeout(REPLY_TIMEOUT, greeting).await.map_err(|_| Problem::Silent(REPLY_TIMEOUT))?;
        let (connection, driver) = greeted.map_err(|error| {
            let problem = self.problem_of(&error, true);
            self.on_problem(&problem, password.as_ref().map_or(0, |password| password.id));
            problem
        })?;
        Ok(OpenConnection {
            address: address.clone(),
            connection,
            pushes,
            driver: DriverTask(tokio::spawn(driver)),
            password_id: password.map_or(0, |password| password.id),
        })
    }

    /// The problem behind an error of an open connection.
    pub(super) fn problem_of(&self, error: &RedisError, in_greeting: bool) -> Problem {
        Problem::from_redis(error, in_greeting, self.config.endpoint.uses_tls)
    }

    /// Fetches a password anew that the server does not accept.
    pub(super) fn on_problem(&self, problem: &Problem, password_id: u64) {
        if let (true, Some(secret)) = (problem.is_about_password(), &self.password) {
            secret.on_value_rejected(password_id);
        }
    }

    async fn current_password(&self) -> Result<Option<Arc<SecretValue>>, Problem> {
        let Some(secret) = &self.password else { return Ok(None) };
        let value = timeout(PASSWORD_TIMEOUT, secret.wait_for_value()).await;
        let value = value.unwrap_or_else(|_| Err(secret.last_fetch_error()));
        value.map(Some).map_err(|error| Problem::NoPassword(error.to_string()))
    }

    /// Tries whether a script can write this key.
    pub(super) async fn try_script(
        &self,
        connection: &mut MultiplexedConnection,
        key: &str,
    ) -> Result<(), Problem> {
        let script = Script::new(PROBE_SCRIPT);
        let mut invocation = script.prepare_invoke();
        invocation.key(key).arg("1");
        let tried = timeout(REPLY_TIMEOUT, invocation.invoke_async::<()>(connection)).await;
        tried.map_err(|_| Problem::Silent(REPLY_TIMEOUT))?.map_err(|error| self.problem_of(&error, false))
    }
}
