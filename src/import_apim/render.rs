//! Writes the plan as the text of a configuration.

use std::collections::{BTreeSet, HashSet};

use super::plan::{Backend, Client, ClientLimits, Credential, Limits, Plan, Recorded, Value};
use super::variables::Variables;
use super::yaml::YamlWriter;

/// The text of the configuration. `comments` are about what has no counterpart.
pub(super) fn render(plan: &Plan, variables: &Variables, comments: &[String], files: &[String]) -> String {
    let mut yaml = YamlWriter::default();
    yaml.comment(0, &format!("Written by aoai-lb import-apim from {}.", files.join(", ")));
    yaml.comment(
        0,
        "Check it with: aoai-lb check -c FILE; compare it with: aoai-lb explain -c FILE METHOD PATH",
    );
    if !variables.list.is_empty() {
        yaml.line(0, "#");
        yaml.comment(
            0,
            "Variables, to be set in the environment or in the file `environment` beside this one. Secrets can also be read \
             from files, with ${file:/path}, or from Key Vault.",
        );
        for variable in &variables.list {
            yaml.comment(
                0,
                &format!("{}: {}; {}", variable.name, variable.kind.description(), variable.purpose),
            );
        }
    }
    yaml.empty_line();
    yaml.line(0, "listeners:");
    yaml.line(2, "- address: 127.0.0.1:8080");
    yaml.empty_line();
    yaml.line(0, "backends:");
    let is_identity = |backend: &Backend| matches!(backend.credential, Credential::ManagedIdentity { .. });
    if plan.backends.iter().any(is_identity) {
        yaml.comment(
            2,
            "Managed identities are those of the machine on which aoai-lb runs. Assign them there, with the same role on the \
             resource.",
        );
    }
    for backend in &plan.backends {
        render_backend(&mut yaml, backend, plan.api_version_override.as_ref());
    }
    yaml.empty_line();
    yaml.line(0, "clients:");
    for client in &plan.clients {
        render_client(&mut yaml, client);
    }
    render_tokens(&mut yaml, plan);
    render_limits(&mut yaml, plan);
    render_requests(&mut yaml, plan);
    render_retry(&mut yaml, plan);
    render_breaker(&mut yaml, plan);
    if let Some(seconds) = plan.first_byte {
        yaml.empty_line();
        yaml.line(0, "timeouts:");
        yaml.line(2, &format!("first_byte: {seconds}s"));
    }
    render_record(&mut yaml, plan);
    yaml.empty_line();
    yaml.line(0, "admin:");
    yaml.line(2, "address: 127.0.0.1:9901");
    if !comments.is_empty() {
        yaml.empty_line();
        yaml.comment(0, "Without a counterpart, and what to do instead:");
        for comment in comments {
            yaml.comment(0, comment);
        }
    }
    yaml.into_text()
}

fn render_backend(yaml: &mut YamlWriter, backend: &Backend, api_version: Option<&Value>) {
    yaml.comments(2, &backend.comments);
    yaml.entry(2, "- name", &Value::literal(&backend.name));
    if !backend.enabled {
        yaml.line(4, "enabled: false");
    }
    yaml.entry(4, "endpoint", &backend.endpoint);
    if backend.tier != 1 {
        yaml.line(4, &format!("tier: {}", backend.tier));
    }
    if backend.weight != 1 {
        yaml.line(4, &format!("weight: {}", backend.weight));
    }
    match &backend.credential {
        Credential::ApiKey(key) => {
            yaml.line(4, &format!("credential: {{ api_key: {} }}", YamlWriter::quoted(key)));
        }
        Credential::ManagedIdentity { client_id, scope } => {
            let client_id = client_id
                .as_ref()
                .map_or_else(|| "{}".to_owned(), |id| format!("{{ client_id: {} }}", YamlWriter::quoted(id)));
            let scope = scope.as_ref().map_or_else(String::new, |scope| {
                format!(", scope: {}", YamlWriter::quoted(&Value::literal(scope)))
            });
            yaml.line(4, &format!("credential: {{ entra: {{ managed_identity: {client_id}{scope} }} }}"));
        }
    }
    if !backend.deployments.is_empty() {
        yaml.line(4, "deployments:");
        for name in without_case_duplicates(&backend.deployments) {
            let name = Value::literal(name);
            yaml.entry(6, &YamlWriter::quoted(&name), &name);
        }
    }
    if let Some(version) = api_version {
        yaml.entry(4, "api_version", version);
    }
}

fn render_client(yaml: &mut YamlWriter, client: &Client) {
    yaml.comments(2, &client.comments);
    yaml.entry(2, "- name", &Value::literal(&client.name));
    if let Some(hash) = &client.key_hash {
        yaml.line(4, "keys:");
        yaml.entry(6, "- sha256", hash);
    }
    if !client.app_ids.is_empty() || !client.roles.is_empty() {
        yaml.line(4, "entra:");
        if !client.app_ids.is_empty() {
            yaml.list(6, "app_ids", &client.app_ids);
        }
        if !client.roles.is_empty() {
            yaml.list(6, "roles", &client.roles);
        }
    }
    if !client.deployments.is_empty() {
        yaml.comment(4, "With this list, files, batches and stored responses are refused, unless there is stateful: true.");
        let names: Vec<_> =
            without_case_duplicates(&client.deployments).into_iter().map(Value::literal).collect();
        yaml.list(4, "deployments", &names);
    }
    if !client.limits.is_empty() {
        yaml.line(4, "limits:");
        render_client_limits(yaml, 6, &client.limits);
    }
}

/// Names that differ in more than case.
fn without_case_duplicates(names: &BTreeSet<String>) -> Vec<&str> {
    let mut seen = HashSet::new();
    names.iter().map(String::as_str).filter(|name| seen.insert(name.to_ascii_lowercase())).collect()
}

fn render_client_limits(yaml: &mut YamlWriter, indent: usize, limits: &ClientLimits) {
    render_limit_set(yaml, indent, &limits.all);
    if !limits.of_deployments.is_empty() {
        yaml.line(indent, "deployments:");
    }
    for (name, limits) in limits.of_deployments.values() {
        yaml.line(indent + 2, &format!("{}:", YamlWriter::quoted(&Value::literal(name))));
        render_limit_set(yaml, indent + 4, limits);
    }
}

fn render_limit_set(yaml: &mut YamlWriter, indent: usize, limits: &Limits) {
    for (key, value) in limits {
        match value.as_literal() {
            Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => {
                yaml.line(indent, &format!("{key}: {number}"));
            }
            _ => yaml.entry(indent, key, value),
        }
    }
}

fn render_tokens(yaml: &mut YamlWriter, plan: &Plan) {
    let Some(tokens) = &plan.tokens else { return };
    yaml.empty_line();
    yaml.comments(0, &tokens.comments);
    yaml.line(0, "entra:");
    yaml.entry(2, "tenant", &tokens.tenant);
    yaml.list(2, "audiences", &tokens.audiences);
    if !tokens.issuers.is_empty() {
        yaml.list(2, "issuers", &tokens.issuers);
    }
    if let Some(authority) = &tokens.authority {
        yaml.entry(2, "authority", &Value::literal(authority));
    }
}

fn render_limits(yaml: &mut YamlWriter, plan: &Plan) {
    if plan.default_limits.is_empty() {
        if !plan.limit_comments.is_empty() {
            yaml.empty_line();
            yaml.comments(0, &plan.limit_comments);
        }
        return;
    }
    yaml.empty_line();
    yaml.comment(0, "Of each client that has no limits of its own.");
    yaml.comments(0, &plan.limit_comments);
    yaml.line(0, "limits:");
    yaml.line(2, "default:");
    render_client_limits(yaml, 4, &plan.default_limits);
}

fn render_requests(yaml: &mut YamlWriter, plan: &Plan) {
    if plan.api_version.is_none() && plan.set_headers.is_empty() {
        return;
    }
    yaml.empty_line();
    yaml.comments(0, &plan.request_comments);
    yaml.line(0, "requests:");
    if let Some(version) = &plan.api_version {
        yaml.entry(2, "api_version", version);
    }
    if !plan.set_headers.is_empty() {
        yaml.line(2, "set_headers:");
        for (name, value) in &plan.set_headers {
            yaml.entry(4, &YamlWriter::quoted(&Value::literal(name)), value);
        }
    }
}

fn render_retry(yaml: &mut YamlWriter, plan: &Plan) {
    let Some(retry) = &plan.retry else { return };
    yaml.empty_line();
    yaml.comments(0, &retry.comments);
    if retry.attempts.is_none() && retry.statuses.is_empty() {
        return;
    }
    yaml.line(0, "retry:");
    if let Some(attempts) = retry.attempts {
        yaml.line(2, &format!("attempts: {attempts}"));
    }
    if !retry.statuses.is_empty() {
        let show = |(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        let statuses: Vec<_> = retry.statuses.iter().map(show).collect();
        yaml.line(2, &format!("statuses: [{}]", statuses.join(", ")));
    }
}

fn render_breaker(yaml: &mut YamlWriter, plan: &Plan) {
    let Some(breaker) = &plan.breaker else { return };
    yaml.empty_line();
    yaml.comments(0, &breaker.comments);
    if let Some(rule) = breaker.rule {
        yaml.comment(0, "As in API Management. The default opens only if half of the attempts fail: failures: 5, ratio: 50%.");
        yaml.line(0, "breaker:");
        yaml.line(2, &format!("failures: {}", rule.failures));
        yaml.line(2, &format!("ratio: {}%", rule.ratio));
        yaml.line(2, &format!("window: {}s", rule.window));
        yaml.line(2, &format!("open: {}s", rule.open));
        // The default, unless it were less.
        yaml.line(2, &format!("maximum: {}s", rule.open.max(300)));
    }
    if let Some(seconds) = breaker.cooldown {
        yaml.line(0, "cooldown:");
        yaml.line(2, &format!("default: {seconds}s"));
        yaml.line(2, &format!("maximum: {}s", seconds.max(60)));
    }
}

fn render_record(yaml: &mut YamlWriter, plan: &Plan) {
    let Some(recorded) = plan.recorded else { return };
    yaml.empty_line();
    match recorded {
        Recorded::Tokens => {
            yaml.comment(0, "Tokens by client and deployment are also metrics of the admin API.");
            yaml.line(0, "record:");
            yaml.line(2, "content: none");
        }
        Recorded::Content => {
            yaml.comment(0, "Prompts and answers are recorded; content: none records the token counts only.");
            yaml.line(0, "record:");
            yaml.line(2, "content: full");
        }
    }
    yaml.line(2, "jsonl: { path: \"${LOGS_DIRECTORY:-/var/log/aoai-lb}/exchanges.jsonl\" }");
}
