//! Reads and checks the credentials that the balancer calls other services with, and the block `key_vault`.

mod certificates;
mod identity;
mod secrets;

use std::time::Duration;

pub(super) use self::certificates::{read_ca_file, read_certified_key_files, read_server_key_files};
pub(super) use self::identity::{PUBLIC_AUTHORITY_URL, read_entra_credential};
pub(super) use self::secrets::{read_header_secret, read_secret};

use self::identity::{read_identity_and_scope, read_managed_identity};
use self::secrets::{WHERE_TO_PUT_SECRETS, read_vault_secret};
use crate::config::schema::{CredentialConfig, EntraIdentity, KeyVaultConfig, SecretSource};
use crate::config::yaml::{YamlMapping, YamlNode};
use crate::yaml::{Entries, Value};

/// The scope of tokens for Azure OpenAI in the public cloud.
pub(super) const OPENAI_TOKEN_SCOPE: &str = "https://cognitiveservices.azure.com/.default";
/// The default of `key_vault.refresh`.
const DEFAULT_VAULT_REFRESH_INTERVAL: Duration = Duration::from_secs(600);

/// The keys of `backends[].credential`.
pub(super) const BACKEND_CREDENTIAL_KEYS: [&str; 3] = ["api_key", "key_vault", "entra"];

/// Reads the credential of a backend.
pub(super) fn read_backend_credential(node: &YamlNode<'_, '_>) -> Option<CredentialConfig> {
    let keys = BACKEND_CREDENTIAL_KEYS;
    let map = node.read_secret_mapping(&keys)?;
    let how = "write api_key: \"${NAME}\", key_vault: URL of the secret, or entra: { managed_identity: {} }";
    match map.require_exactly_one(&keys, how)?.0 {
        "api_key" => {
            let how = format!("write api_key: \"${{NAME}}\", {WHERE_TO_PUT_SECRETS}");
            read_header_secret(&map.require("api_key", &how)?).map(CredentialConfig::ApiKey)
        }
        "key_vault" => read_vault_secret(&map.require("key_vault", "write the secret's URL")?)
            .map(|secret| CredentialConfig::ApiKey(SecretSource::KeyVault(secret))),
        _ => read_entra_credential(&map, OPENAI_TOKEN_SCOPE, true).map(CredentialConfig::Entra),
    }
}

/// Reads the top-level block `key_vault`.
pub(super) fn read_key_vault(root: &YamlMapping<'_, '_>) -> Option<KeyVaultConfig> {
    let map = root.read_block("key_vault", &["credential", "refresh"])?;
    let refresh = map.read_or("refresh", DEFAULT_VAULT_REFRESH_INTERVAL, YamlNode::read_interval);
    let (identity, scope) = match map.get("credential") {
        Some(node) => read_identity_and_scope(&node.read_secret_mapping(&["entra"])?, false)?,
        None => (default_vault_identity(root)?, None),
    };
    Some(KeyVaultConfig { identity, token_scope: scope, refresh_interval: refresh? })
}

/// The identity if `key_vault.credential` is not written: the system-assigned managed identity.
fn default_vault_identity(root: &YamlMapping<'_, '_>) -> Option<EntraIdentity> {
    let empty = Value::Mapping(Entries::default());
    read_managed_identity(&root.node_at("key_vault.credential.entra.managed_identity", &empty))
}

#[cfg(test)]
mod tests;
