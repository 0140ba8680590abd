//! The tokens of objects that Azure keeps: a background response, a run. They are told whenever the object
//! is fetched, and are counted once, for the client that made it: by the response to that request, or else by
//! the first one to the same client that shows its end.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::Method;

use super::cost::Pricing;
use super::exchange::{FinishedExchange, WEBSOCKET_METHOD};
use super::stored_bookings::BookingKeeper;
use crate::admission::limits::Reservation;
use crate::azure::response::capture::ResponseCapture;
use crate::names::ClientName;

/// The most objects that are remembered. Beyond it the client with most of them loses its oldest, whose tokens are not
/// counted.
const MAX_UNCOUNTED_OBJECTS: usize = 16 * 1024;

/// The objects whose tokens have not been counted.
#[derive(Debug, Default)]
pub struct StoredUsage {
    uncounted: Mutex<UncountedObjects>,
    /// Nothing is corrected without it.
    bookings: OnceLock<Arc<dyn BookingKeeper>>,
}

/// The objects that were made through this balancer and had not ended then, by their client.
#[derive(Debug, Default)]
struct UncountedObjects {
    by_client: HashMap<u16, ObjectsOfClient>,
    count: usize,
}

/// Hashes of the objects of one client.
#[derive(Debug, Default)]
struct ObjectsOfClient {
    hashes: HashSet<u64>,
    /// Oldest first. Those that have been counted may still be here.
    in_order: VecDeque<u64>,
}

impl StoredUsage {
    /// Removes the tokens of a response that were counted before, or belong to an object that was not made
    /// here.
    pub(super) fn keep_first_count(&self, exchange: &FinishedExchange, capture: &mut ResponseCapture) {
        let object = capture.stored_object.as_ref();
        if !exchange.fetches_stored_object() {
            if let Some(object) = object.filter(|_| exchange.makes_unfinished_object(capture)) {
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

    /// What is booked for objects that have not ended is kept here from now on.
    pub fn keep_bookings_in(&self, keeper: Arc<dyn BookingKeeper>) {
        let _ = self.bookings.set(keeper);
    }

    /// Keeps what was booked for an object that the response has begun, until its end is known.
    pub(super) fn keep_booking(
        &self,
        exchange: &FinishedExchange,
        capture: &ResponseCapture,
        settled: Option<&Reservation>,
    ) {
        let Some((bookings, settled)) = self.bookings.get().zip(settled) else { return };
        let made = exchange.unfinished_object(capture);
        if let Some((object, booked)) = made.and_then(|object| Some((object, settled.booked()?))) {
            bookings.on_made(object, booked);
        }
    }

    /// Corrects what was booked for an object whose end the response shows. Call it before
    /// [`Self::keep_first_count`].
    pub(super) fn correct_booking(
        &self,
        exchange: &FinishedExchange,
        capture: &ResponseCapture,
        pricing: Option<&Arc<Pricing>>,
    ) {
        let Some(bookings) = self.bookings.get() else { return };
        if let Some((object, end)) = exchange.stored_object_end(capture, pricing) {
            bookings.on_ended(object, end);
        }
    }

    /// What another process has to remember, of each client oldest first.
    pub fn uncounted_hashes(&self) -> Vec<u64> {
        let uncounted = self.lock();
        uncounted.by_client.values().flat_map(ObjectsOfClient::in_order).collect()
    }

    /// Adds what another process has remembered.
    pub fn adopt(&self, hashes: &[u64]) {
        let mut uncounted = self.lock();
        hashes.iter().for_each(|hash| uncounted.insert(*hash));
    }

    fn lock(&self) -> MutexGuard<'_, UncountedObjects> {
        self.uncounted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UncountedObjects {
    fn insert(&mut self, hash: u64) {
        if !self.by_client.entry(client_part(hash)).or_default().insert(hash) {
            return;
        }
        self.count += 1;
        if self.count > MAX_UNCOUNTED_OBJECTS {
            let largest = self.by_client.values_mut().max_by_key(|objects| objects.hashes.len());
            if largest.is_some_and(ObjectsOfClient::remove_oldest) {
                self.count -= 1;
            }
        }
    }

    fn remove(&mut self, hash: u64) -> bool {
        let Entry::Occupied(mut objects) = self.by_client.entry(client_part(hash)) else { return false };
        let was_there = objects.get_mut().hashes.remove(&hash);
        self.count -= usize::from(was_there);
        if objects.get().hashes.is_empty() {
            objects.remove();
        }
        was_there
    }
}

impl ObjectsOfClient {
    /// Returns whether it is new.
    fn insert(&mut self, hash: u64) -> bool {
        let is_new = self.hashes.insert(hash);
        if is_new {
            self.in_order.push_back(hash);
        }
        // So that those that have been counted do not collect.
        if self.in_order.len() > 2 * self.hashes.len() {
            self.in_order.retain(|hash| self.hashes.contains(hash));
        }
        is_new
    }

    /// Returns whether there was one.
    fn remove_oldest(&mut self) -> bool {
        while let Some(hash) = self.in_order.pop_front() {
            if self.hashes.remove(&hash) {
                return true;
            }
        }
        false
    }

    /// Those that have not been counted, oldest first.
    fn in_order(&self) -> impl Iterator<Item = u64> {
        self.in_order.iter().copied().filter(|hash| self.hashes.contains(hash))
    }
}

impl FinishedExchange {
    /// Whether the response is about an object that an earlier request made: it is read, polled, resumed or
    /// cancelled.
    pub(super) fn fetches_stored_object(&self) -> bool {
        let is_cancellation = self.target.as_ref().is_some_and(|target| target.is_cancellation());
        let is_create = [Method::POST.as_str(), WEBSOCKET_METHOD].contains(&&*self.method);
        !is_create || is_cancellation
    }

    /// Whether the response begins an object whose tokens a later one shows.
    pub(super) fn makes_unfinished_object(&self, capture: &ResponseCapture) -> bool {
        let is_unfinished = capture.stored_object.as_ref().is_some_and(|object| !object.has_ended);
        is_unfinished && capture.usage.is_none() && !self.fetches_stored_object()
    }
}

/// The hash of an object's id and of the client that made it. It is the same in every process. Its first two bytes are
/// those of the client alone.
fn hash_of(exchange: &FinishedExchange, id: &str) -> u64 {
    let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
    hash_of_names(client.map_or("", ClientName::as_str), id)
}

fn hash_of_names(client: &str, id: &str) -> u64 {
    let [client_0, client_1, ..] = openssl::sha::sha256(client.as_bytes());
    let [_, _, a, b, c, d, e, f, ..] = openssl::sha::sha256(format!("{client}\0{id}").as_bytes());
    u64::from_be_bytes([client_0, client_1, a, b, c, d, e, f])
}

/// What tells the clients of hashes apart. Two clients may have the same, and share what one may have.
fn client_part(hash: u64) -> u16 {
    let [a, b, ..] = hash.to_be_bytes();
    u16::from_be_bytes([a, b])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(client: &str, count: usize) -> Vec<u64> {
        (0..count).map(|number| hash_of_names(client, &number.to_string())).collect()
    }

    #[test]
    fn an_object_is_counted_once() {
        let stored = StoredUsage::default();
        let [first, second] = [1, 2].map(|id| hash_of_names("a", &id.to_string()));
        stored.adopt(&[first, second, first]);
        assert!(stored.lock().remove(first) && !stored.lock().remove(first));
        assert_eq!(stored.uncounted_hashes(), [second]);
        assert!(stored.lock().remove(second) && stored.lock().by_client.is_empty());
    }

    #[test]
    fn a_client_with_too_many_objects_loses_its_own_oldest_ones() {
        let stored = StoredUsage::default();
        let (small, large) = (hashes("small", 100), hashes("large", 2 * MAX_UNCOUNTED_OBJECTS));
        stored.adopt(&small);
        stored.adopt(&large);
        let kept = stored.uncounted_hashes();
        assert_eq!((kept.len(), stored.lock().count), (MAX_UNCOUNTED_OBJECTS, MAX_UNCOUNTED_OBJECTS));
        assert!(small.iter().all(|hash| kept.contains(hash)));
        assert!(kept.contains(&large[large.len() - 1]) && !kept.contains(&large[0]));
        // What a client has counted takes no room.
        for hash in hashes("busy", 3 * MAX_UNCOUNTED_OBJECTS) {
            stored.adopt(&[hash]);
            assert!(stored.lock().remove(hash));
        }
        assert!(small.iter().all(|hash| stored.lock().remove(*hash)));
    }
}
