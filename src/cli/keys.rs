//! Keys that clients show: made here, known only by their digest.

use std::io::{self, Write};

use super::cli_error::CliError;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness: {0}")]
pub(super) struct KeyGenerationError(#[from] openssl::error::ErrorStack);

/// Prints a fresh key of a client, and its entry in the configuration.
pub(super) fn run(client: &str) -> Result<(), CliError> {
    let name = client.replace(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)), "");
    if name != client || name.is_empty() || name.len() > 64 {
        return Err(CliError("a client's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned()));
    }
    let key = generate_key()?;
    let digest = sha256_hex(&key);
    let mut out = io::stdout();
    writeln!(out, "Key of {client}, shown only this once:\n\n  {key}\n")?;
    writeln!(out, "For the configuration, under `clients:`\n")?;
    writeln!(out, "  - name: {client}\n    keys:\n      - sha256: \"{digest}\"")?;
    Ok(())
}

/// A fresh key of 256 bits.
///
/// # Errors
/// [`KeyGenerationError`].
pub(super) fn generate_key() -> Result<String, KeyGenerationError> {
    let mut bytes = [0_u8; 32];
    openssl::rand::rand_bytes(&mut bytes)?;
    Ok(to_hex(&bytes))
}

/// The digest of a key, as the configuration has it.
pub(super) fn sha256_hex(key: &str) -> String {
    to_hex(&openssl::sha::sha256(key.as_bytes()))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
