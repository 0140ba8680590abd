//! Reads and checks secrets, which are written in the file or kept in a key vault.

use crate::config::schema::{SecretSource, VaultSecretRef};
use crate::config::values::{Endpoint, Secret};
use crate::config::yaml::YamlNode;

pub(super) const WHERE_TO_PUT_SECRETS: &str =
    "with the secret in the environment, \"${file:/path}\", or { key_vault: URL }";

/// Reads a secret that is sent in a header.
pub(in crate::config::check) fn read_header_secret(node: &YamlNode<'_, '_>) -> Option<SecretSource> {
    if node.is_mapping() {
        return read_secret(node, true);
    }
    let text = node.read_secret_text()?;
    if !text.value.bytes().all(|b| b.is_ascii_graphic()) {
        return node.report_error(format!(
            "must be a key without spaces, line breaks or non-ASCII characters{}",
            text.source_note()
        ));
    }
    Some(SecretSource::Literal(Secret::new(&text.value)))
}

/// Reads a secret: its text, or the URL of a secret in a key vault.
pub(in crate::config::check) fn read_secret(
    node: &YamlNode<'_, '_>,
    allows_key_vault: bool,
) -> Option<SecretSource> {
    if !node.is_mapping() {
        return Some(SecretSource::Literal(Secret::new(&node.read_secret_text()?.value)));
    }
    let map = node.read_secret_mapping(&["key_vault"])?;
    let node = map.require("key_vault", "write the secret's URL")?;
    if !allows_key_vault {
        return node.report_error(
            "cannot be in a key vault: key vaults are read with it; use the environment or \"${file:/path}\"",
        );
    }
    read_vault_secret(&node).map(SecretSource::KeyVault)
}

/// Reads the URL of a secret: `https://VAULT.vault.azure.net/secrets/NAME`, optionally with a version.
pub(super) fn read_vault_secret(node: &YamlNode<'_, '_>) -> Option<VaultSecretRef> {
    const EXPECTED: &str = "must be the URL of a secret, such as https://NAME.vault.azure.net/secrets/NAME";
    let secret = node.read_parsed(|text| {
        let (vault, rest) = text.split_once("/secrets/").ok_or(EXPECTED)?;
        let vault = Endpoint::parse(vault).map_err(|_| EXPECTED)?;
        if !vault.uses_tls && !vault.is_loopback() {
            return Err("must begin with https://: secrets are fetched from there");
        }
        let mut parts = rest.trim_end_matches('/').split('/');
        let parse_part = |part: &str| {
            let is_valid = (1..=127).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            is_valid.then(|| part.to_owned()).ok_or(EXPECTED)
        };
        let name = parse_part(parts.next().unwrap_or_default())?;
        let version = parts.next().map(parse_part).transpose()?;
        if parts.next().is_some() { Err(EXPECTED) } else { Ok(VaultSecretRef { vault, name, version }) }
    })?;
    if secret.azure_vault_domain().is_none() && !secret.vault.is_loopback() {
        node.report_warning(
            "is not in a domain of Azure Key Vault, but will be sent a token for it; check the host name",
        );
    }
    Some(secret)
}
