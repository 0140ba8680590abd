//! Keys that clients show: made here, known only by their digest.

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness: {0}")]
pub(crate) struct NoKey(#[from] openssl::error::ErrorStack);

/// A fresh key of 256 bits.
///
/// # Errors
/// [`NoKey`].
pub(crate) fn new_key() -> Result<String, NoKey> {
    let mut bytes = [0_u8; 32];
    openssl::rand::rand_bytes(&mut bytes)?;
    Ok(hex(&bytes))
}

/// The digest of a key, as the configuration has it.
pub(crate) fn sha256_hex(key: &str) -> String {
    hex(&openssl::sha::sha256(key.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
