//! How many connections each address has: one client must not take the descriptors of all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

/// The log says at most so often that somebody has too many.
const QUIET: Duration = Duration::from_secs(60);

/// The connections of one listener by address.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct Crowd(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    by_address: HashMap<IpAddr, usize>,
    complained: Option<Instant>,
}

/// One connection of an address; given back when dropped.
#[derive(Debug)]
pub(in crate::proxy) struct Place {
    crowd: Crowd,
    address: IpAddr,
}

impl Crowd {
    /// One more for this address; `None` if it has so many.
    pub(in crate::proxy) fn place(&self, ip: IpAddr, most: usize) -> Option<Place> {
        let address = one_client(ip);
        let mut counts = self.lock();
        let count = counts.by_address.entry(address).or_default();
        if *count < most {
            *count += 1;
            return Some(Place { crowd: self.clone(), address });
        }
        let now = Instant::now();
        if counts.complained.is_none_or(|at| now >= at + QUIET) {
            counts.complained = Some(now);
            warn!("{address} has {most} connections (listeners[].connections_per_client); more are refused");
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.crowd.lock().by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Whom an address stands for: of IPv6 everyone has a whole network of 64 bits.
fn one_client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_places() {
        let crowd = Crowd::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = crowd.place(ip("10.0.0.1"), 2);
        let second = crowd.place(ip("::ffff:10.0.0.1"), 2);
        assert!(first.is_some() && second.is_some());
        assert!(crowd.place(ip("10.0.0.1"), 2).is_none());
        assert!(crowd.place(ip("10.0.0.2"), 2).is_some());
        drop(first);
        assert!(crowd.place(ip("10.0.0.1"), 2).is_some());
        drop(second);
        let held = crowd.place(ip("2001:db8::1"), 1);
        assert!(
            crowd.place(ip("2001:db8::2"), 1).is_none() && crowd.place(ip("2001:db8:0:1::2"), 1).is_some()
        );
        drop(held);
        assert!(crowd.lock().by_address.is_empty(), "nothing is left behind");
    }
}
