//! Certificate authorities, read from a file.

use std::path::Path;

use openssl::x509::X509;

use crate::files::{MAX_CA_FILE_BYTES, read_file};

/// The certificates of a PEM file.
///
/// # Errors
/// Why the file cannot be used, without its path: it cannot be read or has no certificate.
pub fn load_certificate_authorities(path: &Path) -> Result<Box<[X509]>, String> {
    let pem = read_file(path, MAX_CA_FILE_BYTES).map_err(|error| error.to_string())?;
    let authorities =
        X509::stack_from_pem(&pem).map_err(|_| "must be a PEM file of certificates".to_owned())?;
    if authorities.is_empty() {
        return Err("has no PEM certificate".to_owned());
    }
    Ok(authorities.into_boxed_slice())
}
