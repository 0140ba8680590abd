//! Reads and checks identities of Entra ID: managed identities, workload identities and registered
//! applications.

use http::Uri;

use super::certificates::read_certified_key_files;
use super::secrets::{WHERE_TO_PUT_SECRETS, read_secret};
use crate::config::check::shared::read_service_endpoint;
use crate::config::schema::{
    AppCredential, AppRegistration, EntraCredential, EntraIdentity, ManagedIdentitySelector,
};
use crate::config::values::{Endpoint, Secret};
use crate::config::yaml::{YamlMapping, YamlNode};
use crate::files::open_regular_file;

/// The host of Entra ID in the public cloud, unless `authority` names another.
pub(in crate::config::check) const PUBLIC_AUTHORITY_URL: &str = "https://login.microsoftonline.com";
/// The metadata service (IMDS) of a virtual machine: the same link-local address everywhere.
/// <https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>
const VM_METADATA_SERVICE_URL: &str = "http://169.254.169.254";
/// The kinds of identity; exactly one must be written.
const IDENTITY_KEYS: [&str; 4] = ["managed_identity", "workload_identity", "client_secret", "certificate"];

/// Reads the key `entra` of a credential. `default_scope` is used if no scope is written.
pub(in crate::config::check) fn read_entra_credential(
    map: &YamlMapping<'_, '_>,
    default_scope: &str,
    allows_key_vault: bool,
) -> Option<EntraCredential> {
    let (identity, scope) = read_identity_and_scope(map, allows_key_vault)?;
    Some(EntraCredential { identity, token_scope: scope.unwrap_or_else(|| default_scope.to_owned()) })
}

pub(super) fn read_identity_and_scope(
    map: &YamlMapping<'_, '_>,
    allows_key_vault: bool,
) -> Option<(EntraIdentity, Option<String>)> {
    let node = map.require("entra", "write entra: { managed_identity: {} }")?;
    let keys = [&IDENTITY_KEYS[..], &["scope", "authority"]].concat();
    let map = node.read_mapping(&keys)?;
    let scope = map.read_optional("scope", |node| {
        node.read_parsed(|text| {
            let is_scope = text.len() > "/.default".len() && text.bytes().all(|b| b.is_ascii_graphic());
            is_scope.then(|| text.to_owned()).ok_or("must be a scope such as https://ai.azure.com/.default")
        })
    });
    let identity = read_identity(&map, allows_key_vault);
    Some((identity?, scope?))
}

fn read_identity(map: &YamlMapping<'_, '_>, allows_key_vault: bool) -> Option<EntraIdentity> {
    let (kind, node) = map.require_exactly_one(&IDENTITY_KEYS, "write managed_identity: {}")?;
    let authority = map.read_optional("authority", read_service_endpoint)?;
    match kind {
        "managed_identity" if authority.is_some() => {
            map.report_error_at("authority", "cannot be used with a managed identity; remove it")
        }
        "managed_identity" => read_managed_identity(&node),
        "workload_identity" => read_workload_identity(&node, authority),
        "client_secret" => {
            let map = node.read_secret_mapping(&["tenant", "client_id", "secret"])?;
            let (tenant, client_id) = (read_tenant_id(&map), read_client_id(&map));
            let how = format!("write secret: \"${{NAME}}\", {WHERE_TO_PUT_SECRETS}");
            let secret = map.require("secret", &how).and_then(|node| read_secret(&node, allows_key_vault));
            build_app_registration(authority, tenant?, client_id?, AppCredential::ClientSecret(secret?))
        }
        _ => {
            let map = node.read_mapping(&["tenant", "client_id", "certificate", "private_key"])?;
            let (tenant, client_id) = (read_tenant_id(&map), read_client_id(&map));
            let credential = read_certified_key_files(&map).map(AppCredential::ClientCertificate);
            build_app_registration(authority, tenant?, client_id?, credential?)
        }
    }
}

fn build_app_registration(
    authority: Option<Endpoint>,
    tenant: String,
    client_id: String,
    credential: AppCredential,
) -> Option<EntraIdentity> {
    let authority = match authority {
        Some(authority) => authority,
        None => Endpoint::parse(PUBLIC_AUTHORITY_URL).ok()?,
    };
    Some(EntraIdentity::AppRegistration(AppRegistration {
        authority_host: authority,
        tenant_id: tenant,
        client_id,
        credential,
    }))
}

/// Reads a managed identity. In App Service, Functions and Container Apps, the environment names the
/// endpoint; on a virtual machine, it is always the metadata service.
/// <https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference>
pub(super) fn read_managed_identity(node: &YamlNode<'_, '_>) -> Option<EntraIdentity> {
    let keys = ["client_id", "object_id", "resource_id"];
    let map = node.read_mapping(&keys)?;
    let selector_count = keys.iter().filter(|key| map.get(key).is_some()).count();
    if selector_count > 1 {
        return node.report_error("must have at most one of client_id, object_id and resource_id");
    }
    let read_id =
        |key| map.read_optional(key, |node| node.read_parsed(|text| parse_plain_id(text, b"-/._()")));
    let (client, object, resource) = (read_id("client_id")?, read_id("object_id")?, read_id("resource_id")?);
    let selector = match (client, object, resource) {
        (Some(id), ..) => ManagedIdentitySelector::ClientId(id),
        (_, Some(id), _) => ManagedIdentitySelector::ObjectId(id),
        (.., Some(id)) => ManagedIdentitySelector::ResourceId(id),
        _ => ManagedIdentitySelector::SystemAssigned,
    };
    let nonempty_variable =
        |name: &str| node.problems.environment_variable(name).filter(|value| !value.is_empty());
    if let (Some(url), Some(header)) =
        (nonempty_variable("IDENTITY_ENDPOINT"), nonempty_variable("IDENTITY_HEADER"))
    {
        let Some((service, path)) = parse_platform_token_endpoint(&url) else {
            return node.report_error(
                "needs an http:// URL on this machine in the environment variable IDENTITY_ENDPOINT, which has something else",
            );
        };
        return Some(EntraIdentity::AppService {
            endpoint: service,
            path,
            identity_header: Secret::new(&header),
            selector,
        });
    }
    // As in Azure's SDKs, this variable names a replacement for the metadata service.
    let service = nonempty_variable("AZURE_POD_IDENTITY_AUTHORITY_HOST");
    let Ok(service) = Endpoint::parse(service.as_deref().unwrap_or(VM_METADATA_SERVICE_URL)) else {
        return node
            .report_error("needs a URL in the environment variable AZURE_POD_IDENTITY_AUTHORITY_HOST, which has something else");
    };
    Some(EntraIdentity::VirtualMachine { metadata_service: service, selector })
}

/// Splits the URL of the platform's token endpoint into host and path. Over plain HTTP, it must be a loopback
/// or link-local address.
fn parse_platform_token_endpoint(url: &str) -> Option<(Endpoint, String)> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let endpoint = Endpoint::parse(&format!("{}://{authority}", uri.scheme_str()?)).ok()?;
    let is_link_local = endpoint.host.starts_with("169.254.");
    (uri.query().is_none() && (endpoint.uses_tls || endpoint.is_loopback() || is_link_local))
        .then(|| (endpoint, uri.path().to_owned()))
}

/// Reads a workload identity. What the file does not have comes from the environment, where the webhook of
/// Azure Workload Identity puts it.
/// <https://azure.github.io/azure-workload-identity/docs/installation/mutating-admission-webhook.html>
fn read_workload_identity(node: &YamlNode<'_, '_>, authority: Option<Endpoint>) -> Option<EntraIdentity> {
    let map = node.read_mapping(&["tenant", "client_id", "token_file"])?;
    let read_or_variable = |key: &str, variable: &str| match map.get(key) {
        Some(node) => Some(node.read_nonempty_text()?.value),
        None => match node.problems.environment_variable(variable).filter(|value| !value.is_empty()) {
            Some(value) => Some(value),
            None => map.report_error_at(
                key,
                format!("is missing, and the environment variable {variable} is not set; set one of them"),
            ),
        },
    };
    let tenant = read_or_variable("tenant", "AZURE_TENANT_ID");
    let client_id = read_or_variable("client_id", "AZURE_CLIENT_ID");
    let token_file = read_or_variable("token_file", "AZURE_FEDERATED_TOKEN_FILE");
    let authority = match (authority, node.problems.environment_variable("AZURE_AUTHORITY_HOST")) {
        (None, Some(host)) if !host.is_empty() => match Endpoint::parse(&host) {
            Ok(endpoint) if endpoint.uses_tls || endpoint.is_loopback() => Some(endpoint),
            _ => {
                return node.report_error(
                    "needs an https:// URL in the environment variable AZURE_AUTHORITY_HOST, which has something else",
                );
            }
        },
        (authority, _) => authority,
    };
    let (tenant, client_id) = (tenant?, client_id?);
    for (key, value) in [("tenant", &tenant), ("client_id", &client_id)] {
        if let Err(problem) = parse_plain_id(value, b".-") {
            map.report_error_at::<()>(key, problem);
        }
    }
    let path = node.resolve_path(&token_file?);
    if let Err(problem) = open_regular_file(&path) {
        map.report_warning_at("token_file", format!("cannot be read yet: {problem}"));
    }
    build_app_registration(authority, tenant, client_id, AppCredential::FederatedTokenFile(path))
}

fn read_tenant_id(map: &YamlMapping<'_, '_>) -> Option<String> {
    map.require("tenant", "write the id of the directory")?.read_parsed(|text| parse_plain_id(text, b".-"))
}

fn read_client_id(map: &YamlMapping<'_, '_>) -> Option<String> {
    map.require("client_id", "write the application's (client) id")?
        .read_parsed(|text| parse_plain_id(text, b".-"))
}

/// Accepts ASCII letters, digits and the bytes in `other_allowed`.
fn parse_plain_id(text: &str, other_allowed: &[u8]) -> Result<String, &'static str> {
    let is_valid =
        text.len() <= 512 && text.bytes().all(|b| b.is_ascii_alphanumeric() || other_allowed.contains(&b));
    is_valid.then(|| text.to_owned()).ok_or("must be letters, digits, . and -")
}
