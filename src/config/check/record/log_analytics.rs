//! `record.log_analytics`: which table records go to, and as whom.

use super::super::credentials::{MONITOR_SCOPE, entra, service};
use crate::config::LogAnalytics;
use crate::config::node::Inner;

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
        .need("credential", "write credential: { entra: { managed_identity: {} } }")
        .and_then(|node| entra(&node.secret_map(&["entra"])?, MONITOR_SCOPE, true));
    Some(LogAnalytics { endpoint: endpoint?, rule: rule?, stream: stream?, credential: credential? })
}

fn is_rule(text: &str) -> bool {
    text.strip_prefix("dcr-").is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_stream(text: &str) -> bool {
    text.len() <= 128
        && text.contains('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{assert_problems, good};
    use crate::config::{Identity, LogAnalytics};

    const RULE: &str = "dcr-0123456789abcdef0123456789abcdef";

    fn block(endpoint: &str, rule: &str, secret: &str, more: &str) -> String {
        format!(
            "record: {{ spool: {{ path: x }}, log_analytics: {{ endpoint: '{endpoint}', rule: {rule}, stream: Custom-AoaiExchanges, \
             credential: {{ entra: {{ client_secret: {{ tenant: t, client_id: c, secret: {secret} }}{more} }} }} }} }}"
        )
    }

    fn authority(table: &LogAnalytics) -> &str {
        match &table.credential.identity {
            Identity::Application(application) => &application.authority.host,
            other => panic!("no application: {other:?}"),
        }
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
        assert_eq!(authority(&table), "login.microsoftonline.com");
        assert!(!format!("{table:?}").contains("k3y"), "a secret is never shown");
        let more =
            ", scope: 'https://monitor.azure.us/.default', authority: 'https://login.microsoftonline.us'";
        let yaml = block("https://x.ingest.monitor.azure.us", RULE, "s", more);
        assert_eq!(
            authority(&good(&yaml).config.record.unwrap().log_analytics.unwrap()),
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
