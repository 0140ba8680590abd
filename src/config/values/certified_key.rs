//! A certificate with its chain, and the private key that belongs to it.

use std::fs;
use std::path::PathBuf;

use openssl::asn1::Asn1Time;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedKeyFiles {
    /// PEM: the certificate itself, then its chain.
    pub certificate: PathBuf,
    /// PEM, without a passphrase.
    pub private_key: PathBuf,
}

/// A certificate that can be shown, and proven.
#[derive(Clone)]
pub struct CertifiedKey {
    /// The certificate itself.
    pub leaf: X509,
    /// Those that vouch for it, in order.
    pub intermediates: Vec<X509>,
    /// Its private key.
    pub private_key: PKey<Private>,
}

/// Why the files make no pair.
#[derive(Debug, thiserror::Error)]
pub enum CertifiedKeyError {
    /// The certificate's file.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The key's file.
    #[error("private_key: {0}")]
    PrivateKey(String),
}

impl CertifiedKey {
    /// Reads both files.
    ///
    /// # Errors
    /// [`CertifiedKeyError`] when one cannot be read, is no PEM, or they do not belong together.
    pub fn from_files(files: &CertifiedKeyFiles) -> Result<Self, CertifiedKeyError> {
        let CertifiedKeyFiles { certificate, private_key } = files;
        let certificate_error =
            |problem: &str| CertifiedKeyError::Certificate(format!("{problem} {}", certificate.display()));
        let pem = fs::read(certificate).map_err(|e| {
            CertifiedKeyError::Certificate(format!("cannot read {}: {e}", certificate.display()))
        })?;
        let certificates = X509::stack_from_pem(&pem).map_err(|_| {
            certificate_error("must be a PEM file of certificates, the one to show first; so is not")
        })?;
        let mut certificates = certificates.into_iter();
        let leaf = certificates
            .next()
            .ok_or_else(|| certificate_error("must be a PEM file; there is no certificate in"))?;
        let key_error =
            |problem: &str| CertifiedKeyError::PrivateKey(format!("{problem} {}", private_key.display()));
        let pem = fs::read(private_key).map_err(|e| {
            CertifiedKeyError::PrivateKey(format!("cannot read {}: {e}", private_key.display()))
        })?;
        // A callback that has no passphrase, lest OpenSSL ask the terminal.
        let private_key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(|_| {
            key_error("must be a PEM file with one private key without a passphrase; so is not")
        })?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&private_key)) {
            return Err(key_error("must be the key of the certificate; so is not the one in"));
        }
        Ok(Self { leaf, intermediates: certificates.collect(), private_key })
    }

    /// The host names that it is for, in lower case; `*.` stands for one label.
    pub fn dns_names(&self) -> Vec<String> {
        let alternatives = self.leaf.subject_alt_names();
        let names = alternatives.iter().flatten().filter_map(|name| name.dnsname());
        names.map(str::to_ascii_lowercase).collect()
    }

    /// Until when it is valid, if it is not for another so many days.
    pub fn expiry_if_within_days(&self, days: u32) -> Option<String> {
        let soon = Asn1Time::days_from_now(days).ok()?;
        let end = self.leaf.not_after();
        (end < &*soon).then(|| end.to_string())
    }
}

impl std::fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertifiedKey").field("leaf", &self.leaf.subject_name()).finish_non_exhaustive()
    }
}
