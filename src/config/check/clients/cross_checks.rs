//! Checks of `clients` against `entra`, `limits`, `listeners` and `record`.

use crate::config::schema::{ClientsConfig, LimitsConfig, ListenerConfig};
use crate::config::yaml::YamlMapping;

/// Warns about clients that say what to record although nothing is recorded.
pub(in crate::config::check) fn warn_if_client_record_is_unused(
    root: &YamlMapping<'_, '_>,
    clients: &ClientsConfig,
) {
    let ClientsConfig::Listed(clients) = clients else { return };
    for index in (0..clients.len()).filter(|index| clients[*index].recorded_content_override.is_some()) {
        root.problems.report_warning(
            &format!("clients[{index}].record"),
            "has no effect: there is no record block, so nothing is recorded",
        );
    }
}

/// Warns about limits that apply to no client, and about a block `limits` without any limit to apply to.
pub(in crate::config::check) fn warn_if_limits_are_unused(
    root: &YamlMapping<'_, '_>,
    clients: &ClientsConfig,
    limits: &LimitsConfig,
) {
    let clients = match clients {
        ClientsConfig::Anyone => &[],
        ClientsConfig::Listed(clients) => &clients[..],
    };
    let mut limited = clients.iter().filter(|client| client.limits.is_some());
    if limits.default.is_none() && limited.next().is_none() && root.get("limits").is_some() {
        root.report_warning_at("limits", "has no effect: it has no default, and no client has limits");
    }
    if limits.default.is_some() && !clients.is_empty() && clients.iter().all(|client| client.limits.is_some())
    {
        root.problems.report_warning("limits.default", "has no effect: every client has limits of its own");
    }
}

/// Warns if anyone on the network can use the backends without a credential.
pub(in crate::config::check) fn warn_if_open_beyond_loopback(
    root: &YamlMapping<'_, '_>,
    clients: &ClientsConfig,
    listeners: &[ListenerConfig],
) {
    let is_public = listeners.iter().any(|listener| !listener.address.ip().to_canonical().is_loopback());
    if is_public && matches!(clients, ClientsConfig::Anyone) {
        root.report_warning_at(
            "clients",
            "is open and a listener is not on loopback: anyone who can connect uses your keys",
        );
    }
}

/// Reports clients that cannot authenticate, since their kind of credential is not accepted anywhere.
pub(in crate::config::check) fn check_client_authentication(
    root: &YamlMapping<'_, '_>,
    clients: &ClientsConfig,
    has_token_block: bool,
    listeners: &[ListenerConfig],
) {
    let ClientsConfig::Listed(clients) = clients else {
        if has_token_block {
            root.report_warning_at("entra", "has no effect: clients is open, so tokens are not checked");
        }
        return;
    };
    if has_token_block
        && clients.iter().all(|client| client.token_app_ids.is_empty() && client.token_app_roles.is_empty())
    {
        root.report_warning_at(
            "entra",
            "has no effect: no client lists app_ids or roles under its own entra",
        );
    }
    let requests_certificate =
        |listener: &ListenerConfig| listener.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
    let can_show_certificates = listeners.iter().any(requests_certificate);
    for (index, client) in clients.iter().enumerate() {
        let shows_tokens = !client.token_app_ids.is_empty() || !client.token_app_roles.is_empty();
        if shows_tokens && !has_token_block {
            root.problems.report_error::<()>(
                &format!("clients[{index}].entra"),
                "needs the top-level block `entra`, which says which tokens are trusted",
            );
        }
        if !client.certificate_subjects.is_empty() && !can_show_certificates {
            root.problems.report_error::<()>(
                &format!("clients[{index}].certificates"),
                "needs a listener with tls.client_ca, which requests certificates from clients",
            );
        }
    }
}
