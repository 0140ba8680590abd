//! `aoai-lb keys`: generates client keys. The configuration has only their SHA-256 digest.

use std::io::{self, Write};

use super::cli_error::CliError;

/// The random number generator failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot generate a key: {0}")]
pub(super) struct KeyGenerationError(#[from] openssl::error::ErrorStack);

/// Prints a new key of a client, and its entry for the configuration.
pub(super) fn run(client: &str) -> Result<(), CliError> {
    let name = client.replace(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)), "");
    if name != client || name.is_empty() || name.len() > 64 {
        return Err(CliError(
            "a client name must have 1 to 64 characters out of A-Z a-z 0-9 . _ -".to_owned(),
        ));
    }
    let key = generate_key()?;
    let digest = sha256_hex(&key);
    let mut out = io::stdout();
    writeln!(out, "Key of {client}, shown only once:\n\n  {key}\n")?;
    writeln!(out, "Entry for the configuration, under `clients:`\n")?;
    writeln!(out, "  - name: {client}\n    keys:\n      - sha256: \"{digest}\"")?;
    Ok(())
}

/// A random key of 256 bits, in hexadecimal.
///
/// # Errors
/// [`KeyGenerationError`].
pub(super) fn generate_key() -> Result<String, KeyGenerationError> {
    let mut bytes = [0_u8; 32];
    openssl::rand::rand_bytes(&mut bytes)?;
    Ok(to_hex(&bytes))
}

/// The SHA-256 digest of a key in hexadecimal, as the configuration has it.
pub(super) fn sha256_hex(key: &str) -> String {
    to_hex(&openssl::sha::sha256(key.as_bytes()))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
