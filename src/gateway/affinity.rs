//! Affinity: which resource has what a request refers to, and what the answers tell about that.
//!
//! What is remembered is in `routing/homes`; how the resources are asked is the retry plan's
//! (`routing/retry_plan/resource_search.rs`).

use std::time::{Duration, Instant, SystemTime};

use http::Method;
use smallvec::SmallVec;

use super::Gateway;
use super::admitted_request::AdmittedRequest;
use super::request_affinity::{Moment, ReferencedObject, RequestAffinity};
use super::requested_call::RequestedCall;
use crate::admission::client::Client;
use crate::azure::request::references::{visit_items_without_content, visit_references};
use crate::azure::response::id_time::time_of_id;
use crate::azure::{Operation, ReferenceKind, RequestTarget};
use crate::config::{self, AskLimit, OwnerPolicy, UnavailableHomePolicy};
use crate::names::{Caller, DeploymentName, ResourceName};
use crate::refusal::{Refusal, RefusalReason};
use crate::routing::asking::Missing;
use crate::routing::homes::{Home, Homes, OwnerTag, ResourceTag};
use crate::routing::pool::BackendPool;
use crate::routing::retry_plan::ResourceSearch;

/// The waits before all resources are asked again for an object that was made a short time ago.
const ROUNDS_FOR_RECENT_OBJECT: &[Duration] = &[Duration::from_secs(2), Duration::from_secs(8)];
/// The same for an object whose age is not known.
const ROUNDS_FOR_OBJECT_OF_UNKNOWN_AGE: &[Duration] = &[Duration::from_secs(2)];

/// How many objects of one request whose resource is not known are remembered once one has accepted it. Agents send
/// some hundred items; a client that sends thousands of invented ones must not displace what others have made.
const MAX_UNKNOWN_OBJECTS: usize = 512;
/// The longest id that is repeated in a message.
const MAX_SHOWN_ID_CHARS: usize = 64;

/// What is known of the objects that a request refers to.
#[derive(Default)]
struct ReferencedObjects {
    first_kind: Option<ReferenceKind>,
    /// The resource of those that are known, apart from items.
    known: KnownResource,
    /// The same of items, of which the last one counts. Items may bring their own content, with any id.
    known_items: KnownResource,
    has_unknown_items: bool,
    /// The latest time at which one of them was made that may lag.
    made_at: Option<u32>,
    unknown: SmallVec<[ReferencedObject; 2]>,
    /// Whether one of the unknown ones may lag, and the latest time that their ids tell.
    may_lag: bool,
    latest_id_time: Option<u32>,
    /// The first that another client made.
    foreign: Option<(ReferenceKind, String)>,
}

impl ReferencedObjects {
    /// Whether it matters which items bring their own content: they are not all where everything else is, or nothing
    /// else says where that is.
    fn needs_look_at_items(&self) -> bool {
        match (self.known.index(), self.known_items.index()) {
            _ if self.known_items.has_several => true,
            (Some(known), Some(of_items)) => known != of_items,
            (None, None) => self.has_unknown_items,
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

/// The resource of several objects.
#[derive(Clone, Copy, Default)]
struct KnownResource {
    /// Of the last one. The tag spares a look for the next object of the same one.
    last: Option<(ResourceTag, usize)>,
    has_several: bool,
}

impl KnownResource {
    fn add(&mut self, tag: ResourceTag, index: usize) {
        self.has_several |= self.last.is_some_and(|(_, other)| other != index);
        self.last = Some((tag, index));
    }

    fn index(&self) -> Option<usize> {
        self.last.map(|(_, index)| index)
    }
}

impl Gateway {
    /// Finds out what a request refers to and where that is; `None` if it refers to nothing and names a
    /// deployment. `body` has the bytes that `call` was parsed from.
    ///
    /// # Errors
    /// `mixed_resources`, and with `affinity.owner: enforce` what Azure answers if there is no such object.
    pub(super) fn resolve_affinity(
        &self,
        method: &Method,
        target: &RequestTarget,
        client: &Client,
        call: &RequestedCall,
        body: &[u8],
        received: Moment,
    ) -> Result<Option<Box<RequestAffinity>>, Refusal> {
        if !target.has_references() && call.json_facts().is_none_or(|facts| !facts.has_references()) {
            let is_default = call.deployment.is_none();
            return Ok(is_default.then(|| Box::new(RequestAffinity::default_backend())));
        }
        let mut objects = ReferencedObjects::default();
        visit_references(target, call.json_facts().map(|facts| (facts, body)), &mut |kind, id| {
            self.look_up_object(kind, id, client, received, &mut objects);
        });
        if let Some((kind, id)) = &objects.foreign {
            return Err(foreign_object_refusal(*kind, id));
        }
        // A path says where the request belongs; what an agent adds to a conversation may come from elsewhere.
        if objects.needs_look_at_items() && !target.path_names_object() {
            // Those that the resource has to look up count like other objects.
            visit_items_without_content(body, &mut |id| {
                self.note_object(ReferenceKind::Item, id, false, received, &mut objects);
            });
        }
        if objects.known.has_several {
            return Err(self.mixed_resources_refusal(target, call, body, received));
        }
        let home = objects.known.index().or(objects.known_items.index());
        if home.is_none() && objects.unknown.is_empty() {
            // Nothing that one resource has: items with content and ids of the client's own.
            let is_default = call.deployment.is_none();
            return Ok(is_default.then(|| Box::new(RequestAffinity::default_backend())));
        }
        let deleted_object = if *method == Method::DELETE { self.deleted_object(target) } else { None };
        let search = match home {
            Some(resource_index) => ResourceSearch::Home {
                resource_index,
                lags_until: objects.made_at.and_then(|made_at| self.lag_end(made_at, received)),
            },
            None => self.search_for_unknown(&objects, received),
        };
        Ok(Some(Box::new(RequestAffinity {
            kind: objects.first_kind,
            search: Some(search),
            made_at: objects.made_at,
            unknown_objects: objects.unknown,
            deleted_object,
        })))
    }

    /// The object that a DELETE of this target deletes.
    fn deleted_object(&self, target: &RequestTarget) -> Option<ReferencedObject> {
        let mut in_path = target.path_references();
        let first = in_path.next()?;
        let (kind, id) = in_path.last().unwrap_or(first.clone());
        // The file is taken out of the vector store and stays.
        let only_detaches = first.0 == ReferenceKind::VectorStore && kind == ReferenceKind::File;
        (!only_detaches).then(|| self.referenced_object(self.homes().key_of(id.as_bytes()), &id))
    }

    fn look_up_object(
        &self,
        kind: ReferenceKind,
        id: &str,
        client: &Client,
        received: Moment,
        objects: &mut ReferencedObjects,
    ) {
        objects.first_kind.get_or_insert(kind);
        let found = self.note_object(kind, id, kind == ReferenceKind::Item, received, objects);
        if self.affinity_config.owner_policy == OwnerPolicy::Enforce
            && objects.foreign.is_none()
            && found.and_then(|home| home.maker).is_some_and(|maker| Some(maker) != self.owner_tag(client))
        {
            objects.foreign = Some((kind, id.to_owned()));
        }
    }

    /// Notes what is known of an object. Returns where it lives, if that is known.
    fn note_object(
        &self,
        kind: ReferenceKind,
        id: &str,
        has_content: bool,
        received: Moment,
        objects: &mut ReferencedObjects,
    ) -> Option<Home> {
        let homes = self.homes();
        let key = homes.key_of(id.as_bytes());
        let found = homes.find(key, received.unix_seconds());
        let located = found.and_then(|home| Some((home, self.resource_index(home.resource, objects)?)));
        match located {
            Some((home, resource_index)) => {
                if home.lags {
                    objects.made_at = objects.made_at.max(home.made_at);
                }
                let known = if has_content { &mut objects.known_items } else { &mut objects.known };
                known.add(home.resource, resource_index);
            }
            None if has_content => objects.has_unknown_items = true,
            None => {
                if objects.unknown.len() < MAX_UNKNOWN_OBJECTS {
                    objects.unknown.push(self.referenced_object(key, id));
                }
                if kind.may_lag() {
                    objects.may_lag = true;
                    objects.latest_id_time =
                        objects.latest_id_time.max(time_of_id(id, received.unix_seconds()));
                }
            }
        }
        located.map(|(home, _)| home)
    }

    /// The index of the resource with this tag; `None` if this configuration does not have it.
    fn resource_index(&self, tag: ResourceTag, objects: &ReferencedObjects) -> Option<usize> {
        match objects.known.last.or(objects.known_items.last) {
            Some((known, index)) if known == tag => Some(index),
            _ => self.resources_by_tag.get(tag).copied(),
        }
    }

    /// Until when a resource may deny what was made at this time.
    fn lag_end(&self, made_at: u32, received: Moment) -> Option<Instant> {
        let made_at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(made_at));
        // It is known to a second.
        let lag_end = made_at + self.affinity_config.read_lag + Duration::from_secs(1);
        let remaining = lag_end.duration_since(received.time).ok()?;
        // A clock that was set back must not make it longer.
        Some(received.instant + remaining.min(self.affinity_config.read_lag))
    }

    fn search_for_unknown(&self, objects: &ReferencedObjects, received: Moment) -> ResourceSearch {
        let max_further = match self.affinity_config.ask_limit {
            AskLimit::All => u32::MAX,
            AskLimit::AtMost(limit) => limit,
        };
        let read_lag = self.affinity_config.read_lag.as_secs();
        let age = objects.latest_id_time.map(|made_at| received.unix_seconds().saturating_sub(made_at));
        let further_rounds = match age {
            _ if !objects.may_lag || read_lag == 0 => &[],
            None => ROUNDS_FOR_OBJECT_OF_UNKNOWN_AGE,
            Some(age) if u64::from(age) <= read_lag => ROUNDS_FOR_RECENT_OBJECT,
            Some(_) => &[],
        };
        let asking = &self.process_state.asking;
        let missing =
            objects.unknown.iter().filter_map(|object| asking.missing(object.key, received.instant));
        match missing.max() {
            Some(Missing::Deleted) => ResourceSearch::Ask { max_further: 0, further_rounds: &[] },
            Some(Missing::Denied) if further_rounds.is_empty() => {
                ResourceSearch::Ask { max_further: 0, further_rounds }
            }
            _ => ResourceSearch::Ask { max_further, further_rounds },
        }
    }

    /// Names where the objects are that a request refers to.
    fn mixed_resources_refusal(
        &self,
        target: &RequestTarget,
        call: &RequestedCall,
        body: &[u8],
        received: Moment,
    ) -> Refusal {
        let mut first_on_each: SmallVec<[(usize, String); 2]> = SmallVec::new();
        visit_references(target, call.json_facts().map(|facts| (facts, body)), &mut |_, id| {
            let homes = self.homes();
            let home = homes.find(homes.key_of(id.as_bytes()), received.unix_seconds());
            let resource =
                home.and_then(|home| self.resource_index(home.resource, &ReferencedObjects::default()));
            if let Some(resource) = resource
                && !first_on_each.iter().any(|(known, _)| *known == resource)
            {
                first_on_each.push((resource, shorten_id(id)));
            }
        });
        let places = first_on_each.iter().filter_map(|(index, id)| {
            self.resources.get(*index).map(|resource| format!("'{id}' is on {}", resource.name))
        });
        let places: Vec<String> = places.collect();
        let message = format!(
            "the request refers to objects of different Azure resources, and no resource can read those of another: \
             {}",
            places.join(", ")
        );
        Refusal::new(RefusalReason::MixedResources, message)
    }

    /// Records that this resource, asked or known, has answered a request with success that refers to objects.
    pub fn on_references_accepted(&self, affinity: &RequestAffinity, resource_index: usize, now: Moment) {
        let Some(resource) = self.resources.get(resource_index) else { return };
        let home = Home { resource: resource.tag, maker: None, made_at: None, lags: false };
        for object in &affinity.unknown_objects {
            self.homes().learn(object.key, home, now.unix_seconds());
            self.share_found_home(object, resource);
        }
        if let Some(object) = affinity.deleted_object {
            self.homes().forget(object.key);
            self.process_state.asking.record_missing(object.key, Missing::Deleted, now.instant);
            self.share_deletion(&object);
        }
    }

    /// Takes a turn to ask a further resource for this client: when it may be asked, `None` for now.
    pub fn take_turn_to_ask(&self, caller: &Caller, now: Instant) -> Option<Instant> {
        self.process_state.asking.take_turn(caller, now)
    }

    /// Records that all resources that were asked have denied what a request refers to.
    pub fn on_references_denied(&self, affinity: &RequestAffinity, now: Instant) {
        for object in &affinity.unknown_objects {
            self.process_state.asking.record_missing(object.key, Missing::Denied, now);
        }
    }

    /// Checks that the resource that has what a request refers to can serve the request, as far as the configuration
    /// tells.
    ///
    /// # Errors
    /// `DeploymentNotFound`, and `home_unavailable` if its backends are disabled.
    pub(super) fn check_home_serves(
        &self,
        affinity: Option<&RequestAffinity>,
        deployment: Option<&DeploymentName>,
        pool: &BackendPool,
    ) -> Result<(), Refusal> {
        let Some(home) = affinity.and_then(RequestAffinity::home) else { return Ok(()) };
        if pool.candidates().iter().any(|candidate| candidate.resource_index == home) {
            return Ok(());
        }
        let Some(resource) = self.resources.get(home) else { return Ok(()) };
        let disabled = self.disabled_backends.iter().map(|backend| &backend.config).find(|backend| {
            backend.resource == resource.name
                && deployment.is_none_or(|name| backend.deployments.upstream_name(name).is_some())
        });
        let name = &resource.name;
        Err(match (deployment, disabled) {
            (_, Some(disabled)) => Refusal::new(
                RefusalReason::HomeUnavailable,
                format!(
                    "the request refers to an object of the Azure resource {name}, whose backend {} is disabled in the \
                     balancer's configuration",
                    disabled.name
                ),
            ),
            (Some(deployment), None) => Refusal::new(
                RefusalReason::DeploymentNotFound,
                format!(
                    "The API deployment '{deployment}' does not exist on the Azure resource {name}, which has what the \
                     request refers to: a conversation stays on the resource that it was begun on."
                ),
            ),
            (None, None) => Refusal::new(
                RefusalReason::HomeUnavailable,
                format!("the Azure resource {name}, which has what the request refers to, has no backend"),
            ),
        })
    }

    /// A resource that may have what the request refers to and that cannot be asked, because all of its backends
    /// that serve the deployment are disabled.
    pub fn disabled_resource(&self, admitted: &AdmittedRequest) -> Option<&ResourceName> {
        let is_in_pool = |name: &ResourceName| {
            let mut candidates = admitted.pool.candidates().iter();
            candidates.any(|candidate| {
                self.resources.get(candidate.resource_index).is_some_and(|resource| resource.name == *name)
            })
        };
        let deployment = admitted.deployment.as_ref();
        let mut disabled = self.disabled_backends.iter().map(|backend| &backend.config);
        let serves = |backend: &&config::DisabledBackend| {
            deployment.is_none_or(|name| backend.deployments.upstream_name(name).is_some())
        };
        disabled
            .find(|backend| serves(backend) && !is_in_pool(&backend.resource))
            .map(|backend| &backend.resource)
    }

    /// Checks that a client may see a list of the objects of all clients. Models are no such objects.
    ///
    /// # Errors
    /// `path_not_allowed`.
    pub(super) fn check_list_allowed(&self, method: &Method, operation: Operation) -> Result<(), Refusal> {
        let is_list = matches!(*method, Method::GET | Method::HEAD) && operation != Operation::Models;
        if !is_list
            || self.affinity_config.owner_policy == OwnerPolicy::Off
            || self.clients.has_only_one_client()
        {
            return Ok(());
        }
        let message = "lists show the objects of all clients, and each client may see its own only \
                       (affinity.owner: enforce)";
        Err(Refusal::new(RefusalReason::ListNotAllowed, message))
    }

    /// Whether a request waits while the resource that it needs is throttled.
    pub(super) fn waits_for_home(&self) -> bool {
        self.affinity_config.unavailable_policy == UnavailableHomePolicy::Wait
    }

    /// The tag of a client as the maker of objects; `None` for a client without a name.
    pub(super) fn owner_tag(&self, client: &Client) -> Option<OwnerTag> {
        client.name.as_ref().map(|name| self.homes().owner_tag(name.as_str()))
    }

    pub(super) fn homes(&self) -> &Homes {
        &self.process_state.homes
    }
}

/// What Azure answers if there is no such object: that another client made it is not told.
fn foreign_object_refusal(kind: ReferenceKind, id: &str) -> Refusal {
    let id = shorten_id(id);
    let (reason, message) = match kind {
        ReferenceKind::PreviousResponse => {
            (RefusalReason::PreviousResponseNotFound, format!("Previous response with id '{id}' not found."))
        }
        ReferenceKind::EncryptedContent => (
            RefusalReason::EncryptedContentNotVerified,
            format!("The encrypted content {id} could not be verified."),
        ),
        ReferenceKind::File => (RefusalReason::ObjectNotFound, format!("No such File object: {id}")),
        ReferenceKind::Response => {
            (RefusalReason::ObjectNotFound, format!("Response with id '{id}' not found."))
        }
        ReferenceKind::Item => (RefusalReason::ObjectNotFound, format!("Item with id '{id}' not found.")),
        ReferenceKind::Conversation => {
            (RefusalReason::ObjectNotFound, format!("Conversation with id '{id}' not found."))
        }
        ReferenceKind::VectorStore => {
            (RefusalReason::ObjectNotFound, format!("Vector store with id '{id}' not found."))
        }
        ReferenceKind::Container => {
            (RefusalReason::ObjectNotFound, format!("Container with id '{id}' not found."))
        }
        _ => (RefusalReason::ObjectNotFound, format!("No object with id '{id}' was found.")),
    };
    Refusal::new(reason, message)
}

/// An id for a message; Azure's are not longer.
fn shorten_id(id: &str) -> String {
    id.chars().take(MAX_SHOWN_ID_CHARS).collect()
}
