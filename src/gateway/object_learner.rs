//! Learns from the response to one request which objects its resource has.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use smallvec::SmallVec;

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::request_affinity::Moment;
use crate::admission::client::Client;
use crate::azure::response::made_objects::{LearnedId, MadeObjectReader};
use crate::azure::response::sse::SseEvent;
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
        let resource = self.resources.get(resource_index)?.tag;
        // Only the reply to a create tells who has made an object.
        let is_create = *method == Method::POST && !admitted.target.has_object_id;
        let maker = client.filter(|_| is_create).and_then(|client| self.owner_tag(client));
        let homes = Arc::clone(&self.process_state.homes);
        Some(ObjectLearner { reader, memory: LearnerMemory { homes, resource, maker, is_create, received } })
    }
}

impl ObjectLearner {
    /// Takes the next bytes of a JSON body.
    pub fn on_body_bytes(&mut self, bytes: &[u8], now: Instant) {
        let mut learned = LearnedObjects::new();
        self.reader.on_body_bytes(bytes, &mut |id| learned.push(self.memory.key_and_lag(&id)));
        self.memory.learn(&learned, !self.reader.says_not_stored(), now);
    }

    /// Takes the next event of a stream.
    pub fn on_event(&mut self, event: &SseEvent<'_>, now: Instant) {
        let mut learned = LearnedObjects::new();
        self.reader.on_event(event, &mut |id| learned.push(self.memory.key_and_lag(&id)));
        self.memory.learn(&learned, !self.reader.says_not_stored(), now);
    }
}

/// Objects that a part of a response tells of, each with whether its kind may lag. Collected first, since the part
/// may say after them that the response is not stored.
type LearnedObjects = SmallVec<[(ObjectKey, bool); 4]>;

impl LearnerMemory {
    fn key_and_lag(&self, learned: &LearnedId<'_>) -> (ObjectKey, bool) {
        (self.homes.key_of(learned.id.as_bytes()), learned.kind.may_lag())
    }

    fn learn(&self, objects: &LearnedObjects, is_stored: bool, now: Instant) {
        for (key, may_lag) in objects {
            let now = self.received.at(now).unix_seconds();
            // What is remembered already was not made by this request, or its maker is known.
            let is_new = self.homes.find(*key, now).is_none();
            let home = Home {
                resource: self.resource,
                maker: self.maker.filter(|_| is_new),
                made_at: self.is_create.then_some(now),
                lags: self.is_create && is_stored && *may_lag,
            };
            self.homes.learn(*key, home, now);
        }
    }
}
