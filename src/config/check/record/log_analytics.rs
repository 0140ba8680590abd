//! Reads and checks `record.log_analytics`: the table that records are sent to, and the credential.

use crate::config::check::credentials::read_entra_credential;
use crate::config::check::shared::read_service_endpoint;
use crate::config::schema::LogAnalyticsConfig;
use crate::config::yaml::YamlNode;

/// The scope of tokens for Azure Monitor in the public cloud.
const MONITOR_TOKEN_SCOPE: &str = "https://monitor.azure.com/.default";

/// Reads the block.
pub(super) fn read_log_analytics(node: &YamlNode<'_, '_>) -> Option<LogAnalyticsConfig> {
    let map = node.read_mapping(&["endpoint", "rule", "stream", "credential"])?;
    let endpoint = map
        .require("endpoint", "write the logs ingestion URL of the data collection rule or endpoint")
        .and_then(|node| read_service_endpoint(&node));
    let rule = map.require("rule", "write the immutable id of the data collection rule").and_then(|node| {
        node.read_parsed(|text| {
            is_rule_immutable_id(text)
                .then(|| text.to_owned())
                .ok_or("must be dcr- and 32 hexadecimal digits")
        })
    });
    let stream =
        map.require("stream", "write the rule's stream, such as Custom-AoaiExchanges").and_then(|node| {
            node.read_parsed(|text| {
                is_stream_name(text)
                    .then(|| text.to_owned())
                    .ok_or("must be a stream such as Custom-AoaiExchanges")
            })
        });
    let credential =
        map.require("credential", "write credential: { entra: { managed_identity: {} } }").and_then(|node| {
            read_entra_credential(&node.read_secret_mapping(&["entra"])?, MONITOR_TOKEN_SCOPE, true)
        });
    Some(LogAnalyticsConfig {
        endpoint: endpoint?,
        rule_immutable_id: rule?,
        stream_name: stream?,
        credential: credential?,
    })
}

fn is_rule_immutable_id(text: &str) -> bool {
    text.strip_prefix("dcr-").is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_stream_name(text: &str) -> bool {
    text.len() <= 128
        && text.contains('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use crate::config::testing::{assert_errors, parse_valid};
    use crate::config::{EntraIdentity, LogAnalyticsConfig};

    const RULE: &str = "dcr-0123456789abcdef0123456789abcdef";

    fn log_analytics_block(endpoint: &str, rule: &str, secret: &str, more: &str) -> String {
        format!(
            "record: {{ spool: {{ path: x }}, log_analytics: {{ endpoint: '{endpoint}', rule: {rule}, stream: Custom-AoaiExchanges, \
             credential: {{ entra: {{ client_secret: {{ tenant: t, client_id: c, secret: {secret} }}{more} }} }} }} }}"
        )
    }

    fn authority_host(table: &LogAnalyticsConfig) -> &str {
        match &table.credential.identity {
            EntraIdentity::AppRegistration(application) => &application.authority_host.host,
            other => panic!("no application: {other:?}"),
        }
    }

    #[test]
    fn log_analytics_settings_are_read() {
        let yaml = log_analytics_block("https://x.eastus-1.ingest.monitor.azure.com", RULE, "'${KEY}'", "");
        let table = parse_valid(&yaml).config.record.unwrap().log_analytics.unwrap();
        assert_eq!(
            (table.endpoint.host.as_str(), table.rule_immutable_id.as_str()),
            ("x.eastus-1.ingest.monitor.azure.com", RULE)
        );
        assert_eq!(table.credential.token_scope, "https://monitor.azure.com/.default");
        assert_eq!(authority_host(&table), "login.microsoftonline.com");
        assert!(!format!("{table:?}").contains("k3y"), "a secret is never shown");
        let more =
            ", scope: 'https://monitor.azure.us/.default', authority: 'https://login.microsoftonline.us'";
        let yaml = log_analytics_block("https://x.ingest.monitor.azure.us", RULE, "s", more);
        assert_eq!(
            authority_host(&parse_valid(&yaml).config.record.unwrap().log_analytics.unwrap()),
            "login.microsoftonline.us"
        );
    }

    #[test]
    fn invalid_log_analytics_settings_are_reported() {
        assert_errors(&[
            (
                &log_analytics_block("http://x.ingest.monitor.azure.com", "dcr-1", "''", ""),
                &[
                    "record.log_analytics.endpoint: must begin with https://: secrets and prompts are sent there",
                    "record.log_analytics.rule: must be dcr- and 32 hexadecimal digits",
                    "record.log_analytics.credential.entra.client_secret.secret: must not be empty",
                ],
            ),
            (
                &log_analytics_block("https://x.ingest.monitor.azure.com", RULE, "s", "")
                    .replace("spool: { path: x }, ", ""),
                &["record.spool.path: is missing; write a directory that only aoai-lb uses"],
            ),
        ]);
    }
}
