//! Tokens of a managed identity: from the metadata service of a VM, or from the platform of App
//! Service, Functions and Container Apps. Nothing has to be proven there but to be on the machine.
//!
//! <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>

use bytes::Bytes;
use http::Method;

use super::refreshed::{Failed, Fetched};
use super::token_response::{escaped, granted};
use crate::config::{Endpoint, Secret, WhichIdentity};
use crate::outbound::{Call, Outbound};

/// Where the token of an identity is asked for.
pub(super) struct Fetch {
    service: Endpoint,
    target: String,
    header: Header,
    scope: String,
}

/// What the service has to be shown, so that nobody is tricked into asking it.
enum Header {
    Metadata,
    Identity(Secret),
}

impl Fetch {
    /// From the metadata service of a VM.
    pub(super) fn of_machine(service: &Endpoint, which: &WhichIdentity, scope: &str) -> Self {
        let query = query("2018-02-01", "msi_res_id", which, scope);
        Self {
            service: service.clone(),
            target: format!("/metadata/identity/oauth2/token?{query}"),
            header: Header::Metadata,
            scope: scope.to_owned(),
        }
    }

    /// From the platform of an app.
    pub(super) fn of_app(
        service: &Endpoint,
        path: &str,
        header: &Secret,
        which: &WhichIdentity,
        scope: &str,
    ) -> Self {
        let query = query("2019-08-01", "mi_res_id", which, scope);
        Self {
            service: service.clone(),
            target: format!("{path}?{query}"),
            header: Header::Identity(header.clone()),
            scope: scope.to_owned(),
        }
    }

    pub(super) fn what(&self) -> String {
        format!("token of the managed identity for {}", self.scope)
    }

    pub(super) async fn fetch(&self, outbound: &Outbound) -> Result<Fetched, Failed> {
        let header = match &self.header {
            Header::Metadata => ("metadata", "true"),
            Header::Identity(secret) => ("x-identity-header", secret.expose()),
        };
        let call = Call { method: Method::GET, target: &self.target, headers: &[header], body: Bytes::new() };
        let answer = outbound.call(&self.service, call).await.map_err(|problem| {
            Failed::from(format!("{problem}; is this machine in Azure, and has it an identity?"))
        })?;
        granted(&self.service.host, &answer, "; has this machine that identity?")
    }
}

/// `resource` is the scope without its last part, as the older protocol has it.
fn query(version: &str, resource_key: &str, which: &WhichIdentity, scope: &str) -> String {
    let resource = scope.strip_suffix("/.default").unwrap_or(scope);
    let query = format!("api-version={version}&resource={}", escaped(resource));
    let which = match which {
        WhichIdentity::System => return query,
        WhichIdentity::ClientId(id) => ("client_id", id),
        WhichIdentity::ObjectId(id) => ("object_id", id),
        WhichIdentity::ResourceId(id) => (resource_key, id),
    };
    format!("{query}&{}={}", which.0, escaped(which.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked() {
        let ask = |which| query("2018-02-01", "msi_res_id", &which, "https://a.b/.default");
        let usual = "api-version=2018-02-01&resource=https%3A%2F%2Fa.b";
        assert_eq!(ask(WhichIdentity::System), usual);
        assert_eq!(ask(WhichIdentity::ClientId("c".into())), format!("{usual}&client_id=c"));
        assert_eq!(ask(WhichIdentity::ObjectId("o".into())), format!("{usual}&object_id=o"));
        let resource = ask(WhichIdentity::ResourceId("/subscriptions/s".into()));
        assert_eq!(resource, format!("{usual}&msi_res_id=%2Fsubscriptions%2Fs"));
    }
}
