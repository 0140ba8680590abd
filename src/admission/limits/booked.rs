//! What was booked against the budgets of a client for a response whose tokens are known later.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::account::ClientAccounts;
use super::amounts::Amounts;
use super::budget_sums::BudgetSums;
use super::limit_message::LimitScope;
use super::token_estimate::UsedTokens;
use crate::admission::budgets::UtcWindows;
use crate::names::{ClientName, DeploymentName};

/// What was booked for a response that goes on in the background. Processes and instances of different versions send it to
/// each other, so its serialized form must not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booked {
    #[serde(flatten)]
    scope: LimitScope,
    #[serde(flatten)]
    amounts: Amounts,
    cached_weight_permille: u32,
    day: u32,
    month: u32,
}

/// What a response has used, once its end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalUse {
    /// Its tokens.
    #[serde(flatten)]
    pub tokens: UsedTokens,
    /// Its cost in millionths of the currency; `None` if it is not known.
    #[serde(default)]
    pub cost_millionths: Option<u64>,
}

impl Booked {
    /// What was booked at this time.
    pub(super) fn new(
        scope: LimitScope,
        amounts: Amounts,
        cached_weight_permille: u32,
        time: SystemTime,
    ) -> Self {
        let UtcWindows { day, month } = UtcWindows::at(time);
        Self { scope, amounts, cached_weight_permille, day, month }
    }

    /// The client that made it.
    pub fn client(&self) -> Option<ClientName> {
        self.scope.client()
    }

    /// The deployment that the request named, if its requests are counted.
    pub fn deployment(&self) -> Option<DeploymentName> {
        self.scope.deployment()
    }

    fn windows(&self) -> UtcWindows {
        UtcWindows { day: self.day, month: self.month }
    }

    /// What has to be added to a budget, so that it has what was used in place of what was booked.
    fn correction(&self, used: FinalUse) -> BudgetSums {
        let used = Amounts {
            tokens: used.tokens.counted(self.cached_weight_permille),
            cost_millionths: used.cost_millionths.unwrap_or(self.amounts.cost_millionths),
        };
        BudgetSums { booked: used.saturating_sub(self.amounts), refunded: self.amounts.saturating_sub(used) }
    }
}

impl ClientAccounts {
    /// Replaces what was booked by what was used, in the day and the month of the booking, as far as these are not over.
    /// Rates do not change: their minute is over.
    pub fn correct(&self, booked: &Booked, used: FinalUse) {
        let correction = booked.correction(used);
        let Some(account) = self.find(booked.client().as_ref()) else { return };
        if correction.is_zero() {
            return;
        }
        let mut state = account.lock();
        let (total, own) = state.scopes(booked.deployment().as_ref(), false);
        for scope in [Some(total), own].into_iter().flatten() {
            if let Some(budget) = &scope.budget {
                budget.correct(booked.windows(), correction);
                scope.is_changed = true;
            }
        }
        account.on_change(&mut state.reports, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestClient, name, time, used};
    use super::*;

    #[test]
    fn the_serialized_form_does_not_change() {
        let scope = LimitScope::new(None, Some(&name("gpt-4o")));
        let booked = Booked {
            scope,
            amounts: Amounts { tokens: 5, cost_millionths: 7 },
            cached_weight_permille: 500,
            day: 20_000,
            month: 24_000,
        };
        let text = r#"{"client":null,"deployment":"gpt-4o","tokens":5,"cost_millionths":7,"cached_weight_permille":500,"day":20000,"month":24000}"#;
        assert_eq!(serde_json::to_string(&booked).unwrap(), text);
        assert_eq!(serde_json::from_str::<Booked>(text).unwrap(), booked);
        let used = FinalUse { tokens: UsedTokens { input: 1, cached: 2, output: 3 }, cost_millionths: None };
        let text = r#"{"input":1,"cached":2,"output":3,"cost_millionths":null}"#;
        assert_eq!(serde_json::to_string(&used).unwrap(), text);
        assert_eq!(serde_json::from_str::<FinalUse>(text).unwrap(), used);
    }

    #[test]
    fn what_was_used_takes_the_place_of_what_was_booked_in_budgets_and_not_in_rates() {
        let keys = [
            ("tokens_per_minute", 10_000),
            ("tokens_per_day", 10_000),
            ("cost_per_day", 10_000),
            ("deployments.gpt-4o.tokens_per_month", 10_000),
        ];
        // The tokens and the cost of the end, and what is used then of tokens and cost.
        for (tokens, cost, expected_tokens, expected_cost) in [
            (60, Some(40), 60, 40),
            (160, Some(140), 160, 140),
            (160, Some(40), 160, 40),
            (100, None, 100, 100),
            (0, Some(0), 0, 0),
        ] {
            let client = TestClient::new();
            let limiter = client.limiter(&keys);
            let mut other = limiter.reserve(None, 7, 0).unwrap();
            other.settle(used(7), 0);
            let mut reservation = limiter.reserve(Some("gpt-4o"), 100, 0).unwrap();
            reservation.settle(super::super::reservation::Settlement::Unknown, 0);
            let booked = reservation.reservation.booked().unwrap();
            assert_eq!(booked.windows(), UtcWindows::at(time(0)));
            let used = FinalUse {
                tokens: UsedTokens { input: tokens, cached: 0, output: 0 },
                cost_millionths: cost,
            };
            client.accounts.correct(&booked, used);
            let uses: Vec<_> = limiter.uses(0).into_iter().map(|(_, used)| used).collect();
            assert_eq!(uses, [107, 7 + expected_tokens, expected_cost, expected_tokens], "{tokens} {cost:?}");
        }
    }

    #[test]
    fn nothing_is_remembered_where_there_is_no_budget() {
        let limiter = TestClient::new().limiter(&[("tokens_per_minute", 1000)]);
        let mut reservation = limiter.reserve(None, 100, 0).unwrap();
        reservation.settle(super::super::reservation::Settlement::Unknown, 0);
        assert_eq!(reservation.reservation.booked(), None);
    }
}
