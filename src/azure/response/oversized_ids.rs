//! The ids in an event that is too long to be kept.

use super::id_scanner::IdScanner;
use super::learned_id::{LearnedId, scan_event};
use crate::azure::request::reference_kind::ReferenceKind;

/// How many ids of one event are remembered.
const MAX_IDS: usize = 4096;

/// The ids in an event that is too long to be kept. They are found while it passes.
#[derive(Debug, Default)]
pub(super) struct OversizedEventScanner {
    scanner: IdScanner,
    ids: OversizedEventIds,
}

/// The ids in an event that was too long to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OversizedEventIds {
    pub(super) ids: Vec<(ReferenceKind, String)>,
    pub(super) says_not_stored: bool,
}

impl OversizedEventScanner {
    /// Takes the next bytes of the event's data.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let Self { scanner, ids } = self;
        let OversizedEventIds { ids, says_not_stored } = ids;
        *says_not_stored |= scan_event(scanner, bytes, &mut |LearnedId { kind, id }| {
            if ids.len() < MAX_IDS {
                ids.push((kind, id.to_owned()));
            }
        });
    }

    /// What was found so far.
    pub(super) fn ids(&self) -> &OversizedEventIds {
        &self.ids
    }
}
