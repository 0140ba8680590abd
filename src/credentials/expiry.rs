//! When credentials end, as far as that is known.

use std::time::{Duration, Instant, SystemTime};

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiringPart {
    /// The certificate of an application.
    ClientCertificate,
    /// A secret in a key vault that has an expiry date.
    VaultSecret,
    /// A token that could not be renewed.
    Token,
}

impl ExpiringPart {
    /// The word for it in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientCertificate => "client_certificate",
            Self::VaultSecret => "key_vault_secret",
            Self::Token => "token",
        }
    }
}

/// When a credential ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The part of it that ends first.
    pub part: ExpiringPart,
    /// When that is; it may be in the past.
    pub at: SystemTime,
}

/// The expiry of a credential: that of what it is fetched with or is itself, or of its token if that cannot be
/// renewed, whichever comes first. `now` and `wall_now` are the same moment.
pub(super) fn earliest_expiry(
    source: Option<Expiry>,
    token_expires_at: Option<Instant>,
    is_renewal_failing: bool,
    now: Instant,
    wall_now: SystemTime,
) -> Option<Expiry> {
    let token_expiry = token_expires_at.filter(|_| is_renewal_failing).and_then(|at| {
        let at = match at.checked_duration_since(now) {
            Some(left) => wall_now.checked_add(left),
            None => wall_now.checked_sub(now.saturating_duration_since(at)),
        };
        Some(Expiry { part: ExpiringPart::Token, at: at? })
    });
    earlier(source, token_expiry)
}

/// The one that ends first.
pub(super) fn earlier(one: Option<Expiry>, other: Option<Expiry>) -> Option<Expiry> {
    one.into_iter().chain(other).min_by_key(|expiry| expiry.at)
}

/// Seconds until this time; negative if it is in the past.
pub fn seconds_until(time: SystemTime, now: SystemTime) -> i64 {
    let whole_seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(now) {
        Ok(left) => whole_seconds(left),
        Err(past) => -whole_seconds(past.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts_and_that_of_a_token_only_if_it_cannot_be_renewed() {
        let (now, wall_now) = (Instant::now() + Duration::from_secs(10_000), SystemTime::now());
        let token = |seconds| Some(now + Duration::from_secs(seconds));
        let after = |part, seconds| Some(Expiry { part, at: wall_now + Duration::from_secs(seconds) });
        let secret = |seconds| after(ExpiringPart::VaultSecret, seconds);
        let table = [
            (None, None, true, None),
            (None, token(60), false, None),
            (None, token(60), true, after(ExpiringPart::Token, 60)),
            (secret(90), token(60), false, secret(90)),
            (secret(90), token(60), true, after(ExpiringPart::Token, 60)),
            (secret(30), token(60), true, secret(30)),
            (secret(30), None, true, secret(30)),
        ];
        for (source, token, is_failing, expected) in table {
            assert_eq!(earliest_expiry(source, token, is_failing, now, wall_now), expected);
        }
        let ended = earliest_expiry(None, Some(now - Duration::from_secs(5)), true, now, wall_now).unwrap();
        assert_eq!(seconds_until(ended.at, wall_now), -5);
        assert_eq!(seconds_until(wall_now + Duration::from_millis(1_999), wall_now), 1);
    }
}
