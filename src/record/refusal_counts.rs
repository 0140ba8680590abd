//! Counts requests that a client got no answer to: refusals by status, and failures.

use super::recent_trouble::TroubleKind;

/// Refusals by the status that the client got, and failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusalCounts {
    /// Status 401: no valid credential.
    pub unauthorized: u64,
    /// Status 403: the client may not do this.
    pub forbidden: u64,
    /// Status 404: the deployment, path or object does not exist.
    pub not_found: u64,
    /// Status 429, of the balancer or of the last backend.
    pub throttled: u64,
    /// Any other status 4xx, and refusals of the balancer with 503.
    pub other: u64,
    /// Status 5xx, a response that broke off, or none.
    pub failed: u64,
}

impl RefusalCounts {
    /// Counts a request that ended with this status, if it was refused or failed.
    pub(super) fn count(&mut self, kind: Option<TroubleKind>, status: Option<u16>) {
        match (kind, status) {
            (Some(TroubleKind::Refused), Some(401)) => self.unauthorized += 1,
            (Some(TroubleKind::Refused), Some(403)) => self.forbidden += 1,
            (Some(TroubleKind::Refused), Some(404)) => self.not_found += 1,
            (Some(TroubleKind::Refused), Some(429)) => self.throttled += 1,
            (Some(TroubleKind::Refused), _) => self.other += 1,
            (Some(TroubleKind::Failed), _) => self.failed += 1,
            (Some(TroubleKind::Retried | TroubleKind::Slow) | None, _) => {}
        }
    }

    /// Adds other counts.
    pub(super) fn add(&mut self, other: &Self) {
        self.unauthorized += other.unauthorized;
        self.forbidden += other.forbidden;
        self.not_found += other.not_found;
        self.throttled += other.throttled;
        self.other += other.other;
        self.failed += other.failed;
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.unauthorized + self.forbidden + self.not_found + self.throttled + self.other + self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_status_or_as_failed() {
        let table = [
            (Some(TroubleKind::Refused), Some(401), [1, 0, 0, 0, 0, 0]),
            (Some(TroubleKind::Refused), Some(403), [0, 1, 0, 0, 0, 0]),
            (Some(TroubleKind::Refused), Some(404), [0, 0, 1, 0, 0, 0]),
            (Some(TroubleKind::Refused), Some(429), [0, 0, 0, 1, 0, 0]),
            (Some(TroubleKind::Refused), Some(400), [0, 0, 0, 0, 1, 0]),
            (Some(TroubleKind::Refused), Some(503), [0, 0, 0, 0, 1, 0]),
            (Some(TroubleKind::Failed), Some(502), [0, 0, 0, 0, 0, 1]),
            (Some(TroubleKind::Failed), None, [0, 0, 0, 0, 0, 1]),
            (Some(TroubleKind::Retried), Some(200), [0; 6]),
            (Some(TroubleKind::Slow), Some(200), [0; 6]),
            (None, Some(200), [0; 6]),
        ];
        let mut sum = RefusalCounts::default();
        for (kind, status, expected) in table {
            let mut counts = RefusalCounts::default();
            counts.count(kind, status);
            let RefusalCounts { unauthorized, forbidden, not_found, throttled, other, failed } = counts;
            let found = [unauthorized, forbidden, not_found, throttled, other, failed];
            assert_eq!(found, expected, "{kind:?} {status:?}");
            sum.add(&counts);
        }
        assert_eq!((sum.total(), sum.other, sum.failed), (8, 2, 2));
    }
}
