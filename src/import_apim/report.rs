//! What became of each statement of the policies, and the comments about those that have no counterpart.

use std::collections::BTreeMap;

use super::source::Place;

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the configuration.
    Mapped,
    /// aoai-lb does it anyway, or has no need of it.
    Implied,
    /// It has no counterpart: a comment says what to do instead.
    Left,
}

/// How many statements became what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They are in the configuration.
    pub mapped: usize,
    /// aoai-lb does them anyway, or has no need of them.
    pub implied: usize,
    /// They have no counterpart; a comment says what to do instead.
    pub left: usize,
}

/// Places that are listed for the same comment.
const MAX_PLACES: usize = 5;

/// Collects comments, each with its places.
#[derive(Default)]
pub(super) struct Report {
    pub(super) counts: Counts,
    places_by_text: BTreeMap<String, Vec<Place>>,
}

impl Report {
    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Mapped => self.counts.mapped += 1,
            Outcome::Implied => self.counts.implied += 1,
            Outcome::Left => self.counts.left += 1,
        }
    }

    /// Adds a comment about a place.
    pub(super) fn note(&mut self, place: &Place, text: impl Into<String>) {
        self.places_by_text.entry(text.into()).or_default().push(place.clone());
    }

    /// The comments in the order of their places, each beginning with them.
    pub(super) fn comments(mut self) -> Vec<String> {
        for places in self.places_by_text.values_mut() {
            places.sort();
            places.dedup();
        }
        let mut notes: Vec<(Vec<Place>, String)> =
            self.places_by_text.into_iter().map(|(text, places)| (places, text)).collect();
        notes.sort();
        let show = |(places, text): &(Vec<Place>, String)| {
            let shown: Vec<_> = places.iter().take(MAX_PLACES).map(Place::to_string).collect();
            let others = match places.len().saturating_sub(MAX_PLACES) {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            format!("{}{others}: {text}", shown.join(", "))
        };
        notes.iter().map(show).collect()
    }
}
