//! The limits of clients: rates over the last 60 seconds, budgets of a UTC day or month, and requests in flight.
//!
//! What a request may use is reserved when it is admitted ([`ClientLimiter::reserve`]) and replaced by what it has
//! used when its record is made ([`Reservation::settle`]). A request is admitted only if
//! what is reserved and used stays within the limit, at any concurrency. Each client has an account and a lock of its own.
//!
//! During an upgrade one process keeps the limits for both. The old process sends the new one what its requests have
//! reserved (`snapshot.rs`) and then reports what happens to them (`limit_message.rs`). The new process counts that until
//! the old one ends (`predecessor_share.rs`). From the handover on, the old process asks the new one for permission before
//! it admits a request ([`ClientLimiter::reserve_with_permission`], `keeper_link.rs`). If no answer comes in time, it admits
//! up to a small share of each rate (`unasked_share.rs`).

mod account;
mod amounts;
mod booked;
mod budget;
mod budget_sums;
mod budget_window;
mod check;
mod keeper_link;
mod leases;
mod limit_key;
mod limit_message;
mod limiter;
mod predecessor_share;
mod reservation;
mod sliding_minute;
mod snapshot;
#[cfg(test)]
mod testing;
mod token_estimate;
mod unasked_share;

pub use self::account::{ClientAccount, ClientAccounts, LimitBooks, OpenBudget};
pub use self::amounts::{Amounts, LimitUnit};
pub use self::booked::{Booked, FinalUse};
pub use self::budget::Budget;
pub use self::budget_sums::{BudgetSums, UnitSums};
pub use self::budget_window::BudgetWindow;
pub use self::keeper_link::{KeeperLink, QueuedMessage};
pub use self::leases::{
    LeaseDesk, LeaseGrant, LimitReport, OpenReport, ReportKind, ReportRequest, UsedAmounts,
};
pub use self::limit_key::{LimitKey, LimitKind, LimitReached, ShownAmount};
pub use self::limit_message::{Booking, LimitAnswer, LimitMessage, LimitScope};
pub use self::limiter::{ClientLimiter, LimitUse, RateState};
pub use self::predecessor_share::PredecessorShare;
pub use self::reservation::{Reservation, Settlement};
pub use self::snapshot::RateSnapshot;
pub use self::token_estimate::{Demand, TokenRates, UsedTokens};
