//! The order of backends for a key: weighted rendezvous hashing.
//!
//! Each backend has a score for each key, and the backends are ordered by their scores. A backend that comes or goes
//! moves only the keys that it is the first for, and is the first for its share of the weights (Schindelhauer and
//! Schomaker, "Weighted Distributed Hash Tables", 2005).

use std::f64::consts::LN_2;

use super::key::{hash_name, mix};
use crate::names::{BackendName, CacheKey, Weight};

/// A backend that has a place in the order of each key.
#[derive(Clone, Copy, Debug)]
pub(in crate::routing) struct RankedBackend {
    /// From its name, which is the same on every instance.
    hash: u64,
    weight: Weight,
}

impl RankedBackend {
    pub(in crate::routing) fn new(name: &BackendName, weight: Weight) -> Self {
        Self { hash: hash_name(name.as_str()), weight }
    }

    pub(in crate::routing) fn weight(&self) -> Weight {
        self.weight
    }

    /// Its score for a key: the backend with the highest is the first.
    pub(in crate::routing) fn score(&self, key: CacheKey) -> f64 {
        // A number in (0, 1) from the upper 53 bits, which an f64 has exactly.
        let uniform = ((mix(self.hash, key.hash()) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        f64::from(self.weight.get()) / -ln(uniform)
    }
}

/// The natural logarithm of a positive normal number. `f64::ln` may have other last digits on another platform or after
/// an update, and instances would choose differently. This has only additions, multiplications and divisions, whose
/// results IEEE 754 defines to the last bit.
fn ln(x: f64) -> f64 {
    const MANTISSA_BITS: u32 = 52;
    const EXPONENT_BIAS: i64 = 1023;
    /// Odd powers in the series: the next term is below 2^-53.
    const TERMS: u32 = 11;
    let bits = x.to_bits();
    let mut exponent = (bits >> MANTISSA_BITS) as i64 - EXPONENT_BIAS;
    let mut mantissa =
        f64::from_bits(bits & ((1 << MANTISSA_BITS) - 1) | (EXPONENT_BIAS as u64) << MANTISSA_BITS);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh s, with s = (m - 1) / (m + 1), which is at most 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let sum = (0..TERMS).rev().fold(0.0, |sum, n| sum * square + 1.0 / f64::from(2 * n + 1));
    exponent as f64 * LN_2 + 2.0 * s * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(weights: &[u16]) -> Vec<RankedBackend> {
        let name = |index: usize| BackendName::new(&format!("backend-{index}"));
        weights
            .iter()
            .enumerate()
            .map(|(index, weight)| RankedBackend::new(&name(index), Weight::new(*weight).unwrap()))
            .collect()
    }

    fn first(backends: &[RankedBackend], key: u64, without: Option<usize>) -> usize {
        let score = |index: usize| backends[index].score(CacheKey::from_hash(key));
        let left = (0..backends.len()).filter(|index| Some(*index) != without);
        left.max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap()
    }

    #[test]
    fn the_logarithm_is_that_of_the_standard_library() {
        for x in [
            f64::MIN_POSITIVE,
            1e-300,
            1e-16,
            0.1,
            0.499_999,
            0.5,
            0.7,
            std::f64::consts::FRAC_1_SQRT_2,
            0.999,
            1.0 - f64::EPSILON,
        ] {
            let difference = (ln(x) / x.ln() - 1.0).abs();
            assert!(difference < 1e-15, "{x}: {difference}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn the_order_does_not_change_from_one_version_to_the_next() {
        let backends = backends(&[1, 1, 2, 5]);
        let firsts: Vec<usize> = (0..24).map(|key| first(&backends, key, None)).collect();
        assert_eq!(firsts, [2, 2, 1, 3, 2, 3, 1, 3, 3, 3, 2, 2, 3, 3, 3, 3, 0, 3, 1, 0, 0, 3, 0, 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn losing_one_of_five_backends_moves_a_fifth_of_the_keys(seed: u64, lost in 0_usize..5) {
            let backends = backends(&[1; 5]);
            let (mut moved, keys) = (0, 5_000);
            for number in 0..keys {
                let key = mix(seed, number);
                let (before, after) = (first(&backends, key, None), first(&backends, key, Some(lost)));
                prop_assert!(before == after || before == lost, "only the keys of the lost backend move");
                moved += u64::from(before != after);
            }
            let percent = 100.0 * moved as f64 / keys as f64;
            prop_assert!((17.0..=23.0).contains(&percent), "{percent} %");
        }

        #[test]
        fn shares_are_those_of_the_weights(seed: u64, weights in proptest::collection::vec(1_u16..10, 2..6)) {
            let backends = backends(&weights);
            let mut counts = vec![0_u32; weights.len()];
            for number in 0..4_000 {
                counts[first(&backends, mix(seed, number), None)] += 1;
            }
            let total: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let (share, expected) =
                    (f64::from(*count) / 4_000.0, f64::from(*weight) / f64::from(total));
                prop_assert!((share - expected).abs() < 0.04, "{share} for {expected} of {weights:?}");
            }
        }
    }
}
