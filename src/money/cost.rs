//! What a response costs at given rates.

use super::amount::Amount;
use super::price_row::Rates;

/// A rate is for this many tokens.
const TOKENS_OF_RATE: u128 = 1_000_000;
const MILLIS_PER_MINUTE: u128 = 60_000;

/// What a response is billed for, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BilledUnits {
    /// Its tokens; `None` if they are not known, or it is not billed by tokens.
    pub tokens: Option<BilledTokens>,
    /// Milliseconds of audio, if they are billed in place of tokens.
    pub audio_millis: Option<u64>,
    /// Generated images.
    pub images: Option<u64>,
}

/// The tokens of a response. The parts of input and output are contained in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BilledTokens {
    /// All input tokens.
    pub input: u64,
    /// Those that were read from a prompt cache.
    pub cached: u64,
    /// Those that were written to a prompt cache.
    pub cache_write: u64,
    /// Those of audio.
    pub audio_input: u64,
    /// Those of audio that were read from a prompt cache, which are part of `cached` as well.
    pub audio_cached: u64,
    /// All output tokens.
    pub output: u64,
    /// Those of audio.
    pub audio_output: u64,
}

impl BilledTokens {
    /// The same tokens, each in one part only. `None` if the parts are more than the whole: such counts are wrong.
    fn apart(&self) -> Option<Self> {
        let cached = self.cached.checked_sub(self.audio_cached)?;
        let audio_input = self.audio_input.checked_sub(self.audio_cached)?;
        let parts = [cached, self.cache_write, audio_input, self.audio_cached];
        let parts = parts.into_iter().try_fold(0_u64, u64::checked_add)?;
        let input = self.input.checked_sub(parts)?;
        let output = self.output.checked_sub(self.audio_output)?;
        Some(Self { input, cached, audio_input, output, ..*self })
    }
}

impl Rates {
    /// What this costs, rounded half up to a millionth of the currency, once. `None` if there is no rate for something
    /// that it contains, or if it contains nothing that is known.
    pub fn cost(&self, units: &BilledUnits) -> Option<Amount> {
        let images = units.images.zip(self.per_image);
        let tokens = match (&units.tokens, images) {
            (Some(tokens), None) => self.exact_cost_of_tokens(tokens)?,
            // Images that are billed one by one are not billed by their tokens.
            (_, Some((count, per_image))) => product(count, per_image)?.checked_mul(TOKENS_OF_RATE)?,
            (None, None) if units.audio_millis.is_some() => 0,
            (None, None) => return None,
        };
        // Exact up to here: in units of 10^-12 of the currency, divided by the milliseconds of a minute.
        let mut exact = tokens.checked_mul(MILLIS_PER_MINUTE)?;
        if let Some(millis) = units.audio_millis.filter(|millis| *millis > 0) {
            exact = exact.checked_add(product(millis, self.per_minute?)?.checked_mul(TOKENS_OF_RATE)?)?;
        }
        let divisor = TOKENS_OF_RATE * MILLIS_PER_MINUTE;
        u64::try_from(exact.checked_add(divisor / 2)? / divisor).ok().map(Amount::from_millionths)
    }

    /// What these tokens cost, in units of 10^-12 of the currency. `None` as for [`Rates::cost`].
    pub fn exact_cost_of_tokens(&self, tokens: &BilledTokens) -> Option<u128> {
        let tokens = tokens.apart()?;
        let parts = [
            (tokens.input, self.input),
            (tokens.cached, self.cached.or(self.input)),
            (tokens.cache_write, self.cache_write.or(self.input)),
            (tokens.audio_input, self.audio_input),
            (tokens.audio_cached, self.audio_cached.or(self.audio_input)),
            (tokens.output, self.output),
            (tokens.audio_output, self.audio_output),
        ];
        parts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .try_fold(0_u128, |sum, (count, rate)| sum.checked_add(product(count, rate?)?))
    }
}

fn product(count: u64, rate: Amount) -> Option<u128> {
    u128::from(count).checked_mul(u128::from(rate.millionths()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount(text: &str) -> Option<Amount> {
        Some(Amount::parse(text).unwrap())
    }

    fn gpt_4o() -> Rates {
        Rates { input: amount("2.50"), cached: amount("1.25"), output: amount("10"), ..Rates::default() }
    }

    fn tokens(tokens: BilledTokens) -> BilledUnits {
        BilledUnits { tokens: Some(tokens), ..BilledUnits::default() }
    }

    #[test]
    fn each_kind_of_token_has_its_rate() {
        let plain = BilledTokens { input: 1000, output: 500, ..BilledTokens::default() };
        let cached = BilledTokens { cached: 400, ..plain };
        let written = BilledTokens { cache_write: 100, ..cached };
        let audio = BilledTokens { audio_input: 600, audio_cached: 200, audio_output: 300, ..cached };
        let with_write = Rates { cache_write: amount("3.125"), ..gpt_4o() };
        let with_audio = Rates { audio_input: amount("40"), audio_output: amount("80"), ..gpt_4o() };
        let with_cached_audio = Rates { audio_cached: amount("2.50"), ..with_audio };
        for (name, rates, units, expected) in [
            ("input and output", gpt_4o(), plain, Some("0.0075")),
            ("cached input costs less", gpt_4o(), cached, Some("0.007")),
            ("or as much as input", Rates { cached: None, ..gpt_4o() }, cached, Some("0.0075")),
            ("a cache write costs more", with_write, written, Some("0.007063")),
            ("or as much as input", gpt_4o(), written, Some("0.007")),
            // 200 plain, 200 cached, 400 audio, 200 cached audio; 200 text out, 300 audio out.
            ("audio", with_audio, audio, Some("0.05075")),
            ("cached audio", with_cached_audio, audio, Some("0.04325")),
            ("audio without a rate", gpt_4o(), audio, None),
            ("no rate for output", Rates { output: None, ..gpt_4o() }, plain, None),
            (
                "no output",
                Rates { output: None, ..gpt_4o() },
                BilledTokens { output: 0, ..plain },
                Some("0.0025"),
            ),
            ("more cached than input", gpt_4o(), BilledTokens { cached: 1001, ..plain }, None),
            ("more audio than output", with_audio, BilledTokens { audio_output: 501, ..plain }, None),
            ("nothing", gpt_4o(), BilledTokens::default(), Some("0")),
        ] {
            let cost = rates.cost(&tokens(units)).map(|cost| cost.to_string());
            assert_eq!(cost.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn images_and_minutes_have_their_rate() {
        let none = BilledUnits::default();
        let some_tokens = Some(BilledTokens { input: 50, output: 4160, ..BilledTokens::default() });
        let per_image = Rates { per_image: amount("0.04"), ..Rates::default() };
        let per_minute = Rates { per_minute: amount("0.006"), ..Rates::default() };
        for (rates, units, expected) in [
            (per_image, BilledUnits { images: Some(3), ..none }, Some("0.12")),
            (per_image, BilledUnits { images: Some(1), tokens: some_tokens, ..none }, Some("0.04")),
            (gpt_4o(), BilledUnits { images: Some(1), tokens: some_tokens, ..none }, Some("0.041725")),
            (gpt_4o(), BilledUnits { images: Some(1), ..none }, None),
            (per_minute, BilledUnits { audio_millis: Some(12_345), ..none }, Some("0.001235")),
            (per_minute, BilledUnits { audio_millis: Some(0), ..none }, Some("0")),
            (gpt_4o(), BilledUnits { audio_millis: Some(12_345), ..none }, None),
            (per_minute, none, None),
        ] {
            let cost = rates.cost(&units).map(|cost| cost.to_string());
            assert_eq!(cost.as_deref(), expected, "{units:?}");
        }
    }

    #[test]
    fn a_cost_is_rounded_once_and_half_up() {
        let rate = |text| Rates { input: amount(text), output: amount(text), ..Rates::default() };
        let count = |input, output| tokens(BilledTokens { input, output, ..BilledTokens::default() });
        for (rates, units, millionths) in [
            (rate("0.5"), count(1, 0), 1),
            (rate("0.499999"), count(1, 0), 0),
            // Each would be rounded to nothing.
            (rate("0.4"), count(1, 1), 1),
            (rate("1.5"), count(1, 0), 2),
            (rate("0.000001"), count(499_999, 0), 0),
            (rate("0.000001"), count(500_000, 0), 1),
        ] {
            assert_eq!(rates.cost(&units).map(Amount::millionths), Some(millionths), "{units:?}");
        }
    }

    proptest! {
        #[test]
        fn no_count_overflows(counts: [u64; 7], rates: [u64; 9], audio_millis: Option<u64>, images: Option<u64>) {
            let [input, cached, cache_write, audio_input, audio_cached, output, audio_output] = counts;
            let tokens = BilledTokens { input, cached, cache_write, audio_input, audio_cached, output, audio_output };
            let [a, b, c, d, e, f, g, h, i] = rates.map(|rate| Some(Amount::from_millionths(rate)));
            let rates = Rates {
                input: a, cached: b, cache_write: c, output: d, audio_input: e, audio_cached: f, audio_output: g,
                per_image: h, per_minute: i,
            };
            let _ = rates.cost(&BilledUnits { tokens: Some(tokens), audio_millis, images });
            // A part more costs more.
            let few = BilledTokens { input: u64::from(input as u32), output: u64::from(output as u32), ..BilledTokens::default() };
            let more = BilledTokens { input: few.input + 1, ..few };
            let cost = |tokens| rates.cost(&BilledUnits { tokens: Some(tokens), ..BilledUnits::default() });
            if let (Some(few), Some(more)) = (cost(few), cost(more)) {
                prop_assert!(few <= more);
            }
        }
    }
}
