//! A time in which a sink does not accept records: each reason is told once.

use std::time::{Duration, Instant};

/// Most reasons of one incident that are told.
const MAX_REASONS: usize = 8;

/// Why and since when a sink does not accept records.
#[derive(Debug)]
pub(in crate::record) struct DeliveryIncident {
    began_at: Instant,
    told_reasons: Vec<String>,
}

impl DeliveryIncident {
    /// An incident that begins now.
    pub(in crate::record) fn new(now: Instant) -> Self {
        Self { began_at: now, told_reasons: Vec::new() }
    }

    /// Whether this reason is to be told: it is new.
    pub(in crate::record) fn is_news(&mut self, reason: &str) -> bool {
        let is_known = self.told_reasons.iter().any(|told| told == reason);
        if is_known || self.told_reasons.len() >= MAX_REASONS {
            return false;
        }
        self.told_reasons.push(reason.to_owned());
        true
    }

    /// How long it has lasted.
    pub(in crate::record) fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_take_turns_are_told_once_each() {
        let mut incident = DeliveryIncident::new(Instant::now());
        let told = ["a", "b", "a", "b", "c", "a"].map(|reason| incident.is_news(reason));
        assert_eq!(told, [true, true, false, false, true, false]);
        let told = (0..100).filter(|number| incident.is_news(&number.to_string())).count();
        assert_eq!(told, MAX_REASONS - 3);
    }
}
