//! What the report of `aoai-lb usage` reads of a record.

use std::borrow::Cow;

use serde::Deserialize;

use super::grouping::GroupingKey;
use super::totals::{AudioTotals, UsageTotals};

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
