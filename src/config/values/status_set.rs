//! A set of response statuses, for `retry.statuses`.

use std::fmt;

const MIN_STATUS: u16 = 400;
const MAX_STATUS: u16 = 599;

/// A set of statuses from 400 to 599.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StatusSet([u64; 4]);

impl StatusSet {
    /// The empty set.
    pub(crate) const EMPTY: Self = Self([0; 4]);

    /// The default of `retry.statuses`: 408, 429 and 500 to 599.
    pub(crate) fn default_retryable() -> Self {
        [(408, 408), (429, 429), (500, 599)]
            .into_iter()
            .fold(Self::EMPTY, |set, (first, last)| set.with_range(first, last))
    }

    /// Adds the statuses from `first` to `last`. Those outside 400 to 599 are ignored.
    pub(crate) fn with_range(mut self, first: u16, last: u16) -> Self {
        for status in first.max(MIN_STATUS)..=last.min(MAX_STATUS) {
            let bit = usize::from(status - MIN_STATUS);
            self.0[bit / 64] |= 1 << (bit % 64);
        }
        self
    }

    /// Whether `status` is in the set.
    pub fn contains(&self, status: u16) -> bool {
        (MIN_STATUS..=MAX_STATUS).contains(&status) && {
            let bit = usize::from(status - MIN_STATUS);
            self.0[bit / 64] >> (bit % 64) & 1 == 1
        }
    }
}

impl fmt::Debug for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((MIN_STATUS..=MAX_STATUS).filter(|status| self.contains(*status))).finish()
    }
}

/// Parses `429` or `500-599`, within 400 to 599. Returns the first and the last status.
pub(crate) fn parse_status_range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let text = text.trim();
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (MIN_STATUS <= first && first <= last && last <= MAX_STATUS).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_has_408_429_and_5xx() {
        let default_set = StatusSet::default_retryable();
        for (status, expected) in [
            (0, false),
            (399, false),
            (400, false),
            (408, true),
            (428, false),
            (429, true),
            (499, false),
            (500, true),
            (599, true),
            (600, false),
            (u16::MAX, false),
        ] {
            assert_eq!(default_set.contains(status), expected, "{status}");
        }
    }

    #[test]
    fn ranges_stay_within_400_to_599() {
        for (text, expected) in [
            ("429", Some((429, 429))),
            ("400-599", Some((400, 599))),
            ("500 - 503", Some((500, 503))),
            ("503-500", None),
            ("399-400", None),
            ("600", None),
            ("", None),
            ("-", None),
            ("+429", None),
            ("99999", None),
            ("5xx", None),
        ] {
            assert_eq!(parse_status_range(text), expected, "{text}");
        }
    }
}
