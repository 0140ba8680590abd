//! Sockets: listening, accepting, and the handle through which tests and the CLI see the resources.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::Resource;
use super::connection::serve;
use super::http1::Socket;
use super::journal::Seen;
use super::live::{Live, hold};
use super::script::{Mood, Script};

const BACKLOG: u32 = 1024;

/// Running simulated resources. Dropping it closes everything at once.
///
/// Methods that take a name panic when no resource is called that: names come from whoever started it.
#[derive(Debug)]
pub struct Simulator {
    sites: HashMap<String, Site>,
}

#[derive(Debug)]
struct Site {
    live: Arc<Live>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Simulator {
    /// Binds every resource and serves them on the current Tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be bound, or two resources have the same name.
    pub async fn start(resources: Vec<Resource>) -> io::Result<Self> {
        let mut sites = HashMap::new();
        for resource in resources {
            let name = resource.name.clone();
            let site = Site::open(resource).await?;
            if sites.insert(name.clone(), site).is_some() {
                let message = format!("two simulated resources are called {name:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        Ok(Self { sites })
    }

    /// Names of all resources, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.sites.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Where a resource listens.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn address(&self, name: &str) -> SocketAddr {
        self.site(name).address
    }

    /// The definition of a resource.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn resource(&self, name: &str) -> &Resource {
        &self.site(name).live.resource
    }

    /// Requests whose head was read.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn hits(&self, name: &str) -> usize {
        self.site(name).live.journal.hits()
    }

    /// The latest 10 000 requests, oldest first.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn requests(&self, name: &str) -> Vec<Seen> {
        self.site(name).live.journal.entries()
    }

    /// Connections accepted so far.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn connections(&self, name: &str) -> usize {
        usize::try_from(self.site(name).live.connections()).unwrap_or(usize::MAX)
    }

    /// Changes the mood for the requests to come.
    ///
    /// # Panics
    /// When there is no such resource.
    pub fn set_mood(&self, name: &str, mood: Mood) {
        *hold(&self.site(name).live.script) = Script::new(mood);
    }

    /// Closes the listening socket: new connections are refused, open ones go on.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn stop_listening(&self, name: &str) {
        let accepting = hold(&self.site(name).accepting).take();
        if let Some(task) = accepting {
            task.abort();
            // The listener is closed once the task is gone; that it was aborted is no news.
            drop(task.await);
        }
    }

    /// Listens again, on the same address.
    ///
    /// # Errors
    /// When somebody else has taken the address.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn resume(&self, name: &str) -> io::Result<()> {
        self.stop_listening(name).await;
        let site = self.site(name);
        let task = site.accept_on(bind(site.address)?);
        *hold(&site.accepting) = Some(task);
        Ok(())
    }

    /// Drops the open connections of a resource, whatever they are doing.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn drop_connections(&self, name: &str) {
        let mut dropped = std::mem::take(&mut *hold(&self.site(name).connections));
        dropped.shutdown().await;
    }

    /// Waits until a resource's requests satisfy a condition; `false` after `patience`.
    ///
    /// # Panics
    /// When there is no such resource.
    pub async fn wait(&self, name: &str, patience: Duration, condition: impl Fn(&[Seen]) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        while !condition(&self.requests(name)) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Closes all sockets, and returns when they are closed.
    pub async fn stop(self) {
        for name in self.sites.keys() {
            self.stop_listening(name).await;
            self.drop_connections(name).await;
        }
    }

    fn site(&self, name: &str) -> &Site {
        let Some(site) = self.sites.get(name) else {
            panic!("no simulated resource is called {name:?}; there are {:?}", self.names());
        };
        site
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for site in self.sites.values() {
            if let Some(task) = hold(&site.accepting).take() {
                task.abort();
            }
            hold(&site.connections).abort_all();
        }
    }
}

impl Site {
    async fn open(resource: Resource) -> io::Result<Self> {
        // Yields once, so that starting many resources does not hold up a busy runtime.
        tokio::task::yield_now().await;
        let listener = bind(resource.address)?;
        let address = listener.local_addr()?;
        let live = Arc::new(Live::new(resource, Instant::now()));
        let site = Self { live, address, accepting: Mutex::default(), connections: Arc::default() };
        let task = site.accept_on(listener);
        *hold(&site.accepting) = Some(task);
        Ok(site)
    }

    fn accept_on(&self, listener: TcpListener) -> JoinHandle<()> {
        tokio::spawn(accept(Arc::clone(&self.live), Arc::clone(&self.connections), listener))
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(live: Arc<Live>, connections: Arc<Mutex<JoinSet<()>>>, listener: TcpListener) {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                log::warn!("simulate: {}: cannot accept: {error}", live.resource.name);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let number = live.connected();
        if hold(&live.script).resets_on_accept() {
            socket.sever();
            continue;
        }
        if let Err(error) = socket.set_nodelay(true) {
            log::debug!("simulate: no TCP_NODELAY: {error}");
        }
        let live = Arc::clone(&live);
        let mut open = hold(&connections);
        while open.try_join_next().is_some() {}
        open.spawn(async move { serve(&live, socket, number).await });
    }
}
