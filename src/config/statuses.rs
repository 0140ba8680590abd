//! The set of response statuses that lead to another attempt.

use std::fmt;

const FIRST: u16 = 400;
const LAST: u16 = 599;

/// A set of statuses between 400 and 599.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Statuses([u64; 4]);

impl Statuses {
    /// The set without members.
    pub(super) const NONE: Self = Self([0; 4]);

    /// What the product does unless told otherwise: 408, 429 and 500 to 599.
    pub(super) fn usual() -> Self {
        [(408, 408), (429, 429), (500, 599)]
            .into_iter()
            .fold(Self::NONE, |set, (first, last)| set.with(first, last))
    }

    /// The set with `first` to `last` added; what lies outside 400 to 599 is left out.
    pub(super) fn with(mut self, first: u16, last: u16) -> Self {
        for status in first.max(FIRST)..=last.min(LAST) {
            let bit = usize::from(status - FIRST);
            self.0[bit / 64] |= 1 << (bit % 64);
        }
        self
    }

    /// Whether `status` is in the set.
    pub fn contains(&self, status: u16) -> bool {
        (FIRST..=LAST).contains(&status) && {
            let bit = usize::from(status - FIRST);
            self.0[bit / 64] >> (bit % 64) & 1 == 1
        }
    }
}

impl fmt::Debug for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((FIRST..=LAST).filter(|status| self.contains(*status))).finish()
    }
}

/// Reads `429` or `500-599` as its first and last status; both within 400 to 599.
pub(super) fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let text = text.trim();
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (FIRST <= first && first <= last && last <= LAST).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_set() {
        let usual = Statuses::usual();
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
            assert_eq!(usual.contains(status), expected, "{status}");
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
            assert_eq!(range(text), expected, "{text}");
        }
    }
}
