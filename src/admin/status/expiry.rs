//! What expires: certificates of listeners, and credentials of backends whose end is known.

use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::admin::wall_clock::format_rfc3339;
use crate::credentials::seconds_until;
use crate::gateway::{CertificateExpiries, Gateway};

/// The longest error of a renewal, in characters.
const MAX_ERROR_CHARACTERS: usize = 200;

/// A certificate of the balancer: of a listener, of the admin API, or for a backend that requires one.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it; docs/operations.md has them")]
pub struct CertificateStatus {
    /// Its file.
    pub certificate: String,
    pub expires: String,
    /// Negative if it has expired.
    pub expires_in_seconds: i64,
    /// Who presents it: `listener 127.0.0.1:443`, `admin`, `backend westus`.
    pub used_by: Vec<String>,
}

/// The credential of a backend whose end is known.
#[derive(Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct CredentialStatus {
    pub backend: String,
    /// What ends first: `client_certificate`, `key_vault_secret`, or a `token` that cannot be renewed.
    pub part: String,
    pub expires: String,
    /// Negative if it has expired.
    pub expires_in_seconds: i64,
    /// Why it cannot be renewed at the moment; `null` if it can.
    pub renewal_error: Option<String>,
}

/// All certificates in use, the one that expires first first.
pub(in crate::admin) fn certificate_statuses(
    certificates: &CertificateExpiries,
    now: SystemTime,
) -> Vec<CertificateStatus> {
    let mut certificates: Vec<_> = certificates.list().into_iter().collect();
    certificates.sort_by_key(|(_, expiry)| expiry.expires_at);
    let statuses = certificates.into_iter().map(|(file, expiry)| CertificateStatus {
        certificate: file.display().to_string(),
        expires: format_rfc3339(expiry.expires_at),
        expires_in_seconds: seconds_until(expiry.expires_at, now),
        used_by: expiry.used_by.into_iter().collect(),
    });
    statuses.collect()
}

/// The credentials whose end is known, the one that ends first first.
pub(in crate::admin) fn credential_statuses(
    gateway: &Gateway,
    now: Instant,
    wall_now: SystemTime,
) -> Vec<CredentialStatus> {
    let with_expiry = gateway.backends.iter().filter_map(|backend| {
        let secret = backend.credential.secret();
        Some((backend, secret.expiry(now, wall_now)?))
    });
    let mut credentials: Vec<_> = with_expiry.collect();
    credentials.sort_by_key(|(_, expiry)| expiry.at);
    let statuses = credentials.into_iter().map(|(backend, expiry)| {
        let error = backend.credential.secret().renewal_error();
        CredentialStatus {
            backend: backend.config.name.to_string(),
            part: expiry.part.as_str().to_owned(),
            expires: format_rfc3339(expiry.at),
            expires_in_seconds: seconds_until(expiry.at, wall_now),
            renewal_error: error.map(|error| error.to_string().chars().take(MAX_ERROR_CHARACTERS).collect()),
        }
    });
    statuses.collect()
}
