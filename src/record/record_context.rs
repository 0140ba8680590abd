//! What records are made with.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::cost::Pricing;
use super::metrics::Metrics;
use super::redact::Redactor;
use super::stored_objects::StoredObjects;

/// What all threads that make records need. A reload replaces the redactor and the prices.
pub(super) struct RecordContext {
    pub(super) redactor: Arc<ArcSwap<Redactor>>,
    pub(super) pricing: Arc<ArcSwapOption<Pricing>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stored_objects: StoredObjects,
}
