//! The tokens of objects that go on after the response that made them: background responses, runs.
//!
//! Such an object is booked at its estimate when it is made, and its record has no tokens. Every response that shows its end
//! (a read, a poll, a cancellation, a resumed stream) shows its tokens. The first one has them in its record, whichever client
//! gets it, and corrects what was booked for the client that made the object. Where objects are remembered until then, and who
//! decides which response is the first one, is left to `gateway/unfinished_objects/`.

use std::fmt::{self, Debug};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::Method;
use serde::{Deserialize, Serialize};

use super::cost::{Pricing, ResponseCost, StoredResponse};
use super::exchange::{CapturedResponse, FinishedExchange, WEBSOCKET_METHOD};
use super::settlement::used_tokens;
use super::shown_end::ShownEnd;
use crate::admission::limits::{Booked, FinalUse, Reservation, UsedTokens};
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::stored_object::StoredObject;
use crate::azure::{Operation, RequestTarget};
use crate::names::{ClientName, DeploymentName};

/// The hash of an object's id. It is the same in all processes and instances.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoredObjectKey(u128);

/// What is remembered of an object until its end is known. Processes and instances of different versions send it to each
/// other, so its serialized form must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedObject {
    /// The client that made it; `None` if it has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_by: Option<String>,
    /// The deployment that the request named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_for: Option<String>,
    /// When it was made, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_at: Option<u64>,
    /// Whether the record of the request that made it has tokens, since it broke off: they were estimated.
    #[serde(default, skip_serializing_if = "is_false")]
    has_tokens: bool,
    /// What was booked for it; `None` if its client has no budgets.
    #[serde(flatten)]
    booked: Option<Booked>,
}

/// Where objects are remembered.
pub trait UnfinishedObjectKeeper: Debug + Send + Sync {
    /// An object was made that has not ended. Does not wait.
    fn on_made(&self, key: StoredObjectKey, object: UnfinishedObject);

    /// A response shows the end of an object. Returns the object if this is the first one; `None` also if it is not known.
    /// It may wait for an answer, if [`Self::is_decided_elsewhere`] says so.
    fn on_ended(&self, key: StoredObjectKey, end: ObjectEnd) -> Option<UnfinishedObject>;

    /// Whether a server or another process decides which response is the first one.
    fn is_decided_elsewhere(&self) -> bool;
}

/// The objects that have not ended, as records need them.
#[derive(Debug, Default)]
pub struct StoredObjects {
    /// Without it nothing is remembered.
    keeper: OnceLock<Arc<dyn UnfinishedObjectKeeper>>,
}

/// What is known at the end of an object.
#[derive(Debug)]
pub struct ObjectEnd {
    tokens: UsedTokens,
    cost: EndCost,
}

/// What an object has cost.
enum EndCost {
    /// So many millionths of the currency; `None` if that is not known.
    Known(Option<u64>),
    /// As these prices say, which may depend on the deployment.
    Priced(Arc<Pricing>, Box<StoredResponse>),
}

impl StoredObjects {
    /// Objects are remembered here from now on.
    pub fn keep_in(&self, keeper: Arc<dyn UnfinishedObjectKeeper>) {
        let _ = self.keeper.set(keeper);
    }

    /// Whether the record of this exchange may have to wait for an answer of a server or of another process.
    pub(super) fn may_wait_for_decision(&self, exchange: &FinishedExchange) -> bool {
        let may_show_end = match &exchange.captured_response {
            CapturedResponse::Buffered { is_json, .. } => *is_json,
            CapturedResponse::Parsed(capture) => capture.stored_object.is_some(),
            CapturedResponse::NotCaptured | CapturedResponse::Binary { .. } => false,
        };
        may_show_end
            && exchange.fetches_stored_object()
            && uses_tokens_later(exchange.operation())
            && self.keeper.get().is_some_and(|keeper| keeper.is_decided_elsewhere())
    }

    /// Whether the response is the first one that shows the end of an object with its tokens. What was booked for the object
    /// is corrected then. `None` if the exchange is not about an object of an earlier request.
    pub(super) fn on_response(
        &self,
        exchange: &FinishedExchange,
        capture: &ResponseCapture,
        pricing: Option<&Arc<Pricing>>,
    ) -> Option<ShownEnd> {
        if !exchange.fetches_stored_object() {
            return None;
        }
        let end = exchange.stored_object_end(capture, pricing);
        let end = end.filter(|_| uses_tokens_later(exchange.operation()));
        let object = self.keeper.get().zip(end).and_then(|(keeper, (key, end))| keeper.on_ended(key, end));
        let object = object.filter(|object| !object.has_tokens);
        Some(object.map_or(ShownEnd::NotCounted, |object| ShownEnd::First(object.deployment())))
    }

    /// Remembers an object that the response has begun, until its end is known, with what was booked for it.
    pub(super) fn on_settled(
        &self,
        exchange: &FinishedExchange,
        capture: &ResponseCapture,
        settled: Option<&Reservation>,
    ) {
        let Some(keeper) = self.keeper.get() else { return };
        let Some(object) = exchange.unfinished_object(capture) else { return };
        let booked = settled.and_then(Reservation::booked);
        let has_tokens = capture.usage.is_some();
        if !uses_tokens_later(exchange.operation()) || (has_tokens && booked.is_none()) {
            return;
        }
        let client = exchange.client.as_ref().and_then(|client| client.name.as_ref());
        let made = UnfinishedObject {
            made_by: client.map(ToString::to_string),
            made_for: exchange.requested_deployment.as_ref().map(ToString::to_string),
            made_at: exchange
                .received_at
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .map(|since_1970| since_1970.as_secs()),
            has_tokens,
            booked,
        };
        keeper.on_made(StoredObjectKey::of(&object.id), made);
    }
}

/// Whether an object of this operation uses tokens after the response that made it, and shows them at its end. Batches do as
/// well, but are billed apart.
fn uses_tokens_later(operation: Operation) -> bool {
    matches!(operation, Operation::Responses | Operation::Threads)
}

impl UnfinishedObject {
    /// The client that made it; `None` if it has no name.
    pub fn client(&self) -> Option<ClientName> {
        let client = self.made_by.as_deref().map(ClientName::new);
        client.or_else(|| self.booked.as_ref()?.client())
    }

    /// The deployment that the request named.
    pub fn deployment(&self) -> Option<DeploymentName> {
        let deployment = self.made_for.as_deref().and_then(|name| DeploymentName::parse(name).ok());
        deployment.or_else(|| self.booked.as_ref()?.deployment())
    }

    /// How long ago it was made.
    pub fn age(&self, now: SystemTime) -> Duration {
        let made_at = self.made_at.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        made_at.and_then(|made_at| now.duration_since(made_at).ok()).unwrap_or_default()
    }

    /// What was booked for it; `None` if its client has no budgets.
    pub fn booked(&self) -> Option<&Booked> {
        self.booked.as_ref()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

impl StoredObjectKey {
    /// The key of an id.
    pub fn of(id: &str) -> Self {
        let digest = openssl::sha::sha256(format!("aoai-lb stored\0{id}").as_bytes());
        let first = digest.first_chunk().copied().unwrap_or_default();
        Self(u128::from_be_bytes(first))
    }

    /// As 32 hexadecimal digits.
    pub fn to_text(self) -> String {
        format!("{:032x}", self.0)
    }

    /// Reads what [`Self::to_text`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl Debug for StoredObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl ObjectEnd {
    /// An end whose cost another process has found out.
    pub fn known(used: FinalUse) -> Self {
        Self { tokens: used.tokens, cost: EndCost::Known(used.cost_millionths) }
    }

    /// What the object has used, if the request that made it named this deployment.
    pub fn final_use(&self, deployment: Option<&DeploymentName>) -> FinalUse {
        let cost_millionths = match &self.cost {
            EndCost::Known(cost) => *cost,
            EndCost::Priced(pricing, response) => match pricing.cost_of_stored(response, deployment) {
                ResponseCost::Known(amount) => Some(amount.millionths()),
                ResponseCost::Provisioned | ResponseCost::NotBilled => Some(0),
                ResponseCost::Unknown | ResponseCost::BilledLater => None,
            },
        };
        FinalUse { tokens: self.tokens, cost_millionths }
    }
}

impl Debug for EndCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(cost) => f.debug_tuple("Known").field(cost).finish(),
            Self::Priced(..) => f.write_str("Priced"),
        }
    }
}

impl FinishedExchange {
    /// Finds out ahead of the record whether the response, which has been parsed, is the first one that shows the end of an
    /// object.
    pub(super) fn look_for_shown_end(&mut self, objects: &StoredObjects, pricing: Option<&Arc<Pricing>>) {
        if let CapturedResponse::Parsed(capture) = &self.captured_response {
            self.shown_end = objects.on_response(self, capture, pricing);
        }
    }

    /// Whether the response is about an object that an earlier request made: it is read, polled, resumed, cancelled or
    /// changed.
    pub(super) fn fetches_stored_object(&self) -> bool {
        let is_create = [Method::POST.as_str(), WEBSOCKET_METHOD].contains(&&*self.method);
        let works_on_stored = |target: &Arc<RequestTarget>| {
            // A POST to a stored chat completion changes its metadata.
            target.is_cancellation() || (target.operation == Operation::Chat && target.has_object_id)
        };
        !is_create || self.target.as_ref().is_some_and(works_on_stored)
    }

    /// Whether the response begins an object whose tokens a later one shows.
    pub(super) fn makes_unfinished_object(&self, capture: &ResponseCapture) -> bool {
        capture.usage.is_none() && self.unfinished_object(capture).is_some()
    }

    /// The object that the response has begun and whose end a later one shows.
    fn unfinished_object<'a>(&self, capture: &'a ResponseCapture) -> Option<&'a StoredObject> {
        let object = capture.stored_object.as_ref().filter(|object| !object.has_ended)?;
        (!self.fetches_stored_object()).then_some(object)
    }

    /// The end of an object that an earlier request has made, if the response shows it with its tokens.
    fn stored_object_end(
        &self,
        capture: &ResponseCapture,
        pricing: Option<&Arc<Pricing>>,
    ) -> Option<(StoredObjectKey, ObjectEnd)> {
        let object = capture.stored_object.as_ref().filter(|object| object.has_ended)?;
        let usage = capture.usage.as_ref()?;
        let cost = match pricing {
            Some(pricing) => {
                let response = pricing.stored_response(self, capture);
                EndCost::Priced(Arc::clone(pricing), Box::new(response))
            }
            None => EndCost::Known(None),
        };
        Some((StoredObjectKey::of(&object.id), ObjectEnd { tokens: used_tokens(usage), cost }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serialized_form_does_not_change() {
        let booked =
            r#""client":"a","deployment":null,"tokens":5,"cached_weight_permille":1000,"day":1,"month":2"#;
        for (text, has_booked) in [
            (r#"{"made_by":"a","made_for":"gpt-4o","has_tokens":true}"#.to_owned(), false),
            (format!(r#"{{"made_by":"a","made_for":"gpt-4o",{booked}}}"#), true),
            ("{}".to_owned(), false),
            // As an earlier version has written it.
            (format!("{{{booked}}}"), true),
        ] {
            let object: UnfinishedObject = serde_json::from_str(&text).unwrap();
            assert_eq!(object.booked.is_some(), has_booked, "{text}");
            assert_eq!(serde_json::to_string(&object).unwrap(), text);
        }
        let key = StoredObjectKey::of("resp_1");
        assert_eq!(StoredObjectKey::parse(&key.to_text()), Some(key));
    }
}
