//! A price list: which of its rows applies to a response.

use std::cmp::Reverse;
use std::collections::HashMap;

use chrono::NaiveDate;

use super::price_row::{PriceKey, PriceRow, PriceSubject, Rates, normalized_tier, without_version_date};
use crate::names::{BackendName, DeploymentName};

/// Prices in one currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceList {
    currency: String,
    rows: Vec<PriceRow>,
    /// The rows of each subject, by their index.
    by_subject: HashMap<PriceSubject, Vec<usize>>,
}

/// What the price of a response depends on.
#[derive(Clone, Copy, Debug)]
pub struct PricedResponse<'a> {
    /// The deployment that the client asked for.
    pub deployment: Option<&'a DeploymentName>,
    /// The model that the response names.
    pub model: Option<&'a str>,
    /// The backend that has answered.
    pub backend: &'a BackendName,
    /// The service tier that the response names.
    pub service_tier: Option<&'a str>,
    /// The UTC day on which the request arrived.
    pub day: NaiveDate,
}

impl PriceList {
    /// A list of these rows.
    pub fn new(currency: String, rows: Vec<PriceRow>) -> Self {
        let mut by_subject: HashMap<PriceSubject, Vec<usize>> = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            by_subject.entry(row.key.subject.clone()).or_default().push(index);
        }
        Self { currency, rows, by_subject }
    }

    /// The currency as the file names it.
    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// All rows, in the order of the file.
    pub fn rows(&self) -> &[PriceRow] {
        &self.rows
    }

    /// The rates for a response. Of the rows that apply, one of its backend comes before one of all backends, then one of
    /// its deployment before one of its model, then one of the model's version before one of the model; of equal ones
    /// the latest. `None` if no row applies.
    pub fn rates(&self, response: &PricedResponse<'_>) -> Option<&Rates> {
        let model = response.model.map(str::to_ascii_lowercase);
        let family = model.as_deref().and_then(without_version_date).map(str::to_owned);
        let subjects = [
            response.deployment.cloned().map(PriceSubject::Deployment),
            model.map(PriceSubject::Model),
            family.map(PriceSubject::Model),
        ];
        let tier = response.service_tier.and_then(normalized_tier);
        let applies = |row: &PriceRow| {
            let PriceKey { subject: _, backend, service_tier } = &row.key;
            backend.as_ref().is_none_or(|backend| backend == response.backend)
                && *service_tier == tier
                && row.from.is_none_or(|from| from <= response.day)
        };
        let ranked = subjects.iter().enumerate().filter_map(|(place, subject)| {
            let rows = self.by_subject.get(subject.as_ref()?)?.iter();
            let rows = rows.filter_map(|index| self.rows.get(*index)).filter(|row| applies(row));
            rows.map(|row| (row.key.backend.is_some(), Reverse(place), row.from, &row.rates))
                .max_by_key(|(has_backend, place, from, _)| (*has_backend, *place, *from))
        });
        ranked
            .max_by_key(|(has_backend, place, from, _)| (*has_backend, *place, *from))
            .map(|(.., rates)| rates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Amount;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    /// `SUBJECT[@BACKEND][+TIER][ FROM]`; a subject in upper case is a deployment. Its input rate is its place.
    fn row(text: &str, place: u64) -> PriceRow {
        let (key, from) = text.split_once(' ').map_or((text, None), |(key, from)| (key, Some(day(from))));
        let (key, tier) = key.split_once('+').map_or((key, None), |(key, tier)| (key, Some(tier)));
        let (subject, backend) =
            key.split_once('@').map_or((key, None), |(key, backend)| (key, Some(BackendName::new(backend))));
        let subject = match subject.strip_prefix("d:") {
            Some(deployment) => PriceSubject::Deployment(DeploymentName::parse(deployment).unwrap()),
            None => PriceSubject::Model(subject.to_owned()),
        };
        let rates = Rates { input: Some(Amount::from_millionths(place)), ..Rates::default() };
        PriceRow { key: PriceKey::new(subject, backend, tier), from, rates }
    }

    fn applying_row(rows: &[&str], (deployment, model, tier): (&str, &str, &str), on: &str) -> Option<usize> {
        let rows = rows.iter().zip(0..).map(|(text, place)| row(text, place)).collect();
        let list = PriceList::new("USD".to_owned(), rows);
        let deployment = DeploymentName::parse(deployment).unwrap();
        let response = PricedResponse {
            deployment: Some(&deployment),
            model: Some(model).filter(|model| !model.is_empty()),
            backend: &BackendName::new("east"),
            service_tier: Some(tier).filter(|tier| !tier.is_empty()),
            day: day(on),
        };
        Some(usize::try_from(list.rates(&response)?.input?.millionths()).unwrap())
    }

    #[test]
    fn the_most_specific_row_applies() {
        const TODAY: &str = "2026-11-27";
        let response = ("Chat", "GPT-4o-2024-08-06", "");
        for (rows, expected) in [
            (vec![], None),
            (vec!["gpt-4o-mini", "d:other", "d:chat@west", "gpt-4o-2024-05-13"], None),
            (vec!["gpt-4o"], Some(0)),
            (vec!["gpt-4o-2024-08-06", "gpt-4o"], Some(0)),
            (vec!["gpt-4o", "gpt-4o-2024-08-06"], Some(1)),
            (vec!["gpt-4o-2024-08-06", "d:CHAT"], Some(1)),
            (vec!["d:chat", "gpt-4o@east"], Some(1)),
            (vec!["gpt-4o@east", "d:chat@east", "d:chat"], Some(1)),
            // Of equals the latest that has begun, in whatever order.
            (vec!["gpt-4o", "gpt-4o 2026-01-01", "gpt-4o 2025-01-01"], Some(1)),
            (vec!["gpt-4o 2026-11-27", "gpt-4o 2026-11-28"], Some(0)),
            (vec!["gpt-4o 2026-11-28"], None),
            // The most specific row comes first, whatever its date; one that has not begun does not count.
            (vec!["d:chat 2024-01-01", "gpt-4o 2026-01-01"], Some(0)),
            (vec!["d:chat 2027-01-01", "gpt-4o 2026-01-01"], Some(1)),
            // Another service tier has another price.
            (vec!["d:chat@east+flex", "gpt-4o"], Some(1)),
            (vec!["gpt-4o+default"], Some(0)),
        ] {
            assert_eq!(applying_row(&rows, response, TODAY), expected, "{rows:?}");
        }
    }

    #[test]
    fn a_service_tier_has_rows_of_its_own() {
        const TODAY: &str = "2026-11-27";
        for (tier, rows, expected) in [
            ("flex", vec!["gpt-4o"], None),
            ("flex", vec!["d:chat", "gpt-4o+FLEX"], Some(1)),
            ("Flex", vec!["gpt-4o+flex", "gpt-4o+priority"], Some(0)),
            ("default", vec!["gpt-4o"], Some(0)),
            ("auto", vec!["gpt-4o"], Some(0)),
            ("standard", vec!["gpt-4o+default"], Some(0)),
        ] {
            assert_eq!(applying_row(&rows, ("chat", "gpt-4o", tier), TODAY), expected, "{tier} {rows:?}");
        }
        assert_eq!(applying_row(&["gpt-4o"], ("chat", "", ""), TODAY), None);
    }
}
