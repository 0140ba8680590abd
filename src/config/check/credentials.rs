//! What the balancer shows to other services: secrets and where they are, identities of Entra ID,
//! and the vaults that are read.

use std::time::Duration;

use http::Uri;

use crate::config::node::{Inner, Map};
use crate::config::words::all;
use crate::config::{
    Application, BadPair, Credential, Endpoint, Entra, Identity, KeyPair, KeyVault, PairFiles, Proof, Secret,
    SecretSource, VaultSecret, WhichIdentity,
};

/// Azure OpenAI in the public cloud.
pub(super) const OPENAI_SCOPE: &str = "https://cognitiveservices.azure.com/.default";
/// Azure Monitor in the public cloud.
pub(super) const MONITOR_SCOPE: &str = "https://monitor.azure.com/.default";
/// Entra ID of the public cloud; `authority` names another.
pub(super) const AUTHORITY: &str = "https://login.microsoftonline.com";
/// The metadata service of a VM: the same link-local address everywhere.
const METADATA_SERVICE: &str = "http://169.254.169.254";
/// How often secrets are read from their vaults.
const REFRESH: Duration = Duration::from_secs(600);
/// The ways to be somebody to Entra ID.
const IDENTITIES: [&str; 4] = ["managed_identity", "workload_identity", "client_secret", "certificate"];
/// A certificate that ends within so many days is worth a word.
const ENDS_SOON_DAYS: u32 = 14;

const A_SECRET: &str = "with the secret in the environment, \"${file:/path}\", or { key_vault: URL }";

/// What a backend is called with.
pub(super) fn credential(node: &Inner<'_, '_>) -> Option<Credential> {
    let keys = ["api_key", "key_vault", "entra"];
    let map = node.secret_map(&keys)?;
    let how = "write api_key: \"${NAME}\", key_vault: URL of the secret, or entra: { managed_identity: {} }";
    match the_only(&map, &keys, how)?.0 {
        "api_key" => {
            let how = format!("write api_key: \"${{NAME}}\", {A_SECRET}");
            key(&map.need("api_key", &how)?).map(Credential::ApiKey)
        }
        "key_vault" => vault_secret(&map.need("key_vault", "write the secret's URL")?)
            .map(|secret| Credential::ApiKey(SecretSource::Vault(secret))),
        _ => entra(&map, OPENAI_SCOPE, true).map(Credential::Entra),
    }
}

/// A secret that is sent as a header.
pub(super) fn key(node: &Inner<'_, '_>) -> Option<SecretSource> {
    let key = secret(node, true)?;
    if let SecretSource::Written(written) = &key
        && !written.expose().bytes().all(|b| b.is_ascii_graphic())
    {
        let of = node.source().map_or(String::new(), |source| format!(" in {source}"));
        return node.error(format!("must be a key without blanks, line breaks and non-ASCII characters{of}"));
    }
    Some(key)
}

/// A secret: its text, or the place in a vault where it is.
pub(super) fn secret(node: &Inner<'_, '_>, in_vaults: bool) -> Option<SecretSource> {
    if !node.is_map() {
        return Some(SecretSource::Written(Secret::new(&node.filled()?.value)));
    }
    let map = node.secret_map(&["key_vault"])?;
    let node = map.need("key_vault", "write the secret's URL")?;
    if !in_vaults {
        return node.error("cannot be in a vault: it is what opens the vaults");
    }
    vault_secret(&node).map(SecretSource::Vault)
}

/// The `entra` key of a credential; `usual` is the scope where none is written.
pub(super) fn entra(map: &Map<'_, '_>, usual: &str, in_vaults: bool) -> Option<Entra> {
    let (identity, scope) = identity_and_scope(map, in_vaults)?;
    Some(Entra { identity, scope: scope.unwrap_or_else(|| usual.to_owned()) })
}

fn identity_and_scope(map: &Map<'_, '_>, in_vaults: bool) -> Option<(Identity, Option<String>)> {
    let node = map.need("entra", "write entra: { managed_identity: {} }")?;
    let keys = [&IDENTITIES[..], &["scope", "authority"]].concat();
    let map = node.map(&keys)?;
    let scope = map.maybe("scope", |node| {
        node.parsed(|text| {
            let is_scope = text.len() > "/.default".len() && text.bytes().all(|b| b.is_ascii_graphic());
            is_scope.then(|| text.to_owned()).ok_or("must be a scope such as https://ai.azure.com/.default")
        })
    });
    let identity = identity(&map, in_vaults);
    Some((identity?, scope?))
}

fn identity(map: &Map<'_, '_>, in_vaults: bool) -> Option<Identity> {
    let (kind, node) = the_only(map, &IDENTITIES, "write managed_identity: {}")?;
    let authority = map.maybe("authority", service)?;
    match kind {
        "managed_identity" if authority.is_some() => {
            map.report.error(&map.at("authority"), "has no meaning for a managed identity; remove it")
        }
        "managed_identity" => managed_identity(&node),
        "workload_identity" => workload_identity(&node, authority),
        "client_secret" => {
            let map = node.secret_map(&["tenant", "client_id", "secret"])?;
            let (tenant, client_id) = (tenant(&map), client_id(&map));
            let how = format!("write secret: \"${{NAME}}\", {A_SECRET}");
            let secret = map.need("secret", &how).and_then(|node| secret(&node, in_vaults));
            application(authority, tenant?, client_id?, Proof::Secret(secret?))
        }
        _ => {
            let map = node.map(&["tenant", "client_id", "certificate", "private_key"])?;
            let (tenant, client_id) = (tenant(&map), client_id(&map));
            let proof = pair(&map).map(Proof::Certificate);
            application(authority, tenant?, client_id?, proof?)
        }
    }
}

fn application(
    authority: Option<Endpoint>,
    tenant: String,
    client_id: String,
    proof: Proof,
) -> Option<Identity> {
    let authority = match authority {
        Some(authority) => authority,
        None => Endpoint::parse(AUTHORITY).ok()?,
    };
    Some(Identity::Application(Application { authority, tenant, client_id, proof }))
}

/// A managed identity: App Service, Functions and Container Apps say in the environment where
/// theirs is, a VM's metadata service is at the same place everywhere.
fn managed_identity(node: &Inner<'_, '_>) -> Option<Identity> {
    let keys = ["client_id", "object_id", "resource_id"];
    let map = node.map(&keys)?;
    let named = keys.iter().filter(|key| map.find(key).is_some()).count();
    if named > 1 {
        return node.error("must have one of client_id, object_id and resource_id, or none of them");
    }
    let id = |key| map.maybe(key, |node| node.parsed(|text| plain(text, b"-/._()")));
    let (client, object, resource) = (id("client_id")?, id("object_id")?, id("resource_id")?);
    let which = match (client, object, resource) {
        (Some(id), ..) => WhichIdentity::ClientId(id),
        (_, Some(id), _) => WhichIdentity::ObjectId(id),
        (.., Some(id)) => WhichIdentity::ResourceId(id),
        _ => WhichIdentity::System,
    };
    let variable = |name: &str| node.report.variable(name).filter(|value| !value.is_empty());
    if let (Some(url), Some(header)) = (variable("IDENTITY_ENDPOINT"), variable("IDENTITY_HEADER")) {
        let Some((service, path)) = platform(&url) else {
            return node.error(
                "needs an http:// URL of this machine in the variable IDENTITY_ENDPOINT, which has none",
            );
        };
        return Some(Identity::AppService { service, path, header: Secret::new(&header), which });
    }
    // As in Azure's SDKs, the variable is for those who stand in for the metadata service.
    let service = variable("AZURE_POD_IDENTITY_AUTHORITY_HOST");
    let Ok(service) = Endpoint::parse(service.as_deref().unwrap_or(METADATA_SERVICE)) else {
        return node.error("needs a URL in the variable AZURE_POD_IDENTITY_AUTHORITY_HOST, which has none");
    };
    Some(Identity::Machine { service, which })
}

/// The platform's endpoint, which is on this machine.
fn platform(url: &str) -> Option<(Endpoint, String)> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let endpoint = Endpoint::parse(&format!("{}://{authority}", uri.scheme_str()?)).ok()?;
    let is_link_local = endpoint.host.starts_with("169.254.");
    (uri.query().is_none() && (endpoint.tls || endpoint.is_loopback() || is_link_local))
        .then(|| (endpoint, uri.path().to_owned()))
}

/// Kubernetes says in the environment what is not in the file.
fn workload_identity(node: &Inner<'_, '_>, authority: Option<Endpoint>) -> Option<Identity> {
    let map = node.map(&["tenant", "client_id", "token_file"])?;
    let or_variable = |key: &str, variable: &str| match map.find(key) {
        Some(node) => Some(node.filled()?.value),
        None => match node.report.variable(variable).filter(|value| !value.is_empty()) {
            Some(value) => Some(value),
            None => map.report.error(&map.at(key), format!("is missing, and so is the variable {variable}")),
        },
    };
    let tenant = or_variable("tenant", "AZURE_TENANT_ID");
    let client_id = or_variable("client_id", "AZURE_CLIENT_ID");
    let token_file = or_variable("token_file", "AZURE_FEDERATED_TOKEN_FILE");
    let authority = match (authority, node.report.variable("AZURE_AUTHORITY_HOST")) {
        (None, Some(host)) if !host.is_empty() => match Endpoint::parse(&host) {
            Ok(endpoint) if endpoint.tls || endpoint.is_loopback() => Some(endpoint),
            _ => {
                return node
                    .error("needs an https:// URL in the variable AZURE_AUTHORITY_HOST, which has none");
            }
        },
        (authority, _) => authority,
    };
    let (tenant, client_id) = (tenant?, client_id?);
    for (key, value) in [("tenant", &tenant), ("client_id", &client_id)] {
        if let Err(problem) = plain(value, b".-") {
            map.report.error::<()>(&map.at(key), problem);
        }
    }
    let path = node.resolve(&token_file?);
    if let Err(problem) = std::fs::metadata(&path) {
        map.report.warn(&map.at("token_file"), format!("cannot be read yet: {problem}"));
    }
    application(authority, tenant, client_id, Proof::TokenFile(path))
}

/// `key_vault` of the file's top: as whom vaults are read, and how often.
pub(super) fn key_vault(root: &Map<'_, '_>) -> Option<KeyVault> {
    let map = root.block("key_vault", &["credential", "refresh"])?;
    let refresh = map.or("refresh", REFRESH, Inner::interval);
    let (identity, scope) = match map.find("credential") {
        Some(node) => identity_and_scope(&node.secret_map(&["entra"])?, false)?,
        None => (usual_identity(root)?, None),
    };
    Some(KeyVault { identity, scope, refresh: refresh? })
}

/// The machine's own, where nothing is said.
fn usual_identity(root: &Map<'_, '_>) -> Option<Identity> {
    let empty = serde_yaml::Value::Mapping(serde_yaml::Mapping::new());
    managed_identity(&root.inner("key_vault", &empty))
}

/// `https://VAULT.vault.azure.net/secrets/NAME`, and perhaps a version.
fn vault_secret(node: &Inner<'_, '_>) -> Option<VaultSecret> {
    const SHAPE: &str = "must be the URL of a secret, such as https://NAME.vault.azure.net/secrets/NAME";
    let secret = node.parsed(|text| {
        let (vault, rest) = text.split_once("/secrets/").ok_or(SHAPE)?;
        let vault = Endpoint::parse(vault).map_err(|_| SHAPE)?;
        if !vault.tls && !vault.is_loopback() {
            return Err("must begin with https://: secrets come from there");
        }
        let mut parts = rest.trim_end_matches('/').split('/');
        let part = |part: &str| {
            let good = (1..=127).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            good.then(|| part.to_owned()).ok_or(SHAPE)
        };
        let name = part(parts.next().unwrap_or_default())?;
        let version = parts.next().map(part).transpose()?;
        if parts.next().is_some() { Err(SHAPE) } else { Ok(VaultSecret { vault, name, version }) }
    })?;
    if secret.domain().is_none() && !secret.vault.is_loopback() {
        node.warn("is in none of the domains of Azure's vaults, and is sent a token for one");
    }
    Some(secret)
}

/// A service that is called by us.
pub(super) fn service(node: &Inner<'_, '_>) -> Option<Endpoint> {
    let endpoint = node.parsed(Endpoint::parse)?;
    if !endpoint.tls && !endpoint.is_loopback() {
        return node.error("must begin with https://: secrets and prompts go there");
    }
    Some(endpoint)
}

/// The files of a certificate and its key, which are read and compared.
pub(super) fn pair(map: &Map<'_, '_>) -> Option<PairFiles> {
    let file = |key, what| map.need(key, what).and_then(|node| node.file());
    let certificate = file("certificate", "write the PEM file of the certificate and its chain");
    let private_key = file("private_key", "write the PEM file of the certificate's private key");
    let files = PairFiles { certificate: certificate?.0, private_key: private_key?.0 };
    match KeyPair::read(&files) {
        Ok(pair) => {
            if let Some(end) = pair.ends_within(ENDS_SOON_DAYS) {
                map.report.warn(&map.at("certificate"), format!("ends or ended on {end}"));
            }
            Some(files)
        }
        Err(BadPair::Certificate(problem)) => map.report.error(&map.at("certificate"), problem),
        Err(BadPair::PrivateKey(problem)) => map.report.error(&map.at("private_key"), problem),
    }
}

/// The one of these keys that is there; there has to be exactly one.
fn the_only<'a, 'v>(
    map: &Map<'a, 'v>,
    keys: &[&'static str],
    how: &str,
) -> Option<(&'static str, Inner<'a, 'v>)> {
    let mut found = keys.iter().filter_map(|key| Some((*key, map.find(key)?)));
    match (found.next(), found.next()) {
        (Some(found), None) => Some(found),
        (None, _) => map.report.error(&map.path, format!("needs one of {}; {how}", all(keys))),
        (Some((one, _)), Some((other, _))) => {
            map.report.error(&map.path, format!("has both {one} and {other}; remove one of them"))
        }
    }
}

fn tenant(map: &Map<'_, '_>) -> Option<String> {
    map.need("tenant", "write the id of the directory")?.parsed(|text| plain(text, b".-"))
}

fn client_id(map: &Map<'_, '_>) -> Option<String> {
    map.need("client_id", "write the application's (client) id")?.parsed(|text| plain(text, b".-"))
}

/// Letters, digits and some more.
fn plain(text: &str, more: &[u8]) -> Result<String, &'static str> {
    let good = text.len() <= 512 && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    good.then(|| text.to_owned()).ok_or("must be letters, digits, . and -")
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
