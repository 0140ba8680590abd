//! A certificate with its chain and its private key, read from PEM files.

use std::path::PathBuf;
use std::time::SystemTime;

use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use super::validity::ValidityPeriod;
use crate::files::read_file;

/// The largest file of a certificate with its chain, or of a key.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The files of a certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedKeyFiles {
    /// PEM: the certificate, then its chain.
    pub certificate_path: PathBuf,
    /// PEM, without a passphrase.
    pub private_key_path: PathBuf,
}

/// A certificate with its chain and its private key.
#[derive(Clone)]
pub struct CertifiedKey {
    /// The certificate itself.
    pub leaf: X509,
    /// The rest of the chain, in order.
    pub intermediates: Vec<X509>,
    /// Its private key.
    pub private_key: PKey<Private>,
}

/// Why a certificate and its private key could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CertifiedKeyError {
    /// The certificate file: what is wrong with it.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The private key file: what is wrong with it.
    #[error("private_key: {0}")]
    PrivateKey(String),
}

impl CertifiedKey {
    /// Reads both files, and checks that the key belongs to the certificate.
    ///
    /// # Errors
    /// [`CertifiedKeyError`] if a file cannot be read, is not PEM, or the key belongs to another certificate.
    pub fn from_files(files: &CertifiedKeyFiles) -> Result<Self, CertifiedKeyError> {
        let CertifiedKeyFiles { certificate_path, private_key_path } = files;
        let certificate_problem = |problem: &str| CertifiedKeyError::Certificate(problem.to_owned());
        let key_problem = |problem: &str| CertifiedKeyError::PrivateKey(problem.to_owned());
        let pem = read_file(certificate_path, MAX_FILE_BYTES)
            .map_err(|e| certificate_problem(&format!("cannot read the file: {e}")))?;
        let certificates = X509::stack_from_pem(&pem)
            .map_err(|_| certificate_problem("must be a PEM file of certificates"))?;
        let mut certificates = certificates.into_iter();
        let leaf = certificates
            .next()
            .ok_or_else(|| certificate_problem("must be a PEM file with a certificate, and has none"))?;
        let pem = read_file(private_key_path, MAX_FILE_BYTES)
            .map_err(|e| key_problem(&format!("cannot read the file: {e}")))?;
        // The callback supplies an empty passphrase: without it, OpenSSL would prompt for one on the terminal.
        let private_key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
            .map_err(|_| key_problem("must be a PEM file with one private key without a passphrase"))?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&private_key)) {
            return Err(key_problem("must be the private key of the certificate"));
        }
        Ok(Self { leaf, intermediates: certificates.collect(), private_key })
    }

    /// The host names that the certificate is valid for, in lower case. `*.` stands for one label.
    pub fn dns_names(&self) -> Vec<String> {
        let alternatives = self.leaf.subject_alt_names();
        let names = alternatives.iter().flatten().filter_map(|name| name.dnsname());
        names.map(str::to_ascii_lowercase).collect()
    }

    /// Why the certificate is not valid now, with days and date.
    pub fn validity_problem(&self, now: SystemTime) -> Option<String> {
        ValidityPeriod::of(&self.leaf)?.problem(now)
    }

    /// When the certificate expires, if that is soon.
    pub fn expiry_warning(&self, now: SystemTime) -> Option<String> {
        ValidityPeriod::of(&self.leaf)?.expiry_warning(now)
    }
}

/// The end of a certificate's validity; `None` if it cannot be read or is before 1970.
pub fn certificate_expires_at(certificate: &X509) -> Option<SystemTime> {
    ValidityPeriod::of(certificate)?.end()
}

impl std::fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertifiedKey").field("leaf", &self.leaf.subject_name()).finish_non_exhaustive()
    }
}
