//! The addresses of the backends' endpoints. They are resolved in the background; requests only read them.
//!
//! A name that no longer resolves keeps its last addresses, so that an outage of DNS is no outage of the
//! backend.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use log::{info, warn};
use tokio::time::{sleep, timeout};

use crate::config::{Config, Endpoint};
use crate::system_error;

/// How often a name is resolved again. Private endpoints and traffic managers change the addresses of names
/// whose TTL is a minute or less; the system's resolver does not report the TTL.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// How soon a failed lookup is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How often a failure that lasts is logged.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(3600);
/// Longest duration of one lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves host names: with the system's resolver in production, from a script in tests.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// All addresses of this host.
    ///
    /// # Errors
    /// If the host does not resolve.
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

/// The addresses of one endpoint. Backends with the same endpoint share them.
#[derive(Debug)]
pub struct EndpointAddresses {
    host: String,
    port: u16,
    /// Those of the last successful lookup; empty before the first.
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// How often an address was picked; the remainder is the index of the next one.
    pick_count: AtomicUsize,
    /// Why the last lookup failed; `None` if it did not.
    failure: ArcSwapOption<LookupFailure>,
}

/// Lookups of a name that have failed in a row.
#[derive(Clone, Debug)]
pub struct LookupFailure {
    /// When the first of them failed.
    pub since: Instant,
    /// Why the last of them failed.
    pub error: String,
    logged_at: Instant,
}

impl EndpointAddresses {
    fn new(endpoint: &Endpoint) -> Self {
        let literal = endpoint.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, endpoint.port));
        Self {
            host: endpoint.host.clone(),
            port: endpoint.port,
            addresses: ArcSwap::from_pointee(literal.into_iter().collect()),
            pick_count: AtomicUsize::new(0),
            failure: ArcSwapOption::empty(),
        }
    }

    /// The next address, round robin; `None` if the name has never resolved.
    pub fn next_address(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.load();
        match addresses.as_slice() {
            [] => None,
            [only] => Some(*only),
            many => many.get(self.pick_count.fetch_add(1, Ordering::Relaxed) % many.len()).copied(),
        }
    }

    /// Why the name does not resolve at the moment; `None` if it does.
    pub fn lookup_failure(&self) -> Option<Arc<LookupFailure>> {
        self.failure.load_full()
    }

    /// Whether there is an address to connect to, be it of an earlier lookup.
    pub fn has_address(&self) -> bool {
        !self.addresses.load().is_empty()
    }

    fn has_host_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// Resolves the name once and stores its addresses; returns whether that succeeded.
    async fn refresh(&self, resolver: &dyn Resolve) -> bool {
        let resolved = match timeout(LOOKUP_TIMEOUT, resolver.resolve(&self.host, self.port)).await {
            Ok(resolved) => resolved,
            Err(_) => {
                Err(io::Error::other(format!("the DNS server did not answer within {LOOKUP_TIMEOUT:?}")))
            }
        };
        let error = match resolved {
            Ok(mut addresses) if !addresses.is_empty() => {
                // Sorted, because resolvers answer in any order.
                addresses.sort_unstable();
                addresses.dedup();
                let previous = self.addresses.load_full();
                if *previous != addresses {
                    info!("{} resolves to {addresses:?}", self.host);
                    self.addresses.store(Arc::new(addresses));
                }
                // What ends a warning is a warning. Without earlier addresses the monitor tells of both.
                if self.failure.swap(None).is_some() && !previous.is_empty() {
                    warn!("{} resolves again", self.host);
                }
                return true;
            }
            Ok(_) => "the name has no address".to_owned(),
            Err(error) => system_error::describe_lookup(&error),
        };
        self.record_failure(error, Instant::now());
        false
    }

    /// Keeps the failure, and logs it if it is new or was logged an hour ago.
    fn record_failure(&self, error: String, now: Instant) {
        let previous = self.failure.load_full();
        let logged_at = previous.as_ref().map(|previous| previous.logged_at);
        let is_logged = logged_at.is_none_or(|at| now.saturating_duration_since(at) >= FAILURE_LOG_INTERVAL);
        if is_logged {
            match self.addresses.load().len() {
                // The monitor has told that its backends are unresolvable.
                0 if logged_at.is_none() => info!("{} does not resolve: {error}", self.host),
                0 => warn!("{} still does not resolve, its backends cannot be reached: {error}", self.host),
                count => {
                    warn!(
                        "{} does not resolve, its last addresses ({count}) stay in use: {error}",
                        self.host
                    );
                }
            }
        }
        self.failure.store(Some(Arc::new(LookupFailure {
            since: previous.map_or(now, |previous| previous.since),
            error,
            logged_at: if is_logged { now } else { logged_at.unwrap_or(now) },
        })));
    }
}

/// The endpoint addresses of all backends of a configuration.
#[derive(Default)]
pub struct AddressBook {
    /// In the order of the configuration.
    by_backend: Vec<Arc<EndpointAddresses>>,
    /// Endpoints with a host name that the configuration before did not have: nothing resolves them yet.
    added_named_endpoints: Vec<Arc<EndpointAddresses>>,
}

impl AddressBook {
    /// The endpoints of a configuration; no name is resolved yet.
    pub fn new(config: &Config) -> Self {
        Self::default().for_next_config(config)
    }

    /// The endpoints of the next configuration. Those that it shares with this one keep their addresses.
    #[must_use]
    pub fn for_next_config(&self, config: &Config) -> Self {
        let previous =
            self.by_backend.iter().map(|addresses| ((addresses.host.as_str(), addresses.port), addresses));
        let previous: HashMap<(&str, u16), &Arc<EndpointAddresses>> = previous.collect();
        let mut by_endpoint: HashMap<(&str, u16), Arc<EndpointAddresses>> = HashMap::new();
        let mut added_named_endpoints = Vec::new();
        let endpoints = config.backends.iter().map(|backend| &backend.endpoint);
        let by_backend: Vec<_> = endpoints
            .map(|endpoint| {
                let key = (endpoint.host.as_str(), endpoint.port);
                let keep_or_add = || match previous.get(&key) {
                    Some(addresses) => Arc::clone(addresses),
                    None => {
                        let addresses = Arc::new(EndpointAddresses::new(endpoint));
                        added_named_endpoints
                            .extend(addresses.has_host_name().then(|| Arc::clone(&addresses)));
                        addresses
                    }
                };
                Arc::clone(by_endpoint.entry(key).or_insert_with(keep_or_add))
            })
            .collect();
        Self { by_backend, added_named_endpoints }
    }

    /// The endpoint addresses of each backend, in the order of the configuration.
    pub fn by_backend(&self) -> &[Arc<EndpointAddresses>] {
        &self.by_backend
    }

    /// Starts a task for each added name, which resolves it again and again until no configuration uses it.
    pub fn spawn_refresh_tasks(&self, resolver: &Arc<dyn Resolve>) {
        for addresses in &self.added_named_endpoints {
            let (addresses, resolver) = (Arc::downgrade(addresses), Arc::clone(resolver));
            tokio::spawn(async move {
                loop {
                    let Some(in_use) = addresses.upgrade() else { return };
                    let succeeded = in_use.refresh(&*resolver).await;
                    // Dropped before the wait, so that the task does not keep the addresses alive itself.
                    drop(in_use);
                    sleep(if succeeded { REFRESH_INTERVAL } else { RETRY_INTERVAL }).await;
                }
            });
        }
    }

    /// Waits until every added name has resolved once, at most `max_wait`.
    pub async fn wait_until_resolved(&self, max_wait: Duration) {
        let resolved = async {
            while self.added_named_endpoints.iter().any(|addresses| addresses.addresses.load().is_empty()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // A failed lookup has been logged. A backend without an address is not tried until it has one.
        let _ = timeout(max_wait, resolved).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Returns these results, the last one first, and then never responds.
    struct ScriptedResolver(Mutex<Vec<io::Result<Vec<SocketAddr>>>>);

    #[async_trait]
    impl Resolve for ScriptedResolver {
        async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            let next = self.0.lock().unwrap().pop();
            match next {
                Some(result) => result,
                None => std::future::pending().await,
            }
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_no_longer_resolves_keeps_its_last_addresses() {
        let (a, b, c) = (address("10.0.0.1:443"), address("10.0.0.2:443"), address("10.0.0.3:443"));
        let resolver = ScriptedResolver(Mutex::new(vec![
            Ok(vec![c]),
            Ok(vec![]),
            Err(io::Error::other("SERVFAIL")),
            Ok(vec![b, a, b]),
            Err(io::Error::other("not yet")),
        ]));
        let endpoint = Endpoint { uses_tls: true, host: "x.example".into(), port: 443 };
        let addresses = EndpointAddresses::new(&endpoint);
        assert_eq!(addresses.next_address(), None);
        assert!(!addresses.refresh(&resolver).await);
        assert!(addresses.lookup_failure().unwrap().error.contains("not yet") && !addresses.has_address());
        assert_eq!(addresses.next_address(), None);
        assert!(addresses.refresh(&resolver).await);
        assert_eq!(
            [addresses.next_address(), addresses.next_address(), addresses.next_address()],
            [Some(a), Some(b), Some(a)]
        );
        assert!(addresses.lookup_failure().is_none());
        assert!(!addresses.refresh(&resolver).await, "an error");
        let since = addresses.lookup_failure().unwrap().since;
        assert!(!addresses.refresh(&resolver).await, "no address");
        assert_eq!(addresses.lookup_failure().unwrap().since, since);
        assert!([Some(a), Some(b)].contains(&addresses.next_address()));
        assert!(addresses.refresh(&resolver).await);
        assert_eq!(addresses.next_address(), Some(c));
        assert!(!addresses.refresh(&resolver).await, "no response");
        assert_eq!(addresses.next_address(), Some(c));
    }

    #[test]
    fn a_literal_address_needs_no_resolver() {
        let endpoint = Endpoint { uses_tls: false, host: "127.0.0.1".into(), port: 8101 };
        assert_eq!(EndpointAddresses::new(&endpoint).next_address(), Some(address("127.0.0.1:8101")));
    }
}
