//! The bookings that a process keeps in memory.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::admission::limits::Booked;
use crate::names::ClientName;
use crate::record::stored_bookings::StoredObjectKey;

/// The most bookings that are kept. Beyond it the client with most of them loses its oldest one.
const MAX_BOOKINGS: usize = 16 * 1024;

/// Bookings of objects that have not ended.
#[derive(Debug, Default)]
pub(super) struct OpenBookings {
    by_object: HashMap<StoredObjectKey, Booked>,
    by_client: HashMap<Option<ClientName>, ObjectsOfClient>,
}

/// The objects of one client.
#[derive(Debug, Default)]
struct ObjectsOfClient {
    /// Oldest first. Those that have ended may still be here.
    in_order: VecDeque<StoredObjectKey>,
    /// How many have not ended.
    open: usize,
}

impl OpenBookings {
    /// Adds a booking, unless there is one for the object.
    pub(super) fn insert(&mut self, object: StoredObjectKey, booked: Booked) {
        let client = booked.client();
        let Entry::Vacant(entry) = self.by_object.entry(object) else { return };
        entry.insert(booked);
        let objects = self.by_client.entry(client).or_default();
        objects.in_order.push_back(object);
        objects.open += 1;
        if self.by_object.len() > MAX_BOOKINGS {
            self.remove_oldest_of_largest_client();
        }
    }

    /// Removes the booking for an object.
    pub(super) fn remove(&mut self, object: StoredObjectKey) -> Option<Booked> {
        let booked = self.by_object.remove(&object)?;
        if let Entry::Occupied(mut entry) = self.by_client.entry(booked.client()) {
            let objects = entry.get_mut();
            objects.open = objects.open.saturating_sub(1);
            if objects.open == 0 {
                entry.remove();
            } else if objects.in_order.len() > 2 * objects.open {
                // So that those that have ended do not collect.
                objects.in_order.retain(|object| self.by_object.contains_key(object));
            }
        }
        Some(booked)
    }

    /// All of them, of each client oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = (StoredObjectKey, &Booked)> {
        let objects = self.by_client.values().flat_map(|objects| &objects.in_order);
        objects.filter_map(|object| Some((*object, self.by_object.get(object)?)))
    }

    fn remove_oldest_of_largest_client(&mut self) {
        let Some(objects) = self.by_client.values_mut().max_by_key(|objects| objects.open) else { return };
        while let Some(object) = objects.in_order.pop_front() {
            if self.by_object.contains_key(&object) {
                self.remove(object);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booked(client: &str) -> Booked {
        let text = format!(
            r#"{{"client":"{client}","deployment":null,"tokens":1,"cached_weight_permille":1000,"day":1,"month":1}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn object(client: &str, number: usize) -> StoredObjectKey {
        StoredObjectKey::of(&format!("{client}{number}"))
    }

    #[test]
    fn a_client_with_too_many_objects_loses_its_own_oldest_ones() {
        let mut bookings = OpenBookings::default();
        for number in 0..100 {
            bookings.insert(object("small", number), booked("small"));
        }
        for number in 0..2 * MAX_BOOKINGS {
            bookings.insert(object("large", number), booked("large"));
        }
        assert_eq!((bookings.by_object.len(), bookings.all().count()), (MAX_BOOKINGS, MAX_BOOKINGS));
        assert!(bookings.remove(object("large", 0)).is_none());
        assert!(bookings.remove(object("large", 2 * MAX_BOOKINGS - 1)).is_some());
        assert!((0..100).all(|number| bookings.remove(object("small", number)).is_some()));
        // Those that have ended take no room.
        for number in 0..3 * MAX_BOOKINGS {
            bookings.insert(object("busy", number), booked("busy"));
            assert!(bookings.remove(object("busy", number)).is_some());
            assert!(bookings.remove(object("busy", number)).is_none());
        }
        assert!(!bookings.by_client.contains_key(&Some(ClientName::new("busy"))));
        assert!(bookings.by_client.values().all(|objects| objects.in_order.len() <= 2 * objects.open));
    }
}
