//! Limits that several instances share. Each instance leases a part of every limit in advance, and admits requests from its
//! leases without asking anybody.
//!
//! What an instance has used, what its requests hold and what it has leased is reported to a server, which grants
//! further leases as long as the sum of all instances stays within the limit (`report.rs`). Reports are sums, not
//! changes: one that is lost or arrives twice does no harm. They go out in the background, up to four times a second while
//! a client is active, and at once when a lease is half used up. A request whose lease is used up waits a few milliseconds for the
//! next one (`reserve.rs`). If the server does not answer by then, the instance admits requests up to its part of the
//! limit. How reports reach the server is left to `gateway/shared_limits/`.

mod lease;
mod lease_desk;
mod new_id;
mod report;
mod report_state;
mod reserve;

#[cfg(test)]
mod tests;

pub use self::lease::LeaseGrant;
pub use self::lease_desk::{LeaseDesk, ReportRequest};
pub use self::report::{LimitReport, OpenReport, ReportKind, UsedAmounts};

pub(super) use self::lease::Leases;
pub(super) use self::report_state::ReportState;
