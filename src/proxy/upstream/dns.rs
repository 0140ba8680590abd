//! The addresses of endpoints, looked up in the background.
//!
//! A request only reads. A name that stops resolving keeps its last good addresses: an
//! outage of DNS is not one of the backend.

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

/// How often a name is looked up again: private endpoints and traffic managers move names
/// with a lifetime of a minute or less, and the system's resolver does not tell lifetimes.
const REFRESH: Duration = Duration::from_secs(30);
/// How soon a failed look-up is repeated.
const REPEAT: Duration = Duration::from_secs(5);
/// The most one look-up may take.
const LOOK_UP: Duration = Duration::from_secs(10);

/// Looks a name up. The system's resolver in production; a table in tests.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// All addresses of this name.
    ///
    /// # Errors
    /// Whatever keeps the name from resolving.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver.
pub struct System;

#[async_trait]
impl Resolve for System {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// What is known of one endpoint's addresses.
#[derive(Debug)]
pub struct Addresses {
    host: String,
    port: u16,
    known: ArcSwap<Vec<SocketAddr>>,
    turn: AtomicUsize,
}

impl Addresses {
    fn new(endpoint: &Endpoint) -> Self {
        let fixed = endpoint.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, endpoint.port));
        Self {
            host: endpoint.host.clone(),
            port: endpoint.port,
            known: ArcSwap::from_pointee(fixed.into_iter().collect()),
            turn: AtomicUsize::new(0),
        }
    }

    /// The next address in turn; `None` while the name has never resolved.
    pub fn next(&self) -> Option<SocketAddr> {
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

    /// Looks the name up once; returns whether that worked.
    async fn refresh(&self, resolver: &dyn Resolve) -> bool {
        let found = match timeout(LOOK_UP, resolver.resolve(&self.host, self.port)).await {
            Ok(found) => found,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {LOOK_UP:?}"))),
        };
        match found {
            Ok(mut found) if !found.is_empty() => {
                found.sort_unstable();
                found.dedup();
                if **self.known.load() != found {
                    info!("{} is now {found:?}", self.host);
                    self.known.store(Arc::new(found));
                }
                true
            }
            Ok(_) => self.failed("it has no address"),
            Err(problem) => self.failed(&problem.to_string()),
        }
    }

    fn failed(&self, problem: &str) -> bool {
        let kept = self.known.load().len();
        warn!("{} does not resolve, {kept} known addresses are kept: {problem}", self.host);
        false
    }
}

/// The endpoints of a configuration.
#[derive(Default)]
pub struct Directory {
    by_backend: Vec<Arc<Addresses>>,
    /// Names that the configuration before did not have.
    new: Vec<Arc<Addresses>>,
}

impl Directory {
    /// The endpoints of a configuration, names not yet looked up.
    pub fn new(config: &Config) -> Self {
        Self::default().followed_by(config)
    }

    /// Those of the next configuration; what is known of an endpoint stays known.
    #[must_use]
    pub fn followed_by(&self, config: &Config) -> Self {
        let before = self.by_backend.iter().map(|known| ((known.host.as_str(), known.port), known));
        let before: HashMap<(&str, u16), &Arc<Addresses>> = before.collect();
        let mut all: HashMap<(&str, u16), Arc<Addresses>> = HashMap::new();
        let mut new = Vec::new();
        let endpoints = config.backends.iter().map(|backend| &backend.endpoint);
        let by_backend: Vec<_> = endpoints
            .map(|endpoint| {
                let key = (endpoint.host.as_str(), endpoint.port);
                let find = || match before.get(&key) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let addresses = Arc::new(Addresses::new(endpoint));
                        new.extend(addresses.is_name().then(|| Arc::clone(&addresses)));
                        addresses
                    }
                };
                Arc::clone(all.entry(key).or_insert_with(find))
            })
            .collect();
        Self { by_backend, new }
    }

    /// The addresses of each backend, in the order of the configuration.
    pub fn by_backend(&self) -> &[Arc<Addresses>] {
        &self.by_backend
    }

    /// Starts looking up the names that are new, each on its own and for as long as somebody needs
    /// its addresses.
    pub fn watch(&self, resolver: &Arc<dyn Resolve>) {
        for addresses in &self.new {
            let (addresses, resolver) = (Arc::downgrade(addresses), Arc::clone(resolver));
            tokio::spawn(async move {
                loop {
                    let Some(held) = addresses.upgrade() else { return };
                    let good = held.refresh(&*resolver).await;
                    drop(held);
                    sleep(if good { REFRESH } else { REPEAT }).await;
                }
            });
        }
    }

    /// Waits until every new name has resolved once, at most so long.
    pub async fn settle(&self, most: Duration) {
        let resolved = async {
            while self.new.iter().any(|addresses| addresses.known.load().is_empty()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // Names that do not resolve are logged where they fail; their backends wait.
        let _ = timeout(most, resolved).await;
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
    async fn the_last_good_addresses_are_kept_and_new_ones_taken() {
        let (a, b, c) = (address("10.0.0.1:443"), address("10.0.0.2:443"), address("10.0.0.3:443"));
        let script = Scripted(Mutex::new(vec![
            Ok(vec![c]),
            Ok(vec![]),
            Err(io::Error::other("SERVFAIL")),
            Ok(vec![b, a, b]),
            Err(io::Error::other("not yet")),
        ]));
        let endpoint = Endpoint { tls: true, host: "x.example".into(), port: 443 };
        let addresses = Addresses::new(&endpoint);
        assert_eq!(addresses.next(), None);
        assert!(!addresses.refresh(&script).await);
        assert_eq!(addresses.next(), None);
        assert!(addresses.refresh(&script).await);
        assert_eq!([addresses.next(), addresses.next(), addresses.next()], [Some(a), Some(b), Some(a)]);
        assert!(!addresses.refresh(&script).await, "an error");
        assert!(!addresses.refresh(&script).await, "no address");
        assert!([Some(a), Some(b)].contains(&addresses.next()));
        assert!(addresses.refresh(&script).await);
        assert_eq!(addresses.next(), Some(c));
        assert!(!addresses.refresh(&script).await, "never answers");
        assert_eq!(addresses.next(), Some(c));
    }

    #[test]
    fn a_literal_address_needs_no_resolver() {
        let endpoint = Endpoint { tls: false, host: "127.0.0.1".into(), port: 8101 };
        assert_eq!(Addresses::new(&endpoint).next(), Some(address("127.0.0.1:8101")));
    }
}
