//! Statements that are neither configuration nor part of a shape: those that aoai-lb has no need of, and what to do in
//! place of the others.

use crate::import_apim::report::Outcome;

/// What becomes of a statement by its name alone, and what to do instead.
pub(super) fn advice(name: &str) -> (Outcome, &'static str) {
    let left = |text| (Outcome::Left, text);
    match name {
        "base" | "forward-request" => (Outcome::Implied, ""),
        "azure-openai-emit-token-metric" | "llm-emit-token-metric" | "emit-metric" => (Outcome::Implied, ""),
        "log-to-eventhub" | "trace" => (Outcome::Implied, ""),
        "cache-lookup-value" | "cache-store-value" | "cache-remove-value" => {
            left("aoai-lb has no cache for values of policies")
        }
        "set-variable" => {
            left("aoai-lb has no variables of a request; where it is used is listed on its own")
        }
        "choose" => left("aoai-lb has no conditions; see the statements in it"),
        "cache-lookup" | "cache-store" => left("aoai-lb caches no responses"),
        name if name.contains("semantic-cache") => left(
            "aoai-lb answers no request from a cache; Azure caches prompts itself, and round_robin or headroom decide where",
        ),
        name if name.contains("content-safety") => left(
            "content is filtered by the deployments at Azure; assign a content filter to each of them there",
        ),
        "cors" => left(
            "aoai-lb serves no browsers: a key does not belong there; put the site's own server in between",
        ),
        "ip-filter" => left(
            "restrict addresses by the network (network security group, firewall) or the address of the listener",
        ),
        "check-header" => {
            left("clients are known by key, token or certificate; other headers are not checked")
        }
        "validate-client-certificate" => left(
            "write listeners[].tls.client_ca, and the subjects under clients[].certificates (docs/credentials.md)",
        ),
        "authentication-certificate" => {
            left("write tls: { certificate: FILE, private_key: FILE } of the backend")
        }
        "authentication-basic" => left("Azure OpenAI has no user names; write credential of the backend"),
        "return-response" | "set-status" | "mock-response" => {
            left("aoai-lb answers refusals itself, in the form of Azure's (docs/responses.md)")
        }
        "set-body" | "find-and-replace" | "json-to-xml" | "xml-to-json" | "xsl-transform" => left(
            "bodies pass unchanged; only the name of the deployment is replaced (backends[].deployments)",
        ),
        "rewrite-uri" => {
            left("paths pass unchanged; of a deployment with another name, write backends[].deployments")
        }
        "set-method" => left("methods pass unchanged"),
        "send-request" | "send-one-way-request" => left(
            "aoai-lb calls nothing but backends; of usage and prompts it keeps records (docs/records.md)",
        ),
        "wait" => left("aoai-lb calls nothing but backends"),
        "limit-concurrency" => {
            left("limit requests at the same time: in_flight of limits.default or of a client")
        }
        "include-fragment" => left("the fragment was not given; give its file too"),
        "validate-content" | "validate-parameters" | "validate-headers" | "validate-status-code" => {
            left("Azure checks the content; aoai-lb checks what it needs for routing")
        }
        "proxy" => left("aoai-lb uses no proxy; route its traffic in the network"),
        "redirect-content-urls" | "cross-domain" | "jsonp" => left("aoai-lb serves no browsers"),
        "set-graphql-resolver" | "publish-event" | "invoke-dapr-binding" => {
            left("aoai-lb serves Azure OpenAI only")
        }
        _ => left("no counterpart"),
    }
}
