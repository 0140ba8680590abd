//! What is counted of a budget: what was booked, and what was taken back since it was too much.
//!
//! Neither sum ever falls. So of two reports of an instance the higher one is the later one, in whatever order they
//! arrive, and a report that arrives twice counts once.

use super::amounts::{Amounts, LimitUnit};

/// What is counted of a budget in one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitSums {
    /// What was booked.
    pub booked: u64,
    /// What was taken back of it, by the instance that booked it or another one.
    pub refunded: u64,
}

/// What is counted of a budget in all units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetSums {
    /// What was booked.
    pub booked: Amounts,
    /// What was taken back of it, by the instance that booked it or another one.
    pub refunded: Amounts,
}

impl UnitSums {
    /// Each of the two sums with the same one of the other.
    #[must_use]
    fn combine(self, other: Self, operation: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            booked: operation(self.booked, other.booked),
            refunded: operation(self.refunded, other.refunded),
        }
    }

    /// The later one of two reports of the same instance.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.combine(other, u64::max)
    }

    /// What the other one does not have yet.
    #[must_use]
    pub fn missing_from(self, other: Self) -> Self {
        self.combine(other, u64::saturating_sub)
    }

    /// The smaller one of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        self.combine(other, u64::min)
    }

    /// The sum of both.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// What counts against the budget.
    pub fn used(self) -> u64 {
        self.booked.saturating_sub(self.refunded)
    }
}

impl BudgetSums {
    /// The sums of one unit alone.
    pub fn of_unit(unit: LimitUnit, sums: UnitSums) -> Self {
        Self { booked: Amounts::of_unit(unit, sums.booked), refunded: Amounts::of_unit(unit, sums.refunded) }
    }

    /// The sums in this unit.
    pub fn in_unit(self, unit: LimitUnit) -> UnitSums {
        UnitSums { booked: self.booked.in_unit(unit), refunded: self.refunded.in_unit(unit) }
    }

    /// Whether nothing is counted.
    pub fn is_zero(self) -> bool {
        self.booked.is_zero() && self.refunded.is_zero()
    }
}
