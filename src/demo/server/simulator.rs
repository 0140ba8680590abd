//! The handle by which tests and the CLI start simulated resources, change their moods and see their
//! requests.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::connection_loop::serve_connection;
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::moods::mood::Mood;
use crate::demo::moods::mood_selector::MoodSelector;
use crate::demo::resource::definition::SimulatedResource;
use crate::demo::resource::request_log::LoggedRequest;
use crate::demo::resource::state::ResourceState;
use crate::demo::util::locking::lock_ignoring_poison;

const LISTEN_BACKLOG: u32 = 1024;
const REQUEST_LOG_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The pause after a failed `accept`, which fails again at once if file descriptors have run out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Running simulated resources. Dropping it closes all sockets at once.
///
/// Methods that take a name panic if no resource has that name: names come from the code that started the
/// simulator.
#[derive(Debug)]
pub struct Simulator {
    resources_by_name: HashMap<String, RunningResource>,
}

#[derive(Debug)]
struct RunningResource {
    state: Arc<ResourceState>,
    address: SocketAddr,
    accept_task: Mutex<Option<JoinHandle<()>>>,
    connection_tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Simulator {
    /// Binds the address of every resource, and serves them on the current Tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be bound, or two resources have the same name.
    pub async fn start(resources: Vec<SimulatedResource>) -> io::Result<Self> {
        let mut resources_by_name = HashMap::new();
        for resource in resources {
            let name = resource.name.clone();
            let running = RunningResource::start(resource).await?;
            if resources_by_name.insert(name.clone(), running).is_some() {
                let message = format!("two simulated resources are called {name:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        Ok(Self { resources_by_name })
    }

    /// The names of all resources, sorted.
    pub fn resource_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.resources_by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The address on which a resource listens.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn address(&self, name: &str) -> SocketAddr {
        self.running_resource(name).address
    }

    /// The definition of a resource.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn resource_definition(&self, name: &str) -> &SimulatedResource {
        &self.running_resource(name).state.definition
    }

    /// How many requests a resource has received, counted when their head was read. The turns of a Responses
    /// WebSocket count as requests, as does its handshake.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn request_count(&self, name: &str) -> usize {
        self.running_resource(name).state.request_log.request_count()
    }

    /// The latest 10 000 requests of a resource, oldest first.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn received_requests(&self, name: &str) -> Vec<LoggedRequest> {
        self.running_resource(name).state.request_log.requests()
    }

    /// How many connections a resource has accepted so far.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn accepted_connection_count(&self, name: &str) -> usize {
        usize::try_from(self.running_resource(name).state.accepted_connection_count()).unwrap_or(usize::MAX)
    }

    /// Changes the mood of a resource for the requests to come.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn set_mood(&self, name: &str, mood: Mood) {
        *lock_ignoring_poison(&self.running_resource(name).state.mood_selector) = MoodSelector::new(mood);
    }

    /// Changes for how long a streamed response is not found after its stream has ended, for the responses
    /// whose streams begin from now on.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn set_read_lag(&self, name: &str, read_lag: Duration) {
        self.running_resource(name).state.set_read_lag(read_lag);
    }

    /// Closes the listening socket of a resource: new connections are refused, open connections go on.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn stop_listening(&self, name: &str) {
        let accept_task = lock_ignoring_poison(&self.running_resource(name).accept_task).take();
        if let Some(task) = accept_task {
            task.abort();
            // The listener is closed when the task has ended. Its result only says that it was aborted.
            drop(task.await);
        }
    }

    /// Listens again, on the same address.
    ///
    /// # Errors
    /// When another socket has been bound to the address in the meantime.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn resume_listening(&self, name: &str) -> io::Result<()> {
        self.stop_listening(name).await;
        let running = self.running_resource(name);
        let task = running.spawn_accept_loop(bind_listener(running.address)?);
        *lock_ignoring_poison(&running.accept_task) = Some(task);
        Ok(())
    }

    /// Drops all open connections of a resource, also those with a request under way.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn abort_connections(&self, name: &str) {
        let mut tasks =
            std::mem::take(&mut *lock_ignoring_poison(&self.running_resource(name).connection_tasks));
        tasks.shutdown().await;
    }

    /// Waits until the requests of a resource satisfy a condition; `false` if they do not within `timeout`.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn wait_for_requests(
        &self,
        name: &str,
        timeout: Duration,
        condition: impl Fn(&[LoggedRequest]) -> bool,
    ) -> bool {
        let deadline = Instant::now() + timeout;
        while !condition(&self.received_requests(name)) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(REQUEST_LOG_POLL_INTERVAL).await;
        }
        true
    }

    /// Closes all sockets, and returns when they are closed.
    pub async fn shut_down(self) {
        for name in self.resources_by_name.keys() {
            self.stop_listening(name).await;
            self.abort_connections(name).await;
        }
    }

    fn running_resource(&self, name: &str) -> &RunningResource {
        let Some(running) = self.resources_by_name.get(name) else {
            panic!("no simulated resource is called {name:?}; there are {:?}", self.resource_names());
        };
        running
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for running in self.resources_by_name.values() {
            if let Some(task) = lock_ignoring_poison(&running.accept_task).take() {
                task.abort();
            }
            lock_ignoring_poison(&running.connection_tasks).abort_all();
        }
    }
}

impl RunningResource {
    async fn start(resource: SimulatedResource) -> io::Result<Self> {
        // Starting many resources must not block a busy runtime.
        tokio::task::yield_now().await;
        let listener = bind_listener(resource.listen_address)?;
        let address = listener.local_addr()?;
        let state = Arc::new(ResourceState::new(resource, Instant::now()));
        let running =
            Self { state, address, accept_task: Mutex::default(), connection_tasks: Arc::default() };
        let task = running.spawn_accept_loop(listener);
        *lock_ignoring_poison(&running.accept_task) = Some(task);
        Ok(running)
    }

    fn spawn_accept_loop(&self, listener: TcpListener) -> JoinHandle<()> {
        tokio::spawn(accept_connections(
            Arc::clone(&self.state),
            Arc::clone(&self.connection_tasks),
            listener,
        ))
    }
}

fn bind_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Without it, connections in TIME_WAIT would keep `resume_listening` from binding the address again.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

async fn accept_connections(
    resource: Arc<ResourceState>,
    connection_tasks: Arc<Mutex<JoinSet<()>>>,
    listener: TcpListener,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("simulate: {}: cannot accept a connection: {error}", resource.definition.name);
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let connection_number = resource.assign_connection_number();
        if lock_ignoring_poison(&resource.mood_selector).resets_on_accept() {
            stream.set_reset_on_close();
            continue;
        }
        if let Err(error) = stream.set_nodelay(true) {
            log::debug!("simulate: cannot set TCP_NODELAY: {error}");
        }
        let resource = Arc::clone(&resource);
        let mut tasks = lock_ignoring_poison(&connection_tasks);
        // Tasks that have ended stay in the set until they are joined.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move { serve_connection(&resource, stream, connection_number).await });
    }
}
