//! A part of a whole.

/// A part of a whole, in whole percent; at most 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage(u8);

impl Percentage {
    pub(crate) const TWENTY_PERCENT: Self = Self(20);
    pub(crate) const FIFTY_PERCENT: Self = Self(50);

    /// Takes 0 to 100 percent.
    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    /// The ratio in percent.
    pub fn percent(self) -> u8 {
        self.0
    }
}
