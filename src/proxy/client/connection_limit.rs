//! Limits the connections of all clients together, so that file descriptors are left for backends and files,
//! and those of each client address, so that one client cannot use up what all may have.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{error, warn};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::system_error::describe;

/// Shortest time between two warnings about refused connections.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// The most connections beyond a limit that wait for their clients to read why they are refused. They count nowhere else.
const MAX_WAITING_REFUSALS: usize = 256;

/// Counts the connections of one listener for each client address.
#[derive(Clone, Debug)]
pub(crate) struct AddressConnectionLimiter {
    /// Where the connections are counted, for the log.
    place: &'static str,
    counts: Arc<Mutex<ConnectionCounts>>,
}

#[derive(Debug, Default)]
struct ConnectionCounts {
    by_address: HashMap<IpAddr, usize>,
    last_warning_at: Option<Instant>,
}

/// Permits one connection of an address; it counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    limiter: AddressConnectionLimiter,
    /// See [`address_or_ipv6_network`].
    address: IpAddr,
}

impl AddressConnectionLimiter {
    /// A limiter without connections. The log calls the place where they are counted by this name.
    pub(crate) fn new(place: &'static str) -> Self {
        Self { place, counts: Arc::default() }
    }

    /// Permits one more connection of this address; `None` if it has `max_connections` already. The limit is
    /// an argument, because a reload may change it.
    pub(crate) fn try_acquire(&self, ip: IpAddr, max_connections: usize) -> Option<ConnectionPermit> {
        let address = address_or_ipv6_network(ip);
        let mut counts = self.lock();
        let count = counts.by_address.entry(address).or_default();
        if *count < max_connections {
            *count += 1;
            return Some(ConnectionPermit { limiter: self.clone(), address });
        }
        let now = Instant::now();
        if counts.last_warning_at.is_none_or(|at| now >= at + WARNING_INTERVAL) {
            counts.last_warning_at = Some(now);
            warn!("{address} has {max_connections} connections ({}); more are refused", self.place);
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.limiter.lock().by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            // Removed, so that the map does not grow with every address that ever connected.
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// The address that connections are counted under: for IPv6 the /64 network, because a single host usually
/// has all of its addresses.
fn address_or_ipv6_network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

/// Logs that a connection to a backend cannot be made because this process or machine lacks something. Of such
/// lines of this room one a minute is written.
pub(in crate::proxy) fn warn_of_local_shortage(error: &io::Error) {
    error!("cannot connect to backends, which is no failure of theirs: {}", describe(error));
}

/// Lets some of the connections beyond a limit wait for their clients to read the refusal.
#[derive(Debug)]
pub(crate) struct RefusalLimiter(Semaphore);

impl RefusalLimiter {
    /// A limiter beside one of this many connections: those that are refused take few descriptors in comparison.
    pub(crate) fn beside(max_connections: usize) -> Self {
        Self(Semaphore::new((max_connections / 16).clamp(1, MAX_WAITING_REFUSALS)))
    }

    /// Permits one more to wait; `None` if it has to be closed at once.
    pub(crate) fn try_acquire(&self) -> Option<SemaphorePermit<'_>> {
        self.0.try_acquire().ok()
    }
}

/// Counts all connections of clients, whatever their address.
#[derive(Debug)]
pub struct TotalConnectionLimiter {
    /// For connections that are refused.
    pub(crate) refusals: RefusalLimiter,
    permits: Arc<Semaphore>,
    max_connections: usize,
    last_warning_at: Mutex<Option<Instant>>,
}

impl TotalConnectionLimiter {
    /// A limiter for this many connections.
    pub fn new(max_connections: usize) -> Self {
        let max_connections = max_connections.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(max_connections));
        let refusals = RefusalLimiter::beside(max_connections);
        Self { refusals, permits, max_connections, last_warning_at: Mutex::default() }
    }

    /// The most connections of one address, so that others are left some, whatever the configuration allows it.
    pub(crate) fn max_of_one_address(&self) -> usize {
        (self.max_connections - self.max_connections / 3).max(1)
    }

    /// Permits one more connection; `None` if there are too many.
    pub(crate) fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        if permit.is_none() {
            let now = Instant::now();
            let mut last_warning_at = self.last_warning_at.lock().unwrap_or_else(PoisonError::into_inner);
            if last_warning_at.is_none_or(|at| now >= at + WARNING_INTERVAL) {
                *last_warning_at = Some(now);
                let max_connections = self.max_connections;
                warn!(
                    "clients have {max_connections} connections, the most for this process; more are refused"
                );
            }
        }
        permit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_connections_to_others_and_refusals_leave_descriptors() {
        for (max_connections, of_one_address, refusals) in
            [(768, 512, 48), (393_216, 262_144, 256), (2, 2, 1), (1, 1, 1), (0, 1, 1)]
        {
            let limit = TotalConnectionLimiter::new(max_connections);
            assert_eq!(limit.max_of_one_address(), of_one_address, "{max_connections}");
            let permits: Vec<_> = std::iter::from_fn(|| limit.refusals.try_acquire()).collect();
            assert_eq!(permits.len(), refusals, "{max_connections}");
            drop(permits);
            assert!(limit.refusals.try_acquire().is_some());
        }
    }

    #[test]
    fn connections_are_limited_for_each_address_separately() {
        let limit = AddressConnectionLimiter::new("test");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = limit.try_acquire(ip("10.0.0.1"), 2);
        let second = limit.try_acquire(ip("::ffff:10.0.0.1"), 2);
        assert!(first.is_some() && second.is_some());
        assert!(limit.try_acquire(ip("10.0.0.1"), 2).is_none());
        assert!(limit.try_acquire(ip("10.0.0.2"), 2).is_some());
        drop(first);
        assert!(limit.try_acquire(ip("10.0.0.1"), 2).is_some());
        drop(second);
        let held = limit.try_acquire(ip("2001:db8::1"), 1);
        assert!(
            limit.try_acquire(ip("2001:db8::2"), 1).is_none()
                && limit.try_acquire(ip("2001:db8:0:1::2"), 1).is_some()
        );
        drop(held);
        assert!(limit.lock().by_address.is_empty(), "an address without connections is forgotten");
    }
}
