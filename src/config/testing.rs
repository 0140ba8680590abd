//! Helpers for the tests of this module: small configurations, and certificates.

use std::path::Path;

use super::error::{ConfigError, ConfigProblem};
use super::load::{CheckedConfig, parse_and_check_yaml};
use super::schema::{CredentialConfig, SecretSource};

/// The required blocks. A test case that does not have one gets it from here.
const DEFAULT_BLOCKS: [(&str, &str); 3] = [
    ("listeners:", "listeners: [ { address: '127.0.0.1:8080' } ]\n"),
    (
        "backends:",
        "backends: [ { name: east, endpoint: 'https://east.example', credential: { api_key: k } } ]\n",
    ),
    ("clients:", "clients: open\n"),
];

pub(crate) fn test_environment(name: &str) -> Option<String> {
    match name {
        "KEY" => Some("k3y-of-the-test".to_owned()),
        "EMPTY" => Some(String::new()),
        "FOUR" => Some("4".to_owned()),
        "AZURE_TENANT_ID" => Some("tenant-of-the-cluster".to_owned()),
        "AZURE_FEDERATED_TOKEN_FILE" => Some("/var/run/secrets/token".to_owned()),
        _ => None,
    }
}

pub(crate) fn check_with_default_blocks(case: &str) -> Result<CheckedConfig, ConfigError> {
    let mut text = String::new();
    for (key, block) in DEFAULT_BLOCKS {
        if !case.lines().any(|line| line.starts_with(key)) {
            text.push_str(block);
        }
    }
    // Relative paths must not meet what a machine happens to have.
    let directory = tempfile::tempdir().unwrap();
    parse_and_check_yaml(&(text + case), directory.path(), &test_environment)
}

pub(crate) fn parse_valid(case: &str) -> CheckedConfig {
    check_with_default_blocks(case).unwrap_or_else(|problems| panic!("{case}\n{problems}"))
}

pub(crate) fn errors_in(case: &str) -> Vec<String> {
    check_with_default_blocks(case).map_or_else(
        |problems| problems.errors.iter().map(ConfigProblem::to_string).collect(),
        |_| Vec::new(),
    )
}

pub(crate) fn assert_errors(cases: &[(&str, &[&str])]) {
    for (case, expected) in cases {
        assert_eq!(errors_in(case), *expected, "{case}");
    }
}

pub(crate) fn assert_warnings(cases: &[(&str, &[&str])]) {
    for (case, expected) in cases {
        let warnings: Vec<String> = parse_valid(case).warnings.iter().map(ConfigProblem::to_string).collect();
        assert_eq!(warnings, *expected, "{case}");
    }
}

/// Writes `NAME.pem` and `NAME.key`: a certificate for these hosts, valid for this many days.
pub(crate) fn write_test_certificate(directory: &Path, name: &str, days: u32, hosts: &[&str]) {
    write_certificate_valid_in(directory, name, (0.0, f64::from(days)), hosts);
}

/// Like [`write_test_certificate`], with the first and the last day that it is valid, counted from now.
pub(crate) fn write_certificate_valid_in(directory: &Path, name: &str, days: (f64, f64), hosts: &[&str]) {
    use openssl::asn1::Asn1Time;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;
    use openssl::x509::X509;
    use openssl::x509::extension::SubjectAlternativeName;

    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_pubkey(&key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let day = |days: f64| Asn1Time::from_unix(now + (days * 86_400.0) as i64).unwrap();
    builder.set_not_before(&day(days.0)).unwrap();
    builder.set_not_after(&day(days.1)).unwrap();
    if !hosts.is_empty() {
        let mut names = SubjectAlternativeName::new();
        for host in hosts {
            names.dns(host);
        }
        let names = names.build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(names).unwrap();
    }
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let write = |kind, pem: Vec<u8>| std::fs::write(directory.join(format!("{name}.{kind}")), pem).unwrap();
    write("pem", builder.build().to_pem().unwrap());
    write("key", key.private_key_to_pem_pkcs8().unwrap());
}

/// The API key of a backend whose key is not in a key vault.
pub(crate) fn literal_api_key(credential: &CredentialConfig) -> &str {
    match credential {
        CredentialConfig::ApiKey(SecretSource::Literal(key)) => key.expose_secret(),
        other => panic!("no written key: {other:?}"),
    }
}
