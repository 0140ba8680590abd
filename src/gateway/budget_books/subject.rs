//! What books are about, and the words for it.

use crate::state::budget_log::{COSTS_FILE_NAME, FILE_NAME};

/// What is kept in books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BookSubject {
    /// What clients have used of their budgets.
    #[default]
    Budgets,
    /// What the responses to clients have cost, for the status.
    Costs,
}

impl BookSubject {
    /// The file in the state directory.
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Budgets => FILE_NAME,
            Self::Costs => COSTS_FILE_NAME,
        }
    }

    /// The name of the thread that saves.
    pub(super) fn thread_name(self) -> &'static str {
        match self {
            Self::Budgets => "budgets",
            Self::Costs => "costs",
        }
    }

    /// What is kept, as the log names it.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Budgets => "what clients have used of their budgets",
            Self::Costs => "what the responses to clients have cost",
        }
    }

    /// What follows if the file cannot be used.
    pub(super) fn consequence_of_loss(self) -> &'static str {
        match self {
            Self::Budgets => "so the budgets of the clients begin anew",
            Self::Costs => "so the sums of costs in the status begin anew",
        }
    }

    /// What may follow if lines of the file are damaged.
    pub(super) fn consequence_of_damage(self) -> &'static str {
        match self {
            Self::Budgets => "some clients may be able to use more than their budgets",
            Self::Costs => "some costs may be missing in the status",
        }
    }
}
