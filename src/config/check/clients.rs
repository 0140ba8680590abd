//! `clients`: who may call, recognised by the hash of a key.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::backends::Backends;
use super::credentials::{AUTHORITY, service};
use super::{CONTENT, entry_name};
use crate::config::node::{Inner, Map};
use crate::config::{Client, ClientTokens, Clients, Endpoint, Listener};
use crate::names::{ClientName, Deployment, Subject};

const KEYS: [&str; 7] = ["name", "keys", "entra", "certificates", "deployments", "stateful", "record"];
const HOW: &str = "write `clients: open` to serve anyone who can connect, or list who may call: \
                   clients: [ { name: team-a, keys: [ { sha256: … } ] } ] with the output of aoai-lb keys new team-a";
/// SHA-256 of nothing: what a script makes of a variable that is not set.
const HASH_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// How far the clocks of Entra ID and of this machine may differ.
const LEEWAY: Duration = Duration::from_secs(60);
const LEEWAY_MAX: Duration = Duration::from_secs(300);

/// What has to be unique over all clients, with the place where it was first given.
#[derive(Default)]
struct Seen {
    names: HashMap<String, String>,
    keys: HashMap<[u8; 32], String>,
    app_ids: HashMap<String, String>,
    roles: HashMap<String, String>,
    certificates: HashMap<String, String>,
}

/// Reads the clients; what they ask for is compared with what `backends` serve, where known.
pub(super) fn read(root: &Map<'_, '_>, backends: Option<&Backends>) -> Option<Clients> {
    let node = root.need("clients", HOW)?;
    if !node.is_list() {
        let text = node.text()?;
        return match text.value.as_str() {
            "open" => Some(Clients::Open),
            _ => node.error(format!("must be open or a list of clients, not {}", text.shown())),
        };
    }
    let mut seen = Seen::default();
    let served = backends.and_then(Backends::served);
    let empty =
        "must not be an empty list, which would refuse everyone; list who may call, or write `clients: open`";
    node.some_of_each(empty, |node| client(node, &mut seen, served.as_ref())).map(Clients::Listed)
}

/// Warns of clients that say what to record where nothing is recorded.
pub(super) fn warn_of_content_without_record(root: &Map<'_, '_>, clients: &Clients) {
    let Clients::Listed(clients) = clients else { return };
    for i in (0..clients.len()).filter(|i| clients[*i].content.is_some()) {
        root.report.warn(
            &format!("clients[{i}].record"),
            "has no effect: there is no record block, so nothing is recorded",
        );
    }
}

/// Warns of a door that anyone on the network may walk through.
pub(super) fn warn_of_open_door(root: &Map<'_, '_>, clients: &Clients, listeners: &[Listener]) {
    let is_public = listeners.iter().any(|listener| !listener.address.ip().to_canonical().is_loopback());
    if is_public && matches!(clients, Clients::Open) {
        root.report
            .warn("clients", "is open and a listener is not on loopback: whoever can connect uses your keys");
    }
}

fn client(node: &Inner<'_, '_>, seen: &mut Seen, served: Option<&HashSet<&Deployment>>) -> Option<Client> {
    let map = node.map(&KEYS)?;
    let name = map.need("name", "give it a unique name").and_then(|name| {
        let text = entry_name(&name)?;
        let client = ClientName::new(&text);
        match seen.names.get(&text) {
            Some(other) => name.error(format!("is also the name of {other}; names are unique")),
            None => {
                seen.names.insert(text, node.path.clone());
                Some(client)
            }
        }
    });
    let has_other = ["entra", "certificates"].into_iter().any(|key| map.find(key).is_some());
    let keys = if has_other && map.find("keys").is_none() {
        Some(Vec::new())
    } else {
        let how = "write keys: [ { sha256: … } ] with the output of aoai-lb keys new NAME";
        map.need("keys", how).and_then(|node| {
            node.some_of_each("must have at least one key: run aoai-lb keys new NAME", |node| key(node, seen))
        })
    };
    let entra = map.or("entra", (Vec::new(), Vec::new()), |node| entra(node, seen));
    let certificates = map.or("certificates", Vec::new(), |node| {
        let empty = "must not be an empty list; remove the key or list subjects such as CN=team-a,O=Contoso";
        node.some_of_each(empty, |node| unique(node, &mut seen.certificates, subject))
    });
    let deployments = map.maybe("deployments", |node| deployments(node, served));
    let has_list = deployments.as_ref().is_some_and(Option::is_some);
    let stateful = map.or("stateful", !has_list, Inner::flag);
    let record = map.block("record", &["content"]);
    let content = record.and_then(|record| record.maybe("content", |node| node.word(&CONTENT)));
    let (app_ids, roles) = entra?;
    Some(Client {
        name: name?,
        keys: keys?,
        app_ids,
        roles,
        certificates: certificates?.iter().map(|subject| Subject::new(subject)).collect(),
        deployments: deployments?,
        stateful: stateful?,
        content: content?,
    })
}

/// What tokens of this client say: the application's id, or a role.
fn entra(node: &Inner<'_, '_>, seen: &mut Seen) -> Option<(Vec<String>, Vec<String>)> {
    let map = node.map(&["app_ids", "roles"])?;
    let word = |text: &str| {
        let good = text.len() <= 256 && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        good.then(|| text.to_owned()).ok_or("must be without blanks and line breaks")
    };
    // Tokens have ids in lower case.
    let id = |text: &str| word(text).map(|id| id.to_ascii_lowercase());
    let app_ids = map.or("app_ids", Vec::new(), |node| node.each(|node| unique(node, &mut seen.app_ids, id)));
    let roles = map.or("roles", Vec::new(), |node| node.each(|node| unique(node, &mut seen.roles, word)));
    let (app_ids, roles) = (app_ids?, roles?);
    if app_ids.is_empty() && roles.is_empty() {
        return node.error("must list app_ids or roles of the tokens that this client shows");
    }
    Some((app_ids, roles))
}

/// `ATTRIBUTE=value` parts, joined by commas.
fn subject(text: &str) -> Result<String, &'static str> {
    // A comma that belongs to a value has a backslash before it.
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match c {
            ',' if !escaped => parts.push(String::new()),
            c => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
        escaped = c == '\\' && !escaped;
    }
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_part = |part: &String| part.split_once('=').is_some_and(|(name, _)| is_name(name));
    parts.iter().all(is_part).then(|| text.to_owned()).ok_or(
        "must be a subject as openssl x509 -noout -subject -nameopt RFC2253,-esc_msb,utf8 prints it, such as CN=team-a,O=Contoso",
    )
}

/// A word that no other client has.
fn unique(
    node: &Inner<'_, '_>,
    seen: &mut HashMap<String, String>,
    read: impl FnOnce(&str) -> Result<String, &'static str>,
) -> Option<String> {
    let word = node.parsed(read)?;
    match seen.insert(word.clone(), node.path.clone()) {
        Some(other) => node.error(format!("is the same as {other}; each belongs to one client")),
        None => Some(word),
    }
}

/// `entra` of the file's top: whose tokens clients may show.
pub(super) fn tokens(node: &Inner<'_, '_>) -> Option<ClientTokens> {
    let map = node.map(&["tenant", "audiences", "issuers", "authority", "leeway"])?;
    let tenant = map.need("tenant", "write the id of the directory").and_then(|node| {
        node.parsed(|text| {
            let is_id = text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
            is_id
                .then(|| text.to_ascii_lowercase())
                .ok_or("must be the directory's id, 32 hexadecimal digits in five groups")
        })
    });
    let text = |node: &Inner<'_, '_>| Some(node.filled()?.value);
    let how = "write for whom the tokens are: [ api://ID, ID ] of the app registration";
    let audiences = map
        .need("audiences", how)
        .and_then(|node| node.some_of_each("must not be an empty list: any token would do", text));
    let authority = match map.find("authority") {
        Some(node) => service(&node),
        None => Endpoint::parse(AUTHORITY).ok(),
    };
    let leeway = map.or("leeway", LEEWAY, |node| {
        let leeway = node.duration()?;
        if leeway > LEEWAY_MAX { node.error("must be at most 5m") } else { Some(leeway) }
    });
    let (tenant, authority) = (tenant?, authority?);
    // Tokens of version 1 and of version 2, whichever the app registration asks for.
    let usual = || {
        let v2 = format!("https://{}/{tenant}/v2.0", authority.authority());
        vec![v2, format!("https://sts.windows.net/{tenant}/")]
    };
    let issuers = map.or("issuers", usual(), |node| node.some_of_each("must not be an empty list", text));
    Some(ClientTokens { audiences: audiences?, issuers: issuers?, leeway: leeway?, authority, tenant })
}

/// Complains about clients that nobody can be.
pub(super) fn check_ways_in(root: &Map<'_, '_>, clients: &Clients, tokens: bool, listeners: &[Listener]) {
    let Clients::Listed(clients) = clients else {
        if tokens {
            root.report.warn("entra", "has no effect: clients is open, so nobody is asked who it is");
        }
        return;
    };
    if tokens && clients.iter().all(|client| client.app_ids.is_empty() && client.roles.is_empty()) {
        root.report.warn("entra", "has no effect: no client lists app_ids or roles under its own entra");
    }
    let asks = |listener: &Listener| listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let asks = listeners.iter().any(asks);
    for (i, client) in clients.iter().enumerate() {
        let shows_tokens = !client.app_ids.is_empty() || !client.roles.is_empty();
        if shows_tokens && !tokens {
            root.report.error::<()>(
                &format!("clients[{i}].entra"),
                "needs the block `entra` of the file, which says whose tokens are believed",
            );
        }
        if !client.certificates.is_empty() && !asks {
            root.report.error::<()>(
                &format!("clients[{i}].certificates"),
                "needs a listener with tls.client_ca, which asks clients for certificates",
            );
        }
    }
}

fn key(node: &Inner<'_, '_>, seen: &mut Seen) -> Option<[u8; 32]> {
    let map = node.secret_map(&["sha256"])?;
    let node = map.need("sha256", "write the output of aoai-lb keys new NAME")?;
    // Never shown: a key put here in place of its hash is still a key.
    let text = node.filled()?;
    if text.value.contains("REPLACE-ME") {
        return node.error("is still the placeholder: run aoai-lb keys new NAME and put its sha256 here");
    }
    let Some(hash) = sha256(&text.value) else {
        return node.error(format!(
            "must be 64 hexadecimal digits, the SHA-256 of the key and not the key itself{}",
            if text.is_expanded() { format!("; see {}", text.shown()) } else { String::new() }
        ));
    };
    if text.value.eq_ignore_ascii_case(HASH_OF_NOTHING) {
        return node.error("is the SHA-256 of an empty key: run aoai-lb keys new NAME");
    }
    if let Some(other) = seen.keys.get(&hash) {
        return node.error(format!("is the same key as {other}; each key belongs to one client"));
    }
    seen.keys.insert(hash, node.path.clone());
    Some(hash)
}

fn sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(hash)
}

fn deployments(node: &Inner<'_, '_>, served: Option<&HashSet<&Deployment>>) -> Option<Vec<Deployment>> {
    let mut seen = HashSet::new();
    let empty = "must not be an empty list; remove the key to allow all deployments";
    node.some_of_each(empty, |node| {
        let text = node.filled()?;
        if text.value == "*" {
            return node.error("must be a name; remove the list to allow all deployments");
        }
        let name = match Deployment::parse(&text.value) {
            Ok(name) => name,
            Err(problem) => return node.error(format!("{problem}, not {}", text.shown())),
        };
        if !seen.insert(name.clone()) {
            return node.error("is in the list twice: names compare without case");
        }
        if served.is_some_and(|served| !served.contains(&name)) {
            node.warn(format!("no backend serves {}; every request for it is answered 404", text.shown()));
        }
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Content;
    use crate::config::tests::{assert_problems, assert_warnings, good};

    const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// Writes the hash where the text has `HASH`.
    fn with_hash(yaml: &str) -> String {
        yaml.replace("HASH", HASH)
    }

    fn listed(yaml: &str) -> Vec<Client> {
        match good(&with_hash(yaml)).config.clients {
            Clients::Listed(clients) => clients,
            Clients::Open => Vec::new(),
        }
    }

    #[test]
    fn open_has_to_be_said() {
        assert!(matches!(good("clients: open").config.clients, Clients::Open));
        assert!(matches!(good("clients: '${NONE:-open}'").config.clients, Clients::Open));
        let expected = format!("clients: is empty; {HOW}");
        assert_problems(&[
            ("clients:", &[expected.as_str()]),
            ("clients: closed", &["clients: must be open or a list of clients, not \"closed\""]),
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
    fn a_list_of_deployments_takes_stateful_calls_away() {
        for (more, has_list, stateful) in [
            ("", false, true),
            ("stateful: false", false, false),
            ("deployments: [gpt-4o]", true, false),
            ("deployments: [gpt-4o], stateful: true", true, true),
        ] {
            let client =
                &listed(&format!("clients: [ {{ name: a, keys: [ {{ sha256: HASH }} ], {more} }} ]"))[0];
            assert_eq!((client.deployments.is_some(), client.stateful), (has_list, stateful), "{more}");
            assert_eq!((client.keys.as_slice(), client.content), ([[0xaa; 32]].as_slice(), None));
        }
        let client =
            &listed("clients: [ { name: a, keys: [ { sha256: HASH } ], record: { content: prompt } } ]")[0];
        assert_eq!(client.content, Some(Content::Prompt));
    }

    #[test]
    fn problems() {
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
                    "clients[1].keys[0].sha256: must be a string, not a number; write it in quotes",
                    "clients[2].keys[0].sha256: must be 64 hexadecimal digits, the SHA-256 of the key and not the key itself; see the value from ${KEY}",
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
                    "clients[1].stateful: must be true or false, not \"maybe\"",
                    "clients[1].record.content: must be full, prompt or none, not \"all\"",
                ],
            ),
            (
                "clients: [ { name: a, keys: [ { sha256: HASH } ], deployments: [] }, { name: b, keys: [ hunter2 ], deployments: ['*', a b, x, X] } ]",
                &[
                    "clients[0].deployments: must not be an empty list; remove the key to allow all deployments",
                    "clients[1].keys[0]: must be a mapping with sha256, not a string",
                    "clients[1].deployments[0]: must be a name; remove the list to allow all deployments",
                    "clients[1].deployments[1]: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -, not \"a b\"",
                    "clients[1].deployments[3]: is in the list twice: names compare without case",
                ],
            ),
            (
                "clients: [ { name: a, keys: [ { sha256: NOTHING } ] } ]",
                &["clients[0].keys[0].sha256: is the SHA-256 of an empty key: run aoai-lb keys new NAME"],
            ),
        ];
        for (yaml, expected) in cases {
            assert_problems(&[(&with_hash(&yaml.replace("NOTHING", HASH_OF_NOTHING)), expected)]);
        }
    }

    #[test]
    fn tokens_and_certificates_are_ways_in() {
        let directory = tempfile::tempdir().unwrap();
        crate::config::tests::pair(directory.path(), "a", 90, &["a.test"]);
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
        let config = good(&yaml(&good_ones)).config;
        let Clients::Listed(clients) = &config.clients else { panic!("open") };
        assert_eq!(
            (&clients[0].app_ids[..], &clients[0].roles[..]),
            (&["x".to_owned()][..], &["Y.Z".to_owned()][..])
        );
        assert_eq!(clients[1].certificates[0].as_str(), r"CN=team-b,O=Contoso\, Ltd");
        let tokens = config.entra.unwrap();
        let tenant = "11111111-2222-3333-4444-55555555555a";
        assert_eq!(tokens.tenant, tenant);
        let issuers = [
            format!("https://login.microsoftonline.com/{tenant}/v2.0"),
            format!("https://sts.windows.net/{tenant}/"),
        ];
        assert_eq!((tokens.issuers.as_slice(), tokens.leeway), (&issuers[..], Duration::from_secs(60)));
        let must = "must be a subject as openssl x509 -noout -subject -nameopt RFC2253,-esc_msb,utf8 prints it, such as CN=team-a,O=Contoso, not";
        for (clients, expected) in [
            ("{ name: a, entra: {} }", "clients[0].entra: must list app_ids or roles of the tokens that this client shows".to_owned()),
            ("{ name: a, certificates: ['CN=a, O=b'] }", format!("clients[0].certificates[0]: {must} \"CN=a, O=b\"")),
            ("{ name: a, certificates: [team-a] }", format!("clients[0].certificates[0]: {must} \"team-a\"")),
            (
                "{ name: a, entra: { roles: [R] } }, { name: b, entra: { roles: [R] } }",
                "clients[1].entra.roles[0]: is the same as clients[0].entra.roles[0]; each belongs to one client".to_owned(),
            ),
        ] {
            assert_problems(&[(&yaml(clients), &[&expected])]);
        }
        assert_problems(&[
            (
                "clients: [ { name: a, entra: { roles: [R] } }, { name: b, certificates: ['CN=b'] } ]",
                &[
                    "clients[0].entra: needs the block `entra` of the file, which says whose tokens are believed",
                    "clients[1].certificates: needs a listener with tls.client_ca, which asks clients for certificates",
                ],
            ),
            (
                "entra: { tenant: contoso.com, audiences: [], leeway: 1h }",
                &[
                    "entra.tenant: must be the directory's id, 32 hexadecimal digits in five groups, not \"contoso.com\"",
                    "entra.audiences: must not be an empty list: any token would do",
                    "entra.leeway: must be at most 5m",
                ],
            ),
        ]);
    }

    #[test]
    fn warnings() {
        let backends = "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: k }, deployments: { gpt-4o: x } } ]\n";
        let unserved =
            with_hash("clients: [ { name: a, keys: [ { sha256: HASH } ], deployments: [GPT-4O, gpt-5] } ]");
        assert_warnings(&[
            (
                &format!("{backends}{unserved}"),
                &[
                    "clients[0].deployments[1]: no backend serves \"gpt-5\"; every request for it is answered 404",
                ],
            ),
            (&unserved, &[]),
            (
                "entra: { tenant: 11111111-2222-3333-4444-555555555555, audiences: [a] }",
                &["entra: has no effect: clients is open, so nobody is asked who it is"],
            ),
            (
                &with_hash(
                    "entra: { tenant: 11111111-2222-3333-4444-555555555555, audiences: [a] }\nclients: [ { name: a, keys: [ { sha256: HASH } ] } ]",
                ),
                &["entra: has no effect: no client lists app_ids or roles under its own entra"],
            ),
            (
                &with_hash("clients: [ { name: a, keys: [ { sha256: HASH } ], record: { content: none } } ]"),
                &["clients[0].record: has no effect: there is no record block, so nothing is recorded"],
            ),
            (
                "clients: open\nlisteners: [ { address: '10.0.0.1:80' } ]",
                &[
                    "listeners[0].address: is not a loopback address: keys and prompts travel in clear between clients and here",
                    "clients: is open and a listener is not on loopback: whoever can connect uses your keys",
                ],
            ),
        ]);
    }
}
