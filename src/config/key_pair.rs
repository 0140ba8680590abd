//! A certificate with its chain, and the private key that belongs to it.

use std::fs;

use openssl::asn1::Asn1Time;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use super::ListenerTls;

/// A certificate that a listener can show.
pub struct KeyPair {
    /// The listener's own.
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
    #[error("tls.certificate: {0}")]
    Certificate(String),
    /// The key's file.
    #[error("tls.private_key: {0}")]
    PrivateKey(String),
}

impl KeyPair {
    /// Reads both files.
    ///
    /// # Errors
    /// [`BadPair`] when one cannot be read, is no PEM, or they do not belong together.
    pub fn read(tls: &ListenerTls) -> Result<Self, BadPair> {
        let certificate = &tls.certificate;
        let bad = |problem: &str| BadPair::Certificate(format!("{problem} {}", certificate.display()));
        let pem = fs::read(certificate)
            .map_err(|e| BadPair::Certificate(format!("cannot read {}: {e}", certificate.display())))?;
        let chain = X509::stack_from_pem(&pem)
            .map_err(|_| bad("must be a PEM file of certificates, the listener's first; so is not"))?;
        let mut chain = chain.into_iter();
        let leaf = chain.next().ok_or_else(|| bad("must be a PEM file; there is no certificate in"))?;
        let private_key = &tls.private_key;
        let bad = |problem: &str| BadPair::PrivateKey(format!("{problem} {}", private_key.display()));
        let pem = fs::read(private_key)
            .map_err(|e| BadPair::PrivateKey(format!("cannot read {}: {e}", private_key.display())))?;
        // A callback that has no passphrase, lest OpenSSL ask the terminal.
        let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
            .map_err(|_| bad("must be a PEM file with one private key without a passphrase; so is not"))?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(bad("must be the key of the listener's certificate; so is not the one in"));
        }
        Ok(Self { leaf, chain: chain.collect(), key })
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
