//! Reads and checks the top-level block `entra`: which Entra ID tokens are accepted from clients.

use std::time::Duration;

use crate::config::check::credentials::PUBLIC_AUTHORITY_URL;
use crate::config::check::shared::read_service_endpoint;
use crate::config::schema::ClientTokenConfig;
use crate::config::values::Endpoint;
use crate::config::yaml::YamlNode;

/// The clock difference between Entra ID and this machine that is tolerated.
const DEFAULT_LEEWAY: Duration = Duration::from_secs(60);
const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// Reads the block.
pub(in crate::config::check) fn read_client_tokens(node: &YamlNode<'_, '_>) -> Option<ClientTokenConfig> {
    let map = node.read_mapping(&["tenant", "audiences", "issuers", "authority", "leeway"])?;
    let tenant_id = map.require("tenant", "write the id of the directory").and_then(|node| {
        node.read_parsed(|text| {
            let is_id = text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
            is_id
                .then(|| text.to_ascii_lowercase())
                .ok_or("must be the directory's id, 32 hexadecimal digits in five groups")
        })
    });
    let read_text = |node: &YamlNode<'_, '_>| Some(node.read_nonempty_text()?.value);
    let how = "write the audiences of the tokens: [ api://ID, ID ] of the app registration";
    let audiences = map.require("audiences", how).and_then(|node| {
        node.read_nonempty_list(
            "must not be an empty list, or tokens for anyone would be accepted",
            read_text,
        )
    });
    let authority_host = match map.get("authority") {
        Some(node) => read_service_endpoint(&node),
        None => Endpoint::parse(PUBLIC_AUTHORITY_URL).ok(),
    };
    let leeway = map.read_or("leeway", DEFAULT_LEEWAY, |node| {
        let leeway = node.read_duration()?;
        if leeway > MAX_LEEWAY { node.report_error("must be at most 5m") } else { Some(leeway) }
    });
    let (tenant_id, authority_host) = (tenant_id?, authority_host?);
    // Of tokens of version 2 and of version 1: the manifest of the app registration decides which it gets.
    // <https://learn.microsoft.com/entra/identity-platform/access-tokens#token-formats>
    let default_issuers = || {
        let v2 = format!("https://{}/{tenant_id}/v2.0", authority_host.authority());
        vec![v2, format!("https://sts.windows.net/{tenant_id}/")]
    };
    let issuers = map.read_or("issuers", default_issuers(), |node| {
        node.read_nonempty_list("must not be an empty list", read_text)
    });
    Some(ClientTokenConfig {
        audiences: audiences?,
        issuers: issuers?,
        leeway: leeway?,
        authority_host,
        tenant_id,
    })
}
