//! The addresses of endpoints, resolved in the background; a request only reads them.
//!
//! A name that stops resolving keeps its last addresses: an outage of DNS is none of the backend.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{info, warn};
use tokio::time::{sleep, timeout};

use crate::config::{Config, Endpoint};

/// How often a name is resolved again: private endpoints and traffic managers move names that live for
/// a minute or less, and the system's resolver does not report how long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// How soon a failed lookup is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The most that one lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves names: with the system's resolver in production, from a script in tests.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// All addresses of this name.
    ///
    /// # Errors
    /// Why the name does not resolve.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver.
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// The addresses of one endpoint.
#[derive(Debug)]
pub struct EndpointAddresses {
    host: String,
    port: u16,
    known: ArcSwap<Vec<SocketAddr>>,
    turn: AtomicUsize,
}

impl EndpointAddresses {
    fn new(endpoint: &Endpoint) -> Self {
        let fixed = endpoint.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, endpoint.port));
        Self {
            host: endpoint.host.clone(),
            port: endpoint.port,
            known: ArcSwap::from_pointee(fixed.into_iter().collect()),
            turn: AtomicUsize::new(0),
        }
    }

    /// The next address, round robin; `None` while the name has never resolved.
    pub fn next_address(&self) -> Option<SocketAddr> {
        let known = self.known.load();
        match known.as_slice() {
            [] => None,
            [only] => Some(*only),
            many => many.get(self.turn.fetch_add(1, Ordering::Relaxed) % many.len()).copied(),
        }
    }

    fn is_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// Resolves the name once; returns whether that succeeded.
    async fn refresh(&self, resolver: &dyn Resolve) -> bool {
        let found = match timeout(LOOKUP_TIMEOUT, resolver.resolve(&self.host, self.port)).await {
            Ok(found) => found,
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no response within {LOOKUP_TIMEOUT:?}")))
            }
        };
        match found {
            Ok(mut found) if !found.is_empty() => {
                found.sort_unstable();
                found.dedup();
                if **self.known.load() != found {
                    info!("{} resolves to {found:?}", self.host);
                    self.known.store(Arc::new(found));
                }
                true
            }
            Ok(_) => self.log_failure("the name has no address"),
            Err(problem) => self.log_failure(&problem.to_string()),
        }
    }

    fn log_failure(&self, problem: &str) -> bool {
        let kept = self.known.load().len();
        warn!("{} does not resolve, its last {kept} addresses stay in use: {problem}", self.host);
        false
    }
}

/// The endpoints of a configuration.
#[derive(Default)]
pub struct AddressBook {
    by_backend: Vec<Arc<EndpointAddresses>>,
    /// Those whose name the configuration before did not have.
    added: Vec<Arc<EndpointAddresses>>,
}

impl AddressBook {
    /// The endpoints of a configuration; no name is resolved yet.
    pub fn new(config: &Config) -> Self {
        Self::default().for_next_config(config)
    }

    /// The endpoints of the next configuration; those that stay keep their addresses.
    #[must_use]
    pub fn for_next_config(&self, config: &Config) -> Self {
        let before = self.by_backend.iter().map(|known| ((known.host.as_str(), known.port), known));
        let before: HashMap<(&str, u16), &Arc<EndpointAddresses>> = before.collect();
        let mut all: HashMap<(&str, u16), Arc<EndpointAddresses>> = HashMap::new();
        let mut added = Vec::new();
        let endpoints = config.backends.iter().map(|backend| &backend.endpoint);
        let by_backend: Vec<_> = endpoints
            .map(|endpoint| {
                let key = (endpoint.host.as_str(), endpoint.port);
                let find = || match before.get(&key) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let addresses = Arc::new(EndpointAddresses::new(endpoint));
                        added.extend(addresses.is_name().then(|| Arc::clone(&addresses)));
                        addresses
                    }
                };
                Arc::clone(all.entry(key).or_insert_with(find))
            })
            .collect();
        Self { by_backend, added }
    }

    /// The addresses of each backend, in the order of the configuration.
    pub fn by_backend(&self) -> &[Arc<EndpointAddresses>] {
        &self.by_backend
    }

    /// Starts a task for each added name, which resolves it for as long as its addresses are in use.
    pub fn spawn_refresh_tasks(&self, resolver: &Arc<dyn Resolve>) {
        for addresses in &self.added {
            let (addresses, resolver) = (Arc::downgrade(addresses), Arc::clone(resolver));
            tokio::spawn(async move {
                loop {
                    let Some(held) = addresses.upgrade() else { return };
                    let succeeded = held.refresh(&*resolver).await;
                    drop(held);
                    sleep(if succeeded { REFRESH_INTERVAL } else { RETRY_INTERVAL }).await;
                }
            });
        }
    }

    /// Waits until every added name has resolved once, at most `max_wait`.
    pub async fn wait_until_resolved(&self, max_wait: Duration) {
        let resolved = async {
            while self.added.iter().any(|addresses| addresses.known.load().is_empty()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // A failed lookup logs itself; a backend without an address cannot be tried until it has one.
        let _ = timeout(max_wait, resolved).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Scripted(Mutex<Vec<io::Result<Vec<SocketAddr>>>>);

    #[async_trait]
    impl Resolve for Scripted {
        async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            let next = self.0.lock().unwrap().pop();
            match next {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_stops_resolving_keeps_its_last_addresses() {
        let (a, b, c) = (address("10.0.0.1:443"), address("10.0.0.2:443"), address("10.0.0.3:443"));
        let script = Scripted(Mutex::new(vec![
            Ok(vec![c]),
            Ok(vec![]),
            Err(io::Error::other("SERVFAIL")),
            Ok(vec![b, a, b]),
            Err(io::Error::other("not yet")),
        ]));
        let endpoint = Endpoint { uses_tls: true, host: "x.example".into(), port: 443 };
        let addresses = EndpointAddresses::new(&endpoint);
        assert_eq!(addresses.next_address(), None);
        assert!(!addresses.refresh(&script).await);
        assert_eq!(addresses.next_address(), None);
        assert!(addresses.refresh(&script).await);
        assert_eq!(
            [addresses.next_address(), addresses.next_address(), addresses.next_address()],
            [Some(a), Some(b), Some(a)]
        );
        assert!(!addresses.refresh(&script).await, "an error");
        assert!(!addresses.refresh(&script).await, "no address");
        assert!([Some(a), Some(b)].contains(&addresses.next_address()));
        assert!(addresses.refresh(&script).await);
        assert_eq!(addresses.next_address(), Some(c));
        assert!(!addresses.refresh(&script).await, "never answers");
        assert_eq!(addresses.next_address(), Some(c));
    }

    #[test]
    fn a_literal_address_needs_no_resolver() {
        let endpoint = Endpoint { uses_tls: false, host: "127.0.0.1".into(), port: 8101 };
        assert_eq!(EndpointAddresses::new(&endpoint).next_address(), Some(address("127.0.0.1:8101")));
    }
}
