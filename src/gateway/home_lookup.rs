//! Looks up what other instances have learned of the objects that a request refers to.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Gateway;
use super::request_affinity::{Moment, ReferencedObject};
use super::requested_call::RequestedCall;
use super::resources::Resource;
use super::shared_homes::{SharedHome, SharedHomes, SharedKey, SharedOwner};
use crate::azure::RequestTarget;
use crate::azure::request::references::visit_references;
use crate::config::OwnerPolicy;
use crate::routing::homes::{Home, ObjectKey, OwnerTag};

/// How many objects of one request are looked up. Agents send some hundred items.
const MAX_LOOKUPS: usize = 512;

/// An object on this instance, and on all.
type Lookup = (ObjectKey, SharedKey);

impl Gateway {
    /// Learns from the other instances where the objects are that a request refers to, unless this instance knows. It
    /// takes 5 ms at most, and nothing without `shared`. `body` has the bytes that `call` was parsed from.
    pub async fn learn_from_other_instances(
        &self,
        target: &RequestTarget,
        call: &RequestedCall,
        body: &[u8],
        received: Moment,
    ) {
        let Some(shared) = self.shared_homes() else { return };
        let has_references =
            target.has_references() || call.json_facts().is_some_and(|facts| facts.has_references());
        if !has_references || !shared.is_up() {
            return;
        }
        let lookups = self.objects_to_look_up(target, call, body, received);
        if lookups.is_empty() {
            return;
        }
        let keys: SmallVec<[SharedKey; 4]> = lookups.iter().map(|(_, key)| *key).collect();
        // Without an answer the resources are asked.
        let Ok(found) = shared.find(&keys).await else { return };
        for ((key, _), home) in lookups.iter().zip(found) {
            if let Some(home) = home {
                self.homes().learn(*key, self.to_local_home(&home), received.unix_seconds());
            }
        }
    }

    /// The objects of a request that this instance does not know; none if what it knows is enough.
    fn objects_to_look_up(
        &self,
        target: &RequestTarget,
        call: &RequestedCall,
        body: &[u8],
        received: Moment,
    ) -> SmallVec<[Lookup; 4]> {
        let enforces_owner = self.affinity_config.owner_policy == OwnerPolicy::Enforce;
        let mut is_located = false;
        let mut lookups = SmallVec::<[Lookup; 4]>::new();
        visit_references(target, call.json_facts().map(|facts| (facts, body)), &mut |_, id| {
            let key = self.homes().key_of(id.as_bytes());
            let known = self.homes().find(key, received.unix_seconds());
            let is_home_known = known.is_some_and(|home| self.resources_by_tag.get(home.resource).is_some());
            is_located |= is_home_known;
            // Another instance may know who made it.
            let is_enough =
                is_home_known && !(enforces_owner && known.is_some_and(|home| home.maker.is_none()));
            let is_needed = !is_enough && (enforces_owner || !is_located);
            if is_needed && lookups.len() < MAX_LOOKUPS && !lookups.iter().any(|(other, _)| *other == key) {
                lookups.push((key, SharedKey::of(id.as_bytes())));
            }
        });
        if is_located && !enforces_owner {
            lookups.clear();
        }
        lookups
    }

    fn to_local_home(&self, home: &SharedHome) -> Home {
        Home {
            resource: self.homes().resource_tag(&home.resource),
            maker: home.owner.and_then(|owner| self.to_local_owner(owner)),
            made_at: home.made_at,
            lags: home.lags,
        }
    }

    /// The tag of a client on this instance. A client that is not in this configuration is another one than any that
    /// is.
    fn to_local_owner(&self, owner: SharedOwner) -> Option<OwnerTag> {
        let names = self.clients.listed_clients().iter().filter_map(|client| client.name.as_ref());
        let known = names.into_iter().find(|name| SharedOwner::of(name.as_str()) == owner);
        match known {
            Some(name) => Some(self.homes().owner_tag(name.as_str())),
            None => OwnerTag::from_hash(owner.to_u32().max(1)),
        }
    }

    /// What shares homes with other instances, if something does.
    pub(super) fn shared_homes(&self) -> Option<&Arc<SharedHomes>> {
        self.process_state.shared_homes.get()
    }

    /// An object with its key on all instances.
    pub(super) fn referenced_object(&self, key: ObjectKey, id: &str) -> ReferencedObject {
        let shared_key = self.shared_homes().map(|_| SharedKey::of(id.as_bytes()));
        ReferencedObject { key, shared_key }
    }

    /// Tells the other instances that a resource has this object.
    pub(super) fn share_found_home(&self, object: &ReferencedObject, resource: &Resource) {
        if let (Some(shared), Some(key)) = (self.shared_homes(), object.shared_key) {
            let resource = resource.name.to_string();
            shared.learn(key, SharedHome { resource, owner: None, made_at: None, lags: false });
        }
    }

    /// Tells the other instances that this object is gone.
    pub(super) fn share_deletion(&self, object: &ReferencedObject) {
        if let (Some(shared), Some(key)) = (self.shared_homes(), object.shared_key) {
            shared.forget(key);
        }
    }
}
