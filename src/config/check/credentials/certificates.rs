//! Reads and checks the files of certificates, private keys and certificate authorities.

use std::path::PathBuf;
use std::time::SystemTime;

use openssl::x509::X509;

use crate::config::values::{CertifiedKey, CertifiedKeyError, CertifiedKeyFiles};
use crate::config::yaml::{YamlMapping, YamlNode};
use crate::files::{MAX_CA_FILE_BYTES, read_file};

/// Reads the keys `certificate` and `private_key`, and checks that their files belong together. That the
/// certificate is not valid now is a warning: it is presented to others, which may accept it nevertheless.
pub(in crate::config::check) fn read_certified_key_files(
    map: &YamlMapping<'_, '_>,
) -> Option<CertifiedKeyFiles> {
    read_and_check_key_files(map, |problem| {
        map.report_warning_at("certificate", problem);
        Some(())
    })
}

/// Like [`read_certified_key_files`], for the certificate of a listener or of the admin API: no client accepts one
/// that is not valid now.
pub(in crate::config::check) fn read_server_key_files(
    map: &YamlMapping<'_, '_>,
) -> Option<CertifiedKeyFiles> {
    read_and_check_key_files(map, |problem| map.report_error_at("certificate", problem))
}

fn read_and_check_key_files(
    map: &YamlMapping<'_, '_>,
    report_not_valid_now: impl FnOnce(String) -> Option<()>,
) -> Option<CertifiedKeyFiles> {
    let read_path = |key, how| map.require(key, how).and_then(|node| node.read_file_path());
    let certificate_path = read_path("certificate", "write the PEM file of the certificate and its chain");
    let private_key_path = read_path("private_key", "write the PEM file of the certificate's private key");
    let files =
        CertifiedKeyFiles { certificate_path: certificate_path?, private_key_path: private_key_path? };
    if map.problems.ignores_secrets() {
        return Some(files);
    }
    match CertifiedKey::from_files(&files) {
        Ok(certified_key) => {
            let now = SystemTime::now();
            if let Some(problem) = certified_key.validity_problem(now) {
                report_not_valid_now(problem)?;
            }
            if let Some(warning) = certified_key.expiry_warning(now) {
                map.report_warning_at("certificate", warning);
            }
            Some(files)
        }
        Err(CertifiedKeyError::Certificate(problem)) => map.report_error_at("certificate", problem),
        Err(CertifiedKeyError::PrivateKey(problem)) => map.report_error_at("private_key", problem),
    }
}

/// Reads the path of a PEM file of certificate authorities, and checks the file.
pub(in crate::config::check) fn read_ca_file(node: &YamlNode<'_, '_>) -> Option<PathBuf> {
    let path = node.read_file_path()?;
    if node.problems.ignores_secrets() {
        return Some(path);
    }
    let bytes = match read_file(&path, MAX_CA_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(e) => return node.report_error(format!("cannot read the file: {e}")),
    };
    match X509::stack_from_pem(&bytes) {
        Ok(certificates) if !certificates.is_empty() => Some(path),
        _ => node.report_error("must be a PEM file with at least one certificate"),
    }
}
