//! The counts of the report of `aoai-lb usage`.

use serde::{Serialize, Serializer};

use crate::money::Amount;

/// The counts of one row of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct UsageTotals {
    pub(super) requests: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) reasoning_tokens: u64,
    pub(super) total_tokens: u64,
    /// Shown only if there are any.
    #[serde(skip)]
    pub(super) cache_write_tokens: u64,
    /// What the responses cost, shown only if that is asked for.
    #[serde(skip)]
    pub(super) cost_millionths: u64,
    /// Its share of what provisioned backends cost by the hour.
    #[serde(skip)]
    pub(super) provisioned_millionths: u64,
    /// Responses that are billed and have no cost.
    #[serde(skip)]
    pub(super) without_cost: u64,
    #[serde(skip)]
    pub(super) audio: AudioTotals,
}

/// Which columns a report has besides those of every report.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionalColumns {
    pub(super) has_cost: bool,
    pub(super) has_provisioned: bool,
    pub(super) has_cache_writes: bool,
    pub(super) has_audio: bool,
}

/// Shown only if it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct CostTotals {
    cost: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioned: Option<f64>,
    without_cost: u64,
}

/// Shown only if there is any audio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct AudioTotals {
    pub(super) input_audio_tokens: u64,
    pub(super) output_audio_tokens: u64,
    pub(super) cached_audio_tokens: u64,
    #[serde(rename = "audio_seconds", serialize_with = "serialize_millis_as_seconds")]
    pub(super) audio_millis: u64,
}

impl UsageTotals {
    /// Adds the counts of another.
    pub(super) fn add(&mut self, other: &Self) {
        let counts = self.counts_mut();
        for (total, addend) in counts.into_iter().zip({ *other }.counts_mut()) {
            *total = total.saturating_add(*addend);
        }
    }

    /// The costs in these columns, for an object of JSON.
    pub(super) fn costs(&self, shown: OptionalColumns) -> Option<CostTotals> {
        // Of six decimals: the shortest text of such a number is exact up to 2^53 millionths.
        let amount = |millionths: u64| millionths as f64 / 1e6;
        shown.has_cost.then(|| CostTotals {
            cost: amount(self.cost_millionths),
            provisioned: shown.has_provisioned.then(|| amount(self.provisioned_millionths)),
            without_cost: self.without_cost,
        })
    }

    fn counts_mut(&mut self) -> [&mut u64; 14] {
        let Self {
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            cache_write_tokens,
            cost_millionths,
            provisioned_millionths,
            without_cost,
            audio,
        } = self;
        let AudioTotals { input_audio_tokens, output_audio_tokens, cached_audio_tokens, audio_millis } =
            audio;
        [
            requests,
            input_tokens,
            output_tokens,
            cached_tokens,
            reasoning_tokens,
            total_tokens,
            cost_millionths,
            provisioned_millionths,
            without_cost,
            cache_write_tokens,
            input_audio_tokens,
            output_audio_tokens,
            cached_audio_tokens,
            audio_millis,
        ]
    }

    /// The counts as they are shown in these columns.
    pub(super) fn columns(mut self, shown: OptionalColumns) -> impl Iterator<Item = String> {
        let OptionalColumns { has_cost, has_provisioned, has_cache_writes, has_audio } = shown;
        let amount = |millionths| Amount::from_millionths(millionths).to_string();
        let cost = has_cost.then(|| amount(self.cost_millionths));
        let provisioned = has_provisioned.then(|| amount(self.provisioned_millionths));
        let seconds = (self.audio.audio_millis as f64 / 1000.0).to_string();
        let [
            always @ ..,
            _cost,
            _provisioned,
            without_cost,
            cache_writes,
            input_audio,
            output_audio,
            cached_audio,
            _millis,
        ] = self.counts_mut().map(|count| count.to_string());
        let audio = [input_audio, output_audio, cached_audio, seconds];
        let audio = has_audio.then_some(audio).into_iter().flatten();
        let costs = [cost, provisioned, has_cost.then_some(without_cost)].into_iter().flatten();
        always.into_iter().chain(costs).chain(has_cache_writes.then_some(cache_writes)).chain(audio)
    }
}

fn serialize_millis_as_seconds<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*millis as f64 / 1000.0)
}
