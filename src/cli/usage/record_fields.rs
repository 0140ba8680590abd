//! What the report of `aoai-lb usage` reads of a record.

use std::borrow::Cow;

use serde::Deserialize;

use super::grouping::GroupingKey;
use super::totals::{AudioTotals, UsageTotals};
use crate::money::BilledTokens;

/// The status of a WebSocket's own record.
const WEBSOCKET_STATUS: u16 = 101;

/// The fields of a record that the report uses.
#[derive(Deserialize)]
pub(super) struct RecordFields<'a> {
    #[serde(borrow)]
    pub(super) time: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) request_id: Cow<'a, str>,
    #[serde(borrow, default)]
    client: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    deployment: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    backend: Option<Cow<'a, str>>,
    /// Records of earlier versions have none.
    #[serde(borrow, default)]
    class: Option<Cow<'a, str>>,
    /// Records of earlier versions have none of these.
    #[serde(borrow, default)]
    service_tier: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    spilled: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    usage_missing: Option<Cow<'a, str>>,
    #[serde(default)]
    cost: Option<f64>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    /// Records of earlier versions have none.
    #[serde(default)]
    cache_write_tokens: Option<u64>,
    #[serde(default)]
    reasoning_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
    #[serde(default)]
    input_audio_tokens: Option<u64>,
    #[serde(default)]
    output_audio_tokens: Option<u64>,
    #[serde(default)]
    cached_audio_tokens: Option<u64>,
    #[serde(default)]
    audio_seconds: Option<f64>,
}

impl RecordFields<'_> {
    /// The UTC day, if the record has one.
    pub(super) fn day(&self) -> Option<&str> {
        self.time.get(..10)
    }

    /// What the record has for this key.
    pub(super) fn key_text(&self, key: GroupingKey) -> Option<String> {
        match key {
            GroupingKey::Day => self.day().map(str::to_owned),
            GroupingKey::Client => self.client.as_deref().map(str::to_owned),
            GroupingKey::Deployment => self.deployment.as_deref().map(str::to_ascii_lowercase),
            GroupingKey::Backend => self.backend.as_deref().map(str::to_owned),
            GroupingKey::Class => self.class.as_deref().map(str::to_owned),
            GroupingKey::Tier => self.service_tier.as_deref().map(str::to_owned),
            GroupingKey::Spilled => self.spilled.as_deref().map(str::to_owned),
        }
    }

    /// The backend that has answered.
    pub(super) fn backend(&self) -> Option<&str> {
        self.backend.as_deref()
    }

    /// The deployment as the client has named it.
    pub(super) fn deployment(&self) -> Option<&str> {
        self.deployment.as_deref()
    }

    /// The model that the response names.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Whether a lower tier has answered.
    pub(super) fn is_spilled(&self) -> bool {
        self.spilled.is_some()
    }

    /// Whether it has no cost, although its response is billed.
    pub(super) fn lacks_cost(&self) -> bool {
        let counts = [self.input_tokens, self.output_tokens, self.total_tokens];
        let has_tokens = counts.into_iter().flatten().any(|count| count > 0);
        let is_billed = has_tokens || self.audio_seconds.is_some() || self.usage_missing.is_some();
        self.cost.is_none() && is_billed
    }

    /// Its tokens as they are billed; what is unknown is 0.
    pub(super) fn billed_tokens(&self) -> BilledTokens {
        BilledTokens {
            input: self.input_tokens.unwrap_or_default(),
            cached: self.cached_tokens.unwrap_or_default(),
            cache_write: self.cache_write_tokens.unwrap_or_default(),
            audio_input: self.input_audio_tokens.unwrap_or_default(),
            audio_cached: self.cached_audio_tokens.unwrap_or_default(),
            output: self.output_tokens.unwrap_or_default(),
            audio_output: self.output_audio_tokens.unwrap_or_default(),
        }
    }

    /// What the record adds to its row. A WebSocket's own record does not count as a request: what came
    /// over it has records of its own.
    pub(super) fn totals(&self) -> UsageTotals {
        UsageTotals {
            requests: u64::from(self.status != Some(WEBSOCKET_STATUS)),
            input_tokens: self.input_tokens.unwrap_or(0),
            output_tokens: self.output_tokens.unwrap_or(0),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            reasoning_tokens: self.reasoning_tokens.unwrap_or(0),
            total_tokens: self.total_tokens.unwrap_or(0),
            // A number of six decimals is exact up to here. A cast of a float saturates.
            cost_millionths: (self.cost.unwrap_or(0.0) * 1e6).round() as u64,
            provisioned_millionths: 0,
            without_cost: u64::from(self.lacks_cost()),
            cache_write_tokens: self.cache_write_tokens.unwrap_or(0),
            audio: AudioTotals {
                input_audio_tokens: self.input_audio_tokens.unwrap_or(0),
                output_audio_tokens: self.output_audio_tokens.unwrap_or(0),
                cached_audio_tokens: self.cached_audio_tokens.unwrap_or(0),
                // A cast of a float saturates.
                audio_millis: (self.audio_seconds.unwrap_or(0.0) * 1000.0).round() as u64,
            },
        }
    }
}
