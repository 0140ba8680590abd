//! What records are made with.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use log::error;

use crate::record::cost::Pricing;
use crate::record::delivery;
use crate::record::exchange::{CapturePolicy, FinishedExchange};
use crate::record::line::RecordLine;
use crate::record::metrics::Metrics;
use crate::record::redact::Redactor;
use crate::record::stored_objects::StoredObjects;

/// What all threads that make records need. A reload replaces the redactor and the prices.
pub(super) struct RecordContext {
    pub(super) redactor: Arc<ArcSwap<Redactor>>,
    pub(super) pricing: Arc<ArcSwapOption<Pricing>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stored_objects: StoredObjects,
}

impl RecordContext {
    /// Counts an exchange, makes its record, and passes that to `use_record`.
    pub(super) fn make_record<T>(
        &self,
        exchange: &mut FinishedExchange,
        policy: CapturePolicy,
        use_record: impl FnOnce(RecordLine<'_>) -> T,
    ) -> T {
        let (redactor, pricing) = (self.redactor.load(), self.pricing.load());
        use_record(exchange.count_and_render_record(
            policy,
            &redactor,
            &self.metrics,
            &self.stored_objects,
            pricing.as_ref(),
        ))
    }

    /// Calls what makes a record. A panic of a parser over a client's text must not end anything else: the record is dropped and
    /// counted, and the result is `None`.
    pub(super) fn catch_panic<T>(&self, make_record: impl FnOnce() -> T) -> Option<T> {
        let outcome = catch_unwind(AssertUnwindSafe(make_record));
        if outcome.is_err() {
            error!("a record could not be made and is dropped: this is a bug in aoai-lb");
            self.metrics.count_records(delivery::SPOOL, "dropped", 1);
        }
        outcome.ok()
    }
}
