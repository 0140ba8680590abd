//! The cost of an exchange at the prices of the configuration, and the field `cost` of its record.

use std::collections::HashSet;
use std::time::SystemTime;

use chrono::{DateTime, NaiveDate, Utc};

use super::exchange::{CapturedResponse, FinishedExchange};
use crate::azure::Operation;
use crate::azure::response::capture::ResponseCapture;
use crate::azure::response::usage::TokenUsage;
use crate::config::Config;
use crate::money::{Amount, BilledTokens, BilledUnits, PriceList, PricedResponse};
use crate::names::{BackendName, DeploymentName};

/// The prices of a configuration, and what is not paid for by the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pricing {
    list: PriceList,
    /// Backends that are paid for by the hour.
    provisioned: HashSet<BackendName>,
}

/// The end of a stored object, as far as prices depend on it.
#[derive(Debug)]
pub(super) struct StoredResponse {
    backend: Option<BackendName>,
    is_provisioned: bool,
    model: Option<String>,
    service_tier: Option<String>,
    day: NaiveDate,
    units: Option<BilledUnits>,
}

impl Pricing {
    /// Those of a configuration; `None` if it has no prices.
    pub fn of(config: &Config) -> Option<Self> {
        let list = config.prices.clone()?;
        let provisioned = config.backends.iter().filter(|backend| backend.provisioned.is_some());
        Some(Self { list, provisioned: provisioned.map(|backend| backend.name.clone()).collect() })
    }

    /// The currency of the prices.
    pub fn currency(&self) -> &str {
        self.list.currency()
    }

    /// What an exchange costs, whose response has been captured so.
    pub(super) fn cost_of(&self, exchange: &FinishedExchange, capture: &ResponseCapture) -> ResponseCost {
        let units = billed_units(exchange.operation(), capture);
        if units.is_none() && exchange.why_usage_is_missing(capture.usage.as_ref()).is_none() {
            return ResponseCost::NotBilled;
        }
        let Some(backend) = &exchange.answering_backend else { return ResponseCost::Unknown };
        let is_provisioned = self.provisioned.contains(backend) && !exchange.was_spilled_by_azure;
        if exchange.makes_unfinished_object(capture) {
            return if is_provisioned { ResponseCost::NotBilled } else { ResponseCost::BilledLater };
        }
        if is_provisioned {
            return ResponseCost::Provisioned;
        }
        let response = PricedResponse {
            deployment: exchange.requested_deployment.as_ref(),
            model: capture.model.as_deref(),
            backend,
            service_tier: capture.service_tier.as_deref(),
            day: utc_day(exchange.received_at),
        };
        self.price(&response, units.as_ref())
    }

    fn price(&self, response: &PricedResponse<'_>, units: Option<&BilledUnits>) -> ResponseCost {
        let cost = units.and_then(|units| self.list.rates(response)?.cost(units));
        cost.map_or(ResponseCost::Unknown, ResponseCost::Known)
    }

    /// What the end of a stored object is billed for, once its deployment is known: the request that shows the end does not
    /// name it.
    pub(super) fn stored_response(
        &self,
        exchange: &FinishedExchange,
        capture: &ResponseCapture,
    ) -> StoredResponse {
        let is_provisioned =
            exchange.answering_backend.as_ref().is_some_and(|backend| self.provisioned.contains(backend));
        StoredResponse {
            backend: exchange.answering_backend.clone(),
            is_provisioned: is_provisioned && !exchange.was_spilled_by_azure,
            model: capture.model.clone(),
            service_tier: capture.service_tier.clone(),
            day: utc_day(exchange.received_at),
            units: billed_units(exchange.operation(), capture),
        }
    }

    /// What a stored object has cost whose creation named this deployment.
    pub(super) fn cost_of_stored(
        &self,
        stored: &StoredResponse,
        deployment: Option<&DeploymentName>,
    ) -> ResponseCost {
        let Some(backend) = &stored.backend else { return ResponseCost::Unknown };
        if stored.is_provisioned {
            return ResponseCost::Provisioned;
        }
        let response = PricedResponse {
            deployment,
            model: stored.model.as_deref(),
            backend,
            service_tier: stored.service_tier.as_deref(),
            day: stored.day,
        };
        self.price(&response, stored.units.as_ref())
    }

    /// The same for an exchange that gets no record.
    pub(super) fn cost_of_parsed(&self, exchange: &FinishedExchange) -> ResponseCost {
        match &exchange.captured_response {
            _ if exchange.fetches_stored_object() => ResponseCost::NotBilled,
            CapturedResponse::Parsed(capture) => self.cost_of(exchange, capture),
            _ => ResponseCost::Unknown,
        }
    }
}

/// What a response costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCost {
    /// This much.
    Known(Amount),
    /// It is part of what its backend costs by the hour.
    Provisioned,
    /// Something, but it has no price, or it is not known what it is billed for.
    Unknown,
    /// Nothing.
    NotBilled,
    /// The response that shows the end of what it has begun has the cost.
    BilledLater,
}

impl ResponseCost {
    /// The amount, if it is known.
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Known(amount) => Some(amount),
            Self::Provisioned | Self::Unknown | Self::NotBilled | Self::BilledLater => None,
        }
    }
}

/// What a response is billed for; `None` if it does not say.
fn billed_units(operation: Operation, capture: &ResponseCapture) -> Option<BilledUnits> {
    let usage = capture.usage.unwrap_or_default();
    let units = BilledUnits {
        tokens: billed_tokens(operation, &usage),
        audio_millis: usage.audio_millis,
        images: capture.image_count,
    };
    // Without usage an image is billed, if anything.
    (capture.usage.is_some() || units.images.is_some()).then_some(units)
}

/// The tokens, if both input and output are known.
fn billed_tokens(operation: Operation, usage: &TokenUsage) -> Option<BilledTokens> {
    let TokenUsage { input, output, total, .. } = *usage;
    let rest = |other: Option<u64>| total?.checked_sub(other?);
    let no_output = (operation == Operation::Embeddings).then_some(0);
    Some(BilledTokens {
        input: input.or_else(|| rest(output))?,
        cached: usage.cached.unwrap_or_default(),
        cache_write: usage.cache_write.unwrap_or_default(),
        audio_input: usage.input_audio.unwrap_or_default(),
        audio_cached: usage.cached_audio.unwrap_or_default(),
        output: output.or_else(|| rest(input)).or(no_output)?,
        audio_output: usage.output_audio.unwrap_or_default(),
    })
}

/// The day of a time in UTC.
pub(super) fn utc_day(time: SystemTime) -> NaiveDate {
    DateTime::<Utc>::from(time).date_naive()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_billed_if_input_and_output_are_known() {
        let usage = |input, output, total| TokenUsage { input, output, total, ..TokenUsage::default() };
        let chat = Operation::Chat;
        for (operation, usage, expected) in [
            (chat, usage(Some(8), Some(2), None), Some((8, 2))),
            (chat, usage(Some(8), None, Some(10)), Some((8, 2))),
            (chat, usage(None, Some(2), Some(10)), Some((8, 2))),
            (chat, usage(Some(8), None, None), None),
            (chat, usage(None, Some(2), None), None),
            (chat, usage(None, None, Some(10)), None),
            (chat, usage(Some(8), None, Some(7)), None),
            (Operation::Embeddings, usage(Some(8), None, Some(8)), Some((8, 0))),
            (Operation::Embeddings, usage(Some(8), None, None), Some((8, 0))),
        ] {
            let tokens = billed_tokens(operation, &usage).map(|tokens| (tokens.input, tokens.output));
            assert_eq!(tokens, expected, "{usage:?}");
        }
    }
}
