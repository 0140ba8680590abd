//! Reads and checks `backends[].provisioned`.

use std::num::NonZeroU32;

use super::shared::read_amount;
use crate::config::schema::ProvisionedThroughput;
use crate::config::yaml::YamlNode;
use crate::money::Amount;

/// More than any resource has.
const MAX_UNITS: u64 = 1_000_000;
/// More than anybody pays.
const MAX_COST_PER_HOUR: Amount = Amount::from_millionths(1_000_000_000_000_000);

/// Reads the block; an empty one says that the throughput is provisioned, and no more.
pub(super) fn read_provisioned(node: &YamlNode<'_, '_>) -> Option<ProvisionedThroughput> {
    let map = node.read_mapping(&["units", "cost_per_hour"])?;
    let units = map.read_optional("units", |node| {
        let units = node.read_integer(1..=MAX_UNITS)?;
        NonZeroU32::new(u32::try_from(units).ok()?)
    });
    let cost_per_hour =
        map.read_optional("cost_per_hour", |node| read_amount(node, MAX_COST_PER_HOUR, "12.50"));
    Some(ProvisionedThroughput { units: units?, cost_per_hour: cost_per_hour? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{errors_in, parse_valid};

    fn one_backend(provisioned: &str) -> String {
        format!(
            "backends: [ {{ name: a, endpoint: 'https://a.b', credential: {{ api_key: k }}, provisioned: {provisioned} }} ]"
        )
    }

    #[test]
    fn units_and_cost_are_read_and_both_may_be_left_out() {
        for (yaml, units, cost_per_hour) in [
            ("{}", None, None),
            ("{ units: 100, cost_per_hour: 100.00 }", Some(100), Some("100")),
            ("{ units: '${FOUR}', cost_per_hour: '0.5' }", Some(4), Some("0.5")),
            ("{ cost_per_hour: 0 }", None, Some("0")),
        ] {
            let backend = &parse_valid(&one_backend(yaml)).config.backends[0];
            let cost_per_hour = cost_per_hour.map(|text| Amount::parse(text).unwrap());
            let expected = ProvisionedThroughput { units: units.and_then(NonZeroU32::new), cost_per_hour };
            assert_eq!(backend.provisioned, Some(expected), "{yaml}");
        }
        assert_eq!(parse_valid("").config.backends[0].provisioned, None);
    }

    #[test]
    fn invalid_values_are_reported() {
        const COST: &str =
            "backends[0].provisioned.cost_per_hour: must be a number from 0 to 1000000000, such as 12.50";
        for (yaml, expected) in [
            (
                "true",
                "backends[0].provisioned: must be a mapping with units or cost_per_hour, not true or false",
            ),
            ("{ unit: 1 }", "backends[0].provisioned.unit: unknown key; did you mean `units`?"),
            ("{ units: 0 }", "backends[0].provisioned.units: must be a whole number from 1 to 1000000"),
            ("{ units: 1.5 }", "backends[0].provisioned.units: must be a whole number from 1 to 1000000"),
            ("{ cost_per_hour: -1 }", COST),
            ("{ cost_per_hour: NaN }", COST),
            ("{ cost_per_hour: inf }", COST),
            ("{ cost_per_hour: 1e3 }", COST),
            ("{ cost_per_hour: $5 }", COST),
            ("{ cost_per_hour: 1000000000.01 }", COST),
            (
                "{ cost_per_hour: 0.0000001 }",
                "backends[0].provisioned.cost_per_hour: must have at most six decimals, such as 12.50",
            ),
        ] {
            let errors = errors_in(&one_backend(yaml));
            assert!(errors.len() == 1 && errors[0].starts_with(expected), "{yaml}: {errors:?}");
        }
    }
}
