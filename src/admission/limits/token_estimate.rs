//! How many tokens a request of a client will use and what they will cost, from what its earlier ones have used. No text
//! is tokenized while a request waits.

use serde::{Deserialize, Serialize};

use super::amounts::Amounts;
use crate::money::Amount;

/// Of English text in JSON, until a client's own requests tell.
const FIRST_TOKENS_PER_BYTE: f32 = 0.25;
/// Of a response whose length the request does not limit.
const FIRST_OUTPUT_TOKENS: f32 = 256.0;
/// The average is one over this many requests: the first ones decide alone, and no single later one changes much.
const AVERAGED_REQUESTS: u8 = 8;
/// What text of any language can be. Images and files in a body have few tokens for their bytes, and say nothing of
/// text.
const PLAUSIBLE_TOKENS_PER_BYTE: std::ops::RangeInclusive<f32> = 0.05..=2.0;
/// A rate is for this many tokens.
const TOKENS_OF_RATE: u128 = 1_000_000;
/// A body shorter than this is mostly keys.
const MIN_LEARNED_BYTES: u64 = 64;

/// What is learned of one client's requests for one deployment.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenEstimate {
    tokens_per_byte: Average,
    output_tokens: Average,
    /// In millionths of the currency.
    cost_per_token: Average,
}

/// An average in which later values count for more.
#[derive(Clone, Copy, Debug)]
struct Average {
    value: f32,
    /// How many values it is made of.
    count: u8,
}

/// What is known of a request before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The length of a body with a prompt; 0 if it has none.
    pub prompt_bytes: u64,
    /// The largest output that the client allows.
    pub max_output_tokens: Option<u64>,
    /// How many answers the client asks for.
    pub choices: u64,
    /// Whether an answer with tokens is expected: not for embeddings.
    pub has_output: bool,
    /// Whether it may use tokens. What reads, cancels or deletes an object uses none.
    pub may_use_tokens: bool,
    /// What is known of the price of its tokens, if its cost is limited.
    pub rates: Option<TokenRates>,
}

/// What a million tokens cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenRates {
    /// For input; `None` if no price is known before the response.
    pub input: Option<Amount>,
    /// For output.
    pub output: Option<Amount>,
}

impl Demand {
    /// The tokens that such a request is expected to use, of a client that has made no requests.
    pub fn tokens_of_unknown_client(&self) -> u64 {
        TokenEstimate::default().amounts(self).tokens
    }
}

/// Token counts as a backend has reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedTokens {
    /// All of the input, also what was read from a cache.
    pub input: u64,
    /// The part of the input that was read from a cache.
    pub cached: u64,
    /// All of the output, also reasoning.
    pub output: u64,
}

impl UsedTokens {
    /// How many tokens count, if cached ones count for this many thousandths.
    pub fn counted(&self, cached_weight_permille: u32) -> u64 {
        let cached = self.cached.min(self.input);
        let weighted = cached.saturating_mul(u64::from(cached_weight_permille)).div_ceil(1000);
        (self.input - cached).saturating_add(weighted).saturating_add(self.output)
    }
}

impl TokenRates {
    /// What this many tokens cost, in millionths of the currency.
    fn cost_millionths(self, input: u64, output: u64) -> u64 {
        let of = |tokens: u64, rate: Option<Amount>| {
            u128::from(tokens) * u128::from(rate.unwrap_or_default().millionths())
        };
        let exact = of(input, self.input).saturating_add(of(output, self.output));
        u64::try_from(exact.div_ceil(TOKENS_OF_RATE)).unwrap_or(u64::MAX)
    }
}

impl Default for TokenEstimate {
    fn default() -> Self {
        Self {
            tokens_per_byte: Average { value: FIRST_TOKENS_PER_BYTE, count: 0 },
            output_tokens: Average { value: FIRST_OUTPUT_TOKENS, count: 0 },
            cost_per_token: Average { value: 0.0, count: 0 },
        }
    }
}

impl Average {
    fn add(&mut self, value: f32) {
        self.count = (self.count + 1).min(AVERAGED_REQUESTS);
        self.value += (value - self.value) / f32::from(self.count);
    }
}

impl TokenEstimate {
    /// The tokens that such a request is expected to use, and what they are expected to cost.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate; a conversion of a large or negative number saturates"
    )]
    pub(super) fn amounts(&self, demand: &Demand) -> Amounts {
        let input = (demand.prompt_bytes as f32 * self.tokens_per_byte.value).ceil() as u64;
        let output = match demand.max_output_tokens {
            _ if !demand.has_output => 0,
            Some(limit) => limit,
            None => self.output_tokens.value.ceil() as u64,
        };
        let output = output.saturating_mul(demand.choices.max(1));
        // At least one token, so that images and audio, whose tokens are not known before, are refused once nothing is left.
        let tokens = input.saturating_add(output).max(u64::from(demand.may_use_tokens));
        let cost_of = |rates| match rates {
            // The response names the model that the price depends on.
            TokenRates { input: None, output: None } => {
                (tokens as f32 * self.cost_per_token.value).ceil() as u64
            }
            rates => rates.cost_millionths(input, output),
        };
        // At least a millionth, so that a request of unknown price is refused once nothing is left.
        let cost_millionths = demand.rates.map_or(0, |rates| cost_of(rates).max(1));
        Amounts { tokens, cost_millionths }
    }

    /// Learns what such a request has used, and what it has cost in millionths of the currency, if that is known.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn learn(&mut self, demand: &Demand, used: &UsedTokens, cost_millionths: Option<u64>) {
        let tokens = used.input.saturating_add(used.output);
        // What a provisioned backend answers says nothing of the price elsewhere.
        if let Some(cost) = cost_millionths.filter(|cost| *cost > 0 && tokens > 0) {
            self.cost_per_token.add(cost as f32 / tokens as f32);
        }
        if demand.prompt_bytes >= MIN_LEARNED_BYTES {
            let observed = used.input as f32 / demand.prompt_bytes as f32;
            if PLAUSIBLE_TOKENS_PER_BYTE.contains(&observed) {
                self.tokens_per_byte.add(observed);
            }
        }
        if demand.has_output && used.output > 0 {
            self.output_tokens.add(used.output as f32 / demand.choices.max(1) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(prompt_bytes: u64, max_output_tokens: Option<u64>, choices: u64) -> Demand {
        Demand { prompt_bytes, max_output_tokens, choices, has_output: true, ..Demand::default() }
    }

    #[test]
    fn the_first_estimate_is_that_of_english_text() {
        let estimate = TokenEstimate::default();
        for (demand, expected) in [
            (demand(1000, None, 1), 250 + 256),
            (demand(1000, Some(10), 1), 260),
            (demand(1000, Some(10), 3), 280),
            (demand(0, Some(0), 1), 0),
            (Demand { has_output: false, ..demand(400, Some(10), 1) }, 100),
            (demand(0, Some(u64::MAX), 9), u64::MAX),
            (Demand::default(), 0),
            (Demand { may_use_tokens: true, ..Demand::default() }, 1),
            (Demand { may_use_tokens: true, ..demand(0, Some(2), 1) }, 2),
        ] {
            assert_eq!(estimate.amounts(&demand).tokens, expected, "{demand:?}");
        }
    }

    #[test]
    fn estimates_approach_what_requests_use() {
        let mut estimate = TokenEstimate::default();
        estimate.learn(&demand(1000, None, 1), &UsedTokens { input: 250, cached: 0, output: 100 }, None);
        assert_eq!(estimate.amounts(&demand(1000, None, 1)).tokens, 350, "the first one decides alone");
        for _ in 0..100 {
            let used = UsedTokens { input: 500, cached: 0, output: 40 };
            estimate.learn(&demand(1000, None, 2), &used, None);
        }
        assert!((540..=544).contains(&estimate.amounts(&demand(1000, None, 2)).tokens), "{estimate:?}");
        // An image of 1 MB with a question.
        estimate.learn(&demand(1 << 20, None, 2), &UsedTokens { input: 1100, cached: 0, output: 40 }, None);
        assert!((540..=544).contains(&estimate.amounts(&demand(1000, None, 2)).tokens), "{estimate:?}");
    }

    #[test]
    fn cached_tokens_count_for_as_much_as_configured() {
        let used = UsedTokens { input: 1000, cached: 601, output: 50 };
        for (permille, expected) in [(1000, 1050), (500, 399 + 301 + 50), (0, 449)] {
            assert_eq!(used.counted(permille), expected);
        }
        // More than all makes no sense.
        assert_eq!(UsedTokens { input: 10, cached: 20, output: 0 }.counted(0), 0);
    }

    #[test]
    fn a_cost_is_estimated_by_the_prices_or_by_earlier_costs() {
        let rate = |text| Some(Amount::parse(text).unwrap());
        let gpt_4o = TokenRates { input: rate("2.50"), output: rate("10") };
        let cost = |estimate: TokenEstimate, rates, choices| {
            estimate.amounts(&Demand { rates, ..demand(400, Some(50), choices) }).cost_millionths
        };
        let mut estimate = TokenEstimate::default();
        // 100 input tokens, and 50 of output for each choice.
        for (rates, choices, expected) in [
            (None, 1, 0),
            (Some(gpt_4o), 1, 250 + 500),
            (Some(gpt_4o), 3, 250 + 1500),
            (Some(TokenRates { output: None, ..gpt_4o }), 1, 250),
            (Some(TokenRates { input: rate("0.000001"), output: None }), 1, 1),
            (Some(TokenRates::default()), 1, 1),
        ] {
            assert_eq!(cost(estimate, rates, choices), expected, "{rates:?} {choices}");
        }
        let used = UsedTokens { input: 100, cached: 0, output: 50 };
        for known in [Some(300), None, Some(0)] {
            estimate.learn(&demand(400, Some(50), 1), &used, known);
        }
        assert_eq!(cost(estimate, Some(TokenRates::default()), 1), 300);
        assert_eq!(cost(estimate, Some(gpt_4o), 1), 750, "prices come first");
        let huge = Demand { rates: Some(gpt_4o), ..demand(0, Some(u64::MAX), 9) };
        assert_eq!(estimate.amounts(&huge).tokens, u64::MAX);
    }
}
