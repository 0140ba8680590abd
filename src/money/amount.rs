//! An amount of money as a whole number of millionths.

use std::fmt;

/// Millionths in one unit of the currency.
const MILLIONTHS: u64 = 1_000_000;
/// The decimals of an amount.
const DECIMALS: usize = 6;

/// An amount in millionths of the currency. Sums saturate: the largest amount is about 18 million million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// It is not made of digits with or without a decimal point. A sign or an exponent is not accepted.
    #[error("is not a decimal number")]
    NotDecimal,
    /// It has digits after the sixth decimal.
    #[error("has more than {DECIMALS} decimals")]
    TooPrecise,
    /// It does not fit.
    #[error("is too large")]
    TooLarge,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// This many millionths.
    pub const fn from_millionths(millionths: u64) -> Self {
        Self(millionths)
    }

    /// The amount in millionths.
    pub const fn millionths(self) -> u64 {
        self.0
    }

    /// Reads digits with or without decimals, such as `12.50`. Zeros after the sixth decimal are accepted.
    ///
    /// # Errors
    /// [`AmountError`] for anything else.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !is_digits(decimals) {
            return Err(AmountError::NotDecimal);
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > DECIMALS {
            return Err(AmountError::TooPrecise);
        }
        let fraction = format!("{decimals:0<DECIMALS$}").parse::<u64>();
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(MILLIONTHS));
        let amount = whole.zip(fraction.ok()).and_then(|(whole, fraction)| whole.checked_add(fraction));
        amount.map(Self).ok_or(AmountError::TooLarge)
    }

    /// The sum, or the largest amount.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The part `share / whole` of it, rounded half up; nothing if `whole` is 0.
    #[must_use]
    pub fn share(self, share: u128, whole: u128) -> Self {
        // So that no product overflows: what is shifted out is less than a millionth of the result.
        let shift = (128 - whole.leading_zeros()).saturating_sub(63);
        let (share, whole) = (share >> shift, whole >> shift);
        let product = u128::from(self.0).saturating_mul(share);
        product
            .saturating_add(whole / 2)
            .checked_div(whole)
            .map_or(Self::ZERO, |millionths| Self(u64::try_from(millionths).unwrap_or(u64::MAX)))
    }
}

/// A decimal without zeros at its end: `0.00125`, `3`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 / MILLIONTHS)?;
        let fraction = format!("{:0DECIMALS$}", self.0 % MILLIONTHS);
        match fraction.trim_end_matches('0') {
            "" => Ok(()),
            decimals => write!(f, ".{decimals}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_amount_is_a_decimal_of_six_places() {
        for (text, millionths, shown) in [
            ("0", 0, "0"),
            ("2.50", 2_500_000, "2.5"),
            ("10", 10_000_000, "10"),
            ("0.000001", 1, "0.000001"),
            ("0.10000000000", 100_000, "0.1"),
            ("007.25", 7_250_000, "7.25"),
            ("18446744073709.551615", u64::MAX, "18446744073709.551615"),
        ] {
            let amount = Amount::parse(text).unwrap();
            assert_eq!((amount.millionths(), amount.to_string().as_str()), (millionths, shown), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_amount() {
        for (text, expected) in [
            ("", AmountError::NotDecimal),
            ("-1", AmountError::NotDecimal),
            ("+1", AmountError::NotDecimal),
            ("1e3", AmountError::NotDecimal),
            ("1,5", AmountError::NotDecimal),
            (".5", AmountError::NotDecimal),
            ("5.", AmountError::NotDecimal),
            ("1.2.3", AmountError::NotDecimal),
            ("$5", AmountError::NotDecimal),
            ("NaN", AmountError::NotDecimal),
            ("٣", AmountError::NotDecimal),
            ("0.0000001", AmountError::TooPrecise),
            ("18446744073709.551616", AmountError::TooLarge),
            ("99999999999999999999", AmountError::TooLarge),
        ] {
            assert_eq!(Amount::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_share_is_rounded_half_up_and_never_overflows() {
        for (amount, share, whole, expected) in [
            (100, 1, 3, 33),
            (100, 2, 3, 67),
            (1, 1, 2, 1),
            (7, 0, 9, 0),
            (7, 9, 9, 7),
            (7, 5, 0, 0),
            (u64::MAX, u128::MAX, u128::MAX, u64::MAX),
            (1_000_000, u128::MAX / 4, u128::MAX, 250_000),
        ] {
            let share_of = Amount::from_millionths(amount).share(share, whole);
            assert_eq!(share_of.millionths(), expected, "{amount} {share} {whole}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(millionths: u64, text in "[0-9.]{0,30}") {
            let amount = Amount::from_millionths(millionths);
            prop_assert_eq!(Amount::parse(&amount.to_string()), Ok(amount));
            let _ = Amount::parse(&text);
        }

        #[test]
        fn shares_of_a_whole_are_the_whole(amount in 0u64..1 << 50, parts in proptest::collection::vec(0u64..1 << 60, 1..8)) {
            let whole: u128 = parts.iter().map(|part| u128::from(*part)).sum();
            prop_assume!(whole > 0);
            let amount = Amount::from_millionths(amount);
            let sum: u64 = parts.iter().map(|part| amount.share(u128::from(*part), whole).millionths()).sum();
            prop_assert!(sum.abs_diff(amount.millionths()) <= parts.len() as u64);
        }
    }
}
