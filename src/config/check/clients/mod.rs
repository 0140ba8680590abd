//! Reads and checks `clients`: who may send requests, and with which keys, tokens or certificates.

mod cross_checks;
mod tokens;

use std::collections::{HashMap, HashSet};

pub(super) use self::cross_checks::{
    check_client_authentication, warn_if_client_record_is_unused, warn_if_limits_are_unused,
    warn_if_open_beyond_loopback,
};
pub(super) use self::tokens::read_client_tokens;

use super::limits::{LimitContext, read_client_limits};
use super::partial_backends::PartialBackends;
use super::shared::{RECORDED_CONTENT_WORDS, read_entry_name};
use crate::config::schema::{ClientConfig, ClientsConfig, RequestClass};
use crate::config::yaml::{YamlMapping, YamlNode};
use crate::names::{CertificateSubject, ClientName, DeploymentName};

const CLIENT_KEYS: [&str; 9] =
    ["name", "keys", "entra", "certificates", "deployments", "stateful", "class", "limits", "record"];
const HOW_TO_WRITE_CLIENTS: &str = "write `clients: open` to serve anyone who can connect, or list who may call: \
                   clients: [ { name: team-a, keys: [ { sha256: … } ] } ] with the output of aoai-lb keys new team-a";
/// The SHA-256 of the empty text: what a script computes if the variable with the key is not set.
const SHA256_OF_EMPTY_TEXT: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What must be unique among all clients, with the key path where each value was first used.
#[derive(Default)]
struct TakenValues {
    key_path_by_name: HashMap<String, String>,
    key_path_by_key_hash: HashMap<[u8; 32], String>,
    key_path_by_app_id: HashMap<String, String>,
    key_path_by_app_role: HashMap<String, String>,
    key_path_by_subject: HashMap<String, String>,
}

/// Reads the block. Warns about deployments that no backend serves.
pub(super) fn read_clients(
    root: &YamlMapping<'_, '_>,
    backends: Option<&PartialBackends>,
) -> Option<ClientsConfig> {
    let node = root.require("clients", HOW_TO_WRITE_CLIENTS)?;
    if !node.is_list() {
        let text = node.read_text()?;
        return match text.value.as_str() {
            "open" => Some(ClientsConfig::Anyone),
            _ => node.report_error(format!("must be open or a list of clients{}", text.source_note())),
        };
    }
    let mut taken = TakenValues::default();
    let served_deployments = backends.and_then(PartialBackends::served_deployments);
    let context = LimitContext::new(root, served_deployments.as_ref());
    let empty =
        "must not be an empty list, which would refuse everyone; list who may call, or write `clients: open`";
    node.read_nonempty_list(empty, |node| read_client(node, &mut taken, served_deployments.as_ref(), context))
        .map(ClientsConfig::Listed)
}

fn read_client(
    node: &YamlNode<'_, '_>,
    taken: &mut TakenValues,
    served_deployments: Option<&HashSet<&DeploymentName>>,
    context: LimitContext<'_>,
) -> Option<ClientConfig> {
    let map = node.read_mapping(&CLIENT_KEYS)?;
    let name = map.require("name", "give it a unique name").and_then(|name| {
        let text = read_entry_name(&name)?;
        let client = ClientName::new(&text);
        match taken.key_path_by_name.get(&text) {
            Some(other) => name.report_error(format!("is also the name of {other}; names are unique")),
            None => {
                taken.key_path_by_name.insert(text, node.key_path.clone());
                Some(client)
            }
        }
    });
    let has_token_or_certificate = ["entra", "certificates"].into_iter().any(|key| map.get(key).is_some());
    let key_hashes = if has_token_or_certificate && map.get("keys").is_none() {
        Some(Vec::new())
    } else {
        let how = "write keys: [ { sha256: … } ] with the output of aoai-lb keys new NAME";
        map.require("keys", how).and_then(|node| {
            node.read_nonempty_list("must have at least one key: run aoai-lb keys new NAME", |node| {
                read_key_hash(node, taken)
            })
        })
    };
    let token_claims =
        map.read_or("entra", (Vec::new(), Vec::new()), |node| read_app_ids_and_roles(node, taken));
    let certificate_subjects = map.read_or("certificates", Vec::new(), |node| {
        let empty = "must not be an empty list; remove the key or list subjects such as CN=team-a,O=Contoso";
        node.read_nonempty_list(empty, |node| {
            read_unique_word(node, &mut taken.key_path_by_subject, parse_subject)
        })
    });
    let allowed_deployments =
        map.read_optional("deployments", |node| read_allowed_deployments(node, served_deployments));
    let has_deployment_list = allowed_deployments.as_ref().is_some_and(Option::is_some);
    let allows_stateful_calls = map.read_or("stateful", !has_deployment_list, YamlNode::read_bool);
    let record = map.read_block("record", &["content"]);
    let recorded_content = record
        .and_then(|record| record.read_optional("content", |node| node.read_choice(&RECORDED_CONTENT_WORDS)));
    let class_words = RequestClass::ALL.map(|class| (class.as_str(), class));
    let class = map.read_or("class", RequestClass::default(), |node| node.read_choice(&class_words));
    let limits = map.read_optional("limits", |node| {
        let allowed = allowed_deployments.as_ref().and_then(Option::as_deref);
        read_client_limits(node, "without the key, limits.default applies", allowed, context)
    });
    let (app_ids, app_roles) = token_claims?;
    Some(ClientConfig {
        name: name?,
        key_hashes: key_hashes?,
        token_app_ids: app_ids,
        token_app_roles: app_roles,
        certificate_subjects: certificate_subjects?
            .iter()
            .map(|subject| CertificateSubject::new(subject))
            .collect(),
        allowed_deployments: allowed_deployments?,
        allows_stateful_calls: allows_stateful_calls?,
        recorded_content_override: recorded_content?,
        class: class?,
        limits: limits?,
    })
}

/// Reads `clients[].entra`: the application ids and the app roles in this client's tokens.
fn read_app_ids_and_roles(
    node: &YamlNode<'_, '_>,
    taken: &mut TakenValues,
) -> Option<(Vec<String>, Vec<String>)> {
    let map = node.read_mapping(&["app_ids", "roles"])?;
    let parse_word = |text: &str| {
        let is_valid = text.len() <= 256 && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        is_valid.then(|| text.to_owned()).ok_or("must be without spaces and line breaks")
    };
    // Entra ID writes application ids in lower case.
    let parse_app_id = |text: &str| parse_word(text).map(|id| id.to_ascii_lowercase());
    let app_ids = map.read_or("app_ids", Vec::new(), |node| {
        node.read_each(|node| read_unique_word(node, &mut taken.key_path_by_app_id, parse_app_id))
    });
    let roles = map.read_or("roles", Vec::new(), |node| {
        node.read_each(|node| read_unique_word(node, &mut taken.key_path_by_app_role, parse_word))
    });
    let (app_ids, roles) = (app_ids?, roles?);
    if app_ids.is_empty() && roles.is_empty() {
        return node.report_error("must list app_ids or roles of this client's tokens");
    }
    Some((app_ids, roles))
}

/// Checks that a subject has the form `ATTRIBUTE=value,ATTRIBUTE=value` (RFC 2253).
fn parse_subject(text: &str) -> Result<String, &'static str> {
    // A comma after a backslash belongs to a value and does not separate.
    let mut parts = vec![String::new()];
    let mut is_escaped = false;
    for c in text.chars() {
        match c {
            ',' if !is_escaped => parts.push(String::new()),
            c => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_part = |part: &String| part.split_once('=').is_some_and(|(name, _)| is_name(name));
    parts.iter().all(is_part).then(|| text.to_owned()).ok_or(
        "must be a subject as openssl x509 -noout -subject -nameopt RFC2253,-esc_msb,utf8 prints it, such as CN=team-a,O=Contoso",
    )
}

/// Reads a word that no other client may have.
fn read_unique_word(
    node: &YamlNode<'_, '_>,
    path_by_word: &mut HashMap<String, String>,
    parse: impl FnOnce(&str) -> Result<String, &'static str>,
) -> Option<String> {
    let word = node.read_parsed(parse)?;
    match path_by_word.insert(word.clone(), node.key_path.clone()) {
        Some(other) => node.report_error(format!("is the same as {other}; each belongs to one client")),
        None => Some(word),
    }
}

fn read_key_hash(node: &YamlNode<'_, '_>, taken: &mut TakenValues) -> Option<[u8; 32]> {
    let map = node.read_secret_mapping(&["sha256"])?;
    let node = map.require("sha256", "write the output of aoai-lb keys new NAME")?;
    // No message shows the text: it may be a key that was put here in place of its hash.
    let text = node.read_secret_text()?;
    if node.problems.ignores_secrets() && text.is_expanded() {
        // No key has it.
        return Some(openssl::sha::sha256(node.key_path.as_bytes()));
    }
    if text.value.contains("REPLACE-ME") {
        return node
            .report_error("is still the placeholder: run aoai-lb keys new NAME and put its sha256 here");
    }
    let Some(hash) = parse_sha256(&text.value) else {
        return node.report_error(format!(
            "must be 64 hexadecimal digits, the SHA-256 of the key and not the key itself{}",
            text.source_note()
        ));
    };
    if text.value.eq_ignore_ascii_case(SHA256_OF_EMPTY_TEXT) {
        return node.report_error("is the SHA-256 of an empty key: run aoai-lb keys new NAME");
    }
    if let Some(other) = taken.key_path_by_key_hash.get(&hash) {
        return node.report_error(format!("is the same key as {other}; each key belongs to one client"));
    }
    taken.key_path_by_key_hash.insert(hash, node.key_path.clone());
    Some(hash)
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(hash)
}

fn read_allowed_deployments(
    node: &YamlNode<'_, '_>,
    served_deployments: Option<&HashSet<&DeploymentName>>,
) -> Option<Vec<DeploymentName>> {
    let mut names = HashSet::new();
    let empty = "must not be an empty list; remove the key to allow all deployments";
    node.read_nonempty_list(empty, |node| {
        let text = node.read_nonempty_text()?;
        if text.value == "*" {
            return node.report_error("must be a name; remove the list to allow all deployments");
        }
        let name = match DeploymentName::parse(&text.value) {
            Ok(name) => name,
            Err(problem) => return node.report_error(format!("{problem}{}", text.source_note())),
        };
        if !names.insert(name.clone()) {
            return node.report_error("is in the list twice: names are compared without case");
        }
        if served_deployments.is_some_and(|served| !served.contains(&name)) {
            node.report_warning(format!(
                "no backend serves this deployment; every request for it is answered 404{}",
                text.source_note()
            ));
        }
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::RecordedContent;
    use crate::config::testing::{assert_errors, assert_warnings, parse_valid};

    const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// Writes the hash where the text has `HASH`.
    fn insert_test_hash(yaml: &str) -> String {
        yaml.replace("HASH", HASH)
    }

    fn parse_listed_clients(yaml: &str) -> Vec<ClientConfig> {
        match parse_valid(&insert_test_hash(yaml)).config.clients {
            ClientsConfig::Listed(clients) => clients,
            ClientsConfig::Anyone => Vec::new(),
        }
    }

    #[test]
    fn access_for_anyone_must_be_written_explicitly() {
        assert!(matches!(parse_valid("clients: open").config.clients, ClientsConfig::Anyone));
        assert!(matches!(parse_valid("clients: '${NONE:-open}'").config.clients, ClientsConfig::Anyone));
        let expected = format!("clients: is empty; {HOW_TO_WRITE_CLIENTS}");
        assert_errors(&[
            ("clients:", &[expected.as_str()]),
            ("clients: closed", &["clients: must be open or a list of clients"]),
            ("clients: {}", &["clients: must be a string, not a mapping"]),
            (
                "clients: []",
                &[
                    "clients: must not be an empty list, which would refuse everyone; list who may call, or write `clients: open`",
                ],
            ),
        ]);
    }

    #[test]
    fn clients_with_a_deployment_list_may_not_use_stateful_calls_by_default() {
        for (more, has_list, stateful) in [
            ("", false, true),
            ("stateful: false", false, false),
            ("deployments: [gpt-4o]", true, false),
            ("deployments: [gpt-4o], stateful: true", true, true),
        ] {
            let client = &parse_listed_clients(&format!(
                "clients: [ {{ name: a, keys: [ {{ sha256: HASH }} ], {more} }} ]"
            ))[0];
            assert_eq!(
                (client.allowed_deployments.is_some(), client.allows_stateful_calls),
                (has_list, stateful),
                "{more}"
            );
            assert_eq!(
                (client.key_hashes.as_slice(), client.recorded_content_override),
                ([[0xaa; 32]].as_slice(), None)
            );
        }
        let client = &parse_listed_clients(
            "clients: [ { name: a, keys: [ { sha256: HASH } ], record: { content: prompt } } ]",
        )[0];
        assert_eq!(client.recorded_content_override, Some(RecordedContent::PromptOnly));
    }

    #[test]
    fn invalid_client_settings_are_reported() {
        let cases: [(&str, &[&str]); 6] = [
            (
                "clients: [ { name: a, keys: [ { sha256: 'REPLACE-ME: output of aoai-lb keys new' } ] } ]",
                &[
                    "clients[0].keys[0].sha256: is still the placeholder: run aoai-lb keys new NAME and put its sha256 here",
                ],
            ),
            (
                "clients: [ { name: a, keys: [ { sha256: hunter2 } ] }, { name: b, keys: [ { sha256: 12 } ] }, { name: c, keys: [ { sha256: '${KEY}' } ] } ]",
                &[
                    "clients[0].keys[0].sha256: must be 64 hexadecimal digits, the SHA-256 of the key and not the key itself",
                    "clients[1].keys[0].sha256: must be 64 hexadecimal digits, the SHA-256 of the key and not the key itself",
                    "clients[2].keys[0].sha256: must be 64 hexadecimal digits, the SHA-256 of the key and not the key itself (the value is from ${KEY})",
                ],
            ),
            (
                "clients: [ { name: a, keys: [ { sha256: HASH } ] }, { name: a, keys: [ { sha256: HASH } ] } ]",
                &[
                    "clients[1].name: is also the name of clients[0]; names are unique",
                    "clients[1].keys[0].sha256: is the same key as clients[0].keys[0].sha256; each key belongs to one client",
                ],
            ),
            (
                "clients: [ { keys: [] }, { name: b, key: [], stateful: maybe, record: { content: all } } ]",
                &[
                    "clients[0].name: is missing; give it a unique name",
                    "clients[0].keys: must have at least one key: run aoai-lb keys new NAME",
                    "clients[1].key: unknown key; did you mean `keys`?",
                    "clients[1].keys: is missing; write keys: [ { sha256: … } ] with the output of aoai-lb keys new NAME",
                    "clients[1].stateful: must be true or false",
                    "clients[1].record.content: must be full, prompt or none",
                ],
            ),
            (
                "clients: [ { name: a, keys: [ { sha256: HASH } ], deployments: [] }, { name: b, keys: [ hunter2 ], deployments: ['*', a b, x, X] } ]",
                &[
                    "clients[0].deployments: must not be an empty list; remove the key to allow all deployments",
                    "clients[1].keys[0]: must be a mapping with sha256, not a string",
                    "clients[1].deployments[0]: must be a name; remove the list to allow all deployments",
                    "clients[1].deployments[1]: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -",
                    "clients[1].deployments[3]: is in the list twice: names are compared without case",
                ],
            ),
            (
                "clients: [ { name: a, keys: [ { sha256: NOTHING } ] } ]",
                &["clients[0].keys[0].sha256: is the SHA-256 of an empty key: run aoai-lb keys new NAME"],
            ),
        ];
        for (yaml, expected) in cases {
            assert_errors(&[(&insert_test_hash(&yaml.replace("NOTHING", SHA256_OF_EMPTY_TEXT)), expected)]);
        }
    }

    #[test]
    fn clients_can_authenticate_with_tokens_and_certificates() {
        let directory = tempfile::tempdir().unwrap();
        crate::config::testing::write_test_certificate(directory.path(), "a", 90, &["a.test"]);
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (pem, key) = (path("a.pem"), path("a.key"));
        let listeners = format!(
            "listeners: [ {{ address: '127.0.0.1:1', tls: {{ certificate: '{pem}', private_key: '{key}', client_ca: '{pem}' }} }} ]"
        );
        let entra = "entra: { tenant: 11111111-2222-3333-4444-55555555555A, audiences: [api://x] }";
        let yaml = |clients: &str| format!("{listeners}\n{entra}\nclients: [ {clients} ]");
        let subjects = r"certificates: ['CN=team-b,O=Contoso\, Ltd', 'CN=#1+x,OU=a b']";
        let good_ones = format!(
            "{{ name: a, entra: {{ app_ids: [x], roles: [Y.Z] }} }}, {{ name: b, {subjects} }}, {{ name: c, keys: [ {{ sha256: {HASH} }} ], entra: {{ roles: [R] }} }}"
        );
        let config = parse_valid(&yaml(&good_ones)).config;
        let ClientsConfig::Listed(clients) = &config.clients else { panic!("open") };
        assert_eq!(
            (&clients[0].token_app_ids[..], &clients[0].token_app_roles[..]),
            (&["x".to_owned()][..], &["Y.Z".to_owned()][..])
        );
        assert_eq!(clients[1].certificate_subjects[0].as_str(), r"CN=team-b,O=Contoso\, Ltd");
        let tokens = config.client_tokens.unwrap();
        let tenant = "11111111-2222-3333-4444-55555555555a";
        assert_eq!(tokens.tenant_id, tenant);
        let issuers = [
            format!("https://login.microsoftonline.com/{tenant}/v2.0"),
            format!("https://sts.windows.net/{tenant}/"),
        ];
        assert_eq!((tokens.issuers.as_slice(), tokens.leeway), (&issuers[..], Duration::from_secs(60)));
        let must = "must be a subject as openssl x509 -noout -subject -nameopt RFC2253,-esc_msb,utf8 prints it, such as CN=team-a,O=Contoso";
        for (clients, expected) in [
            ("{ name: a, entra: {} }", "clients[0].entra: must list app_ids or roles of this client's tokens".to_owned()),
            ("{ name: a, certificates: ['CN=a, O=b'] }", format!("clients[0].certificates[0]: {must}")),
            ("{ name: a, certificates: [team-a] }", format!("clients[0].certificates[0]: {must}")),
            (
                "{ name: a, entra: { roles: [R] } }, { name: b, entra: { roles: [R] } }",
                "clients[1].entra.roles[0]: is the same as clients[0].entra.roles[0]; each belongs to one client".to_owned(),
            ),
        ] {
            assert_errors(&[(&yaml(clients), &[&expected])]);
        }
        assert_errors(&[
            (
                "clients: [ { name: a, entra: { roles: [R] } }, { name: b, certificates: ['CN=b'] } ]",
                &[
                    "clients[0].entra: needs the top-level block `entra`, which says which tokens are trusted",
                    "clients[1].certificates: needs a listener with tls.client_ca, which requests certificates from clients",
                ],
            ),
            (
                "entra: { tenant: contoso.com, audiences: [], leeway: 1h }",
                &[
                    "entra.tenant: must be the directory's id, 32 hexadecimal digits in five groups",
                    "entra.audiences: must not be an empty list, or tokens for anyone would be accepted",
                    "entra.leeway: must be at most 5m",
                ],
            ),
        ]);
    }

    #[test]
    fn settings_without_effect_are_warnings() {
        let backends = "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: k }, deployments: { gpt-4o: x } } ]\n";
        let unserved = insert_test_hash(
            "clients: [ { name: a, keys: [ { sha256: HASH } ], deployments: [GPT-4O, gpt-5] } ]",
        );
        assert_warnings(&[
            (
                &format!("{backends}{unserved}"),
                &[
                    "clients[0].deployments[1]: no backend serves this deployment; every request for it is answered 404",
                ],
            ),
            (&unserved, &[]),
            (
                "entra: { tenant: 11111111-2222-3333-4444-555555555555, audiences: [a] }",
                &["entra: has no effect: clients is open, so tokens are not checked"],
            ),
            (
                &insert_test_hash(
                    "entra: { tenant: 11111111-2222-3333-4444-555555555555, audiences: [a] }\nclients: [ { name: a, keys: [ { sha256: HASH } ] } ]",
                ),
                &["entra: has no effect: no client lists app_ids or roles under its own entra"],
            ),
            (
                &insert_test_hash(
                    "clients: [ { name: a, keys: [ { sha256: HASH } ], record: { content: none } } ]",
                ),
                &["clients[0].record: has no effect: there is no record block, so nothing is recorded"],
            ),
            (
                "clients: open\nlisteners: [ { address: '10.0.0.1:80' } ]",
                &[
                    "listeners[0].address: is not a loopback address and has no tls: keys and prompts travel unencrypted between clients and aoai-lb",
                    "clients: is open and a listener is not on loopback: anyone who can connect uses your keys",
                ],
            ),
        ]);
    }
}
