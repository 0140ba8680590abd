//! What provisioned backends cost by the hour, shared out among those who have used them, day by day.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};

use super::grouping::RowKey;
use super::record_fields::RecordFields;
use super::time_range::TimeRange;
use crate::config::Config;
use crate::money::{Amount, PriceList, PricedResponse, Rates};
use crate::names::{BackendName, DeploymentName};

const SECONDS_PER_HOUR: u128 = 3600;

/// The provisioned backends of a configuration, and who has used them.
#[derive(Debug)]
pub(super) struct ProvisionedShares {
    /// What each costs in an hour, if the file says so.
    cost_per_hour: HashMap<BackendName, Option<Amount>>,
    prices: Option<PriceList>,
    /// The weighted tokens of each row, by backend and day.
    use_by_day: BTreeMap<(BackendName, NaiveDate), BTreeMap<RowKey, u128>>,
}

impl ProvisionedShares {
    /// Those of this configuration, not used yet.
    pub(super) fn new(config: &Config) -> Self {
        let backends = config.backends.iter();
        let provisioned =
            backends.filter_map(|backend| Some((backend.name.clone(), backend.provisioned?.cost_per_hour)));
        Self {
            cost_per_hour: provisioned.collect(),
            prices: config.prices.clone(),
            use_by_day: BTreeMap::new(),
        }
    }

    /// Whether this is a provisioned backend.
    pub(super) fn has(&self, backend: &str) -> bool {
        self.cost_per_hour.contains_key(&BackendName::new(backend))
    }

    /// Whether there is anything to be shared out.
    pub(super) fn have_costs(&self) -> bool {
        self.cost_per_hour.values().any(Option::is_some)
    }

    /// The currency of the prices.
    pub(super) fn currency(&self) -> Option<&str> {
        self.prices.as_ref().map(PriceList::currency)
    }

    /// Counts the tokens of a record that a provisioned backend has answered.
    pub(super) fn add(&mut self, key: &RowKey, record: &RecordFields<'_>) {
        let (Some(backend), Some(day)) = (record.backend(), record.day()) else { return };
        let (backend, Ok(day)) = (BackendName::new(backend), day.parse::<NaiveDate>()) else { return };
        let weight = self.weight(record, &backend, day);
        if weight > 0 {
            let rows = self.use_by_day.entry((backend, day)).or_default();
            let sum = rows.entry(key.clone()).or_default();
            *sum = sum.saturating_add(weight);
        }
    }

    /// The tokens of a record by their price. Azure counts tokens on provisioned deployments in about the proportions of
    /// their prices. Without a price, an output token is four input tokens.
    fn weight(&self, record: &RecordFields<'_>, backend: &BackendName, day: NaiveDate) -> u128 {
        let tokens = record.billed_tokens();
        let deployment = record.deployment().and_then(|name| DeploymentName::parse(name).ok());
        let response = PricedResponse {
            deployment: deployment.as_ref(),
            model: record.model(),
            backend,
            service_tier: None,
            day,
        };
        let rates = self.prices.as_ref().and_then(|prices| prices.rates(&response));
        let million = |millions: u64| Some(Amount::from_millionths(millions * 1_000_000));
        let without_price = Rates {
            input: million(1),
            output: million(4),
            audio_input: million(1),
            audio_output: million(4),
            ..Rates::default()
        };
        rates
            .and_then(|rates| rates.exact_cost_of_tokens(&tokens))
            .or_else(|| without_price.exact_cost_of_tokens(&tokens))
            .unwrap_or_default()
    }

    /// The share of each row in what the days of its use cost, as far as they are in the range and over.
    pub(super) fn shares(&self, range: TimeRange, now: DateTime<Utc>) -> HashMap<&RowKey, Amount> {
        let mut shares: HashMap<&RowKey, Amount> = HashMap::new();
        for ((backend, day), rows) in &self.use_by_day {
            let Some(Some(per_hour)) = self.cost_per_hour.get(backend) else { continue };
            let cost = per_hour.share(u128::from(seconds_of_day(*day, range, now)), SECONDS_PER_HOUR);
            let whole = rows.values().fold(0_u128, |sum, weight| sum.saturating_add(*weight));
            // Each row gets what is between two rounded sums, so that the shares are the cost exactly.
            let (mut weights_before, mut shared_before) = (0_u128, Amount::ZERO);
            for (key, weight) in rows {
                weights_before = weights_before.saturating_add(*weight);
                let shared = cost.share(weights_before, whole);
                let own = shared.millionths().saturating_sub(shared_before.millionths());
                shared_before = shared;
                let share = shares.entry(key).or_default();
                *share = share.saturating_add(Amount::from_millionths(own));
            }
        }
        shares
    }

    /// For each provisioned backend, the days of the range on which nobody has used it, and what they cost. `first_day`
    /// is where the records begin.
    pub(super) fn idle_days(
        &self,
        range: TimeRange,
        first_day: NaiveDate,
        now: DateTime<Utc>,
    ) -> Vec<(&BackendName, usize, Amount)> {
        let (first, last) = range.days(first_day, now);
        let mut idle: Vec<_> = Vec::new();
        for (backend, per_hour) in &self.cost_per_hour {
            let Some(per_hour) = per_hour else { continue };
            let days = first.iter_days().take_while(|day| *day <= last);
            let unused: Vec<NaiveDate> =
                days.filter(|day| !self.use_by_day.contains_key(&(backend.clone(), *day))).collect();
            let seconds: u64 = unused.iter().map(|day| seconds_of_day(*day, range, now)).sum();
            if !unused.is_empty() {
                idle.push((backend, unused.len(), per_hour.share(u128::from(seconds), SECONDS_PER_HOUR)));
            }
        }
        idle.sort();
        idle
    }
}

/// How many seconds of a day are in the range and over.
fn seconds_of_day(day: NaiveDate, range: TimeRange, now: DateTime<Utc>) -> u64 {
    let begin = day.and_time(NaiveTime::MIN).and_utc();
    let end = day.succ_opt().map_or(DateTime::<Utc>::MAX_UTC, |next| next.and_time(NaiveTime::MIN).and_utc());
    let (begin, end) = range.clamp(begin, end.min(now));
    u64::try_from((end - begin).num_seconds()).unwrap_or_default()
}
