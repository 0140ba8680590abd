//! Tokens and keys for backends: fetched from every kind of identity and from a vault, renewed in
//! the background, and never a reason for a failed request as long as a good one is to be had.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its output is read then"
)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use support::identity::{
    APP_SECRET, CLIENT, FEDERATED, HEADER, Platform, Resource, TENANT, Temper, certificate,
};
use support::{Balancer, answerer, until};

const MACHINE: &str = "entra: { managed_identity: {} }";
const OPENAI: &str = "https://cognitiveservices.azure.com";

async fn statuses(balancer: &Balancer, count: usize) -> Vec<u16> {
    join_all((0..count).map(|_| balancer.chat())).await.iter().map(|reply| reply.status).collect()
}

/// Writes what proves the application into a directory.
fn proofs(directory: &Path) {
    let (certificate, key) = certificate();
    std::fs::write(directory.join("app.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(directory.join("app.key"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    std::fs::write(directory.join("federated"), format!("{FEDERATED}\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_identity_gets_its_token() {
    let directory = tempfile::tempdir().unwrap();
    proofs(directory.path());
    let path = |name: &str| directory.path().join(name).display().to_string();
    let machine = |platform: &Platform| platform.machine();
    let app = |platform: &Platform| {
        let address = platform.address;
        vec![
            ("IDENTITY_ENDPOINT", format!("http://{address}/msi/token")),
            ("IDENTITY_HEADER", HEADER.to_owned()),
        ]
    };
    let cluster = |platform: &Platform| {
        vec![
            ("AZURE_TENANT_ID", TENANT.to_owned()),
            ("AZURE_CLIENT_ID", CLIENT.to_owned()),
            ("AZURE_FEDERATED_TOKEN_FILE", path("federated")),
            ("AZURE_AUTHORITY_HOST", format!("http://{}/", platform.address)),
        ]
    };
    let nothing = |_: &Platform| Vec::new();
    type Environment<'a> = &'a dyn Fn(&Platform) -> Vec<(&'static str, String)>;
    let ids = format!("tenant: {TENANT}, client_id: {CLIENT}");
    let files = format!("certificate: {}, private_key: {}", path("app.pem"), path("app.key"));
    let table: [(String, Environment<'_>, &str, &str); 8] = [
        ("managed_identity: {}".to_owned(), &machine, "machine system", OPENAI),
        (format!("managed_identity: {{ client_id: {CLIENT} }}"), &machine, "machine user", OPENAI),
        (
            "managed_identity: {}, scope: https://ai.azure.com/.default".to_owned(),
            &machine,
            "machine system",
            "https://ai.azure.com",
        ),
        ("managed_identity: {}".to_owned(), &app, "app system", OPENAI),
        (format!("managed_identity: {{ client_id: {CLIENT} }}"), &app, "app user", OPENAI),
        (
            "workload_identity: {}".to_owned(),
            &cluster,
            "federated",
            "https://cognitiveservices.azure.com/.default",
        ),
        (
            format!("client_secret: {{ {ids}, secret: '{APP_SECRET}' }}, authority: AUTHORITY"),
            &nothing,
            "secret",
            "https://cognitiveservices.azure.com/.default",
        ),
        (
            format!("certificate: {{ {ids}, {files} }}, authority: AUTHORITY"),
            &nothing,
            "certificate",
            "https://cognitiveservices.azure.com/.default",
        ),
    ];
    for (entra, environment, proof, scope) in table {
        let platform = Platform::start().await;
        let resource = Resource::start(&[], Some(&platform)).await;
        let authority = format!("http://{}", platform.address);
        let entry = resource.entry("a", &format!("entra: {{ {} }}", entra.replace("AUTHORITY", &authority)));
        let balancer = Balancer::in_environment(&environment(&platform), &entry, "").await;
        let reply = balancer.chat().await;
        assert_eq!(reply.status, 200, "{entra}: {}\n{}", reply.text(), balancer.log());
        assert_eq!(platform.asked(), [(proof.to_owned(), scope.to_owned())], "{entra}");
        let head = resource.upstream.requests()[0].head.to_ascii_lowercase();
        assert!(head.contains("authorization: bearer token-1") && !head.contains("api-key"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_once_for_all_and_renewed_before_it_ends() {
    let platform = Platform::start().await;
    platform.tokens_live(2);
    let resources =
        [Resource::start(&[], Some(&platform)).await, Resource::start(&[], Some(&platform)).await];
    let entries = [resources[0].entry("a", MACHINE), resources[1].entry("b", MACHINE)].concat();
    let balancer = Balancer::in_environment(&platform.machine(), &entries, "").await;
    assert_eq!(platform.issued(), 1, "one for both");
    let begun = Instant::now();
    until("two renewals", || platform.issued() >= 3).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "not more often than it has to be");
    assert_eq!(statuses(&balancer, 4).await, [200; 4]);
    let requests = resources.iter().flat_map(|resource| resource.upstream.requests());
    assert!(requests.into_iter().all(|request| !request.head.contains("token-1\r")), "the newest is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_token_stays_while_it_cannot_be_renewed() {
    let platform = Platform::start().await;
    platform.tokens_live(2);
    let resource = Resource::start(&[], Some(&platform)).await;
    let balancer = Balancer::in_environment(&platform.machine(), &resource.entry("a", MACHINE), "").await;
    for temper in [Temper::Says(500, "oops"), Temper::Says(429, "{}"), Temper::Garbage] {
        let known = balancer.log().len();
        platform.tokens_are(temper.clone());
        let said = || balancer.log()[known..].contains("cannot be renewed, the last one stays");
        until("it is said", said).await;
        assert_eq!(statuses(&balancer, 3).await, [200; 3], "{temper:?}");
        platform.tokens_are(Temper::Good);
        until("it is said that it is over", || balancer.log()[known..].contains("is fetched again")).await;
    }
    assert!(!balancer.log().contains("token-"), "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_costs_one_renewal_and_no_request() {
    let platform = Platform::start().await;
    let resource = Resource::start(&[], Some(&platform)).await;
    let balancer = Balancer::in_environment(&platform.machine(), &resource.entry("a", MACHINE), "").await;
    assert_eq!(balancer.chat().await.status, 200);
    for turn in 2..5 {
        // The renewal takes a while: nobody may be turned away meanwhile.
        platform.tokens_are(Temper::Slow(3));
        platform.revoke();
        assert_eq!(statuses(&balancer, 20).await, [200; 20], "{}", balancer.log());
        assert_eq!(platform.issued(), turn, "one renewal, however many were refused");
    }
    let records = balancer.records_of(61).await;
    let attempts = |record: &serde_json::Value| record["attempts"].as_array().unwrap().len();
    assert!(records.iter().any(|record| attempts(record) == 2));
    assert!(records.iter().all(|record| attempts(record) <= 2 && record["status"] == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_for_good_is_not_renewed_for_ever() {
    let platform = Platform::start().await;
    let (closed, open) = (Resource::start(&[], None).await, Resource::start(&["good"], None).await);
    let entries = [closed.entry("closed", MACHINE), open.entry("open", "api_key: good")].concat();
    let balancer = Balancer::in_environment(&platform.machine(), &entries, "").await;
    for _ in 0..6 {
        let reply = balancer.chat().await;
        assert_eq!((reply.status, answerer(&reply).as_str()), (200, "open"));
    }
    until("a renewal", || platform.issued() == 2).await;
    // With the new one it is asked once more, and refuses that, too.
    for _ in 0..20 {
        assert_eq!(answerer(&balancer.chat().await), "open");
    }
    assert_eq!((platform.issued(), closed.upstream.requests().len()), (2, 2), "{}", balancer.log());
    let alone = Balancer::in_environment(&platform.machine(), &closed.entry("closed", MACHINE), "").await;
    let reply = alone.chat().await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "backend_misconfigured"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_key_that_is_written_in_the_file() {
    let resource = Resource::start(&[], None).await;
    let balancer = Balancer::start(&resource.entry("a", "api_key: wrong"), "").await;
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(balancer.chat().await.status, 503);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_rotated_in_its_vault_costs_no_request() {
    let platform = Platform::start().await;
    platform.put("west-key", "first-key");
    let resource = Resource::start(&["first-key"], None).await;
    let entry = resource.entry("west", &format!("key_vault: '{}'", platform.secret("west-key")));
    let balancer = Balancer::in_environment(&platform.machine(), &entry, "").await;
    assert_eq!(platform.asked(), [("machine system".to_owned(), "https://vault.azure.net".to_owned())]);
    let (mut sent, mut old) = (0, "first-key".to_owned());
    for turn in 0..5 {
        let new = format!("key-{turn}");
        // As one does it: the new key into the vault, then the old one is no good any more.
        let load = async {
            let mut good = 0;
            for _ in 0..10 {
                good += statuses(&balancer, 8).await.iter().filter(|status| **status == 200).count();
            }
            good
        };
        let rotation = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            platform.put("west-key", &new);
            resource.admit(&[&new]);
        };
        let (good, ()) = tokio::join!(load, rotation);
        assert_eq!(good, 80, "turn {turn}:\n{}", balancer.log());
        sent += 80;
        assert!(!balancer.log().contains(&old) && !balancer.log().contains(&new));
        old = new;
    }
    assert_eq!(platform.reads(), 6, "once at the start, and once for each rotation");
    let records = balancer.records_of(sent).await;
    assert!(records.iter().all(|record| record["status"] == 200));
    let status = balancer.status().await;
    assert_eq!(status["backends"][0]["state"], "ok", "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_read_again_after_a_while_and_before_the_old_one_ends() {
    let platform = Platform::start().await;
    platform.put("west-key", "first-key");
    let resource = Resource::start(&["first-key", "second-key"], None).await;
    let entry = resource.entry("west", &format!("key_vault: '{}'", platform.secret("west-key")));
    let vault = "key_vault: { credential: { entra: { managed_identity: {} } }, refresh: 1s }";
    let balancer = Balancer::in_environment(&platform.machine(), &entry, vault).await;
    assert_eq!(balancer.chat().await.status, 200);
    platform.put("west-key", "second-key");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert_eq!(balancer.chat().await.status, 200);
        if resource.upstream.requests().pop().unwrap().head.contains("second-key") {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    // Without its vault it goes on with what it has.
    for temper in [Temper::Says(429, "{}"), Temper::Says(403, "{}"), Temper::Garbage] {
        let known = balancer.log().len();
        platform.vault_is(temper);
        until("it is said", || balancer.log()[known..].contains("the last one stays")).await;
        assert_eq!(balancer.chat().await.status, 200);
        platform.vault_is(Temper::Good);
        until("it is over", || balancer.log()[known..].contains("is fetched again")).await;
    }
    // A token for the vault that was revoked is no reason to do without.
    let (reads, issued) = (platform.reads(), platform.issued());
    platform.revoke();
    until("it is read again", || platform.reads() >= reads + 3).await;
    assert_eq!(platform.issued(), issued + 1);
    assert_eq!(balancer.chat().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_secret_says_which_and_why_and_goes_on() {
    let platform = Platform::start().await;
    platform.put("west-key", "good");
    let (west, east) = (Resource::start(&["good"], None).await, Resource::start(&["east"], None).await);
    let vault = format!("key_vault: '{}'", platform.secret("west-key"));
    let entries = [west.entry("west", &vault), east.entry("east", "api_key: east")].concat();
    let denied =
        r#"{"error":{"code":"Forbidden","message":"hunter2","innererror":{"code":"ForbiddenByRbac"}}}"#;
    let away = [
        (Temper::Says(503, "<html>"), "answered 503"),
        (Temper::Says(403, denied), "answered 403 (Forbidden, ForbiddenByRbac); the identity needs the role"),
        (Temper::Garbage, "answered is no secret"),
    ];
    for (temper, why) in away {
        platform.vault_is(temper);
        let balancer = Balancer::in_environment(&platform.machine(), &entries, "").await;
        balancer.until_said("backend west is left out until it has its credential: ").await;
        let log = balancer.log();
        let secret = format!("there is no good secret {}/secrets/west-key: ", platform.address);
        assert!(log.contains(&secret) && log.contains(why) && !log.contains("hunter2"), "{why}: {log}");
        for _ in 0..4 {
            assert_eq!(answerer(&balancer.chat().await), "east");
        }
        let status = balancer.status().await;
        assert_eq!(status["backends"][0]["state"], "credential", "{status}");
        assert!(status["backends"][0]["until_ms"].is_null(), "{status}");
        assert_eq!(west.upstream.requests().len(), 0);
        let alone = Balancer::in_environment(&platform.machine(), &west.entry("west", &vault), "").await;
        let reply = alone.chat().await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "backend_misconfigured"), "{}", reply.text());
        platform.vault_is(Temper::Good);
        alone.until_status("west is back", |status| status["backends"][0]["state"] == "ok").await;
        assert_eq!(alone.chat().await.status, 200);
        west.upstream.forget();
    }
    // A vault that takes its time: who comes meanwhile waits.
    platform.vault_is(Temper::Slow(60));
    let alone = Balancer::in_environment(&platform.machine(), &west.entry("west", &vault), "").await;
    assert_eq!(alone.chat().await.status, 200, "{}", alone.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_token_says_why() {
    let platform = Platform::start().await;
    let resource = Resource::start(&[], Some(&platform)).await;
    let authority = format!("authority: 'http://{}'", platform.address);
    let client = |tenant: &str, id: &str, secret: &str| {
        format!(
            "entra: {{ client_secret: {{ tenant: {tenant}, client_id: {id}, secret: {secret} }}, {authority} }}"
        )
    };
    let unknown = "entra: { managed_identity: { client_id: unknown } }".to_owned();
    for (credential, why) in [
        (
            client("fabrikam", CLIENT, APP_SECRET),
            "127.0.0.1 answered 400 (invalid_request, AADSTS90002); check tenant",
        ),
        (client(TENANT, "other", APP_SECRET), "127.0.0.1 answered 400 (unauthorized_client, AADSTS700016)"),
        (client(TENANT, CLIENT, "hunter2"), "127.0.0.1 answered 401 (invalid_client, AADSTS7000215)"),
        (unknown, "127.0.0.1 answered 400 (invalid_request); has this machine that identity?"),
    ] {
        let entry = resource.entry("a", &credential);
        let balancer = Balancer::in_environment(&platform.machine(), &entry, "").await;
        balancer.until_said(why).await;
        assert_eq!(balancer.chat().await.status, 503);
        assert!(!balancer.log().contains("hunter2") && !balancer.log().contains(APP_SECRET));
    }
    assert_eq!(resource.upstream.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_own_secret_may_be_in_a_vault() {
    let platform = Platform::start().await;
    platform.put("app-secret", "the first one");
    let resource = Resource::start(&[], Some(&platform)).await;
    let entra = |secret: &str| {
        format!(
            "entra: {{ client_secret: {{ tenant: {TENANT}, client_id: {CLIENT}, secret: {secret} }}, authority: 'http://{}' }}",
            platform.address
        )
    };
    platform.put("app-secret", "the-first-one");
    platform.tokens_live(2);
    let entry = resource.entry("a", &entra(&format!("{{ key_vault: '{}' }}", platform.secret("app-secret"))));
    let balancer = Balancer::in_environment(&platform.machine(), &entry, "").await;
    assert_eq!(balancer.chat().await.status, 200, "{}", balancer.log());
    // It is replaced; the next renewal is refused, reads it again, and gets its token.
    platform.put("app-secret", "the-second-one");
    let issued = platform.issued();
    until("more tokens", || platform.issued() >= issued + 4).await;
    assert_eq!(balancer.chat().await.status, 200, "{}", balancer.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_and_token_endpoints_are_verified() {
    use support::tls::{authority, certificate, key, terminate};
    let platform = Platform::start().await;
    platform.put("west-key", "good");
    let (known, other, key) = (authority(), authority(), key());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, known.certificate.to_pem().unwrap()).unwrap();
    let resource = Resource::start(&["good"], Some(&platform)).await;
    for (name, days, issuer, expected) in [
        ("localhost", (-1, 1), &known, 200),
        ("fabrikam.test", (-1, 1), &known, 503),
        ("localhost", (-3, -2), &known, 503),
        ("localhost", (-1, 1), &other, 503),
    ] {
        let certificate = certificate(name, days, &key, Some(issuer));
        let (address, _) = terminate(platform.address, &certificate, &key).await;
        let url = format!("https://localhost:{}", address.port());
        let application = format!("tenant: {TENANT}, client_id: {CLIENT}, secret: '{APP_SECRET}'");
        for credential in [
            format!("key_vault: '{url}/secrets/west-key'"),
            format!("entra: {{ client_secret: {{ {application} }}, authority: '{url}' }}"),
        ] {
            let mut environment = platform.machine();
            environment.push(("SSL_CERT_FILE", ca.display().to_string()));
            let entry = resource.entry("a", &credential);
            let balancer = Balancer::in_environment(&environment, &entry, "").await;
            let status = balancer.chat().await.status;
            assert_eq!(status, expected, "{name} {days:?} {credential}:\n{}", balancer.log());
        }
    }
}
