//! Learns from the response to one request which objects its resource has.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use smallvec::SmallVec;

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::request_affinity::Moment;
use super::shared_homes::{SharedHome, SharedHomes, SharedKey, SharedOwner};
use crate::admission::client::Client;
use crate::azure::response::made_objects::{LearnedId, MadeObjectReader};
use crate::azure::response::sse::SseEvent;
use crate::names::ResourceName;
use crate::routing::homes::{Home, Homes, ObjectKey, OwnerTag, ResourceTag};

/// Learns from one response which objects its resource has.
#[derive(Debug)]
pub struct ObjectLearner {
    reader: MadeObjectReader,
    memory: LearnerMemory,
}

#[derive(Debug)]
struct LearnerMemory {
    homes: Arc<Homes>,
    resource: ResourceTag,
    /// The client that makes what the response tells of; `None` if it makes nothing, or has no name.
    maker: Option<OwnerTag>,
    is_create: bool,
    received: Moment,
    /// Tells the other instances; `None` if there are none.
    sharing: Option<LearnerSharing>,
}

#[derive(Debug)]
struct LearnerSharing {
    homes: Arc<SharedHomes>,
    resource: ResourceName,
    owner: Option<SharedOwner>,
}

impl Gateway {
    /// What learns from the response of a backend with this resource; `None` if such responses tell of no objects.
    pub fn object_learner(
        &self,
        admitted: &AdmittedRequest,
        method: &Method,
        client: Option<&Client>,
        resource_index: usize,
        received: Moment,
    ) -> Option<ObjectLearner> {
        let reader = MadeObjectReader::new(&admitted.target)?;
        let resource = self.resources.get(resource_index)?;
        // Only the reply to a create tells who has made an object.
        let is_create = *method == Method::POST && !admitted.target.has_object_id;
        let client = client.filter(|_| is_create);
        let maker = client.and_then(|client| self.owner_tag(client));
        let homes = Arc::clone(&self.process_state.homes);
        let sharing = self.shared_homes().map(|homes| LearnerSharing {
            homes: Arc::clone(homes),
            resource: resource.name.clone(),
            owner: client.and_then(|client| client.name.as_ref()).map(|name| SharedOwner::of(name.as_str())),
        });
        let resource = resource.tag;
        let memory = LearnerMemory { homes, resource, maker, is_create, received, sharing };
        Some(ObjectLearner { reader, memory })
    }
}

impl ObjectLearner {
    /// Takes the next bytes of a JSON body.
    pub fn on_body_bytes(&mut self, bytes: &[u8], now: Instant) {
        let mut learned = LearnedObjects::new();
        self.reader.on_body_bytes(bytes, &mut |id| learned.push(self.memory.learned_object(&id)));
        self.memory.learn(&learned, !self.reader.says_not_stored(), now);
    }

    /// Takes the next event of a stream.
    pub fn on_event(&mut self, event: &SseEvent<'_>, now: Instant) {
        let mut learned = LearnedObjects::new();
        self.reader.on_event(event, &mut |id| learned.push(self.memory.learned_object(&id)));
        self.memory.learn(&learned, !self.reader.says_not_stored(), now);
    }
}

/// An object that a response tells of.
struct LearnedObject {
    key: ObjectKey,
    /// The same on all instances; `None` if nothing is shared.
    shared_key: Option<SharedKey>,
    /// Whether its kind may lag.
    may_lag: bool,
}

/// Objects that a part of a response tells of. Collected first, since the part may say after them that the response is
/// not stored.
type LearnedObjects = SmallVec<[LearnedObject; 4]>;

impl LearnerMemory {
    fn learned_object(&self, learned: &LearnedId<'_>) -> LearnedObject {
        let id = learned.id.as_bytes();
        let shared_key = self.sharing.as_ref().map(|_| SharedKey::of(id));
        LearnedObject { key: self.homes.key_of(id), shared_key, may_lag: learned.kind.may_lag() }
    }

    fn learn(&self, objects: &LearnedObjects, is_stored: bool, now: Instant) {
        for LearnedObject { key, shared_key, may_lag } in objects {
            let now = self.received.at(now).unix_seconds();
            // What is remembered already was not made by this request, or its maker is known.
            let known = self.homes.find(*key, now);
            let is_new = known.is_none();
            let home = Home {
                resource: self.resource,
                maker: self.maker.filter(|_| is_new),
                made_at: self.is_create.then_some(now),
                lags: self.is_create && is_stored && *may_lag,
            };
            self.homes.learn(*key, home, now);
            // Once for each object, though many events tell of it.
            if let (Some(sharing), Some(shared_key)) = (&self.sharing, shared_key)
                && known.is_none_or(|known| known.resource != home.resource)
            {
                sharing.homes.learn(
                    *shared_key,
                    SharedHome {
                        resource: sharing.resource.to_string(),
                        owner: sharing.owner.filter(|_| is_new),
                        made_at: home.made_at,
                        lags: home.lags,
                    },
                );
            }
        }
    }
}
