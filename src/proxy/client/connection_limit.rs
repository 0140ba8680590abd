//! Limits the connections of each client address, so that one client cannot use up all file descriptors.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

/// Shortest time between two warnings about refused connections.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Counts the connections of one listener for each client address.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressConnectionLimiter(Arc<Mutex<ConnectionCounts>>);

#[derive(Debug, Default)]
struct ConnectionCounts {
    by_address: HashMap<IpAddr, usize>,
    last_warning_at: Option<Instant>,
}

/// Permits one connection; it counts as open until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    limiter: AddressConnectionLimiter,
    /// See [`address_or_ipv6_network`].
    address: IpAddr,
}

impl AddressConnectionLimiter {
    /// Permits one more connection of this address; `None` if it has `max_connections` already. The limit is
    /// an argument, because a reload may change it.
    pub(super) fn try_acquire(&self, ip: IpAddr, max_connections: usize) -> Option<ConnectionPermit> {
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
            warn!(
                "{address} has {max_connections} connections (listeners[].connections_per_client); more are refused"
            );
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_for_each_address_separately() {
        let limit = AddressConnectionLimiter::default();
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
