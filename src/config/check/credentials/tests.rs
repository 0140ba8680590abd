//! Tests of what may be written as a secret or an identity.

use std::time::Duration;

use super::OPENAI_TOKEN_SCOPE;
use crate::config::schema::{
    AppCredential, CredentialConfig, EntraIdentity, ManagedIdentitySelector, SecretSource,
};
use crate::config::testing::{assert_errors, assert_warnings, parse_valid, write_test_certificate};
use crate::config::values::{CertifiedKeyFiles, Secret};

/// A configuration whose backend has this credential.
fn backend_with_credential(credential: &str) -> String {
    format!("backends: [ {{ name: east, endpoint: 'https://a.b', credential: {{ {credential} }} }} ]")
}

fn parse_credential(credential: &str) -> CredentialConfig {
    parse_valid(&backend_with_credential(credential)).config.backends.remove(0).credential
}

fn parse_identity(credential: &str) -> EntraIdentity {
    match parse_credential(credential) {
        CredentialConfig::Entra(entra) => entra.identity,
        other => panic!("no identity: {other:?}"),
    }
}

#[test]
fn a_secret_may_be_in_a_key_vault() {
    let vault = |text: &str| match parse_credential(text) {
        CredentialConfig::ApiKey(SecretSource::KeyVault(secret)) => {
            (secret.to_string(), secret.vault.uses_tls)
        }
        other => panic!("no vault: {other:?}"),
    };
    for (text, expected) in [
        (
            "key_vault: 'https://contoso.vault.azure.net/secrets/west-key'",
            "contoso.vault.azure.net/secrets/west-key",
        ),
        (
            "key_vault: 'https://contoso.vault.azure.net/secrets/west-key/'",
            "contoso.vault.azure.net/secrets/west-key",
        ),
        ("key_vault: 'https://CONTOSO.vault.azure.cn/secrets/k/0a1'", "contoso.vault.azure.cn/secrets/k/0a1"),
        ("api_key: { key_vault: 'https://c.vault.azure.net/secrets/k' }", "c.vault.azure.net/secrets/k"),
    ] {
        assert_eq!(vault(text), (expected.to_owned(), true), "{text}");
    }
}

#[test]
fn every_kind_of_entra_identity_is_read() {
    let which = |text: &str| match parse_identity(&format!("entra: {{ managed_identity: {text} }}")) {
        EntraIdentity::VirtualMachine { metadata_service: service, selector: which } => {
            assert_eq!((service.host.as_str(), service.uses_tls), ("169.254.169.254", false));
            which
        }
        other => panic!("no managed identity: {other:?}"),
    };
    assert_eq!(which("{}"), ManagedIdentitySelector::SystemAssigned);
    assert_eq!(which("{ client_id: 0-1 }"), ManagedIdentitySelector::ClientId("0-1".to_owned()));
    assert_eq!(which("{ object_id: 0-1 }"), ManagedIdentitySelector::ObjectId("0-1".to_owned()));
    let resource = "/subscriptions/s/resourceGroups/g_(1)/providers/p";
    assert_eq!(
        which(&format!("{{ resource_id: '{resource}' }}")),
        ManagedIdentitySelector::ResourceId(resource.to_owned())
    );
    let application = |text: &str| match parse_identity(text) {
        EntraIdentity::AppRegistration(application) => application,
        other => panic!("no application: {other:?}"),
    };
    // What the file does not have comes from the environment, where the cluster puts it.
    let workload = application("entra: { workload_identity: { client_id: c } }");
    assert_eq!((workload.tenant_id.as_str(), workload.client_id.as_str()), ("tenant-of-the-cluster", "c"));
    assert_eq!(workload.credential, AppCredential::FederatedTokenFile("/var/run/secrets/token".into()));
    assert_eq!(workload.authority_host.host, "login.microsoftonline.com");
    let secret = application("entra: { client_secret: { tenant: t, client_id: c, secret: '${KEY}' } }");
    assert_eq!(
        secret.credential,
        AppCredential::ClientSecret(SecretSource::Literal(Secret::new("k3y-of-the-test")))
    );
    let directory = tempfile::tempdir().unwrap();
    write_test_certificate(directory.path(), "app", 90, &[]);
    let path = |name: &str| directory.path().join(name);
    let text = format!(
        "entra: {{ certificate: {{ tenant: t, client_id: c, certificate: '{}', private_key: '{}' }}, authority: 'https://login.microsoftonline.us' }}",
        path("app.pem").display(),
        path("app.key").display()
    );
    let certificate = application(&text);
    assert_eq!(certificate.authority_host.host, "login.microsoftonline.us");
    let files = CertifiedKeyFiles { certificate_path: path("app.pem"), private_key_path: path("app.key") };
    assert_eq!(certificate.credential, AppCredential::ClientCertificate(files));
    let scope = |text: &str| match parse_credential(text) {
        CredentialConfig::Entra(entra) => entra.token_scope,
        other => panic!("no identity: {other:?}"),
    };
    assert_eq!(scope("entra: { managed_identity: {} }"), OPENAI_TOKEN_SCOPE);
    let own = "https://ai.azure.com/.default";
    assert_eq!(scope(&format!("entra: {{ managed_identity: {{}}, scope: '{own}' }}")), own);
}

#[test]
fn key_vaults_are_read_with_the_machines_identity_by_default() {
    let defaults = parse_valid("").config.key_vault;
    assert!(matches!(
        defaults.identity,
        EntraIdentity::VirtualMachine { selector: ManagedIdentitySelector::SystemAssigned, .. }
    ));
    assert_eq!((defaults.token_scope, defaults.refresh_interval), (None, Duration::from_secs(600)));
    let yaml = "key_vault: { credential: { entra: { managed_identity: { client_id: c } } }, refresh: 1m }";
    let own = parse_valid(yaml).config.key_vault;
    assert!(matches!(
        own.identity,
        EntraIdentity::VirtualMachine { selector: ManagedIdentitySelector::ClientId(_), .. }
    ));
    assert_eq!(own.refresh_interval, Duration::from_secs(60));
}

#[test]
fn invalid_credentials_are_reported() {
    let shape = "must be the URL of a secret, such as https://NAME.vault.azure.net/secrets/NAME";
    let at = |path: &str, problem: &str| format!("backends[0].credential{path}: {problem}");
    for (credential, expected) in [
        ("api_key: a, key_vault: b", at("", "has both api_key and key_vault; remove one of them")),
        ("key_vault: 'https://a.vault.azure.net'", at(".key_vault", shape)),
        ("key_vault: 'https://a.vault.azure.net/secrets/a_b'", at(".key_vault", shape)),
        (
            "key_vault: 'http://a.vault.azure.net/secrets/a'",
            at(".key_vault", "must begin with https://: secrets are fetched from there"),
        ),
        (
            "entra: {}",
            at(
                ".entra",
                "needs one of managed_identity, workload_identity, client_secret and certificate; write managed_identity: {}",
            ),
        ),
        (
            "entra: { managed_identity: { client_id: a, object_id: b } }",
            at(".entra.managed_identity", "must have at most one of client_id, object_id and resource_id"),
        ),
        (
            "entra: { managed_identity: {}, authority: 'https://a.b' }",
            at(".entra.authority", "cannot be used with a managed identity; remove it"),
        ),
        (
            "entra: { workload_identity: {} }",
            at(
                ".entra.workload_identity.client_id",
                "is missing, and the environment variable AZURE_CLIENT_ID is not set; set one of them",
            ),
        ),
        (
            "entra: { client_secret: { tenant: t, client_id: c, secret: s }, authority: 'http://a.b' }",
            at(".entra.authority", "must begin with https://: secrets and prompts are sent there"),
        ),
        (
            "entra: { managed_identity: {}, scope: x }",
            at(".entra.scope", "must be a scope such as https://ai.azure.com/.default"),
        ),
    ] {
        assert_errors(&[(&backend_with_credential(credential), &[&expected])]);
    }
    assert_errors(&[(
        "key_vault: { credential: { entra: { client_secret: { tenant: t, client_id: c, secret: { key_vault: 'https://a.vault.azure.net/secrets/s' } } } } }",
        &[
            "key_vault.credential.entra.client_secret.secret.key_vault: cannot be in a key vault: key vaults are read with it; use the environment or \"${file:/path}\"",
        ],
    )]);
    assert_warnings(&[(
        &backend_with_credential("key_vault: 'https://vault.example/secrets/a'"),
        &[
            "backends[0].credential.key_vault: is not in a domain of Azure Key Vault, but will be sent a token for it; check the host name",
        ],
    )]);
}
