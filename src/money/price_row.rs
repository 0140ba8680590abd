//! One row of a price list: what it applies to, from when on, and its rates.

use chrono::NaiveDate;

use super::amount::Amount;
use crate::names::{BackendName, DeploymentName};

/// Service tiers that are the standard one. Azure echoes `auto` while it has not decided, and says `default` afterwards.
const STANDARD_TIERS: [&str; 3] = ["default", "standard", "auto"];

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PriceSubject {
    /// A deployment by the name that clients use, compared without case.
    Deployment(DeploymentName),
    /// A model in lower case, with or without the date of its version: `gpt-4o`, `gpt-4o-2024-08-06`.
    Model(String),
}

/// What a row applies to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PriceKey {
    /// The deployment or the model.
    pub subject: PriceSubject,
    /// Only what this backend has answered; `None` for all backends.
    pub backend: Option<BackendName>,
    /// The service tier in lower case; `None` for the standard one.
    pub service_tier: Option<String>,
}

/// A row of a price list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceRow {
    /// What it applies to.
    pub key: PriceKey,
    /// The first UTC day that it applies to; `None` for all days.
    pub from: Option<NaiveDate>,
    /// What is paid.
    pub rates: Rates,
}

/// What is paid for a million tokens of each kind, for an image and for a minute of audio. `None` if the row does not
/// say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Input tokens, except those that have a rate of their own.
    pub input: Option<Amount>,
    /// Input tokens that were read from a prompt cache. Without it they cost as much as other input.
    pub cached: Option<Amount>,
    /// Input tokens that were written to a prompt cache. Without it they cost as much as other input.
    pub cache_write: Option<Amount>,
    /// Output tokens, reasoning included, except those of audio.
    pub output: Option<Amount>,
    /// Audio tokens of the input.
    pub audio_input: Option<Amount>,
    /// Audio tokens of the input that were read from a prompt cache. Without it they cost as much as other audio input.
    pub audio_cached: Option<Amount>,
    /// Audio tokens of the output.
    pub audio_output: Option<Amount>,
    /// One generated image.
    pub per_image: Option<Amount>,
    /// One minute of audio.
    pub per_minute: Option<Amount>,
}

/// The service tier of a row: `None` for the standard one.
pub(super) fn normalized_tier(service_tier: &str) -> Option<String> {
    let tier = service_tier.to_ascii_lowercase();
    (!is_standard_tier(&tier)).then_some(tier)
}

/// Whether this is a name of the standard service tier, in any case.
pub fn is_standard_tier(service_tier: &str) -> bool {
    STANDARD_TIERS.iter().any(|standard| standard.eq_ignore_ascii_case(service_tier))
}

/// The name of a model without the date of its version: `gpt-4o` for `gpt-4o-2024-08-06`. `None` if it has none.
pub(super) fn without_version_date(model: &str) -> Option<&str> {
    const DATE_LENGTH: usize = "-2024-08-06".len();
    let (name, date) = model.split_at_checked(model.len().checked_sub(DATE_LENGTH)?)?;
    let is_date = NaiveDate::parse_from_str(date, "-%Y-%m-%d").is_ok();
    (is_date && !name.is_empty()).then_some(name)
}

impl PriceKey {
    /// A key for this service tier. The names of the standard tier are the same as none.
    pub fn new(subject: PriceSubject, backend: Option<BackendName>, service_tier: Option<&str>) -> Self {
        Self { subject, backend, service_tier: service_tier.and_then(normalized_tier) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_date_at_the_end() {
        for (model, expected) in [
            ("gpt-4o-2024-08-06", Some("gpt-4o")),
            ("gpt-4o-mini-2024-07-18", Some("gpt-4o-mini")),
            ("gpt-4o", None),
            ("gpt-4-0613", None),
            ("gpt-4o-2024-13-06", None),
            ("-2024-08-06", None),
            ("é-2024-08-06", Some("é")),
            ("é024-08-06", None),
            ("", None),
        ] {
            assert_eq!(without_version_date(model), expected, "{model}");
        }
    }

    #[test]
    fn the_standard_tier_has_several_names() {
        for (tier, expected) in [
            ("default", None),
            ("Standard", None),
            ("auto", None),
            ("flex", Some("flex")),
            ("Priority", Some("priority")),
        ] {
            assert_eq!(normalized_tier(tier).as_deref(), expected, "{tier}");
        }
    }
}
