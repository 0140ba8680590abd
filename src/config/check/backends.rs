//! `backends`: the routable entries, one by one and as tiers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use openssl::x509::X509;

use super::credentials::{credential, pair};
use super::{api_version, entry_name};
use crate::config::endpoint::host_name;
use crate::config::node::{Inner, Map};
use crate::config::{Backend, BackendTls, DeploymentMap, Endpoint};
use crate::names::{BackendName, Deployment, Tier, Weight};

const KEYS: [&str; 10] = [
    "name",
    "endpoint",
    "tier",
    "weight",
    "credential",
    "deployments",
    "api_version",
    "tls",
    "http2",
    "probe",
];
const INTERVAL: &str = "write how long a backend may be without traffic, such as interval: 30s";
/// Most slots of the wheel of one tier.
const SLOTS_MAX: u64 = 10_000;
/// More than any bundle of authorities has.
const CA_FILE_MAX: u64 = 16 << 20;

/// Where a backend of some name is.
pub(super) enum Found {
    /// At this place of the list.
    At(usize),
    /// There is none.
    Nowhere,
    /// Some name could not be read, and may be this one.
    Unknown,
}

/// The backends as far as they could be read, for the blocks that refer to them.
pub(super) struct Backends {
    read: Vec<Option<Backend>>,
    /// Where each name was given; every name that could be read, even of a backend that could not.
    names: HashMap<String, usize>,
    has_all_names: bool,
}

impl Backends {
    /// The backends, if all are good.
    pub(super) fn finish(self) -> Option<Vec<Backend>> {
        self.read.into_iter().collect()
    }

    /// Which backend has this name.
    pub(super) fn find(&self, name: &str) -> Found {
        match self.names.get(name) {
            Some(i) => Found::At(*i),
            None if self.has_all_names => Found::Nowhere,
            None => Found::Unknown,
        }
    }

    /// The first backend of the lowest tier; `None` where a bad one hides it.
    pub(super) fn first(&self) -> Option<usize> {
        let tiers: Option<Vec<Tier>> = self.read.iter().map(|b| b.as_ref().map(|b| b.tier)).collect();
        tiers?.into_iter().enumerate().min_by_key(|(_, tier)| *tier).map(|(i, _)| i)
    }

    /// The names clients may ask for; `None` where some backend passes all, or is bad.
    pub(super) fn served(&self) -> Option<HashSet<&Deployment>> {
        let mut served = HashSet::new();
        for backend in &self.read {
            let deployments = &backend.as_ref()?.deployments;
            if deployments.passes_all() {
                return None;
            }
            served.extend(deployments.listed().map(|(client, _)| client));
        }
        Some(served)
    }
}

/// Reads all backends.
pub(super) fn read(root: &Map<'_, '_>) -> Option<Backends> {
    let node = root.need("backends", "write at least one, with name, endpoint and credential")?;
    let items = node.list()?;
    if items.is_empty() {
        return node.error("must have at least one backend");
    }
    let mut backends = Backends { read: Vec::new(), names: HashMap::new(), has_all_names: true };
    for (i, item) in items.iter().enumerate() {
        let backend = backend(item, i, &mut backends);
        backends.read.push(backend);
    }
    check_wheels(&items, &backends.read);
    Some(backends)
}

fn backend(node: &Inner<'_, '_>, index: usize, all: &mut Backends) -> Option<Backend> {
    let Some(map) = node.map(&KEYS) else {
        all.has_all_names = false;
        return None;
    };
    let name = map.need("name", "give it a unique name").and_then(|node| unique_name(&node, index, all));
    all.has_all_names &= name.is_some();
    let endpoint = map
        .need("endpoint", "write the resource's URL, such as https://NAME.openai.azure.com")
        .and_then(|node| self::endpoint(&node));
    let tier = map.or("tier", Tier::FIRST, |node| {
        let tier = node.number(1..=u64::from(u16::MAX))?;
        Tier::new(u16::try_from(tier).ok()?)
    });
    let weight = map.or("weight", Weight::ONE, |node| {
        let weight = node.number(1..=u64::from(Weight::MAX))?;
        Weight::new(u16::try_from(weight).ok()?)
    });
    let credential = map
        .need("credential", "write credential: { api_key: \"${NAME}\" }")
        .and_then(|node| credential(&node));
    let passes_all = DeploymentMap::new(Vec::new(), true);
    let deployments = map.or("deployments", passes_all, deployments);
    let api_version = map.maybe("api_version", api_version);
    let probe = map.maybe("probe", |node| node.map(&["interval"])?.need("interval", INTERVAL)?.interval());
    let tls = map.or("tls", BackendTls::default(), |node| tls(node, endpoint.as_ref()));
    let http2 = map.or("http2", false, |node| {
        let http2 = node.flag()?;
        if http2 && endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls) {
            return node.error("needs an https endpoint: HTTP/2 is agreed on in the TLS handshake");
        }
        Some(http2)
    });
    Some(Backend {
        name: name?,
        endpoint: endpoint?,
        tier: tier?,
        weight: weight?,
        credential: credential?,
        deployments: deployments?,
        api_version: api_version?,
        tls: tls?,
        http2: http2?,
        probe: probe?,
    })
}

fn unique_name(node: &Inner<'_, '_>, index: usize, all: &mut Backends) -> Option<BackendName> {
    let name = entry_name(node)?;
    let backend = BackendName::new(&name);
    match all.names.get(&name) {
        Some(other) => {
            // The name is known, only not unique: others may refer to it without a second complaint.
            node.error::<()>(format!("is also the name of backends[{other}]; names are unique"));
        }
        None => {
            all.names.insert(name, index);
        }
    }
    Some(backend)
}

fn endpoint(node: &Inner<'_, '_>) -> Option<Endpoint> {
    // Not `parsed`, which would repeat a user and password.
    let text = node.filled()?;
    match Endpoint::parse(&text.value) {
        Ok(endpoint) => {
            if !endpoint.tls && !endpoint.is_loopback() {
                node.warn("is http: the key and every prompt travel in clear to this host; use https");
            }
            Some(endpoint)
        }
        Err(problem) if text.is_expanded() => node.error(format!("{problem}; see {}", text.shown())),
        Err(problem) => node.error(problem),
    }
}

fn deployments(node: &Inner<'_, '_>) -> Option<DeploymentMap> {
    let entries = node.entries()?;
    if entries.is_empty() {
        return node
            .error("must not be empty; remove the key to pass all names, or list what this resource serves");
    }
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut listed = Vec::with_capacity(entries.len());
    let (mut passes_all, mut is_good) = (false, true);
    for (client, node) in &entries {
        if *client == "*" {
            let is_star = node.text().is_some_and(|text| {
                text.value == "*"
                    || node.error::<()>("must be \"*\": all other names pass as they are").is_some()
            });
            passes_all = true;
            is_good &= is_star;
            continue;
        }
        let name = match Deployment::parse(client) {
            Ok(name) => Some(name),
            Err(problem) => node.error(format!("{problem}; this key is none")),
        };
        let upstream = node.parsed(Deployment::parse);
        let (Some(name), Some(upstream)) = (name, upstream) else {
            is_good = false;
            continue;
        };
        if let Some(other) = seen.insert(name.key(), client) {
            node.error::<()>(format!("is the same name as {other:?}: names compare without case"));
            is_good = false;
            continue;
        }
        listed.push((name, upstream));
    }
    is_good.then(|| DeploymentMap::new(listed, passes_all))
}

fn tls(node: &Inner<'_, '_>, endpoint: Option<&Endpoint>) -> Option<BackendTls> {
    let map = node.map(&["ca", "server_name", "certificate", "private_key"])?;
    if endpoint.is_some_and(|endpoint| !endpoint.tls) {
        return node.error("has no meaning for an http endpoint; remove it or use https");
    }
    let ca = map.maybe("ca", authorities);
    let server_name = map.maybe("server_name", |node| {
        node.parsed(|text| host_name(text).ok_or("must be a host name, without scheme and port"))
    });
    let shows = map.find("certificate").or(map.find("private_key")).is_some();
    let pair = if shows { pair(&map).map(Some) } else { Some(None) };
    Some(BackendTls { ca: ca?, server_name: server_name?, pair: pair? })
}

/// A PEM file of authorities.
pub(super) fn authorities(node: &Inner<'_, '_>) -> Option<PathBuf> {
    let (path, shown) = node.file()?;
    let mut bytes = Vec::new();
    if let Err(e) = File::open(&path).and_then(|file| file.take(CA_FILE_MAX).read_to_end(&mut bytes)) {
        return node.error(format!("cannot read {shown}: {e}"));
    }
    match X509::stack_from_pem(&bytes) {
        Ok(found) if !found.is_empty() => Some(path),
        _ => node.error(format!("must be a PEM file with at least one certificate, and {shown} has none")),
    }
}

/// A wheel has one slot for each unit of weight, after division by the common factor.
fn check_wheels(items: &[Inner<'_, '_>], backends: &[Option<Backend>]) {
    let mut tiers: BTreeMap<Tier, (usize, u64, u64)> = BTreeMap::new();
    for (i, backend) in backends.iter().enumerate() {
        let Some(backend) = backend else { continue };
        let weight = u64::from(backend.weight.get());
        let (_, sum, factor) = tiers.entry(backend.tier).or_insert((i, 0, 0));
        *sum += weight;
        *factor = greatest_common_divisor(*factor, weight);
    }
    for (first, sum, factor) in tiers.into_values() {
        if sum / factor.max(1) > SLOTS_MAX {
            let message = "the weights of its tier, divided by their common factor, must add up to at most 10000; \
                           use smaller weights, or such with a common factor";
            items[first].report.error::<()>(&format!("{}.weight", items[first].path), message);
        }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{assert_problems, assert_warnings, good, pair, problems_in, written};

    /// A file with one backend that has `more` besides what it needs.
    fn with(more: &str) -> String {
        format!(
            "backends: [ {{ name: east, endpoint: 'https://a.b', credential: {{ api_key: k }}, {more} }} ]"
        )
    }

    #[test]
    fn defaults() {
        let backend =
            &good("backends: [ { name: e, endpoint: 'https://a.b', credential: { api_key: '${KEY}' } } ]")
                .config
                .backends[0];
        assert_eq!((backend.tier.get(), backend.weight.get()), (1, 1));
        assert_eq!((&backend.api_version, &backend.tls), (&None, &BackendTls::default()));
        assert!(backend.deployments.passes_all() && backend.deployments.listed().next().is_none());
        assert_eq!(written(&backend.credential), "k3y-of-the-test");
    }

    #[test]
    fn what_is_written_is_read() {
        let yaml = with(
            "tier: 2, weight: '3', deployments: { gpt-4o: gpt-4o-ptu, '*': '*' }, api_version: 2025-03-01-preview, tls: { server_name: C.D }",
        );
        let backend = &good(&yaml).config.backends[0];
        assert_eq!(
            (backend.tier.get(), backend.weight.get(), backend.api_version.as_deref()),
            (2, 3, Some("2025-03-01-preview"))
        );
        assert_eq!(backend.tls.server_name.as_deref(), Some("c.d"));
        let listed: Vec<_> = backend.deployments.listed().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!((listed, backend.deployments.passes_all()), (vec![("gpt-4o", "gpt-4o-ptu")], true));
    }

    #[test]
    fn problems() {
        let one = |more: &str, problem: &str| (with(more), vec![problem.to_owned()]);
        for (yaml, expected) in [
            one("tier: 0", "backends[0].tier: must be 1 to 65535, not 0"),
            one("weight: 0", "backends[0].weight: must be 1 to 1000, not 0"),
            one("weight: '${KEY}'", "backends[0].weight: must be 1 to 1000, not the value from ${KEY}"),
            one("weight: [1]", "backends[0].weight: must be a number, not a list"),
            one("weight: ", "backends[0].weight: is empty; remove it or give it a value"),
            one("weight: !x 1", "backends[0].weight: must be a number, not a value with a YAML tag"),
            one("wieght: 1", "backends[0].wieght: unknown key; did you mean `weight`?"),
            one("http2: yes", "backends[0].http2: must be true or false, not \"yes\""),
            one("hhtp: true", "backends[0].hhtp: unknown key; did you mean `http2`?"),
            one(
                "probe: {}",
                "backends[0].probe.interval: is missing; write how long a backend may be without traffic, such as interval: 30s",
            ),
            one("probe: { interval: 500ms }", "backends[0].probe.interval: must be at least 1s"),
            one(
                "api_version: v1",
                "backends[0].api_version: must be a version such as 2024-10-21 or 2025-03-01-preview, not \"v1\"",
            ),
            one(
                "deployments: {}",
                "backends[0].deployments: must not be empty; remove the key to pass all names, or list what this resource serves",
            ),
            one(
                "deployments: { '*': x }",
                "backends[0].deployments[\"*\"]: must be \"*\": all other names pass as they are",
            ),
            one(
                "deployments: { a: '*' }",
                "backends[0].deployments.a: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -, not \"*\"",
            ),
            one(
                "deployments: { a b: c }",
                "backends[0].deployments[\"a b\"]: a deployment name has 1 to 64 of the characters A-Z a-z 0-9 . _ -; this key is none",
            ),
            one(
                "deployments: { GPT: a, gpt: b }",
                "backends[0].deployments.gpt: is the same name as \"GPT\": names compare without case",
            ),
            one(
                "deployments: { gpt: }",
                "backends[0].deployments.gpt: is empty; remove it or give it a value",
            ),
            one(
                "deployments: { 4: a }",
                "backends[0].deployments: has a key that is a number; write it in quotes",
            ),
            one(
                "tls: { ca: /no/such/file }",
                "backends[0].tls.ca: cannot read \"/no/such/file\": No such file or directory (os error 2)",
            ),
            one(
                "tls: { server_name: 'https://a' }",
                "backends[0].tls.server_name: must be a host name, without scheme and port, not \"https://a\"",
            ),
        ] {
            assert_eq!(problems_in(&yaml), expected, "{yaml}");
        }
        assert_problems(&[
            ("backends: []", &["backends: must have at least one backend"]),
            (
                "backends: [ x, {} ]",
                &[
                    "backends[0]: must be a mapping with name, endpoint, tier, weight, credential, deployments, api_version, tls, http2 or probe, not a string",
                    "backends[1].name: is missing; give it a unique name",
                    "backends[1].endpoint: is missing; write the resource's URL, such as https://NAME.openai.azure.com",
                    "backends[1].credential: is missing; write credential: { api_key: \"${NAME}\" }",
                ],
            ),
            (
                "backends: [ { name: a b, endpoint: 'https://u:hunter2@a.b', credential: hunter2 }, { name: c, endpoint: 'ftp://a.b', credential: { hunter2: } } ]",
                &[
                    "backends[0].name: must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, not \"a b\"",
                    "backends[0].endpoint: must not have a user or password; the key belongs under credential.api_key",
                    "backends[0].credential: must be a mapping with api_key, key_vault or entra, not a string",
                    "backends[1].endpoint: must begin with https:// or http://",
                    "backends[1].credential: has an unknown key; the keys here are api_key, key_vault and entra",
                    "backends[1].credential: needs one of api_key, key_vault and entra; write api_key: \"${NAME}\", key_vault: URL of the secret, or entra: { managed_identity: {} }",
                ],
            ),
            (
                "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: '' } }, { name: a, endpoint: 'https://a.b', credential: { api_key: 'hunter 2' } } ]",
                &[
                    "backends[0].credential.api_key: must not be empty",
                    "backends[1].name: is also the name of backends[0]; names are unique",
                    "backends[1].credential.api_key: must be a key without blanks, line breaks and non-ASCII characters",
                ],
            ),
            (
                "backends: [ { name: a, endpoint: 'http://127.0.0.1', credential: { api_key: '${EMPTY}' }, tls: { server_name: a.b }, http2: true } ]",
                &[
                    "backends[0].credential.api_key: must not be empty, as the value from ${EMPTY} is",
                    "backends[0].tls: has no meaning for an http endpoint; remove it or use https",
                    "backends[0].http2: needs an https endpoint: HTTP/2 is agreed on in the TLS handshake",
                ],
            ),
            (
                "backends: [ { name: a, endpoint: 'https://a.b', credential: { api_key: '${NONE}' } } ]",
                &["backends[0].credential.api_key: ${NONE} is not set; set NONE or write ${NONE:-default}"],
            ),
        ]);
    }

    #[test]
    fn authorities_have_to_be_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let yaml = with(&format!("tls: {{ ca: '{}' }}", file.display()));
        std::fs::write(&file, "-----BEGIN PRIVATE KEY-----").unwrap();
        assert!(problems_in(&yaml)[0].contains("must be a PEM file with at least one certificate"));
        std::fs::write(&file, "# root\n-----BEGIN CERTIFICATE-----\nx").unwrap();
        assert!(problems_in(&yaml)[0].contains("must be a PEM file with at least one certificate"));
        pair(dir.path(), "ca", 90, &[]);
        assert_eq!(good(&yaml).config.backends[0].tls.ca.as_deref(), Some(file.as_path()));
    }

    #[test]
    fn the_slots_of_a_tier_are_bounded() {
        let tier = |weights: &[u16]| {
            let backend = |(i, w): (usize, &u16)| {
                format!(
                    "  - {{ name: b{i}, weight: {w}, endpoint: 'https://a.b', credential: {{ api_key: k }} }}\n"
                )
            };
            format!("backends:\n{}", weights.iter().enumerate().map(backend).collect::<String>())
        };
        assert_eq!(problems_in(&tier(&[1000; 200])), Vec::<String>::new());
        let mut uneven = [1000; 12];
        uneven[3] = 999;
        let problems = problems_in(&tier(&uneven));
        assert!(
            problems.len() == 1 && problems[0].starts_with("backends[0].weight: the weights of its tier"),
            "{problems:?}"
        );
    }

    #[test]
    fn warnings() {
        let at = |endpoint: &str| {
            format!("backends: [ {{ name: a, endpoint: '{endpoint}', credential: {{ api_key: k }} }} ]")
        };
        assert_warnings(&[
            (
                &at("http://10.0.0.1"),
                &[
                    "backends[0].endpoint: is http: the key and every prompt travel in clear to this host; use https",
                ],
            ),
            (&at("http://localhost:9"), &[]),
        ]);
    }
}
