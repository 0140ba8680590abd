//! Fetches tokens of a managed identity from the metadata service of a VM, or from the endpoint that App
//! Service, Functions and Container Apps offer. Neither needs a configured secret: only
//! processes of the VM or app can reach them.
//!
//! <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>

use bytes::Bytes;
use http::Method;

use super::super::fetched_secret::{FetchError, FetchedSecret};
use super::token_response::{parse_token_response, percent_encode};
use crate::config::{Endpoint, ManagedIdentitySelector, Secret};
use crate::outbound::{OutboundClient, OutboundRequest};

/// Fetches the token of a managed identity for one scope.
pub(in crate::credentials) struct ManagedIdentityFetcher {
    token_service: Endpoint,
    path_and_query: String,
    required_header: RequiredHeader,
    scope: String,
}

/// The header that the service requires, so that a forged request of a browser or proxy (SSRF) gets no
/// token.
enum RequiredHeader {
    Metadata,
    IdentityHeader(Secret),
}

impl ManagedIdentityFetcher {
    /// A token from the metadata service of a VM.
    pub(in crate::credentials) fn for_virtual_machine(
        token_service: &Endpoint,
        identity: &ManagedIdentitySelector,
        scope: &str,
    ) -> Self {
        let query = token_query("2018-02-01", "msi_res_id", identity, scope);
        Self {
            token_service: token_service.clone(),
            path_and_query: format!("/metadata/identity/oauth2/token?{query}"),
            required_header: RequiredHeader::Metadata,
            scope: scope.to_owned(),
        }
    }

    /// A token from the endpoint of App Service, Functions or Container Apps.
    ///
    /// <https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference>
    pub(in crate::credentials) fn for_app_service(
        token_service: &Endpoint,
        path: &str,
        identity_header: &Secret,
        identity: &ManagedIdentitySelector,
        scope: &str,
    ) -> Self {
        // The parameter for a resource id is named differently than on a VM.
        let query = token_query("2019-08-01", "mi_res_id", identity, scope);
        Self {
            token_service: token_service.clone(),
            path_and_query: format!("{path}?{query}"),
            required_header: RequiredHeader::IdentityHeader(identity_header.clone()),
            scope: scope.to_owned(),
        }
    }

    pub(in crate::credentials) fn description(&self) -> String {
        format!("token of the managed identity for {}", self.scope)
    }

    pub(in crate::credentials) async fn fetch(
        &self,
        client: &OutboundClient,
    ) -> Result<FetchedSecret, FetchError> {
        let header = match &self.required_header {
            RequiredHeader::Metadata => ("metadata", "true"),
            RequiredHeader::IdentityHeader(secret) => ("x-identity-header", secret.expose_secret()),
        };
        let request = OutboundRequest {
            method: Method::GET,
            path_and_query: &self.path_and_query,
            headers: &[header],
            body: Bytes::new(),
        };
        let response = client.send(&self.token_service, request).await.map_err(|error| {
            FetchError::from(format!(
                "{error}; is this machine in Azure, and does it have a managed identity?"
            ))
        })?;
        parse_token_response(&self.token_service.host, &response, "; does this machine have that identity?")
    }
}

/// The query of a token request. The services use the older protocol, which names a resource: the scope
/// without `/.default`.
fn token_query(
    api_version: &str,
    resource_id_key: &str,
    identity: &ManagedIdentitySelector,
    scope: &str,
) -> String {
    let resource = scope.strip_suffix("/.default").unwrap_or(scope);
    let query = format!("api-version={api_version}&resource={}", percent_encode(resource));
    let (key, id) = match identity {
        ManagedIdentitySelector::SystemAssigned => return query,
        ManagedIdentitySelector::ClientId(id) => ("client_id", id),
        ManagedIdentitySelector::ObjectId(id) => ("object_id", id),
        ManagedIdentitySelector::ResourceId(id) => (resource_id_key, id),
    };
    format!("{query}&{key}={}", percent_encode(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_names_the_resource_and_the_chosen_identity() {
        let query_for = |identity| token_query("2018-02-01", "msi_res_id", &identity, "https://a.b/.default");
        let base = "api-version=2018-02-01&resource=https%3A%2F%2Fa.b";
        assert_eq!(query_for(ManagedIdentitySelector::SystemAssigned), base);
        assert_eq!(query_for(ManagedIdentitySelector::ClientId("c".into())), format!("{base}&client_id=c"));
        assert_eq!(query_for(ManagedIdentitySelector::ObjectId("o".into())), format!("{base}&object_id=o"));
        let resource = query_for(ManagedIdentitySelector::ResourceId("/subscriptions/s".into()));
        assert_eq!(resource, format!("{base}&msi_res_id=%2Fsubscriptions%2Fs"));
    }
}
