//! The limits of clients: rates over the last 60 seconds, budgets of a UTC day or month, and requests in flight.
//!
//! What a request may use is reserved when it is admitted ([`ClientLimiter::reserve`]) and replaced by what it has
//! used when its record is made ([`Reservation::settle`]). A request is admitted only if
//! what is reserved and used stays within the limit, at any concurrency. Each client has an account and a lock of its own.

mod account;
mod budget;
mod limit_key;
mod limiter;
mod reservation;
mod sliding_minute;
mod snapshot;
#[cfg(test)]
mod testing;
mod token_estimate;

pub use self::account::{ClientAccount, ClientAccounts, LimitBooks, OpenBudget};
pub use self::budget::Budget;
pub use self::limit_key::{LimitKey, LimitKind, LimitReached};
pub use self::limiter::{ClientLimiter, LimitUse, RateState};
pub use self::reservation::{Reservation, Settlement};
pub use self::snapshot::RateSnapshot;
pub use self::token_estimate::{Demand, UsedTokens};
