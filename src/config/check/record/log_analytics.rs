//! `record.log_analytics`: which table records go to, and as whom.

use crate::config::node::{Inner, Map};
use crate::config::{Endpoint, Entra, LogAnalytics, Secret};

/// Azure Monitor in the public cloud; `scope` names another.
const SCOPE: &str = "https://monitor.azure.com/.default";
/// Entra ID of the public cloud; `authority` names another.
const AUTHORITY: &str = "https://login.microsoftonline.com";

/// Reads the block.
pub(super) fn read(node: &Inner<'_, '_>) -> Option<LogAnalytics> {
    let map = node.map(&["endpoint", "rule", "stream", "credential"])?;
    let endpoint = map
        .need("endpoint", "write the logs ingestion URL of the data collection rule or endpoint")
        .and_then(|node| service(&node));
    let rule = map.need("rule", "write the immutable id of the data collection rule").and_then(|node| {
        node.parsed(|text| {
            is_rule(text).then(|| text.to_owned()).ok_or("must be dcr- and 32 hexadecimal digits")
        })
    });
    let stream =
        map.need("stream", "write the rule's stream, such as Custom-AoaiExchanges").and_then(|node| {
            node.parsed(|text| {
                is_stream(text)
                    .then(|| text.to_owned())
                    .ok_or("must be a stream such as Custom-AoaiExchanges")
            })
        });
    let credential = map
        .need("credential", "write credential: { entra: { client_secret: { tenant, client_id, secret } } }")
        .and_then(|node| credential(&node));
    Some(LogAnalytics { endpoint: endpoint?, rule: rule?, stream: stream?, credential: credential? })
}

fn credential(node: &Inner<'_, '_>) -> Option<Entra> {
    let map = node.map(&["entra"])?;
    let node = map.need("entra", "write entra: { client_secret: { tenant, client_id, secret } }")?;
    let map = node.map(&["client_secret", "scope", "authority"])?;
    let scope = text(&map, "scope", SCOPE);
    let authority = match map.find("authority") {
        Some(node) => service(&node),
        None => Endpoint::parse(AUTHORITY).ok(),
    };
    let node = map.need("client_secret", "write client_secret: { tenant, client_id, secret }")?;
    let map = node.secret_map(&["tenant", "client_id", "secret"])?;
    let name = |key, what| {
        map.need(key, what).and_then(|node| {
            node.parsed(|text| {
                is_name(text).then(|| text.to_owned()).ok_or("must be letters, digits, . and -")
            })
        })
    };
    let tenant = name("tenant", "write the id of the directory");
    let client_id = name("client_id", "write the application's (client) id");
    let secret = map
        .need("secret", "write secret: \"${NAME}\", with the secret in the environment, or \"${file:/path}\"")
        .and_then(|node| node.filled());
    Some(Entra {
        authority: authority?,
        tenant: tenant?,
        client_id: client_id?,
        secret: Secret::new(&secret?.value),
        scope: scope?,
    })
}

fn text(map: &Map<'_, '_>, key: &str, usual: &str) -> Option<String> {
    map.or(key, usual.to_owned(), |node| Some(node.filled()?.value.to_string()))
}

/// A service that is called by us.
fn service(node: &Inner<'_, '_>) -> Option<Endpoint> {
    let endpoint = node.parsed(Endpoint::parse)?;
    if !endpoint.tls && !endpoint.is_loopback() {
        return node.error("must begin with https://: secrets and prompts go there");
    }
    Some(endpoint)
}

fn is_rule(text: &str) -> bool {
    text.strip_prefix("dcr-").is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_stream(text: &str) -> bool {
    text.len() <= 128
        && text.contains('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

fn is_name(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{assert_problems, good};

    const RULE: &str = "dcr-0123456789abcdef0123456789abcdef";

    fn block(endpoint: &str, rule: &str, secret: &str, more: &str) -> String {
        format!(
            "record: {{ spool: {{ path: x }}, log_analytics: {{ endpoint: '{endpoint}', rule: {rule}, stream: Custom-AoaiExchanges, \
             credential: {{ entra: {{ client_secret: {{ tenant: t, client_id: c, secret: {secret} }}{more} }} }} }} }}"
        )
    }

    #[test]
    fn a_table_is_read() {
        let yaml = block("https://x.eastus-1.ingest.monitor.azure.com", RULE, "'${KEY}'", "");
        let table = good(&yaml).config.record.unwrap().log_analytics.unwrap();
        assert_eq!(
            (table.endpoint.host.as_str(), table.rule.as_str()),
            ("x.eastus-1.ingest.monitor.azure.com", RULE)
        );
        assert_eq!(table.credential.scope, "https://monitor.azure.com/.default");
        assert_eq!(table.credential.authority.host, "login.microsoftonline.com");
        assert!(!format!("{table:?}").contains("k3y"), "a secret is never shown");
        let more =
            ", scope: 'https://monitor.azure.us/.default', authority: 'https://login.microsoftonline.us'";
        let yaml = block("https://x.ingest.monitor.azure.us", RULE, "s", more);
        assert_eq!(
            good(&yaml).config.record.unwrap().log_analytics.unwrap().credential.authority.host,
            "login.microsoftonline.us"
        );
    }

    #[test]
    fn problems() {
        assert_problems(&[
            (
                &block("http://x.ingest.monitor.azure.com", "dcr-1", "''", ""),
                &[
                    "record.log_analytics.endpoint: must begin with https://: secrets and prompts go there",
                    "record.log_analytics.rule: must be dcr- and 32 hexadecimal digits, not \"dcr-1\"",
                    "record.log_analytics.credential.entra.client_secret.secret: must not be empty",
                ],
            ),
            (
                &block("https://x.ingest.monitor.azure.com", RULE, "s", "")
                    .replace("spool: { path: x }, ", ""),
                &["record.spool.path: is missing; write a directory of its own"],
            ),
        ]);
    }
}
