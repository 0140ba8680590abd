//! The tokens of objects that Azure keeps: a background response, a run. They are told whenever the object
//! is fetched, and are counted once, for the client that made it: by the response to that request, or else by
//! the first one to the same client that shows its end.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::Method;

use super::exchange::{FinishedExchange, WEBSOCKET_METHOD};
use crate::azure::response::capture::ResponseCapture;
use crate::names::ClientName;

/// The most objects that are remembered; beyond it the oldest is forgotten, and its tokens are not counted.
const MAX_UNCOUNTED_OBJECTS: usize = 16 * 1024;

/// The objects whose tokens have not been counted.
#[derive(Debug, Default)]
pub struct StoredUsage(Mutex<UncountedObjects>);

/// Hashes of the clients and ids of objects that were made through this balancer and had not ended then.
#[derive(Debug, Default)]
struct UncountedObjects {
    hashes: HashSet<u64>,
    in_order: VecDeque<u64>,
}

impl StoredUsage {
    /// Removes the tokens of a response that were counted before, or belong to an object that was not made
    /// here.
    pub(super) fn keep_first_count(&self, exchange: &FinishedExchange, capture: &mut ResponseCapture) {
        let object = capture.stored_object.as_ref();
        if !exchange.fetches_stored_object() {
            if let Some(object) = object
                && !object.has_ended
                && capture.usage.is_none()
            {
                self.lock().insert(hash_of(exchange, &object.id));
            }
            return;
        }
        let is_first = capture.usage.is_some()
            && object
                .is_some_and(|object| object.has_ended && self.lock().remove(hash_of(exchange, &object.id)));
        if !is_first {
            capture.usage = None;
        }
    }

    /// What another process has to remember, oldest first.
    pub fn uncounted_hashes(&self) -> Vec<u64> {
        let uncounted = self.lock();
        uncounted.in_order.iter().copied().filter(|hash| uncounted.hashes.contains(hash)).collect()
    }

    /// Adds what another process has remembered.
    pub fn adopt(&self, hashes: &[u64]) {
        let mut uncounted = self.lock();
        hashes.iter().for_each(|hash| uncounted.insert(*hash));
    }

    fn lock(&self) -> MutexGuard<'_, UncountedObjects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UncountedObjects {
    fn insert(&mut self, hash: u64) {
        if !self.hashes.insert(hash) {
            return;
        }
        self.in_order.push_back(hash);
        // Those that have been counted are still in order.
        while self.in_order.len() > MAX_UNCOUNTED_OBJECTS
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }

    fn remove(&mut self, hash: u64) -> bool {
        self.hashes.remove(&hash)
    }
}

impl FinishedExchange {
    /// Whether the response is about an object that an earlier request made: it is read, polled, resumed or
    /// cancelled.
    pub(super) fn fetches_stored_object(&self) -> bool {
        let is_cancellation = self.target.as_ref().is_some_and(|target| target.path.ends_with("/cancel"));
        let is_create = [Method::POST.as_str(), WEBSOCKET_METHOD].contains(&&*self.method);
        !is_create || is_cancellation
    }
}

/// The hash of an object's id and of the client that made it. It is the same in every process.
fn hash_of(exchange: &FinishedExchange, id: &str) -> u64 {
    let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
    let client = client.map_or("", ClientName::as_str);
    let digest = openssl::sha::sha256(format!("{client}\0{id}").as_bytes());
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_counted_once_and_the_oldest_is_forgotten() {
        let stored = StoredUsage::default();
        stored.adopt(&[1, 2, 1]);
        assert!(stored.lock().remove(1) && !stored.lock().remove(1));
        assert_eq!(stored.uncounted_hashes(), [2]);
        stored.adopt(&(10..10 + MAX_UNCOUNTED_OBJECTS as u64).collect::<Vec<_>>());
        assert!(!stored.lock().remove(2) && stored.lock().remove(10));
        assert!(stored.lock().in_order.len() <= MAX_UNCOUNTED_OBJECTS);
    }
}
