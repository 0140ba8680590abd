//! A certificate with its chain, and the private key that belongs to it.

use std::fs;
use std::path::PathBuf;

use openssl::asn1::Asn1Time;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// PEM: the certificate itself, then its chain.
    pub certificate: PathBuf,
    /// PEM, without a passphrase.
    pub private_key: PathBuf,
}

/// A certificate that can be shown, and proven.
#[derive(Clone)]
pub struct KeyPair {
    /// The certificate itself.
    pub leaf: X509,
    /// Those that vouch for it, in order.
    pub chain: Vec<X509>,
    /// Its private key.
    pub key: PKey<Private>,
}

/// Why the files make no pair.
#[derive(Debug, thiserror::Error)]
pub enum BadPair {
    /// The certificate's file.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The key's file.
    #[error("private_key: {0}")]
    PrivateKey(String),
}

impl KeyPair {
    /// Reads both files.
    ///
    /// # Errors
    /// [`BadPair`] when one cannot be read, is no PEM, or they do not belong together.
    pub fn read(files: &PairFiles) -> Result<Self, BadPair> {
        let PairFiles { certificate, private_key } = files;
        let bad = |problem: &str| BadPair::Certificate(format!("{problem} {}", certificate.display()));
        let pem = fs::read(certificate)
            .map_err(|e| BadPair::Certificate(format!("cannot read {}: {e}", certificate.display())))?;
        let chain = X509::stack_from_pem(&pem)
            .map_err(|_| bad("must be a PEM file of certificates, the one to show first; so is not"))?;
        let mut chain = chain.into_iter();
        let leaf = chain.next().ok_or_else(|| bad("must be a PEM file; there is no certificate in"))?;
        let bad = |problem: &str| BadPair::PrivateKey(format!("{problem} {}", private_key.display()));
        let pem = fs::read(private_key)
            .map_err(|e| BadPair::PrivateKey(format!("cannot read {}: {e}", private_key.display())))?;
        // A callback that has no passphrase, lest OpenSSL ask the terminal.
        let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
            .map_err(|_| bad("must be a PEM file with one private key without a passphrase; so is not"))?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(bad("must be the key of the certificate; so is not the one in"));
        }
        Ok(Self { leaf, chain: chain.collect(), key })
    }

    /// The host names that it is for, in lower case; `*.` stands for one label.
    pub fn names(&self) -> Vec<String> {
        let alternatives = self.leaf.subject_alt_names();
        let names = alternatives.iter().flatten().filter_map(|name| name.dnsname());
        names.map(str::to_ascii_lowercase).collect()
    }

    /// Until when it is valid, if it is not for another so many days.
    pub fn ends_within(&self, days: u32) -> Option<String> {
        let soon = Asn1Time::days_from_now(days).ok()?;
        let end = self.leaf.not_after();
        (end < &*soon).then(|| end.to_string())
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("leaf", &self.leaf.subject_name()).finish_non_exhaustive()
    }
}
