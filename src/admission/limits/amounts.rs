//! What a request uses of limits, in each unit that a limit can have.

use serde::{Deserialize, Serialize};

/// What is counted against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitUnit {
    /// Requests: each is one.
    Requests,
    /// Input and output tokens.
    Tokens,
    /// Millionths of the currency of the prices.
    Cost,
}

/// What a request uses or has reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Its tokens.
    pub tokens: u64,
    /// Its cost in millionths of the currency; 0 if no limit is about cost.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cost_millionths: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Amounts {
    /// Tokens that cost nothing.
    pub const fn of_tokens(tokens: u64) -> Self {
        Self { tokens, cost_millionths: 0 }
    }

    /// So much of one unit alone. Requests are not among the amounts.
    pub const fn of_unit(unit: LimitUnit, amount: u64) -> Self {
        match unit {
            LimitUnit::Requests => Self { tokens: 0, cost_millionths: 0 },
            LimitUnit::Tokens => Self::of_tokens(amount),
            LimitUnit::Cost => Self { tokens: 0, cost_millionths: amount },
        }
    }

    /// What counts against a limit of this unit.
    pub const fn in_unit(self, unit: LimitUnit) -> u64 {
        match unit {
            LimitUnit::Requests => 1,
            LimitUnit::Tokens => self.tokens,
            LimitUnit::Cost => self.cost_millionths,
        }
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.tokens == 0 && self.cost_millionths == 0
    }

    /// The sum of both.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            cost_millionths: self.cost_millionths.saturating_add(other.cost_millionths),
        }
    }

    /// What is left of it without the other, or nothing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            cost_millionths: self.cost_millionths.saturating_sub(other.cost_millionths),
        }
    }

    /// The smaller one of each unit.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.min(other.tokens),
            cost_millionths: self.cost_millionths.min(other.cost_millionths),
        }
    }
}
