//! Corrects what was booked against budgets for responses that go on in the background.
//!
//! Such a response is booked at its estimate when it is created. The first response about it that shows its end and its tokens
//! corrects that, whichever client gets it: the booking is that of the client that made it. Where bookings are kept until
//! then is left to `gateway/stored_bookings/`.

use std::fmt::{self, Debug};
use std::sync::Arc;

use super::cost::{Pricing, ResponseCost, StoredResponse};
use super::exchange::FinishedExchange;
use super::settlement::used_tokens;
use crate::admission::limits::{Booked, FinalUse, UsedTokens};
use crate::azure::response::capture::ResponseCapture;
use crate::names::DeploymentName;

/// The hash of an object's id. It is the same in all processes and instances.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoredObjectKey(u128);

/// Where bookings are kept. Nothing here may wait.
pub trait BookingKeeper: Debug + Send + Sync {
    /// An object was made that has not ended, and this was booked for it.
    fn on_made(&self, object: StoredObjectKey, booked: Booked);
    /// A response shows the end of an object.
    fn on_ended(&self, object: StoredObjectKey, end: ObjectEnd);
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
    /// The end of an object that an earlier request has made, if the response shows it with its tokens.
    pub(super) fn stored_object_end(
        &self,
        capture: &ResponseCapture,
        pricing: Option<&Arc<Pricing>>,
    ) -> Option<(StoredObjectKey, ObjectEnd)> {
        let object = capture.stored_object.as_ref().filter(|object| object.has_ended)?;
        let usage = capture.usage.as_ref().filter(|_| self.fetches_stored_object())?;
        let cost = match pricing {
            Some(pricing) => {
                let response = pricing.stored_response(self, capture);
                EndCost::Priced(Arc::clone(pricing), Box::new(response))
            }
            None => EndCost::Known(None),
        };
        Some((StoredObjectKey::of(&object.id), ObjectEnd { tokens: used_tokens(usage), cost }))
    }

    /// The object that the response has begun and whose end a later one shows.
    pub(super) fn unfinished_object(&self, capture: &ResponseCapture) -> Option<StoredObjectKey> {
        let object = capture.stored_object.as_ref().filter(|object| !object.has_ended)?;
        (!self.fetches_stored_object()).then(|| StoredObjectKey::of(&object.id))
    }
}
