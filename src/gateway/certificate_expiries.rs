//! When the balancer's own certificates expire, by file: those of listeners and the admin API, and those that
//! backends require.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The certificates that are in use, as they were when they were last loaded.
#[derive(Debug, Default)]
pub struct CertificateExpiries {
    loaded: Mutex<LoadedCertificates>,
}

#[derive(Debug, Default)]
struct LoadedCertificates {
    of_listeners: BTreeMap<(PathBuf, String), SystemTime>,
    of_backends: Vec<LoadedCertificate>,
}

/// A certificate that was loaded.
#[derive(Clone, Debug)]
pub struct LoadedCertificate {
    /// Its file.
    pub file: PathBuf,
    /// Who presents it, such as `backend westus`.
    pub user: String,
    /// The end of its validity.
    pub expires_at: SystemTime,
}

/// When the certificate in a file expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// The end of its validity.
    pub expires_at: SystemTime,
    /// Who presents it.
    pub used_by: BTreeSet<String>,
}

impl CertificateExpiries {
    /// A listener has loaded the certificate in this file.
    pub fn on_listener_loaded(&self, file: &Path, listener: &str, expires_at: SystemTime) {
        self.lock().of_listeners.insert((file.to_owned(), listener.to_owned()), expires_at);
    }

    /// Replaces the certificates of all backends: a configuration has been loaded.
    pub fn set_backend_certificates(&self, certificates: Vec<LoadedCertificate>) {
        self.lock().of_backends = certificates;
    }

    /// All of them, by file.
    pub fn list(&self) -> BTreeMap<PathBuf, CertificateExpiry> {
        let loaded = self.lock();
        let of_listeners = loaded.of_listeners.iter().map(|((file, user), at)| (file, user, *at));
        let of_backends =
            loaded.of_backends.iter().map(|loaded| (&loaded.file, &loaded.user, loaded.expires_at));
        let mut by_file = BTreeMap::new();
        for (file, user, expires_at) in of_listeners.chain(of_backends) {
            let new = CertificateExpiry { expires_at, used_by: BTreeSet::new() };
            let expiry: &mut CertificateExpiry = by_file.entry(file.clone()).or_insert(new);
            expiry.expires_at = expiry.expires_at.min(expires_at);
            expiry.used_by.insert(user.clone());
        }
        by_file
    }

    fn lock(&self) -> MutexGuard<'_, LoadedCertificates> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn on_day(day: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400)
    }

    #[test]
    fn a_file_has_the_earliest_expiry_of_those_who_loaded_it() {
        let expiries = CertificateExpiries::default();
        let (one, two) = (Path::new("one.pem"), Path::new("two.pem"));
        expiries.on_listener_loaded(one, "listener a", on_day(10));
        expiries.on_listener_loaded(one, "admin", on_day(20));
        expiries.set_backend_certificates(
            [(one, "backend b"), (two, "backend c")]
                .map(|(file, user)| LoadedCertificate {
                    file: file.to_owned(),
                    user: user.to_owned(),
                    expires_at: on_day(15),
                })
                .into(),
        );
        let found = |file: &Path| {
            let expiry = expiries.list().get(file)?.clone();
            Some((expiry.expires_at, expiry.used_by.into_iter().collect::<Vec<_>>().join(", ")))
        };
        assert_eq!(found(one), Some((on_day(10), "admin, backend b, listener a".to_owned())));
        assert_eq!(found(two), Some((on_day(15), "backend c".to_owned())));
        // The file is replaced, and a reload removes the backends.
        expiries.on_listener_loaded(one, "listener a", on_day(30));
        expiries.set_backend_certificates(Vec::new());
        assert_eq!(found(one), Some((on_day(20), "admin, listener a".to_owned())));
        assert_eq!(found(two), None);
    }
}
