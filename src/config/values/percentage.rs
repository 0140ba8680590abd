//! A percentage.

/// A percentage, from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage(u8);

impl Percentage {
    pub(crate) const FIVE_PERCENT: Self = Self(5);
    pub(crate) const TWENTY_PERCENT: Self = Self(20);
    pub(crate) const FIFTY_PERCENT: Self = Self(50);

    /// `None` above 100.
    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    /// The number, from 0 to 100.
    pub fn percent(self) -> u8 {
        self.0
    }
}
