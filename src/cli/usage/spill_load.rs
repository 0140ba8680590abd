//! How busy the provisioned backends were in the minutes in which a lower tier answered, as far as records tell it: their
//! tokens in a minute, compared with those of their busiest one. What they could have served is in no record.

use std::collections::HashMap;

use super::grouping::RowKey;
use super::record_fields::RecordFields;

/// A minute of a UTC day: `2026-11-27T08:15`.
type Minute = String;

/// Tokens and spilled requests by deployment and minute.
#[derive(Debug, Default)]
pub(super) struct SpillLoad {
    provisioned_tokens: HashMap<String, HashMap<Minute, u64>>,
    spills: HashMap<RowKey, HashMap<(String, Minute), u64>>,
}

impl SpillLoad {
    /// Counts the tokens of a record that a provisioned backend has answered.
    pub(super) fn add_provisioned(&mut self, record: &RecordFields<'_>) {
        if let Some((deployment, minute)) = place_of(record) {
            let tokens = self.provisioned_tokens.entry(deployment).or_default().entry(minute).or_default();
            *tokens = tokens.saturating_add(record.totals().total_tokens);
        }
    }

    /// Counts a record that a lower tier has answered.
    pub(super) fn add_spill(&mut self, key: &RowKey, record: &RecordFields<'_>) {
        if let Some(place) = place_of(record) {
            *self.spills.entry(key.clone()).or_default().entry(place).or_default() += 1;
        }
    }

    /// The load of the provisioned backends in the minutes of the spilled requests of a row, in percent of their busiest
    /// minute, on average over the requests. `None` if they have served nothing of these deployments.
    pub(super) fn average_percent(&self, key: &RowKey) -> Option<u64> {
        let (mut requests, mut sum) = (0_u128, 0_u128);
        for ((deployment, minute), count) in self.spills.get(key)? {
            let Some(tokens) = self.provisioned_tokens.get(deployment) else { continue };
            let busiest = u128::from(tokens.values().copied().max().unwrap_or_default());
            let now = u128::from(tokens.get(minute).copied().unwrap_or_default());
            let Some(percent) = (now * 100).checked_div(busiest) else { continue };
            requests += u128::from(*count);
            sum += percent * u128::from(*count);
        }
        u64::try_from(sum.checked_div(requests)?).ok()
    }
}

fn place_of(record: &RecordFields<'_>) -> Option<(String, Minute)> {
    Some((record.deployment()?.to_ascii_lowercase(), record.time.get(..16)?.to_owned()))
}
