//! What is known of the price of a request before a backend has answered it.

use std::time::SystemTime;

use chrono::{DateTime, Utc};

use crate::admission::limits::TokenRates;
use crate::config::{Config, DeploymentMap};
use crate::money::{Amount, PriceList, PricedResponse};
use crate::names::{BackendName, DeploymentName};

/// The prices of a configuration that has limits by cost.
#[derive(Debug)]
pub(super) struct RequestPrices {
    list: PriceList,
    /// The backends that are paid for by the token.
    paid_backends: Vec<(BackendName, DeploymentMap)>,
}

impl RequestPrices {
    /// Those of a configuration; `None` if it has no prices.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let list = config.prices.clone()?;
        let paid = config.backends.iter().filter(|backend| backend.provisioned.is_none());
        let paid_backends = paid.map(|backend| (backend.name.clone(), backend.deployments.clone())).collect();
        Some(Self { list, paid_backends })
    }

    /// The currency of the prices.
    pub(super) fn currency(&self) -> &str {
        self.list.currency()
    }

    /// What a request for a deployment may cost: the highest price of input and of output among its backends, for the
    /// standard service tier. A row for a model applies if the deployment has its name at the backend; what other
    /// models cost is known only with the response.
    pub(super) fn highest_rates(&self, deployment: Option<&DeploymentName>, time: SystemTime) -> TokenRates {
        let mut highest = TokenRates::default();
        let Some(deployment) = deployment else { return highest };
        let day = DateTime::<Utc>::from(time).date_naive();
        for (backend, deployments) in &self.paid_backends {
            let Some(upstream) = deployments.upstream_name(deployment) else { continue };
            let response = PricedResponse {
                deployment: Some(deployment),
                model: Some(upstream.as_str()),
                backend,
                service_tier: None,
                day,
            };
            if let Some(rates) = self.list.rates(&response) {
                highest.input = highest.input.max(rates.input);
                highest.output = highest.output.max(rates.output);
            }
        }
        highest
    }
}

/// An amount of a limit by cost, as a client reads it: `2.5 USD`.
pub(super) fn cost_text(millionths: u64, prices: Option<&RequestPrices>) -> String {
    let amount = Amount::from_millionths(millionths);
    match prices {
        Some(prices) => format!("{amount} {}", prices.currency()),
        None => amount.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse_and_check_yaml;

    #[test]
    fn the_most_expensive_backend_that_may_answer_counts() {
        let yaml = "
listeners: [ { address: '127.0.0.1:8080' } ]
clients: open
backends:
  - { name: ptu, endpoint: 'https://p.x', credential: { api_key: k }, provisioned: { units: 5 }, deployments: { chat: chat } }
  - { name: a, endpoint: 'https://a.x', credential: { api_key: k }, deployments: { chat: gpt-4o, own: own, only-a: x } }
  - { name: b, endpoint: 'https://b.x', credential: { api_key: k }, deployments: { chat: gpt-4o, own: own, unpriced: y } }
prices:
  currency: USD
  rows:
    - { deployment: chat, backend: ptu, input: 99 }
    - { model: gpt-4o, input: 2, output: 8 }
    - { model: gpt-4o, backend: b, input: 1, output: 9 }
    - { deployment: own, service_tier: priority, input: 50 }
    - { deployment: own, input: 3 }
    - { deployment: own, input: 4, from: 2099-01-01 }
";
        let config = parse_and_check_yaml(yaml, Path::new("/"), &|_| None).unwrap().config;
        let prices = RequestPrices::of(&config).unwrap();
        let amount = |text| Some(Amount::parse(text).unwrap());
        for (deployment, input, output) in [
            ("chat", amount("2"), amount("9")),
            ("CHAT", amount("2"), amount("9")),
            ("own", amount("3"), None),
            ("only-a", None, None),
            ("unpriced", None, None),
            ("unknown", None, None),
        ] {
            let name = DeploymentName::parse(deployment).unwrap();
            let found = prices.highest_rates(Some(&name), SystemTime::now());
            assert_eq!(found, TokenRates { input, output }, "{deployment}");
        }
        assert_eq!(prices.highest_rates(None, SystemTime::now()), TokenRates::default());
        assert_eq!(cost_text(2_500_000, Some(&prices)), "2.5 USD");
    }
}
